package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/pg"
	"millrace/internal/testenv"
	"millrace/migrations"
	"millrace/worker"
)

// rolePassword is the password of the roles. Roles belong to the whole server, which is the tests' own.
const rolePassword = "of-the-tests"

// withRoles returns the URLs of a fresh database's owner, writer and reader, and a superuser's connection to it.
func withRoles(t *testing.T) (owner, writer, reader config.PostgresURL, admin *pgx.Conn) {
	t.Helper()
	db := testenv.Schema(t)
	admin = testenv.Connect(t, db)
	for range 2 { // it may be run again
		if err := migrations.Roles(context.Background(), admin); err != nil {
			t.Fatal(err)
		}
	}
	as := func(role string) config.PostgresURL {
		testenv.Exec(t, admin, fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", role, rolePassword))
		u, err := url.Parse(string(db))
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, rolePassword)
		return config.PostgresURL(u.String())
	}
	return as("millrace_owner"), as("millrace_writer"), as("millrace_reader"), admin
}

// refuses fails the test unless each statement lacks a privilege.
func refuses(t *testing.T, db config.PostgresURL, statements ...string) {
	t.Helper()
	conn := testenv.Connect(t, db)
	for _, sql := range statements {
		_, err := conn.Exec(context.Background(), sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s as %s: got %v, want a privilege to lack", sql, conn.Config().User, err)
		}
	}
}

func TestTheWritersRoleStoresAndCannotReadRecords(t *testing.T) {
	_, writer, _, admin := withRoles(t)
	b := testenv.Broker(t, 1)
	testenv.Exec(t, admin, "ALTER TABLE logs ADD CONSTRAINT no_bad_ones CHECK (data->>'level' <> 'bad')")
	addr := RunAPI(t, b, map[string]string{})
	_, stop := RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(writer)})

	send := func(body string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/log/batch", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if answer := testenv.ReadJSON(t, resp); resp.StatusCode != http.StatusAccepted {
			t.Fatalf("got %d %v, want 202", resp.StatusCode, answer)
		}
	}
	send(`{"level":"info"}{"level":"bad"}{"level":"info"}`)
	testenv.AwaitCount(t, admin, 2, "SELECT count(*) FROM logs")
	testenv.AwaitCount(t, admin, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'data'")

	// A late message comes twice, one is of a time that the ledger may have forgotten, and one is no JSON. At any hour of the
	// day, 36 and 156 hours ago are two days that have no partition.
	late := amqp.Publishing{Body: []byte(`{"level":"warn"}`), MessageId: frame.BaseAt(time.Now().Add(-36 * time.Hour)).String()}
	old := amqp.Publishing{Body: []byte(`{"level":"error"}`), MessageId: frame.BaseAt(time.Now().Add(-156 * time.Hour)).String()}
	ch := testenv.Channel(t, b)
	topology := broker.NewTopology(b)
	publish := func(messages ...amqp.Publishing) {
		t.Helper()
		for _, m := range messages {
			if err := ch.Publish(topology.Exchange(), topology.Queue(0), true, false, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(late, late, old, amqp.Publishing{Body: []byte(`{`)})
	testenv.AwaitCount(t, admin, 4, "SELECT count(*) FROM logs")
	testenv.AwaitCount(t, admin, 2, "SELECT count(*) FROM dead_letters")

	// The old message comes again after the ledger has forgotten it, and then another record under its message_id.
	testenv.Exec(t, admin, "DELETE FROM ledger")
	other := old
	other.Body = []byte(`{"level":"fatal"}`)
	publish(old, other)
	testenv.AwaitCount(t, admin, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'key_reused'")
	testenv.AwaitCount(t, admin, 4, "SELECT count(*) FROM logs")
	if n := testenv.Count(t, admin, "SELECT count(*) FROM late_changes WHERE hour < now() - interval '1 day'"); n != 2 {
		t.Errorf("%d hours of late records were noted, want 2", n)
	}
	for _, table := range []string{"logs", "ledger"} { // two ahead, today's, and two made on demand
		testenv.AwaitCount(t, admin, 1, "SELECT (count(*) >= 5 AND bool_and(pg_get_userbyid(c.relowner) = 'millrace_owner'))::int "+
			"FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = '"+table+"'::regclass")
	}
	stop()
	RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(writer), "AUTO_MIGRATE": "false"})
	send(`{"level":"info"}`)
	testenv.AwaitCount(t, admin, 5, "SELECT count(*) FROM logs")

	today := "logs_" + time.Now().UTC().Format("20060102")
	refuses(t, writer,
		"SELECT data FROM logs", "SELECT * FROM logs", "SELECT * FROM "+today, "COPY logs TO STDOUT",
		"SELECT payload FROM dead_letters", "UPDATE settings SET value = ''", "UPDATE logs SET data = '{}'", "DELETE FROM logs", "DELETE FROM ledger",
		"DELETE FROM dead_letters", "TRUNCATE logs", "DROP TABLE "+today, "INSERT INTO "+today+" SELECT gen_random_uuid(), now(), '{}'",
		"ALTER TABLE logs DETACH PARTITION "+today, "CREATE TABLE mine ()", "CREATE TEMPORARY TABLE mine ()",
		"INSERT INTO schema_migrations VALUES (99, 'x')", "SET ROLE millrace_owner")
	conn := testenv.Connect(t, writer)
	for _, call := range []string{"'dead_letters', 'dead_letters_20260101'", "'logs', 'ledger_20260101'", "'logs', 'evil'", "'pg_class', 'pg_class_20260101'"} {
		_, err := conn.Exec(context.Background(), "SELECT millrace_add_partition("+call+", '2001-01-01', '2001-01-02')")
		if err == nil || !strings.Contains(err.Error(), "millrace_add_partition:") {
			t.Errorf("millrace_add_partition(%s): got %v, want it refused", call, err)
		}
	}
}

func TestTheReadersRoleAnswersAllQueriesAndWritesNothing(t *testing.T) {
	_, writer, reader, admin := withRoles(t)
	b := testenv.Broker(t, 1)
	apiAddr := RunAPI(t, b, map[string]string{})
	RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(writer)})
	addr := "http://" + RunQuery(t, reader)
	testenv.AwaitReady(t, strings.TrimPrefix(addr, "http://"))

	// The tail begins first, so that it sees what comes.
	ctx, cancel := context.WithTimeout(context.Background(), testenv.LeastWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/logs/tail?q=level:error", nil)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Body.Close()
	status, answer := testenv.Post(t, "http://"+apiAddr+"/log", []byte(`{"level":"error","message":"seen"}`))
	if status != http.StatusAccepted {
		t.Fatalf("POST /log: got %d %v", status, answer)
	}
	event := ""
	for lines := bufio.NewScanner(tail.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			event = rest
		}
		if strings.Contains(lines.Text(), `"seen"`) {
			break
		}
	}
	if event == "" {
		t.Fatal("the tail ended without the record")
	}
	id := answer["id"].(string)
	for path, want := range map[string]string{
		"/logs?q=seen":                          id,
		"/logs/" + id:                           `"seen"`,
		"/logs/count":                           `{"count":1}`,
		"/logs/count?from=now-2d&to=now-1d":     `{"count":0}`,
		"/logs/histogram?by=level&from=now-2d":  `"error":1`,
		"/logs/histogram?from=now-2d&to=now-1d": `"buckets"`,
		"/logs/fields":                          `"message"`,
		"/logs/fields/level/values":             `"error"`,
		"/logs/export":                          id,
	} {
		resp, err := http.Get(addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) || strings.Contains(string(body), "internal error") {
			t.Errorf("GET %s: got %d %s (%v), want %s in it", path, resp.StatusCode, body, err, want)
		}
	}
	// A tail that goes on after an event reads the ledger and late_changes for what it missed.
	req.Header.Set("Last-Event-ID", event)
	resumed, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Body.Close()
	testenv.Post(t, "http://"+apiAddr+"/log", []byte(`{"level":"error","message":"seen later"}`))
	found := false
	for lines := bufio.NewScanner(resumed.Body); !found && lines.Scan(); {
		found = strings.Contains(lines.Text(), `"seen later"`)
	}
	if !found {
		t.Error("the tail that went on ended without the record")
	}

	statements := []string{
		"CREATE TABLE mine ()", "CREATE TEMPORARY TABLE mine ()", "SELECT payload FROM dead_letters", "SELECT error FROM dead_letters",
		"SELECT millrace_add_partition('logs', 'logs_20010101', '2001-01-01', '2001-01-02')", "SET ROLE millrace_owner", "SET ROLE millrace_writer",
	}
	for _, table := range []string{"logs", "ledger", "dead_letters", "late_changes", "late_times", "late_hours", "schema_migrations"} {
		column := map[string]string{"ledger": "records", "late_changes": "changes", "late_times": "changes", "late_hours": "from_at", "schema_migrations": "name", "logs": "data", "dead_letters": "error"}[table]
		statements = append(statements, "INSERT INTO "+table+" SELECT FROM generate_series(1, 1)", "UPDATE "+table+" SET "+column+" = NULL",
			"DELETE FROM "+table, "TRUNCATE "+table, "DO 'BEGIN LOCK TABLE "+table+"; END'", "DROP TABLE "+table)
	}
	refuses(t, reader, statements...)
	if n := testenv.Count(t, admin, "SELECT count(*) FROM logs"); n != 2 {
		t.Errorf("logs has %d rows, want 2", n)
	}
}

// keptLog keeps what is logged.
type keptLog struct{ testenv.Output }

func (l *keptLog) has(text string) bool { return strings.Contains(l.String(), text) }

func TestTheOwnersConnectionDropsAndIndexesBesideAWriters(t *testing.T) {
	owner, writer, _, admin := withRoles(t)
	b := testenv.Broker(t, 1)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	day := func(ago int) (name, from, to string) {
		at := today.AddDate(0, 0, -ago)
		return "logs_" + at.Format("20060102"), at.Format(time.RFC3339), at.AddDate(0, 0, 1).Format(time.RFC3339)
	}
	asWriter := testenv.Connect(t, writer)
	for _, ago := range []int{3, 10} {
		name, from, to := day(ago)
		testenv.Exec(t, asWriter, "SELECT millrace_add_partition('logs', $1, $2, $3)", name, from, to)
	}
	old, _, _ := day(10)
	closed, _, _ := day(3)

	// A worker with the writer's rights alone makes partitions ahead. It neither drops nor indexes these two.
	log := new(keptLog)
	RunWorker(t, b, slog.New(slog.NewTextHandler(log, nil)), map[string]string{"POSTGRES_URL": string(writer), "RETENTION": "168h"})
	testenv.Eventually(t, 20*time.Second, "the writer's keeper has had its round", func() bool { return log.has("does not own the tables") })
	testenv.AwaitCount(t, admin, 1, "SELECT (count(*) >= 5)::int FROM pg_inherits WHERE inhparent = 'logs'::regclass")

	RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{
		"POSTGRES_URL": string(writer), "POSTGRES_OWNER_URL": string(owner), "RETENTION": "168h"})
	testenv.AwaitCount(t, admin, 0, "SELECT count(*) FROM pg_class WHERE relname = '"+old+"'")
	testenv.AwaitCount(t, admin, 1, "SELECT count(*) FROM pg_indexes WHERE indexname = '"+closed+"_data_idx'")

	// The owner migrates, and the writer may use what a step makes.
	conn := testenv.Connect(t, owner)
	undone, err := migrations.Down(context.Background(), conn)
	if err != nil || undone.Version < 2 {
		t.Fatalf("Down: %v %v", undone, err)
	}
	if err := migrations.Pending(context.Background(), asWriter); err == nil {
		t.Error("Pending as the writer after Down: got nil")
	}
	if _, err := migrations.Up(context.Background(), asWriter); pg.CodeOf(err) != "42501" {
		t.Errorf("Up as the writer: got %v, want insufficient_privilege", err)
	}
	if _, err := migrations.Up(context.Background(), conn); err != nil {
		t.Fatal(err)
	}
	name, from, to := day(20)
	testenv.Exec(t, asWriter, "SELECT millrace_add_partition('logs', $1, $2, $3)", name, from, to)

	// Only the owner may replay dead letters.
	testenv.Exec(t, conn, "INSERT INTO dead_letters VALUES ($1, now(), 'data', '', '{\"a\":1}', $1, 'logs.0', '{}')", frame.BaseAt(time.Now()))
	if _, err := worker.ReplayDead(context.Background(), asWriter, nil); err != nil {
		t.Fatal(err)
	}
	testenv.AwaitCount(t, admin, 1, "SELECT count(*) FROM dead_letters")
	done, err := worker.ReplayDead(context.Background(), conn, nil)
	if err != nil || len(done) != 1 || done[0].Err != nil {
		t.Errorf("replay as the owner: got %v, %v", done, err)
	}
	testenv.AwaitCount(t, admin, 1, "SELECT count(*) FROM logs")
}
