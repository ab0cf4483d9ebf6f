package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// top is the module's folder.
var top = filepath.Join("..", "..")

// binary builds millrace as make build does, without the race detector: it is the machine's speed that meets faults.
func binary(t *testing.T, edits ...Edit) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "millrace")
	if err := Build(t.Context(), top, out, edits...); err != nil {
		t.Fatal(err)
	}
	return out
}

// lines passes what is written on to the test's log.
type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// TestKillAnythingLoseNothing is make chaos in little: some faults of each part, each once, in an order that is another
// every time.
func TestKillAnythingLoseNothing(t *testing.T) {
	testenv.Private(t, localstack.Need{}) // skips where it must
	need(t)
	report, err := Run(t.Context(), Options{
		Binary: binary(t), Seed: rand.Uint64() >> 32, Rounds: 1, Rate: 400, Clients: 24, Short: true, Out: lines{t},
		Faults: []string{
			"api: SIGKILL", "api: rolling", "worker: SIGKILL", "worker: frozen", "everything",
			"RabbitMQ: SIGKILL", "RabbitMQ: memory alarm", "RabbitMQ: connections closed", "RabbitMQ: queue unbound",
			"RabbitMQ: somebody's tap", "RabbitMQ: a policy that empties queues", "RabbitMQ: an empty queue deleted",
			"PostgreSQL: SIGKILL", "PostgreSQL: sessions terminated", "PostgreSQL: read only", "PostgreSQL: lock", "PostgreSQL: disk full",
			"PostgreSQL: late records",
			"Redis: flushed", "client-api: reset in place", "client-api: silent", "api-broker: reset", "worker-broker: reset in place",
			"worker-postgres: reset in", "worker-postgres: cut off", "clock of the clients",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", report.Markdown())
	for _, m := range report.Mismatches {
		t.Errorf("%s: %s", m.Kind, m.Text)
	}
}

// TestNoNodeIsKilledWhileAQueueIsNew has the two faults follow on each other that together lose a queue in RabbitMQ 3.10.
func TestNoNodeIsKilledWhileAQueueIsNew(t *testing.T) {
	testenv.Private(t, localstack.Need{}) // skips where it must
	need(t)
	report, err := Run(t.Context(), Options{
		Binary: binary(t), Seed: 1, Rate: 400, Clients: 24, Short: true, Out: lines{t},
		Plan: []Step{
			{Fault: "RabbitMQ: an empty queue deleted", Target: "all", Hold: 100 * time.Millisecond},
			{Fault: "RabbitMQ: SIGKILL", Target: "rabbitmq", Hold: 250 * time.Millisecond},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Mismatches {
		t.Errorf("%s: %s", m.Kind, m.Text)
	}
}

func need(t *testing.T) {
	t.Helper()
	if missing := localstack.MissingPackages(localstack.Need{Postgres: true, RabbitMQ: true, Redis: true}); len(missing) > 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("not installed: %v", missing)
		}
		t.Skipf("not installed: %v; make test installs them", missing)
	}
}

func TestAnEditThatFindsNothingIsAnError(t *testing.T) {
	for _, old := range []string{"no such text", "return"} { // none, many
		err := Build(t.Context(), top, filepath.Join(t.TempDir(), "x"), Edit{"worker/stream.go", old, ""})
		if err == nil || !strings.Contains(err.Error(), "worker/stream.go") {
			t.Errorf("%q: got %v, want an error that names the file", old, err)
		}
	}
}

func TestARecordIsToldByItsText(t *testing.T) {
	m := newMaker(7, 8, time.Now())
	for client := range 4 {
		for number := range 50 {
			s := m.shape(client, number)
			if again := m.shape(client, number); again != s {
				t.Fatalf("the shape of %d/%d was %+v and is %+v", client, number, s, again)
			}
			for i := range s.records {
				text := string(m.appendRecord(nil, client, number, i, false))
				c, n, r, ok := parseRecord(text)
				if !ok || c != client || n != number || r != i {
					t.Fatalf("%s is said to be %d/%d/%d, %v", text, c, n, r, ok)
				}
			}
		}
	}
}

// TestALinkResetsWhereItIsTold sends a pattern in two pieces, and counts what gets through.
func TestALinkResetsWhereItIsTold(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for keep, want := range map[int]string{0: "abCOM", 3: "abCOM", 4: "abCOMM", 6: "abCOMMIT", 8: "abCOMMITde"} {
		l, err := newLink("x", "x", target.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		l.set(weather{trap: newTrap(up, "COMMIT", keep, 1)})
		near, err := net.Dial("tcp", l.addr())
		if err != nil {
			t.Fatal(err)
		}
		far, err := target.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(near, "abCOM"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(near, "MITdefgh"); err != nil {
			t.Fatal(err)
		}
		// What was sent before an RST may get lost with it: less than wanted is as good, more is not.
		rest, err := io.ReadAll(far)
		if err == nil || !strings.HasPrefix(want, string(got)+string(rest)) {
			t.Errorf("keep %d: got %q, error %v, want %q and a reset", keep, string(got)+string(rest), err, want)
		}
		_ = near.Close()
		_ = far.Close()
		l.close()
	}
}

// plant is a bug that the harness must catch: a change of the product's text, faults that bring it out, and what the
// comparison must then find.
type plant struct {
	edits []Edit
	clock bool // the second API has a clock that can be stepped
	plan  []Step
	want  mismatch
}

var plants = map[string]plant{
	"the worker acks before it commits": {
		edits: []Edit{{"worker/stream.go", `		if err := s.save(ctx, hard, lost, b); err != nil {`, `
		for i, c := range consumers {
			if b.frames[i] > 0 {
				if err := c.ack(b.frames[i], b.tags[i]); err != nil {
					return 0, err
				}
				b.frames[i] = 0
			}
		}
		if err := s.save(ctx, hard, lost, b); err != nil {`}},
		plan: []Step{{
			Fault: "PostgreSQL: frozen (SIGSTOP)", Target: "postgres", Hold: 2 * time.Second,
			With: &Step{Fault: "worker: all of them SIGKILL", Target: "worker", After: time.Second},
		}},
		want: lost,
	},
	"there is no ledger": {
		edits: []Edit{{"worker/ledger.go", `	if len(entered) < len(fresh) {`, `	if false {`}},
		plan:  []Step{{Fault: "worker-postgres: reset in place of a COMMIT's answer", Target: workerPostgres, Hold: 5 * time.Second}},
		want:  doubled,
	},
	"frames are not mandatory": {
		edits: []Edit{{"api/publish/lane.go", `queue, true, false, m)`, `queue, false, false, m)`}},
		plan:  []Step{{Fault: "RabbitMQ: an empty queue deleted", Target: "all", Hold: 2 * time.Second}},
		want:  lost,
	},
	"frames go through an exchange that others change": {
		edits: []Edit{{"api/publish/lane.go", `(broker.DefaultExchange, queue, true, false, m)`, `(l.pub.topology.Exchange(), queue, true, false, m)`}},
		plan:  []Step{{Fault: "RabbitMQ: somebody's tap in the place of the queue", Target: "all", Hold: time.Second}},
		want:  lost,
	},
	"202 comes before the confirm": {
		edits: []Edit{
			{"api/server.go", `; ok && answer.Stream == nil && `, `; ok && false && `},
			{"api/publish/frame.go", `slices.Backward(tickets) {`, `slices.Backward(tickets[:0]) {`},
		},
		plan: []Step{{
			Fault: "RabbitMQ: frozen (SIGSTOP)", Target: "rabbitmq", Hold: 2 * time.Second,
			With: &Step{Fault: "api: all of them SIGKILL", Target: "api", After: time.Second},
		}},
		want: lost,
	},
	"the worker gives back what it can't store": {
		edits: []Edit{
			{"worker/stream.go", `		case time.Since(received) > s.config.maxHold:`, `		case true || time.Since(received) > s.config.maxHold:`},
			{"worker/stream.go", `			return b.total(), err
`, `			for i, c := range consumers {
				for n := range b.frames[i] {
					_ = c.channel.Reject(b.tags[i]-uint64(n), true)
				}
			}
			g.finished.Add(1)
			gate.release(b.deliveryBytes)
			b.release()
			continue
`},
			{"worker/stream.go", `			s.stuck = b
`, ``},
		},
		plan: []Step{{Fault: "PostgreSQL: SIGKILL", Target: "postgres", Hold: 6 * time.Second}},
		want: deadExtra,
	},
	"ids are made in the worker": {
		edits: []Edit{{"worker/decode.go", `		for i, s := range spans {
			it.segments`, `		for i, s := range spans {
			s.Base = frame.NewBase()
			it.segments`}},
		plan: []Step{{Fault: "Redis: flushed", Target: "redis"}},
		want: otherID,
	},
	"nothing shields the queues from policies": {
		plan: []Step{{Fault: unshielded, Target: "rabbitmq", Hold: 2 * time.Second}},
		want: lost,
	},
	"a late record holds up its batch": {
		edits: []Edit{{"worker/partition/set.go", `if !errors.As(err, &why) || time.Since(at).Abs() < present {`, `if !errors.As(err, &why) || true {`}},
		plan:  []Step{{Fault: "PostgreSQL: late records beside a slow export", Target: "postgres", Hold: time.Second}},
		want:  stuck,
	},
	"a record's time is when it came": {
		edits: []Edit{{"worker/times.go", `micros, result := t.rule.At(record, t.came)`, `micros, result := t.came, eventtime.Own`}},
		plan:  []Step{{Fault: "Redis: flushed", Target: "redis"}},
		want:  otherRecord,
	},
	"no key is made from what a shipper sends": {
		edits: []Edit{{"api/server.go", `		base = s.keyOfBody(key, request, text, records, time.Now())`, `		_ = request`}},
		plan:  []Step{{Fault: "client-api: reset in place of a shipper's 200", Target: clientAPI, Hold: 5 * time.Second}},
		want:  doubled,
	},
	"the base of the ids is the key itself": {
		edits: []Edit{{"internal/frame/id.go", `	copy(base[8:], sum[2:])
`, `	copy(base[8:], sum[2:])
	if key != base {
		return key
	}
`}},
		plan: []Step{{Fault: "Redis: flushed", Target: "redis"}},
		want: sameID,
	},
	"ids never go back": {
		edits: []Edit{{"internal/frame/id.go", `at <= s.last && s.last-at < int64(maxDrift/time.Millisecond)*ticks`, `at <= s.last`}},
		clock: true,
		plan: []Step{
			{Fault: "clock of an API ahead for a second", Target: "api2", Hold: time.Second},
			{Fault: "Redis: SIGKILL", Target: "redis", Hold: clockGrace + 3*time.Second}, // the clock is right meanwhile
		},
		want: misdated,
	},
}

// TestPlantedBugsAreWhereTheyGo finds the text that each bug replaces, also where nothing can be built or run.
func TestPlantedBugsAreWhereTheyGo(t *testing.T) {
	for name, p := range plants {
		for _, e := range p.edits {
			text, err := os.ReadFile(filepath.Join(top, e.File))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if n := strings.Count(string(text), e.Old); n != 1 {
				t.Errorf("%s: %s has %d times the text to be replaced, want once: %q", name, e.File, n, e.Old)
			}
		}
	}
}

// TestPlantedBugsAreCaught builds millrace with one bug at a time.
func TestPlantedBugsAreCaught(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{Postgres: true, RabbitMQ: true, Redis: true})
	for name, p := range plants {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			clock := ""
			if p.clock {
				clock = filepath.Join(t.TempDir(), "millrace-clock")
				if err := BuildClock(t.Context(), top, clock, p.edits...); err != nil {
					t.Fatal(err)
				}
			}
			bin := binary(t, p.edits...)
			// Some bugs show only if the fault strikes at the right moment, or long enough for a busy machine.
			var report *Report
			for try := range 4 {
				plan := make([]Step, len(p.plan))
				for i, step := range p.plan {
					plan[i] = step.longer(1 << try)
				}
				var err error
				report, err = Run(t.Context(), Options{
					Binary: bin, ClockBinary: clock, Seed: 1, Rate: 400, Clients: 16, Plan: plan, Patience: 5 * time.Second, Stack: stack, Out: &out,
				})
				if err != nil {
					t.Fatalf("%v\n%s", err, out.String())
				}
				if report.Has(string(p.want)) {
					break
				}
			}
			if !report.Has(string(p.want)) {
				t.Errorf("not caught: want %q\n%s\n%s", p.want, report.Summary(), out.String())
			}
			t.Log(firstMismatch(report, p.want))
		})
	}
}

// TestARunWithoutARecoveryEndsSoon has five faults with a patience that nothing can keep.
func TestARunWithoutARecoveryEndsSoon(t *testing.T) {
	stack := testenv.Private(t, localstack.Need{Postgres: true, RabbitMQ: true, Redis: true})
	var out bytes.Buffer
	report, err := Run(t.Context(), Options{
		Binary: binary(t), Seed: 1, Rate: 100, Clients: 4, Patience: time.Nanosecond, Stack: stack, Out: &out,
		Plan: slices.Repeat([]Step{{Fault: "Redis: flushed", Target: "redis"}}, mostStuck+2),
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if len(report.run.events) != mostStuck || !report.Has(string(stuck)) {
		t.Errorf("%d faults struck, want %d, and a report that names them", len(report.run.events), mostStuck)
	}
	for _, want := range []string{"worker2, process ", "200 ", "queue logs.0: ", "the rest of the faults does not strike"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not told:\n%s", want, out.String())
		}
	}
}

// longer returns a step that lasts times as long.
func (s Step) longer(times time.Duration) Step {
	s.Hold *= times
	if s.With != nil {
		with := s.With.longer(times)
		s.With = &with
	}
	return s
}

func firstMismatch(r *Report, kind mismatch) string {
	n, first := 0, ""
	for _, m := range r.Mismatches {
		if m.Kind == string(kind) {
			if n++; n == 1 {
				first = m.Text
			}
		}
	}
	return fmt.Sprintf("%d times %s, the first: %s", n, kind, first)
}

func TestOptionsThatCannotBeAreErrors(t *testing.T) {
	good := Options{Rate: 1, Clients: 1}
	for name, spoil := range map[string]func(*Options){
		"rate": func(o *Options) { o.Rate = 0 }, "clients": func(o *Options) { o.Clients = -1 },
		"rounds": func(o *Options) { o.Rounds = -1 }, "duration": func(o *Options) { o.Duration = -time.Second },
	} {
		o := good
		spoil(&o)
		if report, err := Run(t.Context(), o); err == nil || report != nil {
			t.Errorf("%s: got %v and no error", name, report)
		}
	}
	for _, faults := range [][]string{{"nosuch"}, {"postgres"}, {"Redis", ""}, {"-nosuch"}, {"Redis", "-Redis"}} {
		if err := everyFault(t, faults...).checkFaults(); err == nil {
			t.Errorf("%q: got no error", faults)
		}
	}
	for _, faults := range [][]string{nil, {"Redis"}, {"Redis", "PostgreSQL: lock"}, {"-Redis"}} {
		if err := everyFault(t, faults...).checkFaults(); err != nil {
			t.Errorf("%q: %v", faults, err)
		}
	}
}

// everyFault returns a run that knows all faults, with a system that does not run.
func everyFault(t *testing.T, faults ...string) *run {
	t.Helper()
	s := &system{brokers: []string{"rabbitmq"}, noDisk: errors.New("none")}
	for _, class := range []string{clientAPI, apiBroker, workerBroker, workerPostgres} {
		for _, n := range []string{"1", "2"} {
			s.links = append(s.links, &link{name: class + n, class: class})
		}
	}
	o := Options{Faults: faults, ClockBinary: "x"}
	return &run{Options: o, system: s, known: s.faults(o, nil)}
}

func TestFaultsOfOnePartDoNotMeet(t *testing.T) {
	r := everyFault(t)
	for _, tt := range []struct {
		name, target, with, other string
		apart                     bool
	}{
		{"everything SIGKILL at once", "all", "PostgreSQL: SIGKILL", "postgres", false},
		{"everything SIGKILL at once", "all", "RabbitMQ: SIGKILL", "rabbitmq", false},
		{"everything SIGKILL at once", "all", "worker: SIGKILL", "worker2", false},
		{"client-api: throttled", clientAPI, "client-api: cut off", clientAPI + "1", false},
		{"client-api: throttled", clientAPI + "2", "client-api: cut off", clientAPI + "1", true},
		{"client-api: throttled", clientAPI, "api-broker: cut off", apiBroker, true},
		{"PostgreSQL: SIGKILL", "postgres", "PostgreSQL: read only", "postgres", false},
		{"PostgreSQL: SIGKILL", "postgres", "Redis: flushed", "redis", true},
	} {
		f, g := r.fault(tt.name), r.fault(tt.with)
		if got := f.apart(tt.target, g, tt.other); got != tt.apart {
			t.Errorf("%s [%s] and %s [%s]: apart is %v", tt.name, tt.target, tt.with, tt.other, got)
		}
	}
}

func TestAFaultThatDidNotStrikeIsNoStrike(t *testing.T) {
	r := &run{load: &load{began: time.Now()}, counts: make(map[mismatch]int)}
	r.Out = io.Discard
	no := errors.New("did not come by")
	r.events = []*event{
		{step: Step{Fault: "a"}, from: 1 * time.Second},
		{step: Step{Fault: "a", With: &Step{Fault: "b"}}, from: 10 * time.Second, second: no},
		{step: Step{Fault: "b"}, from: 20 * time.Second, err: no},
	}
	r.load.waits = []wait{
		{9 * time.Second, 11500 * time.Millisecond}, // most of it under the second
		{2 * time.Second, 4 * time.Second},
		{21 * time.Second, 30 * time.Second}, // ends after the last fault
	}
	report := &Report{run: r}
	report.finish()
	type row struct {
		strikes, failed int
		longest         time.Duration
	}
	got := make(map[string]row)
	for _, k := range report.kinds {
		got[k.name] = row{k.strikes, k.failed, k.longest}
	}
	want := map[string]row{"a": {2, 0, 2 * time.Second}, "b": {0, 2, 9 * time.Second}, twoAtOnce: {0, 1, 2500 * time.Millisecond}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !report.Has(string(broken)) {
		t.Error("b never struck, and the report says that all is well")
	}
}

func TestMismatchesAreKeptByKind(t *testing.T) {
	r := &run{counts: make(map[mismatch]int)}
	var out bytes.Buffer
	r.Out = &out
	for range 3 * mostMismatches {
		r.mismatch(otherID, "x")
	}
	r.mismatch(lost, "the one that matters")
	if len(r.mismatches) != mostMismatches+1 || r.counts[otherID] != 3*mostMismatches || !strings.Contains(out.String(), "the one that matters") {
		t.Errorf("%d are kept of %v, printed:\n%.300s", len(r.mismatches), r.counts, out.String())
	}
}
