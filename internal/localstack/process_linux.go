package localstack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// localSupported is true: servers can be run from local binaries.
const localSupported = true

// Linux capabilities (linux/capability.h) that let a process search any folder.
const (
	capDACOverride   = 1
	capDACReadSearch = 2
)

// processAttributes returns how the kernel starts the process of a command.
func processAttributes(c command) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		// A group of its own: a terminal's Ctrl-C reaches this process alone, which
		// then stops the servers in order.
		Setpgid: true,
		// The kernel's promise that the process does not outlive this one.
		Pdeathsig: c.orphaned,
	}
	if c.as != nil {
		a.Credential = &syscall.Credential{Uid: c.as.uid, Gid: c.as.gid}
		if c.as.capability != 0 {
			a.AmbientCaps = []uintptr{c.as.capability}
		}
	}
	return a
}

// unprivileged returns who runs a server that refuses to run as root: the owner of the
// data folder if there is one. It returns nil if this process is not root's.
func unprivileged(data string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var stat syscall.Stat_t
	if syscall.Stat(data, &stat) == nil && stat.Uid != 0 {
		return &account{name: fmt.Sprintf("uid %d", stat.Uid), uid: stat.Uid, gid: stat.Gid}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, err
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// lend lets a reach its folder dir if a folder above is closed to it, as /root is, or
// a fresh `mktemp -d` of root's. Opening other people's folders to everybody is not
// ours to do. So the server's process gets, as an ambient capability, the right to
// search folders: the narrower of two such rights, or the wider one if root has only
// that (as in Docker's containers).
func (a *account) lend(dir string) error {
	closed := a.closedFolder(dir)
	if closed == "" {
		return nil
	}
	held := heldCapabilities()
	for _, c := range []uintptr{capDACReadSearch, capDACOverride} {
		if held&(1<<c) != 0 {
			a.capability = c
			return nil
		}
	}
	return fmt.Errorf("%s is closed to user %s, who runs PostgreSQL, and this process has no capability to lend it: use another folder, or: chmod o+x %s",
		closed, a.name, closed)
}

// closedFolder returns the outermost folder above dir that a may not search, or "".
func (a *account) closedFolder(dir string) string {
	closed := ""
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		var stat syscall.Stat_t
		if syscall.Stat(d, &stat) == nil {
			search := uint32(0o001)
			switch {
			case stat.Uid == a.uid:
				search = 0o100
			case stat.Gid == a.gid:
				search = 0o010
			}
			if stat.Mode&search == 0 {
				closed = d
			}
		}
		if d == filepath.Dir(d) {
			return closed
		}
	}
}

// heldCapabilities returns the set of capabilities that this process may pass on.
func heldCapabilities() uint64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(status) {
		if hex, ok := bytes.CutPrefix(line, []byte("CapPrm:")); ok {
			held, _ := strconv.ParseUint(string(bytes.TrimSpace(hex)), 16, 64)
			return held
		}
	}
	return 0
}

// lockFolder takes the folder for this process until the file is closed, which the
// kernel does too when the process dies. The file is never removed from a kept
// folder: a second process could hold its old copy while a third makes a new one.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(f.Name())
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		return nil, fmt.Errorf("the data folder %s is in use by process %s", dir, bytes.TrimSpace(holder))
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ownedByUs reports whether the folder (not a link to one) is this user's.
func ownedByUs(dir string) bool {
	var stat syscall.Stat_t
	return syscall.Lstat(dir, &stat) == nil && stat.Mode&syscall.S_IFMT == syscall.S_IFDIR && int(stat.Uid) == os.Geteuid()
}

// identity returns a text that tells a process from a later one with the same pid: its
// pid, when it began, in clock ticks since the boot, and which boot that was.
func identity(pid int) (string, error) {
	fields, err := statFields(pid)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s %s", pid, fields[19], bytes.TrimSpace(boot)), nil
}

// statFields returns the fields of /proc/PID/stat from the third on, the state: the
// second, the name, may hold spaces and brackets (proc(5)).
func statFields(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return nil, fmt.Errorf("unexpected /proc/%d/stat: %q", pid, stat)
	}
	return fields, nil
}

// recordPID writes a process's identity into a file.
func recordPID(path string, pid int) error {
	id, err := identity(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(id+"\n"), 0o600)
}

// remains is how to recognise what is left of servers.
type remains struct {
	mark  string            // value of markName in their environment, or its beginning
	homes map[string]string // the server, by its working folder
	pids  []string          // files that record who they are
}

// find returns the processes that are left. By the mark it finds also what a server
// started, even if that left the server's process group. PostgreSQL and Redis write
// over their environment (to show a title in ps), so they are known by their working
// folder, which is their data folder. By the files it finds a PostgreSQL that /proc
// hides, since it runs as another user.
func (r remains) find() []int {
	homes := map[os.FileInfo]string{}
	for dir, program := range r.homes {
		if info, err := os.Stat(dir); err == nil {
			homes[info] = program
		}
	}
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && (r.marked(pid) || atHome(pid, homes)) {
			pids = append(pids, pid)
		}
	}
	for _, path := range r.pids {
		record, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		text := strings.TrimSpace(string(record))
		first, _, _ := strings.Cut(text, " ")
		if pid, err := strconv.Atoi(first); err == nil && alive(pid, text) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// marked reports whether a process has the mark in its environment.
func (r remains) marked(pid int) bool {
	if r.mark == "" {
		return false
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	return bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+markName+"="+r.mark))
}

// executables are the files that a server's processes run. Redis's server may be a link to its checkers, which are
// the same program.
var executables = map[string][]string{
	postgres: {"postgres", "initdb"},
	redis:    {"redis-server", "redis-check-rdb", "redis-check-aof"},
}

// atHome reports whether a process works in one of the folders and runs that folder's server.
func atHome(pid int, homes map[os.FileInfo]string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	for home, program := range homes {
		if os.SameFile(cwd, home) {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			return err == nil && slices.Contains(executables[program], filepath.Base(strings.TrimSuffix(exe, " (deleted)")))
		}
	}
	return false
}

// alive reports whether pid is the process with that identity, and no zombie.
func alive(pid int, id string) bool {
	now, err := identity(pid)
	if err != nil || now != id {
		return false
	}
	fields, err := statFields(pid)
	return err == nil && fields[0] != "Z"
}

// sweep waits for the remains to end by themselves, and ends them after grace.
func (r remains) sweep(grace time.Duration) error {
	const patience = 10 * time.Second // after SIGKILL: only a stuck disk takes that long
	began := time.Now()
	quit := false
	for {
		pids := r.find()
		waited := time.Since(began)
		switch {
		case len(pids) == 0:
			return nil
		case waited > grace+patience:
			return fmt.Errorf("processes %v do not end", pids)
		case waited > grace:
			r.signal(pids, syscall.SIGKILL)
		case !quit && waited > grace/2:
			// PostgreSQL's immediate shutdown, which frees its shared memory.
			quit = true
			for dir, program := range r.homes {
				if program == postgres {
					pg := remains{homes: map[string]string{dir: program}}
					pg.signal(pg.find(), syscall.SIGQUIT)
				}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// signal sends sig to those of pids that are still what find saw. It takes a handle of
// the process first and checks then, so that it never hits a later process with the
// same pid.
func (r remains) signal(pids []int, sig os.Signal) {
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		for _, again := range r.find() {
			if again == pid {
				_ = p.Signal(sig)
				break
			}
		}
		_ = p.Release()
	}
}

// freezes reports whether sig stops a process for a while.
func freezes(sig os.Signal) bool { return sig == syscall.SIGSTOP }

// wakes reports whether sig lets a stopped process go on.
func wakes(sig os.Signal) bool { return sig == syscall.SIGCONT }

// wake lets a process that was stopped by SIGSTOP, and its children, go on.
func wake(p *process) { _ = signalFamily(p, syscall.SIGCONT) }

// signalFamily sends sig to p and to its children.
func signalFamily(p *process, sig os.Signal) error {
	parent := p.cmd.Process.Pid
	if err := p.signal(sig); err != nil {
		return err
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		child, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		// As in remains.signal: handle first, check second. p is not reaped, or the
		// signal above had failed; so its pid is its own.
		if fields, err := statFields(pid); err == nil && fields[1] == strconv.Itoa(parent) {
			_ = child.Signal(sig)
		}
		_ = child.Release()
	}
	return nil
}

// removeStalePID removes PostgreSQL's own pid file if the process that it names is gone
// or is another program. PostgreSQL would take any process of its user with that pid
// for itself, and would not start. If a PostgreSQL has the pid, the file stays, and
// PostgreSQL decides.
func removeStalePID(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, _, _ := strings.Cut(string(text), "\n")
	if comm, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/comm"); err == nil && strings.HasPrefix(string(comm), postgres) {
		return nil
	}
	return os.Remove(path)
}
