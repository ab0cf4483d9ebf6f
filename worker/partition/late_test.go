package partition

import (
	"context"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// TestNotesAboutPartitionsThatAreGoneGoAnHourLater moves the keeper's clock.
func TestNotesAboutPartitionsThatAreGoneGoAnHourLater(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	now := time.Now()
	put(t, db, p, now)
	from, to := p.LogsAt(now)
	there := Hour{Start: now.AddDate(0, -1, 0).Truncate(time.Hour).UnixMicro(), From: from, To: to}
	day := (24 * time.Hour).Microseconds()
	gone := Hour{Start: there.Start, From: from - 30*day, To: to - 30*day}
	for _, h := range []Hour{there, gone} {
		exec(t, db, "INSERT INTO late_hours VALUES ($1, $2, $3)", time.UnixMicro(h.Start), time.UnixMicro(h.From), time.UnixMicro(h.To))
	}
	if unnoted := p.UnnotedHours(map[Hour]bool{there: true}); len(unnoted) != 1 {
		t.Errorf("got %v before the note is known", unnoted)
	}
	p.LearnNoted([]Hour{there})
	if unnoted := p.UnnotedHours(map[Hour]bool{there: true, gone: true}); len(unnoted) != 1 || unnoted[0] != gone {
		t.Errorf("got %v, want only the note that is not known", unnoted)
	}
	k := testKeeper(db, p, 0)
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{0, 2}, {hoursKept / 2, 2}, {hoursKept + time.Minute, 1}} {
		if err := k.forgetHours(ctx, db, now.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		want(t, db, step.left, "SELECT count(*) FROM late_hours")
	}
	p.MarkStale()
	put(t, db, p, now) // the set reads the catalog again
	if unnoted := p.UnnotedHours(map[Hour]bool{there: true}); len(unnoted) != 1 {
		t.Errorf("got %v after the partitions were read again", unnoted)
	}
}

// TestADroppedPartitionChangesTheTimesThatItHadRowsOf has notes about the whole partition, about a part of it, and about another one.
func TestADroppedPartitionChangesTheTimesThatItHadRowsOf(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	p := New(24 * time.Hour)
	now := time.Now()
	old := now.AddDate(0, 0, -30).UTC().Truncate(24 * time.Hour)
	put(t, db, p, now, old.Add(time.Hour))
	note := func(hour, from, to time.Time) {
		t.Helper()
		exec(t, db, "INSERT INTO late_hours VALUES ($1, $2, $3)", hour, from, to)
	}
	whole, part, other := old.AddDate(0, 0, -10), old.AddDate(0, 0, -20), old.AddDate(0, 0, -5)
	note(whole, old, old.AddDate(0, 0, 1))
	note(part, old.Add(5*time.Hour), old.Add(6*time.Hour))
	note(other, old.AddDate(0, 0, 1), old.AddDate(0, 0, 2))
	if err := testKeeper(db, p, 72*time.Hour).Round(ctx); err != nil {
		t.Fatal(err)
	}
	const changed = "SELECT count(*) FROM late_times WHERE hour = $1"
	want(t, db, 1, changed, whole)
	want(t, db, 1, changed, part)
	want(t, db, 0, changed, other)
	want(t, db, 1, changed, old.Add(-time.Hour)) // near the partition's beginning
	want(t, db, 1, changed, old.Add(24*time.Hour))
}
