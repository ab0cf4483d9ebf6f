package localstack

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func startCluster(t testing.TB, dir string) *Stack {
	t.Helper()
	require(t, Need{RabbitMQ: true})
	began := time.Now()
	s, err := Start(t.Context(), Options{Dir: dir, Need: Need{RabbitMQ: true}, Brokers: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	t.Logf("three nodes started in %v", time.Since(began).Round(time.Millisecond))
	return s
}

// leader returns who leads the queue "kept", once the node knows one.
func leader(t testing.TB, s *Stack, node string) string {
	t.Helper()
	for range 100 {
		leader, members, err := s.Queue(t.Context(), node, "kept")
		if err == nil {
			if diff := cmp.Diff(s.Brokers(), members); diff != "" {
				t.Fatalf("members of the queue (-want +got):\n%s", diff)
			}
			return leader
		}
		t.Log(err)
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s knows no leader", node)
	return ""
}

// publishSoon publishes until it is confirmed.
func publishSoon(t testing.TB, url, body string) {
	t.Helper()
	began := time.Now()
	for !published(t, url, body) {
		if time.Since(began) > leastWait {
			t.Fatalf("%q is refused all the time", body)
		}
	}
	t.Logf("%q is confirmed after %v", body, time.Since(began).Round(time.Millisecond))
}

// serves waits until a node takes clients, or takes none.
func serves(t testing.TB, s *Stack, node string, want bool) {
	t.Helper()
	began := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := rabbitReady(ctx, s.BrokerURL(node))
		cancel()
		if (err == nil) == want {
			t.Logf("%s serves: %v, after %v", node, want, time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%s serves: want %v within a minute (%v)", node, want, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestAClusterOutlivesItsNodesAndItsRuns(t *testing.T) {
	dir := t.TempDir()
	s := startCluster(t, dir)
	nodes := s.Brokers()
	pauses, err := s.PausesMinorities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(s.RabbitMQURL, ","); len(got) != 3 || got[1] != s.BrokerURL(nodes[1]) {
		t.Errorf("RabbitMQURL is %s", s.RabbitMQURL)
	}
	for address := range listeners(t, dir) {
		if host, _, _ := net.SplitHostPort(address); !net.ParseIP(host).IsLoopback() {
			t.Errorf("a node listens on %s", address)
		}
	}
	publish(t, s.BrokerURL(nodes[0]), "first")

	lead := leader(t, s, nodes[0])
	if err := s.Kill(lead); err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(s.Brokers(), func(n string) bool { return n == lead })
	publishSoon(t, s.BrokerURL(others[0]), "second")
	if now := leader(t, s, others[0]); now == lead {
		t.Errorf("%s still leads though it was killed", lead)
	}
	if err := s.Restart(t.Context(), lead); err != nil {
		t.Fatal(err)
	}

	lead = leader(t, s, lead)
	others = slices.DeleteFunc(s.Brokers(), func(n string) bool { return n == lead })
	if err := s.Isolate(t.Context(), lead); err != nil {
		t.Fatal(err)
	}
	if pauses {
		serves(t, s, lead, false)
	}
	publishSoon(t, s.BrokerURL(others[0]), "third")
	if err := s.Rejoin(t.Context(), lead); err != nil {
		t.Fatal(err)
	}
	serves(t, s, lead, true)

	bodies := []string{"first", "second", "third"}
	if os.Getenv("MILLRACE_LONG_TESTS") != "" { // half a minute, most of it until RabbitMQ gives the node up
		bodies = append(bodies, "fourth")
		lead = leader(t, s, lead)
		others = slices.DeleteFunc(s.Brokers(), func(n string) bool { return n == lead })
		if err := s.Signal(lead, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		publishSoon(t, s.BrokerURL(others[0]), "fourth")
		if err := s.Thaw(t.Context(), lead); err != nil {
			t.Fatal(err)
		}
		for _, node := range nodes {
			serves(t, s, node, true)
			running, err := s.RabbitMQCtlOn(t.Context(), node, "eval", "length(rabbit_nodes:all_running()).")
			if strings.TrimSpace(running) != "3" {
				t.Errorf("%s sees %q nodes, error %v, want 3", node, running, err)
			}
		}
	}
	stop(t, s)

	if _, err := Start(t.Context(), Options{Dir: dir, Need: Need{RabbitMQ: true}}); err == nil || !strings.Contains(err.Error(), "3 nodes, not 1") {
		t.Errorf("started with another number of nodes: got %v, want a refusal", err)
	}
	s = startCluster(t, dir)
	if diff := cmp.Diff(bodies, messages(t, s.BrokerURL(nodes[2]))); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}
