package query

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/archive/archivetest"
	"millrace/internal/config"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// archiveFixture has the same rows in two databases. Those of one are copied to an archive, and some leave its table.
type archiveFixture struct {
	t        testing.TB
	rng      *rand.Rand
	maker    *archivetest.Rows
	folder   string
	store    archive.Store
	url      config.PostgresURL
	plainURL config.PostgresURL
	db       *pgx.Conn // of the archive
	plainDB  *pgx.Conn
	made     map[*pgx.Conn]map[int]bool // the hours that have a partition

	open time.Time // when the open hour begins
	ids  []uuid.UUID
	n    int

	answered map[int]int // answers by status
	found    int         // that have rows, or count some
}

func newArchiveFixture(t testing.TB) *archiveFixture {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MILLRACE_TEST_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("seed %d", seed)
	f := &archiveFixture{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), maker: archivetest.NewRows(seed), folder: t.TempDir(), url: testenv.Schema(t), plainURL: testenv.Schema(t),
		open: time.Now().UTC().Truncate(time.Hour), answered: make(map[int]int),
	}
	f.store = archive.Folder(f.folder)
	f.db, f.plainDB = testenv.Connect(t, f.url), testenv.Connect(t, f.plainURL)
	f.made = map[*pgx.Conn]map[int]bool{f.db: {}, f.plainDB: {}}
	return f
}

// hour returns the beginning of an hour that lies so many before the open one.
func (f *archiveFixture) hour(ago int) time.Time {
	return f.open.Add(-time.Duration(ago) * time.Hour)
}

// archiveURL returns the setting ARCHIVE_URL.
func (f *archiveFixture) archiveURL() string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(f.folder)}).String()
}

func (f *archiveFixture) exec(sql string, args ...any) {
	f.t.Helper()
	testenv.Exec(f.t, f.db, sql, args...)
}

// put stores rows in an hour in both databases. Late rows are noted, as the worker does it.
func (f *archiveFixture) put(ago, rows int, late bool) {
	f.t.Helper()
	hour := f.hour(ago)
	room := min(time.Hour, time.Since(hour)-2*time.Minute)
	delays := []time.Duration{0, time.Millisecond, time.Second, 10*time.Second - time.Microsecond, 10 * time.Second, 11 * time.Second, 40 * time.Minute, time.Hour, 90 * time.Minute, 5 * time.Hour, -time.Second, -30 * time.Minute, -2 * time.Hour}
	batches := map[*pgx.Conn]*pgx.Batch{f.db: {}, f.plainDB: {}}
	at := hour
	for range rows {
		if f.rng.IntN(3) > 0 { // several rows share a millisecond
			at = hour.Add(time.Duration(f.rng.Int64N(int64(room)))).Truncate(time.Millisecond)
		}
		f.n++
		id := idAt(at, f.n)
		f.ids = append(f.ids, id)
		when := time.Unix(0, 0)
		if f.rng.IntN(5) > 0 {
			when = at.Add(-delays[f.rng.IntN(len(delays))])
		}
		data := f.maker.Service(nil)
		if f.rng.IntN(3) == 0 {
			data = f.maker.Messy()
		}
		if f.rng.IntN(6) == 0 {
			data = f.odd(data)
		}
		for _, b := range batches {
			b.Queue("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4)", [16]byte(id), frame.Time(id), when, string(data))
			if when.Unix() != 0 && at.Sub(when).Abs() > eventtime.Near {
				b.Queue("INSERT INTO late_hours VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", when.Truncate(time.Hour), hour, hour.Add(time.Hour))
			}
			if late {
				eventTime := when
				if when.Unix() == 0 {
					eventTime = at
				}
				b.Queue("INSERT INTO late_times (hour) VALUES ($1) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_times.changes + 1", eventTime.Truncate(time.Hour))
			}
		}
	}
	for conn, b := range batches {
		if !f.made[conn][ago] {
			f.made[conn][ago] = true
			testenv.Exec(f.t, conn, "SELECT millrace_add_partition('logs', $1, $2, $3)", "logs_"+hour.Format("20060102_1504"), hour.Format(time.RFC3339), hour.Add(time.Hour).Format(time.RFC3339))
		}
		if late {
			b.Queue("INSERT INTO late_changes (hour) VALUES ($1) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1", hour)
		}
		if err := conn.SendBatch(f.t.Context(), b).Close(); err != nil {
			f.t.Fatal(err)
		}
	}
}

// archive publishes the closed hours that are in the table and whose copies are not up to date.
func (f *archiveFixture) archive() {
	f.t.Helper()
	for ago, is := range f.made[f.db] {
		var upToDate bool
		if err := f.db.QueryRow(f.t.Context(), `SELECT EXISTS (SELECT FROM archive_ranges WHERE from_at = $1 AND (files_only OR changes =
			(SELECT coalesce(sum(changes), 0) FROM late_changes WHERE hour > $1::timestamptz - interval '1 hour' AND hour < to_at OR hour = '-infinity')))`, f.hour(ago)).Scan(&upToDate); err != nil {
			f.t.Fatal(err)
		}
		if is && ago > 0 && !upToDate {
			archivetest.Publish(f.t, f.db, f.store, f.hour(ago), f.hour(ago-1), false)
		}
	}
}

// drop drops an hour's partition. The files have its rows.
func (f *archiveFixture) drop(ago int) {
	f.t.Helper()
	f.leave(ago)
	var name string
	if err := f.db.QueryRow(f.t.Context(), "SELECT tableoid::regclass::text FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 LIMIT 1", f.hour(ago), f.hour(ago-1)).Scan(&name); err != nil {
		f.t.Fatal(err)
	}
	f.exec("DROP TABLE " + name)
	f.made[f.db][ago] = false
	f.exec("INSERT INTO late_changes (hour) VALUES ($1) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1", f.hour(ago))
	f.exec("UPDATE archive_ranges SET changes = changes + 1 WHERE from_at = $1", f.hour(ago))
}

// leave notes that the rows of an hour are about to leave the table.
func (f *archiveFixture) leave(ago int) {
	f.exec("UPDATE archive_ranges SET files_only = true WHERE from_at = $1", f.hour(ago))
}

// unpublish takes the files of an hour back.
func (f *archiveFixture) unpublish(ago int) {
	f.exec("DELETE FROM archive_ranges WHERE from_at = $1", f.hour(ago))
	f.exec("UPDATE archive_files SET state = 'superseded' WHERE from_at = $1", f.hour(ago))
}

// archiveQueries are searches with all kinds of conditions. THEN stands for a time.
var archiveQueries = []string{
	"", "level:error", `"connection reset"`, "checkout", "-level:info http.status:>=400", "tags:blue", "labels:*", "duration_ms:unknown OR level:7", "nosuch:x",
	"http.path:*orders*", "duration_ms:>=100.5", "duration_ms:<1", "404", "true", "user*51", "message:/user:[0-9]5/", "-labels:*", "trace_id:a*", "level:(warn OR error) service:cart", "http:*",
	"time:>=THEN", "inserted_at:<THEN", "error:null", `host:"web-03"`,
}

// question returns a random request about a window. Its answer must not depend on where the rows are.
func (f *archiveFixture) question() string {
	rng := f.rng
	end := f.open.Add(time.Hour)
	at := func() time.Time {
		return end.Add(-time.Duration(rng.Int64N(int64(13 * time.Hour)))).Truncate(time.Millisecond)
	}
	from, to := at(), at()
	switch rng.IntN(4) {
	case 0:
		from, to = f.open.Add(-24*time.Hour), end
	case 1: // whole hours, so that caches are met again
		from, to = f.hour(1+rng.IntN(8)), f.hour(0)
	}
	if from.After(to) {
		from, to = to, from
	}
	// A time that counts from now would be another one for each service.
	q := strings.ReplaceAll(archiveQueries[rng.IntN(len(archiveQueries))], "THEN", at().Format(timeFormat))
	if rng.IntN(6) == 0 {
		q = "\"" + []string{"retries", "user:5", "pool after 2", "Reset", "api/v1"}[rng.IntN(5)] + "\""
	}
	params := []string{"q", q, "from", from.Format(timeFormat), "to", to.Format(timeFormat), "clock", []string{"time", "inserted_at"}[rng.IntN(2)]}
	if rng.IntN(4) == 0 {
		params = append(params, "budget", "60s")
	}
	by := []string{"level", "service", "http.status", "duration_ms", "tags", "labels", "http", "error", "nosuch", "message", "trace_id"}[rng.IntN(11)]
	switch rng.IntN(9) {
	case 0, 1:
		return with("/logs/count", params...)
	case 2:
		return with("/logs/histogram", append(params, "interval", []string{"auto", "5m", "1h", "7m", "1d"}[rng.IntN(5)])...)
	case 3, 4:
		return with("/logs/histogram", append(params, "interval", []string{"auto", "20m", "1h", "1d"}[rng.IntN(4)], "by", by)...)
	case 5:
		return with("/logs/patterns", append(params, "limit", "1000")...)
	case 6:
		params = slices.DeleteFunc(params, func(s string) bool { return s == "budget" || s == "60s" })
		return with("/logs/export", append(params, "order", []string{"asc", "desc"}[rng.IntN(2)], "limit", strconv.Itoa(1+rng.IntN(3000)))...)
	case 7:
		if len(f.ids) > 0 && rng.IntN(2) == 0 {
			id := f.ids[rng.IntN(len(f.ids))].String()
			if rng.IntN(2) == 0 {
				return "/logs/" + id
			}
			return with("/logs/"+id+"/context", "q", q, "before", strconv.Itoa(rng.IntN(40)), "after", strconv.Itoa(rng.IntN(40)), "clock", []string{"time", "inserted_at"}[rng.IntN(2)])
		}
		params = slices.DeleteFunc(params, func(s string) bool { return s == "budget" || s == "60s" })
		return with("/logs/stats", append(params, f.figures()...)...)
	}
	return with("/logs", append(params, "order", []string{"asc", "desc"}[rng.IntN(2)], "limit", strconv.Itoa(1+rng.IntN(400)))...)
}

// figures returns random parameters of stats.
func (f *archiveFixture) figures() []string {
	rng := f.rng
	field := func() string {
		return []string{"level", "service", "http.status", "duration_ms", "tags", "labels", "http", "http.path", "error", "nosuch", "message", "trace_id", "host", "timestamp", "odd", "odd.x", "tags.1"}[rng.IntN(17)]
	}
	calc := func() string {
		switch name := []string{"count", "count", "sum", "avg", "min", "max", "p", "p", "uniq", "first", "last", "rate", "share"}[rng.IntN(13)]; {
		case name == "rate", name == "count" && rng.IntN(2) == 0:
			return name
		case name == "share":
			return "share(" + archiveQueries[1+rng.IntN(20)] + ")"
		case name == "p":
			return fmt.Sprintf("p%g(%s)", float64(rng.IntN(1001))/10, field())
		default:
			return name + "(" + field() + ")"
		}
	}
	var calcs []string
	for range 1 + rng.IntN(5) {
		calcs = append(calcs, calc())
	}
	params := []string{"calc", strings.Join(calcs, ",")}
	var by []string
	for range rng.IntN(3) {
		by = append(by, field())
	}
	if by != nil {
		params = append(params, "by", strings.Join(by, ","))
	}
	if rng.IntN(2) == 0 {
		params = append(params, "order", []string{"", "-"}[rng.IntN(2)]+calcs[rng.IntN(len(calcs))])
	}
	if rng.IntN(2) == 0 {
		params = append(params, "limit", strconv.Itoa(1+rng.IntN(20)))
	}
	if rng.IntN(3) == 0 {
		params = append(params, "every", []string{"auto", "20m", "1h", "1d"}[rng.IntN(4)])
	}
	if rng.IntN(3) == 0 {
		params = append(params, "having", []string{"count>5", "count>=2,uniq(host)<9", "avg(duration_ms)>40", "first(level)=error", "max(odd)!=x", "p50(http.status)=300", "sum(odd)<=0"}[rng.IntN(7)])
	}
	return params
}

// odd adds an odd value to a record, or puts it in the place of another one.
func (f *archiveFixture) odd(record []byte) []byte {
	var v map[string]json.RawMessage
	if err := json.Unmarshal(record, &v); err != nil {
		f.t.Fatal(err)
	}
	long := strconv.Quote(strings.Repeat([]string{"x", "ÿ"}[f.rng.IntN(2)], 990+f.rng.IntN(20)))
	values := []string{
		`null`, `0`, `-0.0`, `1.50`, `"1.5"`, `"1e2"`, `"1e-3"`, `100`, `"x"`, `"X"`, `""`, `"é"`, `-12.25`, `123456789012345678901234567890.5`, `0.1234567`, `0.123456`, `1e-310`, `1e305`, `"-7"`, `"07"`,
		`true`, `[1, 2]`, `{"x": 1.25}`, `{"x": "2"}`, `"a\"b\n\u0001"`, `9007199254740993`, `33.3`, `"33.30"`, long, `{"y": ` + long + `}`,
	}
	v[[]string{"odd", "odd", "duration_ms", "level"}[f.rng.IntN(4)]] = json.RawMessage(values[f.rng.IntN(len(values))])
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

var (
	hintsMember  = regexp.MustCompile(`,"hints":\[.*?\]([,}])`)
	sampleMember = regexp.MustCompile(`"sample":"(?:[^"\\]|\\.)*"`)
)

// normal returns an answer without what may differ: hints, and which of a pattern's messages is shown.
func normal(body string) string {
	return sampleMember.ReplaceAllString(hintsMember.ReplaceAllString(body, "$1"), "")
}

// compare asks two services the same, page by page.
func (f *archiveFixture) compare(stage, path string, plain, archived *client) {
	f.t.Helper()
	for pages := 0; ; pages++ {
		want, got := plain.get(path), archived.get(path)
		f.answered[want.status]++
		if !strings.Contains(want.body, `"count":0`) && !strings.Contains(want.body, `"logs":[]`) {
			f.found++
		}
		if want.status != got.status || normal(want.body) != normal(got.body) {
			a, b := normal(got.body), normal(want.body)
			i := 0
			for i < min(len(a), len(b)) && a[i] == b[i] {
				i++
			}
			f.t.Fatalf("%s: GET %s, page %d (%s): got %d, want %d; from byte %d on %d bytes:\n%.2000s\nwant %d bytes:\n%.2000s", stage, path, pages, got.header.Get("X-Cache"), got.status, want.status,
				i, len(a), a[i:], len(b), b[i:])
		}
		var page struct{ Next *string }
		if !strings.HasPrefix(path, "/logs?") || json.Unmarshal([]byte(want.body), &page) != nil || page.Next == nil {
			return
		}
		u, err := url.Parse(path)
		if err != nil {
			f.t.Fatal(err)
		}
		v := u.Query()
		v.Set("cursor", *page.Next)
		path = "/logs?" + v.Encode()
	}
}

// TestStatsAreTheSameWhereverTheRowsAre compares tables of random figures: of rows in files, in the table, and in both.
func TestStatsAreTheSameWhereverTheRowsAre(t *testing.T) {
	f := newArchiveFixture(t)
	plain := start(t, map[string]string{"POSTGRES_URL": string(f.plainURL)})
	archived := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	for ago := range 6 {
		f.put(ago, 400, false)
	}
	f.archive()
	f.drop(3)
	f.put(4, 20, true) // so that this hour is in both
	compare := func(params ...string) {
		t.Helper()
		params = append([]string{"from", f.hour(5).Format(timeFormat), "to", f.open.Add(time.Hour).Format(timeFormat)}, params...)
		f.compare("stats", with("/logs/stats", params...), plain, archived)
	}
	for range 300 {
		params := append([]string{"q", []string{"", "", "level:error", `"connection reset"`, "nosuch:x", "odd:*"}[f.rng.IntN(6)], "clock", []string{"time", "inserted_at"}[f.rng.IntN(2)]}, f.figures()...)
		if f.rng.IntN(6) == 0 {
			params = append(params, "budget", "60s")
		}
		compare(params...)
	}
	t.Logf("answers by status %v", f.answered)
	if f.answered[http.StatusOK] < 290 {
		t.Error("few of the answers tell anything")
	}
}

// TestAnswersAreTheSameWhereverTheRowsAre compares a service that reads an archive with one that has all rows in its table, while ranges are published, get late
// rows, are published again, and leave the table.
func TestAnswersAreTheSameWhereverTheRowsAre(t *testing.T) {
	f := newArchiveFixture(t)
	plain := start(t, map[string]string{"POSTGRES_URL": string(f.plainURL)})
	uncached := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	cached := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL(), "REDIS_URL": string(testenv.Redis(t))})

	rows := 400
	var pool []string
	stage := func(name string, change func()) {
		t.Helper()
		change()
		for range 40 {
			path := f.question()
			pool = append(pool, path)
			f.compare(name, path, plain, uncached)
		}
		for range 30 {
			f.compare(name+", cached", pool[f.rng.IntN(len(pool))], plain, cached)
		}
	}
	stage("everything is in the table", func() {
		for ago := range 9 {
			f.put(ago, rows, false)
		}
		for _, conn := range []*pgx.Conn{f.db, f.plainDB} {
			testenv.Exec(t, conn, "ANALYZE logs")
		}
	})
	stage("closed hours are published", f.archive)
	if n := testenv.Count(t, f.db, "SELECT count(*) FROM archive_ranges"); n < 7 {
		t.Fatalf("%d ranges are published", n)
	}
	stage("late rows", func() { f.put(2, 20, true); f.put(3, 20, true) })
	stage("an hour is published again", func() {
		f.archive()
		f.put(2, 10, true)
	})
	stage("hours have left the table", func() { f.drop(4); f.drop(5) })
	stage("late rows of an hour that has left", func() { f.put(5, 15, true) })
	stage("an hour is about to leave and gets rows", func() { f.leave(6); f.put(6, 15, true) })
	stage("an hour is not published", func() { f.unpublish(7) })
	stage("late rows are in a further file", func() {
		archivetest.Publish(t, f.db, archive.Folder(f.folder), f.hour(5), f.hour(4), true)
		f.drop(5)
	})
	stage("everything is published again", f.archive)
	t.Logf("%d rows, %d questions, answers by status %v, %d with rows", f.n, len(pool), f.answered, f.found)
	if f.answered[http.StatusOK] < len(pool) || f.found < len(pool)/2 {
		t.Errorf("few of the answers tell anything")
	}
}
