package searches

import (
	"bytes"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"millrace/internal/config"
	"millrace/query/language"
)

// File is what a file of searches says.
type File struct {
	Page      string // where people open the page, without a slash at its end; empty: messages have no links
	Receivers []*Receiver
	Searches  []*Search
}

// Receiver is where alerts are told.
type Receiver struct {
	Name          string
	Alertmanagers []config.HookURL // the members of a cluster, each of which is told; nil for a webhook
	Webhook       config.HookURL
	Secret        config.HookSecret // signs what is sent to the webhook; empty: nothing is signed
}

// targets returns where the receiver's messages go: each of them is told for itself.
func (r *Receiver) targets() []config.HookURL {
	if r.Alertmanagers != nil {
		return r.Alertmanagers
	}
	return []config.HookURL{r.Webhook}
}

// kind is what a condition asks.
type kind string

const (
	figures    kind = "figures"     // which groups have figures for which comparisons hold
	absent     kind = "absent"      // which groups had records and have none any more
	newPattern kind = "new pattern" // which patterns messages have that they did not have before
)

// Search is a saved search.
type Search struct {
	Name      string
	Line      int // in the file
	Q         string
	Clock     string   // time or inserted_at
	By        []string // fields
	Condition *Condition
	Every     time.Duration // between two evaluations
	Delay     time.Duration // how late records may come: a window ends that long before its evaluation
	For       time.Duration // how long the condition must hold
	Keep      time.Duration // how long an alert goes on after the condition held
	Remember  time.Duration // how long a group or a pattern is known after it was seen
	Field     string        // whose patterns are looked for; empty: the message's
	Groups    int           // the most groups that are told apart
	Labels    map[string]string
	Summary   string
	Tell      []string // names of receivers
	Count     bool     // the records that it finds are counted for millrace_search_matches_total
	Query     language.Query
}

// Condition is what a search waits for.
type Condition struct {
	Text    string // as the file has it
	Window  time.Duration
	kind    kind
	having  string   // of figures, as GET /logs/stats takes them
	figures []string // the figures that having compares
	hold    func(values map[string]json.RawMessage) bool
	grows   bool // it holds of a window if it holds of a part
}

// Group is a group of records, or a pattern.
type Group struct {
	Fields []string                   `json:"fields,omitempty"`
	Values []*string                  `json:"values"`            // of the fields, nil where records have none; of a pattern the query that finds it
	Text   string                     `json:"pattern,omitempty"` // of a pattern
	Count  int64                      `json:"count"`             // records
	Value  map[string]json.RawMessage `json:"value,omitempty"`   // the figures
}

// key returns what tells the group from the others of its search.
func (g *Group) key() string {
	text, _ := json.Marshal(g.Values) // texts always have a JSON form
	return string(text)
}

// CountsAlone reports whether the search has no condition.
func (s *Search) CountsAlone() bool { return s.Condition == nil }

// Due returns the last time up to now at which the search was to be evaluated.
func (s *Search) Due(now time.Time) time.Time {
	shift := time.Duration(hash(s.Name)%uint64(s.Every/time.Second)) * time.Second
	return now.Add(-shift).Truncate(s.Every).Add(shift).UTC()
}

// window returns the window of the evaluation that is due at a time. before is when the last one was due, or zero.
//
// If evaluations were missed whose windows this one's does not reach, it reaches back to theirs, provided that what holds of a part holds of the whole:
// count>0 misses no record then.
func (s *Search) window(due, before time.Time) (from, to time.Time) {
	to = due.Add(-s.Delay)
	from = to.Add(-s.Condition.Window)
	if last := before.Add(-s.Delay); !before.IsZero() && last.Before(from) && (s.Condition.grows || s.Condition.kind == newPattern) {
		from = last
		if earliest := to.Add(-max(catchUp, s.Condition.Window)); from.Before(earliest) {
			from = earliest
		}
	}
	return from, to
}

// catchUp is how far a window reaches back at most to what was missed.
const catchUp = 24 * time.Hour

// statsParameters returns the parameters of GET /logs/stats that compute the groups of a window. Where all records are one group its figures are wanted
// whether the condition holds or not.
func (s *Search) statsParameters(from, to time.Time) url.Values {
	calc := s.Condition.figures
	if !slices.Contains(calc, "count") {
		calc = append(slices.Clone(calc), "count")
	}
	p := s.windowParameters(from, to)
	p.Set("calc", strings.Join(calc, ","))
	if len(s.By) > 0 {
		p.Set("by", strings.Join(s.By, ","))
		p.Set("limit", strconv.Itoa(s.mostGroups()))
		p.Set("order", "-count")
	}
	switch {
	case s.Condition.kind == figures && len(s.By) > 0:
		p.Set("having", s.Condition.having)
	case s.Condition.kind == absent && len(s.By) == 0:
		p.Set("having", "count>0")
	}
	return p
}

// mostGroups returns how many groups a table may have. Where a group that is missing counts, all of them are needed.
func (s *Search) mostGroups() int {
	if s.Condition.kind == absent {
		return maxGroups
	}
	return s.Groups
}

// patternParameters returns the parameters of GET /logs/patterns that find the patterns of a window.
func (s *Search) patternParameters(from, to time.Time) url.Values {
	p := s.windowParameters(from, to)
	if s.Field != "" {
		p.Set("field", s.Field)
	}
	p.Set("limit", strconv.Itoa(maxPatterns))
	return p
}

// maxPatterns is how many patterns GET /logs/patterns tells apart at most.
const maxPatterns = 1000

// windowParameters returns the parameters of a window of the search.
func (s *Search) windowParameters(from, to time.Time) url.Values {
	p := make(url.Values)
	p.Set("from", strconv.FormatInt(from.UnixMilli(), 10))
	p.Set("to", strconv.FormatInt(to.UnixMilli(), 10))
	p.Set("clock", s.Clock)
	if s.Q != "" {
		p.Set("q", s.Q)
	}
	return p
}

// Parameters returns the route and the parameters whose answer Read reads as the groups of a window.
func (s *Search) Parameters(from, to time.Time) (route string, p url.Values) {
	if s.Condition.kind == newPattern {
		return "/logs/patterns", s.patternParameters(from, to)
	}
	return "/logs/stats", s.statsParameters(from, to)
}

// sampleParameters returns the parameters of GET /logs that find the newest records of a group.
func (s *Search) sampleParameters(g *Group, from, to time.Time) url.Values {
	p := s.windowParameters(from, to)
	if q := s.groupQuery(g); q != "" {
		p.Set("q", q)
	}
	p.Set("limit", strconv.Itoa(samples))
	return p
}

// groupQuery returns the query that finds the records of a group, of all groups if g is nil. A value that is cut or is no single one is left
// out of it.
func (s *Search) groupQuery(g *Group) string {
	var tests []string
	switch {
	case g == nil:
	case g.Text != "":
		tests = append(tests, *g.Values[0])
	default:
		for i, field := range g.Fields {
			if test := groupTest(field, g.Values[i]); test != "" {
				tests = append(tests, test)
			}
		}
	}
	if len(tests) == 0 {
		return s.Q
	}
	if s.Q != "" {
		tests = append([]string{"(" + s.Q + ")"}, tests...)
	}
	return strings.Join(tests, " AND ")
}

// statsCharacters is how many characters a table of stats has of a value.
const statsCharacters = 1000

// groupTest returns the part of a query that finds the records of a group by one of its fields; empty if none can.
func groupTest(field string, value *string) string {
	switch {
	case value == nil:
		return "NOT " + field + ":*"
	case utf8.RuneCountInString(*value) >= statsCharacters || strings.HasPrefix(*value, "{") || strings.HasPrefix(*value, "["):
		return ""
	case *value == "true" || *value == "false" || language.IsNumber(*value):
		return field + ":" + *value
	}
	return field + ":" + quote(*value)
}

// quote returns a text in quotation marks, as JSON and the search language have it.
func quote(text string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a buffer takes everything, and every text has a form
	return strings.TrimSuffix(b.String(), "\n")
}

// link returns the address of the page that shows the records of a group, or of all groups if g is nil, in a window; empty if nothing says where
// the page is.
func (f *File) link(s *Search, g *Group, from, to time.Time) string {
	if f.Page == "" {
		return ""
	}
	p := make(url.Values)
	if q := s.groupQuery(g); q != "" {
		p.Set("q", q)
	}
	p.Set("from", from.UTC().Format(timeFormat))
	p.Set("to", to.UTC().Format(timeFormat))
	return f.Page + "/?" + p.Encode()
}

// timeFormat is how times are written, in UTC.
const timeFormat = "2006-01-02T15:04:05.000Z"

// hash returns a number that follows from a name.
func hash(name string) uint64 { return xxhash.Sum64String(name) }

// lockID returns the key of the advisory lock under which a search is evaluated.
func (s *Search) lockID() int64 { return int64(hash("millrace search " + s.Name)) }

// definition returns a text that changes when the groups of the search become others: what was known of them says nothing of the new ones.
func (s *Search) definition() string {
	c := s.Condition
	text := string(c.kind) + "\n" + s.Q + "\n" + s.Clock + "\n" + strings.Join(s.By, ",") + "\n" + s.Field
	return strconv.FormatUint(hash(text), 16)
}
