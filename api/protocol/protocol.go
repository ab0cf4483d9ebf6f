// Package protocol holds the protocols in which records come over HTTP. A protocol turns bytes into records and an answer. It
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

// Settings are what protocols can be told.
type Settings struct {
	ESVersion string // the version of Elasticsearch that its clients are told; empty means DefaultESVersion
}

// All returns the protocols that the API speaks. The first also answers requests that belong to none.
func All(s Settings) []Protocol {
	return []Protocol{
		Native{},
		OTLP{},
		Elastic{Version: s.ESVersion},
		Loki{},
		HEC{},
		Datadog{},
		GELF{},
		Firehose{},
		Journald{},
	}
}

// Protocol is a way to send records. Any goroutine may call its methods.
type Protocol interface {
	// Name returns the protocol's name: the metrics' label intake, and a word of DERIVE_KEYS.
	Name() string

	// Routes returns the paths that belong to the protocol.
	Routes() []Route

	// Open looks at a request before its body is read. It returns the exchange that reads and answers it, or why it is
	// refused.
	Open(r Request) (Exchange, *Refusal)

	// Refuse returns the answer to a refused request, in the form that the protocol's clients expect. It appends the body to
	// dst.
	Refuse(dst []byte, r Request, why *Refusal) Answer
}

// Route is a path and the methods that it takes.
type Route struct {
	// Path may have elements that stand for others: * for any element, as in /*/_bulk, and ** at the end for all that follow.
	// Of several paths that match, those without a * come first, then the protocols' in their order. A path of nothing but *
	// takes its own methods only: to others, what it matches is an unknown path.
	Path    string
	Methods []string // the answer to an unknown path lists the first
	Limit   Limit    // the limit of its bodies
	Keyless []string // the methods for which no key is asked; only for requests whose Exchange is a Shim

	// Label is the metrics' label route, and what the answer to an unknown path lists. It is Path if it is empty. Routes that are
	// other names of one thing share a label.
	Label string
}

// Limit is the setting that limits a route's bodies, after decoding.
type Limit uint8

// The limits. Clients of other protocols drop what is too large, or send it again for ever, so they have a larger one.
const (
	IntakeBodyBytes Limit = iota // INTAKE_BODY_BYTES
	MaxBodyBytes                 // MAX_BODY_BYTES

	Limits // how many there are
)

// Request is what a protocol may know of a request. It is valid until the request has its answer.
type Request struct {
	Method []byte
	Path   []byte // decoded, without the query string
	Query  []byte // the query string
	Header Header
	Plain  bool // Header is known to have none of OptionFields, so that nobody need look for them
}

// Header is a request's header.
type Header interface {
	// Peek returns the first value of a field, nil if there is none. The name is in any case.
	Peek(name string) []byte
}

// Exchange is a protocol's side of one request: it reads the body, and makes the answer. The request's goroutine calls its
// methods. An Exchange that keeps nothing of a request may serve all requests.
type Exchange interface {
	// Decode reads a whole body, whose Content-Encoding is undone, into records. If it returns a refusal, nothing of the body
	// is stored. Single records that can't be taken are noted in records.
	Decode(r Request, body []byte, records *record.List) *Refusal

	// Answer returns the answer that the request gets once its records are confirmed. It appends the body to dst. It is called
	// before the confirm; the answer is thrown away if that does not come.
	Answer(dst []byte, r Request, o Outcome) Answer
}

// Shim is an Exchange for a request that has no records, such as a client's question about the server's version. The body is
// read and thrown away, and Answer gets an Outcome with nothing but Down.
type Shim interface {
	Exchange
	Shim()
}

// Encoded is an Exchange whose bodies have a Content-Encoding that clients leave out.
type Encoded interface {
	Exchange

	// Encoding returns the encoding of a body without Content-Encoding: gzip, zstd, deflate, snappy, or "" for none.
	Encoding() string
}

// Holder is an Exchange that keeps much of a body from Decode until its answer is sent.
type Holder interface {
	Exchange

	// Holds returns about how many bytes it keeps. Decode sets records.Overflow if they are more than records.Limits.TotalBytes.
	Holds() int
}

// Expander is an Exchange whose records may take far more memory than its body. Few of them are decoded at once, however short their bodies are.
type Expander interface {
	Exchange
	Expands()
}

// Keyed is an Exchange whose client says which requests are one that it sends again.
type Keyed interface {
	Exchange

	// Key returns what the client calls the request that Decode has read, "" if it has no name, and when the client says that it was made, in Unix milliseconds, 0 if it does not.
	Key() (id string, at int64)
}

// Named is an Exchange whose client has a name for each record, which stays the same when it sends the record again, among others perhaps.
type Named interface {
	Exchange

	// Names returns the names of the accepted records that were read last, in their order. They are valid as long as what was read.
	Names() []RecordName
}

// RecordName is the name of a record.
type RecordName struct {
	Name string // "" if it has none
	At   int64  // when it happened, in Unix milliseconds; 0 if it does not say
}

// Parts is an Exchange whose body may be taken in parts while it comes, if it is long. Each part is published and confirmed,
// and its memory given back, before more is read. Until the first part it is answered like any Exchange.
type Parts interface {
	Exchange

	// Complete returns how many bytes at the beginning of text are complete records. text begins where a record may.
	Complete(text []byte) int

	// First reports whether text shows that the body can be taken in parts. text is the beginning of the body, as Complete has
	// cut it. If First reports true, records holds the records of text. It uses spare as scratch space.
	First(text []byte, records, spare *record.List) bool

	// Part reads a later part into records. An error ends the upload, and nothing of the part is stored.
	Part(text []byte, records *record.List) *scan.Error

	// AnswerParts returns the answer for a body that was taken in parts. It appends the body to dst. total has the counts and
	// errors of all parts, and no records. stopped is what ended the body early, or nil.
	AnswerParts(dst []byte, r Request, total *record.List, stopped *Refusal) Answer
}

// Outcome is what became of a request's records. It is valid until Answer returns.
type Outcome struct {
	Records *record.List    // what was accepted and rejected, and the verdicts if Decode asked for them
	IDs     []frame.Segment // the ids of the accepted records, in order
	Body    []byte          // the body that Decode was given
	Down    error           // why records can't be taken now; nil except for a Shim
}

// Answer is a whole answer to a request.
type Answer struct {
	Status      int
	ContentType string
	Header      [][2]string // more fields of the header
	Body        []byte
	Stream      io.Reader // replaces Body if that is long and made as it is sent; nil for most
	StreamBytes int       // length of Stream
}

// Refusal is why a request is not taken. A protocol's Refuse makes an answer from it.
type Refusal struct {
	Status int // the HTTP status
	Msg    string
	Body   *scan.Error // what was wrong with the body, nil for other reasons; its Reason is counted
}

func (r *Refusal) Error() string { return r.Msg }

// Refuse returns a refusal with a status of HTTP.
func Refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Msg: fmt.Sprintf(format, args...)}
}
