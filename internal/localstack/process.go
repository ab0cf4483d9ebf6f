package localstack

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is how to start one process.
type command struct {
	name string // of the process; its log and pid file are called so
	mark string // put into its environment, and so into its children's: see leftovers
	path string
	args []string
	env  []string
	dir  string
	log  string // path of the file that takes its output
	pid  string // path of the file that records who it is
	as   *account
	// orphaned is the signal that the process gets when this one dies.
	orphaned syscall.Signal
}

// account is who a process runs as. It is nil for "as this process".
type account struct {
	name     string
	uid, gid uint32
	// capability, if not 0, is lent to the process: see lend.
	capability uintptr
}

// Launcher starts processes, all of them from one OS thread: Linux sends the
// parent-death signal when the thread that started the child ends, not when the
// process does, and Go ends threads as it likes. The thread is the launcher's for
// as long as the launcher lives, which must be longer than any of its processes.
type Launcher struct {
	requests chan func()
	stopped  chan struct{}
}

// NewLauncher returns a launcher with a thread of its own, until Close.
func NewLauncher() *Launcher {
	l := &Launcher{requests: make(chan func()), stopped: make(chan struct{})}
	go func() {
		defer close(l.stopped)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		for request := range l.requests {
			request()
		}
	}()
	return l
}

// Start starts c on the launcher's thread.
func (l *Launcher) Start(c *exec.Cmd) error {
	result := make(chan error, 1)
	l.requests <- func() { result <- c.Start() }
	return <-result
}

// Close ends the thread, and with it any process that is still there and gets a signal for that.
func (l *Launcher) Close() {
	close(l.requests)
	<-l.stopped
}

// process is one started process. A goroutine waits for its end.
type process struct {
	command command
	cmd     *exec.Cmd
	done    chan struct{} // closed when the process is gone and reaped
	err     error         // how it ended; valid once done is closed

	mu      sync.Mutex
	ended   bool
	guarded bool        // its end would be a fault
	died    func(error) // is called with that fault
}

// launch starts c. Its end is no fault until guard is called; after that, died is called with it.
func (l *Launcher) launch(c command, died func(error)) (*process, error) {
	// The last run's log stays beside this one's; so a kept folder does not grow.
	if info, err := os.Stat(c.log); err == nil && info.Size() > 0 {
		if err := os.Rename(c.log, c.log+".old"); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := exec.Command(c.path, c.args...)
	cmd.Env = append([]string{markName + "=" + c.mark}, c.env...)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = processAttributes(c)
	if err := l.Start(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.name, err)
	}
	// Failing to note the pid costs the next run a check, not this one its server.
	_ = recordPID(c.pid, cmd.Process.Pid)

	p := &process{command: c, cmd: cmd, done: make(chan struct{}), died: died}
	go p.wait()
	return p, nil
}

// wait waits for the process's end, and reports it if it is a fault.
func (p *process) wait() {
	err := p.cmd.Wait()
	_ = os.Remove(p.command.pid)
	p.err = err
	close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.guarded {
		p.died(fmt.Errorf("%s ended by itself (%s)%s", p.command.name, outcome(err), p.tail()))
	}
}

// guard makes the process's end a fault from now on. It fails if the process has
// already ended.
func (p *process) guard() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return p.failure()
	}
	p.guarded = true
	return nil
}

// expect makes the process's end no fault any more, because it is about to be ended
// on purpose.
func (p *process) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guarded = false
}

// running reports whether the process is there.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends sig to the process, and to no other that may have its pid by now:
// os.Process holds a pidfd, or knows that the process is reaped.
func (p *process) signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// endsWithin waits at most d for the process's end, and reports whether it came.
func (p *process) endsWithin(d time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(d):
		return false
	}
}

// failure returns an error about the end of a process that should be running.
func (p *process) failure() error {
	return fmt.Errorf("%s ended (%s)%s", p.command.name, outcome(p.err), p.tail())
}

// outcome returns how a process ended, as text. err is what Wait returned.
func outcome(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// tail returns the end of the process's log, ready to be appended to an error.
func (p *process) tail() string { return tail(p.command.log) }

// tail returns the end of the log in a file, ready to be appended to an error.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const window = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > window {
		_, _ = f.Seek(-window, io.SeekEnd)
	}
	return lastLines(f, filepath.Base(path))
}

// lastLines returns the last lines of a log, ready to be appended to an error.
func lastLines(log io.Reader, name string) string {
	const (
		lines = 10
		width = 300 // bytes of a line: Erlang writes whole terms into one
	)
	var last []string
	text, _ := io.ReadAll(log)
	for line := range bytes.Lines(text) {
		if line = bytes.TrimRight(line, " \r\n"); len(line) > 0 {
			last = append(last, strings.ToValidUTF8(string(line[:min(len(line), width)]), ""))
		}
	}
	if len(last) == 0 {
		return "; its log is empty"
	}
	last = last[max(0, len(last)-lines):]
	return fmt.Sprintf("; the end of its log (%s):\n    %s", name, strings.Join(last, "\n    "))
}

// ends reports whether sig ends a server. All of them end RabbitMQ, Redis and
// PostgreSQL, which has three ways of stopping.
func ends(sig os.Signal) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL, syscall.SIGABRT, syscall.SIGSEGV:
		return true
	}
	return false
}
