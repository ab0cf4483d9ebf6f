package protocol

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strconv"

	json "github.com/goccy/go-json"
	"github.com/google/uuid"

	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// The paths of Millrace's own protocol.
const (
	singlePath = "/log"
	batchPath  = "/log/batch"
)

// Native is Millrace's own protocol: POST /log takes one record, POST and PUT /log/batch take many.
type Native struct{}

// Name implements Protocol.
func (Native) Name() string { return "native" }

// Routes implements Protocol.
func (Native) Routes() []Route {
	return []Route{
		{Path: singlePath, Methods: []string{http.MethodPost}, Limit: MaxBodyBytes},
		{Path: batchPath, Methods: []string{http.MethodPost, http.MethodPut}, Limit: MaxBodyBytes}, // curl -T sends PUT
	}
}

// Open implements Protocol.
func (Native) Open(r Request) (Exchange, *Refusal) {
	isSingle := string(r.Path) == singlePath
	if isSingle && len(r.Query) == 0 {
		return single{}, nil // even looking for the headers would take time
	}
	if n := len(r.Query); n > maxQuery {
		return nil, Refuse(http.StatusBadRequest, "the query string has %d bytes, and takes at most %d", n, maxQuery)
	}
	t := tuned{isSingle: isSingle}
	o, unknown, bad := t.read(r)
	switch {
	case bad != nil:
		return nil, bad
	case unknown != "":
		return nil, Refuse(http.StatusBadRequest, "unknown query parameter %q", unknown)
	}
	isText := !isSingle && isText(r.Header)
	isPlain := !o.Status200 && !o.Repair && o.Unwrap == "" && o.Fields == nil && o.TimeFields == nil && !isText
	switch {
	case isPlain && isSingle:
		return single{}, nil
	case isPlain && o.IDs:
		return batchWithIDs{}, nil
	case isPlain:
		return batch{}, nil
	}
	t.options, t.isText, t.rewriter = o, isText && o.Unwrap == "", newRewriter(&o)
	if isText {
		t.options.NoParse = o.NoParse || isFalse(r.Header.Peek("X-Parse"))
	}
	if isSingle || o.IDs || o.Unwrap != "" {
		return t, nil
	}
	return tunedParts{t}, nil
}

// Refuse implements Protocol.
func (Native) Refuse(dst []byte, _ Request, why *Refusal) Answer {
	dst = append(dst, `{"error":`...)
	dst = append(dst, quote(why.Msg)...)
	return inJSON(why.Status, append(dst, '}'))
}

// inJSON returns an answer whose body is JSON.
func inJSON(status int, body []byte) Answer {
	return Answer{Status: status, ContentType: "application/json", Body: body}
}

// UnreadableBody returns the refusal of a body that is refused whole because of err.
func UnreadableBody(err *scan.Error) *Refusal {
	r := Refuse(http.StatusBadRequest, "%v", err)
	if err.Reason == scan.TooLarge {
		r = Refuse(http.StatusRequestEntityTooLarge, "%v (MAX_RECORD_BYTES)", err)
	}
	r.Body = err
	return r
}

// unreadable returns what UnreadableBody does. Its message begins with what to send instead, if that can be told.
func unreadable(r Request, body []byte, err *scan.Error, isSingle bool) *Refusal {
	bad := UnreadableBody(err)
	if hint := hint(r.Header, body, err, isSingle); hint != "" {
		bad.Msg = hint + ": " + bad.Msg
	}
	return bad
}

// single is the Exchange of POST /log.
type single struct{}

// Decode implements Exchange.
func (single) Decode(r Request, body []byte, records *record.List) *Refusal {
	if err := records.Single(body); err != nil {
		return unreadable(r, body, err, true)
	}
	return nil
}

// Answer implements Exchange.
func (single) Answer(dst []byte, _ Request, o Outcome) Answer {
	dst = appendID(append(dst, `{"id":`...), o.IDs[0].Base)
	return inJSON(http.StatusAccepted, append(dst, '}'))
}

// batch is the Exchange of POST /log/batch.
type batch struct{}

// Decode implements Exchange.
func (batch) Decode(r Request, body []byte, records *record.List) *Refusal {
	if err := records.Split(body); err != nil {
		return unreadable(r, body, err, false)
	}
	return nil
}

// Answer implements Exchange.
func (batch) Answer(dst []byte, r Request, o Outcome) Answer {
	status := batchStatus(o.Records)
	dst = appendBatchAnswer(dst, o.Records)
	if status == http.StatusBadRequest {
		if hint := hint(r.Header, o.Body, &o.Records.Errors[0].Err, false); hint != "" {
			dst = withError(dst, hint)
		}
	}
	return inJSON(status, dst)
}

// Complete implements Parts: NDJSON is complete up to the end of a line.
func (batch) Complete(text []byte) int { return bytes.LastIndexByte(text, '\n') + 1 }

// First implements Parts.
func (batch) First(text []byte, records, spare *record.List) bool {
	return records.IsLines(spare, text)
}

// Part implements Parts.
func (batch) Part(text []byte, records *record.List) *scan.Error {
	if err := records.Lines(text); err != nil && err.Reason != scan.Empty {
		return err
	}
	return nil
}

// AnswerParts implements Parts.
func (batch) AnswerParts(dst []byte, _ Request, total *record.List, stopped *Refusal) Answer {
	dst = appendBatchAnswer(dst, total)
	if stopped == nil {
		return inJSON(batchStatus(total), dst)
	}
	return inJSON(stopped.Status, withError(dst, stopped.Msg))
}

// batchWithIDs is the Exchange of POST /log/batch?ids=true. Its bodies are not taken in parts, because all ids would have to
// be kept.
type batchWithIDs struct{}

// Decode implements Exchange.
func (batchWithIDs) Decode(r Request, body []byte, records *record.List) *Refusal {
	return batch{}.Decode(r, body, records)
}

// Answer implements Exchange. The ids are made as they are sent, because those of one body can have thirteen times its size.
func (batchWithIDs) Answer(dst []byte, r Request, o Outcome) Answer {
	return withIDs(batch{}.Answer(dst, r, o), o)
}

// withIDs adds the ids of all records to the answer to a batch.
func withIDs(a Answer, o Outcome) Answer {
	ids := &idReader{buf: append([]byte(nil), a.Body[:len(a.Body)-1]...), runs: slices.Clone(o.IDs)}
	ids.buf = append(ids.buf, `,"ids":[`...)
	n := 0
	for _, run := range o.IDs {
		n += run.Records
	}
	a.Body, a.Stream, a.StreamBytes = nil, ids, len(ids.buf)+max(0, n*idLength-1)+len(`]}`)
	return a
}

// batchStatus returns the status of the answer to a batch whose accepted records are confirmed.
func batchStatus(records *record.List) int {
	switch {
	case records.Rejected == 0:
		return http.StatusAccepted
	case records.Accepted == 0:
		return http.StatusBadRequest
	}
	return http.StatusMultiStatus
}

// appendBatchAnswer appends the counts and the errors of records to b, as a JSON object.
func appendBatchAnswer(b []byte, records *record.List) []byte {
	b = append(b, `{"accepted":`...)
	b = strconv.AppendInt(b, int64(records.Accepted), 10)
	b = append(b, `,"rejected":`...)
	b = strconv.AppendInt(b, int64(records.Rejected), 10)
	if len(records.Errors) > 0 {
		b = append(b, `,"errors":[`...)
		for i, e := range records.Errors {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"index":`...)
			b = strconv.AppendInt(b, int64(e.Index), 10)
			b = append(b, `,"error":`...)
			b = append(b, quote(e.Err.Error())...)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// withError adds an error of the whole body to the answer to a batch, and returns the answer.
func withError(b []byte, msg string) []byte {
	b = append(append(b[:len(b)-1], `,"error":`...), quote(msg)...)
	return append(b, '}')
}

// idLength is the length of an id in an answer, with its quotes and a comma.
const idLength = len(`"01a20966-5bf7-7eb9-8db3-0bb4f191b246",`)

// idReader is a reader of an answer that ends in ids. It makes the ids as they are read.
type idReader struct {
	buf  []byte          // what was made and is not read yet
	runs []frame.Segment // the segments whose ids are still to be made
	k    int             // index of the next id in the first of runs
	done bool            // buf holds the end of the answer
}

func (r *idReader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if r.done {
			return 0, io.EOF
		}
		r.fill()
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// fill puts the next ids into buf, some 4 KiB of them.
func (r *idReader) fill() {
	b := make([]byte, 0, 4<<10)
	for len(r.runs) > 0 && len(b)+idLength+len(`]}`) <= cap(b) {
		run := r.runs[0]
		b = appendID(b, frame.ID(run.Base, r.k))
		if r.k++; r.k == run.Records {
			r.runs, r.k = r.runs[1:], 0
		}
		if len(r.runs) > 0 {
			b = append(b, ',')
		}
	}
	if len(r.runs) == 0 {
		b = append(b, `]}`...)
		r.done = true
	}
	r.buf = b
}

// appendID appends id to b as a JSON string.
func appendID(b []byte, id uuid.UUID) []byte {
	b = append(b, '"')
	for i, n := range []int{4, 2, 2, 2, 6} { // the bytes between the hyphens
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[:n])
		copy(id[:], id[n:])
	}
	return append(b, '"')
}

// quote returns s as a JSON string.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return []byte(`"internal error"`) // a string can always be encoded
	}
	return bytes.TrimSpace(b.Bytes())
}
