//go:build unix

package send

import (
	"os"
	"syscall"
)

// fileID is what tells a file from others, as long as it is not removed.
type fileID struct{ device, inode uint64 }

// idOf returns the identity of a file.
func idOf(info os.FileInfo) fileID {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileID{uint64(s.Dev), uint64(s.Ino)} //nolint:unconvert // their types differ from system to system
	}
	return fileID{}
}

// lockFile opens and locks a file. It fails if another process has locked it. The lock lasts until the file is closed.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}
