package partition

import (
	"context"
	"testing"
	"time"

	"millrace/internal/fieldindex"
	"millrace/internal/testenv"
)

// TestFieldsGetIndexesAndLoseThem changes what is asked for, and looks which indexes each partition has.
func TestFieldsGetIndexesAndLoseThem(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	p := New(24 * time.Hour)
	now := time.Now()
	put(t, db, p, now, now.Add(-48*time.Hour)) // an open partition and a closed one
	x := testIndexer(workerConn(t, url), p)
	id, user := []string{"trace_id"}, []string{"user", `na"me's`}
	for _, fields := range [][][]string{{id}, {id, user}, {user}, nil} {
		x.Fields = fields
		for range 2 { // the second round finds nothing to do
			if err := x.Round(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range [][]string{id, user} {
			indexes := 0
			for _, asked := range fields {
				if asked[0] == path[0] {
					indexes = count(t, db, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass")
				}
			}
			want(t, db, indexes, "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid WHERE i.inhparent = 'logs'::regclass AND x.indisvalid AND c.relname LIKE '%'||$1", fieldindex.Suffix(path))
		}
	}
	want(t, db, 1, "SELECT count(*) FROM settings WHERE name = 'index_fields' AND value = 'null'")
}

// TestAFieldsIndexWaitsForCalmStreams leaves a partition with rows alone while the streams are busy. A new one is indexed at once.
func TestAFieldsIndexWaitsForCalmStreams(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	p := New(24 * time.Hour)
	put(t, db, p, time.Now())
	if err := testKeeper(workerConn(t, url), p, 0).Round(ctx); err != nil { // it makes the next ones
		t.Fatal(err)
	}
	x := testIndexer(workerConn(t, url), p)
	calm := false
	x.Fields, x.Calm = [][]string{{"trace_id"}}, func(context.Context) bool { return calm }
	const withIndex = "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid WHERE i.inhparent = 'logs'::regclass AND c.relname LIKE '%'||$1"
	all := count(t, db, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'logs'::regclass")
	if all < 2 {
		t.Fatalf("there are %d partitions", all)
	}
	if err := x.Round(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, db, all-1, withIndex, fieldindex.Suffix(x.Fields[0]))
	calm = true
	if err := x.Round(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, db, all, withIndex, fieldindex.Suffix(x.Fields[0]))
}

// TestIndexesOfOthersAreLeftAlone has names that begin as those of fields' indexes do.
func TestIndexesOfOthersAreLeftAlone(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	put(t, db, p, time.Now())
	name := "logs_" + time.Now().UTC().Format("20060102") + fieldindex.Infix
	others := []string{name + "mine", name + "0123abcd_ccnew", name + "0123abcdef"}
	for _, other := range others {
		exec(t, db, "CREATE INDEX "+other+" ON "+"logs_"+time.Now().UTC().Format("20060102")+" ((data->>'mine'))")
	}
	x := testIndexer(db, p)
	for _, fields := range [][][]string{{{"trace_id"}}, nil} {
		x.Fields = fields
		if err := x.Round(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, len(others), "SELECT count(*) FROM pg_class WHERE relname = ANY ($1) AND relnamespace = current_schema()::regnamespace", others)
}
