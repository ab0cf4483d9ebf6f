package service

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// toJournal says whether w is the stream that systemd gave this process to its journal: JOURNAL_STREAM names its
// device and inode, so that an output that was redirected since is not taken for it. See systemd.exec(5).
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
