package columns

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"slices"

	"golang.org/x/sync/errgroup"

	"millrace/internal/archive"
	"millrace/query/language"
)

// Place is a place in the order of rows: at a time, directly behind a row's id, or before the row if Inclusive.
type Place struct {
	At        int64
	ID        [16]byte
	Inclusive bool
}

// Order says which rows Sorted gives, and in which order.
type Order struct {
	Descending bool
	After      *Place // the place that rows come after; nil: all come
	// Limit is how many rows come at most. The first row that has Bytes of data or more before it is the last. If Limit is 0, all rows come.
	Limit, Bytes int
}

// take notes that a row has come, and reports whether it is the last.
func (o *Order) take(r *Row) (isLast bool) {
	isLast = o.Limit == 1 || o.Bytes <= 0
	o.Limit--
	o.Bytes -= len(r.Data)
	return isLast
}

const (
	// heldBytes is about how much data of rows Sorted holds at once, unless more rows than that have the same time.
	heldBytes = 64 << 20
	// mostSteps is how many steps of a search Sorted takes at once where little is found.
	mostSteps = 256
)

// foundRows are the rows of a group that were found in a part of the window.
type foundRows struct {
	*archive.Group
	rows archive.Bits
	at   []int64 // the times of the rows
}

// Sorted calls f with the rows that are found, in the order of their times, and of their ids. The row and its data are f's for good.
//
// It goes through the window in steps, which begin where row groups begin. So of groups that follow each other in time few are read at once.
func (s *Search) Sorted(ctx context.Context, o Order, f func(r *Row) error) error {
	window := *s
	if o.After != nil {
		if o.Descending {
			window.To = min(window.To, o.After.At+1)
		} else {
			window.From = max(window.From, o.After.At)
		}
	}
	w := &sorter{Search: &window, order: o, selector: s.Query.Selector(), give: f}
	edges := window.steps()
	for done, n := 0, 1; done < len(edges)-1; {
		from, to := done, min(done+n, len(edges)-1)
		if o.Descending {
			from, to = len(edges)-1-to, len(edges)-1-done
		}
		weight, isEnough, err := w.step(ctx, edges[from], edges[to])
		if err != nil || isEnough {
			return err
		}
		done += n
		switch {
		case weight > heldBytes:
			n = max(1, n/2)
		case weight < heldBytes/4:
			n = min(4*n, mostSteps)
		}
	}
	return ctx.Err()
}

// steps returns the beginnings of the window's steps, and the end of the last one. Most rows come near their times. So steps that begin when
// the first row of a group came have about one group each, on both axes.
func (s *Search) steps() []int64 {
	edges := []int64{s.From, s.To}
	for _, g := range s.groups() {
		if s.From < g.MinCame && g.MinCame < s.To {
			edges = append(edges, g.MinCame)
		}
	}
	slices.Sort(edges)
	return slices.Compact(edges)
}

// sorter gives rows in order.
type sorter struct {
	*Search
	order    Order
	selector *language.Selector
	give     func(r *Row) error
}

// step gives the rows of a part of the window. weight is about how many bytes they have, and isEnough reports whether there are as many as
// were asked for.
func (w *sorter) step(ctx context.Context, from, to int64) (weight int, isEnough bool, err error) {
	found, err := w.look(ctx, from, to)
	if err != nil {
		return 0, false, err
	}
	for _, g := range found {
		weight += len(g.at) * rowBytes(g.Group)
	}
	if len(found) == 0 {
		return 0, false, nil
	}
	if w.order.Limit > 0 {
		isEnough, err = w.giveSome(ctx, found)
		return weight, isEnough, err
	}
	for _, span := range w.spans(found, weight) {
		if err := w.giveAll(ctx, found, span[0], span[1]); err != nil {
			return weight, false, err
		}
	}
	return weight, false, nil
}

// rowBytes returns how much data a row of a group may have on average: a group that is not full of rows is full of data, but for a file's last.
func rowBytes(g *archive.Group) int { return archive.GroupBytes / g.Rows }

// look finds the rows of a part of the window.
func (w *sorter) look(ctx context.Context, from, to int64) ([]foundRows, error) {
	part := *w.Search
	part.From, part.To = from, to
	groups := part.groups()
	found := make([]foundRows, len(groups))
	err := part.eachOf(ctx, groups, func(ctx context.Context, i int) error {
		g := groups[i]
		rows, times, err := part.found(ctx, w.selector, g)
		if err != nil || rows.IsEmpty() {
			return err
		}
		if times == nil {
			if times, err = g.Times(ctx, w.Axis, nil); err != nil {
				return err
			}
		}
		at := make([]int64, 0, rows.Count())
		rows.Each(func(row int) { at = append(at, times[row]) })
		found[i] = foundRows{g, rows, at}
		return nil
	})
	return slices.DeleteFunc(found, func(f foundRows) bool { return len(f.at) == 0 }), err
}

// within returns the rows from a time to another one, both included.
func (f *foundRows) within(from, to int64) archive.Bits {
	chosen := archive.NewBits(f.Rows)
	i := 0
	f.rows.Each(func(row int) {
		if at := f.at[i]; from <= at && at <= to {
			chosen.Set(row)
		}
		i++
	})
	return chosen
}

// read returns the rows from a time to another one, both included, as far as they come after the order's place.
func (w *sorter) read(ctx context.Context, f *foundRows, from, to int64) (rows []*Row, err error) {
	chosen := f.within(from, to)
	if chosen.IsEmpty() {
		return nil, nil
	}
	times := make([]int64, 0, len(f.at))
	for _, at := range f.at {
		if from <= at && at <= to {
			times = append(times, at)
		}
	}
	i := 0
	var room []Row
	err = f.Records(ctx, chosen, func(r *archive.Row) error {
		if len(room) == 0 {
			room = make([]Row, min(1024, len(times)-i))
		}
		copied := &room[0]
		*copied = Row{Row: *r, At: times[i]}
		i++
		if w.order.After.isBefore(copied, w.order.Descending) {
			room = room[1:]
			copied.Data = bytes.Clone(r.Data)
			rows = append(rows, copied)
		}
		return nil
	})
	return rows, err
}

// isBefore reports whether a row comes after the place.
func (p *Place) isBefore(r *Row, descending bool) bool {
	if p == nil {
		return true
	}
	order := cmp.Or(cmp.Compare(r.At, p.At), bytes.Compare(r.ID[:], p.ID[:]))
	if descending {
		order = -order
	}
	return order > 0 || order == 0 && p.Inclusive
}

// compare orders rows as they are to come. Rows with one time and id have some order for good.
func (w *sorter) compare(a, b *Row) int {
	order := cmp.Or(compareRows(a, b), cmp.Compare(a.InsertedAt, b.InsertedAt), bytes.Compare(a.Data, b.Data))
	if w.order.Descending {
		return -order
	}
	return order
}

// giveSome gives the first rows, as many as the order asks for, and reports whether those are enough. It keeps no more data than the order
// asks for and a group has.
func (w *sorter) giveSome(ctx context.Context, found []foundRows) (isEnough bool, err error) {
	var times []int64
	for i := range found {
		for _, at := range found[i].at {
			if w.order.After == nil || at != w.order.After.At { // those may come before the place
				times = append(times, at)
			}
		}
	}
	slices.Sort(times)
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	if len(times) > w.order.Limit {
		if w.order.Descending {
			from = times[len(times)-w.order.Limit]
		} else {
			to = times[w.order.Limit-1]
		}
	}
	var kept []*Row
	for i := range found {
		var rows []*Row
		if err := w.eachOf(ctx, []*archive.Group{found[i].Group}, func(ctx context.Context, _ int) (err error) {
			rows, err = w.read(ctx, &found[i], from, to)
			return err
		}); err != nil {
			return false, err
		}
		kept = append(kept, rows...)
		slices.SortFunc(kept, w.compare)
		size, isLast := 0, false
		for n, r := range kept {
			if n == w.order.Limit || isLast {
				clear(kept[n:])
				kept = kept[:n]
				break
			}
			isLast = size >= w.order.Bytes
			size += len(r.Data)
		}
	}
	for _, r := range kept {
		if err := w.give(r); err != nil {
			return false, err
		}
		isEnough = w.order.take(r)
	}
	return isEnough, nil
}

// spans returns spans of times, first and last, that all rows lie in, in the order in which they are to come. The rows of each have about
// heldBytes.
func (w *sorter) spans(found []foundRows, weight int) (spans [][2]int64) {
	if weight <= heldBytes {
		return [][2]int64{{math.MinInt64, math.MaxInt64}}
	}
	type weighed struct {
		at     int64
		weight int
	}
	var all []weighed
	for i := range found {
		for _, at := range found[i].at {
			all = append(all, weighed{at, rowBytes(found[i].Group)})
		}
	}
	slices.SortFunc(all, func(a, b weighed) int { return cmp.Compare(a.at, b.at) })
	sum, first := 0, all[0].at
	for i, row := range all {
		if sum += row.weight; i == len(all)-1 || sum >= heldBytes && all[i+1].at != row.at {
			spans = append(spans, [2]int64{first, row.at})
			if sum = 0; i < len(all)-1 {
				first = all[i+1].at
			}
		}
	}
	if w.order.Descending {
		slices.Reverse(spans)
	}
	return spans
}

// giveAll gives all rows of a span of times.
func (w *sorter) giveAll(ctx context.Context, found []foundRows, from, to int64) error {
	groups := make([]*archive.Group, len(found))
	for i := range found {
		groups[i] = found[i].Group
	}
	read := make([][]*Row, len(found))
	if err := w.eachOf(ctx, groups, func(ctx context.Context, i int) (err error) {
		read[i], err = w.read(ctx, &found[i], from, to)
		return err
	}); err != nil {
		return err
	}
	if w.order.Descending {
		slices.Reverse(read)
		for _, rows := range read {
			slices.Reverse(rows)
		}
	}
	rows := slices.Concat(read...)
	if !slices.IsSortedFunc(rows, w.compare) {
		slices.SortFunc(rows, w.compare)
	}
	for _, r := range rows {
		if err := w.give(r); err != nil {
			return err
		}
	}
	return nil
}

// ByID returns the row with an id that came at a time, or nil.
func (s *Search) ByID(ctx context.Context, id [16]byte, came int64) (found *Row, err error) {
	var groups []*archive.Group
	for _, f := range s.Files {
		for i := range f.Groups {
			if g := &f.Groups[i]; g.MinCame <= came && came <= g.MaxCame {
				groups = append(groups, f.Group(i))
			}
		}
	}
	for i := range groups {
		if found != nil {
			break
		}
		if err := s.eachOf(ctx, groups[i:i+1], func(ctx context.Context, _ int) error {
			rows, err := groups[i].RowsOf(ctx, [][2][16]byte{{id, id}})
			if rows == nil || err != nil {
				return err
			}
			return groups[i].Records(ctx, rows, func(r *archive.Row) error {
				if r.InsertedAt == came {
					found = &Row{Row: *r, At: came}
					found.Data = bytes.Clone(r.Data)
				}
				return nil
			})
		}); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// MayHaveRows reports whether the window may have rows, whatever is looked for, by the bounds of row groups.
func (s *Search) MayHaveRows() bool { return len(s.groups()) > 0 }

// eachOf calls f with the number of each of the groups, several at once. An error is a *FileError, unless ctx has ended.
func (s *Search) eachOf(ctx context.Context, groups []*archive.Group, f func(ctx context.Context, i int) error) error {
	work, working := errgroup.WithContext(ctx)
	work.SetLimit(max(1, s.Groups))
	for i, g := range groups {
		if working.Err() != nil {
			break
		}
		work.Go(func() error {
			if err := s.take(working); err != nil {
				return err
			}
			defer s.leave()
			if err := guarded(func() error { return f(working, i) }); err != nil {
				if working.Err() != nil {
					return working.Err()
				}
				return &FileError{g.File, err}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// guarded returns what f returns, and an error if it panics: no bytes of a file may end the program.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v\n%s", archive.ErrCorrupt, p, debug.Stack())
		}
	}()
	return f()
}

// take waits for a place among the groups that are read at once.
func (s *Search) take(ctx context.Context) error {
	if s.Places == nil {
		return nil
	}
	select {
	case s.Places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Search) leave() {
	if s.Places != nil {
		<-s.Places
	}
}

// FileError is what went wrong with one of a search's files.
type FileError struct {
	File *archive.File
	Err  error
}

func (e *FileError) Error() string { return e.Err.Error() }
func (e *FileError) Unwrap() error { return e.Err }
