package worker

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestAFullDiskHoldsTheFrames: the partitions are on a small disk that is full, and grows.
func TestAFullDiskHoldsTheFrames(t *testing.T) {
	t.Parallel()
	space, grow := smallDisk(t)
	c := testConfig(t, 1)
	p, db := newPublisher(t, c), testenv.Connect(t, c.Postgres)
	exec(t, db, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_tablespace = "+space+"', current_database()); END $$")
	w := start(t, c)
	const frames, rows = 64, 100
	var body strings.Builder
	for range rows {
		body.WriteString(`{"text":"`)
		for range 70 {
			body.WriteString(rand.Text()) // or the server makes it small
		}
		body.WriteString("\"}\n")
	}
	for range frames {
		p.send(0, frameOf(body.String(), frame.Segment{Base: frame.NewBase(), Records: rows}))
	}
	w.unready("53100")
	grow()
	w.settled(p, db, frames*rows)
}

// smallDisk makes a tablespace on a file system of its own of a few megabytes, which grow makes larger.
func smallDisk(t *testing.T) (space string, grow func()) {
	t.Helper()
	admin := testenv.Connect(t, testenv.Database(t))
	var data string
	if err := admin.QueryRow(context.Background(), "SHOW data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(data)
	if err != nil {
		t.Skipf("the server's files are not on this machine: %v", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	dir, err := os.MkdirTemp("", "millrace-small-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	mount := func(flags uintptr, size string) error {
		return syscall.Mount("tmpfs", dir, "tmpfs", flags, fmt.Sprintf("size=%s,uid=%d,gid=%d,mode=0700", size, owner.Uid, owner.Gid))
	}
	if err := mount(0, "4m"); err != nil {
		t.Skipf("a small file system can't be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	space = testenv.Name()
	exec(t, admin, "CREATE TABLESPACE "+space+" LOCATION '"+dir+"'")
	t.Cleanup(func() { exec(t, admin, "DROP TABLESPACE "+space) }) // the database that uses it is gone then
	return space, func() {
		if err := mount(syscall.MS_REMOUNT, "512m"); err != nil {
			t.Fatal(err)
		}
	}
}
