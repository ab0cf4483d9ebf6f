package query

import (
	"fmt"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/rfc3339"
	"millrace/internal/timezone"
	"millrace/query/language"
)

const (
	defaultLimit = 100
	maxLimit     = 1000

	// defaultSpan is the window when from is not given.
	defaultSpan = 24 * time.Hour
	// clockAhead is how far beyond this machine's clock the window reaches when to is not given. Rows carry the API's clock,
	// or the client's in an Idempotency-Key, and a row that was just stored must be found.
	clockAhead = time.Hour
)

// clock says whose times a search goes by. Its value is the name of the column.
type clock string

const (
	byTime    clock = "time"        // when the event happened, as its record tells
	byArrival clock = "inserted_at" // when the record came
)

// search is what a request asks for.
type search struct {
	from, to         int64  // Unix milliseconds; from is in the window, to is not
	fromText, toText string // as asked for, in normal form; empty when not given
	isFixed          bool   // to was given, and neither bound counts from now
	clock            clock  // whose times the bounds and the order are
	filter           language.Query
	indexed          language.Indexed // see store.indexed
	fenced           bool             // the rows of the window are read, whatever index the filter has; see slicer.fences
	budget           time.Duration    // how long the search may take before it answers with what it has; 0: until the end
	deadline         time.Time        // when the budget is used up; zero: there is none
	brought          *broughtRows     // rows that statements find beside those in logs
	archived         spans            // of inserted_at: rows that files of the archive have, and that logs is not asked for

	// For a page. An export has an order too.
	limit     int
	ascending bool
	after     *position // the end of the page before; nil for the first page

	// For a histogram. The values of a field have groupBy too.
	interval     int64    // milliseconds
	edges        []int64  // where its buckets begin, and where the last ends
	shownBuckets int      // how many buckets are in the answer even if they are empty
	groupBy      []string // the field to group by, or whose values are asked for; nil: none
}

// The parameters that the routes take.
var (
	windowParameters    = []string{"from", "to", "clock", "q"}
	countParameters     = append(slices.Clone(windowParameters), "budget")
	pageParameters      = append(slices.Clone(windowParameters), "limit", "order", "cursor", "budget")
	exportParameters    = append(slices.Clone(windowParameters), "order", "format", "fields", "limit", "name")
	histogramParameters = append(slices.Clone(windowParameters), "interval", "by", "tz", "budget")
	tailParameters      = []string{"q"}
	statsParameters     = append(slices.Clone(windowParameters), "by", "calc", "every", "tz", "order", "limit", "having", "budget")
	sqlParameters       = append(slices.Clone(windowParameters), "limit", "order")
	patternParameters   = append(slices.Clone(windowParameters), "field", "vs", "limit", "budget")
	contextParameters   = []string{"before", "after", "clock", "q", "budget"}
)

// readLimit sets limit to the parameter of that name, if there is one. Its errors are *failure.
func readLimit(limit *int, text string, most int) error {
	if text == "" {
		return nil
	}
	n, ok := parseDigits(text)
	if !ok || n < 1 || n > int64(most) {
		return refused("limit", text, "a whole number from 1 to "+strconv.Itoa(most))
	}
	*limit = int(n)
	return nil
}

// parseSearch returns the search that a URL's query asks of a route, which takes the parameters takes. Its errors are *failure.
func parseSearch(rawQuery string, takes []string, now time.Time) (*search, error) {
	p, err := parseParameters(rawQuery, takes)
	if err != nil {
		return nil, err
	}
	s := &search{limit: defaultLimit}
	if err := s.window(p["from"], p["to"], now); err != nil {
		return nil, err
	}
	if err := s.what(p, now); err != nil {
		return nil, err
	}
	if text := p["by"]; text != "" {
		if s.groupBy, err = language.ParseField(text); err != nil {
			return nil, badRequest("by: %v", err)
		}
	}
	if slices.Contains(takes, "interval") {
		if err := s.buckets(p["interval"], p["tz"], p["to"] == "", now); err != nil {
			return nil, err
		}
	}
	if err := readLimit(&s.limit, p["limit"], maxLimit); err != nil {
		return nil, err
	}
	switch p["order"] {
	case "", "desc":
	case "asc":
		s.ascending = true
	default:
		return nil, refused("order", p["order"], "asc or desc")
	}
	if text := p["cursor"]; text != "" {
		if err := s.resumeFrom(text, p["clock"] != ""); err != nil {
			return nil, refused("cursor", text, "the next of the page before: "+err.Error())
		}
	}
	return s, nil
}

// what sets what is looked for, by which clock, and how long that may take.
func (s *search) what(p map[string]string, now time.Time) error {
	switch c := clock(p["clock"]); c {
	case "":
		s.clock = byTime
	case byTime, byArrival:
		s.clock = c
	default:
		return refused("clock", p["clock"], "time or inserted_at")
	}
	var err error
	if s.filter, err = language.ParseAt(p["q"], now); err != nil {
		return badRequest("q: %v", err)
	}
	if text := p["budget"]; text != "" {
		if s.budget, err = time.ParseDuration(text); err != nil || s.budget < leastBudget || s.budget > mostBudget {
			return refused("budget", text, fmt.Sprintf("a duration such as 500ms or 3s, from %v to %v", leastBudget, mostBudget))
		}
		s.deadline = now.Add(s.budget)
	}
	return nil
}

// window sets the bounds of the window. from and to are the parameters, empty if not given.
func (s *search) window(from, to string, now time.Time) error {
	start, end := instant{}, instant{ms: now.Add(clockAhead).UnixMilli()}
	ok := true
	if to != "" {
		if end, ok = parseTime(to, true, now); !ok {
			return refused("to", to, timeForms)
		}
		start.ms = end.ms - defaultSpan.Milliseconds()
	} else {
		start.ms = now.Add(-defaultSpan).UnixMilli()
	}
	if from != "" {
		if start, ok = parseTime(from, false, now); !ok {
			return refused("from", from, timeForms)
		}
	}
	start.ms = max(start.ms, rfc3339.Earliest)
	if start.ms > end.ms {
		return refused("from", from, "a time that is not after to, which is "+time.UnixMilli(end.ms).UTC().Format(timeFormat))
	}
	s.from, s.fromText = start.ms, start.text
	s.to, s.toText = end.ms, end.text
	s.isFixed = to != "" && !start.relative && !end.relative
	return nil
}

// buckets sets the interval and the edges of a histogram. interval and tz are the parameters, empty if not given. openEnd means
// that to was not given: rows ahead of now are counted too, but empty buckets ahead of now are not shown.
func (s *search) buckets(interval, tz string, openEnd bool, now time.Time) error {
	zone := time.UTC
	if tz != "" {
		var known bool
		if zone, known = timezone.Load(tz); !known {
			return refused("tz", tz, "the name of a time zone such as Europe/Berlin or UTC")
		}
	}
	end := s.to
	if openEnd {
		end = max(s.from, now.UnixMilli())
	}
	switch interval {
	case "", "auto":
		until := end
		if s.from == end {
			until = s.to
		}
		s.interval = chooseInterval(s.from, until, zone)
	default:
		var ok bool
		if s.interval, ok = parseInterval(interval); ok {
			_, ok = bucketEdges(s.from, end, s.interval, zone, maxBuckets)
		}
		if !ok {
			return refused("interval", interval, "auto, or a whole number with a unit (s m h d w) that makes at most "+strconv.Itoa(maxBuckets)+" buckets")
		}
	}
	s.edges, _ = bucketEdges(s.from, s.to, s.interval, zone, math.MaxInt32)
	s.shownBuckets, _ = slices.BinarySearch(s.edges, end)
	return nil
}

// parseParameters returns the parameters in a URL's query, by name. It refuses one that is not in takes or is given more than once.
// An empty one counts as not given.
func parseParameters(rawQuery string, takes []string) (map[string]string, error) {
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, badRequest("the URL's query can't be read: %v", err)
	}
	p := make(map[string]string, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) { // the same error for the same request
		if !slices.Contains(takes, name) {
			if len(takes) == 0 {
				return nil, badRequest("unknown parameter %.64q; none is taken here", name)
			}
			return nil, badRequest("unknown parameter %.64q; takes %s", name, strings.Join(takes, ", "))
		}
		if n := len(values[name]); n > 1 {
			return nil, badRequest("%s: given %d times, takes one value", name, n)
		}
		p[name] = values[name][0]
	}
	return p, nil
}

// parseID returns the id of a row. The text must have the form that answers have, but its letters may be capitals.
func parseID(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != len(uuid.Nil.String()) || !frame.IsV7(id) {
		return id, refused("id", text, "a UUIDv7 such as 01890a5d-ac96-774b-bcce-b302099a8057")
	}
	return id, nil
}
