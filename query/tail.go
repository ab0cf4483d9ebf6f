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
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/frame"
	"millrace/internal/rfc3339"
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
	// aheadReach is how far beyond the database's clock a follower that comes back is given rows: they carry the API's
	// clock, or the client's in an Idempotency-Key.
	aheadReach = time.Hour
)

// tailRow is a row that became visible.
type tailRow struct {
	ID   uuid.UUID
	Data []byte // the record as PostgreSQL writes it, without line breaks; good until the call that it was given to returns

	placePrefix string
}

// AppendPlace appends the row's place, which parsePlace reads: who goes on from it has had the row.
func (r tailRow) AppendPlace(out []byte) []byte {
	return append(append(out, r.placePrefix...), r.ID.String()...)
}

// event is a row on its way to followers.
type event struct {
	Text []byte // as tailOptions.Encode made it

	id   uuid.UUID
	poll int64 // before which it was not visible
}

// follower is what waits for one client.
type follower struct {
	tail     *tail
	audience *audience
	ready    chan struct{} // holds one when something waits

	mu     sync.Mutex
	events []*event
	bytes  int
	missed int64

	caught      map[uuid.UUID]bool // rows that CatchUp gave, which polls up to caughtUntil may give too
	caughtUntil int64
}

// Ready returns the channel that has a value when something waits.
func (f *follower) Ready() <-chan struct{} { return f.ready }

// push adds an event, unless too much waits.
func (f *follower) push(e *event) (missed bool) {
	f.mu.Lock()
	if missed = len(f.events) >= followerEvents || f.bytes+len(e.Text) > followerBytes; missed {
		f.missed++
	} else {
		f.events, f.bytes = append(f.events, e), f.bytes+len(e.Text)
	}
	f.mu.Unlock()
	select {
	case f.ready <- struct{}{}:
	default:
	}
	return missed
}

// Take returns what waits, and how many rows were missed after it. One goroutine may call it and CatchUp.
func (f *follower) Take() (events []*event, missed int64) {
	f.mu.Lock()
	events, missed = f.events, f.missed
	f.events, f.bytes, f.missed = nil, 0, 0
	f.mu.Unlock()
	if f.caught != nil {
		events = slices.DeleteFunc(events, func(e *event) bool {
			if e.poll > f.caughtUntil {
				f.caught = nil
			}
			return f.caught[e.id]
		})
	}
	return events, missed
}

// IsIdle reports whether nothing waits.
func (f *follower) IsIdle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events) == 0 && f.missed == 0
}

// audience is the followers of one query.
type audience = language.Entry[map[*follower]bool]

// tailOptions are what a tail needs.
type tailOptions struct {
	// Connect opens a connection for the reader.
	Connect func(context.Context) (*pgx.Conn, error)
	// Read runs f in a read-only transaction, for a follower that comes back.
	Read func(ctx context.Context, f func(context.Context, pgx.Tx) error) error
	// Encode writes a row as all followers get it.
	Encode func(tailRow) []byte
	// MaxFollowers is the most followers at once.
	MaxFollowers int
	// Followers shows how many there are, and Missed how many rows they were too slow for.
	Followers prometheus.Gauge
	Missed    prometheus.Counter
	Log       *slog.Logger
}

// tail is the one reader of all followers.
type tail struct {
	options tailOptions
	wake    chan struct{}

	begun    atomic.Int64           // polls
	position atomic.Pointer[string] // what a follower that has everything goes on from

	mu        sync.Mutex
	audiences language.Set[map[*follower]bool]
	count     int
	based     chan struct{} // closed when the reader has a snapshot to go on from; nil while nobody follows
}

// newTail returns a tail that reads once Run is called.
func newTail(o tailOptions) *tail { return &tail{options: o, wake: make(chan struct{}, 1)} }

// Position returns the place of who has had everything that was given out up to now; "" when nothing was yet.
func (t *tail) Position() string {
	if position := t.position.Load(); position != nil {
		return *position
	}
	return ""
}

var errFollowers = errors.New("too many followers")

// join adds a follower. What becomes visible after it has returned reaches the follower.
func (t *tail) join(ctx context.Context, filter language.Query) (*follower, error) {
	f := &follower{tail: t, ready: make(chan struct{}, 1)}
	t.mu.Lock()
	if t.count == t.options.MaxFollowers {
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
	t.options.Followers.Inc()
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
	t.options.Followers.Dec()
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
				t.options.Log.Warn("the tail can't read; it goes on where it was when the database is there", "error", err)
			}
		case failing:
			t.options.Log.Info("the tail reads again")
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
		if e.Text == nil {
			e.Text = t.options.Encode(tailRow{ID: e.id, Data: data, placePrefix: prefix})
		}
		for f := range a.Value {
			if f.push(e) {
				t.options.Missed.Inc()
			}
		}
	})
	return nil
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

// place writes the place of a follower that has had all that is visible in s.
func (s *snapshot) place() string {
	return "1." + strconv.FormatInt(s.at.UnixMilli(), 36) + "." + s.position()
}

// placePrefix writes the places of followers that have had what is visible in before, and a part of what is in after,
// up to the id of their last row.
func placePrefix(before, after *snapshot) string {
	return before.place() + "." + after.position() + "."
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
		conn, err := r.options.Connect(ctx)
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
	position := next.place()
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
		r.options.Log.Warn("the tail begins anew: the database is another one, or was set back")
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
	prefix := placePrefix(before, now)
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

// place is where a follower goes on: it has what before saw, and of what after saw the rows up to last. after is nil
// when that is nothing.
type place struct {
	at            time.Time
	before, after *snapshot
	last          uuid.UUID
}

// parsePlace reads the id of an event, or of a heartbeat.
func parsePlace(s string) (p place, ok bool) {
	parts := strings.Split(s, ".")
	if len(s) > 4096 || parts[0] != "1" || len(parts) != 3 && len(parts) != 5 {
		return p, false
	}
	ms, err := strconv.ParseInt(parts[1], 36, 64)
	if err != nil || ms < rfc3339.Earliest || ms > rfc3339.Latest {
		return p, false
	}
	p.at = time.UnixMilli(ms)
	if p.before, ok = parsePosition(parts[2]); !ok || len(parts) == 3 {
		return p, ok
	}
	if p.after, ok = parsePosition(parts[3]); !ok {
		return p, false
	}
	p.last, err = uuid.Parse(parts[4])
	return p, err == nil && len(parts[4]) == 36
}

func parsePosition(s string) (*snapshot, bool) {
	var all []int64
	for part := range strings.SplitSeq(s, "-") {
		x, err := strconv.ParseInt(part, 36, 64)
		if err != nil || x < 0 {
			return nil, false
		}
		all = append(all, x)
	}
	p := &snapshot{xmax: all[0], pending: all[1:]}
	p.xmin = slices.Min(all)
	return p, true
}

// missed says whether a row that is visible now, written by x, is one that the follower has not had.
func (p place) missed(id uuid.UUID, x int64) bool {
	if p.before.sees(x) {
		return false
	}
	return p.after == nil || !p.after.sees(x) || bytes.Compare(id[:], p.last[:]) > 0
}

// Why a follower can't be told what it missed. The texts are for it to read.
var (
	errTooLongAgo    = errors.New("the last event is too long ago to go on from it")
	errOtherDatabase = errors.New("the database is another one, or was set back")
)

// CatchUp calls give with the rows that a follower missed since its place, from a snapshot of its own. missed is how
// many there are beyond those that it gives. Take leaves out what CatchUp gave.
func (f *follower) CatchUp(ctx context.Context, q language.Query, from *place, give func(tailRow) error) (missed int64, err error) {
	if time.Since(from.at) > resumeReach {
		return 0, errTooLongAgo
	}
	f.caught = make(map[uuid.UUID]bool)
	given := int64(0)
	err = f.tail.options.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"); err != nil {
			return err
		}
		now := new(snapshot)
		if err := tx.QueryRow(ctx, snapshotSQL).Scan(&now.xmin, &now.xmax, &now.pending, &now.at); err != nil {
			return err
		}
		f.caughtUntil = f.tail.begun.Load()
		if now.xmax < from.before.xmax {
			return errOtherDatabase
		}
		// What ran at the last event may have written rows of before it.
		reach := unnoted
		if len(from.before.pending) > 0 {
			reach = resumeReach
		}
		low := from.at.Add(-reach)
		oldest := strconv.FormatInt(from.before.xmin&0xffffffff, 10)
		condition, args := q.SQL([]any{oldest, low})
		sql := "SELECT id, xmin::text::bigint, data::text FROM logs WHERE inserted_at >= $2" + newSQL + " AND (" + condition + ") ORDER BY id"
		prefix := placePrefix(from.before, now)
		// The ledger tells which segments were missed: its rows carry the transaction itself, records perhaps a
		// subtransaction, which the positions don't know.
		var old, young []segment // before low, which are looked up one by one, and after it
		look := func(into *[]segment, start, end time.Time) error {
			found, err := newSegments(ctx, tx, oldest, []string{}, start, end)
			for _, s := range found {
				if from.missed(frame.ID(s.first, s.records-1), now.full(s.xid)) {
					*into = append(*into, s)
				}
			}
			return err
		}
		if err := look(&young, low, now.at.Add(aheadReach)); err != nil {
			return err
		}
		hours, err := newHours(ctx, tx, oldest, []string{}, now.at)
		if err != nil {
			return err
		}
		for _, hour := range hours {
			end := hour.Add(time.Hour)
			if end.After(low) {
				end = low
			}
			if err := look(&old, hour, end); err != nil {
				return err
			}
		}
		segmentOf := func(all []segment, id uuid.UUID) (segment, bool) { // all is sorted, as hours are
			i, found := slices.BinarySearchFunc(all, id, func(s segment, id uuid.UUID) int { return bytes.Compare(s.first[:], id[:]) })
			if !found {
				i--
			}
			if i < 0 {
				return segment{}, false
			}
			last := frame.ID(all[i].first, all[i].records-1)
			return all[i], bytes.Compare(id[:], last[:]) <= 0
		}
		var rec language.Record
		match := q.Matcher()
		giveRows := func(all []segment) func(pgx.Rows) error {
			return func(rows pgx.Rows) error {
				defer rows.Close()
				for rows.Next() {
					raw := rows.RawValues()
					id := uuid.UUID(raw[0])
					var xid int64
					if err := rows.Scan(nil, &xid, nil); err != nil {
						return err
					}
					x := now.full(uint32(xid))
					if s, found := segmentOf(all, id); found {
						x = now.full(s.xid)
					}
					if !from.missed(id, x) {
						continue
					}
					if err := rec.Read(raw[2]); err != nil {
						return err
					}
					if !match(&rec) {
						continue
					}
					if given++; given > resumeRows {
						continue
					}
					f.caught[id] = true
					if err := give(tailRow{ID: id, Data: raw[2], placePrefix: prefix}); err != nil {
						return err
					}
				}
				return rows.Err()
			}
		}
		if err := eachRecord(ctx, tx, old, giveRows(old)); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		return giveRows(young)(rows)
	})
	if err != nil {
		f.caught = nil
		return 0, err
	}
	return max(0, given-resumeRows), nil
}
