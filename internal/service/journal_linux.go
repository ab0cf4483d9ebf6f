package service

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// toJournal reports whether w is the stream to the journal that systemd gave this process. JOURNAL_STREAM names
// the stream's device and inode, so an output that was redirected since is not mistaken for it. See
// systemd.exec(5).
func toJournal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}
