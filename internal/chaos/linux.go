//go:build linux

package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// endsWithUs returns the attributes with which the kernel ends a process when this one dies.
func endsWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// disk is a small file system of its own, in a file, that can be filled up.
type disk struct{ dir, image string }

// newDisk mounts an empty ext4 of some size on dir. It fails if this process is not root's.
func newDisk(dir string, size int64) (*disk, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("mounting a file system takes root")
	}
	d := &disk{dir: dir, image: dir + ".img"}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-m", "0", d.image}, {"mount", "-o", "loop", d.image, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			_ = os.Remove(d.image)
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return d, nil
}

// ballast returns the path of the file that fills the disk.
func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves nothing free.
func (d *disk) fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer f.Close()
	var stat syscall.Statfs_t
	at := int64(0)
	for {
		if err := syscall.Statfs(d.dir, &stat); err != nil {
			return err
		}
		free := int64(stat.Bavail) * stat.Bsize
		if free < stat.Bsize {
			return nil
		}
		// Its own blocks of pointers need room too, so the last bytes are taken in smaller steps.
		for size := free; ; size /= 2 {
			err := syscall.Fallocate(int(f.Fd()), 0, at, size)
			if err == nil {
				at += size
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				return err
			}
			if size <= stat.Bsize {
				return nil
			}
		}
	}
}

// free makes room again.
func (d *disk) free() error {
	err := os.Remove(d.ballast())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// close unmounts the file system, which nobody may use any more, and removes it unless it is to be kept.
func (d *disk) close(keep bool) error {
	out, err := exec.Command("umount", d.dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("umount %s: %w: %s", d.dir, err, strings.TrimSpace(string(out)))
	}
	if keep {
		return err
	}
	return errors.Join(err, os.Remove(d.image))
}
