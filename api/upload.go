package api

import (
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"millrace/api/front"
	"millrace/api/protocol"
	"millrace/api/publish"
	"millrace/internal/keys"
	"millrace/internal/record"
	"millrace/internal/scan"
)

const (
	// uploadPart is the least size of a part while bytes come faster than they are published. The confirm of a part takes
	// some 10 ms, and nothing more is read meanwhile.
	uploadPart = 1 << 20

	// retryUpload is the pause between two tries of an upload that waits for memory or RabbitMQ.
	retryUpload = 50 * time.Millisecond
)

// upload reads the body of a chunked request whose protocol can take it in parts. A body that ends soon is handed on whole,
// like any other. One that goes on, such as that of tail -f log | curl -T -, is taken in parts once its beginning shows that
// it can be. While it lasts, its complete records are published and confirmed, and their memory is given back. The answer at
// its end counts all parts. Before the first part a fault refuses the body whole. After the first part a fault ends the
// upload, and the answer says what is stored.
//
// All of it happens on the request's own goroutine. While that waits for bytes, front.Conn calls Idle now and then.
type upload struct {
	server  *server
	ctx     *fasthttp.RequestCtx
	conn    *front.Conn
	parts   protocol.Parts
	key     *keys.Key
	intake  *intake
	body    *body
	tickets []publish.Ticket

	// A Read puts bytes into scratch, so that the buffer can be given back while the Read waits. But if the previous Read
	// filled its room, more bytes are there already, and they go directly into the buffer.
	scratch    [4 << 10]byte
	room       []byte
	intoBuffer bool // room is a part of the buffer, which must not move until the Read returns
	roomFilled bool // the previous Read filled its room

	began        time.Time
	tryAt        time.Time // when to check next whether the body can be taken in parts
	untakenSince time.Time // since when the buffer holds bytes that are not taken yet
	lastBytesAt  time.Time // when the last bytes came
	stepBegan    time.Time // when the current step began; it ends at stepEnd bytes of the body
	stepEnd      int64

	inParts    bool     // the first part is stored
	failed     bool     // a part could not be taken, so no later one may be
	taken      int      // bytes at the beginning of the buffer that are taken
	partBytes  int      // size at which a part is taken without waiting
	offset     int      // offset in the body of the buffer's first byte
	stopReason *refusal // why the upload ends, set by Idle

	// Totals of all parts.
	accepted, rejected int
	errors             []scan.RecordError
}

// newUpload returns an upload for a request whose body may be taken in parts, nil for others. isWhole tells that it may not: a body
// under a key is taken whole because its segments depend on all of its records. An encoded body is taken whole because its decoder would
// hold memory while it waits.
func (s *server) newUpload(ctx *fasthttp.RequestCtx, e *endpoint, key *keys.Key, exchange protocol.Exchange, isWhole bool) *upload {
	if isWhole || ctx.Request.Header.ContentLength() != -1 || ctx.RequestBodyStream() == nil {
		return nil
	}
	parts, ok := exchange.(protocol.Parts)
	if !ok {
		return nil
	}
	conn, ok := ctx.Conn().(*front.Conn)
	if encoding, bad := contentEncoding(ctx, ""); !ok || bad != nil || encoding != "" {
		return nil
	}
	u, ok := s.uploads.Get().(*upload)
	if !ok {
		u = new(upload)
	}
	now := time.Now()
	u.server, u.ctx, u.conn, u.parts, u.key, u.intake = s, ctx, conn, parts, key, e.metrics.intake
	u.began, u.tryAt, u.untakenSince, u.lastBytesAt, u.stepBegan = now, now.Add(s.timeouts.part), now, now, now
	u.stepEnd, u.partBytes = step, uploadPart
	u.body = s.bodies.newBody(s.bodies.limits[e.limit])
	u.body.wire = countingReader{r: ctx.RequestBodyStream(), length: -1}
	return u
}

// freeUpload gives u back to the pool. Its body must have been handed on or closed.
func (s *server) freeUpload(u *upload) {
	*u = upload{tickets: u.tickets[:0]}
	s.uploads.Put(u)
}

// read reads the body. It returns the body if that ended before the first part, or the refusal if it was refused whole. If
// the body was taken in parts, both are nil and the request has its answer.
func (u *upload) read() (*body, *refusal) {
	bad := u.receive()
	if !u.inParts {
		if bad != nil {
			u.body.close()
			return nil, bad
		}
		u.body.arrived()
		return u.body, nil
	}
	if last := u.takeRest(bad == nil); bad == nil {
		bad = last
	}
	u.body.close()
	u.answer(bad)
	return nil, nil
}

// receive reads until the body ends. It returns nil if the body came whole, else what ended the upload.
func (u *upload) receive() *refusal {
	u.conn.SetIdler(u)
	defer func() {
		u.conn.SetIdler(nil)
		u.intoBuffer = false
	}()
	for {
		u.makeRoom()
		if err := u.conn.SetReadDeadline(time.Now().Add(u.server.timeouts.part)); err != nil {
			return u.body.unreadable("", err)
		}
		n, err := u.body.wire.Read(u.room)
		u.roomFilled = n == len(u.room)
		if n > 0 {
			u.arrived()
			if u.intoBuffer {
				*u.body.buf = (*u.body.buf)[:len(*u.body.buf)+n]
			} else if bad := u.store(u.room[:n]); bad != nil {
				return bad
			}
		}
		u.intoBuffer = false
		u.cut()
		switch {
		case err == io.EOF:
			return nil
		case u.stopReason != nil:
			return u.stopReason
		case err != nil:
			return u.body.unreadable("", err)
		}
		if bad := u.advance(time.Now()); bad != nil {
			return bad
		}
	}
}

// text returns the bytes in the buffer that are not taken yet.
func (u *upload) text() []byte {
	if u.body.buf == nil {
		return nil
	}
	return u.body.bytes()[u.taken:]
}

// complete returns the beginning of text that consists of complete records.
func (u *upload) complete() []byte {
	text := u.text()
	return text[:u.parts.Complete(text)]
}

// makeRoom decides where the next Read puts its bytes.
func (u *upload) makeRoom() {
	u.room = u.scratch[:]
	if !u.roomFilled || u.body.buf == nil {
		return
	}
	have := int64(len(*u.body.buf))
	most := u.body.limit.bytes
	if have == int64(cap(*u.body.buf)) && have < most && !u.grow(min(2*have, most)) {
		return
	}
	if end := min(int64(cap(*u.body.buf)), most); have < end {
		u.room, u.intoBuffer = (*u.body.buf)[have:end], true
	}
}

// arrived notes that bytes have come.
func (u *upload) arrived() {
	now := time.Now()
	u.lastBytesAt = now
	if len(u.text()) == 0 {
		u.untakenSince = now
	} else if u.body.wire.n < u.stepEnd {
		return
	}
	u.stepBegan, u.stepEnd = now, u.body.wire.n+step
}

// store appends p, which lies in scratch, to the buffer. It waits for memory if the upload is taken in parts.
func (u *upload) store(p []byte) *refusal {
	u.cut()
	most := int(u.body.limit.bytes)
	if len(u.text())+len(p) > most {
		if bad := u.takeComplete(); bad != nil {
			return bad
		}
	}
	have, room := 0, 0
	if u.body.buf != nil {
		have, room = len(*u.body.buf), cap(*u.body.buf)
	}
	if have+len(p) > most {
		return u.body.limit.tooLarge()
	}
	if have+len(p) > room {
		for wait := time.Duration(0); !u.grow(int64(max(have+len(p), min(2*room, most)))); wait += retryUpload {
			if !u.inParts || wait > u.server.timeouts.step {
				return errBusy
			}
			if bad := u.sleep(retryUpload); bad != nil {
				return bad
			}
		}
	}
	*u.body.buf = append(*u.body.buf, p...)
	return nil
}

// grow makes the buffer n bytes large. It reports false if the bytes can't be reserved.
func (u *upload) grow(n int64) bool { return u.body.grow(n, true) }

// cut gives back the memory of what was taken, unless a Read may still write into the buffer.
func (u *upload) cut() {
	if u.taken > 0 && !u.intoBuffer {
		u.body.cut(u.taken)
		u.offset += u.taken
		u.taken = 0
	}
}

// Idle implements front.Idler: it is called when nothing has come for a while. p is where the waiting Read would put bytes.
// wait tells the Read to wait on; if it is false, handBack tells it to return without an error.
func (u *upload) Idle(p []byte) (wait, handBack bool) {
	now := time.Now()
	if u.intoBuffer && &p[0] == &u.room[0] {
		return false, true // the next Read is into scratch
	}
	if u.stopReason = u.advance(now); u.stopReason != nil {
		return false, false
	}
	_ = u.conn.SetReadDeadline(time.Now().Add(u.server.timeouts.part)) // always nil; an error comes from the next Read
	return true, false
}

// advance takes a part if one is due. It returns why the upload must end, nil if it goes on.
func (u *upload) advance(now time.Time) *refusal {
	times := &u.server.timeouts
	if u.inParts {
		if bad := u.ended(); bad != nil {
			return bad
		}
	}
	switch {
	case u.inParts && len(u.text()) == 0:
		if now.Sub(u.lastBytesAt) > times.pause {
			return refuse(fasthttp.StatusRequestTimeout, "nothing more came for %v", times.pause)
		}
		return nil
	case !u.inParts && !now.Before(u.tryAt), u.inParts && now.Sub(u.untakenSince) >= times.part, u.inParts && len(u.text()) >= u.partBytes:
		if bad := u.takeComplete(); bad != nil {
			return bad
		}
	}
	if len(u.text()) > 0 || !u.inParts {
		if now.Sub(u.stepBegan) > times.step {
			return refuse(fasthttp.StatusRequestTimeout, "the body did not arrive in time: %d bytes came", u.body.wire.n)
		}
	}
	return nil
}

// takeComplete takes the complete records that have come, if the body can be taken in parts. Before the first part these
// records must show that.
func (u *upload) takeComplete() *refusal {
	now := time.Now()
	u.tryAt = now.Add(now.Sub(u.began)) // doubled, so that all checks together cost time linear in the body
	u.untakenSince = now
	complete := u.complete()
	if len(complete) == 0 {
		u.partBytes = max(uploadPart, 2*len(u.text()))
		return nil
	}
	u.partBytes = uploadPart
	return u.take(complete)
}

// takeRest takes what has come of a body that was taken in parts: all of it if the body ended, else its complete records.
func (u *upload) takeRest(ended bool) *refusal {
	rest := u.text()
	if !ended {
		rest = u.complete()
	}
	if u.failed || len(rest) == 0 {
		return nil
	}
	return u.take(rest)
}

// take publishes the records of text and returns when they are confirmed. text is the beginning of u.text(). If text does
// not show that the body can be taken in parts, take does nothing.
func (u *upload) take(text []byte) *refusal {
	s := u.server
	records := s.newRecords()
	defer s.freeRecords(records)
	inParts, err := u.scan(records, text)
	switch {
	case err != nil:
		u.failed = true
		err.Offset += u.offset + u.taken
		bad := protocol.UnreadableBody(err)
		u.intake.countRefused(bad)
		return bad
	case !inParts:
		return nil
	case records.Overflow:
		u.failed = true
		return s.overflow()
	case records.Accepted+records.Rejected > 0:
		if bad := u.publish(records); bad != nil {
			u.failed = true
			return bad
		}
	}
	for _, e := range records.Errors[:min(len(records.Errors), scan.MaxErrors-len(u.errors))] {
		e.Index += u.accepted + u.rejected
		e.Err.Offset += u.offset + u.taken
		u.errors = append(u.errors, e)
	}
	u.intake.countRecords(records)
	u.intake.accepted.Add(float64(records.Accepted))
	u.intake.bytes.Add(float64(len(text)))
	u.accepted += records.Accepted
	u.rejected += records.Rejected
	u.inParts = true
	u.taken += len(text)
	u.cut()
	now := time.Now()
	u.untakenSince, u.lastBytesAt, u.stepBegan, u.stepEnd = now, now, now, u.body.wire.n+step
	return nil
}

// scan cuts text into records. It reports whether the body can be taken in parts, and returns the fault of a later part.
func (u *upload) scan(records *record.List, text []byte) (inParts bool, err *scan.Error) {
	s := u.server
	defer s.beginScan(len(text))()
	if u.inParts {
		return true, u.parts.Part(text, records)
	}
	spare := s.newRecords()
	defer s.freeRecords(spare)
	return u.parts.First(text, records, spare), nil
}

// publish publishes the records and returns when they are confirmed. It waits while the key's limit is used up or RabbitMQ
// is away. Nothing is read meanwhile, so the client waits too.
func (u *upload) publish(records *record.List) *refusal {
	s := u.server
	for waited := time.Duration(0); ; {
		wait := u.key.Take(records.Accepted, time.Now())
		if wait == 0 {
			break
		}
		if waited += wait; waited > s.timeouts.pause {
			return limited(u.ctx, u.key, wait)
		}
		if bad := u.sleep(wait); bad != nil {
			return bad
		}
	}
	for waited := time.Duration(0); ; waited += retryUpload {
		down := s.usable()
		if down == nil {
			break
		}
		if !u.inParts || waited > s.timeouts.pause {
			return s.unavailable(down)
		}
		if bad := u.sleep(retryUpload); bad != nil {
			return bad
		}
	}
	var err error
	u.tickets, err = s.add(u.tickets[:0], u.key, requestOf(u.ctx), u.parts, records, nil)
	if err == nil {
		err = publish.Wait(u.tickets)
	}
	clear(u.tickets)
	if err != nil {
		return s.unavailable(err)
	}
	return nil
}

// sleep waits for d. It returns early if the upload must end, and why.
func (u *upload) sleep(d time.Duration) *refusal {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-u.ctx.Done():
	case <-u.key.Gone():
	}
	return u.ended()
}

// ended returns why the upload must end, whatever else comes: the service stops, or the key is gone. It returns nil if
// neither is so.
func (u *upload) ended() *refusal {
	select {
	case <-u.ctx.Done():
		return u.server.unavailable(publish.ErrStopping)
	case <-u.key.Gone():
		return refuse(fasthttp.StatusUnauthorized, "the API key is no longer known, or lacks the scope %s", keys.Write)
	default:
		return nil
	}
}

// answer tells the client the totals of all parts, and what ended the upload; bad is nil if that was the body's end.
func (u *upload) answer(bad *refusal) {
	total := record.List{Body: scan.Body{Accepted: u.accepted, Rejected: u.rejected, Errors: u.errors}}
	if bad != nil {
		if bad == errBusy {
			u.server.metrics.unavailable.WithLabelValues("inflight").Inc()
		}
		bad = refuse(bad.Status, "%s; the body was taken in parts, and the %d records accepted before are stored", bad.Msg, u.accepted)
		u.server.drain(u.ctx)
		u.ctx.SetConnectionClose() // the rest of the body may still come
	}
	answer := u.parts.AnswerParts(nil, requestOf(u.ctx), &total, bad)
	setRetryAfter(u.ctx, answer.Status)
	send(u.ctx, answer)
}
