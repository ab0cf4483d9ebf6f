package worker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"millrace/internal/pg"
	"millrace/worker/partition"
)

const (
	// summarizeEvery is the time between two calls of the summarizer while rows are stored. Searches read all rows that came since.
	summarizeEvery = 500 * time.Millisecond
	// summarizeAllEvery is the time between two calls that look at all pages, not only at the last ones.
	summarizeAllEvery = time.Minute
	// summarizeTimeout is the longest that a call may take. It reads the pages that were written since the last one.
	summarizeTimeout = time.Minute
)

// summarizer brings the indexes over ranges of pages up to date that millrace_add_partition makes: rows that were stored are not in them
// at first. PostgreSQL does so by itself when it vacuums, which is far too late.
type summarizer struct {
	link  pg.Link // as the user who stores rows
	parts *partition.Set
	log   *slog.Logger

	recent map[string]bool // partitions that were summarized since the last call that looked at all pages
	allAt  time.Time       // when that call is due
}

// run works until ctx is done. It owns the link.
func (s *summarizer) run(ctx context.Context) {
	defer s.link.Drop()
	tick := time.NewTicker(summarizeEvery)
	defer tick.Stop()
	s.recent, s.allAt = make(map[string]bool), time.Now().Add(summarizeAllEvery)
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.summarize(ctx)
		if err == nil || ctx.Err() != nil {
			warned = false
			continue
		}
		s.link.Drop() // the streams tell if the database is away
		if pg.ClassOf(err) != "" && !warned {
			s.log.Warn("the indexes of what was stored last can't be brought up to date; searches of it are slow", "error", errors.New(pg.Message(err)))
			warned = true
		}
	}
}

// summarize makes one call, if rows were stored since the last one.
func (s *summarizer) summarize(ctx context.Context) error {
	if !s.parts.HasTouched() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, summarizeTimeout)
	defer cancel()
	conn, err := s.link.Open(ctx)
	if err != nil {
		return err
	}
	names, err := s.parts.TakeTouched(ctx, conn)
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range names {
		s.recent[name] = true
	}
	all := !time.Now().Before(s.allAt)
	if all {
		names = slices.Sorted(maps.Keys(s.recent))
	}
	if _, err = conn.Exec(ctx, "SELECT millrace_summarize('logs', $1, $2)", names, all); err == nil && all {
		clear(s.recent)
		s.allAt = time.Now().Add(summarizeAllEvery)
	}
	return err
}
