package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// stranger answers every request of a search in a way of its own.
func stranger(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server.URL
}

func TestStrangeAnswersEndASearchWithAReason(t *testing.T) {
	const key = "mr_hush"
	says := func(status int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			name, value, _ := strings.Cut(header, ": ")
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set(name, value)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body)) // if it fails, so does the test
		}
	}
	isJSON := "Content-Type: application/json"
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string

		onlyLogs bool
	}{
		{"a page", says(200, "Content-Type: text/html", "<html>"), "is no query service: its answer is text/html", false},
		{"an escape sequence as type", says(200, "Content-Type: \x1b[2J", "x"), `\x1b[2J`, false},
		{"half an answer", says(200, isJSON, `{"logs":[`), "its answer can't be read", false},
		{"another answer", says(200, isJSON, `[1]`), "its answer can't be read", false},
		{"no records", says(200, isJSON, `{"logs":[1]}`), "its answer can't be read", true},
		{"null for a record", says(200, isJSON, `{"logs":[null]}`), "null in place of a record", true},
		{"a redirect", says(302, "Location: https://user:hush@other.example/login?token=hush", ""), "redirect to https://other.example/login, which is not followed", false},
		{"no key", says(401, isJSON, `{"error":"no"}`), "does not take the key in API_KEY", false},
		{"no scope", says(403, isJSON, `{"error":"the key has not the scope read"}`), "the key has not the scope read", false},
		{"a proxy's refusal", says(502, "Content-Type: text/html", "<html>bad gateway</html>"), "502 Bad Gateway", false},
		{"too much", says(504, isJSON, `{"error":"the query took longer than 10s"}`), "the query took longer than 10s", false},
		{"an escape sequence in a refusal", says(400, isJSON, `{"error":"\u001b]0;owned\u0007"}`), `\x1b]0;owned\a`, false},
		{"a place beyond the query", says(400, isJSON, `{"error":"q: unexpected at 99999999999999999999"}`), "unexpected at 99999999999999999999", false},
	} {
		for _, command := range []string{"logs", "stats"} {
			if command == "stats" && tt.onlyLogs {
				continue
			}
			t.Run(tt.name+", "+command, func(t *testing.T) {
				p := testenv.StartMillrace(t, t.TempDir(), []string{"QUERY_URL=" + stranger(t, tt.answer), "API_KEY=" + key}, command, "x")
				got := ended(t, p)
				if code := p.ProcessState.ExitCode(); code != 2 || !strings.Contains(got, tt.want) {
					t.Errorf("exit status %d and %q, want 2 and %q", code, got, tt.want)
				}
				if strings.Contains(got, "hush") || strings.ContainsAny(got, "\x1b\a") {
					t.Errorf("%q has a secret or an escape sequence", got)
				}
			})
		}
	}
}

func TestASearchIsRepeatedWhileTheServiceHasNoRoom(t *testing.T) {
	requests := make(chan string, 10)
	url := stranger(t, func(w http.ResponseWriter, r *http.Request) {
		requests <- r.Header.Get("X-API-Key")
		w.Header().Set("Content-Type", "application/json")
		if len(requests) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"error":"all database connections are in use"}`)) // if it fails, so does the test
			return
		}
		_, _ = w.Write([]byte(`{"logs":[{"id":"1","time":"2026-03-04T05:06:07.089Z","inserted_at":"2026-03-04T05:06:07.089Z","data":{"msg":"here"}}],"next":null}`))
	})
	p := testenv.StartMillrace(t, t.TempDir(), []string{"QUERY_URL=" + url, "API_KEY=mr_x", "TZ=UTC"}, "logs", "--utc")
	if got, want := ended(t, p), "2026-03-04 05:06:07.089 here\n"; got != want || p.ProcessState.ExitCode() != 0 {
		t.Errorf("got %q and status %d, want %q", got, p.ProcessState.ExitCode(), want)
	}
	if key := <-requests; key != "mr_x" {
		t.Errorf("the key was %q", key)
	}
}

func TestASilentServiceIsGivenUp(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	t.Chdir(t.TempDir()) // no .env
	t.Setenv("QUERY_URL", "http://"+listener.Addr().String())
	c, err := newQueryClient()
	if err != nil {
		t.Fatal(err)
	}
	c.answerTime = 50 * time.Millisecond
	if err := c.get(context.Background(), "/logs", nil, 0, new(logsPage)); err == nil || !strings.Contains(err.Error(), "no answer came in time") {
		t.Errorf("got %v, want that no answer came in time", err)
	}
	if _, err := c.tail(context.Background(), "", ""); err == nil {
		t.Error("a silent tail was joined")
	}
}

func TestCtrlCEndsASearchQuietly(t *testing.T) {
	arrived := make(chan bool, 1)
	url := stranger(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- true
		<-r.Context().Done()
	})
	for _, args := range [][]string{{"logs"}, {"logs", "-f"}, {"stats"}} {
		p := testenv.StartMillrace(t, t.TempDir(), []string{"QUERY_URL=" + url}, args...)
		<-arrived
		p.Signal(t, os.Interrupt)
		if got := ended(t, p); got != "" || p.ProcessState.ExitCode() != 130 {
			t.Errorf("%v: got %q and status %d, want nothing and 130", args, got, p.ProcessState.ExitCode())
		}
	}
}

func TestFlagsOfASearchThatContradictAreNamed(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"logs -n x", "-n"},
		{"logs -n 0", "-n"},
		{"logs -o xml", "text, json, csv"},
		{"logs -f -r", "-r"},
		{"logs -f --until now", "--until"},
		{"logs -C -1", "-C"},
		{"logs -C 501", "500"},
		{"logs -f -C 1", "-C"},
		{"logs --same service", "--same"},
		{"logs --since tomorrow", "--since"},
		{"logs -level:error timeout", "behind --"},
		{"logs --fields a", "-o csv"},
		{"logs --color red", "auto, always, never"},
		{"stats -o xml", "text, json, csv"},
		{"stats --until x", "--until"},
		{"stats --nonsense x", "nonsense"},
	} {
		p := testenv.StartMillrace(t, t.TempDir(), nil, strings.Fields(tt.args)...)
		if got := ended(t, p); p.ProcessState.ExitCode() != 2 || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q and status %d, want 2 and one line with %q", tt.args, got, p.ProcessState.ExitCode(), tt.want)
		}
	}
}

func TestFlagsMayStandBetweenTheWordsOfAQuery(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		q      string
		number string
	}{
		{[]string{"a", "-n", "5", "b"}, "a b", "5"},
		{[]string{"-n5", "a"}, "a", "5"},
		{[]string{"--n=5", "-f", "a"}, "a", "5"},
		{[]string{"-n", "5", "--", "-level:debug", "-f"}, "-level:debug -f", "5"},
		{[]string{"-n", "5", "-"}, "-", "5"},
	} {
		flags := newFlags("logs")
		number := flags.String("n", "", "")
		flags.Bool("f", false, "")
		if q, err := parseSearchFlags(flags, tt.args); q != tt.q || *number != tt.number || err != nil {
			t.Errorf("%q: got %q, n %q, %v, want %q, %q", tt.args, q, *number, err, tt.q, tt.number)
		}
	}
}

func TestTimesOfAWindowAreLocal(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	now := time.Date(2026, 3, 4, 15, 0, 0, 0, zone)
	for _, tt := range []struct {
		text, since, until string
	}{
		{"1h30m", "now-1h30m", "now-1h30m"},
		{"now-5m", "now-5m", "now-5m"},
		{"today", "2026-03-04T00:00:00+02:00", "2026-03-05T00:00:00+02:00"},
		{"yesterday", "2026-03-03T00:00:00+02:00", "2026-03-04T00:00:00+02:00"},
		{"2026-02-28", "2026-02-28T00:00:00+02:00", "2026-03-01T00:00:00+02:00"},
		{"2026-02-28 10:20", "2026-02-28T10:20:00+02:00", "2026-02-28T10:20:00+02:00"},
		{"2026-02-28T10:20:30.5Z", "2026-02-28T10:20:30.5Z", "2026-02-28T10:20:30.5Z"},
		{"1772000000", "1772000000", "1772000000"},
		{"soon", "", ""},
	} {
		since, _ := windowTime(tt.text, false, now)
		until, _ := windowTime(tt.text, true, now)
		if since != tt.since || until != tt.until {
			t.Errorf("%s: got %q and %q, want %q and %q", tt.text, since, until, tt.since, tt.until)
		}
	}
}

// TestLogsAndStatsAnswerFromARealService runs the commands against api, worker and query, and follows across a restart of query.
func TestLogsAndStatsAnswerFromARealService(t *testing.T) {
	db := testenv.Schema(t)
	apiAddr, queryAddr := testenv.FreeAddress(t), testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db),
		"API_ADDR=" + apiAddr, "QUERY_ADDR=" + queryAddr, "WORKER_ADDR=127.0.0.1:0", "SHUTDOWN_DELAY=0s"}
	services := map[string]*testenv.Process{}
	for _, name := range []string{"api", "worker", "query"} {
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}
	testenv.AwaitReady(t, apiAddr)
	testenv.AwaitReady(t, queryAddr)
	post := func(records ...string) {
		t.Helper()
		if status, answer := testenv.Post(t, "http://"+apiAddr+"/log/batch", []byte(strings.Join(records, "\n"))); status != http.StatusAccepted {
			t.Fatalf("got %d %v", status, answer)
		}
	}
	ask := func(status int, args ...string) string {
		t.Helper()
		p := testenv.StartMillrace(t, t.TempDir(), []string{"QUERY_URL=http://" + queryAddr, "TZ=UTC"}, args...)
		out := ended(t, p)
		if code := p.ProcessState.ExitCode(); code != status {
			t.Errorf("%q: exit status %d, want %d: %s", args, code, status, out)
		}
		return out
	}
	const records = 1200 // more than a page
	var batch []string
	begin := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	for i := range records {
		level := "info"
		if i%100 == 50 {
			level = "error"
		}
		batch = append(batch, fmt.Sprintf(`{"time":"%s","level":"%s","service":"shop","message":"step %d","n":%[3]d}`,
			begin.Add(time.Duration(i)*time.Millisecond).Format(time.RFC3339Nano), level, i))
	}
	post(batch...)
	testenv.Eventually(t, 20*time.Second, "all records are there", func() bool {
		_, answer := testenv.Get(t, "http://"+queryAddr+"/logs/count")
		return answer["count"] == float64(records)
	})

	for _, args := range [][]string{{"-n", "all"}, {"-n", "1200"}} {
		lines := strings.Split(strings.TrimSpace(ask(0, "logs", args[0], args[1], "-o", "json")), "\n")
		if len(lines) != records {
			t.Fatalf("%q: got %d lines, want %d", args, len(lines), records)
		}
		for i, line := range lines {
			var r struct{ Data struct{ N int } }
			if err := json.Unmarshal([]byte(line), &r); err != nil || r.Data.N != i {
				t.Fatalf("%q: line %d is %q: %v", args, i, line, err)
			}
		}
	}
	if got, want := ask(0, "logs", "-n1", "level:error"), begin.Add(1150*time.Millisecond).Format("2006-01-02 15:04:05.000")+" ERROR shop step 1150 n=1150"; !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q first", got, want)
	}
	var context []string
	for line := range strings.SplitSeq(strings.TrimRight(ask(0, "logs", "-C", "1", "--", "n:(10, 11, 14, 20)"), "\n"), "\n") {
		mark, step := line[:1], line[strings.LastIndexByte(line, ' ')+1:]
		if i := strings.Index(line, " step "); i > 0 {
			step = strings.Fields(line[i:])[1]
		}
		context = append(context, mark+step)
	}
	if got, want := strings.Join(context, ","), " 9,>10,>11, 12, 13,>14, 15,---, 19,>20, 21"; got != want {
		t.Errorf("with context: got %s, want %s", got, want)
	}
	if got, want := ask(0, "stats", "--by", "level", "--calc", "count,max(n)"), "level  count  max(n)\ninfo    1188    1199\nerror     12    1150\n"; got != want {
		t.Errorf("stats: got\n%swant\n%s", got, want)
	}
	if got, want := ask(0, "stats", "-o", "json", "level:error"), `{"count":12}`+"\n"; got != want {
		t.Errorf("stats: got %q, want %q", got, want)
	}
	if got := ask(1, "logs", "n=2000"); strings.Contains(got, "step") {
		t.Errorf("nothing found, but it prints %q", got)
	}
	if got, want := ask(2, "logs", "level:error)"), "unexpected ) at 12\n  level:error)\n             ^\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	follow := testenv.StartMillrace(t, t.TempDir(), []string{"QUERY_URL=http://" + queryAddr}, "logs", "-f", "-n", "2", "service:shop", "OR", "late")
	shows := func(what string) {
		t.Helper()
		testenv.Eventually(t, 60*time.Second, "the tail shows "+what, func() bool { return strings.Contains(follow.Out.String(), what+" ") })
	}
	shows("step 1199")
	// The tail has given no record yet. It goes on from where it began, and gives also what was made before and is stored only now.
	services["query"].Stop(t)
	post(`{"level":"info","message":"late one","n":1}`, `{"level":"info","message":"other","n":1}`)
	request, err := http.NewRequest(http.MethodPost, "http://"+apiAddr+"/log", strings.NewReader(`{"level":"info","message":"late and old","n":1}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Idempotency-Key", frame.BaseAt(time.Now().Add(-time.Hour)).String())
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body.Close(); answer.StatusCode != http.StatusAccepted {
		t.Fatalf("got %s", answer.Status)
	}
	services["query"] = testenv.StartMillrace(t, t.TempDir(), env, "query")
	shows("late one")
	shows("late and old")
	post(`{"level":"info","message":"late two","n":1}`)
	shows("late two")
	// Now it has given some. This time the service is killed.
	services["query"].Signal(t, syscall.SIGKILL)
	<-services["query"].Done
	post(`{"level":"info","message":"late three","n":1}`)
	services["query"] = testenv.StartMillrace(t, t.TempDir(), env, "query")
	shows("late three")
	post(`{"level":"info","message":"late four","n":1}`)
	shows("late four")
	follow.Signal(t, os.Interrupt)
	out := ended(t, follow)
	for _, what := range []string{"step 1198 ", "step 1199 ", "late one ", "late and old ", "late two ", "late three ", "late four "} {
		if n := strings.Count(out, what); n != 1 {
			t.Errorf("the tail shows %q %d times, want once", what, n)
		}
	}
	if strings.Contains(out, "other") || strings.Contains(out, "step 1197") {
		t.Error("the tail shows more than was asked for")
	}
	for _, name := range []string{"api", "worker", "query"} {
		services[name].Stop(t)
	}
}
