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

// TestProbesNeedNoCertificateAtAnAddressOfTheirOwn has an API that asks its clients for certificates: at API_METRICS_ADDR it tells a
// kubelet and Prometheus, which have none, how it is, and nothing else.
func TestProbesNeedNoCertificateAtAnAddressOfTheirOwn(t *testing.T) {
	ca := newAuthority(t)
	plain := testenv.FreeAddress(t)
	a := listenOn(t, testenv.Broker(t, 1), func(c *Config) {
		c.TLSCertFile, c.TLSKeyFile = ca.issue(t, "server")
		c.TLSClientCA = ca.file
		c.MetricsAddr = config.Address(plain)
	})
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.client(t, false), DisableKeepAlives: true}}
	if resp, err := stranger.Get("https" + strings.TrimPrefix(a.url, "http") + "/health"); err == nil {
		resp.Body.Close()
		t.Errorf("without a certificate API_ADDR answers %d", resp.StatusCode)
	}
	status := func(path string) int {
		resp, err := stranger.Get("http://" + plain + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	testenv.Eventually(t, 30*time.Second, "/ready", func() bool { return status("/ready") == http.StatusOK })
	for path, want := range map[string]int{"/health": 200, "/metrics": 200, "/log": 404, "/log/batch": 404} {
		if got := status(path); got != want {
			t.Errorf("GET %s at API_METRICS_ADDR: got %d, want %d", path, got, want)
		}
	}
}
