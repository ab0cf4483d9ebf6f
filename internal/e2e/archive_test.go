package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestRecordsLiveOnInABucket has a worker copy records of last week to a bucket of S3 and drop their partition. The query service answers from the
// bucket. While it is away, searches that need it say so, and new records are stored. Then all is back, verified, and restored.
func TestRecordsLiveOnInABucket(t *testing.T) {
	s3 := testenv.StartS3(t)
	proxy := testenv.StartFaultyProxy(t, s3.Addr)
	b := testenv.Broker(t, 2)
	database := testenv.Schema(t)
	db := testenv.Connect(t, database)
	ch := testenv.Channel(t, b)
	if err := broker.NewTopology(b).Declare(ch); err != nil {
		t.Fatal(err)
	}
	queue := broker.NewTopology(b).Queue(0)
	send := func(base uuid.UUID, first, records int) {
		t.Helper()
		var body []byte
		for i := range records {
			body = fmt.Appendf(body, "{\"n\":%d,\"service\":\"checkout\"}\n", first+i)
		}
		if err := ch.Publish(broker.DefaultExchange, queue, true, false, amqp.Publishing{
			ContentType: frame.ContentType, Type: frame.Type, DeliveryMode: amqp.Persistent, Body: body,
			Headers: frame.Headers([]frame.Segment{{Base: base, Records: records}}),
		}); err != nil {
			t.Fatal(err)
		}
	}
	var log testenv.Output
	work := func() (stop func()) {
		t.Helper()
		settings := map[string]string{"POSTGRES_URL": string(database), "PARTITION_INTERVAL": "24h", "RETENTION": "48h"}
		for _, pair := range s3.Env(proxy.Addr) {
			name, value, _ := strings.Cut(pair, "=")
			settings[name] = value
		}
		_, stop = RunWorker(t, b, slog.New(slog.NewTextHandler(&log, nil)), settings)
		return stop
	}
	env := slices.Concat([]string{"POSTGRES_URL=" + string(database)}, s3.Env(proxy.Addr))
	run := func(code int, args ...string) string {
		t.Helper()
		p := testenv.StartMillrace(t, t.TempDir(), env, args...)
		<-p.Done
		if got := p.ProcessState.ExitCode(); got != code {
			t.Fatalf("%v: exit status %d, want %d: %s", args, got, code, p.Out)
		}
		return p.Out.String()
	}

	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -8)
	old := frame.BaseAt(day.Add(9 * time.Hour))
	const rows = "SELECT count(*) FROM logs"
	stop := work()
	send(old, 0, 200)
	testenv.AwaitCount(t, db, 200, rows)
	stop() // a worker looks for what is to be copied and dropped when it starts, and then once a minute
	stop = work()
	testenv.AwaitCount(t, db, 1, "SELECT count(*) FROM archive_files WHERE state = 'published'")
	stop()
	stop = work()
	testenv.AwaitCount(t, db, 0, rows)

	var at string
	var services []*testenv.Process
	serve := func() {
		t.Helper()
		at = testenv.FreeAddress(t)
		services = append(services, testenv.StartMillrace(t, t.TempDir(), append(slices.Clone(env), "QUERY_ADDR="+at), "query"))
		testenv.AwaitReady(t, at)
	}
	serve()
	count := func() (status, n int, text string) {
		t.Helper()
		window := url.Values{"from": {day.Format(time.RFC3339)}, "to": {day.AddDate(0, 0, 1).Format(time.RFC3339)}, "q": {"service:checkout"}}
		resp, err := http.Get("http://" + at + "/logs/count?" + window.Encode())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Count int }
		_ = json.Unmarshal(body, &answer) // a refusal has no count
		return resp.StatusCode, answer.Count, string(body)
	}
	if status, n, text := count(); status != http.StatusOK || n != 200 {
		t.Errorf("from the bucket: got %d, %s, want 200 rows", status, text)
	}

	proxy.SpoilAll(testenv.Cuts)
	if status, n, text := count(); status != http.StatusOK || n != 200 {
		t.Errorf("what was read is kept: got %d, %s, want 200 rows", status, text)
	}
	serve()
	if status, _, text := count(); status != http.StatusServiceUnavailable || !strings.Contains(text, "the range "+day.Format(time.RFC3339)) {
		t.Errorf("while the bucket is away: got %d, %s, want 503 with the range", status, text)
	}
	testenv.Exec(t, db, "DELETE FROM ledger") // as it is a week later
	send(old, 0, 200)                         // again: its acknowledgement was lost
	send(frame.NewBase(), 200, 50)
	testenv.AwaitCount(t, db, 50, rows)
	testenv.AwaitCount(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'no_archive'")
	if got := run(1, "archive", "verify"); !strings.Contains(got, "has been away since") {
		t.Errorf("verify while the bucket is away: %s", got)
	}

	proxy.SpoilAll(testenv.NoFault)
	run(0, "dead", "replay")
	testenv.AwaitCount(t, db, 0, "SELECT count(*) FROM dead_letters")
	testenv.AwaitCount(t, db, 50, rows) // the old ones are in the bucket, once
	testenv.Eventually(t, 10*time.Second, "the bucket is back", func() bool {
		status, n, _ := count()
		return status == http.StatusOK && n == 200
	})
	if got := run(0, "archive", "ls"); !strings.Contains(got, day.Format(time.RFC3339)) || !strings.Contains(got, "none") {
		t.Errorf("ls: %s", got)
	}
	if got := run(0, "archive", "verify", day.Format(time.DateOnly)); !strings.Contains(got, "1 files, 0 damaged or missing; 200 rows") {
		t.Errorf("verify: %s", got)
	}
	if got := run(0, "archive", "restore", day.Format(time.DateOnly)); !strings.Contains(got, "200 rows restored") {
		t.Errorf("restore: %s", got)
	}
	testenv.AwaitCount(t, db, 250, rows)
	if status, n, text := count(); status != http.StatusOK || n != 200 {
		t.Errorf("after the restore: got %d, %s, want 200 rows", status, text)
	}
	stop()
	for name, text := range map[string]string{"worker": log.String(), "query service": services[0].Out.String() + services[1].Out.String(), "manifest": run(0, "archive", "manifest")} {
		if strings.Contains(text, s3.Secret) {
			t.Errorf("the %s tells the secret: %s", name, text)
		}
	}
}
