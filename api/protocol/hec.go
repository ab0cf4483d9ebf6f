package protocol

import (
	"bytes"
	"math"
	"net/http"
	"strconv"
	"strings"

	"millrace/api/protocol/mapping"
	"millrace/internal/jsontext"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// HEC is Splunk's HTTP Event Collector.
type HEC struct{}

// Name implements Protocol.
func (HEC) Name() string { return "hec" }

// The paths of the HTTP Event Collector. Most may have a version behind them.
const (
	hecPath   = "/services/collector"
	hecEvent  = hecPath + "/event"
	hecRaw    = hecPath + "/raw"
	hecHealth = hecPath + "/health"
	hecAck    = hecPath + "/ack"
	hecFirst  = "/1.0"
)

// Routes implements Protocol.
func (HEC) Routes() []Route {
	// Docker's log driver asks with OPTIONS, and without a key, whether the collector is there. Otherwise no container starts.
	send, options := []string{http.MethodPost, http.MethodOptions}, []string{http.MethodOptions}
	ask := []string{http.MethodGet, http.MethodHead}
	return []Route{
		{Path: hecPath, Methods: send, Keyless: options},
		{Path: hecEvent, Methods: send, Label: hecPath, Keyless: options},
		{Path: hecEvent + hecFirst, Methods: send, Label: hecPath, Keyless: options},
		{Path: hecRaw, Methods: send, Keyless: options},
		{Path: hecRaw + hecFirst, Methods: send, Label: hecRaw, Keyless: options},
		{Path: hecHealth, Methods: ask, Keyless: ask},
		{Path: hecHealth + hecFirst, Methods: ask, Label: hecHealth, Keyless: ask},
		{Path: hecAck, Methods: []string{http.MethodPost}},
	}
}

// Open implements Protocol.
func (HEC) Open(r Request) (Exchange, *Refusal) {
	if string(r.Method) == http.MethodOptions {
		return hecOptions{}, nil
	}
	switch strings.TrimSuffix(string(r.Path), hecFirst) {
	case hecHealth:
		return hecHealthy{}, nil
	case hecAck:
		return hecNoAcks{}, nil
	}
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	records := hecRecords{ask: asked}
	if strings.HasPrefix(string(r.Path), hecRaw) {
		return &hecLines{records}, nil
	}
	return &hecEvents{hecRecords: records}, nil
}

// hecCode is what an answer says, in a number that clients know.
type hecCode int

// The codes of Splunk's documentation, "HTTP Event Collector: possible error codes".
const (
	hecSuccess      hecCode = 0
	hecNoToken      hecCode = 2
	hecNoSplunk     hecCode = 3
	hecInvalidToken hecCode = 4
	hecNoData       hecCode = 5
	hecInvalid      hecCode = 6
	hecInternal     hecCode = 8
	hecBusy         hecCode = 9
	hecNoEvent      hecCode = 12
	hecBlankEvent   hecCode = 13
	hecAckDisabled  hecCode = 14
	hecIsHealthy    hecCode = 17
	hecIsUnhealthy  hecCode = 18
	hecTooLarge     hecCode = 27
)

// hecTexts are the texts that go with the codes.
var hecTexts = map[hecCode]string{
	hecSuccess:      "Success",
	hecNoToken:      "Token is required",
	hecNoSplunk:     "Invalid authorization",
	hecInvalidToken: "Invalid token",
	hecNoData:       "No data",
	hecInvalid:      "Invalid data format",
	hecInternal:     "Internal server error",
	hecBusy:         "Server is busy",
	hecNoEvent:      "Event field is required",
	hecBlankEvent:   "Event field cannot be blank",
	hecAckDisabled:  "ACK is disabled",
	hecIsHealthy:    "HEC is healthy",
	hecIsUnhealthy:  "HEC is unhealthy, queues are full",
}

// appendHEC appends an answer without its closing brace.
func appendHEC(dst []byte, code hecCode, text string) []byte {
	dst = append(dst, `{"text":`...)
	dst = append(dst, quote(text)...)
	dst = append(dst, `,"code":`...)
	return strconv.AppendInt(dst, int64(code), 10)
}

// hecAnswer returns an answer with the text of its code.
func hecAnswer(dst []byte, status int, code hecCode) Answer {
	return inJSON(status, append(appendHEC(dst, code, hecTexts[code]), '}'))
}

// Refuse implements Protocol. Splunk's status for a token that it does not know is 403.
func (HEC) Refuse(dst []byte, r Request, why *Refusal) Answer {
	status := why.Status
	code, text := hecCode(status), why.Msg
	switch {
	case status == http.StatusUnauthorized:
		status, code = hecUnauthorized(r.Header)
		text = hecTexts[code]
	case status == http.StatusForbidden:
		code = hecInvalidToken
	case why.Body != nil && why.Body.Reason == scan.Empty:
		return hecAnswer(dst, status, hecNoData)
	case status == http.StatusBadRequest:
		code = hecInvalid
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return hecAnswer(dst, status, hecBusy)
	case status == http.StatusRequestEntityTooLarge:
		code = hecTooLarge
	case status == http.StatusInternalServerError:
		return hecAnswer(dst, status, hecInternal)
	}
	return inJSON(status, append(appendHEC(dst, code, text), '}'))
}

// hecUnauthorized returns what to tell a client whose key is not known.
func hecUnauthorized(h Header) (status int, code hecCode) {
	authorization := h.Peek("Authorization")
	scheme, _, _ := bytes.Cut(authorization, []byte(" "))
	switch {
	case bytes.EqualFold(scheme, []byte("Splunk")), bytes.EqualFold(scheme, []byte("Basic")), len(authorization) == 0 && len(h.Peek("X-API-Key")) > 0:
		return http.StatusForbidden, hecInvalidToken
	case len(authorization) > 0:
		return http.StatusUnauthorized, hecNoSplunk
	}
	return http.StatusUnauthorized, hecNoToken
}

// hecShim is what the shims have in common.
type hecShim struct{}

// Shim implements Shim.
func (hecShim) Shim() {}

// Decode implements Exchange.
func (hecShim) Decode(Request, []byte, *record.List) *Refusal { return nil }

// hecOptions is the Exchange of the question what may be asked of a path.
type hecOptions struct{ hecShim }

// Answer implements Exchange.
func (hecOptions) Answer(dst []byte, _ Request, _ Outcome) Answer {
	answer := hecAnswer(dst, http.StatusOK, hecSuccess)
	answer.Header = [][2]string{{"Allow", "POST, OPTIONS"}}
	return answer
}

// hecHealthy is the Exchange of the question whether events are taken.
type hecHealthy struct{ hecShim }

// Answer implements Exchange.
func (hecHealthy) Answer(dst []byte, _ Request, o Outcome) Answer {
	if o.Down != nil {
		return hecAnswer(dst, http.StatusServiceUnavailable, hecIsUnhealthy)
	}
	return hecAnswer(dst, http.StatusOK, hecIsHealthy)
}

// hecNoAcks is the Exchange of the question which events are indexed. Clients need not ask, because all that was answered with 200
// is durable.
type hecNoAcks struct{ hecShim }

// Answer implements Exchange.
func (hecNoAcks) Answer(dst []byte, _ Request, _ Outcome) Answer {
	return hecAnswer(dst, http.StatusBadRequest, hecAckDisabled)
}

// The sources of an event's fields, besides its own.
const (
	hecFields   = mapping.First + iota // the envelope's fields
	hecEnvelope                        // what else the envelope says
)

var hecMapping = mapping.Config{Sources: []mapping.SourceConfig{{Name: "splunk", Dotted: true}, {Name: "splunk"}}}

// hecAnswers makes the answer to events and lines.
type hecAnswers struct {
	code   hecCode // of the first event that was refused
	number int     // its number
}

// refused notes that an event was refused.
func (a *hecAnswers) refused(code hecCode, number int) {
	if a.code == hecSuccess {
		a.code, a.number = code, number
	}
}

// Answer implements Exchange. Clients send all of a request again, or drop all, if it is answered with anything but 200. So single
// events that were refused change the answer only if there are no others.
func (a *hecAnswers) Answer(dst []byte, _ Request, o Outcome) Answer {
	if o.Records.Accepted > 0 || a.code == hecSuccess {
		return hecAnswer(dst, http.StatusOK, hecSuccess)
	}
	dst = appendHEC(dst, a.code, hecTexts[a.code])
	dst = append(dst, `,"invalid-event-number":`...)
	dst = strconv.AppendInt(dst, int64(a.number), 10)
	return inJSON(http.StatusBadRequest, append(dst, '}'))
}

// errNoEvents is the fault of a body without events.
var errNoEvents = &scan.Error{Reason: scan.Empty, Msg: "the body holds no events"}

// hecRecords are records that are being made of what was sent.
type hecRecords struct {
	hecAnswers
	ask ask
}

// fill has take fill records, and changes them as the client asks.
func (h *hecRecords) fill(records *record.List, take func(records *record.List) *scan.Error) *Refusal {
	return h.ask.decode(records, func(records *record.List) *scan.Error {
		records.Begin()
		defer records.End()
		return take(records)
	})
}

// hecLines is the Exchange of text, of which each line is an event.
type hecLines struct{ hecRecords }

// Decode implements Exchange. The query string may say where the lines come from.
func (l *hecLines) Decode(r Request, body []byte, records *record.List) *Refusal {
	return l.fill(records, func(records *record.List) *scan.Error {
		m := mapping.New(records, hecMapping, l.ask.keepText)
		defer m.Free()
		shareQuery(m, r.Query, []string{"host", "source", "sourcetype", "index"}, func(name, value string) { m.String(hecEnvelope, name, value) })
		lines := lineReader{rest: body}
		for n := 0; ; n++ {
			line, at := lines.next()
			if line == nil || records.Overflow {
				if n == 0 {
					return errNoEvents
				}
				return nil
			}
			m.Begin()
			m.Message(stringOf(bytes.TrimRight(line, "\r")))
			if !m.End(at) {
				l.refused(hecInvalid, n)
			}
		}
	})
}

// hecEvents is the Exchange of events in their envelopes.
type hecEvents struct {
	hecRecords

	// The current envelope. All values are JSON.
	event, time, fields []byte
	rest                []member

	jsonAdder
}

// jsonAdder adds JSON that a jsonParser has found to records.
type jsonAdder struct {
	buf     []byte    // strings that had to be made; emptied for each record
	scratch scan.Body // values that are looked at alone
}

// Decode implements Exchange.
func (e *hecEvents) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return e.fill(records, func(records *record.List) *scan.Error { return e.decode(body, records) })
}

// decode takes the envelopes of a body. They follow one another, with or without white space between them, or are in arrays. Where
// one can't be read, its line is lost, because it is not certain where the next one begins. From then on envelopes have a line each.
func (e *hecEvents) decode(body []byte, records *record.List) *scan.Error {
	m := mapping.New(records, hecMapping, e.ask.keepText)
	defer m.Free()
	p := jsonParser{src: body}
	visit := e.visit
	for n := 0; !records.Overflow; {
		if !p.skipBetween() {
			if len(p.src) < len(body) {
				p.src = body[:lineEnd(body, p.at+1)]
				continue
			}
			if n == 0 {
				return errNoEvents
			}
			return nil
		}
		at := p.at
		e.event, e.time, e.fields, e.rest, e.buf = nil, nil, nil, e.rest[:0], e.buf[:0]
		ok := p.object(visit)
		switch {
		case !ok:
			records.Refuse(scan.Syntax, at)
			e.refused(hecInvalid, n)
			p.at = lineEnd(body, at)
			p.src = body[:p.at]
		case len(e.event) == 0 || string(e.event) == "null":
			records.Refuse(scan.Empty, at)
			e.refused(hecNoEvent, n)
		case string(e.event) == `""`:
			records.Refuse(scan.Empty, at)
			e.refused(hecBlankEvent, n)
		case !e.take(m, records, at):
			e.refused(hecInvalid, n)
		}
		n++
	}
	return nil
}

// skipBetween goes over what may be between envelopes. It reports whether more follows.
func (p *jsonParser) skipBetween() bool {
	for p.at < len(p.src) {
		switch p.src[p.at] {
		case ' ', '\t', '\r', '\n', ',', '[', ']':
			p.at++
		default:
			return true
		}
	}
	return false
}

// lineEnd returns the offset of the first newline from i on, or len(b).
func lineEnd(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	if n := bytes.IndexByte(b[i:], '\n'); n >= 0 {
		return i + n
	}
	return len(b)
}

// visit notes a member of the current envelope. Of two with one key the last counts.
func (e *hecEvents) visit(key, value []byte) bool {
	switch string(key) {
	case `"event"`:
		e.event = value
	case `"time"`:
		e.time = value
	case `"fields"`:
		e.fields = value
	default:
		e.rest = append(e.rest, member{key, value})
	}
	return len(e.rest) <= mapping.MostMembers
}

// take makes the record of the current envelope, and reports whether it was accepted.
func (e *hecEvents) take(m *mapping.Mapper, records *record.List, at int) bool {
	m.Begin()
	repaired := scan.NumReasons
	switch e.event[0] {
	case '{':
		var ok bool
		if repaired, ok = e.own(m, records.Limits); !ok {
			records.Refuse(scan.Syntax, at)
			return false
		}
	case '"':
		m.Message(e.text(e.event))
	default:
		e.add(m, mapping.Own, mapping.MessageField, e.event)
	}
	if len(e.fields) > 0 && e.fields[0] == '{' {
		p := jsonParser{src: e.fields}
		p.object(func(key, value []byte) bool {
			e.add(m, hecFields, e.text(key), value)
			return true
		})
	} else if len(e.fields) > 0 && string(e.fields) != "null" {
		e.add(m, hecFields, "fields", e.fields)
	}
	e.addTime(m)
	for _, one := range e.rest {
		if string(one.value) != "null" {
			e.add(m, hecEnvelope, e.text(one.key), one.value)
		}
	}
	before := records.Repaired
	ok := m.End(at)
	if ok && repaired < scan.NumReasons && records.Repaired == before {
		records.CountRepaired(repaired)
	}
	return ok
}

// own adds the fields of an event that is an object. It reports false if that is no JSON. If jsonb would not take it, and it had to
// be repaired to be JSON, own returns for what.
func (e *hecEvents) own(m *mapping.Mapper, limits scan.Limits) (repaired scan.Reason, ok bool) {
	repaired = scan.NumReasons
	if m.Fields(stringOf(e.event)) {
		return repaired, true
	}
	// The event holds something like NaN, or no text may be looked through, of which this is none.
	b := &e.scratch
	b.Begin(limits)
	accepted := b.Add(e.event, 0)
	b.End()
	if !accepted {
		return repaired, false
	}
	for reason := range scan.NumReasons {
		if b.RepairedBy(reason) > 0 {
			repaired = reason
		}
	}
	object := bytes.Clone(b.NDJSON) // it is needed until the record's end, and b before that
	if m.Fields(stringOf(object)) {
		return repaired, true
	}
	p := jsonParser{src: object}
	return repaired, p.object(func(key, value []byte) bool {
		e.add(m, mapping.Own, e.text(key), value)
		return true
	})
}

// addTime adds the time of the current envelope. One that is no number stays what it is, for whoever can read it.
func (e *hecEvents) addTime(m *mapping.Mapper) {
	text := e.time
	switch {
	case len(text) == 0 || string(text) == "null":
		return
	case text[0] == '"':
		text = text[1 : len(text)-1]
	}
	nanos, ok := unixNanos(text)
	switch {
	case !ok:
		e.add(m, hecEnvelope, mapping.TimeField, e.time)
	case nanos > 0:
		m.Time(hecEnvelope, nanos)
	}
}

// add adds a value, which is JSON as far as the parser sees. What is none after all becomes text.
func (e *jsonAdder) add(m *mapping.Mapper, s mapping.Source, key string, value []byte) {
	switch c := value[0]; {
	case c == '"':
		m.String(s, key, e.text(value))
		return
	case c == '{', c == '[':
	case string(value) == "true", string(value) == "false":
		m.Bool(s, key, c == 't')
		return
	case string(value) == "null":
		m.Null(s, key)
		return
	case len(value) <= 18:
		if n, err := strconv.ParseInt(stringOf(value), 10, 64); err == nil && strconv.FormatInt(n, 10) == stringOf(value) {
			m.Int(s, key, n)
			return
		}
	}
	b := &e.scratch
	b.Begin(scan.Limits{RecordBytes: scan.MaxRecordBytes, PieceBytes: scan.MaxRecordBytes})
	b.Add(value, 0)
	b.End()
	if b.RejectedBy[scan.Syntax] > 0 {
		m.String(s, key, stringOf(value))
		return
	}
	m.JSON(s, key, stringOf(value))
}

// text returns what a JSON string says. What jsonb can't hold in a string is left to who writes it: half a surrogate pair becomes a
// byte that is not UTF-8.
func (e *jsonAdder) text(quoted []byte) string {
	inner := quoted[1 : len(quoted)-1]
	slash := bytes.IndexByte(inner, '\\')
	if slash < 0 {
		return stringOf(inner)
	}
	from := len(e.buf)
	e.buf = append(e.buf, inner[:slash]...)
	e.buf = jsontext.AppendUnescaped(e.buf, inner[slash:])
	return stringOf(e.buf[from:])
}

// What a number of a time counts is told by its size, as package eventtime does: seconds below the first of these, then
// milliseconds, microseconds, and nanoseconds.
const (
	unixSeconds = 1e11
	unixMillis  = 1e14
	unixMicros  = 1e17
)

// unixNanos returns the nanoseconds since 1970 that decimal digits say, perhaps with a fraction. It reports false for anything
// else, and for times that nanoseconds can't count.
func unixNanos(s []byte) (nanos int64, ok bool) {
	whole, fraction, isFraction := bytes.Cut(s, []byte("."))
	if len(whole) == 0 || len(whole) > 19 || isFraction && len(fraction) == 0 {
		return 0, false
	}
	var count uint64
	for _, c := range whole {
		if c-'0' > 9 {
			return 0, false
		}
		count = 10*count + uint64(c-'0')
	}
	unit, digits := uint64(1), 0
	switch {
	case count < unixSeconds:
		unit, digits = 1e9, 9
	case count < unixMillis:
		unit, digits = 1e6, 6
	case count < unixMicros:
		unit, digits = 1e3, 3
	}
	if count >= math.MaxInt64/unit {
		return 0, false
	}
	count *= unit
	for i, c := range fraction {
		if c-'0' > 9 {
			return 0, false
		}
		if i < digits {
			unit /= 10
			count += unit * uint64(c-'0')
		}
	}
	return int64(count), true
}
