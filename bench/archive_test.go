package bench

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

var archiveRows = flag.Int("archive", 0, "how many rows TestArchive copies and asks its questions of; 0: it is skipped")

// archiveQuestions are what TestArchive asks of the whole day. TRACE stands for the trace of a row.
var archiveQuestions = []struct {
	what, path string
	pairs      []string
}{
	{"count of a value, a fifth", "/logs/count", []string{"q", "level:error"}},
	{"count of numbers, half", "/logs/count", []string{"q", "http.status>=400"}},
	{"count of a phrase, one in a thousand", "/logs/count", []string{"q", `"connection reset by peer"`}},
	{"count of a rare word", "/logs/count", []string{"q", "zebra"}},
	{"count of a wildcard", "/logs/count", []string{"q", "http.path:/api/v1/orders/99*"}},
	{"count of text that looks like a part of an id", "/logs/count", []string{"q", `"c0ffee"`}},
	{"count of a bare number", "/logs/count", []string{"q", "404"}},
	{"histogram", "/logs/histogram", []string{"interval", "10m"}},
	{"histogram by a field", "/logs/histogram", []string{"interval", "10m", "by", "level"}},
	{"histogram by a field of a value a row", "/logs/histogram", []string{"interval", "1h", "by", "http.path"}},
	{"latest 100", "/logs", nil},
	{"latest 100 by arrival", "/logs", []string{"clock", "inserted_at"}},
	{"latest 100 of two values", "/logs", []string{"q", "level:error service:checkout"}},
	{"latest 100 of a phrase", "/logs", []string{"q", `"connection reset by peer"`}},
	{"one trace, by its field", "/logs", []string{"q", "trace_id:TRACE"}},
	{"one trace, as a word", "/logs", []string{"q", "TRACE"}},
	{"patterns of errors", "/logs/patterns", []string{"q", "level:error"}},
	{"figures of a phrase", "/logs/stats", []string{"q", `"connection reset by peer"`, "by", "service", "calc", "count,p95(duration_ms)"}},
	{"figures of all rows", "/logs/stats", []string{"by", "service", "calc", "count,p95(duration_ms)"}},
	{"export of all rows", "/logs/export", nil},
}

// TestArchive stores rows in closed partitions of hours, copies them to an archive, and asks two query services the same: one reads the table
// alone, the other one the archive. It prints a table. It is no test of speed: another machine has other figures. But the answers must be the same.
func TestArchive(t *testing.T) {
	if *archiveRows == 0 {
		t.Skip("make archive asks them")
	}
	ctx := context.Background()
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	to := time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)
	from := to.Add(-24 * time.Hour)
	set := partition.New(time.Hour)
	for at := from; at.Before(to); at = at.Add(time.Hour) {
		if err := set.EnsureLogs(ctx, conn, at); err != nil {
			t.Fatal(err)
		}
	}
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(insertDay, from, to, 0, *archiveRows)
	names, err := conn.Query(ctx, "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'logs'::regclass")
	if err != nil {
		t.Fatal(err)
	}
	partitions, err := pgx.CollectRows(names, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range partitions { // as the worker does with closed ones
		exec("CREATE INDEX ON " + pgx.Identifier{name}.Sanitize() + " USING gin (data jsonb_path_ops)")
	}
	exec("VACUUM ANALYZE logs")
	var trace string
	if err := conn.QueryRow(ctx, "SELECT md5($1::text)", fmt.Sprint(*archiveRows/3)).Scan(&trace); err != nil {
		t.Fatal(err)
	}

	folder := t.TempDir()
	link := func() pg.Link {
		own := testenv.Connect(t, db)
		if _, err := own.Exec(ctx, "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'"); err != nil {
			t.Fatal(err)
		}
		return pg.NewLink(func(context.Context) (*pgx.Conn, error) { return own, nil }, nil)
	}
	archiver := &partition.Archiver{
		Link: link(), Source: link(), Partitions: set, Store: archive.Folder(folder), After: 10 * time.Minute,
		Calm: func(context.Context) bool { return true }, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	began := time.Now()
	if err := archiver.Round(ctx); err != nil {
		t.Fatal(err)
	}
	copied := time.Since(began)
	var inFiles, inTable, files int64
	if err := conn.QueryRow(ctx, "SELECT sum(bytes)::bigint, count(*), (SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'logs'::regclass) FROM archive_files").Scan(&inFiles, &files, &inTable); err != nil {
		t.Fatal(err)
	}
	settings := []string{"QUERY_ADDR=127.0.0.1:0", "REDIS_URL=", "QUERY_TIMEOUT=10m", "POSTGRES_URL=" + string(db)}
	table := startServer(t, "query", "", settings...)
	archived := startServer(t, "query", "", append(settings, "ARCHIVE_URL="+(&url.URL{Scheme: "file", Path: folder}).String())...)
	ask := func(s *server, path string, pairs []string) (body string, took time.Duration) {
		t.Helper()
		v := url.Values{"from": {from.Format(time.RFC3339)}, "to": {to.Format(time.RFC3339)}}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], strings.ReplaceAll(pairs[i+1], "TRACE", trace))
		}
		began := time.Now()
		resp, err := http.Get("http://" + s.addr + path + "?" + v.Encode())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		read, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s?%s: %s, %v: %.200s", path, v.Encode(), resp.Status, err, read)
		}
		return string(read), time.Since(began)
	}
	fmt.Printf("\n%d rows in 24 closed hours: copied in %.1f s (%.0f rows/s) to %d files, %.1f bytes a row; %.0f in PostgreSQL.\n\n",
		*archiveRows, copied.Seconds(), float64(*archiveRows)/copied.Seconds(), files, float64(inFiles)/float64(*archiveRows), float64(inTable)/float64(*archiveRows))
	fmt.Print("| question | archive | PostgreSQL |\n| --- | --- | --- |\n")
	for _, question := range archiveQuestions {
		times := [2][]time.Duration{}
		var bodies [2]string
		for i, s := range []*server{archived, table} {
			ask(s, question.path, question.pairs) // fills caches as far as they go
			for len(times[i]) < 5 && (len(times[i]) == 0 || times[i][0] < 3*time.Second) {
				var took time.Duration
				bodies[i], took = ask(s, question.path, question.pairs)
				times[i] = append(times[i], took)
			}
			slices.Sort(times[i])
		}
		if question.path != "/logs/patterns" && bodies[0] != bodies[1] { // a pattern shows one of its messages
			t.Errorf("%s: the answers differ:\n%.500s\n%.500s", question.what, bodies[0], bodies[1])
		}
		median := func(i int) float64 { return ms(times[i][len(times[i])/2]) }
		fmt.Printf("| %s: `%s` | %.1f ms | %.1f ms |\n", question.what, strings.TrimSuffix(question.path+"?"+strings.Join(question.pairs, " "), "?"), median(0), median(1))
	}
	resident := func(s *server) float64 { return s.metrics(t)["process_resident_memory_bytes"] / (1 << 20) }
	fmt.Printf("\nResident afterwards: %.0f MiB with the archive, %.0f MiB without.\n", resident(archived), resident(table))
}
