package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/config"
	"millrace/internal/testenv"
	"millrace/query/searches"
)

// newSharing returns a sharing that follows the searches of a file, and whose passes the test makes.
func newSharing(t *testing.T, db config.PostgresURL, file string) *sharing {
	t.Helper()
	var c Config
	if err := config.LoadFrom(map[string]string{"POSTGRES_URL": string(db)}, &c); err != nil {
		t.Fatal(err)
	}
	store, err := newStore(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.close)
	f, err := searches.Parse([]byte(file), ".", searchTerms{})
	if err != nil {
		t.Fatal(err)
	}
	sh := &sharing{store: store, log: slog.New(slog.NewTextHandler(io.Discard, nil)), shared: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shared"})}
	sh.follow(f)
	return sh
}

// passes makes passes until all that is needed is read.
func (sh *sharing) passes(t *testing.T) {
	t.Helper()
	for range 50 {
		extending, err := sh.pass(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if !extending {
			return
		}
	}
	t.Fatal("50 passes have not read all that is needed")
}

// windows returns the last window of a search that was due before the last pass, and the later part of it if it has parts.
func (sh *sharing) windows(f *followed) (all []url.Values) {
	to := f.search.Due(sh.passed).Add(-f.search.Delay)
	from := to.Add(-f.search.Condition.Window)
	_, p := f.search.Parameters(from, to)
	all = append(all, p)
	if from = from.Add(time.Duration(f.grain) * time.Millisecond); from.Before(to) {
		_, p = f.search.Parameters(from, to)
		all = append(all, p)
	}
	return all
}

// check compares the tables of searches, one of so many, with those that statements compute. It returns how many it has compared.
func (sh *sharing) check(t *testing.T, r *rand.Rand, of int) (compared int) {
	t.Helper()
	for _, f := range sh.all {
		if r.IntN(of) > 0 {
			continue
		}
		for _, p := range sh.windows(f) {
			got := sh.table(p)
			st, err := parseStats(p.Encode(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			want, err := sh.store.stats(context.Background(), st)
			if err != nil {
				t.Fatal(err)
			}
			if got == nil {
				t.Errorf("%s: no table is at hand", p.Encode())
				continue
			}
			compared++
			gotText, _ := json.Marshal(got)
			wantText, _ := json.Marshal(want)
			if diff := cmp.Diff(string(wantText), string(gotText)); diff != "" {
				t.Errorf("%s (-statement +passes):\n%s", p.Encode(), diff)
			}
		}
	}
	return compared
}

// manyConditions are searches of all kinds that passes can answer.
func manyConditions() string {
	var b strings.Builder
	b.WriteString("searches:\n")
	n := 0
	for _, q := range []string{``, `level:error`, `"needle"`, `NOT level:error ms:>5`, `a.b:*`} {
		for _, when := range []string{
			`count >= 0 in 20s`, `count > 2 in 1m`, `count(ms) > 1, sum(ms) > -1e9 in 5m`, `share(level:error) > 0.1, count >= 2 in 1m`, `p95(ms) > 1, p50(ms) > -5 in 30s`, `min(ms) < 1e6, max(level) != zzz in 2m`,
			`uniq(level) > 0, uniq(a.b) >= 0 in 1m`, `avg(n) > 0 in 1m`, `rate > 0.01 in 1m`, `p0(ms) > -1e5, p100(ms) > -1e5 in 1m`, `absent in 30s`,
		} {
			for _, by := range [][]string{{``, `, by: [level, a.b], groups: 500`}, {`, by: level, groups: 3`}}[n%2] {
				fmt.Fprintf(&b, "  - {name: s%d, q: '%s', when: '%s', every: %s, delay: %s%s}\n", n, q, when, []string{"1s", "7s", "10s", "1m"}[n%4], []string{"0s", "3s"}[n%2], by)
				n++
			}
		}
	}
	return b.String()
}

// someRecord returns a record with values of all kinds.
func someRecord(r *rand.Rand) string {
	pick := func(values ...string) string { return values[r.IntN(len(values))] }
	var members []string
	add := func(name, value string) {
		if value != "" {
			members = append(members, name+`: `+value)
		}
	}
	add(`"level"`, pick(``, `"error"`, `"error"`, `"info"`, `null`, `"\u00e9\"\\\n\u0001"`, `7`, `7.50`, `true`, `{"z": 1, "é": [1, "x"]}`, `[]`, `["error", {"k": null}]`, `"`+strings.Repeat("ü", 1200)+pick("x", "y")+`"`, `"10"`))
	add(`"ms"`, pick(``, `1`, `2`, `2.50`, `-3`, `0`, `100000`, `"12"`, `"1e3"`, `"x"`, `null`, `1e20`, `0.125`, `[5]`, `123456789012345678901234567890.5`, `1e-5`, `1e305`))
	add(`"n"`, pick(`1`, `2`, `-7`, `"40"`, `0.5`, `0.1`, `0.2`, `"0.3"`, `1e-7`))
	add(`"a"`, pick(``, `{"b": "x"}`, `{"b": 4}`, `{"b": null}`, `[{"b": 1}]`, `5`))
	add(`"a.b"`, pick(``, ``, `"dotted"`))
	add(`"message"`, pick(``, `"a needle here"`, `"NEEDLE"`, `"nothing"`))
	return "{" + strings.Join(members, ", ") + "}"
}

// TestPassesAnswerWhatStatementsDo stores rows in transactions that end in another order than they began, with times of their own and without, some of
// which come late, and has the tables of the passes compared with those of statements.
func TestPassesAnswerWhatStatementsDo(t *testing.T) {
	url := testenv.Schema(t)
	db, slow := testenv.Connect(t, url), testenv.Connect(t, url)
	for _, back := range []time.Duration{-24 * time.Hour, 0, 24 * time.Hour} {
		partition(t, db, time.Now().Add(back))
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 24))
	ctx, n := context.Background(), 0
	store := func(tx interface {
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}, rows int) {
		t.Helper()
		batch := new(pgx.Batch)
		for range rows {
			n++
			age := time.Duration(r.ExpFloat64() * float64(20*time.Second))
			came := time.Now().Add(-min(age, 25*time.Second))
			own := []any{"1970-01-01 00:00:00+00"}
			switch r.IntN(4) {
			case 0: // late, or ahead
				own[0] = time.Now().Add(time.Duration(r.NormFloat64() * float64(2*time.Minute)))
			case 1, 2:
				own[0] = came.Add(-time.Duration(r.IntN(5000)) * time.Millisecond)
			}
			if r.IntN(10) == 0 { // it was in a queue for long
				came = came.Add(-time.Duration(r.IntN(40)) * time.Minute)
				batch.Queue("INSERT INTO late_changes (hour) VALUES (date_trunc('hour', $1::timestamptz)) ON CONFLICT (hour, slot) DO UPDATE SET changes = late_changes.changes + 1", came)
			}
			id := idAt(came, n)
			batch.Queue("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4)", [16]byte(id), time.UnixMilli(came.UnixMilli()), own[0], someRecord(r))
		}
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			t.Fatal(err)
		}
	}
	store(db, 500)
	sh := newSharing(t, url, manyConditions())
	open, err := slow.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	store(open, 20)
	sh.passes(t)
	compared := sh.check(t, r, 1)
	for range 2 {
		store(db, 60)
		inner, err := open.Begin(ctx) // a savepoint: its rows have a transaction id of their own
		if err != nil {
			t.Fatal(err)
		}
		store(inner, 10)
		if err := inner.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		sh.passes(t)
		compared += sh.check(t, r, 3)
		if err := open.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if open, err = slow.Begin(ctx); err != nil {
			t.Fatal(err)
		}
		store(open, 5)
		sh.passes(t)
		compared += sh.check(t, r, 3)
	}
	if err := open.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	sh.passes(t)
	compared += sh.check(t, r, 1)
	if compared < 2*len(sh.all) || len(sh.all) != strings.Count(manyConditions(), "\n")-1 {
		t.Errorf("%d tables of %d searches were compared", compared, len(sh.all))
	}
}

// TestAServiceSharesTheReadingOfManySearches has alerts of searches that share fire and be resolved, and one that can't share beside them.
func TestAServiceSharesTheReadingOfManySearches(t *testing.T) {
	file := filepath.Join(t.TempDir(), "searches.yaml")
	var text strings.Builder
	text.WriteString("searches:\n  - {name: first, when: first(level) = error in 5s, every: 1s, delay: 0s}\n")
	for i := range 12 {
		fmt.Fprintf(&text, "  - {name: s%d, q: 'level:error n:%d', when: count > 1 in 5s, by: level, every: 1s, delay: 0s}\n", i, i)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil)
	partition(t, f.db, time.Now())
	partition(t, f.db, time.Now().Add(time.Hour))
	c := fixture{start(t, map[string]string{"POSTGRES_URL": string(f.url), "SEARCHES_FILE": file}), f.db, f.url}
	states := func() map[string]string {
		of := make(map[string]string)
		for _, s := range c.searches().Searches {
			of[s.Name] = s.State
		}
		return of
	}
	testenv.Eventually(t, time.Minute, "all searches are evaluated", func() bool {
		return !slices.Contains(slices.Collect(maps.Values(states())), "new")
	})
	if body := c.get("/metrics").body; !strings.Contains(body, "millrace_searches_shared 12\n") {
		t.Errorf("the searches don't share: %s", regexp.MustCompile(`millrace_searches_shared .*`).FindString(body))
	}
	testenv.Eventually(t, time.Minute, "two searches fire", func() bool {
		insert(t, f.db, time.Now(), 0, `{"level":"error","n":3}`, `{"level":"error","n":3}`, `{"level":"info","n":4}`, `{"level":"info","n":4}`)
		of := states()
		return of["s3"] == "firing" && of["first"] == "firing" && of["s4"] == "ok"
	})
	testenv.Eventually(t, time.Minute, "nothing fires", func() bool { return !slices.Contains(slices.Collect(maps.Values(states())), "firing") })
}

// Numbers alone compare, as in the SQL of a condition.
func TestAConditionHoldsForNumbersAlone(t *testing.T) {
	for _, c := range []struct {
		op, value, figure string
		isText, want      bool
	}{
		{">=", "500", "503", false, true},
		{">=", "500", "-503", false, false},
		{">=", "500", "true", false, false},
		{"<", "500", "false", false, false},
		{"<>", "500", "[]", false, false},
		{">=", "0", `{"a":1}`, false, false},
		{">=", "0", `"7"`, false, false},
		{">=", "0", "null", false, false},
		{"=", "true", "true", true, true},
		{"=", "a", `"a"`, true, true},
	} {
		if got := (having{op: c.op, value: c.value, text: c.isText}).holds(json.RawMessage(c.figure)); got != c.want {
			t.Errorf("%s %s %s: got %v", c.figure, c.op, c.value, got)
		}
	}
}

// Where passes fail again and again before they have read all that is needed, evaluations don't wait anew each time.
func TestEvaluationsDoNotWaitAnewForPassesThatFailAgain(t *testing.T) {
	began := time.Now().Add(-patience / 2)
	sh := &sharing{log: slog.New(slog.DiscardHandler), begun: began, passed: time.Now()}
	sh.note(errors.New("the database is away"))
	if sh.begun != began {
		t.Errorf("evaluations wait since %v, want %v", sh.begun, began)
	}
	sh.isWhole = true
	sh.note(errors.New("the database is away"))
	if !sh.begun.After(began) || sh.isWhole {
		t.Errorf("after passes that had read all, evaluations wait since %v", sh.begun)
	}
	sh.note(errBeginAnew)
	if time.Since(sh.begun) < patience {
		t.Errorf("nobody can tell what is new, and evaluations wait")
	}
}
