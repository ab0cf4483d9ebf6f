package query

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"millrace/internal/archive"
)

const (
	// tailCacheBytes is about how much memory the ends of files take that are kept open.
	tailCacheBytes = 128 << 20
	// tailFactor is how much memory a file's end takes when it has been read, against its bytes in the file.
	tailFactor = 3
	// openTime is the longest that opening a file may take.
	openTime = 30 * time.Second
	// filesAtOnce is how many files a search reads at once.
	filesAtOnce = 16
	// mostDoubled is how many rows logs may have of a range that has left it. More are there only while its partition is being dropped.
	mostDoubled = 4_000_000
)

// files gives out files of the archive. It keeps the ends of those that were used last. Many goroutines may use it at once.
type files struct {
	store  archive.Store
	places chan struct{} // one for each row group that is read at once
	// tableBytes is the memory of all tables of stats that are being computed.
	tableBytes atomic.Int64
	failed     func(error) // is told of each file that could not be read; nil: nobody is

	mu      sync.Mutex
	open    map[string]*openFile
	unused  *list.List // of those that no search uses, the last used first
	bytes   int64      // that all take
	most    int64
	opening sync.WaitGroup
}

// openFile is a file that is open, or is being opened until ready is closed.
type openFile struct {
	archiveFile
	ready  chan struct{}
	file   *archive.File
	object archive.Object
	err    error

	users int
	place *list.Element // in unused; nil while it is used
}

// archiveFile is what the catalog tells of a file.
type archiveFile struct {
	name        string
	bytes, tail int64
	from, to    time.Time // the file's range
	first, last int64     // the bounds of its rows on the search's axis, in Unix microseconds
	came        int64     // when its first row came
}

// newFiles returns the files of a store, none of which is open.
func newFiles(store archive.Store) *files {
	return &files{store: store, places: make(chan struct{}, max(4, 2*runtime.GOMAXPROCS(0))), open: make(map[string]*openFile), unused: list.New(), most: tailCacheBytes}
}

// close closes all files. No search may be under way.
func (f *files) close() {
	f.opening.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = 0
	f.evict()
	archive.CloseIdle(f.store)
}

// take opens files, unless they are open. give must be called when they are no longer used.
func (f *files) take(ctx context.Context, wanted []archiveFile) (taken []*openFile, give func(), err error) {
	taken = make([]*openFile, len(wanted))
	give = func() {
		for _, o := range taken {
			if o != nil {
				f.give(o)
			}
		}
	}
	work, working := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for i, file := range wanted {
		work.Go(func() error {
			o := f.use(file)
			taken[i] = o
			select {
			case <-o.ready:
			case <-working.Done():
				return working.Err()
			}
			if o.err != nil {
				return f.failure(file, o.err)
			}
			return nil
		})
	}
	if err = work.Wait(); err != nil {
		give()
		return nil, nil, err
	}
	return taken, give, nil
}

// use returns a file, which is being opened if it was not open.
func (f *files) use(file archiveFile) *openFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.open[file.name]
	if o == nil {
		o = &openFile{archiveFile: file, ready: make(chan struct{})}
		f.open[file.name] = o
		f.bytes += tailFactor * file.tail
		f.opening.Go(func() { // the one who asks may leave meanwhile
			defer close(o.ready)
			o.file, o.object, o.err = f.openFile(file)
		})
	}
	if o.place != nil {
		f.unused.Remove(o.place)
		o.place = nil
	}
	o.users++
	return o
}

// openFile opens a file.
func (f *files) openFile(file archiveFile) (*archive.File, archive.Object, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	return archive.OpenStored(ctx, f.store, archive.Stored{Name: file.name, Bytes: file.bytes, TailBytes: file.tail})
}

// give takes a file back.
func (f *files) give(o *openFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.users--; o.users > 0 {
		return
	}
	isOpen := false
	select {
	case <-o.ready:
		isOpen = o.err == nil
	default: // it is kept, so that the next one finds it
		isOpen = true
	}
	if !isOpen {
		f.forget(o)
		return
	}
	o.place = f.unused.PushFront(o)
	f.evict()
}

// evict closes the files that were used longest ago until the others have room. mu must be held.
func (f *files) evict() {
	for e := f.unused.Back(); e != nil && f.bytes > f.most; {
		o := e.Value.(*openFile)
		e = e.Prev()
		select {
		case <-o.ready:
			f.unused.Remove(o.place)
			o.place = nil
			f.forget(o)
		default: // it is still being opened
		}
	}
}

// forget closes a file that no search uses. mu must be held.
func (f *files) forget(o *openFile) {
	delete(f.open, o.name)
	f.bytes -= tailFactor * o.tail
	if o.object != nil {
		_ = o.object.Close() // it was only read
	}
}

// rangeFailure is what went wrong with a file of the archive. A request that needs the file's range can't be answered.
type rangeFailure struct {
	file archiveFile
	err  error
}

func (e *rangeFailure) Error() string {
	return fmt.Sprintf("the archive's file %s, of the range %s: %v", e.file.name, rangeText(e.file.from, e.file.to), e.err)
}

func (e *rangeFailure) Unwrap() error { return e.err }

// failure returns the failure of a file, and tells of it.
func (f *files) failure(file archiveFile, err error) error {
	failure := &rangeFailure{file, err}
	if f.failed != nil {
		f.failed(failure)
	}
	return failure
}

// rangeText writes a range of inserted_at.
func rangeText(from, to time.Time) string {
	return from.UTC().Format(time.RFC3339) + " to " + to.UTC().Format(time.RFC3339)
}

// archived is what the archive has of a window.
type archived struct {
	// ranges are those whose rows are in files alone: logs is not asked for them.
	ranges  spans
	files   []archiveFile
	without [][16]byte // ids that logs has too, in order
}

// catalogSQL selects the ranges that a search may have to do with, once for each of their files that may have rows of the window. $1 and $2
// are bounds of inserted_at, $3 and $4 those of the window on the search's axis.
//
// A range's sum of changes is that of the hours that it touches; see archive_ranges.
func catalogSQL(c clock) string {
	first, last := "first_at", "last_at"
	if c == byTime {
		first, last = "first_time", "last_time"
	}
	return fmt.Sprintf(`WITH files AS (
		SELECT name, from_at, bytes, tail_bytes, %[1]s AS first, %[2]s AS last, first_at FROM archive_files
		WHERE state = 'published' AND tstzrange(%[1]s, %[2]s, '[]') && tstzrange($3, $4)
	), ranges AS (
		SELECT from_at, to_at, changes, files_only FROM archive_ranges
		WHERE %[4]s
		UNION SELECT from_at, to_at, changes, files_only FROM archive_ranges WHERE from_at IN (SELECT from_at FROM files)
	)
	SELECT r.from_at, r.to_at, r.files_only,
		r.changes = %[3]s,
		f.name, f.bytes, f.tail_bytes, (extract(epoch FROM f.first) * 1000000)::bigint, (extract(epoch FROM f.last) * 1000000)::bigint,
		(extract(epoch FROM f.first_at) * 1000000)::bigint
	FROM ranges r LEFT JOIN files f USING (from_at) ORDER BY r.from_at, f.first_at, f.name`, first, last, archive.ChangesSQL("r.from_at", "r.to_at"), archive.TouchesSQL("$1", "$2"))
}

// catalog is what the archive has, as a transaction's snapshot tells it, of a window and around it. A walk over slices keeps it.
type catalog struct {
	window, arrived span // that were looked up
	archived
}

// lookAhead is how far a walk's catalog reaches beyond a slice at least.
const lookAhead = 24 * time.Hour

// lookUp returns what the archive has of a window, in the snapshot of tx. arrived are the spans of inserted_at that the window's rows may lie
// in. With logsFirst that is only what logs does not have. known, if it is not nil, is what was looked up before in this transaction and
// for this walk. It is replaced if the window is not in it.
func (f *files) lookUp(ctx context.Context, tx pgx.Tx, q *search, arrived spans, logsFirst bool, known *catalog) (found archived, err error) {
	from, to, upperOp := q.bounds()
	if upperOp == "<=" {
		to = to.Add(time.Microsecond)
	}
	window := span{from, maxTime(from, to)}
	came := window
	if len(arrived) > 0 {
		came = span{arrived[0].from, arrived[len(arrived)-1].to}
	}
	if known == nil {
		return f.read(ctx, tx, q.clock, window, came, logsFirst)
	}
	if !known.window.contains(window) || !known.arrived.contains(came) {
		ahead := max(lookAhead, growth*min(window.to.Sub(window.from), 3650*24*time.Hour))
		if q.ascending {
			window.to, came.to = window.to.Add(ahead), came.to.Add(ahead)
		} else {
			window.from, came.from = window.from.Add(-ahead), came.from.Add(-ahead)
		}
		if known.archived, err = f.read(ctx, tx, q.clock, window, came, logsFirst); err != nil {
			return found, err
		}
		known.window, known.arrived = window, came
	}
	found = known.archived
	found.files = within(found.files, from.UnixMicro(), to.UnixMicro())
	return found, nil
}

// contains reports whether another span is in the span.
func (s span) contains(other span) bool {
	return s.from.Before(s.to) && !other.from.Before(s.from) && !other.to.After(s.to)
}

// read reads the catalog: what it has of a window, and of the rows that arrived in a span.
func (f *files) read(ctx context.Context, tx pgx.Tx, c clock, window, arrived span, logsFirst bool) (found archived, err error) {
	rows, err := tx.Query(ctx, catalogSQL(c), arrived.from, arrived.to, window.from, window.to)
	if err != nil {
		return found, err
	}
	var (
		r                span
		filesOnly, fresh bool
		name             *string
		bytes, tail      *int64
		first, last      *int64
		came             *int64
		doubled          spans
	)
	_, err = pgx.ForEachRow(rows, []any{&r.from, &r.to, &filesOnly, &fresh, &name, &bytes, &tail, &first, &last, &came}, func() error {
		if !filesOnly && (logsFirst || !fresh) {
			return nil
		}
		if fresh {
			found.ranges = append(found.ranges, r)
		}
		if name != nil {
			found.files = append(found.files, archiveFile{*name, *bytes, *tail, r.from, r.to, *first, *last, *came})
			if !fresh {
				doubled = append(doubled, r)
			}
		}
		return nil
	})
	if err != nil {
		return found, err
	}
	found.ranges = found.ranges.merge(len(found.ranges))
	for _, r := range doubled.merge(len(doubled)) {
		ids, err := idsOf(ctx, tx, r)
		if err != nil {
			return found, err
		}
		if len(ids) > mostDoubled {
			return found, &rangeFailure{archiveFile{from: r.from, to: r.to}, errors.New("its rows are about to leave the table logs")}
		}
		found.without = append(found.without, ids...)
	}
	slices.SortFunc(found.without, compareIDs)
	return found, nil
}

// idsOf returns the ids that logs has in a range, mostDoubled and one more at most.
func idsOf(ctx context.Context, tx pgx.Tx, r span) (ids [][16]byte, err error) {
	rows, err := tx.Query(ctx, "SELECT id FROM logs WHERE inserted_at >= $1 AND inserted_at < $2 LIMIT $3", r.from, r.to, mostDoubled+1)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

func compareIDs(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

// maxTime returns the later time.
func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
