package query

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// aimBuckets is how many buckets a histogram has at most when its interval is chosen for it.
	aimBuckets = 120
	// maxBuckets is how many it has at most when the interval is asked for.
	maxBuckets = 2000

	// topGroups is how many groups of a field are told apart.
	topGroups = 10
	// bucketGroups is how many of them a bucket remembers: the largest of all are found among those. So a field
	// of a million values costs no more memory, and what the cache has leads to the same answer.
	bucketGroups = 50
	// groupName is the longest name of a group, in characters; longer values count with those that begin the same.
	groupName = 100

	// otherGroup is the group of values that are not among the top, noGroup that of records without the field.
	otherGroup = "other"
	noGroup    = "(none)"
)

// maxStretches is how many queries fill the holes that the cache left.
const maxStretches = 8

// ladder is the intervals that are chosen from, in milliseconds.
var ladder = func() (steps []int64) {
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

// chooseInterval returns the shortest interval of the ladder that makes few enough buckets.
func chooseInterval(from, to int64) int64 {
	for _, step := range ladder {
		if countBuckets(from, to, step) <= aimBuckets {
			return step
		}
	}
	return ladder[len(ladder)-1]
}

// countBuckets counts the buckets that hold a part of a window.
func countBuckets(from, to, interval int64) int64 {
	if from >= to {
		return 0
	}
	return floor(to-1, interval)/interval - floor(from, interval)/interval + 1
}

// floor returns the beginning of the bucket that holds ms. Buckets are counted from 1970, in UTC.
func floor(ms, interval int64) int64 {
	start := ms - ms%interval
	if start > ms {
		start -= interval
	}
	return start
}

// parseInterval reads a whole number and a unit.
func parseInterval(s string) (int64, bool) {
	if len(s) < len("1s") {
		return 0, false
	}
	unit, known := units[s[len(s)-1]]
	n, isNumber := parseDigits(s[:len(s)-1])
	if !known || !isNumber || n < 1 || n > (latest-earliest)/unit.Milliseconds() {
		return 0, false
	}
	return n * unit.Milliseconds(), true
}

// intervalText is what parseInterval reads, in the largest unit up to a day.
func intervalText(ms int64) string {
	for _, unit := range []byte("dhms") {
		if size := units[unit].Milliseconds(); ms%size == 0 {
			return strconv.FormatInt(ms/size, 10) + string(unit)
		}
	}
	panic("query: an interval below a second")
}

// bucket is the counts of an interval; in the cache it is JSON.
type bucket struct {
	Count  int64   `json:"c"`
	Groups []group `json:"g,omitempty"` // the largest, with the field's values
	None   int64   `json:"n,omitempty"` // records without the field
}

type group struct {
	Name  string `json:"n"`
	Count int64  `json:"c"`
}

// histogramStatement counts by bucket, and by the largest groups of each when a field is asked for.
func histogramStatement(q *search) *statement {
	s := new(statement)
	interval := s.arg(q.interval)
	start := fmt.Sprintf("date_bin(%s::bigint * interval '1 millisecond', inserted_at, 'epoch') AS start", interval)
	if q.by == nil {
		fmt.Fprintf(&s.sql, "SELECT (extract(epoch FROM start) * 1000)::bigint, false, NULL::text, count(*) FROM (SELECT %s FROM logs", start)
		s.where(q)
		s.sql.WriteString(") AS rows GROUP BY start ORDER BY 1")
		return s
	}
	// The group of those without the field comes first, so that it is never among the other.
	most := s.arg(bucketGroups + 1)
	fmt.Fprintf(&s.sql, "SELECT (extract(epoch FROM start) * 1000)::bigint, rank > %s, (CASE WHEN rank <= %[1]s THEN name END) COLLATE \"C\", sum(n)::bigint "+
		"FROM (SELECT start, name, n, row_number() OVER (PARTITION BY start ORDER BY name IS NOT NULL, n DESC, name COLLATE \"C\") AS rank "+
		"FROM (SELECT start, name, count(*) AS n FROM (SELECT %s, left(data #>> %s, %s) AS name FROM logs",
		most, start, s.arg(q.by), s.arg(groupName))
	s.where(q)
	s.sql.WriteString(") AS rows GROUP BY start, name) AS groups) AS ranked GROUP BY 1, 2, 3 ORDER BY 1, 2, 4 DESC, 3")
	return s
}

// buckets returns the buckets of a window that have rows, by their beginning.
func (s *store) buckets(ctx context.Context, q *search) (map[int64]*bucket, error) {
	st := histogramStatement(q)
	all := make(map[int64]*bucket)
	err := s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		var (
			start, n int64
			rest     bool
			name     *string
		)
		_, err = pgx.ForEachRow(rows, []any{&start, &rest, &name, &n}, func() error {
			b := all[start]
			if b == nil {
				b = new(bucket)
				all[start] = b
			}
			b.Count += n
			switch {
			case name != nil:
				b.Groups = append(b.Groups, group{*name, n})
			case !rest && q.by != nil:
				b.None = n
			}
			return nil
		})
		return err
	})
	return all, err
}

// late is how many times rows appeared or vanished late in an hour.
type late struct {
	hour    int64 // Unix milliseconds
	changes int64
}

// changes returns how far the past is closed, in Unix milliseconds (see closed), and what changed late in the hours
// of a window.
func (s *store) changes(ctx context.Context, q *search) (until int64, g generation, hours []late, err error) {
	const state = `SELECT coalesce((extract(epoch FROM ` + closedUntil + `) * 1000)::bigint, 0), max(version), min(applied_at) FROM schema_migrations`
	const sums = `SELECT (extract(epoch FROM hour) * 1000)::bigint, sum(changes)::bigint FROM late_changes
		WHERE hour > $1::timestamptz - interval '1 hour' AND hour < $2 GROUP BY hour`
	err = s.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		b := new(pgx.Batch)
		b.Queue(state).QueryRow(func(row pgx.Row) error { return row.Scan(&until, &g.schema, &g.created) })
		b.Queue(sums, time.UnixMilli(floor(q.from, q.interval)), time.UnixMilli(q.to)).Query(func(rows pgx.Rows) error {
			var l late
			_, err := pgx.ForEachRow(rows, []any{&l.hour, &l.changes}, func() error {
				hours = append(hours, l)
				return nil
			})
			return err
		})
		return tx.SendBatch(ctx, b).Close()
	})
	return until, g, hours, err
}

// histogram returns the answer to GET /logs/histogram. Buckets that are closed and whole come out of the cache, or
// go there; those at the ends of the window that it cuts, and those that are open, are counted each time.
func (s *server) histogram(ctx context.Context, q *search) (body []byte, result string, err error) {
	first, n := floor(q.from, q.interval), int(countBuckets(q.from, q.to, q.interval))
	buckets := make([]*bucket, n)
	keys := make([]string, n) // empty: not for the cache
	result = bypass
	if s.cache.redis != nil && n > 0 && !s.cache.paused() {
		// Before anything is looked up or counted, as in lookUp.
		until, g, hours, err := s.store.changes(ctx, q)
		if err != nil {
			return nil, bypass, err
		}
		var wanted []string
		for i := range keys {
			start := first + int64(i)*q.interval
			end := start + q.interval
			if start < q.from || end > q.to || end > until {
				continue
			}
			g.late = 0
			for _, l := range hours {
				if l.hour > start-time.Hour.Milliseconds() && l.hour < end {
					g.late += l.changes
				}
			}
			keys[i] = cacheKey("bucket", &search{from: start, to: end, filter: q.filter, by: q.by}, g)
			wanted = append(wanted, keys[i])
		}
		if len(wanted) > 0 {
			var found []string
			found, result = s.cache.many(ctx, wanted)
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
		}
		if stretches(buckets) > maxStretches {
			clear(buckets) // Redis has lost keys here and there: one query is cheaper than many
		}
	}
	for i := 0; i < n; {
		if buckets[i] != nil {
			i++
			continue
		}
		// Buckets for the cache and others are counted apart, so that all who ask share the first.
		j := i
		for j < n && buckets[j] == nil && (keys[i] == "") == (keys[j] == "") {
			j++
		}
		part := *q
		part.from, part.to = max(q.from, first+int64(i)*q.interval), min(q.to, first+int64(j)*q.interval)
		if err := s.tally(ctx, &part, buckets[i:j], keys[i:j]); err != nil {
			return nil, result, err
		}
		i = j
	}
	return renderHistogram(q, first, buckets), result, nil
}

// stretches counts the runs of buckets that are not there.
func stretches(buckets []*bucket) (n int) {
	for i, b := range buckets {
		if b == nil && (i == 0 || buckets[i-1] != nil) {
			n++
		}
	}
	return n
}

// tally counts the buckets of one stretch, and puts them into the cache where they have keys.
func (s *server) tally(ctx context.Context, q *search, into []*bucket, keys []string) error {
	compute := func(ctx context.Context) ([]*bucket, error) {
		found, err := s.store.buckets(ctx, q)
		if err != nil {
			return nil, err
		}
		first := floor(q.from, q.interval)
		all := make([]*bucket, len(into))
		for i := range all {
			if all[i] = found[first+int64(i)*q.interval]; all[i] == nil {
				all[i] = new(bucket)
			}
		}
		if keys[0] != "" {
			s.cache.setMany(ctx, keys, all)
		}
		return all, nil
	}
	if keys[0] == "" {
		all, err := compute(ctx)
		copy(into, all)
		return err
	}
	// All of them: what changed late in an hour between the ends is in the keys of that hour alone.
	v, err := s.cache.share(ctx, strings.Join(keys, " "), func(ctx context.Context) (any, error) { return compute(ctx) })
	if err == nil {
		copy(into, v.([]*bucket))
	}
	return err
}

func renderHistogram(q *search, first int64, buckets []*bucket) []byte {
	top := topNames(buckets)
	out := append([]byte(`{"interval":"`), intervalText(q.interval)...)
	out = append(out, `","buckets":[`...)
	for i, b := range buckets {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"start":"`...)
		// A bucket that begins before the year 0 has no time in RFC 3339.
		out = time.UnixMilli(max(earliest, first+int64(i)*q.interval)).UTC().AppendFormat(out, rfc3339)
		out = append(out, `","count":`...)
		out = strconv.AppendInt(out, b.Count, 10)
		if q.by != nil {
			out = append(out, `,"groups":{`...)
			out = appendGroups(out, b, top)
			out = append(out, '}')
		}
		out = append(out, '}')
	}
	return append(out, "]}\n"...)
}

// topNames returns the largest groups over all buckets, the largest first.
func topNames(buckets []*bucket) []string {
	totals := make(map[string]int64)
	for _, b := range buckets {
		for _, g := range b.Groups {
			totals[g.Name] += g.Count
		}
	}
	names := make([]string, 0, len(totals))
	for name := range totals {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if totals[a] != totals[b] {
			return int(max(-1, min(1, totals[b]-totals[a])))
		}
		return strings.Compare(a, b)
	})
	return names[:min(len(names), topGroups)]
}

// appendGroups adds the members of a bucket's groups. A value that is called as the rest or the missing are counts
// with those: names stay unique.
func appendGroups(out []byte, b *bucket, top []string) []byte {
	counts := map[string]int64{noGroup: b.None}
	rest := b.Count - b.None
	for _, g := range b.Groups {
		if slices.Contains(top, g.Name) {
			counts[g.Name] += g.Count
			rest -= g.Count
		}
	}
	counts[otherGroup] += rest
	names := slices.Clone(top)
	for _, name := range []string{otherGroup, noGroup} {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	comma := false
	for _, name := range names {
		if counts[name] == 0 {
			continue
		}
		if comma {
			out = append(out, ',')
		}
		comma = true
		out = append(out, jsonString(name)...)
		out = append(out, ':')
		out = strconv.AppendInt(out, counts[name], 10)
	}
	return out
}
