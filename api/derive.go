package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"millrace/api/protocol"
	"millrace/api/publish"
	"millrace/internal/eventtime"
	"millrace/internal/frame"
	"millrace/internal/keys"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// A shipper that gets no answer sends the same bytes again. A key that is made from these bytes makes that harmless, as an
// Idempotency-Key of the client does, with no state in the API: the workers' ledger knows the segments already.
//
// The key has a time, which becomes the records' inserted_at. It is the newest time that one of them has of its own: the newest,
// because a record's time may not be far ahead of its inserted_at. A body without such times gets no key, since two heartbeats
// without a time are two.

// derive sets which protocols' requests get a key made from their body. rule finds the times of records.
func (s *server) derive(names []string, rule *eventtime.Rule) {
	s.times = rule
	for _, e := range s.endpoints.all() {
		e.derives = e.records && slices.Contains(names, e.protocol.Name())
	}
}

// derives reports whether a request without an Idempotency-Key is to get a key made from its body.
func (s *server) derives(e *endpoint, r protocol.Request) (bool, *refusal) {
	asked, bad := protocol.DedupeOf(r)
	return bad == nil && s.times != nil && (asked == protocol.DedupeBody || asked == protocol.DedupeAsSet && e.derives), bad
}

// mapping are the fields of a header that change what is made of a body.
var mapping = [...]string{"X-Fields", "X-Time-Field", "X-Parse"}

// keyOfBody returns the base of the ids of a request's records, made from its decoded body. It returns nil if none of the records
// has a time of its own, or if the newest of these is not one that a key may have.
func (s *server) keyOfBody(key *keys.Key, r protocol.Request, body []byte, records *record.List, now time.Time) *uuid.UUID {
	newest := newestTime(s.times, records.NDJSON)
	if newest < now.Add(-maxKeyAge).UnixMilli() || newest > now.Add(maxKeyAhead).UnixMilli() {
		return nil
	}
	parts := [][]byte{nameOf(key), r.Path, r.Query}
	for _, field := range mapping {
		parts = append(parts, r.Header.Peek(field))
	}
	return baseOf(newest, append(parts, body)...)
}

// oldestInRequest is how long before a request was made the newest time of its records may be, to be the time of its key.
const oldestInRequest = maxKeyAge / 2

// keyOfRequest returns the base of the ids of the records of a request that has a name of its client's. It returns nil if it has none after all, or was made at a time that no key
// may have. The records are a part of it, so that a name that is used twice loses none.
//
// The key's time is the newest of the records' own. It stays the same also if the client says another time with each try. Where that is not near the time of the request, it is the
// request's.
func (s *server) keyOfRequest(key *keys.Key, r protocol.Request, keyed protocol.Keyed, records *record.List, now time.Time) *uuid.UUID {
	id, made := keyed.Key()
	if asked, _ := protocol.DedupeOf(r); id == "" || asked == protocol.DedupeNone || s.times == nil { // it was read without a fault before
		return nil
	}
	at := newestTime(s.times, records.NDJSON)
	if made > 0 && (at < made-oldestInRequest.Milliseconds() || at > made+maxKeyAhead.Milliseconds()) {
		at = made
	}
	if at < now.Add(-maxKeyAge).UnixMilli() || at > now.Add(maxKeyAhead).UnixMilli() {
		return nil
	}
	return baseOf(at, nameOf(key), r.Path, []byte(id), records.NDJSON)
}

// add hands the records of a request to the publisher. base is that of their ids, or nil.
func (s *server) add(dst []publish.Ticket, key *keys.Key, r protocol.Request, exchange protocol.Exchange, records *record.List, base *uuid.UUID) ([]publish.Ticket, error) {
	if named, ok := exchange.(protocol.Named); ok && base == nil && len(named.Names()) == records.Accepted {
		if asked, _ := protocol.DedupeOf(r); asked != protocol.DedupeNone { // it was read without a fault before
			return s.addNamed(dst, key, r, named.Names(), records, time.Now())
		}
	}
	return s.publisher.Add(dst, records, base)
}

// addNamed hands records to the publisher of which each has a name of its client's. Each becomes a segment under a key of its own, so that it is stored once in whatever company it
// comes again.
func (s *server) addNamed(dst []publish.Ticket, key *keys.Key, r protocol.Request, names []protocol.RecordName, records *record.List, now time.Time) ([]publish.Ticket, error) {
	rest := records.NDJSON
	for _, name := range names {
		line := rest[:bytes.IndexByte(rest, '\n')+1]
		rest = rest[len(line):]
		one := record.List{Body: scan.Body{NDJSON: line, Pieces: []scan.Piece{{End: len(line), Records: 1}}}}
		var err error
		if dst, err = s.publisher.Add(dst, &one, baseOfName(key, r, name, line, now)); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// oldNames is how long a record that is older than a key may be is known by its name: within the hour in which it came first.
const oldNames = time.Hour

// baseOfName returns the base of the id of a record that has a name, nil if it has none.
func baseOfName(key *keys.Key, r protocol.Request, name protocol.RecordName, line []byte, now time.Time) *uuid.UUID {
	if name.Name == "" {
		return nil
	}
	at, hour := name.At, now.Truncate(oldNames)
	// What is old moves with the hour alone: a record that became old between two tries would have two keys.
	if at < hour.Add(oldNames-maxKeyAge).UnixMilli() || at > now.Add(maxKeyAhead).UnixMilli() {
		at = hour.UnixMilli()
	}
	return baseOf(at, nameOf(key), r.Path, []byte(name.Name), line)
}

// nameOf returns the name of a key, nothing for no key.
func nameOf(key *keys.Key) []byte {
	if key == nil {
		return nil
	}
	return []byte(key.Name)
}

// baseOf returns the base of the ids of records under a key that is made of a time, in Unix milliseconds, and of parts.
func baseOf(at int64, parts ...[]byte) *uuid.UUID {
	h := sha256.New()
	for _, part := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write(part)
	}
	base := frame.BaseOfKey(frame.KeyOfContent(at, [sha256.Size]byte(h.Sum(nil))))
	return &base
}

// newestTime returns the newest time that one of the records, which are lines, has of its own, in Unix milliseconds. It returns the
// least number if none has one.
func newestTime(rule *eventtime.Rule, lines []byte) int64 {
	newest := int64(math.MinInt64)
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n')
		if micros, result := rule.Find(lines[:end]); result == eventtime.Own {
			newest = max(newest, micros/1000)
		}
		lines = lines[end+1:]
	}
	return newest
}
