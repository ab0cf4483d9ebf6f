package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/frame"
	"millrace/internal/rfc3339"
	"millrace/query/language"
)

const (
	// heartbeat is how often a follower hears of a quiet tail, so that proxies keep the connection and a client
	// that has gone is noticed.
	heartbeat = 15 * time.Second
	// followChunk is how much is gathered for one write to a follower.
	followChunk = 64 << 10
)

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

// follow answers GET /logs/tail.
func (s *server) follow(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, tailTakes, time.Now())
	if err != nil {
		return err
	}
	var from *place
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		p, ok := parsePlace(id)
		if !ok {
			return refused("Last-Event-ID", id, "the id of an event")
		}
		from = &p
	}
	if s.distributed.Load() {
		return &failure{http.StatusNotImplemented, "the database is distributed by Citus, where new rows can't be followed: search instead"}
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	head := func() {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no") // nginx would keep events back
		w.WriteHeader(http.StatusOK)
	}
	if r.Method == http.MethodHead {
		head()
		return nil
	}
	joining, cancel := context.WithTimeout(r.Context(), s.store.timeout+storeSlack)
	f, err := s.tail.join(joining, q.filter)
	cancel()
	if errors.Is(err, errFollowers) {
		return tooMany(strconv.Itoa(s.tail.most) + " follow the tail, the most at once")
	}
	if err != nil {
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	}
	defer s.tail.leave(f)
	head()
	send := func(text []byte) error {
		_ = control.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := w.Write(text); err != nil {
			return err
		}
		return control.Flush()
	}
	if err := send([]byte(": following\n\n")); err != nil {
		return nil // the client is gone
	}
	var (
		caught  map[uuid.UUID]bool // rows given out below that the reader may give out too
		started int64
	)
	if from != nil {
		if caught, started, err = s.catchUp(r.Context(), q, from, send); err != nil {
			return nil // the client is gone, or will come again
		}
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	ended := func(why string) { _ = send([]byte(`event: end` + "\n" + `data: {"reason":"` + why + `"}` + "\n\n")) }
	var out []byte
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-s.stopping.Done():
			ended("the service stops")
			return nil
		case <-keyOf(r).Gone():
			ended("the API key was revoked")
			return nil
		case <-beat.C:
			position := s.tail.position.Load() // before the look at what waits
			if events, missed := f.peek(); events == 0 && missed == 0 && position != nil {
				if err := send([]byte("id: " + *position + "\n: heartbeat\n\n")); err != nil {
					return nil
				}
			}
			continue
		case <-f.ready:
		}
		events, missed := f.take()
		out = out[:0]
		for _, e := range events {
			if e.poll > started {
				caught = nil
			} else if caught[e.id] {
				continue
			}
			if out = append(out, e.text...); len(out) >= followChunk {
				if err := send(out); err != nil {
					return nil
				}
				out = out[:0]
			}
		}
		if missed > 0 {
			out = fmt.Appendf(out, "event: missed\ndata: {\"missed\":%d}\n\n", missed)
		}
		if len(out) > 0 {
			if err := send(out); err != nil {
				return nil
			}
		}
	}
}

// peek says how much waits.
func (f *follower) peek() (events int, missed int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events), f.missed
}

// catchUp gives a follower what it missed since its last event, from a snapshot of its own. It returns the rows it gave,
// and the number of the last poll that had begun by then: what the reader gives out of those polls may be the same.
func (s *server) catchUp(ctx context.Context, q *search, from *place, send func([]byte) error) (caught map[uuid.UUID]bool, started int64, err error) {
	unknown := func(why string) error {
		return send([]byte(`event: missed` + "\n" + `data: {"missed":null,"reason":"` + why + `"}` + "\n\n"))
	}
	if time.Since(from.at) > resumeReach {
		return nil, 0, unknown("the last event is too long ago to go on from it")
	}
	caught = make(map[uuid.UUID]bool)
	var out []byte
	given := 0
	err = s.store.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"); err != nil {
			return err
		}
		now := new(snapshot)
		if err := tx.QueryRow(ctx, snapshotSQL).Scan(&now.xmin, &now.xmax, &now.pending, &now.at); err != nil {
			return err
		}
		started = s.tail.begun.Load()
		if now.xmax < from.before.xmax {
			return unknown("the database is another one, or was set back")
		}
		// What ran at the last event may have written rows of before it.
		reach := unnoted
		if len(from.before.pending) > 0 {
			reach = resumeReach
		}
		low := from.at.Add(-reach)
		oldest := strconv.FormatInt(from.before.xmin&0xffffffff, 10)
		st := new(statement)
		fmt.Fprintf(&st.sql, "SELECT id, xmin::text::bigint, data::text FROM logs WHERE inserted_at >= %s AND age(xmin) <= (SELECT age(%s::text::xid))",
			st.arg(low), st.arg(oldest))
		st.filter(q.filter)
		st.sql.WriteString(" ORDER BY id")
		prefix := "1." + strconv.FormatInt(from.at.UnixMilli(), 36) + "." + from.before.position() + "." + now.position() + "."
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
		if err := look(&young, low, now.at.Add(clockAhead)); err != nil {
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
		match := q.filter.Matcher()
		give := func(all []segment) func(pgx.Rows) error {
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
					caught[id] = true
					if out = append(out, appendEvent(prefix, id, raw[2])...); len(out) >= followChunk {
						if err := send(out); err != nil {
							return err
						}
						out = out[:0]
					}
				}
				return rows.Err()
			}
		}
		if err := eachRecord(ctx, tx, old, give(old)); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, st.sql.String(), st.args...)
		if err != nil {
			return err
		}
		return give(young)(rows)
	})
	if err != nil {
		return nil, 0, err
	}
	if given > resumeRows {
		out = fmt.Appendf(out, "event: missed\ndata: {\"missed\":%d}\n\n", given-resumeRows)
	}
	if len(out) > 0 {
		err = send(out)
	}
	return caught, started, err
}
