// Package loadtest tests the scripts of the load test with a stand-in for Millrace. It has no code of the product.
//
// The stand-in runs on the goroutines of its HTTP server, which the test closes.
package loadtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/testenv"
)

// k6 runs ingest.js by bin/k6 and returns the exit status and the output.
func k6(t *testing.T, command, out string, env ...string) (int, string) {
	t.Helper()
	program, err := filepath.Abs("../bin/k6")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("bin/k6 is not built; make bin/k6 does it")
	}
	addr := testenv.FreeAddress(t)
	cmd := exec.Command(program, "--address", addr, command, "--include-system-env-vars", "ingest.js")
	cmd.Env = append([]string{"K6_NO_USAGE_REPORT=true", "K6_API=http://" + addr, "HOME=" + t.TempDir(), "OUT=" + out}, env...)
	wrote, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(wrote)
}

func TestEveryLoadScenarioIsOneThatK6Takes(t *testing.T) {
	for _, scenario := range []string{"smoke", "steady", "breakpoint", "spike", "soak", "mixed"} {
		status, wrote := k6(t, "inspect", "", "SCENARIO="+scenario)
		var options struct {
			Scenarios  map[string]any
			Thresholds map[string]any
		}
		if err := json.Unmarshal([]byte(wrote), &options); err != nil || status != 0 {
			t.Fatalf("%s: got status %d, %v: %s", scenario, status, err, wrote)
		}
		if len(options.Scenarios) < 2 || options.Thresholds["records_unaccounted"] == nil {
			t.Errorf("%s: got %s, want a load, a look at it and the count at its end", scenario, wrote)
		}
	}
	for settings, want := range map[string]string{
		"SCENARIO=flood": "takes smoke, steady", "RATE=many": "takes a number above 0", "DURATION=5": "takes a duration",
		"SCENARIO=breakpoint DURATION=10s STEPS=11": "more than DURATION has seconds",
	} {
		if status, wrote := k6(t, "inspect", "", strings.Fields(settings)...); status == 0 || !strings.Contains(wrote, want) {
			t.Errorf("%s: got status %d: %s, want %q", settings, status, wrote, want)
		}
	}
}

// intake stands in for Millrace. It takes records, and counts them by the times in their keys.
type intake struct {
	refuse func(tries int) (status int, retryAfter string) // status 0 takes the request
	lose   int                                             // records that are accepted and not stored; below 0, stored twice
	look   func(http.ResponseWriter)                       // answers a request for the youngest record; nil: there is none

	mu     sync.Mutex
	tries  map[string][]time.Time // of each key
	bodies map[string]string
	stored map[string]int
	wrong  []string
}

func (f *intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r.URL.Path {
	case "/log/batch":
		key := r.Header.Get("Idempotency-Key")
		body, err := io.ReadAll(r.Body)
		if id, parseErr := uuid.Parse(key); err != nil || parseErr != nil || id.Version() != 7 || id.Variant() != uuid.RFC4122 {
			f.wrong = append(f.wrong, fmt.Sprintf("key %q, %v", key, err))
		}
		if before, again := f.bodies[key]; again && before != string(body) {
			f.wrong = append(f.wrong, key+" came with two bodies")
		}
		f.bodies[key] = string(body)
		f.tries[key] = append(f.tries[key], time.Now())
		if f.refuse != nil {
			if status, after := f.refuse(len(f.tries[key])); status != 0 {
				w.Header().Set("Retry-After", after)
				w.WriteHeader(status)
				return
			}
		}
		n := strings.Count(string(body), "\n") + 1
		f.stored[key] = n - f.lose
		f.lose = 0
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, `{"accepted":%d,"rejected":0}`, n)
	case "/logs/count":
		number := func(name string) int64 {
			n, err := strconv.ParseInt(r.FormValue(name), 10, 64)
			if err != nil {
				f.wrong = append(f.wrong, r.URL.String())
			}
			return n
		}
		from, to, sum := number("from"), number("to"), 0
		for key, n := range f.stored {
			seconds, nanoseconds := uuid.MustParse(key).Time().UnixTime()
			if ms := seconds*1000 + nanoseconds/1e6; ms >= from && ms < to {
				sum += n
			}
		}
		fmt.Fprintf(w, `{"count":%d}`, sum)
	case "/logs":
		if f.look != nil {
			f.look(w)
			return
		}
		fmt.Fprint(w, `{"logs":[],"next":null}`)
	}
}

func TestALoadTestFailsWhenWhatWasAcceptedIsNotStored(t *testing.T) {
	refusedFirst := func(tries int) (int, string) {
		switch tries {
		case 1:
			return http.StatusServiceUnavailable, "1"
		case 2:
			return http.StatusTooManyRequests, "1"
		}
		return 0, ""
	}
	seen := func(w http.ResponseWriter) {
		fmt.Fprintf(w, `{"logs":[{"inserted_at":%q}],"next":null}`, time.Now().Format(time.RFC3339Nano))
	}
	unanswered := func(w http.ResponseWriter) { w.WriteHeader(http.StatusGatewayTimeout) }
	unreadable := func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") } // as a proxy might answer
	steps := func(lag string) []string { return []string{"STEPS=1", "DURATION=4s", "LAG=" + lag} }
	const good, crossed = 0, 99 // k6's statuses: all thresholds hold, one does not
	tests := []struct {
		name, scenario string
		server         *intake
		env            []string
		status         int
		says           string
	}{
		{"all are stored", "steady", &intake{}, nil, good, "Stored is accepted: "},
		{"one is lost", "steady", &intake{lose: 1}, nil, crossed, "Not stored: 1 of "},
		{"one is stored twice", "steady", &intake{lose: -1}, nil, crossed, "accepted records: 1."},
		{"k6 does not say what was accepted", "steady", &intake{}, []string{"K6_API=http://127.0.0.1:1", "SETTLE=1"}, good, "an unknown number accepted"},
		{"k6 does not say what was accepted and one is lost", "steady", &intake{lose: 1}, []string{"K6_API=http://127.0.0.1:1", "SETTLE=1"}, crossed, "Not stored: 1 of "},
		{"requests are refused for a while", "soak", &intake{refuse: refusedFirst}, nil, good, "Stored is accepted: "},
		{"steady has nothing refused", "steady", &intake{refuse: refusedFirst}, nil, crossed, "Stored is accepted: "},
		{"requests are refused for good", "soak", &intake{refuse: func(int) (int, string) { return http.StatusBadRequest, "" }}, []string{"SETTLE=1"}, crossed, "Nothing was accepted"},
		{"none is answered in time", "steady", &intake{}, []string{"LATENCY=0.0001"}, crossed, "FAIL http_req_duration{kind:ingest}"},
		{"none is seen in time", "steady", &intake{}, []string{"LAG=0.0001"}, crossed, "FAIL visible_lag"},
		{"nobody answers who looks", "steady", &intake{look: unanswered}, []string{"LAG=0.0001"}, crossed, "FAIL visible_lag"},
		{"a step holds", "breakpoint", &intake{look: seen}, steps("1800"), good, "Not reached: 50 records/s were held."},
		{"a step in which nobody answers who looks", "breakpoint", &intake{look: unanswered}, steps("1800"), good, "The most that was held: 0 records/s."},
		{"a step in which nobody could look", "breakpoint", &intake{look: unreadable}, steps("60000"), good, "unseen  no"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := tt.server
			f.tries, f.bodies, f.stored = make(map[string][]time.Time), make(map[string]string), make(map[string]int)
			server := httptest.NewServer(f)
			defer server.Close()
			out := t.TempDir()
			status, wrote := k6(t, "run", out, append([]string{"SCENARIO=" + tt.scenario, "BASE_URL=" + server.URL, "QUERY_URL=" + server.URL,
				"RATE=50", "BATCH=5", "DURATION=1s", "DRAIN=3"}, tt.env...)...)
			if status != tt.status || !strings.Contains(wrote, tt.says) {
				t.Errorf("got status %d, want %d and %q:\n%s", status, tt.status, tt.says, wrote)
			}
			for _, name := range []string{"summary.json", "report.html"} {
				if _, err := os.Stat(filepath.Join(out, name)); err != nil {
					t.Error(err)
				}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.wrong) > 0 {
				t.Errorf("what came is wrong: %q", f.wrong)
			}
			for key, tries := range f.tries {
				for i := 1; i < len(tries); i++ {
					if pause := tries[i].Sub(tries[i-1]); pause < 900*time.Millisecond { // clocks and timers are a little off
						t.Errorf("%s was sent again after %v, want the second of Retry-After", key, pause)
					}
				}
			}
		})
	}
}

func TestTheLoadTestsSettingsAreInItsReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	setting := regexp.MustCompile(`__ENV\.([A-Z0-9_]+)|(?:number|seconds)\('([A-Z0-9_]+)'`)
	for _, name := range []string{"ingest.js", "client.js"} {
		script, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		head, err := os.ReadFile("ingest.js")
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ = bytes.Cut(head, []byte("\nimport "))
		for _, m := range setting.FindAllSubmatch(script, -1) {
			s := string(append(m[1], m[2]...))
			if !bytes.Contains(readme, []byte("`"+s+"`")) || !bytes.Contains(head, []byte("//   "+s+" ")) {
				t.Errorf("%s reads %s, which loadtest/README.md or the top of ingest.js does not name", name, s)
			}
		}
	}
}
