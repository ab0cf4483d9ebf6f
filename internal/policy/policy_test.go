package policy_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/policy"
	"millrace/internal/testenv"
)

func TestEachKeyOfAPolicyIsJudged(t *testing.T) {
	topology := broker.NewTopology(config.Broker{Shards: 1})
	ours := map[string]any{"x-overflow": "reject-publish"}
	limited := map[string]any{"x-overflow": "reject-publish", "x-max-length-bytes": 1e6}
	type def = map[string]any
	for _, tt := range []struct {
		name       string
		queue      string
		arguments  map[string]any
		definition def
		want       []string // reasons; those that lose records with a "!"
	}{
		{"nothing", "logs.0", ours, nil, nil},
		{"our shield", "logs.0", ours, def{"overflow": "reject-publish"}, nil},
		{"message-ttl", "logs.0", ours, def{"message-ttl": 2000.0}, []string{"message_ttl"}},
		{"message-ttl of the parked queue", "logs.parked", ours, def{"message-ttl": 2000.0}, []string{"message_ttl"}},
		{"expires", "logs.dead", ours, def{"expires": 2000.0}, []string{"expires!"}},
		{"a limit that refuses", "logs.0", ours, def{"max-length": 1.0}, nil},
		{"a limit that drops", "logs.0", ours, def{"max-length": 1.0, "overflow": "drop-head"}, []string{"overflow", "max_length!"}},
		{"a limit in bytes that drops", "logs.0", ours, def{"max-length-bytes": 1.0, "overflow": "drop-head"}, []string{"overflow", "max_length!"}},
		{"an overflow that quorum queues do not know, which drops", "logs.0", ours, def{"max-length": 1.0, "overflow": "reject-publish-dlx"}, []string{"overflow", "max_length!"}},
		{"our own limit, made to drop", "logs.0", limited, def{"overflow": "drop-head"}, []string{"overflow", "max_length!"}},
		{"an old parked queue, which drops by default", "logs.parked", nil, def{"max-length": 1.0}, []string{"max_length!"}},
		{"fewer deliveries", "logs.0", ours, def{"delivery-limit": 20.0}, []string{"delivery_limit"}},
		{"fewer deliveries than of logs.N, and as many as the dead queue has", "logs.dead", ours, def{"delivery-limit": 20.0}, nil},
		{"more deliveries", "logs.0", ours, def{"delivery-limit": 200.0}, nil},
		{"deliveries without end", "logs.0", ours, def{"delivery-limit": -1.0}, nil},
		{"a short consumer timeout", "logs.0", ours, def{"consumer-timeout": 60000.0}, []string{"consumer_timeout"}},
		{"RabbitMQ's consumer timeout", "logs.0", ours, def{"consumer-timeout": 1800000.0}, nil},
		{"dead-lettering, where arguments win", "logs.0", ours, def{"dead-letter-exchange": "x", "dead-letter-routing-key": "y"}, nil},
		{"where its members are", "logs.0", ours, def{"queue-leader-locator": "balanced"}, nil},
		{"a stream that forgets", "logs.last", nil, def{"max-age": "1h"}, []string{"stream_retention"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, h := range policy.Judge(topology, tt.queue, tt.arguments, tt.definition) {
				reason := h.Reason
				if h.Loses {
					reason += "!"
				}
				got = append(got, reason)
				if !strings.HasPrefix(h.What, "the policy p sets ") || h.Queue != tt.queue {
					t.Errorf("got %+v, want the policy and the queue", h)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// seen keeps what a watch has reported.
type seen struct {
	mu    sync.Mutex
	found []policy.Harm
	looks int
}

func (s *seen) report(found []policy.Harm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = found
	s.looks++
}

func (s *seen) sentence() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return policy.Sentence(s.found)
}

func (s *seen) looked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looks > 0
}

// watch runs a watch until the test ends.
func watch(t *testing.T, c config.Broker) (*seen, *prometheus.Registry) {
	s, registry := new(seen), prometheus.NewRegistry()
	w := policy.New(policy.Options{Broker: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Registry: registry, Report: s.report, Canary: true, Interval: 100 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s, registry
}

// metric returns the values of the watch's metric by their reason.
func metric(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("got %d metrics, %v; want one", len(families), err)
	}
	got := make(map[string]float64)
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	return got
}

func declare(t *testing.T, c config.Broker) {
	t.Helper()
	conn, err := broker.Dial(t.Context(), c.URLs, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.End(time.Second)
	if err := broker.NewTopology(c).Ensure(conn.Connection); err != nil {
		t.Fatal(err)
	}
}

// publishThree publishes three messages to a queue and waits for their confirms.
func publishThree(t *testing.T, ch *amqp.Channel, queue string) {
	t.Helper()
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		confirm, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := confirm.WaitContext(t.Context()); err != nil || !ok {
			t.Fatalf("confirmed: %v, %v", ok, err)
		}
	}
}

const soon = time.Minute

// TestPoliciesAreShieldedOrNamed tries the policies that an operator may set, on a server with the management API.
func TestPoliciesAreShieldedOrNamed(t *testing.T) {
	stack := testenv.Managed(t)
	c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 1, Management: stack.RabbitMQManagement}
	ctl := func(args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	set := func(kind, name, definition string, more ...string) {
		t.Helper()
		ctl(append([]string{kind, name, "^logs", definition, "--apply-to", "queues"}, more...)...)
	}
	declare(t, c)
	s, registry := watch(t, c)
	testenv.Eventually(t, soon, "the queues are looked at", s.looked)

	// A policy of the usual priority changes nothing: the records stay, and no harm is reported.
	ch := testenv.Channel(t, c)
	ctl("set_policy", "ttl", ".*", `{"message-ttl":100,"expires":100,"max-length":1,"overflow":"drop-head"}`)
	publishThree(t, ch, "logs.0")
	canary := policy.NewCanary(c, time.Minute, time.Second/4) // any queue of ours shows when RabbitMQ has had the time to harm one
	defer canary.Close()
	for range 10 {
		if found, err := canary.Look(t.Context()); err != nil || found != nil {
			t.Fatalf("the canary: %v, %v", found, err)
		}
		time.Sleep(100 * time.Millisecond) // the ttl, ten times
	}
	if q, err := ch.QueueDeclarePassive("logs.0", true, false, false, false, nil); err != nil || q.Messages != 3 {
		t.Errorf("got %d messages, %v; want the 3 that were published", q.Messages, err)
	}
	if got := s.sentence(); got != "" {
		t.Errorf("got %q, want nothing: the shield applies", got)
	}
	ctl("clear_policy", "ttl")

	for _, tt := range []struct{ kind, clear, source string }{
		{"set_operator_policy", "clear_operator_policy", "the operator policy late"},
		{"set_policy", "clear_policy", "the policy late"},
	} {
		var more []string
		if tt.kind == "set_policy" {
			more = []string{"--priority", "1000001"}
		}
		set(tt.kind, "late", `{"expires":3600000}`, more...)
		want := tt.source + " sets expires to 3600000: the queue is deleted with its records when no worker reads it for so long (logs.0, logs.dead, logs.parked)"
		testenv.Eventually(t, soon, want, func() bool { return s.sentence() == want })
		counted := map[string]float64{"message_ttl": 0, "expires": 3, "max_length": 0, "overflow": 0, "delivery_limit": 0, "consumer_timeout": 0, "stream_retention": 0, "unchecked": 0}
		if diff := cmp.Diff(counted, metric(t, registry)); diff != "" {
			t.Errorf("the metric (-want +got):\n%s", diff)
		}
		ctl(tt.clear, "late")
		testenv.Eventually(t, soon, "nothing harms after it is cleared", func() bool { return s.sentence() == "" })
	}

	// Somebody removes the shield: it is set again.
	ctl("clear_policy", "millrace.logs")
	testenv.Eventually(t, soon, "the shield is back", func() bool {
		out, err := stack.RabbitMQCtlOn(t.Context(), stack.Brokers()[0], "list_policies")
		return err == nil && strings.Contains(out, "millrace.logs\t")
	})
}

// TestAUserThatMayNotSetPoliciesStillSeesThem: the tag "monitoring" reads and sets nothing.
func TestAUserThatMayNotSetPoliciesStillSeesThem(t *testing.T) {
	stack := testenv.Managed(t)
	for _, args := range [][]string{
		{"clear_policy", "millrace.logs"}, {"clear_policy", "millrace.logs.last"},
		{"add_user", "watcher", "pw"}, {"set_user_tags", "watcher", "monitoring"}, {"set_permissions", "watcher", "^$", "^$", ".*"},
	} {
		if err := stack.RabbitMQCtl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	_, host, _ := strings.Cut(string(stack.RabbitMQManagement[0]), "@")
	c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 1, Management: config.ManagementURLs{config.ManagementURL("http://watcher:pw@" + host)}}
	declare(t, c)
	s, _ := watch(t, c)
	testenv.Eventually(t, soon, "the queues are looked at", s.looked)
	if err := stack.RabbitMQCtl(t.Context(), "set_policy", "ttl", ".*", `{"message-ttl":3600000}`); err != nil {
		t.Fatal(err)
	}
	const want = "the policy ttl sets message-ttl to 3600000: records that wait so long become dead letters (logs.0, logs.dead, logs.parked)"
	testenv.Eventually(t, soon, want, func() bool { return s.sentence() == want })
}

// TestTheCanaryShowsWhatPoliciesDo works without the management API.
func TestTheCanaryShowsWhatPoliciesDo(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	for _, tt := range []struct{ definition, want string }{
		{`{"message-ttl":100}`, "message-ttl"},
		{`{"max-length":1,"overflow":"drop-head"}`, "max-length"},
		{`{"expires":100}`, "expires"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Name: testenv.Name()}
			canary := policy.NewCanary(c, 500*time.Millisecond, 300*time.Millisecond)
			defer canary.Close()
			look := func() string {
				t.Helper()
				found, err := canary.Look(t.Context())
				if err != nil {
					t.Log(err) // of an attempt while the queue is deleted
				}
				return policy.Sentence(found)
			}
			if got := look(); got != "" {
				t.Errorf("at first: %q", got)
			}
			if err := stack.RabbitMQCtl(t.Context(), "set_policy", "p", "^"+c.Name, tt.definition); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, soon, "the canary shows "+tt.want, func() bool {
				time.Sleep(200 * time.Millisecond)
				return strings.Contains(look(), tt.want)
			})
			if err := stack.RabbitMQCtl(t.Context(), "clear_policy", "p"); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, soon, "all is well again", func() bool { return look() == "" })
		})
	}
}

// TestACanaryWhoseLeaderIsSlowHasLostNothing stops the leader of the canary's queue for a moment. Meanwhile RabbitMQ counts no
// messages.
func TestACanaryWhoseLeaderIsSlowHasLostNothing(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	c := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Name: testenv.Name()}
	canary := policy.NewCanary(c, time.Minute, time.Minute)
	defer canary.Close()
	// On a busy machine RabbitMQ may need longer than a look may take. Then the next look must answer.
	look := func(when string) {
		testenv.Eventually(t, soon, "RabbitMQ answers "+when, func() bool {
			found, err := canary.Look(context.Background())
			if len(found) > 0 {
				t.Errorf("%s: got %v, want no harm", when, found)
			}
			return err == nil
		})
	}
	look("at first")
	testenv.WhileLeaderIsSlow(t, stack, broker.NewTopology(c).Canary(), func() { look("while the leader is slow") })
	look("afterwards")
}

// TestThePrivateServersAreShielded runs no service of Millrace's, so only the policy that the servers' start has set is in
// force.
func TestThePrivateServersAreShielded(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	shielded := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 1}
	other := shielded
	other.Name = testenv.Name()
	declare(t, shielded)
	declare(t, other)
	if err := stack.RabbitMQCtl(t.Context(), "set_policy", "ttl", ".*", `{"message-ttl":100,"expires":60000}`); err != nil {
		t.Fatal(err)
	}
	ch := testenv.Channel(t, shielded)
	waiting := func(c config.Broker) int {
		q, err := ch.QueueDeclarePassive(broker.NewTopology(c).Queue(0), true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages
	}
	for _, c := range []config.Broker{shielded, other} {
		publishThree(t, ch, broker.NewTopology(c).Queue(0))
	}
	testenv.Eventually(t, soon, "queues that are not shielded lose their messages", func() bool { return waiting(other) == 0 })
	if n := waiting(shielded); n != 3 {
		t.Errorf("%d messages wait in logs.0, want the 3 that were published", n)
	}
}
