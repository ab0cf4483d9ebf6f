package worker

import (
	"context"
	"testing"
	"time"

	"millrace/internal/frame"
	"millrace/internal/testenv"
)

// TestADistributedTableIsDetachedPlainly: a stand-in for Citus's catalog says that logs is distributed. A long read is not
// waited for: the round fails, leaves nothing pending, and the next one drops the partition.
func TestADistributedTableIsDetachedPlainly(t *testing.T) {
	url := testenv.Schema(t)
	db, reader := workerConn(t, url), testenv.Connect(t, url)
	ctx := context.Background()
	exec(t, db, "CREATE TABLE pg_dist_partition (logicalrelid regclass)")
	exec(t, db, "INSERT INTO pg_dist_partition VALUES ('logs')")
	p := newPartitions(24 * time.Hour)
	old := segmentOf(frame.BaseAt(time.Now().AddDate(0, 0, -30)), `{}`)
	if _, err := store(ctx, db, p, []segment{old, segmentOf(frame.NewBase(), `{}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	k := testKeeper(db, p, 24*time.Hour)
	exec(t, reader, "BEGIN")
	count(t, reader, allLogs)
	if err := k.tidy(ctx); err == nil {
		t.Error("it did not give up")
	}
	if got := count(t, reader, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending AND inhparent = 'logs'::regclass"); got != 0 {
		t.Errorf("%d detaches are pending", got)
	}
	exec(t, reader, "COMMIT")
	if err := k.tidy(ctx); err != nil {
		t.Error(err)
	}
	want(t, reader, 1, allLogs)
}
