package testenv

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/internal/localstack"
)

// asMain is the environment variable that makes a test binary run as millrace, so that real processes run with the race detector.
const asMain = "MILLRACE_TEST_AS_MAIN"

// mayBeMillrace reports whether this test binary called BecomeMillrace, so that its copies can be millrace.
var mayBeMillrace bool

// Main is for the TestMain of a package whose tests use StartMillrace. main is cli.Main, which testenv must not import. Main ends
// the process.
func Main(m *testing.M, main func(version string)) {
	BecomeMillrace(main)
	os.Exit(m.Run())
}

// BecomeMillrace runs main and ends the process if StartMillrace has started it. Otherwise it returns at once. It is for a
// TestMain that has more to do than Main.
func BecomeMillrace(main func(version string)) {
	if os.Getenv(asMain) != "" {
		main("dev")
		os.Exit(0)
	}
	mayBeMillrace = true
}

// Process is a running millrace.
type Process struct {
	*exec.Cmd
	Out  *Output
	Done chan struct{} // closed when it has ended
}

// Output collects what a process or a log writes. Many goroutines may call its methods at once.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// StartMillrace starts a millrace in dir with env added to an environment that has no settings. It is this test binary
// once more, so the package's TestMain must call Main. The process is killed when the test ends.
func StartMillrace(t testing.TB, dir string, env []string, args ...string) *Process {
	t.Helper()
	if !mayBeMillrace {
		t.Fatal("the package has no TestMain that calls testenv.Main")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Cmd: exec.Command(exe, args...), Out: new(Output), Done: make(chan struct{})}
	p.Dir = dir
	p.Env = append([]string{asMain + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, env...)
	p.Stdout, p.Stderr = p.Out, p.Out
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // its status is asked for where it matters
		close(p.Done)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill() // it may have ended
		<-p.Done
		if t.Failed() {
			t.Logf("millrace %s wrote:\n%s", strings.Join(args, " "), p.Out)
		}
	})
	return p
}

// Signal sends the process a signal.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Stop sends SIGINT, waits for the end and returns how long that took.
func (p *Process) Stop(t testing.TB) time.Duration {
	t.Helper()
	begin := time.Now()
	p.Signal(t, os.Interrupt)
	<-p.Done
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	return time.Since(begin)
}

// NeedServers skips the test if the programs of a private server are not installed. If CI is set, it fails the test instead.
func NeedServers(t testing.TB) {
	t.Helper()
	missing := localstack.MissingPackages(localstack.Need{Postgres: true, RabbitMQ: true, Redis: true})
	if len(missing) == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("not installed: %v", missing)
	}
	t.Skipf("not installed: %v; make test installs them", missing)
}
