package cli

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// marker is part of every secret of these tests, on both sides of the character that the URL can't have.
const marker = "hush"

// commandsThatRead has the commands that read each setting.
var commandsThatRead = map[string][]string{
	"RABBITMQ_URL":       {"api", "worker", "run"},
	"POSTGRES_URL":       {"worker", "query", "run", "migrate status", "dead list"},
	"POSTGRES_OWNER_URL": {"worker", "run", "migrate status", "dead list"},
	"REDIS_URL":          {"query", "run"},
	"KEYS_FILE":          {"api", "query", "run"},
	"CORS_ORIGINS":       {"query", "run"},
	"API_ADDR":           {"api", "run"},
	"LOG_LEVEL":          {"api", "worker", "query", "run"},
	"TLS_CERT_FILE":      {"api", "query", "run"},
	"TLS_KEY_FILE":       {"api", "query", "run"},
	"TLS_CLIENT_CA_FILE": {"api", "query", "run"},
	"QUERY_URL":          {"logs", "stats"},
	"API_URL":            {"send"},
	"API_KEY":            {"logs", "stats", "send"},
}

// unreachable returns settings that every command takes, for servers that nobody can reach.
func unreachable() map[string]string {
	return map[string]string{
		"RABBITMQ_URL": "amqp://127.0.0.1:1/", "POSTGRES_URL": "postgres://127.0.0.1:1/d", "REDIS_URL": "redis://127.0.0.1:1/",
		"API_ADDR": "127.0.0.1:0", "WORKER_ADDR": "127.0.0.1:0", "QUERY_ADDR": "127.0.0.1:0", "LOG_LEVEL": "debug",
	}
}

func environment(settings map[string]string) (env []string) {
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	return env
}

// ended waits until p has ended and returns what it wrote.
func ended(t *testing.T, p *testenv.Process) string {
	t.Helper()
	select {
	case <-p.Done:
	case <-time.After(time.Minute):
		t.Fatalf("%v still runs", p.Args[1:])
	}
	return p.Out.String()
}

func TestARefusedSettingIsNamedAndItsSecretIsNot(t *testing.T) {
	const pem = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n"
	for _, tt := range []struct{ setting, value, says string }{
		{"RABBITMQ_URL", "amqp://user:hush#hush@h/", `"#", which must be written %23`},
		{"RABBITMQ_URL", "amqp://user:hush/hush@h/", `"/", which must be written %2F`},
		{"RABBITMQ_URL", "amqp://user:12/hush@h/", `"/", which must be written %2F`},
		{"RABBITMQ_URL", "amqp://user:12?hush=1@h/", `"?", which must be written %3F`},
		{"RABBITMQ_URL", "amqp://user:hush%zzhush@h/", `"%", which must be written %25`},
		{"RABBITMQ_URL", "amqp://user:hush[hush@h/", `"[", which must be written %5B`},
		{"RABBITMQ_URL", "amqp://user:hush hush@h/", `%20`},
		{"RABBITMQ_URL", "amqp://user:hush,hush@h/", `%2C`},
		{"RABBITMQ_URL", "amqp://user:12,hush@h/", `%2C`},
		{"RABBITMQ_URL", "http://user:hush@h/", "amqp://"},
		{"RABBITMQ_URL", "hush", "amqp://"},
		{"RABBITMQ_URL", "amqp://user:hush@h:hush/", "port"},
		{"RABBITMQ_URL", "amqp://user:hush@h:99999/", "port"},
		{"RABBITMQ_URL", "amqp://user:hush@/", "no host in it"},
		{"RABBITMQ_URL", "amqp://user:hush@h/?heartbeat=hush", "heartbeat"},
		{"RABBITMQ_URL", "'amqp://user:hush@h/'", "quotation mark"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?sslmode=banana", "sslmode: takes disable, allow, prefer, require, verify-ca, verify-full"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?sslmode=hush", "sslmode: takes disable, allow, prefer, require, verify-ca, verify-full"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?sslmod=require&hush=1", "sslmode"},
		{"POSTGRES_URL", "postgres://user:hush#hush@h/d", `"#", which must be written %23`},
		{"POSTGRES_URL", "postgres://user:12/hush@h/d", `"/", which must be written %2F`},
		{"POSTGRES_URL", "postgres://user:12?hush=@h/d", `"?", which must be written %3F`},
		{"POSTGRES_URL", "postgres://user:hush@h:54x/d", "port"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?connect_timeout=hush", "connect_timeout"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?target_session_attrs=hush", "target_session_attrs: takes any"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?sslmode=verify-ca&sslrootcert=/hush", "no such file"},
		{"POSTGRES_URL", "postgres://user:hush@h/d?pool_max_conns=hush", "pool_max_conns"},
		{"RABBITMQ_URL", "amqp://user:hush@h/?auth_mechanism=hush", "auth_mechanism: takes plain"},
		{"POSTGRES_URL", "mysql://user:hush@h/d", "postgres://"},
		{"POSTGRES_URL", "hush", "postgres://"},
		{"POSTGRES_URL", "host=h user=u password=hush hush dbname=d", "quoted"},
		{"POSTGRES_URL", "host=h user=u password='hush dbname=d", "quotation mark"},
		{"POSTGRES_URL", "host=h user=u password=hush sslmode=banana", "sslmode: takes disable, allow, prefer, require, verify-ca, verify-full"},
		{"POSTGRES_URL", "host=h port=hush user=u password=hush", "port"},
		{"POSTGRES_OWNER_URL", "postgres://user:hush/hush@h/d", `"/", which must be written %2F`},
		{"POSTGRES_OWNER_URL", "host=h user=u password=hush sslmode=hush", "sslmode: takes disable"},
		{"REDIS_URL", "redis://:hush#hush@h:6379/0", `"#", which must be written %23`},
		{"REDIS_URL", "redis://:hush^hush@h:6379/0", `"^", which must be written %5E`},
		{"REDIS_URL", "redis://:hush@h:6379/hush", "database"},
		{"REDIS_URL", "redis://:hush@h:6379/0?hush=1", "parameter"},
		{"REDIS_URL", "redis://:hush@h:6379/0?pool_size=hush", "pool_size"},
		{"REDIS_URL", "http://:hush@h:6379/0", "redis://"},
		{"REDIS_URL", "redis://:hush@a,b/0", "no name or address"},
		{"KEYS_FILE", "mr_hush", "name of a file"},
		{"KEYS_FILE", "name 0123 write\nhush 4567 read\n", "name of a file"},
		{"KEYS_FILE", "amqp://user:hush@h/", "not a URL"},
		{"TLS_CERT_FILE", "postgres://user:hush@h/d", "not a URL"},
		{"CORS_ORIGINS", "https://user:hush@h", "without user and password"},
		{"API_ADDR", "amqp://user:hush@h/", "takes host:port"},
		{"LOG_LEVEL", "postgres://user:hush@h/d", "takes debug, info"},
		{"QUERY_URL", "ftp://user:hush@h/", "http://"},
		{"QUERY_URL", "http://user:hush/hush@h", `"/", which must be written %2F`},
		{"QUERY_URL", "http://user:hush@h:hush", "port"},
		{"API_URL", "http://user:hush/hush@h", `"/", which must be written %2F`},
		{"API_URL", "hush", "http://"},
		{"API_KEY", "mr_hush hush", "key"},
		{"API_KEY", pem, "key"},
		{"TLS_CERT_FILE", pem, "name of a file"},
		{"TLS_KEY_FILE", pem, "name of a file"},
		{"TLS_CLIENT_CA_FILE", pem, "name of a file"},
	} {
		for _, command := range commandsThatRead[tt.setting] {
			t.Run(command+" "+tt.setting+"="+tt.value, func(t *testing.T) {
				t.Parallel()
				settings := unreachable()
				settings[tt.setting] = tt.value
				got := ended(t, testenv.StartMillrace(t, t.TempDir(), environment(settings), strings.Fields(command)...))
				if !strings.HasPrefix(got, "millrace: "+tt.setting) || !strings.Contains(got, tt.says) {
					t.Errorf("want a refusal of %s that says %q", tt.setting, tt.says)
				}
				if strings.Contains(got, marker) {
					t.Error("the secret is shown")
				}
			})
		}
	}
}

func TestAMistakeInTheSettingsFileShowsNoneOfIt(t *testing.T) {
	for name, line := range map[string]string{"no name": "hush! amqp://user:hush@h/", "nothing before =": "=amqp://user:hush@h/"} {
		for _, command := range []string{"api", "worker", "query", "run", "migrate status", "dead list", "health", "stack -- true"} {
			t.Run(name+", "+command, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				file := "LOG_LEVEL=info\n# the next one has no name\n" + line + "\nROWS=1\n"
				if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(file), 0o600); err != nil {
					t.Fatal(err)
				}
				got := ended(t, testenv.StartMillrace(t, dir, nil, strings.Fields(command)...))
				if want := "millrace: .env: line 3 is not NAME=value"; !strings.HasPrefix(got, want) {
					t.Errorf("want %q", want)
				}
				if strings.Contains(got, marker) {
					t.Error("the secret is shown")
				}
			})
		}
	}
}

func TestNoCommandRepeatsAnArgumentThatMayHoldASecret(t *testing.T) {
	for _, args := range [][]string{
		{"amqp://user:hush@h/"}, {"api", "amqp://user:hush@h/"}, {"worker", "host=h password=hush"}, {"query", "--postgres=postgres://u:hush@h/d"},
		{"run", "amqp://user:hush@h/"}, {"run", "--brokers=amqp://user:hush@h/"}, {"stack", "--brokers=redis://:hush@h/", "--", "true"},
		{"dead", "show", "postgres://u:hush@h/d"}, {"migrate", "postgres://u:hush@h/d"}, {"keys", "new", "postgres://u:hush@h/d", "x"},
		{"keys", "new", "name", "--rate", "postgres://u:hush@h/d"}, {"keys", "new", "name", "--scope", "postgres://u:hush@h/d"}, {"help", "amqp://user:hush@h/"},
		{"health", "http://user:hush@127.0.0.1:1/health"}, {"health", "http://user:hush@127.0.0.1:1/%zz"}, {"health", "http://user:hush#hush@h/"},
		{"health", "ftp://user:hush@h/"}, {"health", "http://u:hush@h/", "http://u:hush@h/"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			p := testenv.StartMillrace(t, t.TempDir(), environment(unreachable()), args...)
			got := ended(t, p)
			if p.ProcessState.Success() {
				t.Error("want a refusal")
			}
			if strings.Contains(got, marker) {
				t.Errorf("the secret is shown: %s", got)
			}
		})
	}
}

// TestARunningServiceShowsNoSecretOfItsServers runs the services with correct URLs, whose passwords hold the marker, for
// servers that do not answer.
func TestARunningServiceShowsNoSecretOfItsServers(t *testing.T) {
	settings := unreachable()
	settings["RABBITMQ_URL"] = "amqp://user:hush@127.0.0.1:1/v,amqps://hushed:hush%23@127.0.0.1:1/"
	settings["POSTGRES_OWNER_URL"] = "host=127.0.0.1 port=1 user=u password='hush hush' dbname=d"
	settings["POSTGRES_URL"] = "postgres://user:hush%2Fhush@127.0.0.1:1/d?sslmode=disable"
	settings["REDIS_URL"] = "redis://:hush@127.0.0.1:1/0"
	for service, address := range map[string]string{"api": "API_ADDR", "worker": "WORKER_ADDR", "query": "QUERY_ADDR"} {
		for _, format := range []string{"text", "json"} {
			t.Run(service+" "+format, func(t *testing.T) {
				t.Parallel()
				addr := testenv.FreeAddress(t)
				env := append(environment(settings), "LOG_FORMAT="+format, address+"="+addr, "PPROF_ADDR="+testenv.FreeAddress(t))
				p := testenv.StartMillrace(t, t.TempDir(), env, service)
				pages := map[string]string{}
				testenv.Eventually(t, 30*time.Second, "a server that is out of reach is logged", func() bool {
					for _, path := range []string{"/ready", "/health", "/metrics", "/"} {
						pages[path] = page(t, "http://"+addr+path)
					}
					return strings.Contains(p.Out.String(), "connection refused") && strings.Contains(pages["/ready"], "not ready")
				})
				p.Signal(t, os.Interrupt)
				for path, text := range pages {
					if strings.Contains(text, marker) {
						t.Errorf("%s shows the secret: %s", path, text)
					}
				}
				if strings.Contains(ended(t, p), marker) {
					t.Error("the log shows the secret")
				}
			})
		}
	}
}

// page returns the body of an answer, "" while nobody answers.
func page(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close() // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(body)
}
