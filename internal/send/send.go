package send

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"millrace/internal/config"
	"millrace/internal/retry"
)

// Config says what is sent, and where. All but Files, Refused, Unsure, Fields, Key and Note must be set.
type Config struct {
	URL      config.APIURL
	Key      config.APIKey
	Agent    string   // the header User-Agent
	Files    []string // none, or "-": standard input
	Stdin    io.Reader
	Follow   bool          // the files are read on as they grow
	Format   string        // one of Formats
	Fields   string        // fields that records without them get, as the API's header X-Fields has them
	Folder   string        // where the position files are
	Again    bool          // the files are sent from their beginning, whatever was sent of them before
	Refused  string        // file that gets the lines that are not stored, with the reason
	Unsure   string        // file that gets the lines of which it is not known whether they are stored
	Parallel int           // most requests under way
	Compress bool          // bodies are compressed by zstd
	GiveUp   time.Duration // how long one block is tried; 0: for ever

	Note     func(format string, args ...any) // tells people what is no result; many goroutines call it at once
	Progress func(bytes int64)                // these bytes of the files are settled; many goroutines call it at once
}

// Result is what became of the lines.
type Result struct {
	Stored   int64 // records that the API has; what an earlier run has sent is not counted
	Refused  int64
	Unparsed int64 // of the stored: lines that are not of the format, stored as text
	Unsure   int64 // lines that may be stored or not, and are not tried again
	Pending  int64 // lines that may be stored or not, which the next run sends again under their keys
	Bytes    int64 // of the streams
	Files    int
}

const (
	// grace is how long requests under way may still take when the process is told to stop.
	grace = 5 * time.Second
	// idleTime is how long standard input may be silent before what has come of it is sent, and the pause between two looks at a file that is followed.
	idleTime = 250 * time.Millisecond
)

// sender is one run. Many goroutines use it.
type sender struct {
	Config
	format  *format
	client  *client
	post    context.Context // of requests: it outlasts ctx by grace
	free    chan *batch     // batches that no block is in
	abandon context.CancelCauseFunc

	mu      sync.Mutex
	result  Result
	refused *report
	unsure  *report
	away    bool // people were told that the API does not answer
}

// Run sends the files, one after another, or follows all at once until ctx is done. The error is nil if all was sent, which does not mean that all was taken.
func Run(ctx context.Context, c Config) (Result, error) {
	s := &sender{Config: c, format: formats[c.Format], free: make(chan *batch, c.Parallel)}
	if s.format == nil {
		return s.result, FormatOf(c.Format)
	}
	var err error
	if s.client, err = newClient(c); err != nil {
		return s.result, err
	}
	defer s.client.close()
	for range c.Parallel {
		s.free <- newBatch()
	}
	if s.refused, err = openReport(c.Refused); err != nil {
		return s.result, err
	}
	if s.unsure, err = openReport(c.Unsure); err != nil {
		return s.result, err
	}
	ctx, s.abandon = context.WithCancelCause(ctx)
	defer s.abandon(nil)
	post, stopPosts := context.WithCancel(context.WithoutCancel(ctx))
	s.post = post
	defer stopPosts()
	stopped := context.AfterFunc(ctx, func() { time.AfterFunc(grace, stopPosts) })
	defer stopped()

	err = s.run(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	for _, r := range []*report{s.refused, s.unsure} {
		if closeErr := r.close(); err == nil {
			err = closeErr
		}
	}
	return s.result, err
}

// run sends all files.
func (s *sender) run(ctx context.Context) error {
	if len(s.Files) == 0 {
		return s.sendInput(ctx)
	}
	if s.Follow {
		return s.followAll(ctx)
	}
	for _, path := range s.Files {
		err := error(nil)
		if path == "-" {
			err = s.sendInput(ctx)
		} else {
			err = s.sendFile(ctx, path)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// sendInput sends standard input.
func (s *sender) sendInput(ctx context.Context) error {
	in := newIdleReader(ctx, s.Stdin, idleTime)
	identity := uuid.NewString()
	read := &counter{r: in}
	t := &stream{sender: s, name: "standard input", identity: identity, cutter: cutter{r: read, read: func() int64 { return read.n }}}
	return t.run(context.WithoutCancel(ctx)) // it ends with the reader, and what was read is sent
}

// sendFile sends a file from its position on.
func (s *sender) sendFile(ctx context.Context, path string) error {
	o, err := openFile(path)
	if err != nil {
		return err
	}
	defer o.close()
	t, err := s.newStream(path, o)
	if err != nil {
		return err
	}
	defer t.position.close()
	before := t.position.state.Next
	if err := t.run(ctx); err != nil {
		return err
	}
	if before > 0 && t.cutter.at == before && ctx.Err() == nil {
		s.Note("%s: all of it was sent before; --again sends it once more", path)
	}
	return nil
}

// newStream returns the stream of a file, which stands at its position.
func (s *sender) newStream(path string, o *opened) (*stream, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	size := o.size
	if o.compressed {
		size = 1<<63 - 1
	}
	position, before, err := openPosition(s.Folder, absolute, o.id, o.head, size)
	if err != nil {
		return nil, err
	}
	t := &stream{sender: s, name: path, position: position, opened: o}
	if before != nil && len(before.Pending) > 0 {
		if err := s.lost(path, before.Pending); err != nil {
			position.close()
			return nil, err
		}
	}
	if s.Again {
		if err := position.forget(o.id, o.head); err != nil {
			position.close()
			return nil, err
		}
	}
	t.identity = position.state.Identity
	t.cutter = cutter{r: o.content, read: func() int64 { return o.count.n }}
	s.mu.Lock()
	s.result.Files++
	s.mu.Unlock()
	return t, nil
}

// lost tells of blocks whose lines are gone, of which it is not known whether they are stored.
func (s *sender) lost(path string, blocks []pending) error {
	lines := int64(0)
	for _, p := range blocks {
		lines += p.Lines
		s.Note("%s: bytes %d to %d were sent under the key %s without an answer, and are gone: it is not known whether they are stored", path, p.Start, p.End, p.Key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Unsure += lines
	return nil
}

// stream is one file, or standard input, on its way. One goroutine cuts it; others send its batches.
type stream struct {
	*sender
	name     string
	identity string
	cutter   cutter
	next     block     // that was cut and is in no batch yet
	position *position // nil for standard input
	opened   *opened   // nil for standard input
	sending  sync.WaitGroup
}

// run sends the stream from its position to its end, or until ctx is done. All its requests have ended when it returns.
func (t *stream) run(ctx context.Context) (err error) {
	defer func() {
		t.sending.Wait()
		if t.position != nil {
			if saveErr := t.position.save(); err == nil {
				err = saveErr
			}
		}
	}()
	if t.position != nil {
		if err := t.resume(ctx); err != nil {
			return err
		}
	}
	for {
		err := t.cutter.next(&t.next, blockBytes)
		switch {
		case errors.Is(err, errIdle):
			continue
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", t.name, err)
		}
		b := t.take(ctx)
		if b == nil {
			return t.leave(ctx)
		}
		b.block, t.next = t.next, b.block
		b.build(t.format, t.identity, time.Now())
		b.unsent = true
		if err := t.dispatch(b); err != nil {
			return err
		}
	}
}

// leave ends a stream before its end. What was read of standard input and not sent is told.
func (t *stream) leave(ctx context.Context) error {
	if t.position != nil {
		return context.Cause(ctx)
	}
	b := newBatch()
	b.raw, b.line = append(t.next.raw, t.cutter.buf...), t.next.line
	b.build(t.format, t.identity, time.Now())
	if len(b.lines) > 0 {
		t.leavePending(b, errors.New("the line was not sent"))
	}
	return nil
}

// take returns a free batch, or nil once ctx is done or the run is abandoned.
func (t *stream) take(ctx context.Context) *batch {
	if ctx.Err() != nil {
		return nil
	}
	select {
	case b := <-t.free:
		return b
	case <-ctx.Done():
		return nil
	case <-t.post.Done(): // standard input is sent up to its end, but not for ever
		return nil
	}
}

// dispatch notes in the position that a batch is under way, and sends it beside others.
func (t *stream) dispatch(b *batch) error {
	if t.position != nil {
		var head []byte
		if t.opened != nil && !t.opened.compressed && t.position.state.HeadSize < headBytes {
			head = make([]byte, headBytes)
			n, err := t.opened.file.ReadAt(head, 0)
			if err != nil && err != io.EOF {
				t.free <- b
				return fmt.Errorf("%s: %w", t.name, err)
			}
			head = head[:n]
		}
		if err := t.position.begin(b, head); err != nil {
			t.free <- b
			return fmt.Errorf("the position can't be noted: %w", err)
		}
	}
	t.launch(b)
	return nil
}

// launch sends a batch beside others, and then frees it.
func (t *stream) launch(b *batch) {
	t.sending.Go(func() {
		if err := t.settle(b); err != nil {
			t.abandon(err)
		}
		if cap(b.raw) > 4*blockBytes { // it held a long line
			b = newBatch()
		}
		t.free <- b
	})
}

// resume sends the blocks again that an earlier run has left pending, and goes to where it ended.
func (t *stream) resume(ctx context.Context) error {
	at := int64(0)
	for _, p := range t.position.held() {
		if p.Start < at {
			return fmt.Errorf("the position file %s has blocks that overlap", t.position.name)
		}
		b := t.take(ctx)
		if b == nil {
			return context.Cause(ctx)
		}
		err := t.opened.seek(at, p.Start)
		if err == nil {
			b.raw = append(b.raw[:0], make([]byte, p.End-p.Start)...)
			_, err = io.ReadFull(t.opened.content, b.raw)
		}
		if err != nil {
			t.free <- b
			return fmt.Errorf("%s: %w", t.name, err)
		}
		at = p.End
		b.start, b.end, b.line, b.tooLong, b.consumed = p.Start, p.End, p.Line, false, 0
		b.unsent = false // as far as is known
		b.build(t.format, t.identity, keyTime(p.Key))
		changed := b.key != p.Key
		b.key = p.Key
		if changed || time.Since(keyTime(p.Key)) > maxKeyAge {
			reason := "the key is older than a day"
			if changed {
				reason = "the same bytes no longer make the same records: send them with the same --parse as before"
			}
			err := t.giveUp(b, reason)
			t.free <- b
			if err != nil {
				return err
			}
			continue
		}
		t.launch(b)
	}
	next := t.position.state.Next
	if err := t.opened.seek(at, next); err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	t.cutter.at, t.cutter.line = next, t.position.state.Line
	t.Progress(t.opened.count.n)
	t.cutter.counted = t.opened.count.n
	return nil
}

// giveUp takes a batch of which it is not known whether it is stored out of the position, if its lines have somewhere to go.
func (t *stream) giveUp(b *batch, reason string) error {
	if t.unsure == nil {
		first, last := b.line+1, b.line+b.lineEnds
		return fmt.Errorf("%s: lines %d to %d were sent under the key %s, and it is not known whether they are stored: %s; --unsure FILE puts them into a file and goes on", t.name, first, last, b.key, reason)
	}
	if err := t.reportUnsure(b, reason); err != nil {
		return err
	}
	t.mu.Lock()
	t.result.Unsure += int64(len(b.lines))
	t.mu.Unlock()
	if t.position != nil {
		t.position.settle(b.key)
	}
	return nil
}

// settle sends a batch until it is stored or refused, and counts its lines. It fails if nothing more can be sent.
func (t *stream) settle(b *batch) error {
	a, err := t.store(b)
	switch {
	case errors.Is(err, errTooLarge):
		return t.settleInParts(b)
	case errors.Is(err, errKeyExpired):
		return t.giveUp(b, "the key is older than a day")
	case err != nil:
		t.leavePending(b, err)
		return err
	}
	return t.count(b, a)
}

// leavePending counts the lines of a batch that had no answer about them. Those of a file are sent again by the next run.
func (t *stream) leavePending(b *batch, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.position != nil {
		t.result.Pending += int64(len(b.lines))
		return
	}
	t.result.Unsure += int64(len(b.lines))
	if err := t.reportUnsure(b, "no answer came: "+err.Error()); err != nil {
		t.Note("%v", err)
	}
}

// reportUnsure writes the lines of a batch to the file of the unsure, if there is one.
func (t *stream) reportUnsure(b *batch, reason string) error {
	for _, at := range b.lines {
		text, number := b.textAt(int(at))
		if err := t.unsure.add(t.name, number, reason, text, b.key); err != nil {
			return err
		}
	}
	return nil
}

// count counts the lines of a batch, and tells which were refused.
func (t *stream) count(b *batch, a *answer) error {
	refused := b.refused
	stored := 0
	if a != nil {
		stored = *a.Accepted
		for _, e := range a.Errors {
			if e.Index >= 0 && e.Index < len(b.lines) {
				refused = append(refused, refusal{int(b.lines[e.Index]), e.Error})
			}
		}
		if unnamed := *a.Rejected - len(a.Errors); unnamed > 0 {
			t.Note("%s: %d lines from %d on were refused that the API does not name", t.name, unnamed, b.line+1)
			t.mu.Lock()
			t.result.Refused += int64(unnamed)
			t.mu.Unlock()
		}
	}
	for _, r := range refused {
		text, number := b.textAt(r.at)
		if err := t.refused.add(t.name, number, r.reason, text, uuid.Nil); err != nil {
			return err
		}
	}
	t.mu.Lock()
	first := len(refused) > 0 && t.result.Refused == 0 && t.refused == nil
	t.result.Refused += int64(len(refused))
	t.result.Stored += int64(stored)
	t.result.Unparsed += b.unparsed
	t.result.Bytes += b.end - b.start
	t.mu.Unlock()
	if first {
		_, number := b.textAt(refused[0].at)
		t.Note("%s: line %d is refused: %s (--refused FILE puts all that are into a file)", t.name, number, refused[0].reason)
	}
	if t.position != nil {
		t.position.settle(b.key)
	}
	t.Progress(b.consumed)
	return nil
}

// settleInParts sends a batch that is too large for the API, or for a proxy before it, in halves.
func (t *stream) settleInParts(b *batch) error {
	middle := b.half()
	if middle == 0 {
		b.refused = append(b.refused, refusal{0, errTooLarge.Error()})
		return t.count(b, nil)
	}
	now := time.Now()
	var halves [2]*batch
	var pendings []pending
	for i := range halves {
		h := newBatch()
		h.line, h.consumed = b.line, 0
		if i == 0 {
			h.raw, h.start, h.end, h.consumed = b.raw[:middle], b.start, b.start+int64(middle), b.consumed
		} else {
			h.raw, h.start, h.end = b.raw[middle:], b.start+int64(middle), b.end
			h.line += halves[0].lineEnds
		}
		h.build(t.format, t.identity, now)
		h.unsent = true
		halves[i] = h
		if h.records.Accepted > 0 {
			pendings = append(pendings, h.pending())
		}
	}
	if t.position != nil {
		if err := t.position.replace(b.key, pendings...); err != nil {
			return err
		}
	}
	for _, h := range halves {
		if err := t.settle(h); err != nil {
			return err
		}
	}
	return nil
}

// store sends a batch until there is an answer about its records. The answer is nil if it has none.
func (t *stream) store(b *batch) (*answer, error) {
	if b.records.Accepted == 0 {
		return nil, nil
	}
	pauses := retry.NewBackoff()
	pauses.MaxInterval = 30 * time.Second
	began := time.Now()
	for {
		a, err := t.client.post(t.post, b.records.NDJSON, b.key, b.records.Accepted)
		if err == nil {
			t.answered()
			return a, nil
		}
		var later laterError
		if !errors.As(err, &later) {
			return nil, err
		}
		if t.post.Err() != nil {
			return nil, context.Canceled
		}
		b.unsent = b.unsent && later.unsent
		if b.unsent && time.Since(keyTime(b.key)) > maxKeyAge/2 {
			if err := t.renew(b); err != nil {
				return nil, err
			}
		}
		t.unanswered(err)
		pause := pauses.NextBackOff()
		if later.wait > 0 { // and a part of the pause, so that not all come back at once
			pause = later.wait + pause/2
		}
		if t.GiveUp > 0 && time.Since(began)+pause > t.GiveUp {
			return nil, fmt.Errorf("given up after %v: %w", t.GiveUp, err)
		}
		if err := retry.Sleep(t.post, pause); err != nil {
			return nil, err
		}
	}
}

// renew gives a batch that no API has seen a key of now.
func (t *stream) renew(b *batch) error {
	before := b.key
	b.build(t.format, t.identity, time.Now())
	if t.position == nil {
		return nil
	}
	return t.position.replace(before, b.pending())
}

// unanswered tells people, once, that the API is away.
func (s *sender) unanswered(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.away {
		s.away = true
		s.Note("%v; trying again", err)
	}
}

// answered notes that the API is there.
func (s *sender) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		s.away = false
		s.Note("the API answers again")
	}
}

// report is a file of lines that were not stored, one JSON object for each. A nil report takes all, and keeps nothing.
type report struct {
	mu   sync.Mutex
	file *os.File
}

// openReport opens a report, which goes on with what the file has. It returns nil if there is no name.
func openReport(name string) (*report, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &report{file: f}, nil
}

// add writes a line. A text that is not UTF-8 is written in base64.
func (r *report) add(name string, number int64, reason string, text []byte, key uuid.UUID) error {
	if r == nil {
		return nil
	}
	entry := struct {
		File   string `json:"file"`
		Line   int64  `json:"line"`
		Error  string `json:"error"`
		Key    string `json:"key,omitempty"`
		Text   string `json:"text,omitempty"`
		Base64 string `json:"base64,omitempty"`
	}{File: name, Line: number, Error: reason, Text: string(text)}
	if key != uuid.Nil {
		entry.Key = key.String()
	}
	if !utf8.Valid(text) {
		entry.Text, entry.Base64 = "", base64.StdEncoding.EncodeToString(text)
	}
	var b strings.Builder
	quotes := json.NewEncoder(&b)
	quotes.SetEscapeHTML(false)
	if err := quotes.Encode(entry); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.file.WriteString(b.String())
	return err
}

// close closes the file.
func (r *report) close() error {
	if r == nil {
		return nil
	}
	return r.file.Close()
}
