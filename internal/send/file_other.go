//go:build !unix

package send

import (
	"errors"
	"os"
)

// fileID is what tells a file from others, as long as it is not removed.
type fileID struct{ device, inode uint64 }

// idOf returns nothing: files have no inode here.
func idOf(os.FileInfo) fileID { return fileID{} }

// lockFile fails: without locks and inodes no position can be kept.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("files need a Unix system; standard input is sent on all")
}
