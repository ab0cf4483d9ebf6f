package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"millrace/internal/localstack"
)

// unit is one of Millrace's processes: api1, worker2, query, ….
type unit struct {
	name     string // of the process
	args     []string
	exe      string
	env      []string
	addr     string // of its metrics and health
	dir      string // working directory; its log is beside it
	launcher *localstack.Launcher

	changing sync.Mutex // held while it is started or ended
	mu       sync.Mutex
	cmd      *exec.Cmd
	done     chan struct{} // closed when it has ended
	meant    *atomic.Bool  // the end is on purpose
	starts   int
	surprise func(error) // is called after an end that is not on purpose
}

// start starts the process.
func (u *unit) start() error {
	u.changing.Lock()
	defer u.changing.Unlock()
	return u.startLocked()
}

// startLocked starts the process. The caller holds changing.
func (u *unit) startLocked() error {
	out, err := os.OpenFile(filepath.Join(u.dir, u.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(u.exe, u.args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = u.dir, u.env, out, out
	cmd.SysProcAttr = endsWithUs()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.launcher.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", u.name, err)
	}
	u.cmd, u.done, u.meant = cmd, make(chan struct{}), new(atomic.Bool)
	u.starts++
	go u.wait(cmd, u.done, u.meant)
	return nil
}

// wait waits for the process's end, and calls surprise if that is not on purpose.
func (u *unit) wait(cmd *exec.Cmd, done chan struct{}, meant *atomic.Bool) {
	err := cmd.Wait()
	defer close(done)
	if !meant.Load() {
		u.surprise(fmt.Errorf("%s ended by itself: %v", u.name, err))
	}
}

// signal sends a signal to the process. If it is one that ends the process, the end is on purpose.
func (u *unit) signal(sig syscall.Signal) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		u.meant.Store(true)
	}
	return u.cmd.Process.Signal(sig)
}

// pid returns the process's id, or 0 while it does not run.
func (u *unit) pid() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cmd == nil || ended(u.done) {
		return 0
	}
	return u.cmd.Process.Pid
}

// kill ends the process with SIGKILL and waits for its end.
func (u *unit) kill() error {
	u.changing.Lock()
	defer u.changing.Unlock()
	if err := u.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-u.done
	return nil
}

// stop ends the process with SIGTERM. It fails if that takes longer than within, or if the process exits with another status than 0.
func (u *unit) stop(within time.Duration) error {
	u.changing.Lock()
	defer u.changing.Unlock()
	if u.cmd == nil || ended(u.done) {
		return nil
	}
	if err := u.signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-u.done:
	case <-time.After(within):
		_ = u.signal(syscall.SIGKILL)
		<-u.done
		return fmt.Errorf("%s did not stop within %v of SIGTERM", u.name, within)
	}
	// A worker that can't store its last batch says so, and leaves it to RabbitMQ.
	if code := u.cmd.ProcessState.ExitCode(); code != 0 && !strings.Contains(u.tail(), "left in RabbitMQ") {
		return fmt.Errorf("%s exited with status %d after SIGTERM; the end of its log:\n%s", u.name, code, u.tail())
	}
	return nil
}

// tail returns the end of the process's log.
func (u *unit) tail() string {
	b, err := os.ReadFile(filepath.Join(u.dir, u.name+".log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-8):], "\n    ")
}

// ended reports whether done is closed.
func ended(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
