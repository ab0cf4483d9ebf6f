package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	neturl "net/url"
	"strings"
	"time"

	"millrace/internal/retry"
)

const (
	// quietTime is how long the tail may be silent. The service sends a heartbeat every 15 seconds.
	quietTime = 45 * time.Second
	// longestPause is the longest pause between two attempts to reach the tail again.
	longestPause = 10 * time.Second
	// rememberedIDs is how many records are remembered, so that none is printed twice after a break.
	rememberedIDs = 50_000
	// maxEventLine bounds a line of the tail, which holds one record.
	maxEventLine = 64 << 20
)

// tailEvent is an event of GET /logs/tail.
type tailEvent struct {
	name string // "" for a record, missed, end
	id   string // the place behind it, "" if it tells none
	data []byte
}

// tailStream reads the events of GET /logs/tail.
type tailStream struct {
	body    io.Closer
	lines   *bufio.Reader
	place   string      // where it began, "" if the service did not tell
	silence *time.Timer // closes the connection
	quiet   time.Duration
}

// tail begins to follow the records of a query, from a place on if that is not "". It returns once the service follows: no record that
// becomes visible later is missed.
func (c *queryClient) tail(ctx context.Context, q, place string) (*tailStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	// The service may wait as long for a database as it does for a search.
	t := &tailStream{silence: time.AfterFunc(c.answerTime, cancel), quiet: quietTime}
	parameters, header := make(neturl.Values), make(http.Header)
	if q != "" {
		parameters.Set("q", q)
	}
	if place != "" {
		header.Set("Last-Event-ID", place)
	}
	resp, err := c.open(ctx, "/logs/tail", parameters, header, "text/event-stream")
	if err != nil {
		t.silence.Stop()
		cancel()
		return nil, err
	}
	t.body, t.lines = closers{resp.Body, cancel}, bufio.NewReaderSize(resp.Body, 64<<10)
	following, err := t.next() // it has no data
	if err != nil {
		t.close()
		return nil, err
	}
	t.place = following.id
	return t, nil
}

// closers closes a body and ends its request.
type closers struct {
	io.Closer
	cancel context.CancelFunc
}

func (c closers) Close() error {
	c.cancel()
	return c.Closer.Close()
}

// close ends the stream.
func (t *tailStream) close() {
	t.silence.Stop()
	_ = t.body.Close() // nothing is left to read
}

// hasMore reports whether something of the next event is here already.
func (t *tailStream) hasMore() bool { return t.lines.Buffered() > 0 }

// next returns the next event. A comment is an event without data.
func (t *tailStream) next() (e tailEvent, err error) {
	for {
		t.silence.Reset(t.quiet)
		line, err := t.line()
		if err != nil {
			return e, err
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "":
			if len(line) == 0 {
				return e, nil
			}
		case "id":
			e.id = string(value)
		case "event":
			e.name = string(value)
		case "data":
			e.data = append(e.data, value...)
		}
	}
}

// line returns the next line without its end.
func (t *tailStream) line() ([]byte, error) {
	var whole []byte
	for {
		part, err := t.lines.ReadSlice('\n')
		whole = append(whole, part...)
		if len(whole) > maxEventLine {
			return nil, errors.New("an event is too long")
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		return bytes.TrimRight(whole, "\r\n"), err
	}
}

// recentIDs remembers the ids of the records that came last.
type recentIDs struct {
	known map[string]bool
	order []string
	next  int
}

// add remembers an id. It reports whether the id is new.
func (r *recentIDs) add(id string) bool {
	if r.known[id] {
		return false
	}
	if r.known == nil {
		r.known = make(map[string]bool)
	}
	r.known[id] = true
	if len(r.order) < rememberedIDs {
		r.order = append(r.order, id)
		return true
	}
	delete(r.known, r.order[r.next])
	r.order[r.next] = id
	r.next = (r.next + 1) % rememberedIDs
	return true
}

// follower prints the newest records of a search and then what comes, whatever happens to the service.
type follower struct {
	search  *logSearch
	shown   recentIDs
	place   string // where to go on: behind the last event, or where the tail began
	isAway  bool   // people were told that the tail is away
	hasSeen bool   // the newest records were printed
}

// followLogs prints the newest records of the search, and then all that becomes visible, until ctx ends.
func (s *logSearch) followLogs(ctx context.Context) error {
	f := &follower{search: s}
	var pause time.Duration
	for {
		wasJoined := false
		err := f.follow(ctx, &wasJoined)
		if ctx.Err() != nil {
			return nil
		}
		// A mistake in the address should not wait for a service that never comes.
		if errors.As(err, new(printFailed)) || !isPassing(err) || !f.hasSeen {
			return err
		}
		if wasJoined {
			pause = 0
		}
		if err := s.printer.out.Flush(); err != nil {
			return err
		}
		if !f.isAway && pause > 0 { // an end that is mended at once is not worth a word
			s.note("%v; trying again until it is back", err)
			f.isAway = true
		}
		pause = min(max(2*pause, 250*time.Millisecond), longestPause)
		if retry.Sleep(ctx, pause) != nil {
			return nil
		}
	}
}

// printFailed is the error for a record that could not be printed.
type printFailed struct{ error }

// follow follows the tail until it ends. It sets joined once it has begun.
func (f *follower) follow(ctx context.Context, joined *bool) error {
	s := f.search
	stream, err := s.client.tail(ctx, s.q, f.place)
	if err != nil {
		return err
	}
	defer stream.close()
	*joined = true
	if stream.place != "" {
		f.place = stream.place
	}
	if f.isAway {
		s.note("following again")
		f.isAway = false
	}
	if err := f.printNewest(ctx); err != nil {
		return err
	}
	for {
		if !stream.hasMore() {
			if err := s.printer.out.Flush(); err != nil {
				return printFailed{err}
			}
		}
		e, err := stream.next()
		if err != nil {
			return fmt.Errorf("the tail broke off: %w", err)
		}
		if e.id != "" && (e.name != "" || len(e.data) == 0) {
			f.place = e.id
		}
		switch {
		case e.name == "missed":
			f.tellMissed(e.data)
		case e.name == "end":
			var end struct{ Reason string }
			_ = json.Unmarshal(e.data, &end) // a service of later may say it otherwise
			return fmt.Errorf("the tail has ended: %s", printable(end.Reason))
		case e.name != "" || len(e.data) == 0: // a heartbeat, or something of a later version
		default:
			r := new(logRecord)
			if err := json.Unmarshal(e.data, r); err != nil {
				return &answerError{message: "the tail sent something that is no record"}
			}
			if err := f.print(r); err != nil {
				return err
			}
			f.place = e.id // when it is printed: a record that could not be is asked for again
		}
	}
}

// print prints a record unless it was printed already.
func (f *follower) print(r *logRecord) error {
	if !f.shown.add(r.ID) {
		return nil
	}
	f.search.found = true
	if err := f.search.printer.print(r, true); err != nil {
		return printFailed{err}
	}
	return nil
}

// printNewest prints the newest records, once. What becomes visible meanwhile may come by the tail too.
func (f *follower) printNewest(ctx context.Context) error {
	if f.hasSeen {
		return nil
	}
	if f.search.number >= 0 {
		held, err := f.search.newest(ctx)
		if err != nil {
			return err
		}
		for _, r := range held {
			if err := f.print(r); err != nil {
				return err
			}
		}
	}
	f.hasSeen = true
	return nil
}

// tellMissed tells people of records that the service could not keep for us.
func (f *follower) tellMissed(data []byte) {
	var missed struct {
		Missed *int64
		Reason string
	}
	switch err := json.Unmarshal(data, &missed); {
	case err == nil && missed.Missed != nil:
		f.search.note("%d records were missed, because they came faster than they were printed", *missed.Missed)
	default:
		f.search.note("records may be missing here: %s", printable(strings.TrimSpace(missed.Reason)))
	}
}
