package deploy

import (
	"bytes"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/broker"
	"millrace/internal/e2e"
	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// These tests show on real servers what deploy/OPERATIONS.md says of backups and of queues.

// sendKeyed posts one record under an Idempotency-Key, and fails the test unless it is accepted.
func sendKeyed(t *testing.T, addr, key, body string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/log", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if answer := testenv.ReadJSON(t, resp); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("got %d %v, want 202", resp.StatusCode, answer)
	}
}

// pgProgram returns the path of a program of PostgreSQL's, in the version of the private server.
func pgProgram(t *testing.T, name string) string {
	t.Helper()
	if dir := os.Getenv("MILLRACE_POSTGRES_BIN"); dir != "" {
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%v: restoring a dump is not tested", err)
	}
	return path
}

func TestARestoredDumpGoesOnWithTheQueueWithoutDoubles(t *testing.T) {
	dump, psql := pgProgram(t, "pg_dump"), pgProgram(t, "psql")
	db, b := testenv.Schema(t), testenv.Broker(t, 1)
	addr := e2e.RunAPI(t, b, map[string]string{})
	discard := slog.New(slog.DiscardHandler)
	_, stop := e2e.RunWorker(t, b, discard, map[string]string{"POSTGRES_URL": string(db)})
	var keys []uuid.UUID
	send := func(n int) {
		for range n {
			keys = append(keys, frame.NewBase())
			sendKeyed(t, addr, keys[len(keys)-1].String(), `{"n":`+strconv.Itoa(len(keys))+`}`)
		}
	}
	send(20)
	before := testenv.Connect(t, db)
	testenv.AwaitCount(t, before, 20, "SELECT count(*) FROM logs")
	stop()
	send(10) // the queue holds them while the database is moved

	text, err := exec.Command(dump, "--no-owner", "--no-privileges", string(db)).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	restored := testenv.Database(t)
	restore := exec.Command(psql, "-q", "-v", "ON_ERROR_STOP=1", string(restored))
	restore.Stdin = bytes.NewReader(text)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	for i := range 20 { // clients whose answer was lost, and redelivery, bring the same segments again
		sendKeyed(t, addr, keys[i].String(), `{"n":`+strconv.Itoa(i+1)+`}`)
	}
	e2e.RunWorker(t, b, discard, map[string]string{"POSTGRES_URL": string(restored), "WORKER_STREAMS": "1"})
	send(1)
	after := testenv.Connect(t, restored)
	testenv.AwaitCount(t, after, 1, "SELECT count(*) FROM logs WHERE id = '"+frame.BaseOfKey(keys[30]).String()+"'") // the last in the queue
	if rows, distinct := testenv.Count(t, after, "SELECT count(*) FROM logs"), testenv.Count(t, after, "SELECT count(DISTINCT id) FROM logs"); rows != 31 || distinct != 31 {
		t.Errorf("%d rows, %d ids; want 31", rows, distinct)
	}
	if n := testenv.Count(t, after, "SELECT count(*) FROM dead_letters"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestFramesInQueuesThatWorkersDoNotKnowWaitForThoseThatDo(t *testing.T) {
	db, b := testenv.Schema(t), testenv.Broker(t, 3)
	few := b
	few.Shards = 1
	discard := slog.New(slog.DiscardHandler)
	addr := e2e.RunAPI(t, b, map[string]string{})
	_, stop := e2e.RunWorker(t, few, discard, map[string]string{"POSTGRES_URL": string(db)})
	topology, ch := broker.NewTopology(b), testenv.Channel(t, b)
	waiting := func(i int) int {
		q, err := ch.QueueDeclarePassive(topology.Queue(i), true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages
	}
	sent := 0
	for deadline := time.Now().Add(testenv.LeastWait); waiting(1) == 0 || waiting(2) == 0; {
		sendKeyed(t, addr, frame.NewBase().String(), `{}`)
		sent++
		if time.Now().After(deadline) {
			t.Fatalf("after %d requests the queues hold %d and %d", sent, waiting(1), waiting(2))
		}
	}
	conn := testenv.Connect(t, db)
	if n := testenv.Count(t, conn, "SELECT count(*) FROM logs"); n >= sent {
		t.Errorf("%d of %d are stored, though nobody reads two of the queues", n, sent)
	}
	stop()
	e2e.RunWorker(t, b, discard, map[string]string{"POSTGRES_URL": string(db)})
	testenv.AwaitCount(t, conn, sent, "SELECT count(*) FROM logs")
}
