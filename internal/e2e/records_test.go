package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestEveryFormIsStoredAsItWasSent posts records in every form that a batch may have, and compares what PostgreSQL holds with
// what was sent.
func TestEveryFormIsStoredAsItWasSent(t *testing.T) {
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	for _, name := range []string{"api", "worker"} {
		defer testenv.StartMillrace(t, t.TempDir(), env, name).Stop(t)
	}
	testenv.Eventually(t, 20*time.Second, "the API is ready", func() bool {
		resp, err := http.Get("http://" + apiAddr + "/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	var records []string
	for i := range 5000 {
		records = append(records, fmt.Sprintf(`{"n":%d,"level":%q,"message":"caf\u00e9 \"%d\" ü","nested":{"list":[1,2.50,-3e-7,null,true],"empty":{}},"big":12345678901234567890}`,
			i, []string{"info", "warn", "error"}[i%3], i*7))
	}
	forms := map[string]string{
		"NDJSON":     strings.Join(records, "\n"),
		"array":      "[" + strings.Join(records, ",") + "]",
		"many lines": strings.ReplaceAll(strings.Join(records, "\n"), `,"`, ",\n\t\""),
	}
	for name, body := range forms {
		if _, err := conn.Exec(context.Background(), "TRUNCATE logs"); err != nil {
			t.Fatal(err)
		}
		status, answer := testenv.Post(t, "http://"+apiAddr+"/log/batch", []byte(body))
		if status != http.StatusAccepted || answer["accepted"] != float64(len(records)) {
			t.Fatalf("%s: got %d %v", name, status, answer)
		}
		testenv.Eventually(t, 20*time.Second, name+": all are stored, each as it was sent", func() bool {
			var equal, all int
			err := conn.QueryRow(context.Background(), `
				SELECT count(*) FILTER (WHERE l.data = s.data), count(*)
				FROM logs l LEFT JOIN (SELECT r::jsonb AS data, (r::jsonb)->>'n' AS n FROM unnest($1::text[]) r) s ON s.n = l.data->>'n'`,
				records).Scan(&equal, &all)
			if err != nil {
				t.Fatal(err)
			}
			return equal == len(records) && all == len(records)
		})
	}
}

// TestAKeyReusedLosesNothing posts several bodies under one Idempotency-Key. The first is stored, once. What is not stored of
// the others must be among the dead letters.
func TestAKeyReusedLosesNothing(t *testing.T) {
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	for _, name := range []string{"api", "worker"} {
		defer testenv.StartMillrace(t, t.TempDir(), env, name).Stop(t)
	}
	key := frame.NewBase().String()
	send := func(body string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, "the API takes it", func() bool {
			req, err := http.NewRequest(http.MethodPost, "http://"+apiAddr+"/log/batch", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Idempotency-Key", key)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return false // it is starting
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusAccepted
		})
	}
	count := func(query string, args ...any) (n int) {
		t.Helper()
		if err := conn.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := "{\"n\":1}\n{\"n\":2}\n"
	send(first)
	testenv.Eventually(t, 20*time.Second, "the first body is stored", func() bool { return count("SELECT count(*) FROM logs") == 2 })
	send(" " + strings.ReplaceAll(first, "\n", "\r\n")) // the same records
	others := []string{"{\"n\":3}\n{\"n\":4}\n", "{\"n\":5}\n", "{\"n\":1}\n{\"n\":2}\n{\"n\":6}\n"}
	for _, body := range others { // with as many records as the first, fewer, more
		send(body)
	}
	for _, body := range others {
		testenv.Eventually(t, 20*time.Second, "what was not stored is a dead letter, whole", func() bool {
			return count("SELECT count(*) FROM dead_letters WHERE reason = 'key_reused' AND payload = $1", []byte(body)) == 1
		})
	}
	if n := count("SELECT count(*) FROM dead_letters"); n != len(others) {
		t.Errorf("there are %d dead letters, want %d: none for the same records", n, len(others))
	}
	if all, distinct := count("SELECT count(*) FROM logs"), count("SELECT count(DISTINCT data->>'n') FROM logs WHERE data->>'n' IN ('1', '2')"); all != 2 || distinct != 2 {
		t.Errorf("%d records are stored, %d of them of the first body, want its 2", all, distinct)
	}
}
