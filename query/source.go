package query

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace/internal/archive"
	"millrace/internal/eventtime"
	"millrace/query/columns"
)

// source has rows of a search's window, as a transaction's snapshot has them: those in the table logs, or those in files of the archive. No row
// is in two sources of a window.
type source interface {
	// count returns how many rows are found.
	count(ctx context.Context) (int64, error)
	// buckets returns the buckets that have rows, by their beginning.
	buckets(ctx context.Context, ask groupsAsked) (map[int64]*bucket, error)
	// page returns the first rows found in the search's order, from its cursor on, at most so many. A row that has so many bytes of data before
	// it is the last, or those from it on come without their data.
	page(ctx context.Context, rows, bytes int) iter.Seq2[row, error]
	// all returns all rows found, in the search's order. A row's data is good until the next row.
	all(ctx context.Context) iter.Seq2[row, error]
	// byID returns the row with an id, and pgx.ErrNoRows if there is none.
	byID(ctx context.Context, id uuid.UUID) (row, error)
	// messages calls give with the messages of rows: the first of some fields that is a text or a number, and its number; -1 if there is none. So many
	// rows have the message.
	messages(ctx context.Context, fields [][]string, give func(field int, message string, n int64)) error
	// stats adds the rows found to a table.
	stats(ctx context.Context, st *stats, t *columns.Table) error
	// mayHaveRows reports whether the window may have rows, whatever is looked for.
	mayHaveRows(ctx context.Context) (bool, error)
}

// groupsAsked says which groups buckets are to have.
type groupsAsked struct {
	// isPart says that other rows are to be added. Then all groups count, of one of so many parts that all values are divided into.
	isPart      bool
	parts, part int
}

// has reports whether a value is in the part that is asked for: by its hash, which the database knows too.
func (a groupsAsked) has(value string) bool {
	return a.parts <= 1 || int(sha256.Sum256([]byte(value))[0])%a.parts == a.part
}

const (
	// mostGroups and mostGroupBytes bound the groups that are told apart at once where rows of several sources are added. If there are more, the
	// values are counted in parts.
	mostGroups, mostGroupBytes = 200_000, 32 << 20
	// mostParts is the most parts that values are divided into.
	mostParts = 256
)

// errManyGroups says that there are more than mostGroups.
var errManyGroups = errors.New("more values of a field than can be counted at once")

// part is what a transaction's snapshot has of a search's window.
type part struct {
	store   *store
	tx      pgx.Tx
	search  *search
	arrived spans // the spans of inserted_at that rows in logs lie in, by time
	files   archived
	// deadline is when reading files must end; zero: never.
	deadline time.Time
	known    *catalog // of the walk that it is a slice of, or nil
	sources  []source
}

// part returns what a transaction's snapshot has of a search's window. Files must be read by the deadline.
func (s *store) part(ctx context.Context, tx pgx.Tx, q *search, deadline time.Time) (*part, error) {
	return s.partOf(ctx, tx, q, deadline, false, nil)
}

// slice does what part does for a slice of a walk. known is empty for the first slice in a transaction.
func (s *store) slice(ctx context.Context, tx pgx.Tx, q *search, deadline time.Time, known *catalog) (*part, error) {
	return s.partOf(ctx, tx, q, deadline, false, known)
}

// logsPart does what part does. But with files it has only what logs does not have.
func (s *store) logsPart(ctx context.Context, tx pgx.Tx, q *search, deadline time.Time) (*part, error) {
	return s.partOf(ctx, tx, q, deadline, true, nil)
}

func (s *store) partOf(ctx context.Context, tx pgx.Tx, q *search, deadline time.Time, logsFirst bool, known *catalog) (p *part, err error) {
	p = &part{store: s, tx: tx, deadline: deadline, known: known}
	if p.arrived, err = arrivedSpans(ctx, tx, q); err != nil {
		return nil, err
	}
	if s.files != nil {
		// While the store is away, the table answers for all that it has.
		logsFirst = logsFirst || archive.Away(s.files.store) != nil
		if p.files, err = s.files.lookUp(ctx, tx, q, p.arrived, logsFirst, known); err != nil {
			return nil, err
		}
	}
	if p.files.ranges != nil {
		p.arrived = p.arrived.without(p.files.ranges)
	}
	return p.of(q), nil
}

// of returns the same for a search whose window is all of this one or a part of it.
func (p *part) of(q *search) *part {
	same := *p
	of := *q
	of.archived = p.files.ranges
	same.search = &of
	same.sources = nil
	if from, to, _ := of.bounds(); of.clock == byTime && len(p.arrived) > 0 || of.clock == byArrival && len((spans{{from, to.Add(time.Microsecond)}}).without(of.archived)) > 0 {
		same.sources = append(same.sources, &tableSource{p.tx, &of, p.arrived})
	}
	if len(p.files.files) > 0 {
		same.sources = append(same.sources, same.ofFiles())
	}
	return &same
}

// ofFiles returns the source of the rows in files.
func (p *part) ofFiles() *filesSource {
	return &filesSource{files: p.store.files, search: p.search, found: p.files, deadline: p.deadline}
}

// filesBeyond returns for how many milliseconds beyond the window, in the search's order, all rows are in files, if those of the window are.
func (p *part) filesBeyond() int64 {
	if len(p.sources) != 1 {
		return 0
	}
	if _, are := p.sources[0].(*filesSource); !are {
		return 0
	}
	near := time.Duration(0)
	if p.search.clock == byTime {
		near = eventtime.Near // rows of a window may have come so long before it or after it; see arrivedSpans
	}
	from, to := time.UnixMilli(p.search.from).Add(-near), time.UnixMilli(p.search.to).Add(near)
	for _, r := range p.files.ranges {
		switch {
		case p.search.ascending && !r.from.After(to) && !to.After(r.to):
			return r.to.Sub(to).Milliseconds()
		case !p.search.ascending && !r.from.After(from) && !from.After(r.to):
			return from.Sub(r.from).Milliseconds()
		}
	}
	return 0
}

// count returns how many rows are found.
func (p *part) count(ctx context.Context) (n int64, err error) {
	for _, s := range p.sources {
		of, err := s.count(ctx)
		if err != nil {
			return 0, err
		}
		n += of
	}
	return n, nil
}

// mayHaveRows reports whether the window may have rows, whatever is looked for.
func (p *part) mayHaveRows(ctx context.Context) (bool, error) {
	for _, s := range p.sources {
		if may, err := s.mayHaveRows(ctx); err != nil || may {
			return may, err
		}
	}
	return false, nil
}

// byID returns the row with an id, and pgx.ErrNoRows if there is none.
func (p *part) byID(ctx context.Context, id uuid.UUID) (row, error) {
	for _, s := range p.sources {
		if r, err := s.byID(ctx, id); !errors.Is(err, pgx.ErrNoRows) {
			return r, err
		}
	}
	return row{}, pgx.ErrNoRows
}

// buckets returns the buckets that have rows, by their beginning.
func (p *part) buckets(ctx context.Context) (map[int64]*bucket, error) {
	switch {
	case len(p.sources) == 0:
		return nil, nil
	case len(p.sources) == 1:
		return p.sources[0].buckets(ctx, groupsAsked{})
	case p.search.groupBy == nil:
		return p.addBuckets(ctx, 1)
	}
	// The groups of a bucket that has rows in both must all be known. Of the others, which most are, the largest do.
	stretches, err := p.stretches(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[int64]*bucket)
	for _, stretch := range stretches {
		of := p.of(p.search.stretch(stretch.from, stretch.to))
		var some map[int64]*bucket
		if stretch.inLogs {
			for parts := 1; ; parts *= 16 {
				if some, err = of.addBuckets(ctx, parts); !errors.Is(err, errManyGroups) || parts == mostParts {
					break
				}
			}
		} else {
			some, err = of.ofFiles().buckets(ctx, groupsAsked{})
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, some)
	}
	return all, nil
}

// stretch is a stretch of a histogram's buckets.
type stretch struct {
	from, to int  // the number of the first one, and of the one behind the last
	inLogs   bool // logs may have rows of them
}

// stretches returns the stretches of buckets that logs has rows of, and those between them.
func (p *part) stretches(ctx context.Context) (all []stretch, err error) {
	plain := *p.search
	plain.groupBy = nil
	counts, err := (&tableSource{p.tx, &plain, p.arrived}).buckets(ctx, groupsAsked{})
	if err != nil {
		return nil, err
	}
	for i, edge := range p.search.edges[:len(p.search.edges)-1] {
		is := counts[edge] != nil
		if n := len(all); n > 0 && all[n-1].inLogs == is {
			all[n-1].to = i + 1
		} else {
			all = append(all, stretch{i, i + 1, is})
		}
	}
	for i := 1; len(all) > maxStretches && i < len(all)-1; { // each costs a few statements
		if all[i].inLogs {
			i++
			continue
		}
		all[i-1].to = all[i+1].to
		all = slices.Delete(all, i, i+2)
	}
	return all, nil
}

// addBuckets adds the buckets of all sources. The values are divided into so many parts, one of which is counted at once.
func (p *part) addBuckets(ctx context.Context, parts int) (map[int64]*bucket, error) {
	all := make(map[int64]*bucket)
	for number := range parts {
		counts := make(map[int64]map[string]int64)
		for _, s := range p.sources {
			of, err := s.buckets(ctx, groupsAsked{isPart: true, parts: parts, part: number})
			if err != nil {
				return nil, err
			}
			for start, b := range of {
				sum := all[start]
				if sum == nil {
					sum = new(bucket)
					all[start] = sum
				}
				if number == 0 {
					sum.Count += b.Count
					sum.Missing += b.Missing
				}
				if counts[start] == nil {
					counts[start] = make(map[string]int64, len(b.Groups))
				}
				for _, g := range b.Groups {
					counts[start][g.Value] += g.Count
				}
			}
		}
		for start, values := range counts {
			all[start].addGroups(values)
		}
	}
	return all, nil
}

// addGroups adds groups that the bucket has not, and keeps the largest: those that histogramStatement keeps.
func (b *bucket) addGroups(counts map[string]int64) {
	groups := slices.Clone(b.Groups)
	for value, n := range counts {
		groups = append(groups, group{value, n})
	}
	slices.SortFunc(groups, func(a, b group) int { return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Value, b.Value)) })
	most, bytes := bucketGroups, 0
	if b.Missing == 0 {
		most++ // records without the field are a group too
	}
	b.Groups = nil
	for _, g := range groups[:min(most, len(groups))] {
		if bytes += len(g.Value); bytes > bucketBytes {
			break
		}
		b.Groups = append(b.Groups, g)
	}
}

// page returns the first rows found, as a source does.
func (p *part) page(ctx context.Context, rows, bytes int) iter.Seq2[row, error] {
	if p.search.after != nil && p.search.after.given > 0 && len(p.files.files) > 0 {
		var err error
		if p, err = p.behindGiven(ctx); err != nil {
			return func(yield func(row, error) bool) { yield(row{}, err) }
		}
	}
	return p.merged(func(s source) iter.Seq2[row, error] { return s.page(ctx, rows, bytes) })
}

const (
	// mostBrought and mostBroughtBytes bound the rows of files that a statement computes with.
	mostBrought, mostBroughtBytes = 50_000, 32 << 20
)

// broughtRows are rows that a statement finds beside those in logs.
type broughtRows struct {
	ids               [][16]byte
	times, cames, ats []time.Time
	data              []string
}

// bring has statements of the part's search find the rows of files, too: the first of them that come, most at most, or all of them if most is 0.
// It fails if those are too many. The part's sources must not be used any more: statements have the rows of all.
func (p *part) bring(ctx context.Context, most int) error {
	if len(p.files.files) == 0 {
		return nil
	}
	var b broughtRows
	bytes := 0
	s := p.ofFiles()
	err := s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error {
		return of.Each(ctx, func(r *archive.Row) error {
			found := rowOfFile(&columns.Row{Row: *r})
			b.ids = append(b.ids, found.id)
			b.times, b.cames, b.ats = append(b.times, found.time), append(b.cames, found.insertedAt), append(b.ats, found.at(p.search.clock))
			b.data = append(b.data, string(r.Data))
			bytes += len(r.Data)
			switch {
			case len(b.ids) == most:
				return errEnough
			case len(b.ids) > mostBrought || bytes > mostBroughtBytes:
				if most > 0 {
					return errEnough
				}
				return errTooManyBrought
			}
			return nil
		})
	})
	switch {
	case errors.Is(err, errTooManyBrought):
		first, last := p.files.files[0], p.files.files[len(p.files.files)-1]
		return &failure{http.StatusServiceUnavailable, fmt.Sprintf("the figures of the range %[2]s take too much memory, and more than %[1]d of its rows are in the archive alone; narrow the search, or ask for fewer groups and figures", mostBrought, rangeText(first.from, last.to))}
	case err != nil && !errors.Is(err, errEnough):
		return err
	}
	p.search.brought = &b
	return nil
}

// errTooManyBrought says that files have more rows than a statement takes.
var errTooManyBrought = errors.New("too many rows")

// behindGiven returns the part with sources that leave out the rows which the pages before have given of those with one time and id. Of
// these the ones in logs come first.
func (p *part) behindGiven(ctx context.Context) (*part, error) {
	behind := *p
	behind.sources = slices.Clone(p.sources)
	left := p.search.after.given
	for i, s := range behind.sources {
		switch s := s.(type) {
		case *tableSource:
			st := givenStatement(s.search, s.arrived)
			var n int
			if err := p.tx.QueryRow(ctx, st.sql.String(), st.args...).Scan(&n); err != nil {
				return nil, err
			}
			of, after := *s.search, *s.search.after
			after.given = min(n, left)
			of.after = &after
			if left -= after.given; n == after.given { // all are given
				after.given = 0
			}
			behind.sources[i] = &tableSource{s.tx, &of, s.arrived}
		case *filesSource:
			of := *s
			of.given = left
			behind.sources[i] = &of
		}
	}
	return &behind, nil
}

// all returns all rows found, as a source does.
func (p *part) all(ctx context.Context) iter.Seq2[row, error] {
	return p.merged(func(s source) iter.Seq2[row, error] { return s.all(ctx) })
}

// merged returns the rows of all sources in order. Of rows with one time and id those of logs come first.
func (p *part) merged(rowsOf func(source) iter.Seq2[row, error]) iter.Seq2[row, error] {
	switch len(p.sources) {
	case 0:
		return func(func(row, error) bool) {}
	case 1:
		return rowsOf(p.sources[0])
	}
	return func(yield func(row, error) bool) {
		nextA, stopA := iter.Pull2(rowsOf(p.sources[0]))
		defer stopA()
		nextB, stopB := iter.Pull2(rowsOf(p.sources[1]))
		defer stopB()
		a, err, isA := nextA()
		if err == nil {
			var b row
			var isB bool
			for b, err, isB = nextB(); err == nil && (isA || isB); {
				if isA && (!isB || p.search.compare(a, b) <= 0) {
					if !yield(a, nil) {
						return
					}
					a, err, isA = nextA()
				} else {
					if !yield(b, nil) {
						return
					}
					b, err, isB = nextB()
				}
			}
		}
		if err != nil {
			yield(row{}, err)
		}
	}
}

// compare orders rows as the search does.
func (s *search) compare(a, b row) int {
	order := cmp.Or(a.at(s.clock).Compare(b.at(s.clock)), slices.Compare(a.id[:], b.id[:]))
	if s.ascending {
		return order
	}
	return -order
}

// tableSource has rows of the table logs.
type tableSource struct {
	tx      pgx.Tx
	search  *search
	arrived spans
}

func (s *tableSource) count(ctx context.Context) (n int64, err error) {
	return countOf(ctx, s.tx, countStatement(s.search, s.arrived))
}

func (s *tableSource) mayHaveRows(ctx context.Context) (bool, error) {
	return holdsRows(ctx, s.tx, s.search, s.arrived)
}

func (s *tableSource) byID(ctx context.Context, id uuid.UUID) (found row, err error) {
	return rowOfTable(ctx, s.tx, id)
}

func (s *tableSource) buckets(ctx context.Context, ask groupsAsked) (map[int64]*bucket, error) {
	st := histogramStatement(s.search, s.arrived)
	if ask.isPart && s.search.groupBy != nil {
		st = allGroupsStatement(s.search, s.arrived, ask)
	}
	return readBuckets(ctx, s.tx, st, ask)
}

func (s *tableSource) page(ctx context.Context, rows, bytes int) iter.Seq2[row, error] {
	return rowsOf(ctx, s.tx, pageStatement(s.search, s.arrived, rows, bytes))
}

func (s *tableSource) all(ctx context.Context) iter.Seq2[row, error] {
	return rowsOf(ctx, s.tx, exportStatement(s.search, s.arrived))
}

// filesSource has rows of files of the archive.
type filesSource struct {
	files    *files
	search   *search
	found    archived
	deadline time.Time // when it must have answered; zero: there is none
	given    int       // rows with the cursor's time and id that pages before have given
}

// errOutOfTime is the error of a look into files that took longer than it may, as pg.QueryCanceled is that of a statement.
var errOutOfTime = errors.New("reading the archive took too long")

// micros returns the Unix microseconds of Unix milliseconds.
func micros(ms int64) int64 { return ms * int64(time.Millisecond/time.Microsecond) }

// columns returns the search on columns, without its files.
func (s *filesSource) columns() *columns.Search {
	c := &columns.Search{Query: s.search.filter, From: micros(s.search.from), To: micros(s.search.to), Without: s.found.without, Groups: cap(s.files.places) / 2, Places: s.files.places}
	if s.search.clock == byArrival {
		c.Axis = archive.ByArrival
	} else {
		c.Axis = archive.ByTime
	}
	return c
}

// with calls f with a search on the files that have rows in its window. f must be done by the deadline.
func (s *filesSource) with(ctx context.Context, of *columns.Search, wanted []archiveFile, f func(ctx context.Context, of *columns.Search) error) (err error) {
	if !s.deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, s.deadline, errOutOfTime)
		defer cancel()
		defer func() {
			if err != nil && errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), errOutOfTime) {
				err = errOutOfTime
			}
		}()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	taken, give, err := s.files.take(ctx, wanted)
	if err != nil {
		return err
	}
	defer give()
	search := *of
	search.Files = nil
	for _, o := range taken {
		search.Files = append(search.Files, o.file)
	}
	err = f(ctx, &search)
	var failed *columns.FileError
	if errors.As(err, &failed) && !errors.Is(err, columns.ErrManyValues) && ctx.Err() == nil {
		for _, o := range taken {
			if o.file == failed.File {
				return s.files.failure(o.archiveFile, failed.Err)
			}
		}
	}
	return err
}

// each calls f with searches on some of the files at once.
func (s *filesSource) each(ctx context.Context, of *columns.Search, f func(ctx context.Context, of *columns.Search) error) error {
	for some := range slices.Chunk(within(s.found.files, of.From, of.To), filesAtOnce) {
		if err := s.with(ctx, of, some, f); err != nil {
			return err
		}
	}
	return nil
}

// within returns the files that may have rows in a window.
func within(files []archiveFile, from, to int64) (some []archiveFile) {
	for _, f := range files {
		if f.last >= from && f.first < to {
			some = append(some, f)
		}
	}
	return some
}

func (s *filesSource) count(ctx context.Context) (n int64, err error) {
	err = s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error {
		some, err := of.Count(ctx)
		n += some
		return err
	})
	return n, err
}

func (s *filesSource) mayHaveRows(ctx context.Context) (may bool, err error) {
	// The bounds of row groups are closer than those of files.
	err = s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error {
		if may = of.MayHaveRows(); may {
			return errEnough
		}
		return nil
	})
	var failed *rangeFailure
	switch {
	case errors.Is(err, errEnough):
		err = nil
	case errors.As(err, &failed): // whoever needs its rows will see
		may, err = true, nil
	}
	return may, err
}

// errEnough ends a walk over rows or files early.
var errEnough = errors.New("no more is needed")

func (s *filesSource) byID(ctx context.Context, id uuid.UUID) (found row, err error) {
	came := micros(s.search.from)
	err = s.each(ctx, s.columns(), func(ctx context.Context, of *columns.Search) error {
		r, err := of.ByID(ctx, id, came)
		if err == nil && r != nil {
			found = rowOfFile(r)
			err = errEnough
		}
		return err
	})
	switch {
	case errors.Is(err, errEnough):
		return found, nil
	case err == nil:
		err = pgx.ErrNoRows
	}
	return found, err
}

// rowOfFile returns a row of a file as answers have it.
func rowOfFile(r *columns.Row) row {
	at := r.Time
	if at == archive.NoTime {
		at = r.InsertedAt
	}
	return row{id: r.ID, time: time.UnixMicro(at), insertedAt: time.UnixMicro(r.InsertedAt), data: r.Data}
}

func (s *filesSource) buckets(ctx context.Context, ask groupsAsked) (map[int64]*bucket, error) {
	all := make(map[int64]*bucket)
	if s.search.groupBy == nil || ask.isPart {
		return all, s.addBuckets(ctx, s.search.edges, ask, all)
	}
	return all, s.largest(ctx, s.search.edges, all)
}

// largest adds buckets with their largest groups. If there are too many groups, it counts fewer buckets at once, and in the end parts of the
// values of one bucket.
func (s *filesSource) largest(ctx context.Context, edges []int64, all map[int64]*bucket) error {
	some := make(map[int64]*bucket)
	err := s.addBuckets(ctx, edges, groupsAsked{}, some)
	if n := len(edges) - 1; errors.Is(err, errManyGroups) && n > 1 {
		few := (n + 15) / 16
		for from := 0; from < n; from += few {
			if err := s.largest(ctx, edges[from:min(from+few, n)+1], all); err != nil {
				return err
			}
		}
		return nil
	}
	for parts := 16; errors.Is(err, errManyGroups) && parts <= mostParts; parts *= 16 {
		clear(some)
		for number := range parts {
			one := make(map[int64]*bucket)
			if err = s.addBuckets(ctx, edges, groupsAsked{parts: parts, part: number}, one); err != nil {
				break
			}
			for start, b := range one {
				if known := some[start]; known != nil {
					b.Groups = append(b.Groups, known.Groups...)
				}
				b.addGroups(nil)
				some[start] = b
			}
		}
	}
	for start, b := range some {
		b.addGroups(nil)
		all[start] = b
	}
	return err
}

// addBuckets adds buckets with all of their groups.
func (s *filesSource) addBuckets(ctx context.Context, edges []int64, ask groupsAsked, all map[int64]*bucket) error {
	of := s.columns()
	of.From, of.To = max(of.From, micros(edges[0])), min(of.To, micros(edges[len(edges)-1]))
	of.MostValues, of.MostText = mostGroups, mostGroupBytes
	of.Keeps = func(value string) bool { return len(value) <= groupBytes && ask.has(value) }
	at := make([]int64, len(edges))
	for i, edge := range edges {
		at[i] = micros(edge)
	}
	values, bytes := 0, 0
	counts := make(map[int64]map[string]int64)
	err := s.each(ctx, of, func(ctx context.Context, of *columns.Search) error {
		some, err := of.Histogram(ctx, at, s.search.groupBy)
		if err != nil {
			return err
		}
		for i, b := range some {
			if b.Count == 0 {
				continue
			}
			start := edges[i]
			if all[start] == nil {
				all[start] = new(bucket)
			}
			all[start].Count += b.Count
			all[start].Missing += b.Missing
			if counts[start] == nil {
				counts[start] = b.Values
				values += len(b.Values)
				for value := range b.Values {
					bytes += len(value)
				}
				continue
			}
			for value, n := range b.Values {
				if _, known := counts[start][value]; !known {
					values, bytes = values+1, bytes+len(value)
				}
				counts[start][value] += n
			}
		}
		if values > mostGroups || bytes > mostGroupBytes {
			return columns.ErrManyValues
		}
		return nil
	})
	if errors.Is(err, columns.ErrManyValues) {
		return errManyGroups
	}
	for start, values := range counts {
		for value, n := range values {
			all[start].Groups = append(all[start].Groups, group{value, n})
		}
	}
	return err
}

func (s *filesSource) page(ctx context.Context, rows, bytes int) iter.Seq2[row, error] {
	return s.sorted(ctx, rows, bytes)
}

func (s *filesSource) all(ctx context.Context) iter.Seq2[row, error] { return s.sorted(ctx, 0, 0) }

// sorted returns rows in order: at most so many with so much data, or all of them. It goes through the window in steps, which begin where files begin, so
// that few files are open at once.
func (s *filesSource) sorted(ctx context.Context, rows, bytes int) iter.Seq2[row, error] {
	of := s.columns()
	order := columns.Order{Descending: !s.search.ascending, Limit: rows, Bytes: bytes}
	given := s.given
	if given > 0 {
		order.Limit, order.Bytes = rows+given, math.MaxInt
	}
	if after := s.search.after; after != nil {
		order.After = &columns.Place{At: after.at.UnixMicro(), ID: after.id, Inclusive: after.given > 0}
		if order.Descending {
			of.To = min(of.To, order.After.At+1)
		} else {
			of.From = max(of.From, order.After.At)
		}
	}
	edges := []int64{of.From, of.To}
	for _, f := range s.found.files {
		if of.From < f.came && f.came < of.To {
			edges = append(edges, f.came)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	return func(yield func(row, error) bool) {
		isLast := false // by the order
		for done, n := 0, 1; done < len(edges)-1 && !isLast; done, n = done+n, min(2*n, filesAtOnce) {
			from, to := done, min(done+n, len(edges)-1)
			if order.Descending {
				from, to = len(edges)-1-to, len(edges)-1-done
			}
			step := *of
			step.From, step.To = edges[from], edges[to]
			some := within(s.found.files, step.From, step.To)
			if len(some) == 0 {
				continue
			}
			err := s.with(ctx, &step, some, func(ctx context.Context, of *columns.Search) error {
				return of.Sorted(ctx, order, func(r *columns.Row) error {
					if rows > 0 {
						isLast = order.Limit == 1 || order.Bytes <= 0
						order.Limit--
						order.Bytes -= len(r.Data)
					}
					if given > 0 && order.After.At == r.At && order.After.ID == r.ID {
						given--
						return nil
					}
					if !yield(rowOfFile(r), nil) {
						return errEnough
					}
					return nil
				})
			})
			if errors.Is(err, errEnough) {
				return
			}
			if err != nil {
				yield(row{}, err)
				return
			}
		}
	}
}
