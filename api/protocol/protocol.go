// Package protocol has the ways in which records come over HTTP. A protocol is only bytes in, records and an answer out: it
// reads no network, starts no goroutine and keeps nothing between requests, so that it can be tested and fuzzed alone. Package
// api does the rest, for all protocols alike: keys and their limits, bodies within bounds, encodings, the Idempotency-Key,
// confirms, metrics.
//
// A new protocol is one file with its tests, and one line in All.
package protocol

import (
	"fmt"
	"io"

	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// All are the protocols that the API speaks. The first answers requests that are no protocol's own.
var All = []Protocol{
	Native{},
}

// Protocol is a way in which records come. Its methods may be called by any goroutine.
type Protocol interface {
	// Routes returns the paths that are the protocol's own.
	Routes() []Route

	// Open looks at a request before its body is read. It returns what reads and answers it, or why it is refused.
	Open(r Request) (Exchange, *Refusal)

	// Refuse appends the answer to a request that was refused to dst, in the form that the protocol's clients expect.
	Refuse(dst []byte, r Request, why *Refusal) Answer
}

// Route is a path and the methods that it takes.
type Route struct {
	Path    string   // an element * stands for any one: /*/_bulk; the metrics have it as it is here
	Methods []string // the first is told to those who look for a path
}

// Request is what a protocol may know of a request. It is good until the request has its answer.
type Request struct {
	Path   []byte // as it came, without the query string
	Query  []byte // the query string
	Header Header
}

// Header is a request's header.
type Header interface {
	// Peek returns the first value of a field, nil if there is none. The name is in any case.
	Peek(name string) []byte
}

// Exchange is a protocol's side of one request: it reads the body, and makes the answer. Its methods are called by the request's
// goroutine. One that keeps nothing of the request may be used for all.
type Exchange interface {
	// Decode reads a whole body, decoded by its Content-Encoding, into records. A refusal is of the whole body: then nothing
	// of it is stored. Records that can't be taken are refused one by one, in records.
	Decode(r Request, body []byte, records *record.List) *Refusal

	// Answer appends the answer to dst that the request gets once its records are confirmed. It is made before, and thrown
	// away if they are not.
	Answer(dst []byte, r Request, o Outcome) Answer
}

// Shim is an Exchange for a request that has no records, such as one of a client that asks who is there before it sends. Its
// body is read and thrown away, and its Answer is told nothing.
type Shim interface {
	Exchange
	Shim()
}

// Parts is an Exchange whose body may be taken in parts while it comes, if it is long. Each part is published and confirmed,
// and its memory given back, before more is read. Answers before the first part are those of any Exchange.
type Parts interface {
	Exchange

	// Complete returns how many bytes of text, which begins where a record may, are complete records.
	Complete(text []byte) int

	// First reports whether text, the beginning of a body as Complete has cut it, shows that the body can be taken in parts.
	// If so, records then holds its records. spare is changed.
	First(text []byte, records, spare *record.List) bool

	// Part reads a later part.
	Part(text []byte, records *record.List) *scan.Error

	// AnswerParts appends the answer to dst for a body that was taken in parts. total says what they came to; it has no
	// records. stopped is what ended the body early, or nil.
	AnswerParts(dst []byte, r Request, total *record.List, stopped *Refusal) Answer
}

// Outcome is what became of a request's records. It is good until Answer returns.
type Outcome struct {
	Records *record.List    // what was accepted and rejected, and the verdicts if Decode asked for them
	IDs     []frame.Segment // the ids of those accepted, in order
	Body    []byte          // that Decode was given
}

// Answer is a whole answer to a request.
type Answer struct {
	Status      int
	ContentType string
	Header      [][2]string // more fields of the header
	Body        []byte
	Stream      io.Reader // in the place of Body, for a long one that is made as it is sent; nil for most
	StreamBytes int       // how long it is
}

// Refusal is why a request is not taken. A protocol's Refuse makes the answer of it.
type Refusal struct {
	Status int // of HTTP
	Msg    string
	Body   *scan.Error // what was wrong with the body, nil for other reasons; it is counted
}

func (r *Refusal) Error() string { return r.Msg }

// Refuse returns a refusal with a status of HTTP.
func Refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Msg: fmt.Sprintf(format, args...)}
}
