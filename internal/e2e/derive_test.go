package e2e

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestWhatAShipperSendsAgainIsStoredOnce sends bodies without a key twice, as a shipper does that got no answer: to two APIs, since
// a balancer may pick another one. Those whose records have a time are stored once, the others each time.
func TestWhatAShipperSendsAgainIsStoredOnce(t *testing.T) {
	b, db := testenv.Broker(t, 2), testenv.Schema(t)
	apis := []string{RunAPI(t, b, map[string]string{}), RunAPI(t, b, map[string]string{})}
	workerAddr, _ := RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(db)})
	testenv.AwaitReady(t, workerAddr)
	send := func(api, query, body string) {
		t.Helper()
		resp, err := http.Post("http://"+api+"/log/batch?"+query, "application/x-ndjson", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("got %s", resp.Status)
		}
	}
	var timed, timeless strings.Builder
	const records = 2000 // several segments
	for i := range records {
		fmt.Fprintf(&timed, "{\"n\":%d,\"time\":%q,\"text\":%q}\n", i, time.Now().Add(-time.Minute).Format(time.RFC3339Nano), strings.Repeat("x", 100))
		fmt.Fprintf(&timeless, "{\"n\":%d,\"text\":\"alive\"}\n", i)
	}
	for _, api := range []string{apis[0], apis[1], apis[0]} {
		send(api, "dedupe=body", timed.String())
		send(api, "dedupe=body", timeless.String())
	}
	send(apis[0], "", timed.String()) // nobody asks for a key
	conn := testenv.Connect(t, db)
	testenv.AwaitCount(t, conn, 2*records+3*records, `SELECT count(*) FROM logs`)
	if n := testenv.Count(t, conn, `SELECT count(*) FROM logs WHERE data ? 'time'`); n != 2*records {
		t.Errorf("%d rows of records with a time, want %d", n, 2*records)
	}
	if n := testenv.Count(t, conn, `SELECT count(*) FROM dead_letters`); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}
