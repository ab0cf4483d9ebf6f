package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// TestReadyMeansThatAConfirmWouldCome stops the only member of a queue's Raft group, while RabbitMQ itself goes on.
// RabbitMQ then takes connections, channels and frames, and confirms nothing, as without a majority.
func TestReadyMeansThatAConfirmWouldCome(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	b := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 1, Name: testenv.Name()}
	a := startOn(t, b, func(c *Config) { c.ConfirmTimeout, c.PublishConnections = 2*time.Second, 2 })
	ready := func(a *testAPI) string {
		got := a.get(t, "/ready")
		return fmt.Sprint(got.status, got.body)
	}
	until := func(a *testAPI, want, when string) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, when+": "+want, func() bool { return strings.Contains(ready(a), want) })
	}
	until(a, "200", "at the start")
	raft := func(do string) {
		t.Helper()
		member := fmt.Sprintf("{'%%2F_%s', node()}", broker.NewTopology(b).Queue(0))
		if err := stack.RabbitMQCtl(context.Background(), "eval", fmt.Sprintf("ok = ra:%s_server(quorum_queues, %s).", do, member)); err != nil {
			t.Fatal(err)
		}
	}

	raft("stop")
	if got := a.post(t, "/log", []byte(`{"a":1}`), nil); got.status != http.StatusServiceUnavailable {
		t.Fatalf("got %d %s, want 503: nothing can be confirmed", got.status, got.body)
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); { // twice CONFIRM_TIMEOUT, over new connections
		if got := ready(a); !strings.HasPrefix(got, "503") {
			t.Fatalf("got %s though no confirm has come", got)
		}
		time.Sleep(10 * time.Millisecond)
	}
	other := listenOn(t, b, func(c *Config) { c.ConfirmTimeout = 2 * time.Second })
	until(other, "confirmed nothing", "an API that is started now")
	if got := ready(other); !strings.HasPrefix(got, "503") {
		t.Errorf("got %s, want 503", got)
	}

	raft("restart")
	until(a, "200", "without a request, once confirms come again")
	until(other, "200", "without a request, once confirms come")
	if got := a.post(t, "/log", []byte(`{"a":2}`), nil); got.status != http.StatusAccepted {
		t.Errorf("got %d %s, want 202", got.status, got.body)
	}
}
