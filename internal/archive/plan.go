package archive

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"millrace/internal/jsontext"
)

const (
	// maxColumns bounds the columns of a file. Each costs some 100 bytes and a page a row group.
	maxColumns = 64
	// minShare is the share of the records that have a path with a column. A column of fewer values costs more than they cost in _rest.
	minShare = 0.01
	// maxNames and maxNameBytes bound the paths that have columns.
	maxNames, maxNameBytes = 16, 128
	// maxKeyBytes is the mean length up to which texts are likely to be looked up as a whole.
	maxKeyBytes = 64
	// maxSampled is the most paths that a sample counts. What comes later has no column.
	maxSampled = 4096
)

// Registry has the kind of each path that a column has been made for. It must be kept as long as a file is: the same path is of the same
// kind in all files. Names that differ in case alone can't both be columns: programs that read the files do not tell them apart.
type Registry struct {
	kinds   map[string]Kind   // by the column's name
	byLower map[string]string // names by their form in small letters
}

// NewRegistry returns the registry of these columns, which may be nil.
func NewRegistry(known map[string]Kind) *Registry {
	r := &Registry{kinds: make(map[string]Kind), byLower: make(map[string]string)}
	for name, kind := range known {
		r.add(name, kind)
	}
	return r
}

func (r *Registry) add(name string, kind Kind) {
	r.kinds[name], r.byLower[strings.ToLower(name)] = kind, name
}

// Kinds returns the kinds of the columns, by name.
func (r *Registry) Kinds() map[string]Kind { return r.kinds }

// admits reports whether a name may be a column.
func (r *Registry) admits(name string) bool {
	other, taken := r.byLower[strings.ToLower(name)]
	return !taken || other == name
}

// sampled is what a sample has at a path.
type sampled struct {
	path     []string
	name     string
	kinds    [kinds]int
	values   int
	distinct distinctCount
	bytes    int
	zeros    int         // integers that are written with ".0"
	whole    int         // integers that are not
	long     int         // integers of more than 15 digits
	digits   [10]int     // times by the digits after the second
	trimmed  int         // times whose last digit is not 0
	children *sampleTree // of the objects at the path
}

// distinctCount estimates how many of up to GroupRows values are distinct, by linear counting: each sets one of as many bits by its hash.
// The error is below one in a hundred, see Whang, Vander-Zanden and Taylor, A Linear-Time Probabilistic Counting Algorithm (1990).
type distinctCount struct{ bits Bits }

func (d *distinctCount) add(hash uint64) {
	if d.bits == nil {
		d.bits = NewBits(GroupRows)
	}
	d.bits.Set(int(hash % GroupRows))
}

func (d *distinctCount) estimate() int {
	unset := GroupRows - d.bits.Count()
	return int(math.Round(GroupRows * math.Log(GroupRows/float64(max(unset, 1)))))
}

// sampleTree has what is at the members of objects.
type sampleTree struct{ members map[string]*sampled }

// sample counts what records have at their paths.
type sample struct {
	records int
	paths   int
	root    sampleTree
	all     []*sampled
}

// add counts a record.
func (s *sample) add(data []byte) {
	s.records++
	if len(data) > 0 && data[0] == '{' {
		s.object(&s.root, data, nil)
	}
}

func (s *sample) object(tree *sampleTree, data []byte, path []string) {
	for i := 1; ; {
		m, ok := memberAt(data, i)
		if !ok {
			return
		}
		i = m.next
		at := tree.members[string(m.key)]
		if at == nil {
			if s.paths == maxSampled || len(path) == maxNames {
				continue
			}
			s.paths++
			at = &sampled{path: append(slices.Clip(slices.Clone(path)), string(jsontext.AppendUnescaped(nil, m.key[1:len(m.key)-1])))}
			at.name = strings.Join(at.path, ".")
			if tree.members == nil {
				tree.members = make(map[string]*sampled)
			}
			tree.members[string(m.key)] = at
			s.all = append(s.all, at)
		}
		if m.value[0] == '{' {
			if at.children == nil {
				at.children = new(sampleTree)
			}
			s.object(at.children, m.value, at.path)
			continue
		}
		at.value(m)
	}
}

// value counts a value.
func (s *sampled) value(m member) {
	switch c := m.value[0]; {
	case c == '[' || c == 'n':
		return
	case c == 't' || c == 'f':
		s.kinds[Bool]++
	case c == '"':
		text := m.value[1 : len(m.value)-1]
		digits := max(0, len(text)-len("2006-01-02T15:04:05.Z"))
		if _, ok := ParseTime(text, Nanos, Form(min(digits, 9))); ok && !m.valueEscaped {
			s.kinds[Micros]++
			s.digits[digits]++
			if digits == 0 || text[len(text)-2] != '0' {
				s.trimmed++
			}
		} else {
			s.kinds[Text]++
		}
	default:
		if _, ok := parseDouble(m.value, 0); ok {
			s.kinds[Double]++
			if !slices.Contains(m.value, '.') {
				s.whole++
			}
		} else if _, ok := parseDouble(m.value, PointZero); ok {
			s.kinds[Double]++
			s.zeros++
		} else if _, ok := parseInteger(m.value); ok {
			s.kinds[Double]++
			s.long++
		} else {
			return
		}
	}
	s.values++
	s.bytes += len(m.value)
	s.distinct.add(hash64(m.value))
}

// kind returns the kind that most of the values have.
func (s *sampled) kind() Kind {
	most := Text
	for k, n := range s.kinds {
		if n > s.kinds[most] {
			most = Kind(k)
		}
	}
	switch {
	case most == Double && s.long > s.whole+s.zeros && s.long*2 > s.kinds[Double]:
		return Integer
	case most == Micros:
		for _, n := range s.digits[7:] {
			if n > 0 {
				return Nanos
			}
		}
	}
	return most
}

// form returns the form that most of the values have as values of a kind.
func (s *sampled) form(kind Kind) Form {
	switch kind {
	case Double:
		if s.zeros > s.whole {
			return PointZero
		}
	case Micros, Nanos:
		most := 0
		for digits, n := range s.digits {
			if n > s.digits[most] {
				most = digits
			}
		}
		if s.digits[most] < s.trimmed || most > 6 && kind == Micros {
			return Trimmed
		}
		return Form(most)
	}
	return 0
}

// columns returns the columns for the records of the sample, and adds to the registry those that are new.
func (s *sample) columns(r *Registry) []Column {
	common := slices.DeleteFunc(slices.Clone(s.all), func(at *sampled) bool {
		return at.values == 0 || float64(at.values) < minShare*float64(s.records) || !mayBeColumn(at.name)
	})
	slices.SortStableFunc(common, func(a, b *sampled) int {
		_, aKnown := r.kinds[a.name]
		_, bKnown := r.kinds[b.name]
		switch {
		case aKnown != bKnown && aKnown:
			return -1
		case aKnown != bKnown:
			return 1
		}
		return cmp.Or(cmp.Compare(b.values, a.values), strings.Compare(a.name, b.name))
	})
	var columns []Column
	taken := make(map[string]bool) // {"a.b":1} and {"a":{"b":1}} would have the same name
	for _, at := range common {
		if len(columns) == maxColumns {
			break
		}
		if taken[at.name] || !r.admits(at.name) {
			continue
		}
		taken[at.name] = true
		kind, known := r.kinds[at.name]
		if !known {
			kind = at.kind()
			r.add(at.name, kind)
		}
		c := Column{Name: at.name, Path: at.path, Kind: kind, Form: at.form(kind)}
		switch {
		case kind == Text:
			c.dictionary = at.distinct.estimate()*4 < at.values
			c.long = at.bytes > maxKeyBytes*at.values
			c.bloom = at.distinct.estimate()*10 > at.values*9 && !c.long && at.values > 100
		case kind == Double || kind == Integer:
			c.dictionary = at.distinct.estimate()*8 < at.values
		}
		columns = append(columns, c)
	}
	return columns
}

// mayBeColumn reports whether a name may be that of a column: printable, and none of the names that begin as _id does.
func mayBeColumn(name string) bool {
	return name != "" && name[0] != '_' && len(name) <= maxNameBytes && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
