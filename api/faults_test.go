package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/api/publish"
	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// stored empties the queues and returns their records by id. As for a worker, a segment that comes again counts once,
// and must be the same.
func (a *testAPI) stored(t testing.TB) map[uuid.UUID]string {
	t.Helper()
	segments := make(map[uuid.UUID]frame.Span)
	records := make(map[uuid.UUID]string)
	for _, s := range a.spans(t) {
		if first, again := segments[s.Base]; again {
			if s.Records != first.Records || !bytes.Equal(s.Body, first.Body) {
				t.Errorf("segment %s came with %d and with %d records", s.Base, first.Records, s.Records)
			}
			continue
		}
		segments[s.Base] = s
		for k, line := range strings.Split(strings.TrimSuffix(string(s.Body), "\n"), "\n") {
			id := frame.ID(s.Base, k)
			if _, there := records[id]; there {
				t.Errorf("two records have the id %s", id)
			}
			records[id] = line
		}
	}
	return records
}

// probe is the record that tests post to see whether the API answers.
const probe = `{"client":"probe"}`

// load posts requests from eight clients, by turns of one record and of 150 records in several segments, and repeats
// each until it is acked. Meanwhile it calls fault again and again, until fault reports that no more faults come.
// Exactly the acked records must be stored, once each.
func (a *testAPI) load(t *testing.T, timeout time.Duration, fault func() (more bool)) {
	t.Helper()
	client := testenv.NewAcked(a.url)
	client.Client, client.Sizes, client.IDs = a.client, []int{1, 150}, true
	ctx, stop := context.WithCancel(context.Background())
	posting := client.Run(ctx, t, 8)
	defer posting.Wait()
	defer stop()
	for more := true; more; {
		before := client.Requests.Load()
		more = fault()
		testenv.Eventually(t, 30*time.Second, "the API answers 202 again", func() bool {
			got, err := a.try("/log", probe, nil)
			return err == nil && got.status == http.StatusAccepted
		})
		testenv.Eventually(t, 10*time.Second, "requests went on", func() bool { return client.Requests.Load() > before+16 })
	}
	stop()
	posting.Wait()
	stored := a.stored(t)
	maps.DeleteFunc(stored, func(_ uuid.UUID, record string) bool { return record == probe })
	client.Compare(t, maps.All(stored))
	if slowest := client.Slowest(); slowest > timeout+testenv.Patience {
		t.Errorf("a request took %v, want at most CONFIRM_TIMEOUT (%v) and a moment", slowest, timeout)
	}
	if n := client.Broken.Load(); n > 0 {
		t.Errorf("%d requests were not answered", n)
	}
}

// try does what post does, and returns an error instead of ending the test, for goroutines other than the test's own.
func (a *testAPI) try(path, body string, header http.Header) (response, error) {
	req, err := http.NewRequest(http.MethodPost, a.url+path, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return response{}, err
	}
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, string(b)}, errors.Join(err, resp.Body.Close())
}

func TestWhateverHappensToAPublishNothingIsLostOrDoubled(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{RabbitMQ: true})
	const timeout = 2 * time.Second
	private := func(t *testing.T, mend func(*Config)) *testAPI {
		b := config.Broker{URLs: config.Brokers(stack.RabbitMQURL), Shards: 2, Name: testenv.Name()}
		return startOn(t, b, func(c *Config) {
			c.ConfirmTimeout = timeout
			c.PublishConnections = 2
			if mend != nil {
				mend(c)
			}
		})
	}
	ctl := func(t *testing.T, args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(context.Background(), args...); err != nil {
			t.Fatal(err)
		}
	}
	times := func(n int, fault func()) func() bool {
		return func() bool {
			fault()
			n--
			return n > 0
		}
	}

	t.Run("connections closed by the broker", func(t *testing.T) {
		private(t, nil).load(t, timeout, times(2, func() { ctl(t, "close_all_connections", "because") }))
	})
	t.Run("queues deleted", func(t *testing.T) {
		a := private(t, func(c *Config) { c.Shards = 1 })
		topology := broker.NewTopology(a.broker)
		ch := testenv.Channel(t, a.broker)
		// A deleted queue takes its messages with it, so losses can't be counted. But nothing may be acked that no queue
		// has.
		if _, err := ch.QueueDelete(topology.Queue(0), false, false, false); err != nil {
			t.Fatal(err)
		}
		a.load(t, timeout, times(1, func() {}))
	})
	t.Run("exchange deleted, which closes the channels", func(t *testing.T) {
		a := private(t, nil)
		ch := testenv.Channel(t, a.broker)
		a.load(t, timeout, times(3, func() {
			if err := ch.ExchangeDelete(broker.NewTopology(a.broker).Exchange(), false, false); err != nil {
				t.Error(err)
			}
		}))
	})
	t.Run("confirms that never come", func(t *testing.T) {
		a := private(t, nil)
		a.load(t, timeout, times(1, func() {
			if err := stack.Signal("rabbitmq", syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
			begin := time.Now()
			got, err := a.try("/log", probe, nil)
			if err != nil || got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "did not confirm in time") {
				t.Errorf("got %d %s, error %v, want 503 at the deadline", got.status, got.body, err)
			}
			// Less than the timeout is right, because the timeout counts from the first request of the frame, which may
			// be another client's.
			if took := time.Since(begin); took < timeout/4 || took > timeout+testenv.Patience {
				t.Errorf("answered after %v, want %v", took, timeout)
			}
			testenv.Eventually(t, 20*time.Second, "the API gives the connections up", func() bool {
				got, err := a.try("/log", probe, nil)
				return err == nil && strings.Contains(got.body, publish.ErrNoBroker.Error())
			})
			if err := stack.Signal("rabbitmq", syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}))
	})
	t.Run("a full queue", func(t *testing.T) {
		a := private(t, func(c *Config) { c.Shards, c.MaxBytes, c.FrameCompression = 1, 1<<10, "none" })
		record := `{"a":"` + strings.Repeat("x", 2000) + `"}`
		acked := make(map[uuid.UUID]bool)
		var refused http.Header
		for range 20 { // the limit is approximate
			header := http.Header{"Idempotency-Key": {frame.NewBase().String()}}
			if got := a.post(t, "/log", []byte(record), header); got.status != http.StatusAccepted {
				if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "queue is full") {
					t.Errorf("got %d %s, want 503", got.status, got.body)
				}
				refused = header
				break
			}
			acked[frame.BaseOfKey(uuid.MustParse(header.Get("Idempotency-Key")))] = true
		}
		if refused == nil {
			t.Fatal("the queue did not get full")
		}
		stored := a.stored(t)
		id := frame.BaseOfKey(uuid.MustParse(refused.Get("Idempotency-Key")))
		if got := a.post(t, "/log", []byte(record), refused); got.status != http.StatusAccepted {
			t.Errorf("sent again after the queue was emptied: got %d %s, want 202", got.status, got.body)
		}
		_, before := stored[id]
		_, after := a.stored(t)[id]
		if len(stored) != len(acked) || before || !after {
			t.Errorf("%d were acked and %d stored; the refused one was stored before: %v, after: %v", len(acked), len(stored), before, after)
		}
	})
	t.Run("blocked for want of memory", func(t *testing.T) {
		a := private(t, nil)
		a.load(t, timeout, times(2, func() {
			ctl(t, "set_vm_memory_high_watermark", "0.000001")
			testenv.Eventually(t, 20*time.Second, "/ready says that RabbitMQ blocks", func() bool {
				resp, err := a.client.Get(a.url + "/ready")
				if err != nil {
					t.Error(err)
					return true
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				return err == nil && resp.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(b), "low on memory")
			})
			got, err := a.try("/log", probe, nil)
			if err != nil || got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, publish.ErrBlocked.Error()) { // at the deadline it would say so
				t.Errorf("got %d %s, error %v, want 503 at once", got.status, got.body, err)
			}
			ctl(t, "set_vm_memory_high_watermark", "0.4")
		}))
	})
	t.Run("killed", func(t *testing.T) {
		a := private(t, nil)
		time.Sleep(time.Second) // RabbitMQ 3.10 may forget a queue that is younger: see internal/broker/README.md
		a.load(t, timeout, times(1, func() {
			if err := stack.Kill("rabbitmq"); err != nil {
				t.Error(err)
			}
			if err := stack.Restart(context.Background(), "rabbitmq"); err != nil {
				t.Error(err)
			}
		}))
	})
}
