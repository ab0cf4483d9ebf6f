package deploy

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"millrace/api"
	"millrace/internal/cli"
	"millrace/internal/config"
	"millrace/internal/testenv"
	"millrace/query"
	"millrace/worker"
)

// cloned copies deploy/ into an empty folder, with the modes that git clone gives under umask 077, and returns the folder.
func cloned(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := filepath.WalkDir("deploy", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(dir, path), 0o700)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), content, info.Mode().Perm()&0o700)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// envScript runs deploy/env.sh in a folder that cloned has made, and returns its output.
func envScript(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(dir, "deploy/env.sh")).CombinedOutput()
	if err != nil {
		t.Fatalf("deploy/env.sh: %v: %s", err, out)
	}
	return string(out)
}

// generated returns the settings that deploy/env.sh writes where there is no .env.
func generated(t *testing.T) map[string]string {
	t.Helper()
	dir := cloned(t)
	var text []byte
	for range 2 { // the second time there is nothing to add
		envScript(t, dir)
		now, err := os.ReadFile(filepath.Join(dir, ".env"))
		if err != nil {
			t.Fatal(err)
		}
		if text != nil && string(text) != string(now) {
			t.Error("deploy/env.sh changes what it wrote")
		}
		text = now
	}
	if info, err := os.Stat(filepath.Join(dir, ".env")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf(".env with passwords: mode %v, %v", info.Mode(), err)
	}
	env, err := dotenv.UnmarshalBytesWithLookup(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// compose loads docker-compose.yml with these profiles, as docker compose does. It fails for a variable that is not set and
// has no default.
func compose(t *testing.T, env map[string]string, profiles ...string) (*types.Project, error) {
	t.Helper()
	var warnings strings.Builder
	out := logrus.StandardLogger().Out
	logrus.SetOutput(&warnings)
	defer logrus.SetOutput(out)
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  must(os.Getwd()),
		ConfigFiles: []types.ConfigFile{{Filename: "docker-compose.yml"}},
		Environment: env,
	}, func(o *loader.Options) { o.Profiles = profiles })
	if warnings.Len() > 0 {
		t.Errorf("docker-compose.yml: %s", &warnings)
	}
	return project, err
}

// TestTheContainersUsersCanReadWhatIsMounted looks at the files' modes after deploy/env.sh, in a clone with a strict umask.
func TestTheContainersUsersCanReadWhatIsMounted(t *testing.T) {
	project, err := compose(t, generated(t), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	dir := cloned(t)
	if out := envScript(t, dir); strings.Contains(out, "may lack") {
		t.Error(out)
	}
	repository := must(os.Getwd())
	mounts := 0
	for _, s := range project.Services {
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			mounts++
			err := filepath.WalkDir(filepath.Join(dir, must(filepath.Rel(repository, v.Source))), func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err != nil {
					return err
				}
				need := os.FileMode(0o004)
				switch own := v.Target == "/etc/millrace"; {
				case own && !d.IsDir():
					return nil // the owner decides who reads it
				case own:
					need = 0o001
				case d.IsDir():
					need = 0o005
				}
				if info.Mode().Perm()&need != need {
					t.Errorf("%s mounts %s, whose mode is %v", s.Name, v.Source, info.Mode())
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	if mounts < 10 {
		t.Errorf("looked at %d mounts", mounts)
	}
}

func TestAPortThatIsOpenedWithoutKeysIsWarnedOf(t *testing.T) {
	for env, want := range map[string][]string{
		"": nil,
		"API_BIND=127.0.0.1\nQUERY_BIND=127.0.0.2\n":                       nil,
		"API_BIND=0.0.0.0\n":                                               {"API_BIND"},
		"API_BIND=127.0.0.1\nQUERY_BIND=192.0.2.1\n":                       {"QUERY_BIND"},
		"API_BIND=\"0.0.0.0\"\nQUERY_BIND=::\n":                            {"API_BIND", "QUERY_BIND"},
		"API_BIND=0.0.0.0\nKEYS_FILE=\n":                                   {"API_BIND"},
		"API_BIND=0.0.0.0\nKEYS_FILE=/etc/millrace/keys\n":                 nil,
		"#API_BIND=0.0.0.0\nAPI_BIND=0.0.0.0\nAPI_BIND=127.0.0.1 # last\n": nil,
	} {
		dir := cloned(t)
		if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(env), 0o600); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^warning: (\w+)`).FindAllStringSubmatch(envScript(t, dir), -1) {
			got = append(got, m[1])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: warned of (-want +got):\n%s", env, diff)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestTheComposeFileIsWhole(t *testing.T) {
	env := generated(t)
	project, err := compose(t, env)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"api", "balancer", "grafana", "migrate", "postgres", "postgres-exporter", "prometheus", "query", "rabbitmq", "redis", "roles", "worker"}
	if diff := cmp.Diff(want, project.ServiceNames()); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	project, err = compose(t, env, "cluster")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(want, "rabbitmq-2", "rabbitmq-3"), project.ServiceNames(), cmp.Transformer("sort", func(s []string) []string {
		return slices.Sorted(slices.Values(s))
	})); diff != "" {
		t.Errorf("services of the cluster (-want +got):\n%s", diff)
	}

	own := project.Services["migrate"].Image
	var built []string
	published := make(map[string]string)
	pinned := regexp.MustCompile(`^[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?$`)
	for _, s := range project.Services {
		ends := s.Restart == "no"
		if s.Build != nil {
			built = append(built, s.Name)
		}
		if s.Image != own && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %s is not pinned by its version", s.Name, s.Image)
		}
		if s.MemLimit == 0 {
			t.Errorf("%s has no memory limit", s.Name)
		}
		switch h := s.HealthCheck; {
		case ends:
		case h == nil || len(h.Test) == 0 || h.StartInterval == nil:
			t.Errorf("%s has no health check", s.Name)
		case h.Test[0] == "CMD" && h.Test[1] == "/usr/bin/millrace":
			if !cli.HasCommand(h.Test[2]) {
				t.Errorf("%s: health check: no command %s", s.Name, h.Test[2])
			}
		}
		if s.Restart != "unless-stopped" && !ends {
			t.Errorf("%s: restart is %q", s.Name, s.Restart)
		}
		writes := strings.HasPrefix(s.Image, "rabbitmq:") || strings.HasPrefix(s.Image, "grafana/")
		if !regexp.MustCompile(`^[1-9]\d*:\d+$`).MatchString(s.User) || s.ReadOnly == writes || !slices.Contains(s.CapDrop, "ALL") ||
			!slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s may do more than it needs", s.Name)
		}
		if s.Logging == nil || s.Logging.Options["max-size"] == "" {
			t.Errorf("%s: its log grows without bounds", s.Name)
		}
		for name, dependency := range s.DependsOn {
			wants := types.ServiceConditionHealthy
			if project.Services[name].Restart == "no" {
				wants = types.ServiceConditionCompletedSuccessfully
			}
			if dependency.Condition != wants {
				t.Errorf("%s waits for %s to be %s, want %s", s.Name, name, dependency.Condition, wants)
			}
		}
		for _, p := range s.Ports {
			published[p.Published] = p.HostIP
		}
		for _, v := range s.Volumes {
			switch v.Type {
			case types.VolumeTypeBind:
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s mounts what is not there: %v", s.Name, err)
				}
				if !v.ReadOnly {
					t.Errorf("%s may write to %s", s.Name, v.Source)
				}
			case types.VolumeTypeVolume:
				if _, ok := project.Volumes[v.Source]; !ok || v.Source == "" {
					t.Errorf("%s: volume %q of %s has no name", s.Name, v.Source, v.Target)
				}
			}
		}
		if s.Image == own {
			if !cli.HasCommand(s.Command[0]) {
				t.Errorf("%s: no command %s", s.Name, s.Command[0])
			}
		}
	}
	// One service builds the image for all.
	if diff := cmp.Diff([]string{"migrate"}, built); diff != "" {
		t.Errorf("services that build (-want +got):\n%s", diff)
	}
	for _, name := range []string{"api", "worker", "query", "roles"} {
		if image := project.Services[name].Image; image != own {
			t.Errorf("%s has the image %s, migrate builds %s", name, image, own)
		}
	}
	ports := map[string]string{}
	for _, port := range []string{"8080", "8081", "5672", "15672", "5433", "6379", "9090", "3000"} {
		ports[port] = "127.0.0.1"
	}
	if diff := cmp.Diff(ports, published); diff != "" {
		t.Errorf("published ports (-want +got):\n%s", diff)
	}
	for _, name := range []string{"api", "worker", "query"} { // a port or a name would allow one of each
		if s := project.Services[name]; len(s.Ports) > 0 || s.ContainerName != "" || s.Hostname != "" {
			t.Errorf("%s can't be scaled", name)
		}
	}
	// Images before 18 kept their data there.
	for _, v := range project.Services["postgres"].Volumes {
		if strings.HasSuffix(v.Target, "/data") {
			t.Errorf("PostgreSQL 18 keeps its data elsewhere than %s", v.Target)
		}
	}
}

// TestRabbitMQsNodesFindEachOther holds that the second and the third node look for the first one and themselves, by name.
// The first node looks for none: it may be the only one, and would wait for the others.
func TestRabbitMQsNodesFindEachOther(t *testing.T) {
	project, err := compose(t, generated(t), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	peers := regexp.MustCompile(`(?m)^cluster_formation\.classic_config\.nodes\.\d+ = rabbit@(.+)$`)
	found := make(map[string][]string)
	for name, s := range project.Services {
		if strings.HasPrefix(s.Image, "rabbitmq:") && s.Hostname != name {
			t.Errorf("%s has the hostname %s", name, s.Hostname)
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind && strings.HasSuffix(v.Source, ".conf") {
				for _, m := range peers.FindAllSubmatch(must(os.ReadFile(v.Source)), -1) {
					found[name] = append(found[name], string(m[1]))
				}
			}
		}
	}
	want := map[string][]string{"rabbitmq-2": {"rabbitmq", "rabbitmq-2"}, "rabbitmq-3": {"rabbitmq", "rabbitmq-3"}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("who looks for which nodes (-want +got):\n%s", diff)
	}
}

// TestOperationsNamesServicesThatAreThere holds that the documents' docker compose commands name services of the file.
func TestOperationsNamesServicesThatAreThere(t *testing.T) {
	project, err := compose(t, generated(t), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	text := string(must(os.ReadFile("deploy/OPERATIONS.md"))) + string(must(os.ReadFile("deploy/README.md")))
	found := regexp.MustCompile("docker compose (run|exec|stop|restart|up)((?: [^ \n`#<>]+)+)").FindAllStringSubmatch(text, -1)
	if len(found) < 5 {
		t.Errorf("found %d commands", len(found))
	}
	for _, m := range found {
		words := strings.Fields(m[2])
		for len(words) > 0 && strings.HasPrefix(words[0], "-") {
			if words[0] == "--scale" {
				words[1], _, _ = strings.Cut(words[1], "=")
				if _, ok := project.Services[words[1]]; !ok {
					t.Errorf("%s: no service %s", m[0], words[1])
				}
				words = words[1:]
			}
			words = words[1:]
		}
		services := words
		if m[1] == "run" || m[1] == "exec" {
			services = words[:1]
		}
		for _, name := range services {
			if _, ok := project.Services[name]; !ok {
				t.Errorf("%s: no service %s", m[0], name)
			}
		}
		if m[1] == "run" {
			if !cli.HasCommand(words[1]) {
				t.Errorf("%s: no command %s", m[0], words[1])
			}
		}
	}
	for _, m := range regexp.MustCompile(`\bmillrace_(rabbitmq\S*)`).FindAllStringSubmatch(text, -1) {
		if v, ok := project.Volumes[m[1]]; !ok || v.Name != project.Name+"_"+m[1] {
			t.Errorf("no volume %s", m[0])
		}
	}
}

func TestTheComposeFileHasNoSecretOfItsOwn(t *testing.T) {
	env := generated(t)
	for name, value := range env {
		if name == "ALLOW_ANONYMOUS" {
			continue
		}
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(value) {
			t.Errorf("%s=%s is no secret", name, value)
		}
		without := maps.Clone(env)
		delete(without, name)
		if _, err := compose(t, without); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "make up") {
			t.Errorf("without %s: got %v, want what to do", name, err)
		}
	}
}

// TestEverySettingReachesItsService holds that a container gets its service's settings from .env, and that the service takes
// what docker-compose.yml sets beside them.
func TestEverySettingReachesItsService(t *testing.T) {
	fixed := map[string]bool{ // settings that docker-compose.yml gives itself
		"RABBITMQ_URL": true, "RABBITMQ_MANAGEMENT_URL": true, "POSTGRES_URL": true, "POSTGRES_OWNER_URL": true, "REDIS_URL": true,
		"API_ADDR": true, "QUERY_ADDR": true, "WORKER_ADDR": true, // the image's
		"AUTO_MIGRATE": true,
		"PPROF_ADDR":   true, // takes only loopback addresses, which nobody outside the container reaches
		// TLS ends at the balancer.
		"TLS_CERT_FILE": true, "TLS_KEY_FILE": true, "TLS_CLIENT_CA_FILE": true,
		"API_METRICS_ADDR": true, "QUERY_METRICS_ADDR": true, // so nobody needs a certificate
	}
	env := generated(t)
	all, services := cli.Settings()
	for _, s := range all {
		if !fixed[s.Name] {
			env[s.Name] = "from .env"
		}
	}
	project, err := compose(t, env)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		for _, name := range services[s.Name] {
			got := project.Services[name].Environment[s.Name]
			if !fixed[s.Name] && !(name == "worker" && s.Name == "ALLOW_ANONYMOUS") && (got == nil || *got != "from .env") {
				t.Errorf("%s gets no %s from .env", name, s.Name)
			}
		}
	}

	project, err = compose(t, generated(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]interface{ Validate() error }{"api": new(api.Config), "worker": new(worker.Config), "query": new(query.Config)} {
		environ := map[string]string{"API_ADDR": "0.0.0.0:8080", "QUERY_ADDR": "0.0.0.0:8081", "WORKER_ADDR": "0.0.0.0:8082"}
		for k, v := range project.Services[name].Environment {
			if v != nil && *v != "" {
				environ[k] = *v
			}
		}
		if err := config.LoadFrom(environ, c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p := new(config.Process)
		if err := config.LoadFrom(environ, p); err != nil {
			t.Fatal(err)
		}
		var delay struct {
			Value time.Duration `env:"SHUTDOWN_DELAY" envDefault:"500ms"`
		}
		if err := config.LoadFrom(environ, &delay); err != nil {
			t.Fatal(err)
		}
		if grace := project.Services[name].StopGracePeriod; grace == nil || time.Duration(*grace) <= p.ShutdownTimeout+delay.Value {
			t.Errorf("%s is killed after %v, before it has stopped", name, grace)
		}
	}
}

// TestTheBalancersProxiesHaveNamesOfTheirOwn holds what HAProxy warns of from 3.1 on and refuses from 3.3 on.
func TestTheBalancersProxiesHaveNamesOfTheirOwn(t *testing.T) {
	names := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^(?:frontend|backend|listen) (\S+)`).FindAllStringSubmatch(string(must(os.ReadFile("deploy/haproxy/haproxy.cfg"))), -1) {
		if names[m[1]] {
			t.Errorf("two proxies have the name %s", m[1])
		}
		names[m[1]] = true
	}
	if len(names) < 5 {
		t.Errorf("found %d proxies", len(names))
	}
}

// TestUpSaysBeforeAnythingWhatIsTooOld has a docker that says its versions and nothing else: those that are too old can't be
// had any more.
func TestUpSaysBeforeAnythingWhatIsTooOld(t *testing.T) {
	for _, c := range []struct{ engine, compose, want string }{
		{"", "", "no Docker engine answers"},
		{"20.10.24+dfsg1", "2.40.3", "Docker 20.10.24+dfsg1 is too old: docker-compose.yml needs 25"},
		{"24.0.7", "2.40.3", "Docker 24.0.7 is too old"},
		{"26.1.5", "", "docker compose is not installed"},
		{"26.1.5", "v2.9.1", "Docker Compose v2.9.1 is too old: docker-compose.yml needs 2.24"},
		{"25.0.0", "2.24.0", "asked for more"},
		{"28.5.2", "v5.0.1", "asked for more"},
	} {
		dir := t.TempDir()
		script := fmt.Sprintf("#!/bin/sh\ncase \"$1 $2\" in\n'version --format') echo '%s'; [ '%s' ] ;;\n'compose version') echo '%s'; [ '%s' ] ;;\n*) echo asked for more >&2; exit 1 ;;\nesac\n",
			c.engine, c.engine, c.compose, c.compose)
		if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("deploy/up.sh")
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ENV_FILE="+filepath.Join(dir, "env"))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("engine %q, Compose %q: got %v, %s; want %q", c.engine, c.compose, err, out, c.want)
		}
	}
}

func TestTheBalancerSendsRequestsToWhatIsReadyAndNoneTwice(t *testing.T) {
	program := testenv.FindProgram("haproxy", "/usr/sbin/haproxy")
	if program == "" {
		t.Skip("haproxy is not installed: make test installs it where it can")
	}
	const file = "deploy/haproxy/haproxy.cfg"
	t.Setenv("BALANCER_CONNECTIONS", "100") // a test's limit of files may be lower
	// -q leaves warnings, of what a later version takes no more.
	if out, err := exec.Command(program, "-c", "-q", "-f", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%s: %v: %s", file, err, out)
	}

	// Two APIs, found by their addresses instead of Docker's DNS.
	var ready [2]atomic.Bool
	var served [2]atomic.Int64
	servers := ""
	for i := range ready {
		ready[i].Store(true)
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/ready" && !ready[i].Load():
				w.WriteHeader(http.StatusServiceUnavailable)
			case r.URL.Path == "/die":
				served[i].Add(1)
				conn, _, err := w.(http.Hijacker).Hijack()
				if err == nil {
					_ = conn.Close() // as a killed process would
				}
			case r.URL.Path == "/log":
				served[i].Add(1)
				w.WriteHeader(http.StatusAccepted)
			}
		}))
		t.Cleanup(api.Close)
		servers += fmt.Sprintf("    server a%d %s init-addr libc\n", i, api.Listener.Addr())
	}
	addr := testenv.FreeAddress(t)
	text := string(must(os.ReadFile(file)))
	for old, new := range map[string]string{
		"    bind :8080\n": "    bind " + addr + "\n", "    bind :8081\n": "    bind " + testenv.FreeAddress(t) + "\n", "    bind :8404\n": "    bind " + testenv.FreeAddress(t) + "\n",
		"    server-template api 16 api:8080\n":     servers,
		"    server-template query 16 query:8081\n": servers,
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("%s lacks %q", file, old)
		}
		text = strings.Replace(text, old, new, 1)
	}
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.RunProgram(t, nil, program, "-db", "-f", config)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	post := func(path string) (int, http.Header, string) {
		resp, err := client.Post("http://"+addr+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			return 0, nil, ""
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body) // compared below
		return resp.StatusCode, resp.Header, string(body)
	}
	testenv.Eventually(t, 30*time.Second, "both APIs are served from", func() bool {
		post("/log")
		return served[0].Load() > 0 && served[1].Load() > 0
	})

	before := served[0].Load() + served[1].Load()
	if code, _, body := post("/die"); code != http.StatusBadGateway || !strings.HasPrefix(body, `{"error":`) {
		t.Errorf("an API that dies under a request: got %d %s", code, body)
	}
	if sent := served[0].Load() + served[1].Load() - before; sent != 1 {
		t.Errorf("a request was sent %d times", sent)
	}

	ready[0].Store(false)
	testenv.Eventually(t, 30*time.Second, "the API that is not ready is left alone", func() bool {
		before := served[0].Load()
		for range 10 {
			if code, _, _ := post("/log"); code != http.StatusAccepted {
				t.Errorf("got %d while one API is ready", code)
			}
		}
		return served[0].Load() == before
	})
	ready[1].Store(false)
	testenv.Eventually(t, 30*time.Second, "there is no API, which clients are told", func() bool {
		code, header, body := post("/log")
		return code == http.StatusServiceUnavailable && header.Get("Retry-After") == "1" && body == `{"error":"no service is ready"}`
	})
}
