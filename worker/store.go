package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"millrace/internal/frame"
)

const (
	// Sorted, because two transactions that insert the same keys in different orders deadlock.
	ledgerInsertSQL = `INSERT INTO ledger (id, records, checksum)
		SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[]) ORDER BY 1 ON CONFLICT DO NOTHING RETURNING id`

	ledgerSelectSQL = `SELECT id, records, checksum FROM ledger WHERE id = ANY($1::uuid[])`

	// forgottenSQL is the time before which the ledger may have forgotten a segment: what the keepers have noted, or by
	// the database's clock, for partitions that somebody drops by hand, a day less than ledgerKeep.
	forgottenSQL = `SELECT greatest(now() - interval '6 days', (SELECT max(value::timestamptz) FROM settings WHERE name = 'ledger_forgotten'))`

	// takenSQL finds the segments with ids that rows or dead letters have. (One EXISTS OR the other would not do where
	// logs is distributed by Citus.)
	takenSQL = `SELECT s.base FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) AS s (base, first, last, at)
		JOIN logs l ON l.inserted_at = s.at AND l.id BETWEEN s.first AND s.last
		UNION SELECT s.base FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS s (base, first, last)
		WHERE EXISTS (SELECT FROM dead_letters d WHERE d.record_id BETWEEN s.first AND s.last)`

	// knownSQL says of records whether rows and dead letters have their ids, and are equal.
	knownSQL = `SELECT place, in_logs, in_letters FROM millrace_known_records('logs', $1, $2, $3)`

	deadInsertSQL = `INSERT INTO dead_letters (id, reason, error, payload, record_id, queue, properties)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING`

	// lateSQL notes hours in which rows appear that are no longer new, by the database's clock.
	lateSQL = `INSERT INTO late_changes (hour)
		SELECT date_trunc('hour', at) FROM unnest($1::timestamptz[]) AS t (at)
		WHERE at < clock_timestamp() - interval '30 seconds' ORDER BY 1` + lateAgainSQL

	// lateAgainSQL counts another change in an hour that has one.
	lateAgainSQL = ` ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1`

	// doubtMargin is added to the time before which segments are looked for among the rows, so that a limit that moves
	// with the clock is not asked for again at once.
	doubtMargin = time.Minute

	// attemptTimeout bounds one transaction. A batch takes tens of milliseconds; this is for a network that
	// went silent, and far from the worst stall of a busy disk.
	attemptTimeout = 2 * time.Minute
)

// deadLetter is something that can't be stored.
type deadLetter struct {
	id       uuid.UUID
	recordID uuid.NullUUID // of a record; not valid for a message
	reason   string
	err      string
	payload  []byte
	from     *origin
}

// outcome is what a transaction did.
type outcome struct {
	stored     []segment // that were not in the ledger; some of their records may be dead letters
	rows       int       // that logs has got
	duplicates int       // rows that were stored before
	reused     int       // segments whose id stands for other records
	dead       map[string]int
}

// store stores segments and dead letters in one transaction, each once. final, unless nil, runs last and can
// refuse the commit. After an error nothing is stored, unless it was the answer to the commit that was lost, and
// the connection may be in a failed transaction or closed. store sorts segments.
func store(ctx context.Context, conn *pgx.Conn, parts *partitions, segments []segment, dead []deadLetter, final func(outcome) error) (outcome, error) {
	ctx, w := watch(ctx, attemptTimeout)
	defer w.stop()
	apart, err := parts.forSegments(ctx, conn, segments)
	if err != nil {
		return outcome{}, err
	}
	slices.SortStableFunc(segments, func(a, b segment) int { return bytes.Compare(a.Base[:], b.Base[:]) })
	t := transaction{conn: conn, parts: parts, letters: dead, apart: apart, watchdog: w}
	err = t.run(ctx, segments, final)
	if class := classify(err); err != nil && (class == badRecord || class == doubtful) && !conn.IsClosed() {
		// Savepoints cost every batch a little; only one that has a bad record pays for them.
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return outcome{}, err
		}
		t = transaction{conn: conn, parts: parts, letters: dead, apart: apart, careful: true, doubtful: class == doubtful, watchdog: w}
		err = t.run(ctx, segments, final)
	}
	return t.outcome, err
}

// watchdog ends a context when nothing has moved for a while.
type watchdog struct {
	timer  *time.Timer
	within time.Duration
	cancel context.CancelFunc
}

func watch(ctx context.Context, within time.Duration) (context.Context, watchdog) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, watchdog{time.AfterFunc(within, cancel), within, cancel}
}

// moved starts the while anew.
func (w watchdog) moved() { w.timer.Reset(w.within) }

func (w watchdog) stop() {
	w.timer.Stop()
	w.cancel()
}

// transaction is one try of store.
type transaction struct {
	outcome
	conn     *pgx.Conn
	parts    *partitions
	letters  []deadLetter
	apart    map[uuid.UUID]misplaced // segments that become dead letters, because they have no partition
	careful  bool                    // search for bad records
	doubtful bool                    // if an empty record is taken, what is refused is bad whatever the reason
	watchdog watchdog
}

func (t *transaction) run(ctx context.Context, segments []segment, final func(outcome) error) error {
	t.letters = slices.Clip(t.letters) // the caller's, for another try
	if err := t.begin(ctx, segments); err != nil {
		return err
	}
	placed := t.setApart(t.stored)
	t.rows = records(placed)
	var err error
	switch {
	case len(placed) == 0:
	case t.careful:
		if t.doubtful {
			if err := t.copyCanary(ctx, placed[0]); err != nil {
				return err
			}
		}
		err = t.copyGood(ctx, placed)
	default:
		err = copyRows(ctx, t.conn, placed)
	}
	if err != nil {
		return err
	}
	if err := t.insertDead(ctx); err != nil {
		return err
	}
	if final != nil {
		if err := final(t.outcome); err != nil {
			return err
		}
	}
	return t.commit(ctx)
}

// begin starts the transaction and enters the segments in the ledger. Those that are new are then in t.stored.
func (t *transaction) begin(ctx context.Context, segments []segment) error {
	started := *t
	for forgotten := t.parts.forgottenUntil(); ; {
		until, err := t.enter(ctx, segments, forgotten)
		if err != nil {
			return err
		}
		t.parts.learnForgotten(until)
		// A segment that is new to the ledger, and was not looked for elsewhere, must be one that it can't have forgotten.
		if !slices.ContainsFunc(t.stored, func(s segment) bool {
			at := frame.Time(s.Base)
			return !at.Before(forgotten) && at.Before(until)
		}) {
			return nil
		}
		if _, err := t.conn.Exec(ctx, "ROLLBACK"); err != nil {
			return err
		}
		*t, forgotten = started, until.Add(doubtMargin)
	}
}

// enter is begin, given the time before which the ledger may have forgotten segments. It returns that time as it was
// after the segments were entered: the keeper that drops a partition of the ledger moves it first.
func (t *transaction) enter(ctx context.Context, segments []segment, forgotten time.Time) (until time.Time, err error) {
	fresh := make([]segment, 0, len(segments))
	for _, s := range segments {
		if n := len(fresh); n > 0 && fresh[n-1].Base == s.Base { // delivered twice within one batch
			t.known(s, fresh[n-1].Records, fresh[n-1].sum)
			continue
		}
		fresh = append(fresh, s)
	}
	fresh, unledgered := t.unledgered(fresh)
	var b pgx.Batch
	// Under the stricter levels a row that another transaction has just inserted would be an error instead of a
	// conflict to skip. Whether it may write is left to the database, which somebody may have made read only.
	const begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
	old, _ := slices.BinarySearchFunc(fresh, forgotten, func(s segment, limit time.Time) int {
		return frame.Time(s.Base).Compare(limit)
	})
	if old == 0 && len(unledgered) == 0 {
		b.Queue(begin)
	} else {
		if _, err := t.conn.Exec(ctx, begin); err != nil {
			return until, err
		}
		// Without a place in the ledger, rows and dead letters alone tell what a segment was before.
		unknown, err := t.lookUp(ctx, slices.Concat(fresh[:old], unledgered))
		if err != nil {
			return until, fmt.Errorf("look for old segments: %w", err)
		}
		unknown, unledgered = t.unledgered(unknown)
		fresh = append(unknown, fresh[old:]...)
	}
	ids := make([][16]byte, len(fresh))
	counts := make([]int32, len(fresh))
	sums := make([]int64, len(fresh))
	for i, s := range fresh {
		ids[i], counts[i], sums[i] = s.Base, int32(s.Records), int64(s.sum)
	}
	var entered [][16]byte
	if len(fresh) > 0 {
		b.Queue(ledgerInsertSQL, ids, counts, sums).Query(func(rows pgx.Rows) (err error) {
			entered, err = pgx.CollectRows(rows, pgx.RowTo[[16]byte])
			return err
		})
	}
	b.Queue(forgottenSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&until) })
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return until, fmt.Errorf("ledger: %w", err)
	}
	if len(entered) < len(fresh) {
		if fresh, err = t.sortOut(ctx, fresh, entered); err != nil {
			return until, err
		}
	}
	t.stored = append(fresh, unledgered...)
	slices.SortStableFunc(t.stored, func(a, b segment) int { return bytes.Compare(a.Base[:], b.Base[:]) })
	return until, nil
}

// unledgered parts the segments that the ledger has no partition for from the others.
func (t *transaction) unledgered(segments []segment) (ledgered, without []segment) {
	if len(t.apart) == 0 {
		return segments, nil
	}
	for _, s := range segments {
		if m, ok := t.apart[s.Base]; ok && !m.ledgered {
			without = append(without, s)
		} else {
			ledgered = append(ledgered, s)
		}
	}
	return ledgered, without
}

// setApart makes dead letters of the segments that have no partition and returns the others.
func (t *transaction) setApart(segments []segment) []segment {
	if len(t.apart) == 0 {
		return segments
	}
	var placed []segment
	for _, s := range segments {
		if m, ok := t.apart[s.Base]; ok {
			t.letters = append(t.letters, s.recordLetters(reasonNoPartition, m.err)...)
		} else {
			placed = append(placed, s)
		}
	}
	return placed
}

// sortOut returns the segments that were entered in the ledger, and accounts for those that it had.
func (t *transaction) sortOut(ctx context.Context, segments []segment, entered [][16]byte) ([]segment, error) {
	isNew := make(map[uuid.UUID]bool, len(entered))
	for _, id := range entered {
		isNew[id] = true
	}
	had := make(map[uuid.UUID]segment)
	var ids [][16]byte
	fresh := make([]segment, 0, len(entered))
	for _, s := range segments {
		if isNew[s.Base] {
			fresh = append(fresh, s)
			continue
		}
		had[s.Base] = s
		ids = append(ids, s.Base)
	}
	if err := t.inLedger(ctx, had, ids); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if len(had) > 0 {
		return nil, errors.New("ledger: rows in conflict have vanished, their partition was dropped")
	}
	return fresh, nil
}

// inLedger accounts for those of the segments that the ledger has, and takes them out of the map.
func (t *transaction) inLedger(ctx context.Context, segments map[uuid.UUID]segment, ids [][16]byte) error {
	rows, err := t.conn.Query(ctx, ledgerSelectSQL, ids)
	if err != nil {
		return err
	}
	var id [16]byte
	var count int
	var sum int64
	_, err = pgx.ForEachRow(rows, []any{&id, &count, &sum}, func() error {
		t.known(segments[id], count, uint64(sum))
		delete(segments, id)
		return nil
	})
	return err
}

// known accounts for a segment that is stored already, with so many records and that checksum.
func (t *transaction) known(s segment, count int, sum uint64) {
	if s.Records == count && s.sum == sum {
		t.duplicates += s.Records
		return
	}
	t.reused++
	t.letters = append(t.letters, s.reused(fmt.Sprintf(
		"the ledger has %d other records under the id of these %d: their Idempotency-Key or message_id was used before", count, s.Records)))
}

// lookUp returns those of the segments, all so old that the ledger may have forgotten them, whose ids nobody has. It
// accounts for the others: a frame that was stored, and whose acknowledgement was lost a week before the worker runs
// again; or other records under ids that are taken.
func (t *transaction) lookUp(ctx context.Context, segments []segment) ([]segment, error) {
	var bases, first, last [][16]byte
	var times []time.Time
	for _, s := range segments {
		for _, r := range s.idRanges() {
			bases, first, last, times = append(bases, s.Base), append(first, r[0]), append(last, r[1]), append(times, frame.Time(s.Base))
		}
	}
	rows, err := t.conn.Query(ctx, takenSQL, bases, first, last, times)
	if err != nil {
		return nil, err
	}
	taken, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil || len(taken) == 0 {
		return segments, err
	}
	var unknown []segment
	doubtful := make(map[uuid.UUID]segment)
	for _, s := range segments {
		if slices.Contains(taken, [16]byte(s.Base)) {
			doubtful[s.Base] = s
		} else {
			unknown = append(unknown, s)
		}
	}
	if err := t.inLedger(ctx, doubtful, taken); err != nil { // it may remember all the same
		return nil, err
	}
	for _, s := range doubtful {
		if err := t.compare(ctx, s); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// compare accounts for a segment that the ledger does not have, some of whose ids are taken. Where all records that have
// them are equal, the segment was stored. What is not there was set aside then and dropped since, or never came: it
// becomes a dead letter rather than be lost.
func (t *transaction) compare(ctx context.Context, s segment) error {
	t.watchdog.moved()
	each := s.each()
	known, err := knownRecords(ctx, t.conn, each)
	if err != nil {
		return err
	}
	var absent []segment
	for k, found := range known {
		switch {
		case found.is(true):
		case found.is(false):
			t.reused++
			t.letters = append(t.letters, s.reused(fmt.Sprintf("another record is stored under the id %s, the %dth of these %d: "+
				"their Idempotency-Key or message_id was used before", each[k].Base, k+1, s.Records)))
			return nil
		default:
			absent = append(absent, each[k])
		}
	}
	t.duplicates += s.Records
	for _, record := range absent {
		t.letters = append(t.letters, record.reused(fmt.Sprintf("others of its segment %s are stored and this one is not: "+
			"its dead letter was dropped, or the key was used before for less", s.Base)))
	}
	return nil
}

// knownRecord tells whether rows and dead letters have a record's id: nil is none of them, true an equal one, false only
// others.
type knownRecord struct{ inLogs, inLetters *bool }

// is reports whether an equal record is known (true), or only another one (false).
func (k knownRecord) is(equal bool) bool {
	found, same := false, false
	for _, b := range []*bool{k.inLogs, k.inLetters} {
		found, same = found || b != nil, same || b != nil && *b
	}
	return found && same == equal
}

// knownRecords asks the database about segments of one record each.
func knownRecords(ctx context.Context, conn *pgx.Conn, records []segment) ([]knownRecord, error) {
	ids, times, texts := make([][16]byte, len(records)), make([]time.Time, len(records)), make([][]byte, len(records))
	for i, r := range records {
		ids[i], times[i], texts[i] = r.Base, frame.Time(r.Base), bytes.TrimSuffix(r.Body, []byte("\n"))
	}
	rows, err := conn.Query(ctx, knownSQL, ids, times, texts)
	if err != nil {
		return nil, err
	}
	known := make([]knownRecord, len(records))
	var place int
	var found knownRecord
	_, err = pgx.ForEachRow(rows, []any{&place, &found.inLogs, &found.inLetters}, func() error {
		known[place-1] = found
		return nil
	})
	return known, err
}

// copyCanary fails when the table refuses even an empty record, and leaves nothing behind.
func (t *transaction) copyCanary(ctx context.Context, canary segment) error {
	canary.Records, canary.Body = 1, []byte("{}\n")
	if _, err := t.conn.Exec(ctx, "SAVEPOINT canary"); err != nil {
		return err
	}
	if err := copyRows(ctx, t.conn, []segment{canary}); err != nil {
		return err
	}
	_, err := t.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT canary; RELEASE SAVEPOINT canary")
	return err
}

// copyGood copies the segments' records except the bad ones, which become dead letters. PostgreSQL says which row it
// was that it refused: what is before it is copied, and then it is the first of the rest, and bad. Where it
// doesn't say so the batch is halved, and a bad record costs about two COPYs for every halving.
func (t *transaction) copyGood(ctx context.Context, segments []segment) error {
	for len(segments) > 0 {
		refusal, err := t.copySaved(ctx, segments)
		if refusal == nil {
			return err
		}
		n, row := records(segments), refusedRow(refusal)
		switch {
		case n == 1 || row == 1:
			bad, after := split(segments, 1)
			t.rows--
			t.letters = append(t.letters, bad[0].record(refusal))
			segments = after
		case row > 1 && row <= n:
			before, rest := split(segments, row-1)
			if err := t.copyGood(ctx, before); err != nil {
				return err
			}
			segments = rest
		default:
			first, second := split(segments, n/2)
			if err := t.copyGood(ctx, first); err != nil {
				return err
			}
			segments = second
		}
	}
	return nil
}

// copySaved copies the segments' records, or none of them if one is refused.
func (t *transaction) copySaved(ctx context.Context, segments []segment) (refusal, err error) {
	t.watchdog.moved()
	if _, err := t.conn.Exec(ctx, "SAVEPOINT bisect"); err != nil {
		return nil, err
	}
	err = copyRows(ctx, t.conn, segments)
	if err == nil {
		_, err = t.conn.Exec(ctx, "RELEASE SAVEPOINT bisect")
		return nil, err
	}
	if class := classify(err); class != badRecord && !(t.doubtful && class == doubtful) || t.conn.IsClosed() {
		return nil, err
	}
	refusal = err
	_, err = t.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT bisect; RELEASE SAVEPOINT bisect")
	if err != nil {
		return nil, err
	}
	return refusal, nil
}

// copyContext is where PostgreSQL says which row of a COPY an error is about, in any of its languages.
var copyContext = regexp.MustCompile(`(?m)^COPY logs, \D*(\d+)`)

// refusedRow returns the number of the row that a COPY failed at, counted from 1, or 0 when that is not known.
func refusedRow(err error) int {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return 0
	}
	m := copyContext.FindStringSubmatch(pg.Where)
	if m == nil {
		return 0
	}
	row, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return row
}

// split parts segments after n records.
func split(segments []segment, n int) (first, second []segment) {
	for i, s := range segments {
		if n == 0 {
			return segments[:i], segments[i:]
		}
		if n >= s.Records {
			n -= s.Records
			continue
		}
		end := 0
		for range n {
			end += bytes.IndexByte(s.Body[end:], '\n') + 1
		}
		a, b := s, s
		a.Records, a.Body = n, s.Body[:end]
		b.Base, b.Records, b.Body = frame.ID(s.Base, n), s.Records-n, s.Body[end:]
		return slices.Concat(segments[:i], []segment{a}), slices.Concat([]segment{b}, segments[i+1:])
	}
	return segments, nil
}

// each returns a segment's records as segments of their own.
func (s segment) each() []segment {
	all := make([]segment, s.Records)
	for k := range all {
		end := bytes.IndexByte(s.Body, '\n') + 1
		all[k] = segment{Span: frame.Span{Segment: frame.Segment{Base: frame.ID(s.Base, k), Records: 1}, Body: s.Body[:end]}, from: s.from}
		s.Body = s.Body[end:]
	}
	return all
}

// idRanges returns the first and the last id of each run of a segment's ids. There is one, unless they wrap around, which
// none does that an API made.
func (s segment) idRanges() [][2]uuid.UUID {
	first, last := s.Base, frame.ID(s.Base, s.Records-1)
	if bytes.Compare(first[:], last[:]) <= 0 {
		return [][2]uuid.UUID{{first, last}}
	}
	lowest, highest := first, first
	copy(lowest[8:], []byte{0x80, 0, 0, 0, 0, 0, 0, 0})
	copy(highest[8:], []byte{0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	return [][2]uuid.UUID{{first, highest}, {lowest, last}}
}

func records(segments []segment) int {
	n := 0
	for _, s := range segments {
		n += s.Records
	}
	return n
}

func (t *transaction) insertDead(ctx context.Context) error {
	if len(t.letters) == 0 {
		return nil
	}
	t.dead = make(map[string]int)
	refused, err := t.insertLetters(ctx, t.letters)
	if err != nil {
		return err
	}
	// The ids of most letters are made of what is in them. Where it is the record's, the letter that has it may be of
	// another record.
	refused = slices.DeleteFunc(refused, func(d deadLetter) bool { return !d.recordID.Valid || d.recordID.UUID != d.id })
	if len(refused) == 0 {
		return nil
	}
	records := make([]segment, len(refused))
	for i, d := range refused {
		records[i] = segment{Span: frame.Span{Segment: frame.Segment{Base: d.recordID.UUID, Records: 1}, Body: d.payload}}
	}
	known, err := knownRecords(ctx, t.conn, records)
	if err != nil {
		return fmt.Errorf("dead letters: %w", err)
	}
	var others []deadLetter
	for i, d := range refused {
		if equal := known[i].inLetters; equal == nil || !*equal {
			d.id = uuid.NewSHA1(d.id, d.payload)
			others = append(others, d)
		}
	}
	_, err = t.insertLetters(ctx, others)
	return err
}

// insertLetters inserts dead letters, and returns those whose ids others have.
func (t *transaction) insertLetters(ctx context.Context, letters []deadLetter) (refused []deadLetter, err error) {
	var b pgx.Batch
	for _, d := range letters {
		properties, err := d.from.properties()
		if err != nil {
			return nil, fmt.Errorf("dead letter %s: %w", d.id, err)
		}
		b.Queue(deadInsertSQL, d.id, d.reason, d.err, d.payload, d.recordID, printable(d.from.queue), properties).
			Exec(func(tag pgconn.CommandTag) error {
				if tag.RowsAffected() > 0 {
					t.dead[d.reason]++
				} else {
					refused = append(refused, d)
				}
				return nil
			})
	}
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	return refused, nil
}

// commit notes the hours that are no longer new, and commits.
func (t *transaction) commit(ctx context.Context) error {
	var b pgx.Batch
	var hours []time.Time // one time in each; the segments are in order
	for _, s := range t.stored {
		at := frame.Time(s.Base)
		if n := len(hours); n == 0 || !at.Truncate(time.Hour).Equal(hours[n-1].Truncate(time.Hour)) {
			hours = append(hours, at)
		}
	}
	if len(hours) > 0 {
		b.Queue(lateSQL, hours)
	}
	if len(t.stored) == 0 {
		// What was there before may have been committed by a transaction that was cut short while it waited for a
		// standby. A commit that has written something waits for all that came before it.
		b.Queue("SELECT pg_logical_emit_message(true, 'millrace', '')")
	}
	b.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return fmt.Errorf("the server answered %s", tag)
		}
		return nil
	})
	if err := t.conn.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
