package cli

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m, Main) }

func TestRunStoresShowsStopsAndKeeps(t *testing.T) {
	if testing.Short() {
		t.Skip("starts private servers twice")
	}
	testenv.NeedServers(t)
	dir := t.TempDir()
	api, query := testenv.FreeAddress(t), testenv.FreeAddress(t)
	env := []string{"API_ADDR=" + api, "QUERY_ADDR=" + query, "WORKER_ADDR=127.0.0.1:0"}
	var id string
	for run := range 2 {
		p := testenv.StartMillrace(t, dir, env, "run")
		testenv.Eventually(t, time.Minute, "millrace run says that it runs", func() bool {
			select {
			case <-p.Done:
				t.Fatal("millrace run ended")
			default:
			}
			return strings.Contains(p.Out.String(), "Millrace is running")
		})
		if run == 0 {
			if want := "Millrace is running. Search and follow the logs at http://" + query + "/\n"; !strings.Contains(p.Out.String(), want) {
				t.Errorf("want %q first", want)
			}
			targetsAnswer(t, dir)
			servers, err := os.ReadFile(filepath.Join(dir, ".millrace", "env"))
			if err != nil {
				t.Fatal(err)
			}
			for _, password := range regexp.MustCompile(`:([^:/@]+)@`).FindAllStringSubmatch(string(servers), -1) {
				if strings.Contains(p.Out.String(), password[1]) {
					t.Errorf("a password of %s is shown", servers)
				}
			}
			status, answer := testenv.Post(t, "http://"+api+"/log", []byte(`{"level":"info","message":"testing the platform"}`))
			if status != http.StatusAccepted {
				t.Fatalf("POST /log: got %d %v, want 202", status, answer)
			}
			id = answer["id"].(string)
		}
		testenv.Eventually(t, 5*time.Second, "the record is there", func() bool {
			status, answer := testenv.Get(t, "http://"+query+"/logs/"+id)
			return status == http.StatusOK && answer["data"].(map[string]any)["message"] == "testing the platform"
		})
		if took := p.Stop(t); took > 15*time.Second+testenv.Patience {
			t.Errorf("the stop took %v, want at most 15 s on an idle machine", took)
		}
		if left := processesIn(t, dir); len(left) > 0 {
			t.Errorf("these processes are left: %v", left)
		}
	}
}

// targetsAnswer checks the files that millrace run in dir writes for Prometheus and for shells.
func targetsAnswer(t *testing.T, dir string) {
	var groups []struct {
		Targets []string
		Labels  map[string]string
	}
	testenv.Eventually(t, 10*time.Second, "millrace run lists its targets", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, ".millrace", "targets.json"))
		return err == nil && json.Unmarshal(b, &groups) == nil
	})
	var jobs []string
	for _, g := range groups {
		jobs = append(jobs, g.Labels["job"])
		for _, target := range g.Targets {
			resp, err := http.Get(g.Labels["__scheme__"] + "://" + target + "/metrics")
			if err != nil {
				t.Fatalf("%s: %v", g.Labels["job"], err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s at %s answers %d", g.Labels["job"], target, resp.StatusCode)
			}
		}
	}
	if want := []string{"api", "worker", "query", "rabbitmq"}; !slices.Equal(jobs, want) {
		t.Errorf("targets.json has %v, want %v", jobs, want)
	}
	out, err := exec.Command("sh", "-c", `. "$0"; echo $POSTGRES_URL $RABBITMQ_URL $REDIS_URL`, filepath.Join(dir, ".millrace", "env")).CombinedOutput()
	if err != nil || !regexp.MustCompile(`^postgres://\S+ amqp://\S+ redis://\S+\n$`).Match(out) {
		t.Errorf("env says %q: %v", out, err)
	}
}

// processesIn returns the command lines of processes that name dir.
func processesIn(t testing.TB, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func TestStackRunsACommandAndExitsWithItsStatus(t *testing.T) {
	if testing.Short() {
		t.Skip("starts private servers")
	}
	testenv.NeedServers(t)
	p := testenv.StartMillrace(t, t.TempDir(), nil, "stack", "--", "sh", "-c", "echo $POSTGRES_URL $RABBITMQ_URL $REDIS_URL; exit 7")
	<-p.Done
	if code := p.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit status %d, want the command's 7", code)
	}
	if !regexp.MustCompile(`^postgres://\S+ amqp://\S+ redis://\S+\n`).MatchString(p.Out.String()) {
		t.Errorf("the command was told %q", p.Out)
	}
}

func TestMistakesOnTheCommandLineAreNamed(t *testing.T) {
	tests := []struct {
		args []string
		env  []string
		code int
		want string
	}{
		{nil, nil, 2, "millrace help"},
		{[]string{"bake"}, nil, 2, `"bake"`},
		{[]string{"api", "now"}, nil, 2, `"now"`},
		{[]string{"run", "--port", "1"}, nil, 2, "port"},
		{[]string{"stack"}, nil, 2, "no command to run"},
		{[]string{"migrate", "sideways"}, nil, 2, "up, down, status"},
		{[]string{"keys", "new", "me", "--scope", "admin"}, nil, 2, "admin"},
		{[]string{"keys", "new", "me", "--scope", "write", "--rate", "-1"}, nil, 2, "rate -1"},
		{[]string{"keys", "new", "me", "--scope", "write", "--burst", "5"}, nil, 2, "without a rate"},
		{[]string{"dead", "show", "x"}, nil, 2, `"x"`},
		{[]string{"dead", "drop"}, nil, 2, "--all"},
		{[]string{"archive", "bake"}, nil, 2, `"bake"`},
		{[]string{"archive", "restore"}, nil, 2, "one RANGE"},
		{[]string{"archive", "restore", "yesterday"}, nil, 2, `"yesterday"`},
		{[]string{"archive", "ls", "2026-11-24/2026-11-23"}, nil, 2, "ends before it begins"},
		{[]string{"archive", "restore", "--keep", "long", "2026-11-24"}, nil, 2, `"long"`},
		{[]string{"archive", "verify"}, nil, 1, "ARCHIVE_URL is not set"},
		{[]string{"archive", "ls"}, nil, 1, "POSTGRES_URL is not set"},
		{[]string{"archive", "ls"}, []string{"ARCHIVE_URL=s3://key:secret@bucket"}, 1, "AWS_ACCESS_KEY_ID"},
		{[]string{"worker"}, []string{"ARCHIVE_URL=file://host/folder"}, 1, "ARCHIVE_URL: names a host"},
		{[]string{"help", "bake"}, nil, 2, `"bake"`},
		{[]string{"dead", "list"}, nil, 1, "POSTGRES_URL is not set"},
		{[]string{"api"}, nil, 1, "RABBITMQ_URL is not set"},
		{[]string{"worker"}, nil, 1, "POSTGRES_URL is not set"},
		{[]string{"api"}, []string{"FRAME_BYTES=lots"}, 1, `FRAME_BYTES: got "lots", takes a size`},
		{[]string{"run"}, []string{"BATCH_ROWS=0"}, 1, `BATCH_ROWS: got "0", takes`},
		{[]string{"query"}, []string{"POSTGRES_URL=postgres://h/d", "QUERY_ADDR=0.0.0.0:0"}, 1, "KEYS_FILE"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			p := testenv.StartMillrace(t, t.TempDir(), tt.env, tt.args...)
			<-p.Done
			got := p.Out.String()
			if code := p.ProcessState.ExitCode(); code != tt.code || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("exit status %d and %q, want %d and one line with %q", code, got, tt.code, tt.want)
			}
		})
	}
}

func TestAHangupHasTheKeysReadAgainAndEndsNothing(t *testing.T) {
	db := testenv.Schema(t)
	keysFile := filepath.Join(t.TempDir(), "keys")
	newKey := func(name string) (line, secret string) {
		t.Helper()
		p := testenv.StartMillrace(t, t.TempDir(), nil, "keys", "new", name, "--scope", "write,read", "--rate", "100")
		<-p.Done
		m := regexp.MustCompile(`^key, shown once: +(\S+)\nfor KEYS_FILE: +(\S+ \S+ write,read rate=100 burst=100)\n$`).FindStringSubmatch(p.Out.String())
		if m == nil {
			t.Fatalf("millrace keys new printed %q", p.Out)
		}
		return m[2], m[1]
	}
	first, firstSecret := newKey("first")
	second, secondSecret := newKey("second")
	write := func(line string) {
		t.Helper()
		if err := os.WriteFile(keysFile, []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	apiAddr, queryAddr := testenv.FreeAddress(t), testenv.FreeAddress(t)
	env := []string{"RABBITMQ_URL=" + os.Getenv("RABBITMQ_URL"), "POSTGRES_URL=" + string(db), "KEYS_FILE=" + keysFile,
		"API_ADDR=" + apiAddr, "QUERY_ADDR=" + queryAddr, "WORKER_ADDR=127.0.0.1:0"}
	services := map[string]*testenv.Process{}
	for _, name := range []string{"api", "worker", "query"} {
		services[name] = testenv.StartMillrace(t, t.TempDir(), env, name)
	}
	ask := func(method, url, secret string) int {
		req, err := http.NewRequest(method, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0 // it is starting
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	lets := func(what, in, out string) {
		t.Helper()
		testenv.Eventually(t, 20*time.Second, what, func() bool {
			return ask("POST", "http://"+apiAddr+"/log", in) == 202 && ask("GET", "http://"+queryAddr+"/logs", in) == 200 &&
				ask("POST", "http://"+apiAddr+"/log", out) == 401 && ask("GET", "http://"+queryAddr+"/logs", out) == 401
		})
	}
	lets("the first key lets in", firstSecret, secondSecret)
	// Before it is up, a SIGHUP ends it as it ends any program.
	testenv.Eventually(t, 20*time.Second, "the worker is up", func() bool { return strings.Contains(services["worker"].Out.String(), "worker is up") })
	write(second)
	for _, p := range services {
		p.Signal(t, syscall.SIGHUP)
	}
	lets("the second key lets in, the first no more", secondSecret, firstSecret)
	for _, name := range []string{"api", "query"} {
		testenv.Eventually(t, 5*time.Second, name+" says so", func() bool { return strings.Contains(services[name].Out.String(), "read the keys again") })
	}
	for _, name := range []string{"api", "worker", "query"} {
		services[name].Stop(t)
	}
}

// TestEachServiceServesItsProfilesWhereItIsTold runs the services without servers: they start all the same.
func TestEachServiceServesItsProfilesWhereItIsTold(t *testing.T) {
	env := []string{"RABBITMQ_URL=amqp://127.0.0.1:1/", "POSTGRES_URL=postgres://127.0.0.1:1/none", "API_ADDR=127.0.0.1:0",
		"WORKER_ADDR=127.0.0.1:0", "QUERY_ADDR=127.0.0.1:0", "SHUTDOWN_DELAY=0s"}
	for _, name := range []string{"api", "worker", "query"} {
		addr := testenv.FreeAddress(t)
		p := testenv.StartMillrace(t, t.TempDir(), append(env, "PPROF_ADDR="+addr), name)
		testenv.Eventually(t, 20*time.Second, name+" serves profiles", func() bool {
			resp, err := http.Get("http://" + addr + "/debug/pprof/heap")
			if err != nil {
				return false // it is starting
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		p.Stop(t)

		p = testenv.StartMillrace(t, t.TempDir(), append(env, "PPROF_ADDR=0.0.0.0:6060"), name)
		<-p.Done
		if want := "millrace: PPROF_ADDR: got \"0.0.0.0:6060\", takes host:port of this machine alone such as 127.0.0.1:6060\n"; p.Out.String() != want || p.ProcessState.ExitCode() != 1 {
			t.Errorf("%s: got %q, status %d, want %q and 1", name, p.Out, p.ProcessState.ExitCode(), want)
		}
	}
}
