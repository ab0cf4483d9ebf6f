package protocol

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// Loki is the protocol in which Promtail, Alloy, Fluent Bit and others push log lines to Grafana Loki, as protobuf and as JSON.
//
// Success is 204, also if some records were refused: Loki's answer of 400 would have its clients drop the rest of a batch. An
// error is text.
type Loki struct{}

const lokiBuildInfoPath = "/loki/api/v1/status/buildinfo"

// Name implements Protocol.
func (Loki) Name() string { return "loki" }

// Routes implements Protocol.
func (Loki) Routes() []Route {
	return []Route{
		{Path: "/loki/api/v1/push", Methods: []string{http.MethodPost}},
		{Path: "/api/prom/push", Methods: []string{http.MethodPost}}, // its name in Loki before 1.0
		{Path: lokiBuildInfoPath, Methods: []string{http.MethodGet, http.MethodHead}},
	}
}

// Open implements Protocol.
func (Loki) Open(r Request) (Exchange, *Refusal) {
	if string(r.Path) == lokiBuildInfoPath {
		return lokiBuildInfo{}, nil
	}
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	if isMediaType(r.Header.Peek("Content-Type"), jsonType) {
		return lokiJSON{lokiExchange{asked}}, nil
	}
	return lokiProtobuf{lokiExchange{asked}}, nil
}

// Refuse implements Protocol.
func (Loki) Refuse(dst []byte, _ Request, why *Refusal) Answer {
	status := why.Status
	if status == http.StatusRequestEntityTooLarge {
		status = http.StatusBadRequest // Loki has no 413, and some clients send again for ever what they don't know
	}
	return Answer{Status: status, ContentType: "text/plain; charset=utf-8", Body: append(append(dst, why.Msg...), '\n')}
}

// lokiExchange is what the exchanges of both forms have.
type lokiExchange struct{ ask ask }

// Answer implements Exchange.
func (lokiExchange) Answer([]byte, Request, Outcome) Answer {
	return Answer{Status: http.StatusNoContent}
}

// lokiProtobuf is the Exchange of a push of protobuf.
type lokiProtobuf struct{ lokiExchange }

// Encoding implements Encoded: clients compress with snappy, and say so nowhere.
func (lokiProtobuf) Encoding() string { return "snappy" }

// Decode implements Exchange.
func (e lokiProtobuf) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return e.ask.decode(records, func(records *record.List) *scan.Error {
		d := newLokiDecoder(records, body, e.ask.keepText)
		defer d.free()
		return d.protobuf(stringOf(body))
	})
}

// lokiJSON is the Exchange of a push of JSON.
type lokiJSON struct{ lokiExchange }

// Decode implements Exchange.
func (e lokiJSON) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return e.ask.decode(records, func(records *record.List) *scan.Error {
		d := newLokiDecoder(records, body, e.ask.keepText)
		defer d.free()
		return d.json(body)
	})
}

// lokiBuildInfo answers Grafana, which asks for the version of Loki.
type lokiBuildInfo struct{}

// Shim implements Shim.
func (lokiBuildInfo) Shim() {}

// Decode implements Exchange.
func (lokiBuildInfo) Decode(Request, []byte, *record.List) *Refusal { return nil }

// Answer implements Exchange.
func (lokiBuildInfo) Answer(dst []byte, _ Request, _ Outcome) Answer {
	return inJSON(http.StatusOK, append(dst, `{"version":"3.0.0","revision":"","branch":"","buildUser":"","buildDate":"","goVersion":""}`...))
}

// The sources of a record of Loki.
const (
	lokiMetadata = mapping.First + iota // what Loki calls structured metadata
	lokiTime
	lokiLabels
)

var lokiMapping = mapping.Config{Sources: []mapping.SourceConfig{{Name: "metadata"}, {Name: "loki"}, {Name: "labels"}}}

// The numbers and wire types of the fields of Loki's messages, from pkg/push/push.proto in grafana/loki.
const (
	pushStreams = 1<<3 | wireBytes

	streamLabels  = 1<<3 | wireBytes
	streamEntries = 2<<3 | wireBytes

	entryTime     = 1<<3 | wireBytes
	entryLine     = 2<<3 | wireBytes
	entryMetadata = 3<<3 | wireBytes

	timeSeconds = 1<<3 | wireVarint
	timeNanos   = 2<<3 | wireVarint

	pairName  = 1<<3 | wireBytes
	pairValue = 2<<3 | wireBytes
)

// second is a second in nanoseconds.
const second = 1_000_000_000

// lokiDecoder makes records of a push.
type lokiDecoder struct {
	records *record.List
	m       *mapping.Mapper

	jsonReader
	entryBuf  []byte // strings of the current entry that had escapes
	streamBuf []byte // strings of the current stream's labels that had escapes
}

var lokiDecoders = sync.Pool{New: func() any { return new(lokiDecoder) }}

func newLokiDecoder(records *record.List, body []byte, keepText bool) *lokiDecoder {
	d := lokiDecoders.Get().(*lokiDecoder)
	d.records, d.m = records, mapping.New(records, lokiMapping, keepText)
	d.m.Limit(len(body))
	records.Begin()
	return d
}

// free ends what newLokiDecoder began.
func (d *lokiDecoder) free() {
	d.records.End()
	d.m.Free()
	const most = 64 << 10
	entryBuf, streamBuf, open := d.entryBuf[:0], d.streamBuf[:0], d.open[:0]
	if *d = (lokiDecoder{}); cap(entryBuf) <= most && cap(streamBuf) <= most && cap(open) <= most {
		d.entryBuf, d.streamBuf, d.open = entryBuf, streamBuf, open
	}
	lokiDecoders.Put(d)
}

// protobuf takes the records of a PushRequest.
func (d *lokiDecoder) protobuf(body string) *scan.Error {
	push := wireMessage{s: body}
	for push.next() {
		if push.tag == pushStreams && !d.stream(body, push.text) {
			push.malformed = true
			break
		}
	}
	return push.err("PushRequest")
}

// stream takes the records of a stream. It reports false if that is malformed.
func (d *lokiDecoder) stream(body, s string) bool {
	labels := ""
	stream := wireMessage{s: s}
	for stream.next() { // the labels come first from all encoders
		if stream.tag == streamLabels {
			labels = stream.text
			break
		}
	}
	d.beginStream()
	d.addLabelsOfText(labels)
	d.m.EndShared()
	if stream.malformed {
		return false
	}
	for stream = (wireMessage{s: s}); stream.next(); {
		if stream.tag == streamEntries && !d.entry(stream.text, offsetIn(body, stream.text)) {
			return false
		}
	}
	return !stream.malformed
}

// beginStream begins the labels of a stream.
func (d *lokiDecoder) beginStream() {
	d.streamBuf = d.streamBuf[:0]
	d.m.BeginShared()
}

// entry takes an Entry. at is its offset in the body.
func (d *lokiDecoder) entry(s string, at int) bool {
	d.m.Begin()
	stamp, line := "", ""
	hasMetadata := false
	e := wireMessage{s: s}
	for e.next() {
		switch e.tag {
		case entryTime:
			stamp = e.text
		case entryLine:
			line = e.text
		case entryMetadata:
			hasMetadata = true
		}
	}
	d.m.Message(line)
	if hasMetadata {
		for e := (wireMessage{s: s}); e.next(); {
			if e.tag == entryMetadata && !d.pair(e.text) {
				return false
			}
		}
	}
	var seconds, nanos int64
	t := wireMessage{s: stamp}
	for t.next() {
		switch t.tag {
		case timeSeconds:
			seconds = int64(t.number)
		case timeNanos:
			nanos = int64(int32(uint32(t.number)))
		}
	}
	switch {
	case e.malformed || t.malformed:
		return false
	case seconds == 0 && nanos == 0:
	case seconds <= math.MinInt64/second+3 || seconds >= math.MaxInt64/second-3: // nanos has at most three seconds
		d.m.Int(lokiTime, mapping.TimeField, seconds) // it is no time, but what came
	default:
		d.m.Time(lokiTime, seconds*second+nanos)
	}
	d.m.End(at)
	return true
}

// pair adds a LabelPair.
func (d *lokiDecoder) pair(s string) bool {
	name, value := "", ""
	p := wireMessage{s: s}
	for p.next() {
		switch p.tag {
		case pairName:
			name = p.text
		case pairValue:
			value = p.text
		}
	}
	d.m.String(lokiMetadata, name, value)
	return !p.malformed
}

// addLabelsOfText adds the labels of a stream as text has them: {a="b", c="d"}. Text that can't be read is the field labels.
func (d *lokiDecoder) addLabelsOfText(text string) {
	if !eachLabel(text, func(string, string) {}) {
		d.m.String(lokiLabels, "labels", text)
		return
	}
	eachLabel(text, func(name, value string) { d.m.String(lokiLabels, name, value) })
}

// eachLabel calls label for each label of a stream, and reports whether all could be read. Names and values are as in PromQL: values
// in quotes, in backquotes, or, which is for Go alone, in single ones; names may be in quotes.
func eachLabel(text string, label func(name, value string)) bool {
	rest := trimLeft(text)
	if rest == "" {
		return true
	}
	if rest[0] != '{' {
		return false
	}
	rest = trimLeft(rest[1:])
	for first := true; ; first = false {
		if rest != "" && rest[0] == '}' {
			return trimLeft(rest[1:]) == ""
		}
		if !first {
			if rest == "" || rest[0] != ',' {
				return false
			}
			if rest = trimLeft(rest[1:]); rest != "" && rest[0] == '}' {
				continue // a comma may stand behind the last label
			}
		}
		var name, value string
		ok := true
		if rest != "" && rest[0] == '"' {
			if name, rest, ok = unquoteLabel(rest); !ok {
				return false
			}
		} else {
			end := strings.IndexAny(rest, "= \t\",{}")
			if end <= 0 {
				return false
			}
			name, rest = rest[:end], rest[end:]
		}
		if rest = trimLeft(rest); rest == "" || rest[0] != '=' {
			return false
		}
		if value, rest, ok = unquoteLabel(trimLeft(rest[1:])); !ok {
			return false
		}
		label(name, value)
		rest = trimLeft(rest)
	}
}

func trimLeft(s string) string { return strings.TrimLeft(s, " \t\r\n") }

// unquoteLabel returns what the quoted text at the beginning of s says, and what follows it.
func unquoteLabel(s string) (value, rest string, ok bool) {
	if s == "" {
		return "", "", false
	}
	switch s[0] {
	case '`':
		value, rest, ok = strings.Cut(s[1:], "`")
		return value, rest, ok
	case '"':
	default:
		return "", "", false
	}
	escaped := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			value, rest = s[1:i], s[i+1:]
			if escaped {
				value = unescapeLabel(value)
			}
			return value, rest, true
		}
	}
	return "", "", false
}

// unescapeLabel returns what text says in which backslashes stand for what they do in Go. One that begins no escape stands for itself.
func unescapeLabel(text string) string {
	b := make([]byte, 0, len(text))
	for text != "" {
		if text[0] != '\\' {
			b = append(b, text[0])
			text = text[1:]
			continue
		}
		char, isRune, rest, err := strconv.UnquoteChar(text, '"')
		switch {
		case err != nil:
			b = append(b, '\\')
			rest = text[1:]
		case isRune:
			b = append(b, string(char)...)
		default:
			b = append(b, byte(char))
		}
		text = rest
	}
	return string(b)
}
