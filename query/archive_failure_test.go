package query

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/config"
	"millrace/internal/testenv"
)

// fileOf returns the path of an hour's only file.
func (f *archiveFixture) fileOf(ago int) string {
	f.t.Helper()
	var name string
	if err := f.db.QueryRow(f.t.Context(), "SELECT name FROM archive_files WHERE state = 'published' AND from_at = $1", f.hour(ago)).Scan(&name); err != nil {
		f.t.Fatal(err)
	}
	return filepath.Join(f.folder, filepath.FromSlash(name))
}

// hours returns a request about the hours from one to another, both included.
func (f *archiveFixture) hours(path string, from, to int, pairs ...string) string {
	return with(path, append([]string{"from", f.hour(from).Format(timeFormat), "to", f.hour(to - 1).Format(timeFormat), "clock", "inserted_at"}, pairs...)...)
}

func TestAFileThatIsGoneCostsTheRequestsThatNeedItAlone(t *testing.T) {
	f := newArchiveFixture(t)
	for ago := 2; ago <= 5; ago++ {
		f.put(ago, 100, false)
	}
	f.archive()
	f.drop(5)
	s := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	for _, ago := range []int{4, 5} {
		path := f.fileOf(ago)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
	}
	middle := f.hour(4).Add(20 * time.Minute).Format(timeFormat)
	names := "the range " + rangeText(f.hour(4), f.hour(3))
	for _, path := range []string{
		f.hours("/logs/count", 4, 3), f.hours("/logs/histogram", 4, 3, "by", "level"), f.hours("/logs", 4, 4), f.hours("/logs/export", 4, 4), f.hours("/logs/patterns", 4, 4),
		f.hours("/logs/fields", 4, 4), f.hours("/logs/histogram", 4, 4, "budget", "5s", "interval", "1h"), f.hours("/logs/count", 4, 4, "budget", "5s", "q", "nosuch", "to", middle),
	} {
		if r := s.get(path); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, names) || r.header.Get("Retry-After") == "" {
			t.Errorf("GET %s: got %d, %s, want 503 with %q", path, r.status, r.body, names)
		}
	}
	var count struct{ Count int }
	for _, path := range []string{f.hours("/logs/count", 3, 2), f.hours("/logs/count", 3, 2, "budget", "5s")} {
		if s.ok(path, &count); count.Count != 200 {
			t.Errorf("GET %s: got %d rows, want 200", path, count.Count)
		}
	}
	if m := s.get("/metrics").body; strings.Contains(m, "millrace_query_archive_failures_total 0\n") {
		t.Error("the failures are not counted")
	}
	// The rows of the newer hours come, and what is missing is said.
	var page struct {
		logsPage
		Complete   *bool
		SearchedTo time.Time `json:"searched_to"`
	}
	if s.ok(f.hours("/logs", 4, 2, "budget", "20s", "limit", "1000"), &page); len(page.Logs) != 200 || page.Complete == nil || *page.Complete || page.SearchedTo.Before(f.hour(3).Add(-time.Hour)) {
		t.Errorf("a page within a budget: got %d rows, complete %v up to %v, want 200 up to %v", len(page.Logs), *page.Complete, page.SearchedTo, f.hour(3))
	}
	// What logs has is found by its id, and what it can't compute is computed from logs.
	if r := s.get("/logs/" + f.ids[250].String()); r.status != http.StatusOK {
		t.Errorf("a row of hour 4 by its id: got %d, %s", r.status, r.body)
	}
	if r := s.get(f.hours("/logs/stats", 4, 2)); r.status != http.StatusOK || !strings.Contains(r.body, "[300]") {
		t.Errorf("stats: got %d, %s", r.status, r.body)
	}
	gone := "the range " + rangeText(f.hour(5), f.hour(4))
	for _, path := range []string{"/logs/" + f.ids[350].String(), f.hours("/logs/stats", 5, 2)} {
		if r := s.get(path); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, gone) {
			t.Errorf("GET %s: got %d, %s, want 503 with %q", path, r.status, r.body, gone)
		}
	}
	if r := s.get(f.hours("/logs/sql", 5, 2)); !strings.Contains(r.body, "-- ") || !strings.Contains(r.body, rangeText(f.hour(5), f.hour(4))) {
		t.Errorf("the SQL does not tell of the rows that are in files alone: %s", r.body)
	}

	for _, ago := range []int{4, 5} {
		path := f.fileOf(ago)
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
	if s.ok(f.hours("/logs/count", 5, 2), &count); count.Count != 400 {
		t.Errorf("with the files back: got %d rows, want 400", count.Count)
	}
}

// TestADamagedFileNeverMakesAWrongAnswer changes bytes of a file, and cuts it.
func TestADamagedFileNeverMakesAWrongAnswer(t *testing.T) {
	f := newArchiveFixture(t)
	f.put(3, 300, false)
	f.archive()
	path := f.fileOf(3)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	questions := []string{
		f.hours("/logs", 3, 3, "limit", "1000"), f.hours("/logs/count", 3, 3, "q", "retries"), f.hours("/logs/histogram", 3, 3, "by", "service"), f.hours("/logs/export", 3, 3),
		f.hours("/logs/count", 3, 3, "q", "trace_id:a*"), f.hours("/logs/patterns", 3, 3),
	}
	want := make(map[string]string)
	s := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	for _, question := range questions {
		r := s.get(question)
		if r.status != http.StatusOK {
			t.Fatalf("GET %s: %d, %s", question, r.status, r.body)
		}
		want[question] = r.body
	}
	answered, refused := 0, 0
	for range 60 {
		damaged := bytes.Clone(whole)
		at := f.rng.IntN(len(whole))
		switch f.rng.IntN(4) {
		case 0:
			damaged = damaged[:at]
		case 1:
			clear(damaged[at:min(at+1+f.rng.IntN(4000), len(damaged))])
		default:
			damaged[at] ^= byte(1 + f.rng.IntN(255))
		}
		// Each damage is met by a service that has not read the file.
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		store, err := newStore(Config{Postgres: f.url, Connections: 2, Timeout: 30 * time.Second, Archive: config.Archive{ArchiveURL: config.ArchiveURL(f.archiveURL())}})
		if err != nil {
			t.Fatal(err)
		}
		service := &server{store: store}
		question := questions[f.rng.IntN(len(questions))]
		body, err := service.answer(t.Context(), question)
		store.close()
		switch {
		case err == nil && normal(body) == normal(want[question]):
			answered++
		case err == nil:
			t.Errorf("byte %d of %d damaged, GET %s: got %.1000s, want %.1000s", at, len(whole), question, body, want[question])
		default:
			refused++
			if failed := service.failureOf(err); failed.status != http.StatusServiceUnavailable || !strings.Contains(failed.message, rangeText(f.hour(3), f.hour(2))) {
				t.Errorf("byte %d of %d damaged, GET %s: got %d %s (%v), want 503 that names the range", at, len(whole), question, failed.status, failed.message, err)
			}
		}
	}
	t.Logf("%d answers, %d refusals", answered, refused)
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

// answer returns the answer to a request for one of a few routes, without HTTP.
func (s *server) answer(ctx context.Context, path string) (string, error) {
	route, rawQuery, _ := strings.Cut(path, "?")
	now := time.Now()
	switch route {
	case "/logs/export":
		q, err := parseExport(rawQuery, now)
		if err != nil {
			return "", err
		}
		var out bytes.Buffer
		err = s.store.export(ctx, q, time.Minute, func(b []byte) error {
			out.Write(b)
			return nil
		})
		return out.String(), err
	case "/logs/patterns":
		q, err := parsePatterns(rawQuery, now)
		if err != nil {
			return "", err
		}
		body, err := s.store.patternsAnswer(ctx, q)
		return string(body), err
	}
	q, err := parseSearch(rawQuery, append(pageParameters, histogramParameters...), now)
	if err != nil {
		return "", err
	}
	var body []byte
	switch route {
	case "/logs":
		body, err = s.store.logsAnswer(ctx, q)
	case "/logs/count":
		body, err = s.store.countAnswer(ctx, q)
	case "/logs/histogram":
		s.cache = &cache{}
		body, _, err = s.histogramAnswer(ctx, q)
	default:
		err = fmt.Errorf("no such route: %s", route)
	}
	return string(body), err
}

// TestNoRowIsMissedOrSeenTwiceWhileRangesArePublishedAndLeave reads all rows over and over meanwhile.
func TestNoRowIsMissedOrSeenTwiceWhileRangesArePublishedAndLeave(t *testing.T) {
	f := newArchiveFixture(t)
	const hours, rows = 6, 120
	for ago := 1; ago <= hours; ago++ {
		f.put(ago, rows, false)
	}
	s := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL(), "REDIS_URL": string(testenv.Redis(t)), "QUERY_CONNECTIONS": "16"})
	want := hours * rows
	stop := make(chan struct{})
	var reading sync.WaitGroup
	window := []string{"from", f.hour(30).Format(timeFormat), "to", f.open.Add(48 * time.Hour).Format(timeFormat)}
	readers := []struct {
		path  string
		count func(body []byte) int
	}{
		{with("/logs/count", window...), func(body []byte) int {
			var a struct{ Count int }
			decode(t, body, &a)
			return a.Count
		}},
		{with("/logs/histogram", append(window, "interval", "1h", "by", "level")...), func(body []byte) (sum int) {
			var a struct{ Buckets []struct{ Count int } }
			decode(t, body, &a)
			for _, b := range a.Buckets {
				sum += b.Count
			}
			return sum
		}},
		{with("/logs/export", window...), func(body []byte) int { return bytes.Count(body, []byte("\n")) - repeated(body) }},
		{with("/logs", append(window, "limit", "1000", "order", "asc")...), func(body []byte) int {
			var a logsPage
			decode(t, body, &a)
			return len(a.Logs)
		}},
	}
	asked := make([]int, len(readers))
	for i, reader := range readers {
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := s.do(context.Background(), "GET", reader.path)
				if err != nil || r.status != http.StatusOK {
					t.Errorf("GET %s: %v, %d %s", reader.path, err, r.status, r.body)
					return
				}
				if n := reader.count([]byte(r.body)); n != want {
					t.Errorf("GET %s: %d rows, want %d", reader.path, n, want)
					return
				}
				asked[i]++
			}
		})
	}
	keeper := testenv.Connect(t, f.url)
	for ago := hours; ago >= 1; ago-- {
		f.archive() // the first time it copies all, and then what has changed
		f.exec("INSERT INTO late_changes (hour) VALUES ($1) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1", f.hour(max(1, ago-1)))
		if ago > hours-3 {
			f.leaveAndDetach(keeper, ago)
		}
	}
	close(stop)
	reading.Wait()
	t.Logf("asked %v times", asked)
	for i, n := range asked {
		if n == 0 {
			t.Errorf("reader %d has read nothing", i)
		}
	}
}

// decode decodes an answer.
func decode(t *testing.T, body []byte, into any) {
	if err := json.Unmarshal(body, into); err != nil {
		t.Errorf("%v in %.300s", err, body)
	}
}

// repeated returns how many lines of an export begin with an id that another line has.
func repeated(body []byte) (n int) {
	ids := make(map[string]bool)
	for line := range bytes.Lines(body) {
		id := string(line[:len(`{"id":"01890a5d-ac96-774b-bcce-b302099a8057"`)])
		if ids[id] {
			n++
		}
		ids[id] = true
	}
	return n
}

// leaveAndDetach has an hour leave the table as the keeper does it: it waits for the snapshots that don't know of it.
func (f *archiveFixture) leaveAndDetach(keeper *pgx.Conn, ago int) {
	f.t.Helper()
	var name, xid string
	ctx := f.t.Context()
	if err := keeper.QueryRow(ctx, "SELECT tableoid::regclass::text FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 LIMIT 1", f.hour(ago), f.hour(ago-1)).Scan(&name); err != nil {
		f.t.Fatal(err)
	}
	if err := keeper.QueryRow(ctx, "UPDATE archive_ranges SET files_only = true WHERE from_at = $1 RETURNING pg_current_xact_id()::text", f.hour(ago)).Scan(&xid); err != nil {
		f.t.Fatal(err)
	}
	for {
		var old int
		if err := keeper.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin::text::bigint <= $1::text::bigint % (1::bigint << 32)", xid).Scan(&old); err != nil {
			f.t.Fatal(err)
		}
		if old == 0 {
			break
		}
	}
	testenv.Exec(f.t, keeper, "ALTER TABLE logs DETACH PARTITION "+name+" CONCURRENTLY")
	if _, err := keeper.Exec(ctx, "BEGIN; DROP TABLE "+name+"; INSERT INTO late_changes (hour) VALUES ('"+f.hour(ago).Format(time.RFC3339)+"') ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1;"+
		"UPDATE archive_ranges SET changes = changes + 1 WHERE from_at = '"+f.hour(ago).Format(time.RFC3339)+"'; COMMIT"); err != nil {
		f.t.Fatal(err)
	}
	f.made[f.db][ago] = false
}

// TestASearchOpensTheFilesOfItsWindowAlone also holds that the ends of files are kept within a bound.
func TestASearchOpensTheFilesOfItsWindowAlone(t *testing.T) {
	f := newArchiveFixture(t)
	for ago := 2; ago <= 6; ago++ {
		f.put(ago, 50, false)
	}
	f.exec("UPDATE logs SET time = inserted_at - interval '3 s'") // of no hour but its own, nearly
	f.exec("DELETE FROM logs WHERE inserted_at - date_trunc('hour', inserted_at) < interval '3 s'")
	f.archive()
	store, err := newStore(Config{Postgres: config.PostgresURL(f.url), Connections: 2, Timeout: 30 * time.Second, Archive: config.Archive{ArchiveURL: config.ArchiveURL(f.archiveURL())}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.close()
	counted := &countingStore{Store: store.files.store}
	store.files.store = counted
	for _, clock := range []clock{byTime, byArrival} {
		for ago := 6; ago >= 2; ago-- {
			counted.opened = nil
			q := &search{from: f.hour(ago).UnixMilli(), to: f.hour(ago - 1).UnixMilli(), clock: clock}
			for range 2 { // the second time the file is open
				if n, err := store.countRows(t.Context(), q); err != nil || n == 0 {
					t.Fatalf("%d rows, %v", n, err)
				}
			}
			if most := 1; clock == byTime && len(counted.opened) != most || len(counted.opened) > most {
				t.Errorf("%s, hour %d: opened %v, want its file", clock, ago, counted.opened)
			}
			if len(counted.opened) == 1 && !strings.HasSuffix(f.fileOf(ago), filepath.FromSlash(counted.opened[0])) {
				t.Errorf("%s, hour %d: opened %v, want its file", clock, ago, counted.opened)
			}
		}
	}
	if len(store.files.open) != 5 {
		t.Errorf("%d files are open, want 5", len(store.files.open))
	}
	store.files.most = 1 // less than any file takes
	if n, err := store.countRows(t.Context(), &search{from: f.hour(6).UnixMilli(), to: f.hour(1).UnixMilli(), clock: byTime}); err != nil || n == 0 {
		t.Errorf("%d rows, %v", n, err)
	}
	if len(store.files.open) != 0 || store.files.bytes != 0 || counted.closed != 5 {
		t.Errorf("%d files are open with %d bytes, %d were closed; want none, 0 and 5", len(store.files.open), store.files.bytes, counted.closed)
	}
}

// countingStore notes which files are opened, and how many are closed.
type countingStore struct {
	archive.Store
	mu     sync.Mutex
	opened []string
	closed int
}

func (s *countingStore) Open(ctx context.Context, name string, size int64) (archive.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, name)
	o, err := s.Store.Open(ctx, name, size)
	return &countingObject{o, s}, err
}

type countingObject struct {
	archive.Object
	store *countingStore
}

func (o *countingObject) Close() error {
	o.store.mu.Lock()
	defer o.store.mu.Unlock()
	o.store.closed++
	return o.Object.Close()
}

// TestPagesEndByTheirBytesWhereverTheRowsAre has records of which six fill a page.
func TestPagesEndByTheirBytesWhereverTheRowsAre(t *testing.T) {
	f := newArchiveFixture(t)
	for ago := range 4 {
		f.put(ago, 6, false)
	}
	for _, conn := range []*pgx.Conn{f.db, f.plainDB} {
		testenv.Exec(t, conn, "UPDATE logs SET data = jsonb_build_object('n', id, 'long', repeat(md5(id::text), 22000))")
	}
	f.archive()
	f.drop(3)
	plain := start(t, map[string]string{"POSTGRES_URL": string(f.plainURL)})
	archived := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	for _, order := range []string{"asc", "desc"} {
		for _, clock := range []string{"time", "inserted_at"} {
			for _, limit := range []string{"1000", "6"} {
				f.compare("large records", with("/logs", "from", f.hour(9).Format(timeFormat), "to", f.hour(-3).Format(timeFormat), "order", order, "clock", clock, "limit", limit), plain, archived)
			}
		}
	}
}

// TestRowsOfOneTimeAndIDComeOnceEach has rows of a foreign writer: some share their id and their time and came at different times, so that they
// lie in several files and in the table.
func TestRowsOfOneTimeAndIDComeOnceEach(t *testing.T) {
	f := newArchiveFixture(t)
	when := f.hour(3).Add(time.Minute)
	id := idAt(when, 1)
	want := make(map[string]bool)
	insert := func(ago, n int) {
		data := fmt.Sprintf(`{"foreign": %d}`, 10*ago+n)
		want[data] = true
		f.exec("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4)", [16]byte(id), f.hour(ago).Add(time.Duration(n)*time.Second), when, data)
		f.exec("INSERT INTO late_hours VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", when.Truncate(time.Hour), f.hour(ago), f.hour(ago-1))
	}
	for ago := range 7 {
		f.put(ago, 3, false)
		insert(ago, 0)
	}
	f.archive()
	f.drop(4)
	f.unpublish(2)
	for n := 1; n < 4; n++ {
		insert(0, n)
		insert(2, n)
	}
	s := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	for _, order := range []string{"asc", "desc"} {
		for _, limit := range []string{"1", "2", "3", "7", "100"} {
			got := make(map[string]bool)
			n := 0
			path := with("/logs", "q", "foreign:*", "from", f.hour(9).Format(timeFormat), "to", f.hour(-2).Format(timeFormat), "order", order, "limit", limit)
			for cursor := ""; n <= len(want); {
				var page logsPage
				s.ok(path+"&cursor="+cursor, &page)
				for _, l := range page.Logs {
					got[string(l.Data)] = true
					n++
				}
				if page.Next == nil {
					break
				}
				cursor = *page.Next
			}
			if n != len(want) || len(got) != len(want) {
				t.Errorf("%s, pages of %s: got %d rows, %d of them once, want %d", order, limit, n, len(got), len(want))
			}
		}
	}
}

func TestAnArchiveNeedsItsTables(t *testing.T) {
	f := newArchiveFixture(t)
	s := start(t, map[string]string{"POSTGRES_URL": string(f.url), "ARCHIVE_URL": f.archiveURL()})
	f.exec("DROP TABLE archive_files, archive_ranges, archive_fields")
	if r := s.get("/logs/count"); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, errOldSchema.Error()) {
		t.Errorf("got %d, %s, want 503 with %q", r.status, r.body, errOldSchema)
	}
}
