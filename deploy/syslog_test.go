package deploy

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/internal/e2e"
	"millrace/internal/testenv"
)

// syslogClient is a real program that sends syslog.
type syslogClient struct {
	name string

	// start returns the command that sends records with the tag, or the name, app. It is told how many; what it reads lines from; the port to send to, which is
	// the same for TCP and UDP; and a folder of its own. Where a request makes a record, it also returns the address to send requests to.
	start func(t *testing.T, to syslogTarget) (cmd *exec.Cmd, requests string, err error)

	condition string // of its rows in SQL, on data; n is the number of the record
}

type syslogTarget struct {
	port    string // on 127.0.0.1
	app     string
	records int
	lines   string // a file of so many lines
	dir     string
}

// shellOfLogger returns logger with options. It sends the lines of the file.
func shellOfLogger(options string) func(*testing.T, syslogTarget) (*exec.Cmd, string, error) {
	return func(_ *testing.T, to syslogTarget) (*exec.Cmd, string, error) {
		program, err := exec.LookPath("logger")
		if err != nil {
			return nil, "", err
		}
		return exec.Command(program, append(strings.Fields(options), "-n", "127.0.0.1", "-P", to.port, "-t", to.app, "-f", to.lines)...), "", nil
	}
}

// rsyslogOver returns rsyslog, which follows a file and forwards it.
func rsyslogOver(action string) func(*testing.T, syslogTarget) (*exec.Cmd, string, error) {
	return func(t *testing.T, to syslogTarget) (*exec.Cmd, string, error) {
		cmd, root, err := debian("/usr/sbin/rsyslogd")
		if err != nil {
			return nil, "", err
		}
		modules, err := filepath.Glob(root + "/usr/lib/*/rsyslog")
		if err != nil || len(modules) == 0 {
			return nil, "", fmt.Errorf("no modules of rsyslog: %w", err)
		}
		file := filepath.Join(to.dir, "rsyslog.conf")
		writeFile(t, file, fmt.Sprintf(`global(workDirectory="%s")
module(load="imfile")
input(type="imfile" File="%s" Tag="%s:")
action(type="omfwd" target="127.0.0.1" port="%s" %s action.resumeRetryCount="-1" action.resumeInterval="1" queue.type="LinkedList")
`, to.dir, to.lines, to.app, to.port, action))
		cmd.Args = append(cmd.Args, "-n", "-f", file, "-i", filepath.Join(to.dir, "pid"), "-M", modules[0])
		return cmd, "", nil
	}
}

// syslogNGOver returns syslog-ng, which follows a file and forwards it.
func syslogNGOver(destination string) func(*testing.T, syslogTarget) (*exec.Cmd, string, error) {
	return func(t *testing.T, to syslogTarget) (*exec.Cmd, string, error) {
		cmd, root, err := debian("/usr/sbin/syslog-ng")
		if err != nil {
			return nil, "", err
		}
		modules, err := filepath.Glob(root + "/usr/lib/syslog-ng/*")
		if err != nil || len(modules) == 0 {
			return nil, "", fmt.Errorf("no modules of syslog-ng: %w", err)
		}
		file := filepath.Join(to.dir, "syslog-ng.conf")
		writeFile(t, file, fmt.Sprintf(`@version: 3.38
options { stats-freq(0); };
source lines { file("%s" flags(no-parse) program-override("%s") follow-freq(0.1)); };
destination millrace { %s };
log { source(lines); destination(millrace); flags(flow-control); };
`, to.lines, to.app, strings.ReplaceAll(destination, "PORT", to.port)))
		cmd.Args = append(cmd.Args, "--foreground", "--stderr", "--no-caps", "--cfgfile", file, "--module-path", modules[0],
			"--persist-file", filepath.Join(to.dir, "persist"), "--pidfile", filepath.Join(to.dir, "pid"), "--control", filepath.Join(to.dir, "control"))
		return cmd, "", nil
	}
}

// haproxyWith returns HAProxy, which logs each request.
func haproxyWith(log, ring string) func(*testing.T, syslogTarget) (*exec.Cmd, string, error) {
	return func(t *testing.T, to syslogTarget) (*exec.Cmd, string, error) {
		program := testenv.FindProgram("haproxy", "/usr/sbin/haproxy")
		if program == "" {
			return nil, "", fmt.Errorf("haproxy is not installed")
		}
		at := testenv.FreeAddress(t)
		file := filepath.Join(to.dir, "haproxy.cfg")
		writeFile(t, file, strings.NewReplacer("PORT", to.port, "APP", to.app).Replace(fmt.Sprintf(`global
  log-tag APP
  %s
%s
defaults
  mode http
  log global
  option httplog
  option dontlognull
  timeout client 5s
  timeout connect 5s
  timeout server 5s
frontend f
  bind %s
  http-request return status 200
`, log, ring, at)))
		return exec.Command(program, "-db", "-f", file), at, nil
	}
}

// nginx returns nginx, which logs each request.
func nginx(t *testing.T, to syslogTarget) (*exec.Cmd, string, error) {
	cmd, _, err := debian("/usr/sbin/nginx")
	if err != nil {
		return nil, "", err
	}
	at := testenv.FreeAddress(t)
	file := filepath.Join(to.dir, "nginx.conf")
	writeFile(t, file, fmt.Sprintf(`daemon off;
pid %[1]s/pid;
error_log stderr;
events {}
http {
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  log_format json escape=json '{"path":"$uri","status":$status}';
  access_log syslog:server=127.0.0.1:%[2]s,tag=%[3]s json;
  server { listen %[4]s; location / { return 200; } }
}
`, to.dir, to.port, to.app, at))
	cmd.Args = append(cmd.Args, "-c", file, "-p", to.dir)
	return cmd, at, nil
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func syslogClients() []syslogClient {
	const byMessage, byPath = `data->>'message' LIKE '%line ' || n || ' of %'`, `data->>'message' LIKE '%"GET /' || n || ' HTTP/1.1"%'`
	ring := "ring millrace\n  format rfc5424\n  size 1048576\n  timeout connect 5s\n  timeout server 10s\n  server millrace 127.0.0.1:PORT log-proto octet-count"
	return []syslogClient{
		{"logger-tcp", shellOfLogger("--tcp"), byMessage},
		{"logger-counted", shellOfLogger("--tcp --octet-count"), byMessage},
		{"logger-rfc3164", shellOfLogger("--tcp --rfc3164"), byMessage},
		{"logger-udp", shellOfLogger("--udp"), byMessage},
		{"rsyslog-tcp", rsyslogOver(`protocol="tcp"`), byMessage},
		{"rsyslog-counted", rsyslogOver(`protocol="tcp" tcp_framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format"`), byMessage},
		{"rsyslog-udp", rsyslogOver(`protocol="udp"`), byMessage},
		{"syslog-ng-counted", syslogNGOver(`syslog("127.0.0.1" transport("tcp") port(PORT));`), byMessage},
		{"syslog-ng-tcp", syslogNGOver(`network("127.0.0.1" transport("tcp") port(PORT));`), byMessage},
		{"syslog-ng-udp", syslogNGOver(`network("127.0.0.1" transport("udp") port(PORT));`), byMessage},
		{"haproxy-udp", haproxyWith("log 127.0.0.1:PORT format rfc5424 local0", ""), byPath},
		{"haproxy-rfc3164", haproxyWith("log 127.0.0.1:PORT local0", ""), byPath},
		{"haproxy-tcp", haproxyWith("log ring@millrace format rfc5424 local0", ring), byPath},
		{"nginx", nginx, `data->>'path' = '/' || n AND data->>'status' = '200'`},
	}
}

// TestClientsOfSyslogAreStoredOnce sends by real programs, over TCP and UDP on the loopback interface, and counts the rows of each: every record is there once, under the program's
// name.
func TestClientsOfSyslogAreStoredOnce(t *testing.T) {
	const records = 200
	at := testenv.FreeAddress(t)
	broker, db := testenv.Broker(t, 1), testenv.Schema(t)
	e2e.RunAPI(t, broker, map[string]string{"SYSLOG_TCP_ADDR": at, "SYSLOG_UDP_ADDR": at})
	e2e.RunWorker(t, broker, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(db), "WORKER_STREAMS": "1"})
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range syslogClients() {
		t.Run(c.name, func(t *testing.T) {
			to := syslogTarget{port: port, app: c.name, records: records, dir: t.TempDir()}
			to.lines = filepath.Join(to.dir, "lines")
			var lines strings.Builder
			for n := range records {
				fmt.Fprintf(&lines, "line %d of %d\n", n, records)
			}
			writeFile(t, to.lines, lines.String())
			cmd, requests, err := c.start(t, to)
			if err != nil {
				t.Skipf("%v: make clients installs what the test of %s needs", err, c.name)
			}
			out := new(testenv.Output)
			cmd.Dir, cmd.Stdout, cmd.Stderr = to.dir, out, out
			cmd.Env = append(append(os.Environ(), cmd.Env...), "TZ=UTC")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Skipf("%v: %s is not tested", err, c.name)
			}
			t.Cleanup(func() {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
				_ = cmd.Wait()                                      // killed
				if t.Failed() {
					t.Logf("%s wrote:\n%s", c.name, out)
				}
			})
			if requests != "" {
				ask(t, requests, records)
			}
			conn := testenv.Connect(t, db)
			testenv.AwaitCount(t, conn, records, fmt.Sprintf("SELECT count(*) FROM logs WHERE data->'service'->>'name' = '%s' AND data->'syslog'->>'peer' = '127.0.0.1'", c.name))
			var once int
			query := fmt.Sprintf("SELECT count(*) FROM generate_series(0, %d) n WHERE (SELECT count(*) FROM logs WHERE data->'service'->>'name' = $1 AND %s) = 1", records-1, c.condition)
			if err := conn.QueryRow(t.Context(), query, c.name).Scan(&once); err != nil {
				t.Fatal(err)
			}
			if once != records {
				t.Errorf("%d of %d records are stored once", once, records)
			}
			var timed int
			if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM logs WHERE data->'service'->>'name' = $1 AND abs(extract(epoch FROM inserted_at - time)) < 3600", c.name).Scan(&timed); err != nil {
				t.Fatal(err)
			}
			if timed != records {
				t.Errorf("%d of %d records have a time near now", timed, records)
			}
		})
	}
}

// TestDockersLogDriverIsStoredOnce sends by the library of Docker's log driver gelf, over TCP and, compressed and in chunks, over UDP. A tenth of the lines is longer than a packet.
func TestDockersLogDriverIsStoredOnce(t *testing.T) {
	program, err := filepath.Abs(clientPrograms + "/gelf")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%v: make clients builds it", err)
	}
	const records = 200
	at := testenv.FreeAddress(t)
	broker, db := testenv.Broker(t, 1), testenv.Schema(t)
	e2e.RunAPI(t, broker, map[string]string{"GELF_TCP_ADDR": at, "GELF_UDP_ADDR": at})
	e2e.RunWorker(t, broker, slog.New(slog.DiscardHandler), map[string]string{"POSTGRES_URL": string(db), "WORKER_STREAMS": "1"})
	file := filepath.Join(t.TempDir(), "lines")
	var text strings.Builder
	for n := range records {
		fmt.Fprintf(&text, "line %d of %d", n, records)
		for i := 0; n%10 == 0 && i < 500; i++ {
			fmt.Fprintf(&text, " %x", sha256.Sum256([]byte{byte(n), byte(i), byte(i >> 8)})) // it stays long when it is compressed
		}
		text.WriteByte('\n')
	}
	writeFile(t, file, text.String())
	for _, transport := range []string{"tcp", "udp"} {
		t.Run(transport, func(t *testing.T) {
			cmd := exec.Command(program, transport, at, transport)
			cmd.Env = append(os.Environ(), "LOG_FILE="+file, "PACE=1ms")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			conn := testenv.Connect(t, db)
			const ours = "data->>'container_name' = '%s' AND data->'host'->>'name' = 'node1' AND data->>'level' = 'info' AND data->'gelf'->>'peer' = '127.0.0.1' AND abs(extract(epoch FROM inserted_at - time)) < 3600"
			testenv.AwaitCount(t, conn, records, "SELECT count(*) FROM logs WHERE "+fmt.Sprintf(ours, transport))
			var once int
			query := fmt.Sprintf("SELECT count(DISTINCT md5(data->>'message')) FROM logs WHERE "+ours+" AND data->>'message' LIKE 'line %% of %d%%'", transport, records)
			if err := conn.QueryRow(t.Context(), query).Scan(&once); err != nil {
				t.Fatal(err)
			}
			if once != records {
				t.Errorf("%d of %d records are stored once", once, records)
			}
		})
	}
}

// ask sends requests for /0, /1 and so on to an address, once a server answers there.
func ask(t *testing.T, addr string, n int) {
	t.Helper()
	get := func(path string) error {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close() // read to its end
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	testenv.Eventually(t, 20*time.Second, addr+" listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	for i := range n {
		if err := get(fmt.Sprintf("/%d", i)); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			time.Sleep(time.Millisecond) // packets shall not overrun the kernel's buffer
		}
	}
}
