package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/frame"
	"millrace/internal/testenv"
	"millrace/worker"
)

// timedRow is a record of which the test knows when it happened and when it came, without looking at it as the worker does.
type timedRow struct {
	ID         uuid.UUID `json:"id"`
	Time       time.Time `json:"time"`
	InsertedAt time.Time `json:"inserted_at"`
	Data       struct {
		N    int    `json:"n"`
		Kind string `json:"kind"`
	} `json:"data"`
}

// at returns the row's time by a clock.
func (r timedRow) at(clock string) time.Time {
	if clock == "inserted_at" {
		return r.InsertedAt
	}
	return r.Time
}

// timedRecords makes records: most happened shortly before they came, some long before, some a little later, and some do not tell.
type timedRecords struct {
	rng  *rand.Rand
	rows []timedRow
}

// kinds of records, for searches.
var kinds = []string{"red", "green", "blue"}

// next returns a record that comes at a time under an id.
func (g *timedRecords) next(id uuid.UUID, came time.Time) string {
	r := timedRow{ID: id, InsertedAt: came, Time: came}
	r.Data.N, r.Data.Kind = len(g.rows), kinds[g.rng.IntN(len(kinds))]
	own := came
	isOwn := true
	text := ""
	switch p := g.rng.IntN(100); {
	case p < 50:
		own = came.Add(-time.Duration(g.rng.ExpFloat64() * float64(2*time.Second)))
	case p < 65:
		own = came.Add(-time.Duration(g.rng.Int64N(int64(6 * time.Hour))))
	case p < 75:
		own = came.Add(-time.Duration(g.rng.Int64N(int64(40 * 24 * time.Hour))))
	case p < 80:
		own = came.Add(time.Duration(g.rng.Int64N(int64(time.Hour))))
	case p < 85:
		own, isOwn = came.Add(time.Hour+time.Second+time.Duration(g.rng.Int64N(int64(1000*time.Hour)))), false
	case p < 90:
		isOwn, text = false, `"no":"time"`
	case p < 95:
		isOwn, text = false, []string{`"time":"soon"`, `"time":null`, `"ts":-5`, `"date":"1970-01-01T00:00:00Z"`, `"time":{"time":1}`}[g.rng.IntN(5)]
	default:
		isOwn, text = false, `"timestamp":"`+came.Format("2006-01-02 15:04:05")+`"`
	}
	if text == "" {
		switch g.rng.IntN(6) {
		case 0:
			text, own = fmt.Sprintf(`"time":"%s"`, own.UTC().Format("2006-01-02T15:04:05.000Z")), own.Truncate(time.Millisecond)
		case 1:
			text, own = fmt.Sprintf(`"timestamp":"%s"`, own.In(time.FixedZone("", 5*3600+1800)).Format("2006-01-02T15:04:05.000000000-07:00")), own.Truncate(time.Microsecond)
		case 2:
			text, own = fmt.Sprintf(`"ts":%d.%06d`, own.Unix(), own.Nanosecond()/1000), own.Truncate(time.Microsecond)
		case 3:
			text, own = fmt.Sprintf(`"@timestamp":%d`, own.UnixMilli()), own.Truncate(time.Millisecond)
		case 4:
			text, own = fmt.Sprintf(`"_time":"%d"`, own.UnixNano()), own.Truncate(time.Microsecond)
		case 5:
			text, own = fmt.Sprintf(`"x":{"time":1},"date":"%s","EdgeStartTimestamp":5`, own.UTC().Format("2006-01-02 15:04:05Z")), own.Truncate(time.Second)
		}
	}
	if isOwn {
		r.Time = own
	}
	g.rows = append(g.rows, r)
	return fmt.Sprintf(`{"n":%d,"kind":%q,%s}`, r.Data.N, r.Data.Kind, text)
}

// send publishes segments of records that come at a time.
func (g *timedRecords) send(t *testing.T, ch *amqp.Channel, queue string, came time.Time, records int) {
	t.Helper()
	base := frame.BaseAt(came)
	var body []byte
	for i := range records {
		body = append(append(body, g.next(frame.ID(base, i), came)...), '\n')
	}
	err := ch.Publish(broker.DefaultExchange, queue, true, false, amqp.Publishing{
		ContentType: frame.ContentType, Type: frame.Type, DeliveryMode: amqp.Persistent, Body: body,
		Headers: frame.Headers([]frame.Segment{{Base: base, Records: records}}),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// timedSearch is a search and what it must find.
type timedSearch struct {
	params url.Values
	clock  string
	asc    bool
	want   []timedRow
}

// search returns a search by chance, over rows of which most lie in the last days.
func (g *timedRecords) search() timedSearch {
	s := timedSearch{params: url.Values{}, clock: "time", asc: g.rng.IntN(2) == 0}
	span := []time.Duration{time.Minute, time.Hour, 6 * time.Hour, 30 * time.Hour, 20 * 24 * time.Hour}[g.rng.IntN(5)]
	pivot := g.rows[g.rng.IntN(len(g.rows))]
	if g.rng.IntN(2) == 0 {
		s.clock = "inserted_at"
	}
	from := pivot.at(s.clock).Add(-time.Duration(g.rng.Int64N(int64(span)))).Truncate(time.Millisecond)
	to := from.Add(time.Duration(g.rng.Int64N(int64(2 * span)))).Truncate(time.Millisecond)
	s.params.Set("from", from.UTC().Format("2006-01-02T15:04:05.000Z"))
	s.params.Set("to", to.UTC().Format("2006-01-02T15:04:05.000Z"))
	if s.clock != "time" || g.rng.IntN(2) == 0 {
		s.params.Set("clock", s.clock)
	}
	if g.rng.IntN(2) == 0 {
		s.params.Set("q", "kind:"+kinds[g.rng.IntN(len(kinds))])
	}
	return g.evaluate(s)
}

// ask sends a request to the query service and decodes its answer.
func ask(t *testing.T, addr, path string, params url.Values, into any) {
	t.Helper()
	resp, err := http.Get("http://" + addr + path + "?" + params.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s?%s: got %s", path, params.Encode(), resp.Status)
	}
	if lines, ok := into.(*[]timedRow); ok {
		for scan := bufio.NewScanner(resp.Body); scan.Scan(); {
			var r timedRow
			if err := json.Unmarshal(scan.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			*lines = append(*lines, r)
		}
		return
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// with returns the parameters and one more.
func with(params url.Values, name, value string) url.Values {
	out := url.Values{}
	for k, v := range params {
		out[k] = v
	}
	out.Set(name, value)
	return out
}

// check compares what the query service answers to a search in all its forms with what it must find.
func (s timedSearch) check(t *testing.T, addr string, rng *rand.Rand) {
	t.Helper()
	order := map[bool]string{true: "asc", false: "desc"}[s.asc]
	compare := func(form string, got []timedRow) {
		t.Helper()
		if len(got) != len(s.want) {
			t.Fatalf("%s of %s, %s: got %d rows, want %d", form, s.params.Encode(), order, len(got), len(s.want))
		}
		for i := range got {
			if w := s.want[i]; got[i].ID != w.ID || !got[i].Time.Equal(w.Time) || !got[i].InsertedAt.Equal(w.InsertedAt) || got[i].Data.N != w.Data.N {
				t.Fatalf("%s of %s, %s: row %d is %+v, want %+v", form, s.params.Encode(), order, i, got[i], w)
			}
		}
	}
	var count struct{ Count int }
	ask(t, addr, "/logs/count", s.params, &count)
	if count.Count != len(s.want) {
		t.Fatalf("count of %s: got %d, want %d", s.params.Encode(), count.Count, len(s.want))
	}
	var exported []timedRow
	ask(t, addr, "/logs/export", with(s.params, "order", order), &exported)
	compare("export", exported)

	var paged []timedRow
	page := with(with(s.params, "order", order), "limit", strconv.Itoa(1+rng.IntN(200)))
	for cursor := ""; ; {
		var answer struct {
			Logs []timedRow
			Next string
		}
		ask(t, addr, "/logs", with(page, "cursor", cursor), &answer)
		paged = append(paged, answer.Logs...)
		if cursor = answer.Next; cursor == "" {
			break
		}
		if len(paged) > len(s.want) {
			break
		}
	}
	compare("pages", paged)

	var chart struct {
		Buckets []struct {
			Start time.Time
			Count int
		}
	}
	ask(t, addr, "/logs/histogram", s.params, &chart)
	counts, total := make(map[int]int), 0
	for _, r := range s.want {
		i, _ := slices.BinarySearchFunc(chart.Buckets, r.at(s.clock), func(b struct {
			Start time.Time
			Count int
		}, at time.Time) int {
			if b.Start.After(at) {
				return 1
			}
			return -1
		})
		counts[i-1]++
	}
	for i, b := range chart.Buckets {
		total += b.Count
		if b.Count != counts[i] {
			t.Fatalf("histogram of %s: bucket %d, from %s, has %d, want %d", s.params.Encode(), i, b.Start, b.Count, counts[i])
		}
	}
	if total != len(s.want) {
		t.Fatalf("histogram of %s: got %d, want %d", s.params.Encode(), total, len(s.want))
	}
}

// TestSearchesFindWhatHappenedInTheirWindow compares searches with an evaluation in memory: fresh records, late ones, some of far off and
// some that tell no time; by both clocks and in both orders; out of the cache and not; after more has come late, after partitions were
// dropped, and after dead letters were replayed.
func TestSearchesFindWhatHappenedInTheirWindow(t *testing.T) {
	for _, interval := range []string{"1h", "24h"} {
		t.Run(interval, func(t *testing.T) {
			db := testenv.Schema(t)
			b := testenv.Broker(t, 2)
			settings := func(more ...string) map[string]string {
				s := map[string]string{"POSTGRES_URL": string(db), "PARTITION_INTERVAL": interval, "BATCH_ROWS": "700"}
				for i := 0; i < len(more); i += 2 {
					s[more[i]] = more[i+1]
				}
				return s
			}
			log := slog.New(slog.DiscardHandler)
			workerAddr, stopWorker := RunWorker(t, b, log, settings())
			testenv.AwaitReady(t, workerAddr)
			conn := testenv.Connect(t, db)
			queryAddr := RunQuery(t, db)
			testenv.AwaitReady(t, queryAddr)
			ch := testenv.Channel(t, b)
			topology := broker.NewTopology(b)
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			g := &timedRecords{rng: rand.New(rand.NewPCG(seed, 1))}
			now := time.Now().Truncate(time.Millisecond)
			send := func(segments int) {
				t.Helper()
				for range segments {
					came := now.Add(-time.Duration(g.rng.Int64N(int64(10 * time.Second))))
					if g.rng.IntN(2) == 0 {
						came = now.Add(-time.Duration(g.rng.Int64N(int64(70 * time.Hour))))
					}
					g.send(t, ch, topology.Queue(g.rng.IntN(2)), came.Truncate(time.Millisecond), 1+g.rng.IntN(40))
				}
				testenv.AwaitCount(t, conn, len(g.rows), "SELECT count(*) FROM logs")
			}
			var searches []timedSearch
			look := func(n int) {
				t.Helper()
				for range n {
					s := g.search()
					s.check(t, queryAddr, g.rng)
					s.check(t, queryAddr, g.rng) // the second time out of the cache, if it is closed
					searches = append(searches, s)
				}
			}
			again := func() {
				t.Helper()
				for _, s := range searches { // answers of before must not be told any more
					g.evaluate(s).check(t, queryAddr, g.rng)
				}
			}
			send(60)
			look(40)
			send(20)
			again()
			look(10)

			// Records that the table refuses become dead letters, and are replayed later.
			testenv.Exec(t, conn, "ALTER TABLE logs ADD CONSTRAINT no_red CHECK (data->>'kind' <> 'red') NOT VALID")
			before := len(g.rows)
			for range 10 {
				g.send(t, ch, topology.Queue(0), now.Add(-time.Duration(g.rng.Int64N(int64(20*time.Hour)))).Truncate(time.Millisecond), 5)
			}
			red := 0
			for _, r := range g.rows[before:] {
				if r.Data.Kind == "red" {
					red++
				}
			}
			testenv.AwaitCount(t, conn, red, "SELECT count(*) FROM dead_letters")
			testenv.AwaitCount(t, conn, len(g.rows)-red, "SELECT count(*) FROM logs")
			all := g.rows
			g.rows = slices.DeleteFunc(slices.Clone(g.rows), func(r timedRow) bool { return r.Data.N >= before && r.Data.Kind == "red" })
			again()
			testenv.Exec(t, conn, "ALTER TABLE logs DROP CONSTRAINT no_red")
			replayed, err := worker.ReplayDead(context.Background(), conn, nil)
			if err != nil || len(replayed) != red {
				t.Fatalf("replay: %d, %v", len(replayed), err)
			}
			g.rows = all
			again()

			// Retention drops whole partitions.
			stopWorker()
			workerAddr, _ = RunWorker(t, b, log, settings("RETENTION", "30h"))
			testenv.AwaitReady(t, workerAddr)
			testenv.Eventually(t, time.Minute, "partitions are dropped", func() bool {
				return testenv.Count(t, conn, "SELECT count(*) FROM logs WHERE inserted_at < now() - interval '55 hours'")+testenv.Count(t, conn, markedSQL) == 0
			})
			g.keep(t, conn)
			again()
			look(10)
		})
	}
}

// markedSQL counts partitions that are detached, or are about to be, and not yet dropped.
const markedSQL = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND obj_description(oid, 'pg_class') LIKE 'millrace: to be dropped%'"

// evaluate returns a search with what it must find now.
func (g *timedRecords) evaluate(s timedSearch) timedSearch {
	from, _ := time.Parse(time.RFC3339, s.params.Get("from"))
	to, _ := time.Parse(time.RFC3339, s.params.Get("to"))
	kind := strings.TrimPrefix(s.params.Get("q"), "kind:")
	s.want = nil
	for _, r := range g.rows {
		if at := r.at(s.clock); !at.Before(from) && at.Before(to) && (kind == "" || r.Data.Kind == kind) {
			s.want = append(s.want, r)
		}
	}
	slices.SortFunc(s.want, func(a, b timedRow) int {
		order := cmp.Or(a.at(s.clock).Compare(b.at(s.clock)), bytes.Compare(a.ID[:], b.ID[:]))
		if !s.asc {
			order = -order
		}
		return order
	})
	return s
}

// keep forgets the rows that the table no longer has.
func (g *timedRecords) keep(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	rows, err := conn.Query(context.Background(), "SELECT id FROM logs")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[uuid.UUID]bool)
	for _, id := range ids {
		there[id] = true
	}
	g.rows = slices.DeleteFunc(g.rows, func(r timedRow) bool { return !there[r.ID] })
	if len(g.rows) != len(ids) || len(ids) == 0 {
		t.Fatalf("%d rows are left, and %d of them are known", len(ids), len(g.rows))
	}
}
