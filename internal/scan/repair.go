package scan

import (
	"bytes"
	"cmp"
	"slices"
	"unicode/utf8"
)

// RepairedKey is the name of the member that lists the top-level names of a repaired record under which something was changed. If
// a record has a member of that name that is a list of strings, the names are added to it. If that is something else, the record
// keeps it, and the list's name gets one more underscore in front.
const RepairedKey = "_repaired"

// replacement stands for what a string can't hold.
const replacement = "\ufffd"

// minCut is the length of the shortest string that may be cut to make a record smaller.
const minCut = 16

// repairs are what a Body needs to repair records. Most bodies need none.
type repairs struct {
	repairer
	by [NumReasons]int

	onLine   int             // lineAt of the line that a record was repaired on last
	lineBy   [NumReasons]int // by, before that line
	line     int             // Repaired, before that line
	oneLined bool            // a repair went over a line's end in vain, so that none may do so again
}

// RepairedBy returns how many records were repaired for a reason. A record that had several faults counts for the first of them.
func (b *Body) RepairedBy(r Reason) int {
	if b.repairs == nil {
		return 0
	}
	return b.repairs.by[r]
}

// AppendRepaired is Append for a record in which its caller has replaced something, and which may be nested too deep. changed holds
// the offsets of the top-level keys under which something was replaced, in order; why is the first reason. The record gets a list
// of these names, and whatever else it needs is repaired as well. at is the record's offset in the body.
func (b *Body) AppendRepaired(record []byte, changed []int, why Reason, at int) bool {
	if _, ok := b.repairMarked(record, 0, true, changed, why); ok {
		return true
	}
	return b.Add(record, at) // which says why
}

// CountRepaired counts the record that was accepted last as repaired for a reason. It is for records that were repaired before they
// were added.
func (b *Body) CountRepaired(r Reason) {
	b.repairing().by[r]++
	b.Repaired++
}

// repairing returns what b needs to repair records.
func (b *Body) repairing() *repairs {
	if b.repairs == nil {
		b.repairs = new(repairs)
	}
	return b.repairs
}

// leaveRepairs takes back the repairs of the line that is left.
func (b *Body) leaveRepairs() {
	if r := b.repairs; r != nil && r.onLine == b.lineAt {
		r.by, b.Repaired = r.lineBy, r.line
	}
}

// repair takes the record at src[i], which could not be taken as it is, repaired. It returns the offset behind the record. It
// reports false, and takes nothing, if the limits ask for no repair, if nothing can be done, or if alone asks for a record behind
// which nothing follows and something does.
func (b *Body) repair(src []byte, i int, alone bool) (end int, ok bool) {
	if !b.lim.Repair {
		return 0, false
	}
	return b.repairMarked(src, i, alone, nil, 0)
}

// repairMarked is repair for a record some of whose members were changed before; see AppendRepaired.
func (b *Body) repairMarked(src []byte, i int, alone bool, marked []int, why Reason) (end int, ok bool) {
	r := b.repairing()
	if end, ok = r.run(src, i, b.lim.RecordBytes, marked, why); !ok || alone && skipSpace(src, end) < len(src) {
		r.release()
		return end, false
	}
	s := &b.s
	s.n = b.taken
	if room := len(r.out) + slack; len(s.out)-s.n < room {
		s.out = slices.Grow(s.out[:s.n], room)
		s.out = s.out[:cap(s.out)]
	}
	s.n += copy(s.out[s.n:], r.out)
	s.refused, s.longer = false, r.longer
	reason := r.reason
	if reason == NumReasons { // nothing was left to do
		reason = why
	}
	r.release()
	if !b.take(i) {
		return end, false
	}
	if r.onLine != b.lineAt {
		r.onLine, r.lineBy, r.line = b.lineAt, r.by, b.Repaired
	}
	r.by[reason]++
	b.Repaired++
	return end, true
}

// repairBroken is repair for a record at src[i] in which the JSON broke. Few breaks can be repaired, and the work stays linear: a
// repair that goes over its line's end in vain is the last that may.
func (b *Body) repairBroken(src []byte, i int, alone bool) (end int, ok bool) {
	broke := &b.s.broke
	if !b.lim.Repair || broke.ended || src[i] != '{' {
		return 0, false
	}
	switch src[broke.at] {
	case 0, 'N', 'I':
	default:
		return 0, false
	}
	r := b.repairing()
	line := lineEnd(src, broke.at)
	if r.oneLined {
		src = src[:line]
	}
	if end, ok = b.repair(src, i, alone); !ok && end > line {
		r.oneLined = true
	}
	return end, ok
}

// repairer rewrites a JSON object so that jsonb takes it. Beside JSON it reads NaN, Infinity and -Infinity, and NULs in strings.
type repairer struct {
	out    []byte // the object, compacted
	longer int    // by how many bytes it grows when PostgreSQL writes out its numbers
	reason Reason // the first fault

	src        []byte
	open       []byte // the open containers, innermost last, by their first bytes
	numbers    scanner
	textAt     int // how many containers are open around the value that is written as text; 0 if none is
	textOut    int // where in out that text begins
	fields     []field
	mostFields int     // an object with more can't be made small enough
	strings    []piece // the strings that could be cut, if collect is set
	anyChanged bool    // one of the fields is changed
	own        []byte  // the elements of the object's own list, separated by commas
	taken      uint64  // bit n: the object has a member whose name is repaired behind n underscores, and that is not the list

	marked  []int // offsets in src of the top-level keys whose members were changed before, in order
	markWhy Reason

	collect      bool
	plainNumbers bool // numbers that PostgreSQL writes longer become text
}

// field is a top-level member. Its key, with its quotes, is out[at:end].
type field struct {
	at, end int
	changed bool
}

// piece is what a string holds, out[at:end], and the index of its field.
type piece struct{ at, end, field int }

// release lets go of what may be large.
func (r *repairer) release() { *r = repairer{} }

// run rewrites the object at src[i] in at most limit bytes, its numbers written out. It returns the offset behind the object. If
// that is not JSON, or can't be made so small, it reports false; end is then where the JSON breaks, if it does.
func (r *repairer) run(src []byte, i, limit int, marked []int, why Reason) (end int, ok bool) {
	mostFields := limit / len(`"":0,`)
	*r = repairer{reason: NumReasons, marked: marked, markWhy: why, mostFields: mostFields}
	if end, ok = r.object(src, i); !ok {
		if len(r.fields) > mostFields {
			return i, false
		}
		return end, false
	}
	if r.size()+r.longer > limit {
		*r = repairer{reason: NumReasons, marked: marked, markWhy: why, mostFields: mostFields, collect: true, plainNumbers: r.longer > 0}
		r.object(src, i)
		r.cut(limit)
		if r.size() > limit {
			r.flatten(limit)
		}
		if r.size() > limit {
			return i, false
		}
	}
	r.list()
	return end, true
}

// size returns the length of the object with its list. Names that stand in it twice count twice.
func (r *repairer) size() int {
	n, names := len(r.out), len(r.own)
	for _, f := range r.fields {
		if f.changed {
			names += f.end - f.at + 1
		}
	}
	if names > 0 {
		n += r.emptyList() + names
	}
	return n
}

// emptyList returns the length of the list without its names and the commas behind them; the last one has none.
func (r *repairer) emptyList() int {
	n := len(`,"":[]`) + len(r.listKey())
	if len(r.own) == 0 {
		n--
	}
	return n
}

// listKey returns the name of the list.
func (r *repairer) listKey() string {
	const most = "________________________________________________________________" + RepairedKey
	n := 1
	for n < 63 && r.taken>>n&1 != 0 {
		n++
	}
	return most[len(most)-len(RepairedKey)-n+1:]
}

// list adds the list of changed members to the object.
func (r *repairer) list() {
	names := r.own
	var known map[string]bool
	for _, f := range r.fields {
		if !f.changed {
			continue
		}
		if known == nil {
			known = make(map[string]bool)
			for i := 0; i < len(r.own); {
				end := stringEnd(r.own, i)
				known[string(r.own[i:end])] = true
				i = end + 1
			}
		}
		key := string(r.out[f.at:f.end])
		if known[key] {
			continue
		}
		known[key] = true
		if len(names) > 0 {
			names = append(names, ',')
		}
		names = append(names, key...)
	}
	if len(names) == 0 {
		return
	}
	r.out = r.out[:len(r.out)-1]
	r.comma()
	r.out = append(r.out, '"')
	r.out = append(r.out, r.listKey()...)
	r.out = append(r.out, `":[`...)
	r.out = append(r.out, names...)
	r.out = append(r.out, `]}`...)
}

// cut shortens the longest strings, each to nothing before the next, until the object with its list has at most limit bytes.
func (r *repairer) cut(limit int) {
	if r.reason == NumReasons {
		r.reason = TooLarge
	}
	slices.SortStableFunc(r.strings, func(a, b piece) int { return cmp.Compare(b.end-b.at, a.end-a.at) })
	var holes []piece
	size := r.size()
	for _, s := range r.strings {
		if size <= limit {
			break
		}
		size += r.changeField(s.field)
		keep := boundary(r.out[s.at:s.end], max(0, s.end-s.at-(size-limit)))
		holes = append(holes, piece{s.at + keep, s.end, s.field})
		size -= s.end - s.at - keep
	}
	slices.SortFunc(holes, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	r.fill(holes)
}

// flatten makes strings of what the largest other members hold, and cuts them, until the object with its list has at most limit
// bytes. It is for an object that is large without long strings.
func (r *repairer) flatten(limit int) {
	type other struct{ field, at, end int }
	var others []other
	for i, f := range r.fields {
		end := len(r.out) - 1
		if i+1 < len(r.fields) {
			end = r.fields[i+1].at - 1
		}
		if at := f.end + 1; r.out[at] != '"' && end-at >= minCut {
			others = append(others, other{i, at, end})
		}
	}
	slices.SortStableFunc(others, func(a, b other) int { return cmp.Compare(b.end-b.at, a.end-a.at) })
	texts, ends := make(map[int][]byte), make(map[int]int) // by field
	size := r.size()
	for _, o := range others {
		if size <= limit {
			break
		}
		size += r.changeField(o.field)
		length := o.end - o.at
		keep := max(0, length-(size-limit)-len(`""`))
		text := make([]byte, 0, keep+len(`""`)+1)
		text = append(text, '"')
		for _, c := range r.out[o.at:o.end] {
			if len(text) > keep+1 {
				break
			}
			if c == '"' || c == '\\' {
				text = append(text, '\\')
			}
			text = append(text, c)
		}
		text = append(text[:1+boundary(text[1:], min(keep, len(text)-1))], '"')
		texts[o.field], ends[o.field] = text, o.end
		size += len(text) - length
	}
	out, from := make([]byte, 0, len(r.out)), 0
	moved := 0
	for i := range r.fields {
		f := &r.fields[i]
		valueAt := f.end + 1
		f.at, f.end = f.at+moved, f.end+moved
		if text := texts[i]; text != nil {
			out = append(append(out, r.out[from:valueAt]...), text...)
			from = ends[i]
			moved = len(out) - from
		}
	}
	r.out = append(out, r.out[from:]...)
}

// changeField notes that a member is changed. It returns by how much that makes the list longer.
func (r *repairer) changeField(index int) (longer int) {
	f := &r.fields[index]
	if f.changed {
		return 0
	}
	if !r.anyChanged && len(r.own) == 0 {
		longer = r.emptyList()
	}
	f.changed, r.anyChanged = true, true
	return longer + f.end - f.at + 1
}

// fill removes the holes, which are in order.
func (r *repairer) fill(holes []piece) {
	n, next, moved := 0, 0, 0
	field := 0
	for _, h := range append(holes, piece{len(r.out), len(r.out), len(r.fields)}) {
		for ; field < len(r.fields) && r.fields[field].at < h.at; field++ {
			r.fields[field].at -= moved
			r.fields[field].end -= moved
		}
		n += copy(r.out[n:], r.out[next:h.at])
		moved += h.end - h.at
		next = h.end
	}
	r.out = r.out[:n]
}

// boundary returns the largest offset up to n at which what a string holds may be cut.
func boundary(text []byte, n int) int {
	i := 0
	for i < n {
		size := 1
		switch c := text[i]; {
		case c == '\\' && text[i+1] == 'u':
			size = 6
			if high := text[i+2]|0x20 == 'd' && (text[i+3]|0x20 >= 'a' || text[i+3] >= '8' && text[i+3] <= '9'); high {
				size = 12
			}
		case c == '\\':
			size = 2
		case c >= utf8.RuneSelf:
			_, size = utf8.DecodeRune(text[i:])
		}
		if i+size > n {
			break
		}
		i += size
	}
	return i
}

// stringEnd returns the offset behind the JSON string that begins at b[i].
func stringEnd(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// change notes that the current member is not what was sent.
func (r *repairer) change(why Reason) {
	if r.reason == NumReasons {
		r.reason = why
	}
	r.fields[len(r.fields)-1].changed, r.anyChanged = true, true
}

// comma writes a comma unless a container was just opened. No value ends in { or [, so the last byte tells.
func (r *repairer) comma() {
	if last := r.out[len(r.out)-1]; last != '{' && last != '[' {
		r.out = append(r.out, ',')
	}
}

// object rewrites the object at src[i] to out. It returns the offset behind the object, or where the JSON breaks and false.
func (r *repairer) object(src []byte, i int) (end int, ok bool) {
	if i >= len(src) || src[i] != '{' {
		return i, false
	}
	r.src = src
	r.open, r.out = append(r.open, '{'), append(r.out, '{')
	i++
	for first := true; ; {
		// Before a member or an element, or the end of a container that holds none.
		i = skipSpace(src, i)
		if i >= len(src) {
			return i, false
		}
		inner := r.open[len(r.open)-1]
		if first && src[i] == inner+2 {
			i++
			r.leave()
		} else {
			first = false
			r.comma()
			if inner == '{' {
				if i, ok = r.key(i); !ok {
					return i, false
				}
			}
			var entered bool
			if i, entered, ok = r.value(i); !ok {
				return i, false
			}
			if entered {
				first = true
				continue
			}
		}
		// After a value.
		for {
			switch len(r.open) {
			case 0:
				return i, true
			case 1:
				r.endField()
			}
			i = skipSpace(src, i)
			if i >= len(src) {
				return i, false
			}
			if src[i] == r.open[len(r.open)-1]+2 {
				i++
				r.leave()
				continue
			}
			if src[i] != ',' {
				return i, false
			}
			i++
			break
		}
		first = false
	}
}

// enter opens a container, which begins with c. One that is nested too deep is written as text.
func (r *repairer) enter(c byte) {
	if r.textAt == 0 && len(r.open) == MaxDepth {
		r.change(Depth)
		r.out = append(r.out, '"')
		r.textAt, r.textOut = len(r.open), len(r.out)
	}
	r.open = append(r.open, c)
	r.out = append(r.out, c)
}

// leave closes the innermost container. '}' and ']' are two more than '{' and '['.
func (r *repairer) leave() {
	n := len(r.open) - 1
	r.out = append(r.out, r.open[n]+2)
	r.open = r.open[:n]
	if r.textAt != 0 && n == r.textAt {
		r.textAt = 0
		r.collected(r.textOut)
		r.out = append(r.out, '"')
	}
}

// collected notes that what a string holds, from at on in out, has just been written.
func (r *repairer) collected(at int) {
	if r.collect && len(r.out)-at >= minCut {
		r.strings = append(r.strings, piece{at, len(r.out), len(r.fields) - 1})
	}
}

// key rewrites the key at src[i] and the colon behind it.
func (r *repairer) key(i int) (end int, ok bool) {
	if r.src[i] != '"' {
		return i, false
	}
	top := len(r.open) == 1
	if top {
		if r.fields = append(r.fields, field{at: len(r.out)}); len(r.fields) > r.mostFields {
			return i, false // they take several times their bytes
		}
		if len(r.marked) > 0 && r.marked[0] == i {
			r.marked = r.marked[1:]
			r.change(r.markWhy)
		}
	}
	if i, ok = r.text(i, false); !ok {
		return i, false
	}
	if top {
		r.fields[len(r.fields)-1].end = len(r.out)
	}
	if i = skipSpace(r.src, i); i >= len(r.src) || r.src[i] != ':' {
		return i, false
	}
	r.out = append(r.out, ':')
	return i + 1, true
}

// value rewrites the value behind white space at src[i]. entered tells that it is a container, of which only the beginning was
// taken.
func (r *repairer) value(i int) (end int, entered, ok bool) {
	src := r.src
	if i = skipSpace(src, i); i >= len(src) {
		return i, false, false
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if bytes.HasPrefix(src[i:], []byte(word)) {
			r.out = append(r.out, word...)
			return i + len(word), false, true
		}
	}
	for _, word := range [...]string{"NaN", "Infinity", "-Infinity"} {
		if bytes.HasPrefix(src[i:], []byte(word)) {
			r.quoted(src[i:i+len(word)], Number)
			return i + len(word), false, true
		}
	}
	switch c := src[i]; {
	case c == '{', c == '[':
		r.enter(c)
		return i + 1, true, true
	case c == '"':
		end, ok = r.text(i, true)
		return end, false, ok
	case c == '-', c-'0' <= 9:
		n := &r.numbers
		n.refused, n.longer = false, 0
		if end, ok = n.number(src, i); !ok {
			return end, false, false
		}
		switch {
		case n.refused:
			r.quoted(src[i:end], Number)
		case n.longer > 0 && r.plainNumbers:
			r.quoted(src[i:end], TooLarge)
		default:
			r.out = append(r.out, src[i:end]...)
			r.longer += n.longer
		}
		return end, false, true
	}
	return i, false, false
}

// quoted writes a number as a string.
func (r *repairer) quoted(number []byte, why Reason) {
	if r.textAt != 0 { // it is in a string already
		r.out = append(r.out, number...)
		return
	}
	r.change(why)
	r.out = append(r.out, '"')
	r.out = append(r.out, number...)
	r.out = append(r.out, '"')
}

// quote writes the quote at either end of a string.
func (r *repairer) quote() {
	if r.textAt != 0 {
		r.out = append(r.out, '\\')
	}
	r.out = append(r.out, '"')
}

// escaped writes an escape of the source, whose only backslash is its first byte.
func (r *repairer) escaped(escape []byte) {
	if r.textAt != 0 {
		r.out = append(r.out, '\\')
		if escape[1] == '"' || escape[1] == '\\' {
			r.out = append(r.out, '\\', '\\', escape[1])
			return
		}
	}
	r.out = append(r.out, escape...)
}

// text rewrites the string at src[i]. mayCut tells that it is a value, which may be cut.
func (r *repairer) text(i int, mayCut bool) (end int, ok bool) {
	src := r.src
	r.quote()
	at := len(r.out)
	i++
	for from := i; ; from = i {
		for i < len(src) && src[i] >= ' ' && src[i] != '"' && src[i] != '\\' && src[i] < utf8.RuneSelf {
			i++
		}
		r.out = append(r.out, src[from:i]...)
		if i >= len(src) {
			return i, false
		}
		switch c := src[i]; {
		case c == '"':
			if mayCut && r.textAt == 0 {
				r.collected(at)
			}
			r.quote()
			return i + 1, true
		case c == '\\' && i+1 < len(src) && simpleEscape[src[i+1]]:
			r.escaped(src[i : i+2])
			i += 2
		case c == '\\':
			n := &r.numbers
			n.refused = false
			if end, ok = n.escape(src, i); !ok {
				return end, false
			}
			if n.refused && r.textAt == 0 {
				r.replace(n.refusal.reason)
			} else {
				for ; i < end; i += 6 { // a pair is two of them
					r.escaped(src[i : i+6])
				}
			}
			i = end
		case c == 0:
			r.replace(NUL)
			i++
		case c < ' ':
			return i, false
		default:
			char, size := utf8.DecodeRune(src[i:])
			if char == utf8.RuneError && size == 1 {
				r.replace(UTF8)
			} else {
				r.out = append(r.out, src[i:i+size]...)
			}
			i += size
		}
	}
}

// replace writes what stands for something that a string can't hold.
func (r *repairer) replace(why Reason) {
	r.change(why)
	r.out = append(r.out, replacement...)
}

// endField ends the current top-level member. A list of repaired members that the object has already is taken out of it.
func (r *repairer) endField() {
	f := &r.fields[len(r.fields)-1]
	name := r.out[f.at+1 : f.end-1]
	bare := bytes.TrimLeft(name, "_")
	if string(bare) != RepairedKey[1:] || len(name)-len(bare) > 63 {
		return
	}
	underscores := len(name) - len(bare)
	value := r.out[f.end+1:]
	if underscores != 1 || !isStrings(value) {
		r.taken |= 1 << underscores
		return
	}
	if names := value[1 : len(value)-1]; len(names) > 0 {
		if len(r.own) > 0 {
			r.own = append(r.own, ',')
		}
		r.own = append(r.own, names...)
	}
	for n := len(r.strings); n > 0 && r.strings[n-1].at > f.at; n-- {
		r.strings = r.strings[:n-1]
	}
	r.out = bytes.TrimSuffix(r.out[:f.at], []byte(","))
	r.fields = r.fields[:len(r.fields)-1]
}

// isStrings reports whether value, which is compacted JSON, is an array of strings.
func isStrings(value []byte) bool {
	if value[0] != '[' {
		return false
	}
	for i := 1; value[i] != ']'; {
		if value[i] == ',' {
			i++
		}
		if value[i] != '"' {
			return false
		}
		i = stringEnd(value, i)
	}
	return true
}
