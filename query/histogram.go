package query

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/rfc3339"
	"millrace/query/language"
)

const (
	// autoBuckets is how many buckets a histogram has at most when its interval is chosen for it.
	autoBuckets = 120
	// maxBuckets is how many it has at most when the interval is asked for.
	maxBuckets = 2000

	// topGroups is how many groups of a field are told apart.
	topGroups = 10
	// bucketGroups is how many groups a bucket remembers. The largest over all buckets are found among those. So a field of a
	// million values costs no more memory, and what the cache has leads to the same answer.
	bucketGroups = 50
	// groupBytes is the longest value that is a group. A longer one counts with the rest, since no query can ask for it.
	groupBytes = language.MaxBytes
	// bucketBytes is the most bytes that the values which a bucket remembers may have together. The largest groups always fit.
	bucketBytes = topGroups * groupBytes
	// histogramBytes bounds the bytes of values in an answer, which has them in every bucket. Only hundreds of buckets with
	// values of kilobytes reach it. The smaller groups then count with the rest.
	histogramBytes = 16 << 20
)

// maxStretches is the most stretches, each counted by one query, that buckets which the cache does not have may lie in.
const maxStretches = 8

// autoIntervals are the intervals that chooseInterval chooses from, in milliseconds.
var autoIntervals = func() (steps []int64) {
	for unit, counts := range map[time.Duration][]int64{
		time.Second: {1, 2, 5, 10, 15, 30}, time.Minute: {1, 2, 5, 10, 15, 30}, time.Hour: {1, 2, 3, 6, 12},
		24 * time.Hour: {1, 2, 5, 10, 30, 90, 180, 365, 730, 3650, 36500},
	} {
		for _, n := range counts {
			steps = append(steps, n*unit.Milliseconds())
		}
	}
	slices.Sort(steps)
	return steps
}()

// chooseInterval returns the shortest of the autoIntervals that makes at most autoBuckets.
func chooseInterval(from, to int64, zone *time.Location) int64 {
	for _, step := range autoIntervals {
		if _, ok := bucketEdges(from, to, step, zone, autoBuckets); ok {
			return step
		}
	}
	return autoIntervals[len(autoIntervals)-1]
}

// parseInterval returns the milliseconds of an interval, which is a whole number and a unit.
func parseInterval(s string) (int64, bool) {
	if len(s) < len("1s") {
		return 0, false
	}
	unit, known := units[s[len(s)-1]]
	n, isNumber := parseDigits(s[:len(s)-1])
	if !known || !isNumber || n < 1 || n > (rfc3339.Latest-rfc3339.Earliest)/unit.Milliseconds() {
		return 0, false
	}
	return n * unit.Milliseconds(), true
}

// intervalText writes an interval as parseInterval reads it, in the largest unit up to a day.
func intervalText(ms int64) string {
	for _, unit := range []byte("dhms") {
		if size := units[unit].Milliseconds(); ms%size == 0 {
			return strconv.FormatInt(ms/size, 10) + string(unit)
		}
	}
	panic("query: an interval below a second")
}

// bucket holds the counts of an interval. In the cache it is JSON.
type bucket struct {
	Count   int64   `json:"c"`
	Groups  []group `json:"g,omitempty"` // the largest, with the field's values
	Missing int64   `json:"n,omitempty"` // records without the field
	partial bool    // only its newest part is counted
}

// group is how many records have a value.
type group struct {
	Value string `json:"n"`
	Count int64  `json:"c"`
}

// bucketStart returns the beginning of the bucket that a row found is in, as SQL.
func bucketStart(q *search, s *statement) string {
	if areEven(q.edges, q.interval) {
		return fmt.Sprintf("date_bin(%s::bigint * interval '1 millisecond', at, %s)", s.args.Add(q.interval), s.args.Add(time.UnixMilli(q.edges[0])))
	}
	starts := make([]time.Time, len(q.edges)-1)
	for i := range starts {
		starts[i] = time.UnixMilli(q.edges[i])
	}
	return fmt.Sprintf("(%[1]s::timestamptz[])[width_bucket(at, %[1]s::timestamptz[])]", s.args.Add(starts))
}

// histogramStatement returns the statement that counts by bucket and, if a field is asked for, by the largest groups of each.
func histogramStatement(q *search, arrived spans) *statement {
	s := new(statement)
	start := bucketStart(q, s)
	if q.groupBy == nil {
		fmt.Fprintf(&s.sql, "SELECT (extract(epoch FROM start) * 1000)::bigint, false, NULL::text, count(*) FROM (SELECT %s AS start FROM ", start)
		s.found(q, arrived)
		s.sql.WriteString(") AS rows GROUP BY start ORDER BY 1")
		return s
	}
	// A value that is too long to be a group is cut to one character more than groupBytes, so that it takes little room. In a
	// bucket, the records without the field come first and the values that are too long come last, so neither takes the place
	// of a group.
	most, longest := s.args.Add(bucketGroups+1), s.args.Add(groupBytes)
	fmt.Fprintf(&s.sql, "SELECT (extract(epoch FROM start) * 1000)::bigint, value IS NULL, "+
		"(CASE WHEN rank <= %s AND bytes <= %s AND octet_length(value) <= %s THEN value END) COLLATE \"C\" AS kept, sum(n)::bigint "+
		"FROM (SELECT start, value, n, row_number() OVER largest AS rank, sum(octet_length(value)) OVER largest AS bytes "+
		"FROM (SELECT start, value, count(*) AS n FROM (SELECT %s AS start, left(%s #>> '{}', %[3]s + 1) AS value FROM ",
		most, s.args.Add(bucketBytes), longest, start, value(q.groupBy, &s.args))
	s.found(q, arrived)
	fmt.Fprintf(&s.sql, ") AS rows GROUP BY start, value) AS groups WINDOW largest AS (PARTITION BY start "+
		"ORDER BY value IS NOT NULL, octet_length(value) > %s, n DESC, value COLLATE \"C\" ROWS UNBOUNDED PRECEDING)) AS ranked "+
		"GROUP BY 1, 2, 3 ORDER BY 1, 2, 4 DESC, 3", longest)
	return s
}

// buckets returns the buckets of a window that have rows, by their beginning.
func (s *store) buckets(ctx context.Context, q *search) (map[int64]*bucket, error) {
	var all map[int64]*bucket
	err := s.readPart(ctx, q, func(ctx context.Context, of *part) (err error) {
		all, err = of.buckets(ctx)
		return err
	})
	return all, err
}

// bucketWithin counts the newest part of a bucket, as much as a budget allows.
func (s *store) bucketWithin(ctx context.Context, q *search) (*bucket, progress, error) {
	sum := new(bucket)
	counts := make(map[string]int64)
	p, err := s.walk(ctx, q, false, func(ctx context.Context, of *part) (rows int, enough bool, err error) {
		all, err := of.buckets(ctx)
		if err != nil {
			return 0, false, err
		}
		for _, b := range all {
			sum.Count += b.Count
			rows += int(b.Count)
			sum.Missing += b.Missing
			for _, g := range b.Groups {
				counts[g.Value] += g.Count
			}
		}
		return rows, false, nil
	})
	for _, value := range slices.Sorted(maps.Keys(counts)) {
		sum.Groups = append(sum.Groups, group{value, counts[value]})
	}
	return sum, p, err
}

// allGroupsStatement does what histogramStatement does with a field, but has all groups that are asked for, in no order.
func allGroupsStatement(q *search, arrived spans, ask groupsAsked) *statement {
	s := new(statement)
	start, longest := bucketStart(q, s), s.args.Add(groupBytes)
	asked := "octet_length(value) <= " + longest
	if ask.parts > 1 {
		asked += fmt.Sprintf(" AND get_byte(sha256(convert_to(value, 'UTF8')), 0) %% %s = %s", s.args.Add(ask.parts), s.args.Add(ask.part))
	}
	fmt.Fprintf(&s.sql, `SELECT (extract(epoch FROM start) * 1000)::bigint, value IS NULL, (CASE WHEN %s THEN value END) COLLATE "C" AS kept, count(*) `+
		`FROM (SELECT %s AS start, left(%s #>> '{}', %s + 1) AS value FROM `, asked, start, value(q.groupBy, &s.args), longest)
	s.found(q, arrived)
	s.sql.WriteString(") AS rows GROUP BY 1, 2, 3")
	return s
}

// readBuckets reads the buckets that a statement selects, by their beginning. If all groups of other rows are to be added, there may be
// mostGroups.
func readBuckets(ctx context.Context, tx pgx.Tx, st *statement, ask groupsAsked) (map[int64]*bucket, error) {
	all := make(map[int64]*bucket)
	groups, bytes := 0, 0
	rows, err := tx.Query(ctx, st.sql.String(), st.args...)
	if err != nil {
		return nil, err
	}
	var (
		start, n int64
		missing  bool
		value    *string
	)
	_, err = pgx.ForEachRow(rows, []any{&start, &missing, &value, &n}, func() error {
		b := all[start]
		if b == nil {
			b = new(bucket)
			all[start] = b
		}
		b.Count += n
		switch {
		case value != nil:
			b.Groups = append(b.Groups, group{*value, n})
			if groups, bytes = groups+1, bytes+len(*value); ask.isPart && (groups > mostGroups || bytes > mostGroupBytes) {
				return errManyGroups
			}
		case missing:
			b.Missing = n
		}
		return nil
	})
	return all, err
}

// lateChange is how many times rows appeared or vanished late in an hour.
type lateChange struct {
	hour    int64 // Unix milliseconds
	changes int64
}

// lateChanges returns the time of closedUntilSQL in Unix milliseconds, and what changed late in the hours of a window. g.late is what
// changed late in all windows.
func (s *store) lateChanges(ctx context.Context, q *search) (until int64, g generation, hours []lateChange, err error) {
	const state = `SELECT coalesce((extract(epoch FROM ` + closedUntilSQL + `) * 1000)::bigint, 0), max(version), min(applied_at) FROM schema_migrations`
	sums := `SELECT CASE WHEN hour = '-infinity' THEN NULL ELSE (extract(epoch FROM hour) * 1000)::bigint END, sum(changes)::bigint FROM ` + q.clock.changesSQL() + `
		WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2 OR hour = '-infinity' GROUP BY hour`
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		b := new(pgx.Batch)
		b.Queue(state).QueryRow(func(row pgx.Row) error { return row.Scan(&until, &g.schema, &g.created) })
		b.Queue(sums, time.UnixMilli(q.edges[0]), time.UnixMilli(q.to)).Query(func(rows pgx.Rows) error {
			var hour *int64
			var changes int64
			_, err := pgx.ForEachRow(rows, []any{&hour, &changes}, func() error {
				if hour == nil {
					g.late = changes
				} else {
					hours = append(hours, lateChange{*hour, changes})
				}
				return nil
			})
			return err
		})
		return tx.SendBatch(ctx, b).Close()
	})
	g.files = s.files != nil
	return until, g, hours, err
}

// getHistogram answers GET /logs/histogram.
func (s *server) getHistogram(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, histogramParameters, time.Now())
	if err != nil {
		return err
	}
	return s.respond(w, r, func() ([]byte, string, error) { return s.histogramAnswer(r.Context(), q) })
}

// histogramAnswer returns the answer to GET /logs/histogram. Buckets that are closed and whole come out of the cache, or go
// there. Buckets that an end of the window cuts, and those that are open, are counted each time.
func (s *server) histogramAnswer(ctx context.Context, q *search) (body []byte, cacheResult string, err error) {
	buckets, keys, cacheResult, err := s.cachedBuckets(ctx, q)
	if err != nil {
		return nil, bypass, err
	}
	if q.budget > 0 {
		reached, err := s.countWithin(ctx, q, buckets, keys)
		for i := range buckets {
			if q.edges[i+1] <= reached.reached && !reached.complete {
				buckets[i] = nil // of the cache: who goes on from there counts it again
			}
		}
		return renderHistogram(q, buckets, &reached), cacheResult, err
	}
	for i := 0; i < len(buckets); {
		if buckets[i] != nil {
			i++
			continue
		}
		// Buckets that go to the cache are counted apart from others, so that all who ask share the count.
		end := i
		for end < len(buckets) && buckets[end] == nil && (keys[i] == "") == (keys[end] == "") {
			end++
		}
		if err := s.countStretch(ctx, q.stretch(i, end), buckets[i:end], keys[i:end]); err != nil {
			return nil, cacheResult, err
		}
		i = end
	}
	return renderHistogram(q, buckets, nil), cacheResult, nil
}

// stretch returns the search of some of a histogram's buckets.
func (s *search) stretch(from, to int) *search {
	part := *s
	part.from, part.to, part.edges = max(s.from, s.edges[from]), min(s.to, s.edges[to]), s.edges[from:to+1]
	return &part
}

// countWithin counts the buckets that are nil, the newest first, until the search's budget is used up. It leaves the others nil. It does not
// share a count with others, whose budgets are other ones.
func (s *server) countWithin(ctx context.Context, q *search, buckets []*bucket, keys []string) (p progress, err error) {
	ctx, within := s.store.withinBudget(ctx, q)
	defer within.end()
	p.reached = q.to
	most := 1 // buckets of the next count
	hasFailed := false
	for end := len(buckets); end > 0; {
		if buckets[end-1] != nil {
			end--
			p.reached = max(q.from, q.edges[end])
			continue
		}
		from := end - 1
		for from > 0 && end-from < most && buckets[from-1] == nil && (keys[from-1] == "") == (keys[end-1] == "") {
			from--
		}
		began := time.Now()
		left := within.deadline.Sub(began)
		if left < leastLeft {
			return p, nil
		}
		stretch := q.stretch(from, end)
		stretch.deadline = began.Add(left / 2)
		err := s.compute(ctx, stretch, buckets[from:end], keys[from:end])
		if isOutOfTime(err) {
			// Even one bucket may take too long. Then as much of the newest as there is time for is counted.
			last := q.stretch(end-1, end)
			last.deadline = within.deadline
			var reached progress
			if buckets[end-1], reached, err = s.store.bucketWithin(ctx, last); err != nil {
				return p, within.passOver(err)
			}
			if reached.slices == 0 {
				buckets[end-1] = nil
				return p, nil
			}
			if p.reached = reached.reached; !reached.complete {
				buckets[end-1].partial = true
				return p, nil
			}
			most, end = 1, end-1
			continue
		}
		if failed := new(rangeFailure); errors.As(err, &failed) && end-from > 1 {
			most, hasFailed = 1, true // up to the bucket that needs the range
			continue
		}
		if err != nil {
			return p, p.passOver(within.passOver(err))
		}
		p.slices++
		p.reached = max(q.from, q.edges[from])
		took := max(time.Since(began), time.Millisecond)
		if !hasFailed {
			most = min(max(int(float64(end-from)*float64(time.Until(within.deadline))/4/float64(took)), 1), growth*(end-from))
		}
		end = from
	}
	p.complete = true
	return p, nil
}

// cachedBuckets returns the buckets of a window, nil where the cache does not have them, and their keys in the cache, empty
// where a bucket does not belong there.
func (s *server) cachedBuckets(ctx context.Context, q *search) (buckets []*bucket, keys []string, cacheResult string, err error) {
	n := max(0, len(q.edges)-1)
	buckets, keys = make([]*bucket, n), make([]string, n)
	if s.cache.redis == nil || n == 0 || s.cache.isPaused() {
		return buckets, keys, bypass, nil
	}
	// This must come before anything is looked up or counted: respondCached has the reason.
	asking, within := s.store.withinBudget(ctx, q)
	until, g, hours, err := s.store.lateChanges(asking, q)
	within.end()
	if err = within.passOver(err); err != nil {
		return nil, nil, bypass, err
	}
	var wanted []string
	for i := range keys {
		start, end := q.edges[i], q.edges[i+1]
		if start < q.from || end > q.to || end > until {
			continue
		}
		of := g
		for _, l := range hours {
			if l.hour > start-time.Hour.Milliseconds() && l.hour < end {
				of.late += l.changes
			}
		}
		keys[i] = cacheKey("bucket", &search{from: start, to: end, clock: q.clock, filter: q.filter, groupBy: q.groupBy}, of)
		wanted = append(wanted, keys[i])
	}
	if len(wanted) == 0 {
		return buckets, keys, bypass, nil
	}
	found, cacheResult := s.cache.getMany(ctx, wanted)
	for i := range keys {
		if keys[i] == "" {
			continue
		}
		b := new(bucket)
		if found[0] != "" && json.Unmarshal([]byte(found[0]), b) == nil {
			buckets[i] = b
		}
		found = found[1:]
	}
	if countStretches(buckets) > maxStretches {
		clear(buckets) // Redis lost keys here and there: one query is cheaper than many
	}
	return buckets, keys, cacheResult, nil
}

// countStretches returns how many stretches of neighbouring buckets are nil.
func countStretches(buckets []*bucket) (n int) {
	for i, b := range buckets {
		if b == nil && (i == 0 || buckets[i-1] != nil) {
			n++
		}
	}
	return n
}

// countStretch counts the buckets of one stretch. It puts them into the cache if they have keys.
func (s *server) countStretch(ctx context.Context, q *search, into []*bucket, keys []string) error {
	if keys[0] == "" {
		return s.compute(ctx, q, into, keys)
	}
	// The flight's key is made of all keys, because a late change shows only in the keys of its own hour.
	v, err := s.cache.share(ctx, strings.Join(keys, " "), func(ctx context.Context) (any, error) {
		all := make([]*bucket, len(into))
		return all, s.compute(ctx, q, all, keys)
	})
	if err == nil {
		copy(into, v.([]*bucket))
	}
	return err
}

// compute counts the buckets of one stretch, and puts them into the cache if they have keys.
func (s *server) compute(ctx context.Context, q *search, into []*bucket, keys []string) error {
	found, err := s.store.buckets(ctx, q)
	if err != nil {
		return err
	}
	for i := range into {
		if into[i] = found[q.edges[i]]; into[i] == nil {
			into[i] = new(bucket)
		}
	}
	if keys[0] != "" {
		s.cache.setMany(ctx, keys, into)
	}
	return nil
}

// renderHistogram returns the answer with the buckets of a histogram. reached is how far a search with a budget came, or nil.
func renderHistogram(q *search, buckets []*bucket, reached *progress) []byte {
	// Buckets ahead of now are shown only if they have rows.
	for len(buckets) > q.shownBuckets && (buckets[len(buckets)-1] == nil || buckets[len(buckets)-1].Count == 0) {
		buckets = buckets[:len(buckets)-1]
	}
	top := topValues(buckets)
	out := append([]byte(`{"interval":"`), intervalText(q.interval)...)
	out = append(out, `","buckets":[`...)
	for i, b := range buckets {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"start":"`...)
		out = appendEdge(out, q.edges[i])
		out = append(out, `","count":`...)
		if b == nil { // the budget was used up before
			out = append(out, "null}"...)
			continue
		}
		out = strconv.AppendInt(out, b.Count, 10)
		if q.groupBy != nil {
			out = appendGroups(out, b, top)
		}
		if b.partial {
			out = append(out, `,"partial":true`...)
		}
		out = append(out, '}')
	}
	out = append(out, ']')
	if len(buckets) > 0 {
		out = append(out, `,"end":"`...)
		out = append(appendEdge(out, q.edges[len(buckets)]), '"')
	}
	if reached != nil {
		out = appendProgress(out, *reached)
	}
	return append(out, "}\n"...)
}

// appendEdge appends a time. RFC 3339 can't write the beginning of a bucket before the year 0, nor its end after 9999: then it
// appends the nearest time that it can write.
func appendEdge(out []byte, ms int64) []byte {
	return time.UnixMilli(min(max(rfc3339.Earliest, ms), rfc3339.Latest)).UTC().AppendFormat(out, timeFormat)
}

// topValue is one of the largest groups.
type topValue struct {
	value string
	json  string // value as JSON has it, and the colon
}

// topValues returns the largest groups over all buckets, the largest first.
func topValues(buckets []*bucket) (top []topValue) {
	totals := make(map[string]int64)
	bucketsWith := make(map[string]int) // by value
	for _, b := range buckets {
		if b == nil {
			continue
		}
		for _, g := range b.Groups {
			totals[g.Value] += g.Count
			bucketsWith[g.Value]++
		}
	}
	values := slices.SortedFunc(maps.Keys(totals), func(a, b string) int {
		return cmp.Or(cmp.Compare(totals[b], totals[a]), strings.Compare(a, b))
	})
	bytes := 0
	for _, value := range values[:min(len(values), topGroups)] {
		name, _ := json.Marshal(value) // a text always has a JSON form
		name = append(name, ':')
		if bytes += len(name) * bucketsWith[value]; bytes > histogramBytes {
			break
		}
		top = append(top, topValue{value, string(name)})
	}
	return top
}

// appendGroups appends what a bucket's records have in the field: the counts of the largest groups, then how many records have
// other values and how many lack the field. Those two numbers stand beside the groups, because a value may be any text.
func appendGroups(out []byte, b *bucket, top []topValue) []byte {
	counts := make(map[string]int64, len(b.Groups))
	for _, g := range b.Groups {
		counts[g.Value] = g.Count
	}
	rest := b.Count - b.Missing
	out = append(out, `,"groups":{`...)
	comma := false
	for _, t := range top {
		n := counts[t.value]
		if n == 0 {
			continue
		}
		rest -= n
		if comma {
			out = append(out, ',')
		}
		comma = true
		out = strconv.AppendInt(append(out, t.json...), n, 10)
	}
	out = strconv.AppendInt(append(out, `},"other":`...), rest, 10)
	return strconv.AppendInt(append(out, `,"missing":`...), b.Missing, 10)
}
