//go:build !linux

package chaos

import (
	"errors"
	"syscall"
)

func endsWithUs() *syscall.SysProcAttr { return nil }

type disk struct{}

func newDisk(string, int64) (*disk, error) { return nil, errors.New("small file systems need Linux") }

func (*disk) fill() error      { return nil }
func (*disk) free() error      { return nil }
func (*disk) close(bool) error { return nil }
