package worker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker/partition"
)

// forgotten makes the ledger forget all it knows.
func forgotten(t testing.TB, db *pgx.Conn) {
	t.Helper()
	exec(t, db, "DELETE FROM ledger")
}

// TestWhatTheLedgerForgotIsComparedByContents: an old segment whose ids are taken is a duplicate only if it has the same
// records. Nothing is lost, and nothing stored twice, whatever came before.
func TestWhatTheLedgerForgotIsComparedByContents(t *testing.T) {
	const refused = `{"refused":true}`
	for name, c := range map[string]struct {
		before, after  []string
		drop           string // of what was stored before
		stored         int    // rows of after that are new
		duplicates     int
		letters        []string // payloads, of after
		letterOfBefore int
	}{
		"the same":                 {[]string{`{"a":1}`, `{"b":2}`}, []string{`{"a":1}`, `{"b":2}`}, "", 0, 2, nil, 0},
		"written otherwise":        {[]string{`{"a":1,"b":1.0}`}, []string{`{"b":1.0,"a":1}`}, "", 0, 1, nil, 0},
		"others":                   {[]string{`{"a":1}`, `{"b":2}`}, []string{`{"a":1}`, `{"c":3}`}, "", 0, 0, []string{"{\"a\":1}\n{\"c\":3}\n"}, 0},
		"fewer":                    {[]string{`{"a":1}`, `{"b":2}`}, []string{`{"a":1}`}, "", 0, 1, nil, 0},
		"more":                     {[]string{`{"a":1}`}, []string{`{"a":1}`, `{"b":2}`}, "", 0, 2, []string{"{\"b\":2}\n"}, 0},
		"all are gone":             {[]string{`{"a":1}`}, []string{`{"a":1}`}, "DELETE FROM logs", 1, 0, nil, 0},
		"one was set aside":        {[]string{`{"a":1}`, refused}, []string{`{"a":1}`, refused}, "", 0, 2, nil, 1},
		"all were set aside":       {[]string{refused}, []string{refused}, "", 0, 1, nil, 1},
		"other than was set aside": {[]string{refused}, []string{`{"a":1}`}, "", 0, 0, []string{"{\"a\":1}\n"}, 1},
		"set aside, and dropped":   {[]string{`{"a":1}`, refused}, []string{`{"a":1}`, refused}, "DELETE FROM dead_letters", 0, 2, []string{refused + "\n"}, 0},
		"no JSON under ids in use": {[]string{`{"a":1}`}, []string{`{"a":nonsense}`}, "", 0, 0, []string{"{\"a\":nonsense}\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			db := workerConn(t, testenv.Schema(t))
			exec(t, db, "ALTER TABLE logs ADD CONSTRAINT no_refused CHECK (NOT data ? 'refused')")
			base := frame.BaseAt(time.Now().Add(-8 * 24 * time.Hour))
			before, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, c.before...)}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			forgotten(t, db)
			if c.drop != "" {
				exec(t, db, c.drop)
			}
			was := count(t, db, allLogs)
			for again := range 2 { // delivered twice more, it is no other
				forgotten(t, db)
				out, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, c.after...)}, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if again == 0 && (out.rows != c.stored || out.duplicates != c.duplicates) {
					t.Errorf("%d rows stored and %d duplicates, want %d and %d (before: %+v)", out.rows, out.duplicates, c.stored, c.duplicates, before)
				}
			}
			distinct(t, db, was+c.stored)
			for _, payload := range c.letters {
				want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'key_reused' AND payload = $1", []byte(payload))
			}
			want(t, db, len(c.letters)+c.letterOfBefore, "SELECT count(*) FROM dead_letters")
		})
	}
}

// TestAReplayedLetterGoesOnlyWhenItsRecordsAreKept: whatever the ledger has forgotten.
func TestAReplayedLetterGoesOnlyWhenItsRecordsAreKept(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	base := frame.BaseAt(time.Now().Add(-8 * 24 * time.Hour))
	deliver := func(records ...string) {
		t.Helper()
		if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, records...)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	deliver(`{"a":1}`)
	other := segmentOf(base, `{"b":2}`)
	other.sum = 1 // the ledger tells them by their checksums
	if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{other}, nil, nil); err != nil {
		t.Fatal(err)
	}
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE reason = 'key_reused'")
	forgotten(t, db)
	done, err := ReplayDead(ctx, db, nil)
	if err != nil || len(done) != 1 || done[0].Err == nil || !strings.Contains(done[0].Err.Error(), "other records") {
		t.Errorf("got %+v, %v, want it to stay", done, err)
	}
	want(t, db, 1, "SELECT count(*) FROM dead_letters")

	// What is proved equal may go: it is stored.
	exec(t, db, "DELETE FROM dead_letters")
	forgotten(t, db)
	deliver(`{"a":1}`, `{"b":2}`)
	want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE payload = $1", []byte("{\"b\":2}\n"))
	if done, err := ReplayDead(ctx, db, nil); err != nil || len(done) != 1 || done[0].Err != nil || done[0].Rows != 1 {
		t.Errorf("got %+v, %v, want the record that was not there stored", done, err)
	}
	distinct(t, db, 2)
	want(t, db, 0, "SELECT count(*) FROM dead_letters")
}

// TestARecordIsNotReplayedBesideItself: its row may be there, and so may another's.
func TestARecordIsNotReplayedBesideItself(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	base := frame.NewBase()
	if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, `{"a":1}`, `{"b":2}`)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	for k, payload := range []string{`{"a": 1.0}`, `{"c":3}`, `{"d":4}`} {
		exec(t, db, "INSERT INTO dead_letters VALUES ($1, now(), 'data', '', $2, $1, 'logs.0', '{}')", frame.ID(base, k), []byte(payload))
	}
	done, err := ReplayDead(ctx, db, nil)
	if err != nil || len(done) != 3 {
		t.Fatalf("got %+v, %v", done, err)
	}
	for i, want := range []string{"0 <nil>", "0 another record is stored under its id", "1 <nil>"} {
		if got := fmt.Sprint(done[i].Rows, done[i].Err); !strings.HasPrefix(strings.Replace(got, "0another", "0 another", 1), want) {
			t.Errorf("letter %d: got %s, want %s", i, got, want)
		}
	}
	distinct(t, db, 3)
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
}

func TestARefusedRecordStaysBesideAnotherOfItsID(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	base := frame.NewBase()
	for range 2 { // delivered twice, with nothing in the ledger: no more letters than records
		for _, records := range [][]string{{`{"a":nonsense}`, `{"b":nonsense}`}, {`{"c":nonsense}`}} {
			if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, records...)}, nil, nil); err != nil {
				t.Fatal(err)
			}
			forgotten(t, db)
		}
	}
	for _, payload := range []string{`{"a":nonsense}`, `{"b":nonsense}`, `{"c":nonsense}`} {
		want(t, db, 1, "SELECT count(*) FROM dead_letters WHERE payload = $1 AND record_id IS NOT NULL", []byte(payload))
	}
	want(t, db, 3, "SELECT count(*) FROM dead_letters")

	key := frame.NewBase()
	var letters []DeadLetter
	for _, line := range []string{"{broken", "{broken too"} {
		_, dead := (*home)(nil).decodeForeign(delivery(key.String(), "{}\n"+line), &origin{messageID: key.String()}, time.Now())
		letters = append(letters, dead...)
	}
	if len(letters) != 2 || letters[0].ID == letters[1].ID {
		t.Errorf("two refused records of two messages with one message_id: got %+v", letters)
	}
}

func TestARefusedRecordOfAMessageThatIsDeliveredAgainIsOneLetter(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	key := frame.NewBase()
	for range 3 {
		segments, dead := (*home)(nil).decodeForeign(delivery(key.String(), "{}\n{broken"), &origin{messageID: key.String()}, time.Now())
		if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, segments, dead, nil); err != nil {
			t.Fatal(err)
		}
	}
	want(t, db, 1, "SELECT count(*) FROM logs")
	want(t, db, 1, "SELECT count(*) FROM dead_letters")
}

// TestTheLedgerForgetsNothingUnnoticed: a worker that can't know of a dropped partition, and whose clock is a week behind,
// looks for old segments among the rows.
func TestTheLedgerForgetsNothingUnnoticed(t *testing.T) {
	ctx := context.Background()
	url := testenv.Schema(t)
	db := workerConn(t, url)
	exec(t, db, "UPDATE settings SET value = '2000-01-01T00:00:00Z' WHERE name = 'ledger_forgotten'")
	parts := partition.New(24 * time.Hour)
	now := time.Now()
	deliver := func(conn *pgx.Conn, age time.Duration) outcome {
		t.Helper()
		base := frame.BaseAt(now.Add(-age))
		clear(base[6:])
		base[6] = 0x70
		base[8] = 0x80 // always the same id
		out, err := store(ctx, conn, parts, testRule, []segment{segmentOf(base, `{"a":1}`)}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	deliver(db, 5*24*time.Hour)
	deliver(db, 0)

	k := testKeeper(workerConn(t, url), partition.New(24*time.Hour), 0)
	k.Now = func() time.Time { return now.Add(30 * 24 * time.Hour) } // the database's clock holds it back
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, "SELECT count(*) FROM ledger"); got != 2 {
		t.Fatalf("the ledger has %d entries, want 2: a clock that is ahead made it forget", got)
	}
	// Let it forget all the same.
	k.Remember = 24 * time.Hour
	if err := k.Round(ctx); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, "SELECT count(*) FROM ledger"); got != 1 {
		t.Fatalf("the ledger has %d entries, want 1", got)
	}
	parts.MarkStale()
	if out := deliver(db, 5*24*time.Hour); out.rows != 0 || out.duplicates != 1 {
		t.Errorf("after the ledger forgot it: got %+v, want a duplicate", out)
	}
	distinct(t, db, 2)
}

// TestIdsThatWrapAroundAreFoundToo: no API makes them, but another program's frame may.
func TestIdsThatWrapAroundAreFoundToo(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	base := frame.BaseAt(time.Now().Add(-8 * 24 * time.Hour))
	copy(base[8:], []byte{0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	for _, gone := range []uuid.UUID{{}, base, frame.ID(base, 1)} {
		if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, `{"a":1}`, `{"b":2}`)}, nil, nil); err != nil {
			t.Fatal(err)
		}
		forgotten(t, db)
		exec(t, db, "DELETE FROM logs WHERE id = $1", gone)
		if out, err := store(ctx, db, partition.New(24*time.Hour), testRule, []segment{segmentOf(base, `{"a":1}`, `{"b":2}`)}, nil, nil); err != nil || out.duplicates != 2 || out.rows != 0 {
			t.Errorf("without %s: got %+v, %v, want duplicates", gone, out, err)
		}
		exec(t, db, "DELETE FROM logs")
		exec(t, db, "DELETE FROM dead_letters")
	}
}

func TestWhatIsOlderThanRetentionIsNotReplayed(t *testing.T) {
	ctx := context.Background()
	db := workerConn(t, testenv.Schema(t))
	old, young := frame.BaseAt(time.Now().Add(-3*time.Hour)), frame.BaseAt(time.Now().Add(-time.Minute))
	letters := func() {
		t.Helper()
		exec(t, db, "DELETE FROM dead_letters")
		for _, id := range []uuid.UUID{old, young} {
			exec(t, db, "INSERT INTO dead_letters VALUES ($1, now(), 'data', '', '{}', $1, 'logs.0', '{}')", id)
			s := segmentOf(frame.ID(id, 5), `{}`)
			s.from = &origin{queue: "logs.0"}
			if _, err := store(ctx, db, partition.New(24*time.Hour), testRule, nil, []DeadLetter{s.reusedLetter("")}, nil); err != nil {
				t.Fatal(err)
			}
		}
		exec(t, db, "DELETE FROM logs")
		forgotten(t, db)
	}
	for name, c := range map[string]struct {
		noted string
		here  time.Duration
		stays bool
	}{
		"none is known":             {"", 0, false},
		"noted":                     {"1h0m0s", 0, true},
		"here":                      {"", time.Hour, true},
		"noted for ever, here less": {"0s", time.Hour, true},
		"noted less than here":      {"1h0m0s", 24 * time.Hour, true},
		"both long enough":          {"24h0m0s", 24 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			letters()
			exec(t, db, "DELETE FROM settings WHERE name = 'retention'")
			if c.noted != "" {
				exec(t, db, "INSERT INTO settings VALUES ('retention', $1)", c.noted)
			}
			done, err := ReplayDeadWithin(ctx, db, nil, c.here, nil)
			if err != nil || len(done) != 4 {
				t.Fatalf("got %+v, %v", done, err)
			}
			left := 0
			for _, r := range done {
				if r.Err != nil {
					left++
					if !strings.Contains(r.Err.Error(), frame.Time(old).Format(time.RFC3339)) || !strings.Contains(r.Err.Error(), "RETENTION") {
						t.Errorf("the reason is %v", r.Err)
					}
				}
			}
			if stay := map[bool]int{true: 2}[c.stays]; left != stay || count(t, db, "SELECT count(*) FROM dead_letters") != stay || count(t, db, allLogs) != 4-stay {
				t.Errorf("%d letters stay, want %d", left, stay)
			}
		})
	}
}

func delivery(messageID, body string) *amqp.Delivery {
	return &amqp.Delivery{MessageId: messageID, Body: []byte(body)}
}
