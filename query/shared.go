package query

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/retry"
	"millrace/internal/rfc3339"
	"millrace/internal/service"
	"millrace/query/language"
	"millrace/query/searches"
)

// sharing reads the rows that come once for many searches of SEARCHES_FILE, in passes, and keeps for each of them what its condition asks of the rows: a
// partial table for each part of its window. So an evaluation adds a few tables up. What it answers is what a statement in the snapshot of the last
// pass would answer. It keeps nothing that outlives the process: a new one reads the windows once.
//
// A search that can't be answered so is evaluated by itself: see follow and table. One goroutine calls run; the other methods may be called by many at once.
type sharing struct {
	store       *store
	watch       *searches.Watch
	ready       *service.Ready
	distributed *atomic.Bool
	log         *slog.Logger
	shared      prometheus.Gauge
	pause       time.Duration // the least pause between two passes

	// What run alone uses.
	reader  newRowsReader
	set     language.Set[[]*followed]
	all     []*followed
	horizon time.Duration // how far back rows are needed
	slice   time.Duration // how far back the next pass reads what is not read yet
	record  language.Record
	failing bool

	newBytes int // of the tables of the pass under way

	mu       sync.Mutex
	file     *searches.File
	bySearch map[*searches.Search]*followed // all searches of the file; nil: the search is evaluated by itself
	byKey    map[string][]*followed         // by the parameters of their tables
	begun    time.Time                      // when evaluations began to wait for the first passes
	passed   time.Time                      // when the last pass began that came to its end
	from     int64                          // the rows from then on are in the tables, in Unix milliseconds
	isWhole  bool                           // since the beginning all rows that were needed have been in the tables once
	isStuck  bool                           // rows before that can't be had
	isOff    bool                           // nothing is shared
}

// followed is a search whose rows are followed.
type followed struct {
	search  *searches.Search
	partial *partialStats
	reach   time.Duration // how far back from now its rows are needed
	// A part of its window begins at each time that is offset beyond a multiple of grain, in Unix milliseconds. Windows begin and end at such times.
	grain, offset int64

	// What sharing.run alone uses.
	new       map[int64]*partialTable // of the pass under way, by the numbers of the parts
	newBytes  int
	keep      int64 // the beginning of the first part that the pass keeps, or a time before it
	isTooMuch bool  // what was found is too much to be kept

	// What sharing.mu guards.
	parts   map[int64]*partialTable
	bytes   int
	from    int64 // all parts from then on are there
	isLarge bool  // it is evaluated by itself
}

const (
	// worthSharing is how many windows must be read a window's length for a pass over all rows to be cheaper than an evaluation of each search. It is an
	// estimate, not measured: a pass, which reads each row's JSON in Go, is taken to cost as much as eight statements that count.
	worthSharing = 8
	// longestReach and mostParts bound what is kept of a search.
	longestReach, mostWindowParts = time.Hour, 4000
	// mostKeptBytes bounds the tables of a search, and mostKeptBytesOfAll those of all.
	mostKeptBytes, mostKeptBytesOfAll = 16 << 20, 64 << 20

	// A pass is followed by the next one after twice the time that it took: leastPause at least, mostPause at most.
	leastPause, mostPause = time.Second, 5 * time.Second
	passTimeout           = time.Minute
	// slack is how much longer than it must a part of a window is kept, for evaluations that are under way while passes go on.
	slack = 20 * time.Second
	// firstReach is how far back the first pass reads. Each further pass reads as much as takes from cheapPass to dearPass.
	firstReach          = 2 * time.Second
	cheapPass, dearPass = 500 * time.Millisecond, 2 * time.Second
	// patience is how long evaluations wait for a pass before they go on alone. To go on alone costs more: where passes are late because the machine is
	// overloaded, that would make it worse.
	patience = 2 * time.Minute
)

// run reads rows until ctx is done.
func (sh *sharing) run(ctx context.Context) {
	for sh.ready.Holds(databaseCondition) == 0 { // then it is known whether the database is distributed, too
		if retry.Sleep(ctx, lookForDatabase) != nil {
			return
		}
	}
	if sh.distributed.Load() { // rows on other servers have transaction ids of their own
		sh.mu.Lock()
		sh.isOff = true
		sh.mu.Unlock()
		return
	}
	for {
		file, changed := sh.watch.File()
		if file != sh.file {
			sh.follow(file)
		}
		if len(sh.all) == 0 {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		began := time.Now()
		extending, err := sh.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		took := time.Since(began)
		sh.note(err)
		pause := min(max(2*took, sh.pause), mostPause)
		if extending {
			pause = min(took, sh.pause)
		}
		if retry.Sleep(ctx, pause) != nil {
			return
		}
	}
}

// note logs that passes fail, or succeed again, when that changes. After a failure the tables begin anew: nobody knows which database answers next. Evaluations
// wait for the passes that follow, but not anew where those fail before all is read.
func (sh *sharing) note(err error) {
	if err == nil {
		if sh.failing {
			sh.log.Info("searches share their reading again")
		}
		sh.failing = false
		return
	}
	if errors.Is(err, errBusy) {
		return // nothing was read
	}
	if !sh.failing {
		sh.failing = true
		sh.log.Warn("searches that share their reading begin anew", "error", err)
	}
	sh.mu.Lock()
	begun := sh.begun
	switch {
	case errors.Is(err, errBeginAnew):
		begun = time.Now().Add(-patience) // evaluations go on alone until all is read
	case sh.isWhole:
		begun = time.Now()
	}
	sh.mu.Unlock()
	sh.beginAnew(begun)
}

// follow follows the searches of a file, and those of no other. nil is a file without searches.
func (sh *sharing) follow(file *searches.File) {
	var all []*followed
	windows, now := 0.0, time.Now()
	if file != nil {
		for _, s := range file.Searches {
			if f := newFollowed(s, now); f != nil {
				all = append(all, f)
				windows += s.Condition.Window.Seconds() / s.Every.Seconds()
			}
		}
	}
	if windows < worthSharing {
		all = nil
	}
	sh.all, sh.set, sh.horizon = all, language.Set[[]*followed]{}, 0
	bySearch, byKey := make(map[*searches.Search]*followed), make(map[string][]*followed)
	if file != nil {
		for _, s := range file.Searches {
			bySearch[s] = nil
		}
	}
	for _, f := range all {
		sh.horizon = max(sh.horizon, f.reach)
		e := sh.set.Entry(f.search.Query)
		e.Value = append(e.Value, f)
		bySearch[f.search] = f
		_, p := f.search.Parameters(now, now)
		byKey[tableKey(p)] = append(byKey[tableKey(p)], f)
	}
	sh.mu.Lock()
	sh.file, sh.bySearch, sh.byKey, sh.begun, sh.passed = file, bySearch, byKey, now, time.Time{} // nothing is read for these yet
	sh.mu.Unlock()
	sh.beginAnew(now)
	sh.shared.Set(float64(len(all)))
	if len(all) > 0 {
		sh.log.Info("searches share their reading", "searches", len(all))
	}
}

// tableKey returns the parameters of a table without its window.
func tableKey(p url.Values) string {
	key := make(url.Values, len(p))
	for name, values := range p {
		if name != "from" && name != "to" {
			key[name] = values
		}
	}
	return key.Encode()
}

// newFollowed returns what follows a search, or nil if it must be evaluated by itself: it has no condition, or one on patterns, goes by inserted_at, has a
// figure that depends on the order of the records, counts a time from now, or has a window that is too long or has too many parts.
func newFollowed(s *searches.Search, now time.Time) *followed {
	if s.CountsAlone() || s.Clock != string(byTime) {
		return nil
	}
	route, p := s.Parameters(now.Add(-s.Condition.Window), now)
	if route != "/logs/stats" {
		return nil
	}
	st, err := parseStats(p.Encode(), now)
	if err != nil {
		return nil
	}
	texts := []string{s.Q}
	for _, c := range st.calcs {
		if c.function == "share" {
			texts = append(texts, c.query.Text())
		}
	}
	for _, text := range texts {
		one, err := language.ParseAt(text, now)
		other, otherErr := language.ParseAt(text, now.Add(25*time.Hour+time.Second))
		if err != nil || otherErr != nil || one.String() != other.String() {
			return nil
		}
	}
	partial, err := newPartialStats(st)
	if err != nil {
		return nil
	}
	grain := divisor(s.Every.Milliseconds(), s.Condition.Window.Milliseconds())
	reach := s.Condition.Window + s.Delay + s.Every + slack
	if reach > longestReach || s.Condition.Window.Milliseconds()/grain > mostWindowParts {
		return nil
	}
	_, offset := floorDivide(s.Due(now).Add(-s.Delay).UnixMilli(), grain)
	return &followed{search: s, partial: partial, reach: reach, grain: grain, offset: offset}
}

// divisor returns the greatest common divisor of two numbers.
func divisor(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// floorDivide returns the quotient, rounded down, and the rest, which is not negative.
func floorDivide(a, b int64) (quotient, rest int64) {
	quotient, rest = a/b, a%b
	if rest < 0 {
		quotient, rest = quotient-1, rest+b
	}
	return quotient, rest
}

// beginAnew forgets all rows. begun is when evaluations begin to wait for the first passes.
func (sh *sharing) beginAnew(begun time.Time) {
	sh.reader = newRowsReader{from: rfc3339.Latest}
	sh.slice = firstReach
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.begun, sh.passed, sh.from, sh.isWhole, sh.isStuck = begun, time.Time{}, rfc3339.Latest, false, false
	for _, f := range sh.all {
		f.parts, f.bytes, f.from, f.isLarge, f.isTooMuch = make(map[int64]*partialTable), 0, 0, false, false
	}
}

// pass reads what is new, and some of what is needed and not read yet. extending is true if more of that is left.
func (sh *sharing) pass(ctx context.Context) (extending bool, err error) {
	began := time.Now()
	needed := began.Add(-sh.horizon).UnixMilli()
	sh.newBytes = 0
	for _, f := range sh.all {
		f.new, f.newBytes = make(map[int64]*partialTable), 0
		f.keep = began.Add(-f.reach).UnixMilli()
	}
	extendTo := max(needed, min(sh.reader.from, began.UnixMilli())-sh.slice.Milliseconds())
	var n newRowsReader
	err = sh.store.readFor(ctx, passTimeout, func(ctx context.Context, tx pgx.Tx) (err error) {
		n, err = sh.reader.pass(ctx, sh.store, tx, extendTo, sh.give)
		return err
	})
	if err != nil {
		return false, err
	}
	isStuck := n.from > extendTo
	if n.from < sh.reader.from {
		switch took := time.Since(began); {
		case took < cheapPass:
			sh.slice *= 2
		case took > dearPass:
			sh.slice = max(sh.slice/2, firstReach)
		}
	}
	n.from = max(n.from, needed) // what came before is not looked for any more
	sh.reader = n
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.passed, sh.from, sh.isWhole, sh.isStuck = began, n.from, sh.isWhole || n.from <= needed, isStuck
	for _, f := range sh.all {
		f.take()
	}
	sh.bound()
	return n.from > needed && !isStuck, nil
}

// give adds a row to the tables of the searches that find it.
func (sh *sharing) give(row foundNew) error {
	r := &sh.record
	r.ID, r.Time, r.InsertedAt = row.id, row.time, row.insertedAt
	if err := r.Read(row.data); err != nil {
		return err
	}
	at := row.time.UnixMilli()
	sh.set.Each(r, func(e *language.Entry[[]*followed]) {
		for _, f := range e.Value {
			sh.newBytes += f.add(r, at)
		}
	})
	for sh.newBytes > mostKeptBytesOfAll {
		largest := slices.MaxFunc(sh.all, func(a, b *followed) int { return cmp.Compare(a.newBytes, b.newBytes) })
		sh.newBytes -= largest.newBytes
		largest.giveUp()
	}
	return nil
}

// add adds a record to the table of its part. It returns how many bytes more the tables take.
func (f *followed) add(r *language.Record, at int64) (bytes int) {
	if f.isTooMuch || at < f.keep {
		return 0
	}
	number, _ := floorDivide(at-f.offset, f.grain)
	t := f.new[number]
	if t == nil {
		t = new(partialTable)
		f.new[number] = t
	}
	before, all := t.bytes, f.newBytes
	f.partial.add(t, r)
	if f.newBytes += t.bytes - before; f.newBytes > mostKeptBytes {
		f.giveUp()
	}
	return f.newBytes - all
}

// giveUp drops what the pass has found: it is too much.
func (f *followed) giveUp() { f.new, f.newBytes, f.isTooMuch = nil, 0, true }

// take takes what the pass has found, and drops what is older than it keeps. The caller holds the lock.
func (f *followed) take() {
	f.bytes = 0
	if f.isLarge || f.isTooMuch {
		return
	}
	for number, t := range f.new {
		known := f.parts[number]
		if known == nil {
			known = new(partialTable)
			f.parts[number] = known
		}
		f.partial.merge(known, t, true)
	}
	f.new = nil
	f.from = f.keep
	for number, t := range f.parts {
		if number*f.grain+f.offset < f.keep {
			delete(f.parts, number)
		} else {
			f.bytes += t.bytes
		}
	}
}

// bound has the searches that take too much evaluated by themselves. The caller holds the lock.
func (sh *sharing) bound() {
	sum := 0
	for _, f := range sh.all {
		sum += f.bytes
	}
	for _, f := range slices.SortedFunc(slices.Values(sh.all), func(a, b *followed) int { return cmp.Compare(b.bytes, a.bytes) }) {
		if f.isLarge || !f.isTooMuch && f.bytes <= mostKeptBytes && sum <= mostKeptBytesOfAll {
			continue
		}
		sum -= f.bytes
		f.isLarge, f.isTooMuch, f.parts, f.bytes = true, true, nil, 0
		sh.log.Warn("a search has too many groups or values to share its reading; it is evaluated by itself until the file of searches is read again", "search", f.search.Name)
	}
}

// Now does what searches.TimelyAnswers says. A nil sharing has no search.
func (sh *sharing) Now(s *searches.Search) time.Time {
	now := time.Now()
	if sh == nil {
		return now
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f, isKnown := sh.bySearch[s]
	switch {
	case sh.isOff:
		return now
	case !isKnown: // of a file that was not looked at yet
	case f == nil || f.isLarge:
		return now
	case sh.passed.IsZero():
	case now.Sub(sh.passed) > patience:
		return now
	default:
		from := s.Due(sh.passed).Add(-s.Delay - s.Condition.Window).UnixMilli()
		if from >= max(sh.from, f.from) {
			return sh.passed
		}
		if sh.isStuck {
			return now
		}
	}
	if now.Sub(sh.begun) > patience {
		return now
	}
	return time.Time{}
}

// table returns the table of a search in a window, or nil if it is not at hand. parameters are those of GET /logs/stats.
func (sh *sharing) table(parameters url.Values) *statsTable {
	if sh == nil {
		return nil
	}
	from, err := strconv.ParseInt(parameters.Get("from"), 10, 64)
	to, otherErr := strconv.ParseInt(parameters.Get("to"), 10, 64)
	if err != nil || otherErr != nil {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, f := range sh.byKey[tableKey(parameters)] {
		if f.isLarge || from < max(sh.from, f.from) || to < from || sh.passed.Before(time.UnixMilli(to).Add(f.search.Delay)) {
			continue
		}
		first, rest := floorDivide(from-f.offset, f.grain)
		last, otherRest := floorDivide(to-f.offset, f.grain)
		if rest != 0 || otherRest != 0 {
			continue
		}
		sum := new(partialTable)
		for number := first; number < last; number++ {
			if t := f.parts[number]; t != nil {
				f.partial.merge(sum, t, false)
			}
		}
		if sum.err != nil {
			return nil
		}
		return f.partial.table(sum, from, to)
	}
	return nil
}
