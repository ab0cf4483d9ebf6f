//go:build !linux

package localstack

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// localSupported is false: without parent-death signals and /proc, servers could
// outlive this process. Start uses containers here, so what follows is never
// called; it lets the package build.
const localSupported = false

var errLinuxOnly = errors.New("local servers need Linux")

func processAttributes(command) *syscall.SysProcAttr { return nil }

func unprivileged(string) (*account, error) { return nil, errLinuxOnly }

func (a *account) lend(string) error { return errLinuxOnly }

func lockFolder(string) (*os.File, error) { return nil, errLinuxOnly }

func ownedByUs(string) bool { return false }

func recordPID(string, int) error { return errLinuxOnly }

type remains struct {
	mark  string
	homes map[string]string
	pids  []string
}

func (r remains) sweep(time.Duration) error { return errLinuxOnly }

func freezes(os.Signal) bool { return false }

func wakes(os.Signal) bool { return false }

func wake(*process) {}

func signalFamily(*process, os.Signal) error { return errLinuxOnly }

func removeStalePID(string) error { return errLinuxOnly }
