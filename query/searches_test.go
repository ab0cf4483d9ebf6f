package query

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// searchesAnswer is the answer to GET /searches, as far as the tests look at it.
type searchesAnswer struct {
	File     *struct{ Taken, Error string }
	Searches []struct {
		Name, State, Failure string
		Alerts               []struct {
			State, Pattern string
			Group          map[string]*string
			Count          int
			Value          map[string]json.RawMessage
		}
		History []struct{ What, Pattern string }
	}
	Receivers []struct {
		Name, Kind, Failure string
		To                  []string
		Waiting             int
		GivenUp             int `json:"given_up"`
	}
}

func (f fixture) searches() (a searchesAnswer) {
	f.t.Helper()
	f.ok("/searches", &a)
	return a
}

// TestEachKindOfConditionAlerts has a group over a bound, a silent one, a new pattern, and a receiver that refuses.
func TestEachKindOfConditionAlerts(t *testing.T) {
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not\x1bhere", http.StatusGone) }))
	t.Cleanup(refuses.Close)
	file := filepath.Join(t.TempDir(), "searches.yaml")
	text := fmt.Sprintf(`receivers: [{name: chat, webhook: %q}]
searches:
  - {name: slow, when: "p50(ms) > 10, count >= 2 in 1m", by: path, every: 1s, delay: 0s, tell: chat}
  - {name: silent, when: absent in 1m, by: path, every: 1s, delay: 0s}
  - {name: nothing, q: level:fatal, when: absent in 1m, every: 1s, delay: 0s}
  - {name: new, q: level:error, when: new pattern in 1m, every: 1s, delay: 0s}
  - {name: counted, q: level:error}
`, refuses.URL+"/path-of-a-token")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	url := testenv.Schema(t)
	db := testenv.Connect(t, url)
	now := time.Now()
	for _, at := range []time.Time{now.Add(-2 * time.Hour), now, now.Add(time.Hour)} {
		partition(t, db, at)
	}
	insert(t, db, now.Add(-2*time.Hour), 0, `{"path":"/old","level":"error","message":"took 5 ms"}`)
	insert(t, db, now, 0, `{"path":"/a","ms":20}`, `{"path":"/a","ms":30}`, `{"path":"/b","ms":1}`, `{"path":"/b","ms":2}`, `{"ms":50}`,
		`{"path":"/b","level":"error","message":"took 9 ms"}`, `{"path":"/b","level":"error","message":"disk full"}`)
	f := fixture{start(t, map[string]string{"POSTGRES_URL": string(url), "SEARCHES_FILE": file}), db, url}

	testenv.Eventually(t, time.Minute, "all that should fires, and the receiver has refused", func() bool {
		a := f.searches()
		states := make(map[string]string)
		for _, s := range a.Searches {
			if s.Failure != "" {
				t.Fatalf("%s: %s", s.Name, s.Failure)
			}
			states[s.Name] = s.State
		}
		return states["slow"] == "firing" && states["silent"] == "firing" && states["nothing"] == "firing" && states["new"] == "firing" && states["counted"] == "counted" && a.Receivers[0].GivenUp > 0
	})
	a := f.searches()
	if s := a.Searches[0]; len(s.Alerts) != 1 || *s.Alerts[0].Group["path"] != "/a" || s.Alerts[0].Count != 2 || string(s.Alerts[0].Value["p50(ms)"]) != "25" {
		t.Errorf("slow: got %+v", s)
	}
	if s := a.Searches[1]; len(s.Alerts) != 1 || *s.Alerts[0].Group["path"] != "/old" {
		t.Errorf("silent: got %+v", s)
	}
	if s := a.Searches[3]; len(s.Alerts) != 1 || s.Alerts[0].Pattern != "disk full" || len(s.History) != 1 {
		t.Errorf("new: got %+v", s)
	}
	if r := a.Receivers[0]; r.Failure != "the answer is 410 Gone: not here" || !slices.Equal(r.To, []string{refuses.URL}) || r.Kind != "webhook" {
		t.Errorf("receiver: got %+v", r)
	}

	// Records are counted as they are stored, from when the service has begun to follow.
	metric := regexp.MustCompile(`millrace_search_matches_total\{search="counted"\} (\d+)`)
	testenv.Eventually(t, time.Minute, "records are counted", func() bool {
		insert(t, db, time.Now(), 0, `{"level":"error"}`, `{"level":"info"}`)
		m := metric.FindStringSubmatch(f.get("/metrics").body)
		return m != nil && m[1] != "0"
	})
}

// TestSearchesThatLeaveTheFileAreResolved has the state of a search that was evaluated last long ago.
func TestSearchesThatLeaveTheFileAreResolved(t *testing.T) {
	got := make(chan string, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct {
			Search, Status string
			Groups         []struct{ Group map[string]string }
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err == nil && len(m.Groups) == 1 {
			got <- m.Search + " " + m.Status + " " + m.Groups[0].Group["service"]
		}
	}))
	t.Cleanup(hook.Close)
	file := filepath.Join(t.TempDir(), "searches.yaml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf("receivers: [{name: chat, webhook: %q}]\n", hook.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil)
	f.exec(`INSERT INTO millrace_searches (name, definition, every_seconds, receivers, evaluated_at, took_ms, state) VALUES ('gone', 'x', 60, '{chat}', now() - interval '1 hour', 0,
		'{"alerts": {"[\"shop\"]": {"group": {"fields": ["service"], "values": ["shop"], "count": 1}, "since": "2026-03-04T12:00:00Z", "held": "2026-03-04T12:00:00Z", "fired": "2026-03-04T12:00:00Z"}}}'),
		('young', 'x', 60, '{chat}', now(), 0, '{}')`)
	start(t, map[string]string{"POSTGRES_URL": string(f.url), "SEARCHES_FILE": file})
	select {
	case text := <-got:
		if text != "gone resolved shop" {
			t.Errorf("got %s", text)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing was told")
	}
	testenv.AwaitCount(t, f.db, 1, "SELECT count(*) FROM millrace_searches")
	testenv.AwaitCount(t, f.db, 1, "SELECT count(*) FROM millrace_search_messages WHERE state = 'sent'")
}

// TestSearchesWithoutTheirTablesDisturbNothing has a database of before.
func TestSearchesWithoutTheirTablesDisturbNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "searches.yaml")
	if err := os.WriteFile(file, []byte("searches: [{name: a, when: count > 0 in 1m, every: 1s}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil)
	f.exec("DROP TABLE millrace_search_messages, millrace_search_changes, millrace_searches")
	c := start(t, map[string]string{"POSTGRES_URL": string(f.url), "SEARCHES_FILE": file})
	testenv.AwaitReady(t, strings.TrimPrefix(c.base, "http://"))
	var a struct {
		StateError string `json:"state_error"`
		Searches   []struct{ State string }
	}
	if c.ok("/searches", &a); a.StateError == "" || len(a.Searches) != 1 || a.Searches[0].State != "new" {
		t.Errorf("got %+v", a)
	}
	if c.ok("/logs", new(logsPage)); t.Failed() {
		t.Error("searches do not answer")
	}
}
