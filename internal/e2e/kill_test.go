package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestKilledProcessesLoseAndDoubleNothing kills the API and the worker again and again with SIGKILL while clients
// post batches under Idempotency-Keys and retry until they are acked, and counts what is stored.
func TestKilledProcessesLoseAndDoubleNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	db := testenv.Schema(t)
	conn := testenv.Connect(t, db)
	apiAddr := testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "API_ADDR=" + apiAddr, "WORKER_ADDR=127.0.0.1:0"}
	services := map[string]*testenv.Process{}
	for _, name := range []string{"api", "worker"} {
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}

	const clients, batch = 4, 100
	ctx, stop := context.WithCancel(context.Background())
	var posting sync.WaitGroup
	var mu sync.Mutex
	acked := make(map[string]bool) // "client/record"
	retries := 0
	for c := range clients {
		posting.Go(func() {
			for n := 0; ctx.Err() == nil; n += batch {
				var body bytes.Buffer
				var names []string
				for i := range batch {
					names = append(names, fmt.Sprintf("%d/%d", c, n+i))
					fmt.Fprintf(&body, `{"name":%q,"pad":%q}`+"\n", names[i], strings.Repeat("x", 700*(i%3))) // several segments
				}
				tries := postUntilAcked(t, "http://"+apiAddr+"/log/batch", body.Bytes())
				mu.Lock()
				retries += tries - 1
				for _, name := range names {
					acked[name] = true
				}
				mu.Unlock()
			}
		})
	}
	const kills = 12
	for i := range kills {
		name := []string{"api", "worker"}[i%2]
		time.Sleep(time.Duration(300+rand.IntN(900)) * time.Millisecond) // any moment is as good as another
		services[name].Signal(t, syscall.SIGKILL)
		<-services[name].Done
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}
	stop()
	posting.Wait()

	testenv.Eventually(t, time.Minute, fmt.Sprintf("the %d acked records are stored", len(acked)), func() bool {
		var n int
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM logs").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n >= len(acked)
	})
	rows, err := conn.Query(context.Background(), "SELECT data->>'name', count(*) FROM logs GROUP BY 1")
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var times int
	stored := 0
	if _, err := pgx.ForEachRow(rows, []any{&name, &times}, func() error {
		stored++
		if times != 1 || !acked[name] {
			t.Errorf("record %s is stored %d times, acked: %v", name, times, acked[name])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var dead int
	if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM dead_letters").Scan(&dead); err != nil {
		t.Fatal(err)
	}
	if stored != len(acked) || dead != 0 {
		t.Errorf("%d records are stored and %d are dead letters, want the %d acked and none", stored, dead, len(acked))
	}
	t.Logf("%d records acked, %d kills, %d retries", len(acked), kills, retries)
	if retries == 0 {
		t.Error("no request had to be sent again: the kills hit nothing")
	}
	for _, name := range []string{"api", "worker"} {
		services[name].Stop(t)
	}
}

// postUntilAcked sends a batch under one Idempotency-Key until it is answered 202 and says how often it did.
func postUntilAcked(t testing.TB, url string, body []byte) (tries int) {
	key := frame.NewBase().String()
	client := http.Client{Timeout: 15 * time.Second}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(time.Minute); ; {
		tries++
		status, err := func() (int, error) {
			req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
			if err != nil {
				return 0, err
			}
			req.Header.Set("Idempotency-Key", key)
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close() // read to its end
			_, err = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode, err
		}()
		if err == nil && status == http.StatusAccepted {
			return tries
		}
		if err == nil && status != http.StatusServiceUnavailable {
			err = errors.New(http.StatusText(status))
		}
		if err == nil {
			err = errors.New("503")
		}
		if time.Now().After(deadline) {
			t.Errorf("a batch was not acked within a minute: %v", err)
			return tries
		}
		time.Sleep(50 * time.Millisecond) // the client's own pause before a retry
	}
}
