package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"millrace/internal/frame"
)

// mismatch is a kind of difference between what should be and what is.
type mismatch string

const (
	lost        mismatch = "acked, but not stored"
	doubled     mismatch = "stored twice"
	foreign     mismatch = "stored, but never sent"
	otherID     mismatch = "stored under another id than was answered"
	sameID      mismatch = "records that share an id"
	misdated    mismatch = "ids of another time"
	otherRecord mismatch = "stored otherwise than it was sent"
	deadExtra   mismatch = "a dead letter that nobody poisoned"
	deadMissing mismatch = "poisoned, but no dead letter"
	deadTwice   mismatch = "two dead letters of one"
	wrongAnswer mismatch = "a wrong answer"
	neverAcked  mismatch = "never acked"
	died        mismatch = "a process that ended by itself"
	stuck       mismatch = "no recovery"
	stale       mismatch = "a search that answers with what was"
	shrunk      mismatch = "an answer with fewer records than before"
	grown       mismatch = "an answer with more records than were sent"
	apartFiles  mismatch = "files of the archive that differ from the table"
	unnoticed   mismatch = "a damaged file that is not noticed"
	leaked      mismatch = "resources that do not come back"
	broken      mismatch = "a fault of the harness"
)

// Mismatch is one difference, with its history.
type Mismatch struct{ Kind, Text string }

const mostMismatches = 100 // that are kept and printed, of each kind

// mismatch notes a difference. It may be called by several goroutines.
func (r *run) mismatch(kind mismatch, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[kind]++; r.counts[kind] > mostMismatches {
		return
	}
	r.mismatches = append(r.mismatches, Mismatch{string(kind), text})
	fmt.Fprintf(r.Out, "MISMATCH %s: %s\n", kind, text)
}

// historyOf returns a request's history, and the faults that were in force meanwhile, as text.
func (r *run) historyOf(q *sent) string {
	text := r.load.history(q)
	if len(q.tries) > 0 {
		last := q.tries[len(q.tries)-1]
		// A fault may lose what was acked a while before.
		text += r.inForce(q.tries[0].at, last.at+last.took+20*time.Second)
	}
	return text
}

// reconcile compares what is stored with what was sent, and returns the report.
func (r *run) reconcile(ctx context.Context) (*Report, error) {
	r.say("comparing")
	report := &Report{run: r}
	r.reader.expect()
	compare := r.comparison(report)
	ranges, err := r.rows(ctx, func(format string, args ...any) { r.mismatch(apartFiles, format, args...) }, func(row storedRow) {
		compare(row)
		client, _, _, _ := parseRecord(row.text)
		r.reader.note(client, row.came, row.at)
	})
	if err != nil {
		return nil, err
	}
	if r.Archive {
		report.archive(ranges)
	}
	if err := r.checkRest(ctx, report); err != nil {
		return nil, err
	}
	r.reader.check(ctx)
	r.watch.check()
	report.finish()
	return report, nil
}

// comparison returns a function that compares one row with what was sent, and counts it in the report.
func (r *run) comparison(report *Report) func(storedRow) {
	var want []byte
	return func(row storedRow) {
		report.Stored++
		want = r.check(uuid.UUID(row.id), row.came, row.at, row.text, want[:0])
	}
}

// checkRest looks for what no row tells, once all rows were compared: records that are missing, that share an id, and dead letters.
func (r *run) checkRest(ctx context.Context, report *Report) error {
	if err := r.checkIDs(ctx); err != nil {
		return err
	}

	// What is missing.
	tell := func(client, number int, q *sent) {
		s := r.load.shape(client, number)
		missing, first := 0, -1
		for i := range s.records {
			if i != s.bad && (q.seen == nil || q.seen[i/64]&(1<<(i%64)) == 0) {
				if missing++; first < 0 {
					first = i
				}
			}
		}
		switch {
		case q.acked && missing > 0:
			report.Lost += missing
			r.mismatch(lost, "%d of %d records of client %d, request %d, the first is record %d%s",
				missing, s.accepted(), client, number, first, r.historyOf(q))
		case q.acked:
			report.Requests++
			report.Records += s.accepted()
		default:
			report.Unknown++
		}
	}
	for client, requests := range r.load.sent {
		for number, q := range requests {
			tell(client, number, q)
		}
	}
	for number, q := range r.poison.sent {
		if r.poison.shape(poisoner, number).records > 0 {
			tell(poisoner, number, q)
		}
	}
	for number, q := range r.late.sent {
		tell(latecomer, number, q)
	}
	return r.checkDead(ctx, report)
}

// checkIDs notes a mismatch for each id that different records have.
func (r *run) checkIDs(ctx context.Context) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing to lose
	rows, err := conn.Query(ctx, "SELECT id, count(DISTINCT data)::int, min(data::text), max(data::text) FROM logs GROUP BY id HAVING count(DISTINCT data) > 1")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id [16]byte
		var n int
		var first, last string
		if err := rows.Scan(&id, &n, &first, &last); err != nil {
			return err
		}
		r.mismatch(sameID, "%s is the id of %d records: %.100s, %.100s", uuid.UUID(id), n, first, last)
	}
	return rows.Err()
}

// check compares one row with what was sent. It makes the record that should be there in the memory of want, and returns that
// memory for the next row.
func (r *run) check(id uuid.UUID, came, at time.Time, text string, want []byte) []byte {
	client, number, record, ok := parseRecord(text)
	var q *sent
	switch client {
	case poisoner:
		q = r.poison.find(number)
	case latecomer:
		q = r.late.find(number)
	default:
		q = r.load.find(client, number)
	}
	if !ok || q == nil {
		r.mismatch(foreign, "%s %.200s", id, text)
		return want
	}
	s := r.load.shape(client, number)
	if record < 0 || record >= s.records || record == s.bad {
		r.mismatch(foreign, "%s %.200s: the request has no such record%s", id, text, r.historyOf(q))
		return want
	}
	if q.seen == nil {
		q.seen = make([]uint64, (s.records+63)/64)
	}
	if bit := uint64(1) << (record % 64); q.seen[record/64]&bit != 0 {
		r.mismatch(doubled, "record %d of client %d, request %d, now under %s%s", record, client, number, id, r.historyOf(q))
	} else {
		q.seen[record/64] |= bit
	}
	if q.base != uuid.Nil && id != s.id(q.base, record) {
		r.mismatch(otherID, "record %d of client %d, request %d is %s, want %s%s", record, client, number, id, s.id(q.base, record), r.historyOf(q))
	}
	if s.door != native && q.date.IsZero() {
		q.date = r.load.newestTime(client, number, s)
	}
	if s.door != native && !came.Equal(q.date) {
		r.mismatch(misdated, "record %d of client %d, request %d is dated %s, want %s, the newest time in it%s", record, client, number, came, q.date, r.historyOf(q))
	}
	if !came.Equal(frame.Time(id)) {
		r.mismatch(otherRecord, "%s has inserted_at %s", id, came)
	}
	if stored := r.load.storedTime(client, number, record, came); !at.Equal(stored) {
		r.mismatch(otherRecord, "%s, which came at %s, has the time %s, want %s: %.300s", id, came, at, stored, text)
	}
	want = r.load.appendRecord(want, client, number, record, false)
	if string(want) != text {
		r.mismatch(otherRecord, "%s is %.300s, want %.300s%s", id, text, want, r.historyOf(q))
	}
	return want
}

// checkDead compares the dead letters with what was poisoned.
func (r *run) checkDead(ctx context.Context, report *Report) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) // nothing to lose
	rows, err := conn.Query(ctx, "SELECT id, dead_at, reason, error, payload FROM dead_letters ORDER BY dead_at")
	if err != nil {
		return err
	}
	defer rows.Close()
	found := make(map[string]int)
	for rows.Next() {
		var id [16]byte
		var at time.Time
		var reason, why string
		var payload []byte
		if err := rows.Scan(&id, &at, &reason, &why, &payload); err != nil {
			return err
		}
		report.Dead++
		key := string(payload)
		found[key]++
		about := fmt.Sprintf("%s at %s, %s, %s: %.200q", uuid.UUID(id), stamp(at.Sub(r.load.began)), reason, why, payload)
		if r.poison.dead[key] == 0 {
			client, number, _, ok := parseRecord(spaced(firstLine(key)))
			if ok && client < len(r.load.sent) {
				if q := r.load.find(client, number); q != nil {
					about += r.historyOf(q)
				}
			}
			r.mismatch(deadExtra, "%s", about)
		} else if found[key] > r.poison.dead[key] {
			r.mismatch(deadTwice, "%s", about)
		}
	}
	for payload := range r.poison.dead {
		if found[payload] == 0 {
			r.mismatch(deadMissing, "%.200q", payload)
		}
	}
	report.Poisoned = len(r.poison.dead)
	return rows.Err()
}

// firstLine returns what stands before the first newline.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// spaced returns a compact record as PostgreSQL writes it.
func spaced(record string) string {
	return strings.NewReplacer(`":`, `": `, `,"`, `, "`).Replace(record)
}
