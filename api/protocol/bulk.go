package protocol

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"unsafe"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// wholeItems is the length up to which an answer is made before it is sent.
const wholeItems = 64 << 10

// bulkKind is what an action does.
type bulkKind uint8

const (
	bulkIndex bulkKind = iota
	bulkCreate
	bulkUpdate
	bulkDelete
)

func (k bulkKind) String() string { return [...]string{"index", "create", "update", "delete"}[k] }

// bulk is the Exchange of a bulk request. Its body is pairs of lines: an action, and the document that it is about.
type bulk struct {
	runs   []bulkRun
	names  []byte // what the runs' indexes and ids are in, in quotes
	failed bool   // an item has the status 400
	bytes  int    // about how long the items are

	// The current action. As a rule many have the same line.
	line    []byte
	kind    bulkKind
	index   bulkSpan
	id      bulkSpan
	members []byte // what its documents get

	rewriter *rewriter // what the client asks for; nil if that is nothing
	doc      []member  // of an update

	runsBuf  [2]bulkRun // most requests need no more
	namesBuf [64]byte
	memory   [192]byte // of members
}

// bulkSpan is a part of bulk.names.
type bulkSpan struct{ from, to uint32 }

// bulkRun is a number of items that are the same.
type bulkRun struct {
	index, id bulkSpan
	count     uint32
	kind      bulkKind
	outcome   bulkOutcome
}

// bulkOutcome is what became of an action.
type bulkOutcome uint8

const (
	bulkCreated  bulkOutcome = iota
	bulkNotFound             // there is nothing to delete
	bulkRefused              // and all that follow: refused for the scan.Reason of the difference
)

// newBulk returns the exchange of a bulk request. index is the path's, in quotes, or empty. rewriter may be nil.
func newBulk(index []byte, rewriter *rewriter) *bulk {
	b := &bulk{rewriter: rewriter}
	b.runs, b.members = b.runsBuf[:0], b.memory[:0]
	b.names = append(b.namesBuf[:0], index...)
	return b
}

// Decode implements Exchange.
func (b *bulk) Decode(_ Request, body []byte, records *record.List) *Refusal {
	records.Limits.Repair = true
	records.KeepVerdicts = true
	records.Begin()
	bad := b.decode(body, records)
	if bad != nil {
		records.Begin()
	}
	records.End()
	b.line, b.doc = nil, nil // they are parts of the body, which goes before the answer is read
	return bad
}

// decode takes the actions of a body.
func (b *bulk) decode(body []byte, records *record.List) *Refusal {
	inPath := bulkSpan{0, uint32(len(b.names))}
	lines := lineReader{rest: body}
	for {
		line, at := lines.next()
		if most := records.Limits.TotalBytes; most > 0 && b.Holds() > most {
			records.Overflow = true
		}
		if line == nil || records.Overflow {
			return nil
		}
		if !bytes.Equal(line, b.line) {
			if !b.act(line, inPath) {
				return malformed(lines.number, at)
			}
		}
		if b.kind == bulkDelete {
			b.note(bulkNotFound)
			continue
		}
		source, at := lines.next()
		switch {
		case source == nil:
			records.Refuse(scan.Empty, len(body))
			b.note(bulkRefused + bulkOutcome(scan.Empty))
			return nil
		case b.kind == bulkUpdate:
			var ok bool
			b.doc, ok = appendMembers(b.doc[:0], bytes.TrimSpace(source))
			doc := find(b.doc, "doc")
			if !ok || doc == nil {
				records.Refuse(scan.NotObject, at)
				b.note(bulkRefused + bulkOutcome(scan.NotObject))
				continue
			}
			at += cap(source) - cap(doc.value) // it is a part of source
			source = doc.value
		}
		place := len(b.members)
		members := appendNeeded(b.members, source, b.rewriter)
		if records.AddWith(members, source, at) {
			b.note(bulkCreated)
		} else {
			b.note(bulkRefused + bulkOutcome(records.Verdicts[len(records.Verdicts)-1].Reason()))
		}
		b.members = members[:place]
	}
}

// malformed refuses a body for a line that should be an action and is none. Without it the lines behind it can't be told from one
// another, so nothing of the body is taken.
func malformed(line, at int) *Refusal {
	bad := Refuse(http.StatusBadRequest, `Malformed action/metadata line [%d], expected an object such as {"create":{}}, with index, create, update or delete`, line)
	bad.Body = &scan.Error{Reason: scan.Syntax, Offset: at, Msg: bad.Msg}
	return bad
}

// act makes a line the current action. It reports whether the line is one. inPath is the index that the path names.
func (b *bulk) act(line []byte, inPath bulkSpan) bool {
	a, ok := parseAction(line)
	if !ok {
		return false
	}
	b.line, b.kind = line, a.kind
	switch {
	case len(a.index) == 0:
		b.index = inPath
	case !bytes.Equal(b.text(b.index), a.index):
		b.index = b.name(a.index)
	}
	b.id = bulkSpan{}
	if len(a.id) > 0 {
		b.id = b.name(a.id)
	}
	b.members = appendPlace(b.members[:0], b.text(b.index), b.text(b.id))
	return true
}

// Holds implements Holder. Actions that are not alike, such as those with ids, have a run each.
func (b *bulk) Holds() int { return len(b.runs)*int(unsafe.Sizeof(bulkRun{})) + len(b.names) }

// name keeps an index or an id.
func (b *bulk) name(quoted []byte) bulkSpan {
	from := len(b.names)
	b.names = append(b.names, quoted...)
	return bulkSpan{uint32(from), uint32(len(b.names))}
}

// text returns what was kept.
func (b *bulk) text(s bulkSpan) []byte { return b.names[s.from:s.to] }

// note notes what became of the current action.
func (b *bulk) note(o bulkOutcome) {
	b.bytes += len(`{"create":{"_index":,"_id":,"status":201}},`) + int(b.index.to-b.index.from+b.id.to-b.id.from)
	if o >= bulkRefused {
		b.failed = true
		b.bytes += 256 // about the length of an error
	}
	if n := len(b.runs); o < bulkRefused && n > 0 {
		if last := &b.runs[n-1]; last.outcome == o && last.kind == b.kind && last.index == b.index && last.id == b.id {
			last.count++
			return
		}
	}
	b.runs = append(b.runs, bulkRun{index: b.index, id: b.id, count: 1, kind: b.kind, outcome: o})
}

// Answer implements Exchange. The items of many actions are made as they are sent.
func (b *bulk) Answer(dst []byte, _ Request, o Outcome) Answer {
	dst = append(dst, `{"took":0,"errors":`...) // clients look for these bytes, and for those that follow
	if b.failed {
		dst = append(dst, `true,"items":[`...)
	} else {
		dst = append(dst, `false,"items":[`...)
	}
	all := bulkItems{bulk: b, errors: o.Records.Errors}
	if b.bytes <= wholeItems {
		return elasticAnswer(http.StatusOK, append(all.appendTo(dst, wholeItems*2), `]}`...))
	}
	n := len(dst) + all.length() + len(`]}`)
	a := elasticAnswer(http.StatusOK, nil)
	a.Stream = &bulkItemReader{bulkItems: bulkItems{bulk: b, errors: slices.Clone(o.Records.Errors)}, buf: slices.Clone(dst)}
	a.StreamBytes = n
	return a
}

// bulkItems makes the items of an answer, one after another.
type bulkItems struct {
	*bulk
	errors []scan.RecordError // those that are known

	next   int    // index of the run whose items are made
	made   uint32 // how many of them are
	record int    // index of the next record
	item   []byte // one of them
}

// appendTo appends further items to dst, until none is left or dst has most bytes.
func (s *bulkItems) appendTo(dst []byte, most int) []byte {
	for s.next < len(s.runs) && len(dst) < most {
		r := &s.runs[s.next]
		if s.made == 0 {
			s.makeItem(r)
		}
		if s.next > 0 || s.made > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, s.item...)
		if s.made++; s.made == r.count {
			s.next++
			s.made = 0
		}
	}
	return dst
}

// length returns how long all items are, with the commas between them. It may be called once, in place of appendTo.
func (s *bulkItems) length() int {
	n := 0
	for s.next < len(s.runs) {
		r := &s.runs[s.next]
		s.makeItem(r)
		n += int(r.count) * (len(s.item) + 1)
		s.next++
	}
	return max(0, n-1)
}

// makeItem makes the item of a run's actions.
func (s *bulkItems) makeItem(r *bulkRun) {
	b := append(s.item[:0], `{"`...)
	b = append(b, r.kind.String()...)
	b = append(b, `":{"_index":`...)
	if index := s.text(r.index); len(index) > 0 {
		b = append(b, index...)
	} else {
		b = append(b, `""`...)
	}
	if id := s.text(r.id); len(id) > 0 {
		b = append(append(b, `,"_id":`...), id...)
	}
	switch r.outcome {
	case bulkCreated:
		b = append(b, `,"status":201}}`...)
	case bulkNotFound:
		b = append(b, `,"result":"not_found","status":404}}`...)
	default:
		b = append(b, `,"status":400,"error":`...)
		b = appendCause(b, "mapper_parsing_exception", s.reason(r))
		b = append(b, `}}`...)
	}
	if r.outcome != bulkNotFound {
		s.record += int(r.count)
	}
	s.item = b
}

// reason returns why the action of a run was refused.
func (s *bulkItems) reason(r *bulkRun) string {
	for len(s.errors) > 0 && s.errors[0].Index < s.record {
		s.errors = s.errors[1:]
	}
	switch why := scan.Reason(r.outcome - bulkRefused); {
	case why == scan.Empty:
		return "no line with a document follows"
	case why == scan.NotObject && r.kind == bulkUpdate:
		return "takes an object whose member doc is an object"
	case len(s.errors) > 0 && s.errors[0].Index == s.record:
		return s.errors[0].Err.Error()
	default:
		return why.Words()
	}
}

// bulkItemReader is a reader of an answer that ends in items.
type bulkItemReader struct {
	bulkItems
	buf  []byte // what was made and is not read yet
	room []byte // the memory of buf
	done bool   // buf holds the end of the answer
}

func (r *bulkItemReader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if r.done {
			return 0, io.EOF
		}
		r.buf = r.appendTo(r.room[:0], 4<<10)
		if r.next == len(r.runs) {
			r.buf = append(r.buf, `]}`...)
			r.done = true
		}
		r.room = r.buf
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// lineReader reads lines that are not blank.
type lineReader struct {
	rest   []byte
	at     int // offset of rest in the body
	number int // how many lines were read, blank ones included
}

// next returns the next line, without its end, and its offset in the body. The line is nil at the body's end.
func (r *lineReader) next() (line []byte, at int) {
	for len(r.rest) > 0 {
		line, at = r.rest, r.at
		if n := bytes.IndexByte(line, '\n'); n >= 0 {
			line, r.rest = line[:n], r.rest[n+1:]
			r.at += n + 1
		} else {
			r.rest = nil
			r.at += len(line)
		}
		r.number++
		if len(line) > 0 && (line[0] > ' ' || len(bytes.TrimLeft(line, " \t\r")) > 0) {
			return line, at
		}
	}
	return nil, r.at
}

// bulkAction is what the line of an action says. index and id are in quotes, and jsonb takes them. They are empty if they were not sent.
type bulkAction struct {
	kind      bulkKind
	index, id []byte
}

// parseAction reads the line of an action. It reports false if the line is none. Of what the action says besides the index and the
// id, only brackets and quotes need to be right.
func parseAction(line []byte) (a bulkAction, ok bool) {
	p := jsonParser{line, 0}
	if !p.take('{') {
		return a, false
	}
	name, ok := p.text()
	switch string(name) {
	case `"index"`:
		a.kind = bulkIndex
	case `"create"`:
		a.kind = bulkCreate
	case `"update"`:
		a.kind = bulkUpdate
	case `"delete"`:
		a.kind = bulkDelete
	default:
		ok = false
	}
	if !ok || !p.take(':') {
		return a, false
	}
	ok = p.object(func(key, value []byte) (ok bool) {
		switch string(key) {
		case `"_index"`:
			a.index, ok = nameOf(value)
		case `"_id"`:
			a.id, ok = nameOf(value)
		default:
			ok = true
		}
		return ok
	})
	switch {
	case !ok:
	case p.take(','):
		ok = p.members(func(_, _ []byte) bool { return true })
	default:
		ok = p.take('}')
	}
	return a, ok && p.ended()
}

// nameOf returns the name that a JSON value is, in quotes, such that jsonb takes it. It is empty for null and "". It reports false
// if the value is no name.
func nameOf(value []byte) (name []byte, ok bool) {
	switch value[0] {
	case '{', '[':
		return nil, false
	case '"':
		if len(value) == 2 {
			return nil, true
		}
		for _, c := range value[1 : len(value)-1] {
			if c < ' ' || c == '\\' || c >= 0x80 {
				var s string
				if json.Unmarshal(value, &s) != nil { // it replaces what is not UTF-8
					return nil, false
				}
				return quoteStorable(s), true
			}
		}
		return value, true
	}
	if string(value) == "null" {
		return nil, true
	}
	return quoteStorable(string(value)), true
}
