package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// hooks is a receiver of webhooks. It keeps what it gets.
type hooks struct {
	*httptest.Server
	mu     sync.Mutex
	bodies [][]byte
	ids    []string // of X-Millrace-Message
}

func newHooks(t *testing.T) *hooks {
	h := new(hooks)
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender was killed: it was not received
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.bodies, h.ids = append(h.bodies, body), append(h.ids, r.Header.Get("X-Millrace-Message"))
	}))
	t.Cleanup(h.Close)
	return h
}

// told is what a webhook was told of a group.
type told struct{ firing, resolved, samples int }

// groups returns what Millrace told of each service. A message that comes again with its id counts once; repeated says how many did.
func (h *hooks) groups(t *testing.T) (groups map[string]told, repeated int) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	groups = make(map[string]told)
	seen := make(map[string]bool)
	for i, body := range h.bodies {
		if seen[h.ids[i]] {
			repeated++
			continue
		}
		seen[h.ids[i]] = true
		var m struct {
			ID     string
			Groups []struct {
				Status  string
				Group   map[string]string
				Samples []json.RawMessage
			}
		}
		if err := json.Unmarshal(body, &m); err != nil || m.ID != h.ids[i] {
			t.Fatalf("%v: %s", err, body)
		}
		for _, g := range m.Groups {
			of := groups[g.Group["service"]]
			if g.Status == "firing" {
				of.firing++
				of.samples += len(g.Samples)
			} else {
				of.resolved++
			}
			groups[g.Group["service"]] = of
		}
	}
	return groups, repeated
}

// holds returns how many of what came hold a text.
func (h *hooks) holds(text string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, body := range h.bodies {
		if bytes.Contains(body, []byte(text)) {
			n++
		}
	}
	return n
}

// alertmanager starts a real Alertmanager that tells a receiver, and returns its URL. Where it is not installed the test is skipped.
func alertmanager(t *testing.T, tells string) string {
	t.Helper()
	program := testenv.FindProgram("prometheus-alertmanager", "alertmanager")
	if program == "" {
		t.Skip("prometheus-alertmanager is not installed: make test installs it where it can")
	}
	dir, addr := t.TempDir(), testenv.FreeAddress(t)
	file := filepath.Join(dir, "alertmanager.yml")
	text := fmt.Sprintf("route: {receiver: test, group_by: [alertname], group_wait: 500ms, group_interval: 1s, repeat_interval: 1h}\nreceivers:\n  - name: test\n    webhook_configs: [{url: %q, send_resolved: true}]\n", tells)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.RunProgram(t, nil, program, "--config.file="+file, "--storage.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--cluster.listen-address=")
	testenv.Eventually(t, 30*time.Second, "Alertmanager is ready", func() bool {
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return "http://" + addr
}

// alertsOf returns the states of Alertmanager's alerts by the label service.
func alertsOf(t *testing.T, url string) map[string]string {
	t.Helper()
	resp, err := http.Get(url + "/api/v2/alerts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	var alerts []struct {
		Labels, Annotations map[string]string
		GeneratorURL        string
		Status              struct{ State string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&alerts); err != nil {
		t.Fatal(err)
	}
	states := make(map[string]string)
	for _, a := range alerts {
		if a.Labels["alertname"] != "errors" || a.Labels["severity"] != "page" || !strings.HasPrefix(a.GeneratorURL, "http://page.example/?") || a.Annotations["summary"] == "" {
			t.Errorf("got %+v", a)
		}
		states[a.Labels["service"]] = a.Status.State
	}
	return states
}

// TestAlertsAreToldOnceWhileQueryServicesAreKilled runs two query services whose searches tell a webhook and a real Alertmanager. In each round one is
// killed and started again while records come for which a group fires, and is resolved when no more come. Each group fires once and is resolved once.
func TestAlertsAreToldOnceWhileQueryServicesAreKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	rounds := 8
	own, managed := newHooks(t), newHooks(t)
	manager := alertmanager(t, managed.URL)
	_, writer, reader, admin := withRoles(t)
	b := testenv.Broker(t, 1)
	api := RunAPI(t, b, map[string]string{})
	RunWorker(t, b, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(writer)})

	dir := t.TempDir()
	file := filepath.Join(dir, "searches.yaml")
	text := fmt.Sprintf(`page: http://page.example
receivers:
  - {name: hook, webhook: %q, secret: 0123456789abcdef}
  - {name: manager, alertmanager: %q}
searches:
  - {name: errors, q: "level:error", when: count > 0 in 3s, by: service, every: 1s, delay: 1s, keep_firing: 2s, labels: {severity: page}, tell: [hook, manager]}
`, own.URL, manager)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	addrs := []string{testenv.FreeAddress(t), testenv.FreeAddress(t)}
	services := make([]*testenv.Process, len(addrs))
	begin := func(i int) {
		t.Helper()
		services[i] = testenv.StartMillrace(t, dir, []string{"POSTGRES_URL=" + string(reader), "QUERY_ADDR=" + addrs[i], "SEARCHES_FILE=" + file}, "query")
		testenv.AwaitReady(t, addrs[i])
	}
	for i := range services {
		begin(i)
	}
	post := func(service string) {
		t.Helper()
		status, answer := testenv.Post(t, "http://"+api+"/log/batch", []byte(strings.Repeat(fmt.Sprintf("{\"level\":\"error\",\"service\":%q}\n", service), 5)))
		if status/100 != 2 {
			t.Fatalf("got %d %v", status, answer)
		}
	}

	// Before the kills: two groups at once, one of them silenced.
	silence := fmt.Sprintf(`{"matchers": [{"name": "service", "value": "silenced", "isRegex": false, "isEqual": true}], "startsAt": %q, "endsAt": %q, "createdBy": "test", "comment": "test"}`,
		time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	if status, answer := testenv.Post(t, manager+"/api/v2/silences", []byte(silence)); status != http.StatusOK {
		t.Fatalf("got %d %v", status, answer)
	}
	post("shop")
	post("silenced")
	testenv.Eventually(t, time.Minute, "Alertmanager has both", func() bool {
		states := alertsOf(t, manager)
		return states["shop"] == "active" && states["silenced"] == "suppressed"
	})
	testenv.Eventually(t, time.Minute, "Alertmanager tells of one", func() bool { return managed.holds(`"shop"`) > 0 })

	want := []string{"shop", "silenced"}
	for round := range rounds {
		i := round % len(services)
		name := fmt.Sprintf("service-%d", round)
		want = append(want, name)
		post(name)
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond) // the moment of the kill is what the test varies
		services[i].Signal(t, syscall.SIGKILL)
		<-services[i].Done
		if round%4 == 3 { // nobody is left for a moment: nothing is missed
			services[1-i].Signal(t, syscall.SIGKILL)
			<-services[1-i].Done
			begin(1 - i)
		}
		testenv.Eventually(t, time.Minute, name+" fires", func() bool {
			groups, _ := own.groups(t)
			return groups[name].firing > 0
		})
		begin(i)
	}
	testenv.Eventually(t, time.Minute, "all are resolved", func() bool {
		groups, _ := own.groups(t)
		for _, name := range want {
			if groups[name].resolved == 0 {
				return false
			}
		}
		return true
	})
	groups, repeated := own.groups(t)
	for _, name := range want {
		if got := groups[name]; got.firing != 1 || got.resolved != 1 || got.samples != 3 {
			t.Errorf("%s: told %d times that it fires, with %d records, %d times that it is resolved; want once, 3, once", name, got.firing, got.samples, got.resolved)
		}
		if n := testenv.Count(t, admin, `SELECT count(*) FROM millrace_search_changes WHERE "group"->'values'->>0 = $1`, name); n != 2 {
			t.Errorf("%s: the history has %d changes, want 2", name, n)
		}
	}
	testenv.Eventually(t, time.Minute, "Alertmanager has none left", func() bool { return len(alertsOf(t, manager)) == 0 })
	testenv.Eventually(t, time.Minute, "Alertmanager tells that they are resolved", func() bool { return managed.holds(`"resolved"`) > 0 })
	if n := managed.holds(`"silenced"`); n != 0 {
		t.Errorf("Alertmanager told %d times of what is silenced", n)
	}
	for _, name := range want {
		if n := managed.holds(`"` + name + `"`); name != "silenced" && n == 0 {
			t.Errorf("Alertmanager told nothing of %s", name)
		}
	}
	// Of the records that fired, how long until they did.
	slowest := testenv.Count(t, admin, `SELECT max(extract(epoch FROM c.at - l.at) * 1000)::int FROM millrace_search_changes c
		JOIN (SELECT data->>'service' AS service, min(inserted_at) AS at FROM logs GROUP BY 1) l ON l.service = c."group"->'values'->>0 WHERE c.what = 'fired'`)
	t.Logf("%d groups; %d messages came again with their id; the slowest fired %d ms after its record came, of which 1000 are the delay", len(want), repeated, slowest)
}

// TestAMistakeLeavesTheSearchesOfBefore has a mistake come on line 40 of a file that is in force, and a service start with it.
func TestAMistakeLeavesTheSearchesOfBefore(t *testing.T) {
	db := testenv.Schema(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "searches.yaml")
	good := "searches:\n"
	for i := range 13 {
		good += fmt.Sprintf("  - name: s%d\n    q: level:error\n    when: count > %d in 1m\n", i, i)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(good, "\n")
	lines[39] = strings.Replace(lines[39], "count >", "counts >", 1) // line 40
	wrong := strings.Join(lines, "\n")
	const want = `line 40: search s12: when: `

	addr := testenv.FreeAddress(t)
	env := []string{"POSTGRES_URL=" + string(db), "QUERY_ADDR=" + addr, "SEARCHES_FILE=" + file}
	write(good)
	p := testenv.StartMillrace(t, dir, env, "query")
	testenv.AwaitReady(t, addr)
	overview := func() (searches int, fault string) {
		_, answer := testenv.Get(t, "http://"+addr+"/searches")
		fault, _ = answer["file"].(map[string]any)["error"].(string)
		return len(answer["searches"].([]any)), fault
	}
	if n, fault := overview(); n != 13 || fault != "" {
		t.Fatalf("got %d searches, %s", n, fault)
	}
	write(wrong)
	testenv.Eventually(t, 10*time.Second, "the mistake is told", func() bool {
		n, fault := overview()
		return n == 13 && strings.Contains(fault, want) && strings.Contains(p.Out.String(), strings.ReplaceAll(want, `"`, `\"`))
	})
	if status, text := testenv.Readiness(addr); status != http.StatusOK {
		t.Errorf("/ready: got %d %s, want it to stay ready", status, text)
	}
	p.Stop(t)

	p = testenv.StartMillrace(t, dir, env, "query")
	testenv.AwaitReady(t, addr)
	if n, fault := overview(); n != 0 || !strings.Contains(fault, want) {
		t.Errorf("after a start: got %d searches, %s", n, fault)
	}
	write(good)
	testenv.Eventually(t, 10*time.Second, "the file is taken", func() bool {
		n, fault := overview()
		return n == 13 && fault == ""
	})
	check := testenv.StartMillrace(t, dir, nil, "searches", "check", file)
	<-check.Done
	if out := check.Out.String(); check.ProcessState.ExitCode() != 0 || !strings.Contains(out, "13 searches, 13 with a condition") {
		t.Errorf("check: got status %d, %s", check.ProcessState.ExitCode(), out)
	}
	write(wrong)
	check = testenv.StartMillrace(t, dir, nil, "searches", "check", file)
	<-check.Done
	if out := check.Out.String(); check.ProcessState.ExitCode() != 1 || !strings.Contains(out, file+":40: search s12: when: ") {
		t.Errorf("check: got status %d, %s", check.ProcessState.ExitCode(), out)
	}
	p.Stop(t)
}
