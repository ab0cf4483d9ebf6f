package query

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/valyala/fastjson"

	"millrace/internal/archive"
	"millrace/query/columns"
	"millrace/query/language"
)

const (
	// defaultPatterns and maxPatterns are how many patterns an answer has.
	defaultPatterns, maxPatterns = 100, 1000
	// patternsKept is how many patterns are told apart, those of the newest messages. The messages of others are counted together.
	patternsKept = 5000
	// messageCharacters is how much of a message is looked at, and patternBytes how much of its text a pattern keeps: a query with wildcards
	// takes 256 characters.
	messageCharacters, patternBytes = 500, 200
	// sampleCharacters is how much of a message is shown.
	sampleCharacters = 200
	// patternStars is how many wildcards a pattern has, as many as a query takes.
	patternStars = 6
)

// messageFields are the fields that have a record's message, unless one is asked for: the first that is a text counts.
var messageFields = [][]string{
	{"message"}, {"msg"}, {"Message"}, {"MESSAGE"}, {"short_message"}, {"body"}, {"log"}, {"event"}, {"text"}, {"Content"}, {"@m"}, {"@mt"}, {"textPayload"},
	{"jsonPayload", "message"}, {"fields", "message"}, {"error", "message"}, {"error"}, {"title"},
}

// patternSearch is what a request asks of GET /logs/patterns.
type patternSearch struct {
	search
	fields [][]string
	before *search // the window to compare with; nil: none
	most   int     // patterns in the answer
}

// parsePatterns returns what a URL's query asks of GET /logs/patterns.
func parsePatterns(rawQuery string, now time.Time) (*patternSearch, error) {
	p, err := parseParameters(rawQuery, patternParameters)
	if err != nil {
		return nil, err
	}
	s := &patternSearch{fields: messageFields, most: defaultPatterns}
	if err := s.window(p["from"], p["to"], now); err != nil {
		return nil, err
	}
	if err := s.what(p, now); err != nil {
		return nil, err
	}
	if p["field"] != "" {
		field, err := language.ParseField(p["field"])
		if err != nil {
			return nil, badRequest("field: %v", err)
		}
		s.fields = [][]string{field}
	}
	if err := readLimit(&s.most, p["limit"], maxPatterns); err != nil {
		return nil, err
	}
	if p["vs"] != "" {
		before := s.search
		if ago, ok := parseInterval(p["vs"]); ok {
			before.from, before.to = s.from-ago, s.to-ago
		} else {
			from, to, isRange := strings.Cut(p["vs"], ",")
			if !isRange {
				return nil, refused("vs", p["vs"], "how long before this window the other one is, such as 1d, or its from and to with a comma between them")
			}
			if err := before.window(strings.TrimSpace(from), strings.TrimSpace(to), now); err != nil {
				return nil, badRequest("vs: %v", err)
			}
		}
		s.before = &before
	}
	return s, nil
}

// patternCount is how many messages have a pattern.
type patternCount struct {
	Pattern string `json:"pattern"` // the text, with * in place of what differs
	Q       string `json:"q"`       // a query that finds the messages
	Count   int64  `json:"count"`
	Sample  string `json:"sample"`           // the beginning of one of the messages
	Before  *int64 `json:"before,omitempty"` // the count in the other window
}

// patterns are the patterns of a window.
type patterns struct {
	counts  map[patternKey]*patternCount
	builder patternBuilder
	other   int64 // messages whose patterns are not told apart
	missing int64 // records without a message
}

// patternKey is what tells a pattern from others.
type patternKey struct {
	field int
	text  string // with wildcards
}

// newPatterns returns no patterns.
func newPatterns() *patterns { return &patterns{counts: make(map[patternKey]*patternCount)} }

// add adds the patterns of another part of the window.
func (p *patterns) add(part *patterns) {
	p.other += part.other
	p.missing += part.missing
	for key, c := range part.counts {
		switch known := p.counts[key]; {
		case known != nil:
			known.Count += c.Count
		case len(p.counts) < patternsKept:
			p.counts[key] = c
		default:
			p.other += c.Count
		}
	}
}

// count counts a message of one of the fields that so many records have.
func (p *patterns) count(fields [][]string, field int, message string, n int64) {
	p.builder.build(message)
	c := p.counts[patternKey{field, string(p.builder.buf)}]
	switch {
	case c != nil:
		c.Count += n
	case len(p.counts) < patternsKept:
		sample := message
		if utf8.RuneCountInString(sample) > sampleCharacters {
			sample = string([]rune(sample)[:sampleCharacters])
		}
		sample = strings.Clone(sample) // the message is longer
		parts := p.builder.parts()
		p.counts[patternKey{field, string(p.builder.buf)}] = &patternCount{Pattern: strings.Join(parts, "*"), Q: language.Wildcards(fields[field], parts), Count: n, Sample: sample}
	default:
		p.other += n
	}
}

// getPatterns answers GET /logs/patterns.
func (s *server) getPatterns(w http.ResponseWriter, r *http.Request) error {
	q, err := parsePatterns(r.URL.RawQuery, time.Now())
	if err != nil {
		return err
	}
	return s.respond(w, r, func() ([]byte, string, error) {
		body, err := s.store.patternsAnswer(r.Context(), q)
		return body, bypass, err
	})
}

// patternsAnswer returns the answer to GET /logs/patterns. With another window to compare with, what is new comes first.
func (s *store) patternsAnswer(ctx context.Context, q *patternSearch) ([]byte, error) {
	var answer struct {
		Records    int64           `json:"records"` // with a message
		Patterns   []*patternCount `json:"patterns"`
		Other      int64           `json:"other"`
		Missing    int64           `json:"missing"`
		VsComplete *bool           `json:"vs_complete,omitempty"`
		SearchedTo string          `json:"searched_to,omitempty"`
		Complete   bool            `json:"complete"`
	}
	half := q.search
	if q.before != nil && q.budget > 0 {
		half.deadline = time.Now().Add(time.Until(q.deadline) / 2) // the other half is for the other window
	}
	now, reached, err := s.patterns(ctx, &half, q.fields)
	if err != nil {
		return nil, err
	}
	if answer.Complete = reached.complete; q.budget > 0 {
		answer.SearchedTo = string(appendEdge(nil, reached.reached))
	}
	isNew := func(*patternCount) int { return 0 }
	if q.before != nil {
		before, reached, err := s.patterns(ctx, q.before, q.fields)
		if err != nil {
			return nil, err
		}
		for key, c := range now.counts {
			c.Before = new(int64)
			if b := before.counts[key]; b != nil {
				*c.Before = b.Count
			}
		}
		whole := reached.complete && before.other == 0
		answer.VsComplete = &whole
		isNew = func(c *patternCount) int {
			if *c.Before == 0 {
				return 1
			}
			return 0
		}
	}
	answer.Patterns = make([]*patternCount, 0, len(now.counts))
	answer.Other, answer.Missing = now.other, now.missing
	answer.Records = now.other
	for _, c := range now.counts {
		answer.Patterns = append(answer.Patterns, c)
		answer.Records += c.Count
	}
	slices.SortFunc(answer.Patterns, func(a, b *patternCount) int {
		return cmp.Or(cmp.Compare(isNew(b), isNew(a)), cmp.Compare(b.Count, a.Count), strings.Compare(a.Q, b.Q))
	})
	for len(answer.Patterns) > q.most {
		last := len(answer.Patterns) - 1
		answer.Other += answer.Patterns[last].Count
		answer.Patterns = answer.Patterns[:last]
	}
	body, err := json.Marshal(answer)
	return append(body, '\n'), err
}

// patterns counts the messages of a window by their patterns.
func (s *store) patterns(ctx context.Context, q *search, fields [][]string) (*patterns, progress, error) {
	all := newPatterns()
	p, err := s.walk(ctx, q, false, func(ctx context.Context, of *part) (found int, enough bool, err error) {
		part := newPatterns() // which counts only if all of the slice is read
		for _, s := range of.sources {
			if err = s.messages(ctx, fields, func(field int, message string, n int64) {
				found += int(n)
				if field < 0 {
					part.missing += n
				} else {
					part.count(fields, field, message, n)
				}
			}); err != nil {
				return found, false, err
			}
		}
		all.add(part)
		return found, false, nil
	})
	return all, p, err
}

func (s *tableSource) messages(ctx context.Context, fields [][]string, give func(field int, message string, n int64)) error {
	st := messagesStatement(s.search, s.arrived, fields)
	rows, err := s.tx.Query(ctx, st.sql.String(), st.args...)
	if err != nil {
		return err
	}
	var (
		field   *int
		message *string
	)
	_, err = pgx.ForEachRow(rows, []any{&field, &message}, func() error {
		if field == nil {
			give(-1, "", 1)
		} else {
			give(*field, *message, 1)
		}
		return nil
	})
	return err
}

func (s *filesSource) messages(ctx context.Context, fields [][]string, give func(field int, message string, n int64)) error {
	ways := make([][][]string, len(fields))
	for i, path := range fields {
		ways[i] = language.Ways(path)
	}
	cut := func(text string) string {
		if utf8.RuneCountInString(text) > messageCharacters+1 {
			return string([]rune(text)[:messageCharacters+1])
		}
		return text
	}
	var parser fastjson.Parser
	return s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error {
		// Most records have their message in the first field, and in a column.
		return of.Texts(ctx, ways[0][0], func(text string, n int64) { give(0, cut(text), n) }, func(r *archive.Row) error {
			record, err := parser.ParseBytes(r.Data)
			if err != nil {
				return err
			}
			for i := range ways {
				v := language.Member(record, ways[i])
				if v != nil && (v.Type() == fastjson.TypeString || v.Type() == fastjson.TypeNumber) {
					give(i, cut(columns.Text(v)), 1)
					return nil
				}
			}
			give(-1, "", 1)
			return nil
		})
	})
}

// messagesStatement selects the messages of a window, each with the number of its field, or nulls.
func messagesStatement(q *search, arrived spans, fields [][]string) *statement {
	s := new(statement)
	var number, text strings.Builder
	for i, path := range fields {
		v := value(path, &s.args)
		is := " WHEN jsonb_typeof(" + v + ") IN ('string', 'number') THEN "
		number.WriteString(is + strconv.Itoa(i))
		text.WriteString(is + "left(" + v + " #>> '{}', " + strconv.Itoa(messageCharacters+1) + ")")
	}
	s.sql.WriteString("SELECT CASE" + number.String() + " END, CASE" + text.String() + " END FROM ")
	s.found(q, arrived)
	return s
}

// wildcard stands for what differs in a pattern that is being built. No text in the database has it.
const wildcard = 0

// build appends the pattern of a message: its text, with a wildcard in place of each part that differs from one message of its kind to the
// next, which are numbers, times, ids and addresses. It looks at the first line alone. A wildcard at the end may stand for any text.
func (p *patternBuilder) build(message string) {
	*p = patternBuilder{buf: p.buf[:0]}
	line, _, isCut := strings.Cut(message, "\n")
	if utf8.RuneCountInString(line) > messageCharacters {
		line, isCut = string([]rune(line)[:messageCharacters]), true
	}
	for i := 0; i < len(line) && !p.isFull; {
		n := 1
		switch length := addressLength(line, i); {
		case length > 0:
			p.star()
			n = length
		case isWordByte(line[i]):
			n = wordLength(line[i:])
			p.word(line[i : i+n])
		default:
			p.text(line[i : i+1])
		}
		i += n
	}
	if isCut && !p.isFull {
		p.star()
		p.buf = p.buf[:p.begin] // it stands for all that follows
	}
}

// patternBuilder builds patterns.
type patternBuilder struct {
	buf    []byte
	begin  int // of what follows the last wildcard
	stars  int
	isFull bool // the last wildcard stands for all that follows
}

// parts returns the texts between the wildcards.
func (p *patternBuilder) parts() []string {
	return strings.Split(string(p.buf), string(rune(wildcard)))
}

// text adds what is the same in all messages.
func (p *patternBuilder) text(s string) {
	if len(p.buf)+len(s) > patternBytes {
		p.star()
		p.buf, p.isFull = p.buf[:p.begin], true
		return
	}
	p.buf = append(p.buf, s...)
}

// star adds a wildcard. Two that have only punctuation between them become one.
func (p *patternBuilder) star() {
	last := p.buf[p.begin:]
	switch {
	case p.stars > 0 && !slices.ContainsFunc(last, func(c byte) bool { return c == ' ' || c == '\t' || isWordByte(c) }):
		p.buf = p.buf[:p.begin]
		return
	case p.stars == patternStars:
		p.buf, p.isFull = p.buf[:p.begin], true
		return
	}
	// A sign belongs to its number.
	if n := len(last); n > 0 && (last[n-1] == '-' || last[n-1] == '+') && (n == 1 || !isWordByte(last[n-2])) {
		p.buf = p.buf[:len(p.buf)-1]
	}
	p.buf = append(p.buf, wildcard)
	p.begin = len(p.buf)
	p.stars++
}

// word adds a word, or a wildcard in its place. Of a name with a number behind it, such as node7, the name stays.
func (p *patternBuilder) word(w string) {
	digits, changes, isHex := 0, 0, true
	for i := range len(w) {
		isDigit := '0' <= w[i] && w[i] <= '9'
		if isDigit {
			digits++
		}
		if i > 0 && isDigit != ('0' <= w[i-1] && w[i-1] <= '9') {
			changes++
		}
		isHex = isHex && isHexByte(w[i])
	}
	isFirst := '0' <= w[0] && w[0] <= '9'
	switch {
	case digits == 0:
		p.text(w)
	case isFirst, isHex && len(w) >= 5, changes > 1 && len(w) >= 6:
		p.star()
	case changes == 1:
		if p.text(w[:len(w)-digits]); !p.isFull {
			p.star()
		}
	default:
		p.text(w)
	}
}

// isWordByte reports whether a byte is a letter's or a digit's. All that is not ASCII counts as letters.
func isWordByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= utf8.RuneSelf
}

// isHexByte reports whether a byte is a hexadecimal digit.
func isHexByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// wordLength returns how long the word is that a text begins with.
func wordLength(s string) int {
	n := 0
	for n < len(s) && isWordByte(s[n]) {
		n++
	}
	return n
}

// addressLength returns how long the UUID, the address of a host or the mail address is that begins at a place of a line, or 0.
func addressLength(line string, i int) int {
	if i > 0 && isWordByte(line[i-1]) {
		return 0
	}
	rest := line[i:]
	const uuidLength = 36
	if len(rest) >= uuidLength && rest[8] == '-' && (len(rest) == uuidLength || !isWordByte(rest[uuidLength])) && uuid.Validate(rest[:uuidLength]) == nil {
		return uuidLength
	}
	n, colons := 0, 0
	for n < len(rest) && n < len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") && (isHexByte(rest[n]) || rest[n] == ':' || rest[n] == '.') {
		if rest[n] == ':' {
			colons++
		}
		n++
	}
	if colons >= 2 && (n == len(rest) || !isWordByte(rest[n])) {
		text := strings.TrimRight(rest[:n], ".")
		if !strings.HasSuffix(text, "::") {
			text = strings.TrimSuffix(text, ":")
		}
		if _, err := netip.ParseAddr(text); err == nil || isHardwareAddress(text) {
			return len(text)
		}
	}
	return mailLength(rest)
}

// isHardwareAddress reports whether a text is six pairs of hexadecimal digits with colons between them.
func isHardwareAddress(text string) bool {
	parts := strings.Split(text, ":")
	return len(parts) == 6 && !slices.ContainsFunc(parts, func(part string) bool { return len(part) != 2 })
}

// mailLength returns how long the mail address is that a text begins with, or 0.
func mailLength(s string) int {
	if !isWordByte(s[0]) {
		return 0
	}
	n := 0
	for n < len(s) && (isWordByte(s[n]) || strings.IndexByte("._%+-", s[n]) >= 0) {
		n++
	}
	if n == len(s) || s[n] != '@' {
		return 0
	}
	host := n + 1
	for n = host; n < len(s) && (isWordByte(s[n]) || s[n] == '.' || s[n] == '-'); {
		n++
	}
	n = len(strings.TrimRight(s[:n], ".-"))
	if n <= host || !strings.Contains(s[host:n], ".") {
		return 0
	}
	return n
}
