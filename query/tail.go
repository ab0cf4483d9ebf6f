package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/query/language"
)

// How the tail finds every row once, also one that commits minutes after the time it carries.
//
// The reader polls. Each poll is one snapshot of the database, and shows the rows that are visible in it and were
// not in the poll before. PostgreSQL tells that by a row's xmin, the transaction that wrote it: nothing older than
// the oldest transaction that ran at the last poll (its snapshot's xmin) can be new, and of what is younger the
// reader remembers the transactions it has seen. That needs no list of running transactions, which would lack
// subtransactions, and is empty on a replica.
//
// Where to look, since no index is on xmin:
//
//   - All rows whose time lies in the last moments (sweepMin to sweepMax, as far as a look costs little). That
//     also finds rows which were written by hand.
//   - Older rows by the ledger, which has one row for a few hundred records and is entered in the same
//     transaction: back to when the oldest transaction that ran at the last poll can have begun, and over the hours
//     that late_changes tells of.
//   - Records that were dead letters at the last look and are none any more.
const (
	// pollEvery is the pause between two polls, and the longest that a row waits when a poll takes no time.
	pollEvery = 100 * time.Millisecond
	// busyPoll is how many rows make a poll one of a busy table, after which the next follows without more of a pause: the
	// longer that would be, the longer it would take.
	busyPoll = 1000
	// pollTimeout is the longest one statement of the reader may take.
	pollTimeout = 10 * time.Second

	// sweepMin and sweepMax bound how far back all rows are looked at. It doubles while a poll takes less than
	// sweepCheap and halves when it takes more than sweepDear.
	sweepMin, sweepMax    = 2 * time.Second, 10 * time.Minute
	sweepCheap, sweepDear = 5 * time.Millisecond, 25 * time.Millisecond

	// unnoted is the age up to which a worker stores rows without a note in late_changes, and some time for the
	// clocks.
	unnoted = 35 * time.Second
	// lateReach is how old the hours in late_changes are that are looked at: the ledger remembers 7 days.
	lateReach = 8 * 24 * time.Hour
	// deadWatched is how many of the latest dead letters are watched for being replayed.
	deadWatched = 10_000
	// segmentsAtOnce is how many segments of the ledger one query reads the records of.
	segmentsAtOnce = 200

	// followerEvents and followerBytes bound what waits for a follower; what comes on top is counted as missed.
	followerEvents = 20_000
	followerBytes  = 4 << 20

	// resumeReach is how long after its last event a follower can go on where it was, resumeRows how many rows
	// it may have missed.
	resumeReach = 10 * time.Minute
	resumeRows  = 10_000
)

// event is a row on its way to followers.
type event struct {
	id   uuid.UUID
	poll int64 // before which it was not visible
	text []byte
}

// follower is what waits for one client.
type follower struct {
	audience *audience
	ready    chan struct{} // holds one when something waits

	mu     sync.Mutex
	events []*event
	bytes  int
	missed int64
}

// push adds an event, unless too much waits.
func (f *follower) push(e *event) (missed bool) {
	f.mu.Lock()
	if missed = len(f.events) >= followerEvents || f.bytes+len(e.text) > followerBytes; missed {
		f.missed++
	} else {
		f.events, f.bytes = append(f.events, e), f.bytes+len(e.text)
	}
	f.mu.Unlock()
	select {
	case f.ready <- struct{}{}:
	default:
	}
	return missed
}

// take returns what waits, and how many were missed after it.
func (f *follower) take() (events []*event, missed int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events, missed = f.events, f.missed
	f.events, f.bytes, f.missed = nil, 0, 0
	return events, missed
}

// audience is the followers of one query.
type audience = language.Entry[map[*follower]bool]

// tail is the one reader of all followers.
type tail struct {
	connect func(context.Context) (*pgx.Conn, error)
	log     *slog.Logger
	metrics *metrics
	most    int // followers
	wake    chan struct{}

	begun    atomic.Int64           // polls
	position atomic.Pointer[string] // what a follower that has everything goes on from

	mu        sync.Mutex
	audiences language.Set[map[*follower]bool]
	count     int
	based     chan struct{} // closed when the reader has a snapshot to go on from; nil while nobody follows
}

var errFollowers = errors.New("too many followers")

// join adds a follower. What becomes visible after it has returned reaches the follower.
func (t *tail) join(ctx context.Context, filter language.Query) (*follower, error) {
	f := &follower{ready: make(chan struct{}, 1)}
	t.mu.Lock()
	if t.count == t.most {
		t.mu.Unlock()
		return nil, errFollowers
	}
	t.count++
	f.audience = t.audiences.Entry(filter)
	if f.audience.Value == nil {
		f.audience.Value = make(map[*follower]bool)
	}
	f.audience.Value[f] = true
	if t.based == nil {
		t.based = make(chan struct{})
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	based := t.based
	t.mu.Unlock()
	t.metrics.followers.Inc()
	select {
	case <-based:
		return f, nil
	case <-ctx.Done():
		t.leave(f)
		return nil, ctx.Err()
	}
}

func (t *tail) leave(f *follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(f.audience.Value, f)
	t.count--
	if len(f.audience.Value) == 0 {
		t.audiences.Remove(f.audience)
	}
	t.metrics.followers.Dec()
}

// run reads while there are followers, until ctx is done.
func (t *tail) run(ctx context.Context) {
	for {
		select {
		case <-t.wake:
			t.follow(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// follow polls until nobody follows any more.
func (t *tail) follow(ctx context.Context) {
	r := &reader{tail: t, sweep: sweepMin}
	defer r.close(ctx)
	failing := false
	for {
		began := time.Now()
		err := r.poll(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := pollEvery
		if r.gave < busyPoll { // a third of a connection's time at most, unless there is much to give out
			pause = max(pollEvery, 2*time.Since(began))
		}
		switch {
		case err != nil:
			r.close(ctx)
			pause = time.Second
			if !failing {
				t.log.Warn("the tail can't read; it goes on where it was when the database is there", "error", err)
			}
		case failing:
			t.log.Info("the tail reads again")
		}
		failing = err != nil
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		t.mu.Lock()
		if t.count == 0 {
			t.based = nil
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
	}
}

// dispatch gives a row to those whose query it satisfies.
func (t *tail) dispatch(r *language.Record, e *event, data []byte, prefix string) error {
	if err := r.Read(data); err != nil {
		return fmt.Errorf("record %s: %w", e.id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.audiences.Each(r, func(a *audience) {
		if e.text == nil {
			e.text = appendEvent(prefix, e.id, data)
		}
		for f := range a.Value {
			if f.push(e) {
				t.metrics.missed.Inc()
			}
		}
	})
	return nil
}

// appendEvent writes a row as a server-sent event. data has no line breaks: PostgreSQL escapes them.
func appendEvent(prefix string, id uuid.UUID, data []byte) []byte {
	out := make([]byte, 0, len(prefix)+len(data)+150)
	out = append(append(out, "id: "...), prefix...)
	out = append(append(out, id.String()...), "\ndata: "...)
	return append(appendLog(out, id, frame.Time(id), data), "\n\n"...)
}

// reader is what goes from one poll to the next.
type reader struct {
	*tail
	conn *pgx.Conn

	last    *snapshot          // of the last poll that succeeded; nil at first
	number  int64              // of that poll
	given   map[uuid.UUID]bool // rows that polls gave out which failed afterwards
	seen    map[int64]bool     // transactions that are not before last.xmin, and whose rows have been seen
	history []moment           // of polls, oldest first, as far as it is needed
	gave    int                // rows, in the last poll
	sweep   time.Duration
	dead    map[uuid.UUID]bool // records that are dead letters
	looked  time.Time          // when dead was read
}

// moment is a time at which no transaction from xmax on had begun.
type moment struct {
	at   time.Time
	xmax int64
}

// snapshot is what a poll sees. Transaction ids have 64 bits.
type snapshot struct {
	xmin, xmax int64
	pending    []int64 // transactions before xmax that it does not see, as far as the server tells
	at         time.Time
}

// position writes a place between two transactions.
func (s *snapshot) position() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(s.xmax, 36))
	pending := s.pending[max(0, len(s.pending)-64):]
	for _, x := range pending {
		b.WriteByte('-')
		b.WriteString(strconv.FormatInt(x, 36))
	}
	return b.String()
}

// sees says whether what x wrote is in the snapshot.
func (s *snapshot) sees(x int64) bool { return x < s.xmax && !slices.Contains(s.pending, x) }

// full makes 64 bits of the 32 that a row keeps.
func (s *snapshot) full(x uint32) int64 {
	full := s.xmax&^0xffffffff | int64(x)
	if full >= s.xmax {
		full -= 1 << 32
	}
	return full
}

func (r *reader) close(ctx context.Context) {
	if r.conn == nil {
		return
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.conn.Close(closing) // it was read from only, and may be broken
	r.conn = nil
}

const (
	beginTail = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off; SET LOCAL enable_seqscan = off;
		SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL statement_timeout = `

	snapshotSQL = `SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
		ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x ORDER BY 1), clock_timestamp() FROM pg_current_snapshot() AS s`

	// newSQL keeps rows that no transaction before $1 wrote. age counts back from the present, so that it does not
	// matter when 32 bits have gone round.
	newSQL = ` AND age(xmin) <= (SELECT age($1::text::xid))`
	// unseenSQL leaves out those of $2.
	unseenSQL = ` AND NOT xmin = ANY($2::text[]::xid[])`

	sweepSQL  = `SELECT id, xmin::text::bigint, data::text FROM logs WHERE inserted_at >= $3` + newSQL + unseenSQL + ` ORDER BY id`
	ledgerSQL = `SELECT id, records, xmin::text::bigint FROM ledger WHERE id >= $3 AND id < $4` + newSQL + unseenSQL + ` ORDER BY id`
	lateSQL   = `SELECT DISTINCT hour FROM late_changes WHERE hour > $3` + newSQL + unseenSQL
	deadSQL   = `SELECT record_id FROM dead_letters WHERE record_id IS NOT NULL ORDER BY dead_at DESC LIMIT $1`

	recordsSQL = `SELECT l.id, l.xmin::text::bigint, l.data::text FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS s (first, last, at)
		JOIN logs l ON l.inserted_at = s.at AND l.id BETWEEN s.first AND s.last
		WHERE l.inserted_at >= $4 AND l.inserted_at <= $5 ORDER BY l.id`
)

// firstID is before all ids of a time.
func firstID(at time.Time) [16]byte {
	var id [16]byte
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[5-i] = byte(ms >> (8 * i))
	}
	return id
}

// poll takes a snapshot and gives out what is new in it. The first one only remembers what is there.
func (r *reader) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*pollTimeout)
	defer cancel()
	if r.conn == nil {
		conn, err := r.connect(ctx)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	number := r.begun.Add(1)
	r.gave = 0
	if _, err := r.conn.Exec(ctx, beginTail+strconv.FormatInt(pollTimeout.Milliseconds(), 10)); err != nil {
		return err
	}
	next, err := r.read(ctx)
	if err != nil {
		return err
	}
	r.last, r.number = next, number // also when the connection breaks now: what is new has been given out
	position := "1." + strconv.FormatInt(next.at.UnixMilli(), 36) + "." + next.position()
	r.position.Store(&position)
	r.mu.Lock()
	select {
	case <-r.based:
	default:
		close(r.based)
	}
	r.mu.Unlock()
	_, err = r.conn.Exec(ctx, "ROLLBACK")
	return err
}

// read is what poll does within its snapshot.
func (r *reader) read(ctx context.Context) (_ *snapshot, err error) {
	now := new(snapshot)
	if err := r.conn.QueryRow(ctx, snapshotSQL).Scan(&now.xmin, &now.xmax, &now.pending, &now.at); err != nil {
		return nil, err
	}
	before := r.last
	if before != nil && now.xmax < before.xmax {
		r.log.Warn("the tail begins anew: the database is another one, or was set back")
		before = nil
	}
	first := before == nil
	if first {
		before = now
		r.seen, r.history = make(map[int64]bool), []moment{{now.at.Add(-sweepMax), now.xmin}}
	}
	oldest := strconv.FormatInt(before.xmin&0xffffffff, 10)
	seen := make([]string, 0, len(r.seen))
	for x := range r.seen {
		seen = append(seen, strconv.FormatInt(x&0xffffffff, 10))
	}
	prefix := "1." + strconv.FormatInt(before.at.UnixMilli(), 36) + "." + before.position() + "." + now.position() + "."
	var (
		rec  language.Record
		gave []uuid.UUID
	)
	defer func() {
		if err == nil {
			r.given = nil
			return
		}
		for _, id := range gave { // the next poll finds them again
			if r.given == nil {
				r.given = make(map[uuid.UUID]bool)
			}
			r.given[id] = true
		}
	}()
	fresh := make(map[int64]bool)
	give := func(rows pgx.Rows) error {
		defer rows.Close()
		for rows.Next() {
			raw := rows.RawValues()
			var xid int64
			e := &event{id: uuid.UUID(raw[0]), poll: r.number}
			if err := rows.Scan(nil, &xid, nil); err != nil {
				return err
			}
			x := now.full(uint32(xid))
			fresh[x] = true
			if first || r.seen[x] || r.given[e.id] {
				continue
			}
			if err := r.dispatch(&rec, e, raw[2], prefix); err != nil {
				return err
			}
			gave = append(gave, e.id)
			r.gave++
		}
		return rows.Err()
	}

	edge := now.at.Add(-r.sweep)
	var segments []segment
	look := func(from, to time.Time) error {
		if to.After(edge) {
			to = edge
		}
		found, err := newSegments(ctx, r.conn, oldest, seen, from, to)
		for _, s := range found {
			fresh[now.full(s.xid)] = true
		}
		segments = append(segments, found...)
		return err
	}
	// No transaction that ran at the last poll had begun at this moment.
	for len(r.history) > 1 && r.history[1].xmax <= before.xmin {
		r.history = r.history[1:]
	}
	back := r.history[0].at.Add(-unnoted)
	if err := look(back, now.at); err != nil {
		return nil, err
	}
	hours, err := newHours(ctx, r.conn, oldest, seen, now.at)
	if err != nil {
		return nil, err
	}
	for _, hour := range hours {
		end := hour.Add(time.Hour)
		if end.After(back) {
			end = back
		}
		if err := look(hour, end); err != nil {
			return nil, err
		}
	}

	// Dead letters that are gone have been replayed, or dropped.
	if first || len(hours) > 0 || time.Since(r.looked) > time.Second {
		rows, err := r.conn.Query(ctx, deadSQL, deadWatched)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil {
			return nil, err
		}
		dead := make(map[uuid.UUID]bool, len(ids))
		for _, id := range ids {
			dead[id] = true
		}
		for id := range r.dead {
			if !dead[id] && frame.Time(id).Before(edge) {
				segments = append(segments, segment{first: id, records: 1})
			}
		}
		r.dead, r.looked = dead, time.Now()
	}
	// By id over the whole poll: that is how far a follower that comes back has had it.
	slices.SortFunc(segments, func(a, b segment) int { return bytes.Compare(a.first[:], b.first[:]) })
	if err := eachRecord(ctx, r.conn, segments, give); err != nil {
		return nil, err
	}
	began := time.Now()
	rows, err := r.conn.Query(ctx, sweepSQL, oldest, seen, edge)
	if err == nil {
		err = give(rows)
	}
	if err != nil {
		return nil, err
	}
	took := time.Since(began)

	for x := range fresh {
		r.seen[x] = true
	}
	for x := range r.seen {
		if x < now.xmin {
			delete(r.seen, x)
		}
	}
	r.history = append(r.history, moment{now.at, now.xmax})
	switch {
	case took < sweepCheap:
		r.sweep = min(2*r.sweep, sweepMax)
	case took > sweepDear:
		r.sweep = max(r.sweep/2, sweepMin)
	}
	return now, nil
}

// segment is a row of the ledger that is new, or a record in the place of one.
type segment struct {
	first   uuid.UUID
	records int
	xid     uint32
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// newSegments returns the segments of a time that no transaction before oldest entered, and none of those seen.
func newSegments(ctx context.Context, db querier, oldest string, seen []string, from, to time.Time) ([]segment, error) {
	if !from.Before(to) {
		return nil, nil
	}
	rows, err := db.Query(ctx, ledgerSQL, oldest, seen, firstID(from), firstID(to))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (s segment, err error) {
		var (
			id  [16]byte
			xid int64
		)
		err = row.Scan(&id, &s.records, &xid)
		s.first, s.xid = id, uint32(xid)
		return s, err
	})
}

// newHours returns the hours in which such transactions changed something late.
func newHours(ctx context.Context, db querier, oldest string, seen []string, now time.Time) ([]time.Time, error) {
	rows, err := db.Query(ctx, lateSQL, oldest, seen, now.Add(-lateReach))
	if err != nil {
		return nil, err
	}
	hours, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	slices.SortFunc(hours, time.Time.Compare)
	return hours, err
}

// eachRecord calls give with the records of segments: id, xmin, data.
func eachRecord(ctx context.Context, db querier, segments []segment, give func(pgx.Rows) error) error {
	for chunk := range slices.Chunk(segments, segmentsAtOnce) {
		var firsts, lasts [][16]byte
		var times []time.Time
		for _, s := range chunk {
			firsts = append(firsts, s.first)
			lasts = append(lasts, frame.ID(s.first, s.records-1))
			times = append(times, frame.Time(s.first))
		}
		rows, err := db.Query(ctx, recordsSQL, firsts, lasts, times, slices.MinFunc(times, time.Time.Compare), slices.MaxFunc(times, time.Time.Compare))
		if err == nil {
			err = give(rows)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
