package protocol

import (
	"encoding/base64"
	"math"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// The sources of a record of OTLP.
const (
	otlpAttributes = mapping.First + iota
	otlpFields     // what the protocol itself has a place for
	otlpResource
	otlpScope
)

var otlpMapping = mapping.Config{
	Sources: []mapping.SourceConfig{
		{Name: "attributes", Dotted: true},
		{Name: "otlp", Dotted: true},
		{Name: "resource", Dotted: true},
		{Name: "scope", Dotted: true},
	},
	Encoder: otlpEncoder{},
}

// The numbers and wire types of the fields of OTLP's messages, from opentelemetry-proto, version 1.10.
const (
	requestResourceLogs = 1<<3 | wireBytes

	resourceLogsResource  = 1<<3 | wireBytes
	resourceLogsScopeLogs = 2<<3 | wireBytes

	resourceAttributes = 1<<3 | wireBytes
	resourceDropped    = 2<<3 | wireVarint

	scopeLogsScope   = 1<<3 | wireBytes
	scopeLogsRecords = 2<<3 | wireBytes

	scopeName       = 1<<3 | wireBytes
	scopeVersion    = 2<<3 | wireBytes
	scopeAttributes = 3<<3 | wireBytes
	scopeDropped    = 4<<3 | wireVarint

	logTime         = 1<<3 | wireFixed64
	logSeverity     = 2<<3 | wireVarint
	logSeverityText = 3<<3 | wireBytes
	logBody         = 5<<3 | wireBytes
	logAttributes   = 6<<3 | wireBytes
	logDropped      = 7<<3 | wireVarint
	logFlags        = 8<<3 | wireFixed32
	logTraceID      = 9<<3 | wireBytes
	logSpanID       = 10<<3 | wireBytes
	logObserved     = 11<<3 | wireFixed64
	logEventName    = 12<<3 | wireBytes

	anyString = 1<<3 | wireBytes
	anyBool   = 2<<3 | wireVarint
	anyInt    = 3<<3 | wireVarint
	anyDouble = 4<<3 | wireFixed64
	anyArray  = 5<<3 | wireBytes
	anyList   = 6<<3 | wireBytes // of keys and values
	anyBytes  = 7<<3 | wireBytes

	arrayValue = 1<<3 | wireBytes
	listMember = 1<<3 | wireBytes

	memberKey   = 1<<3 | wireBytes
	memberValue = 2<<3 | wireBytes
)

// mostOTLPNested is how deep a value may be nested. What is deeper than scan.MaxDepth becomes text; this bounds the stack.
const mostOTLPNested = 4 * scan.MaxDepth

// otlpDecoder makes records of a request.
type otlpDecoder struct {
	body    string // the whole request
	records *record.List
	m       *mapping.Mapper

	// The current resource.
	attributes    []string // messages KeyValue; no more of them than a record may have and one
	dropped       uint32
	attributesBuf [32]string
}

// decodeOTLP takes the records of an ExportLogsServiceRequest. A malformed one is refused whole.
func decodeOTLP(body string, records *record.List, keepText bool) *scan.Error {
	d := otlpDecoder{body: body, records: records, m: mapping.New(records, otlpMapping, keepText)}
	defer d.m.Free()
	d.m.Limit(len(body))
	records.Begin()
	defer records.End()
	request := wireMessage{s: body}
	for request.next() {
		if request.tag == requestResourceLogs && !d.resourceLogs(request.text) {
			request.malformed = true
			break
		}
	}
	return request.err("ExportLogsServiceRequest")
}

// resourceLogs takes the records of one resource, which may stand behind them. It reports false if they are malformed.
func (d *otlpDecoder) resourceLogs(s string) bool {
	d.attributes, d.dropped = d.attributesBuf[:0], 0
	logs := wireMessage{s: s}
	for logs.next() {
		if logs.tag == resourceLogsResource && !d.resource(logs.text) {
			return false
		}
	}
	for logs = (wireMessage{s: s}); logs.next(); {
		if logs.tag == resourceLogsScopeLogs && !d.scopeLogs(logs.text) {
			return false
		}
	}
	return !logs.malformed
}

// resource notes what a Resource has. If there are several, all of them count.
func (d *otlpDecoder) resource(s string) bool {
	r := wireMessage{s: s}
	for r.next() {
		switch r.tag {
		case resourceAttributes:
			if len(d.attributes) <= mapping.MostMembers {
				d.attributes = append(d.attributes, r.text)
			}
		case resourceDropped:
			d.dropped = uint32(r.number)
		}
	}
	return !r.malformed
}

// scopeLogs takes the records of one scope.
func (d *otlpDecoder) scopeLogs(s string) bool {
	if !hasField(s, scopeLogsRecords) {
		return isWire(s)
	}
	d.m.BeginShared()
	if !d.m.Full() && !d.addResource() { // if it is full, all of the scope's records are refused
		return false
	}
	logs := wireMessage{s: s}
	for logs.next() {
		if logs.tag == scopeLogsScope && !d.scope(logs.text) {
			return false
		}
	}
	d.m.EndShared()
	if logs.malformed {
		return false
	}
	for logs = (wireMessage{s: s}); logs.next(); {
		if logs.tag == scopeLogsRecords && !d.record(logs.text) {
			return false
		}
	}
	return true
}

// addResource adds the current resource. It reports false if one of its attributes is malformed, or nested too deep.
func (d *otlpDecoder) addResource() bool {
	for _, attribute := range d.attributes {
		if d.attribute(otlpResource, attribute) != otlpFine {
			return false
		}
	}
	if d.dropped > 0 {
		d.m.Uint(otlpResource, "resource.dropped_attributes_count", uint64(d.dropped))
	}
	return true
}

// scope adds what an InstrumentationScope has.
func (d *otlpDecoder) scope(s string) bool {
	c := wireMessage{s: s}
	hasAttributes := false
	for c.next() {
		switch c.tag {
		case scopeName:
			if c.text != "" {
				d.m.String(otlpScope, "scope.name", c.text)
			}
		case scopeVersion:
			if c.text != "" {
				d.m.String(otlpScope, "scope.version", c.text)
			}
		case scopeAttributes:
			if checkMember(c.text, 0) != otlpFine {
				return false
			}
			hasAttributes = true
		case scopeDropped:
			if n := uint32(c.number); n > 0 {
				d.m.Uint(otlpScope, "scope.dropped_attributes_count", uint64(n))
			}
		}
	}
	if hasAttributes {
		d.m.Encoded(otlpScope, "scope.attributes", s, formScopeAttributes)
	}
	return !c.malformed
}

// logFieldsOf are the fields of a LogRecord that are needed once all of them are known.
type logFieldsOf struct {
	time, observed  uint64
	severity        int32
	severityText    string
	flags           uint32
	dropped         uint32
	traceID, spanID string
	eventName       string
}

// record takes a LogRecord. It reports false if that is malformed.
func (d *otlpDecoder) record(s string) bool {
	if d.m.Full() {
		d.records.Refuse(scan.TooLarge, d.offset(s))
		return true
	}
	d.m.Begin()
	var f logFieldsOf
	r := wireMessage{s: s}
	state := otlpFine
	hasBody, hasAttributes, hasOrder := false, false, true
	for r.next() {
		switch r.tag {
		case logTime:
			f.time = r.number
		case logSeverity:
			f.severity = int32(uint32(r.number))
		case logSeverityText:
			f.severityText = r.text
		case logBody:
			// The body has more priority than the attributes, so it must be added first. It comes first from all encoders.
			if hasBody || hasAttributes {
				hasOrder = false
				break
			}
			hasBody = true
			state = max(state, d.addBody(r.text))
		case logAttributes:
			hasAttributes = true
			state = max(state, d.attribute(otlpAttributes, r.text))
		case logDropped:
			f.dropped = uint32(r.number)
		case logFlags:
			f.flags = uint32(r.number)
		case logTraceID:
			f.traceID = r.text
		case logSpanID:
			f.spanID = r.text
		case logObserved:
			f.observed = r.number
		case logEventName:
			f.eventName = r.text
		}
	}
	if !hasOrder && !r.malformed && state != otlpMalformed {
		state = d.addInOrder(s)
	}
	switch {
	case r.malformed || state == otlpMalformed:
		return false
	case state == otlpTooDeep:
		d.records.Refuse(scan.Depth, d.offset(s))
		return true
	}
	d.addFields(&f)
	d.m.End(d.offset(s))
	return true
}

// offset returns where in the body a part of it begins.
func (d *otlpDecoder) offset(part string) int { return offsetIn(d.body, part) }

// addInOrder begins the record again, and adds the last of its bodies, then its attributes.
func (d *otlpDecoder) addInOrder(s string) otlpState {
	d.m.Begin()
	body := ""
	r := wireMessage{s: s}
	for r.next() {
		if r.tag == logBody {
			body = r.text
		}
	}
	state := d.addBody(body)
	for r = (wireMessage{s: s}); r.next(); {
		if r.tag == logAttributes {
			state = max(state, d.attribute(otlpAttributes, r.text))
		}
	}
	return state
}

// addFields adds what a LogRecord has beside its body and attributes.
func (d *otlpDecoder) addFields(f *logFieldsOf) {
	m := d.m
	if at := f.time; at != 0 {
		d.addTime(mapping.TimeField, at)
		if f.observed != 0 && difference(at, f.observed) >= 1e9 {
			d.addTime("observed_time", f.observed)
		}
	} else if f.observed != 0 {
		d.addTime(mapping.TimeField, f.observed)
	}
	if f.severityText != "" {
		m.Level(otlpFields, f.severityText)
	} else if level := mapping.LevelOfOTel(int64(f.severity)); level != "" {
		m.String(otlpFields, mapping.LevelField, level)
	}
	if f.severity != 0 {
		m.Int(otlpFields, "severity_number", int64(f.severity))
	}
	hasTrace := len(f.traceID) == 16 && !isZero(f.traceID)
	if hasTrace {
		m.Hex(otlpFields, mapping.TraceField, f.traceID)
	}
	if len(f.spanID) == 8 && !isZero(f.spanID) {
		m.Hex(otlpFields, mapping.SpanField, f.spanID)
	}
	if flags := byte(f.flags); flags != 0 || hasTrace {
		m.HexByte(otlpFields, "trace_flags", flags)
	}
	if f.eventName != "" {
		m.String(otlpFields, "event_name", f.eventName)
	}
	if f.dropped > 0 {
		m.Uint(otlpFields, "dropped_attributes_count", uint64(f.dropped))
	}
}

// addTime adds a time in nanoseconds since 1970. One after the year 2262 stays a number.
func (d *otlpDecoder) addTime(key string, nanos uint64) {
	switch {
	case nanos > math.MaxInt64:
		d.m.Uint(otlpFields, key, nanos)
	case key == mapping.TimeField:
		d.m.Time(otlpFields, int64(nanos))
	default:
		d.m.Stamp(otlpFields, key, int64(nanos))
	}
}

func difference(a, b uint64) uint64 {
	if a < b {
		return b - a
	}
	return a - b
}

func isZero(s string) bool {
	for i := range len(s) {
		if s[i] != 0 {
			return false
		}
	}
	return true
}

// otlpState is what was found of a value.
type otlpState uint8

const (
	otlpFine otlpState = iota
	otlpTooDeep
	otlpMalformed
)

// addBody adds the body of a record: its members, its message, or, if it is of another kind, the field body.
func (d *otlpDecoder) addBody(s string) otlpState {
	v, ok := readAny(s)
	switch {
	case !ok:
		return otlpMalformed
	case v.tag == anyString:
		d.m.Message(v.text)
		return otlpFine
	case v.tag == 0:
		return otlpFine
	case v.tag != anyList:
		return d.addAny(mapping.Own, "body", v)
	}
	if state := checkAny(v, 0); state != otlpFine {
		return state
	}
	source := mapping.Own
	if text, ok := logOfList(v.text); ok && d.m.Fields(text) {
		source = mapping.Outer
	}
	for list := (wireMessage{s: v.text}); list.next(); {
		if list.tag != listMember {
			continue
		}
		key, value, _ := readMember(list.text)
		if source == mapping.Own || key != mapping.LogField {
			d.addAny(source, key, value)
		}
	}
	return otlpFine
}

// logOfList returns the string log of a list of members.
func logOfList(s string) (text string, ok bool) {
	for list := (wireMessage{s: s}); list.next(); {
		if list.tag == listMember {
			if key, value, _ := readMember(list.text); key == mapping.LogField {
				text, ok = value.text, value.tag == anyString
			}
		}
	}
	return text, ok
}

// attribute adds a KeyValue.
func (d *otlpDecoder) attribute(source mapping.Source, s string) otlpState {
	key, value, ok := readMember(s)
	if !ok {
		return otlpMalformed
	}
	return d.addAny(source, key, value)
}

// addAny adds a value.
func (d *otlpDecoder) addAny(source mapping.Source, key string, v anyValue) otlpState {
	switch v.tag {
	case anyString:
		d.m.String(source, key, v.text)
	case anyInt:
		d.m.Int(source, key, int64(v.number))
	case anyDouble:
		d.m.Float(source, key, math.Float64frombits(v.number))
	case anyBool:
		d.m.Bool(source, key, v.number != 0)
	case anyBytes:
		d.m.Base64(source, key, v.text)
	case anyArray, anyList:
		if state := checkAny(v, 0); state != otlpFine {
			return state
		}
		d.m.Encoded(source, key, v.text, v.tag)
	default:
		d.m.Null(source, key)
	}
	return otlpFine
}

// anyValue is the value that an AnyValue has: that of its last known field. If it has none, its tag is 0.
type anyValue struct {
	tag    uint64
	number uint64
	text   string
}

// readAny reads an AnyValue. It looks at its own fields alone.
func readAny(s string) (v anyValue, ok bool) {
	m := wireMessage{s: s}
	for m.next() {
		switch m.tag {
		case anyString, anyArray, anyList, anyBytes:
			v = anyValue{tag: m.tag, text: m.text}
		case anyBool, anyInt, anyDouble:
			v = anyValue{tag: m.tag, number: m.number}
		}
	}
	return v, !m.malformed
}

// readMember reads a KeyValue.
func readMember(s string) (key string, v anyValue, ok bool) {
	ok = true
	m := wireMessage{s: s}
	for m.next() {
		switch m.tag {
		case memberKey:
			key = m.text
		case memberValue:
			if v, ok = readAny(m.text); !ok {
				return key, v, false
			}
		}
	}
	return key, v, !m.malformed
}

// checkAny checks the values in an array or a list. depth is how many of these are around it.
func checkAny(v anyValue, depth int) otlpState {
	if v.tag != anyArray && v.tag != anyList {
		return otlpFine
	}
	if depth == mostOTLPNested {
		return otlpTooDeep
	}
	state := otlpFine
	m := wireMessage{s: v.text}
	for m.next() && state != otlpMalformed {
		switch {
		case v.tag == anyArray && m.tag == arrayValue:
			element, ok := readAny(m.text)
			if !ok {
				return otlpMalformed
			}
			state = max(state, checkAny(element, depth+1))
		case v.tag == anyList && m.tag == listMember:
			state = max(state, checkMember(m.text, depth+1))
		}
	}
	if m.malformed {
		return otlpMalformed
	}
	return state
}

// checkMember checks a KeyValue.
func checkMember(s string, depth int) otlpState {
	_, value, ok := readMember(s)
	if !ok {
		return otlpMalformed
	}
	return checkAny(value, depth)
}

// formScopeAttributes is the form of an InstrumentationScope whose attributes are a value. The other forms are tags.
const formScopeAttributes = 0

// otlpEncoder writes values that were checked.
type otlpEncoder struct{}

// Encode implements mapping.Encoder.
func (otlpEncoder) Encode(w *record.Writer, key, value string, form uint64) {
	if form == formScopeAttributes {
		w.Object(key, func(w *record.Writer) { writeMembers(w, value, scopeAttributes) })
		return
	}
	writeAny(w, key, anyValue{tag: form, text: value})
}

// writeMembers writes the members that the fields of a message with a tag are.
func writeMembers(w *record.Writer, message string, tag uint64) {
	for m := (wireMessage{s: message}); m.next(); {
		if m.tag == tag {
			key, value, _ := readMember(m.text)
			writeAny(w, key, value)
		}
	}
}

// writeAny writes a member.
func writeAny(w *record.Writer, key string, v anyValue) {
	switch v.tag {
	case anyString:
		w.String(key, v.text)
	case anyInt:
		w.Int(key, int64(v.number))
	case anyDouble:
		w.Float(key, math.Float64frombits(v.number))
	case anyBool:
		w.Bool(key, v.number != 0)
	case anyBytes:
		w.String(key, base64.StdEncoding.EncodeToString(bytesOf(v.text)))
	case anyArray:
		w.Array(key, func(a record.Elements) { writeElements(a, v.text) })
	case anyList:
		w.Object(key, func(w *record.Writer) { writeMembers(w, v.text, listMember) })
	default:
		w.Null(key)
	}
}

// writeElements writes the elements of an ArrayValue.
func writeElements(a record.Elements, array string) {
	for m := (wireMessage{s: array}); m.next(); {
		if m.tag != arrayValue {
			continue
		}
		v, _ := readAny(m.text)
		switch v.tag {
		case anyString:
			a.String(v.text)
		case anyInt:
			a.Int(int64(v.number))
		case anyDouble:
			a.Float(math.Float64frombits(v.number))
		case anyBool:
			a.Bool(v.number != 0)
		case anyBytes:
			a.String(base64.StdEncoding.EncodeToString(bytesOf(v.text)))
		case anyArray:
			a.Array(func(a record.Elements) { writeElements(a, v.text) })
		case anyList:
			a.Object(func(w *record.Writer) { writeMembers(w, v.text, listMember) })
		default:
			a.Null()
		}
	}
}
