//go:build race

package direct

import (
	"errors"
	"syscall"
)

// To the race detector what one goroutine writes to a connection happens before another reads it. It learns so from the
// syscall package's own functions.

func read(fd int, p []byte) (int, syscall.Errno) { return result(syscall.Read(fd, p)) }

func write(fd int, p []byte) (int, syscall.Errno) { return result(syscall.Write(fd, p)) }

func result(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	errors.As(err, &errno)
	return n, errno
}
