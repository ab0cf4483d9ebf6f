package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"millrace/internal/frame"
	"millrace/query/language"
	"millrace/query/tail"
)

const (
	// heartbeat is how often a follower hears of a quiet tail, so that proxies keep the connection and a client
	// that has gone is noticed.
	heartbeat = 15 * time.Second
	// followChunk is how much is gathered for one write to a follower.
	followChunk = 64 << 10
)

// getTail answers GET /logs/tail.
func (s *server) getTail(w http.ResponseWriter, r *http.Request) error {
	q, err := parseSearch(r.URL.RawQuery, tailParameters, time.Now())
	if err != nil {
		return err
	}
	var from *tail.Place
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		p, ok := tail.ParsePlace(id)
		if !ok {
			return refused("Last-Event-ID", id, "the id of an event")
		}
		from = &p
	}
	if s.distributed.Load() {
		return &failure{http.StatusNotImplemented, "the database is distributed by Citus, where new rows can't be followed: search instead"}
	}
	stream := newEventStream(w, strings.Contains(r.Header.Get("Accept"), ndjson))
	if r.Method == http.MethodHead {
		stream.begin()
		return nil
	}
	joining, cancel := context.WithTimeout(r.Context(), s.store.timeout+storeSlack)
	f, err := s.tail.Join(joining, q.filter)
	cancel()
	if errors.Is(err, tail.ErrTooManyFollowers) {
		return tooMany(strconv.Itoa(s.maxFollowers) + " follow the tail, the most at once")
	}
	if err != nil {
		return &failure{http.StatusServiceUnavailable, "the database can't be reached"}
	}
	defer s.tail.Leave(f)
	stream.begin()
	_ = s.sendEvents(r, f, q.filter, from, stream) // on an error the client is gone, or will come again
	return nil
}

// sendEvents sends a follower what it missed since a place, unless that is nil, and then what becomes visible. It returns
// when the stream has ended. A follower that comes without a place is told one at once: its connection may break before the
// first record.
func (s *server) sendEvents(r *http.Request, f *tail.Follower, q language.Query, from *tail.Place, stream *eventStream) error {
	start := f.Start()
	if from != nil {
		start = "" // it has one, and lacks what lies between the two
	}
	if err := stream.beat(start, "following"); err != nil {
		return err
	}
	if from != nil {
		if err := catchUp(r.Context(), f, q, from, stream); err != nil {
			return err
		}
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-s.stopping.Done():
			return stream.end("the service stops")
		case <-keyOf(r).Gone():
			return stream.end("the API key was revoked")
		case <-beat.C:
			place := s.tail.Place() // read before IsIdle looks at what waits
			if f.IsIdle() && place != "" {
				if err := stream.beat(place, "heartbeat"); err != nil {
					return err
				}
			}
			continue
		case <-f.Ready():
		}
		events, missed := f.Take()
		for _, e := range events {
			if err := stream.add(e.Text); err != nil {
				return err
			}
		}
		if err := stream.addMissed(missed); err != nil {
			return err
		}
		if err := stream.flush(); err != nil {
			return err
		}
	}
}

// catchUp sends a follower what it missed since a place. If nobody can tell what that is, it sends an event with the reason,
// and a place that is good for going on.
func catchUp(ctx context.Context, f *tail.Follower, q language.Query, from *tail.Place, stream *eventStream) error {
	missed, err := f.CatchUp(ctx, q, from, func(row tail.Row) error { return stream.add(encodeEvent(row)) })
	if errors.Is(err, tail.ErrTooLongAgo) || errors.Is(err, tail.ErrOtherDatabase) {
		if err := stream.send(stream.notice("missed", `{"missed":null,"reason":"`+err.Error()+`"}`)); err != nil {
			return err
		}
		return stream.beat(f.Start(), "following")
	}
	if err != nil {
		return err
	}
	if err := stream.addMissed(missed); err != nil {
		return err
	}
	return stream.flush()
}

// encodeEvent writes a row as a server-sent event. Its data has no line breaks: PostgreSQL escapes them.
func encodeEvent(r tail.Row) []byte {
	out := make([]byte, 0, len(r.Data)+256) // room for a place, an id, a time and the names
	out = r.AppendPlace(append(out, "id: "...))
	out = append(out, "\ndata: "...)
	return append(row{r.ID, r.Time, frame.Time(r.ID), r.Data}.appendJSON(out), "\n\n"...)
}

// eventStream sends server-sent events. Its errors mean that the client is gone.
type eventStream struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	isLines  bool   // lines of JSON in place of events
	gathered []byte // for one write
}

// ndjson is the content type of lines of JSON.
const ndjson = "application/x-ndjson"

// newEventStream returns a stream whose request has no deadline any more.
func newEventStream(w http.ResponseWriter, isLines bool) *eventStream {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	return &eventStream{w: w, control: control, isLines: isLines}
}

// begin sends the header.
func (s *eventStream) begin() {
	s.w.Header().Set("Content-Type", "text/event-stream")
	if s.isLines {
		s.w.Header().Set("Content-Type", ndjson)
	}
	s.w.Header().Add("Vary", "Accept")
	s.w.Header().Set("Cache-Control", "no-store")
	s.w.Header().Set("X-Accel-Buffering", "no") // nginx would keep events back
	s.w.WriteHeader(http.StatusOK)
}

// send sends a text at once.
func (s *eventStream) send(text []byte) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	return s.control.Flush()
}

// beat sends what says only that the stream is there. A place is where to go on; lines have no places.
func (s *eventStream) beat(place, comment string) error {
	switch {
	case s.isLines:
		return s.send([]byte{'\n'})
	case place != "":
		return s.send([]byte("id: " + place + "\n: " + comment + "\n\n"))
	}
	return s.send([]byte(": " + comment + "\n\n"))
}

// notice returns what is sent of something that is no record.
func (s *eventStream) notice(event, data string) []byte {
	if s.isLines {
		return []byte(data + "\n")
	}
	return []byte("event: " + event + "\ndata: " + data + "\n\n")
}

// add gathers an event, and sends what is gathered once there is enough of it.
func (s *eventStream) add(event []byte) error {
	if s.isLines {
		// Its data is one line of JSON. A notice is one already.
		if _, data, found := bytes.Cut(event, []byte("\ndata: ")); found {
			event = data[:len(data)-1] // one line break of two
		}
	}
	if s.gathered = append(s.gathered, event...); len(s.gathered) < followChunk {
		return nil
	}
	return s.flush()
}

// addMissed gathers an event that tells how many rows the client missed, if it missed any.
func (s *eventStream) addMissed(rows int64) error {
	if rows == 0 {
		return nil
	}
	return s.add(s.notice("missed", fmt.Sprintf(`{"missed":%d}`, rows)))
}

// flush sends what is gathered.
func (s *eventStream) flush() error {
	if len(s.gathered) == 0 {
		return nil
	}
	err := s.send(s.gathered)
	s.gathered = s.gathered[:0]
	return err
}

// end sends the event that tells why the stream ends.
func (s *eventStream) end(why string) error {
	if s.isLines {
		return s.send(s.notice("end", `{"end":"`+why+`"}`))
	}
	return s.send(s.notice("end", `{"reason":"`+why+`"}`))
}
