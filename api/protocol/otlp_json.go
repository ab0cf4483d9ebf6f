package protocol

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"sync"

	"millrace/internal/jsontext"
	"millrace/internal/scan"
)

// JSON of OTLP is turned into protobuf, which is then decoded. So both make the same records.

// otlpKind is how a field of OTLP is written in JSON.
type otlpKind uint8

const (
	jsonText     otlpKind = iota
	jsonHex               // bytes, as hexadecimal digits
	jsonMessage           // an object
	jsonMessages          // an array of objects
	jsonFixed64           // a number that is not negative, often in a string
	jsonFixed32
	jsonUint
	jsonSeverity

	// The kinds of an AnyValue. What can't be taken in the form of a field stays text.
	jsonBool
	jsonInt
	jsonDouble
	jsonBase64
)

// otlpField is a field of a message: its name in JSON and its number.
type otlpField struct {
	name   string
	number uint64
	kind   otlpKind
	of     *otlpMessage // for messages
}

// otlpMessage is a message of OTLP.
type otlpMessage struct {
	fields []otlpField
	nests  bool // it is an AnyValue, in which others may be
}

// The messages, from opentelemetry-proto, version 1.10.
var (
	otlpAny     = &otlpMessage{nests: true}
	otlpMembers = []otlpField{{"key", 1, jsonText, nil}, {"value", 2, jsonMessage, otlpAny}}
	otlpMember  = &otlpMessage{fields: otlpMembers}

	otlpRequest = &otlpMessage{fields: []otlpField{{"resourceLogs", 1, jsonMessages, &otlpMessage{fields: []otlpField{
		{"resource", 1, jsonMessage, &otlpMessage{fields: []otlpField{
			{"attributes", 1, jsonMessages, otlpMember},
			{"droppedAttributesCount", 2, jsonUint, nil},
		}}},
		{"scopeLogs", 2, jsonMessages, &otlpMessage{fields: []otlpField{
			{"scope", 1, jsonMessage, &otlpMessage{fields: []otlpField{
				{"name", 1, jsonText, nil},
				{"version", 2, jsonText, nil},
				{"attributes", 3, jsonMessages, otlpMember},
				{"droppedAttributesCount", 4, jsonUint, nil},
			}}},
			{"logRecords", 2, jsonMessages, &otlpMessage{fields: []otlpField{
				{"timeUnixNano", 1, jsonFixed64, nil},
				{"observedTimeUnixNano", 11, jsonFixed64, nil},
				{"severityNumber", 2, jsonSeverity, nil},
				{"severityText", 3, jsonText, nil},
				{"body", 5, jsonMessage, otlpAny},
				{"attributes", 6, jsonMessages, otlpMember},
				{"droppedAttributesCount", 7, jsonUint, nil},
				{"flags", 8, jsonFixed32, nil},
				{"traceId", 9, jsonHex, nil},
				{"spanId", 10, jsonHex, nil},
				{"eventName", 12, jsonText, nil},
			}}},
		}}},
	}}}}}
)

func init() {
	otlpAny.fields = []otlpField{
		{"stringValue", 1, jsonText, nil},
		{"boolValue", 2, jsonBool, nil},
		{"intValue", 3, jsonInt, nil},
		{"doubleValue", 4, jsonDouble, nil},
		{"arrayValue", 5, jsonMessage, &otlpMessage{fields: []otlpField{{"values", 1, jsonMessages, otlpAny}}}},
		{"kvlistValue", 6, jsonMessage, &otlpMessage{fields: []otlpField{{"values", 1, jsonMessages, otlpMember}}}},
		{"bytesValue", 7, jsonBase64, nil},
	}
}

// wirePool holds the memory of requests that were turned into protobuf.
var wirePool = sync.Pool{New: func() any { return new([]byte) }}

// putWire gives memory back to the pool, unless it is too large to keep.
func putWire(b *[]byte) {
	if cap(*b) <= 1<<20 {
		wirePool.Put(b)
	}
}

// otlpTranslator writes JSON as protobuf.
type otlpTranslator struct {
	jsonReader
	out   []byte
	depth int // how many AnyValues are around the current field
}

// otlpFromJSON writes a request in JSON to wire as protobuf.
func otlpFromJSON(wire *[]byte, body []byte) *scan.Error {
	t := otlpTranslator{jsonReader: jsonReader{b: SkipBOM(body)}, out: (*wire)[:0]}
	switch t.peek() {
	case 0:
		if t.i >= len(t.b) {
			break // a request of nothing
		}
		t.fail("'{'")
	case '[':
		t.elements(func() { t.fail("']'") }) // some clients send [] for nothing
	default:
		t.message(otlpRequest)
	}
	t.end()
	*wire = t.out
	return t.err
}

// message writes the fields of the object that is next.
func (t *otlpTranslator) message(m *otlpMessage) {
	if m.nests {
		if t.depth > mostOTLPNested {
			t.skip() // the decoder refuses the record, because what is around it is nested too deep already
			return
		}
		t.depth++
		defer func() { t.depth-- }()
	}
	t.members(func(key []byte) {
		for i := range m.fields {
			if f := &m.fields[i]; f.name == string(key) {
				t.field(f)
				return
			}
		}
		t.skip()
	})
}

// field writes the field whose value is next. null is as if the field were not there.
func (t *otlpTranslator) field(f *otlpField) {
	if f.kind != jsonMessages && t.null() {
		return
	}
	switch f.kind {
	case jsonMessage:
		at := t.begin(f.number)
		t.message(f.of)
		t.finish(at)
	case jsonMessages:
		t.elements(func() {
			at := t.begin(f.number)
			t.message(f.of)
			t.finish(at)
		})
	case jsonText:
		raw, escaped := t.text()
		t.appendText(f.number, raw, escaped)
	default:
		value, isString := t.scalar()
		if t.err == nil {
			if !isString && !isJSONWord(value) {
				t.i -= len(value)
				t.fail("a value")
				return
			}
			t.scalarField(f, value)
		}
	}
}

// lengthBytes is how many bytes the length of a message takes that is not known yet.
const lengthBytes = 5

// begin begins a message. finish must be called with what it returns.
func (t *otlpTranslator) begin(field uint64) (at int) {
	t.out = appendVarint(t.out, wireTag(field, wireBytes))
	t.out = append(t.out, make([]byte, lengthBytes)...)
	return len(t.out)
}

// finish ends the message that began at an offset. Its length is written in more bytes than it may need.
func (t *otlpTranslator) finish(at int) {
	n := len(t.out) - at
	b := t.out[at-lengthBytes : at]
	for i := range b {
		b[i] = byte(n>>(7*i))&0x7f | 0x80
	}
	b[lengthBytes-1] &^= 0x80
}

// appendText writes a field that is text.
func (t *otlpTranslator) appendText(field uint64, raw []byte, escaped bool) {
	if !escaped {
		t.out = appendWireText(t.out, field, raw)
		return
	}
	at := t.begin(field)
	t.out = jsontext.AppendUnescaped(t.out, raw)
	t.finish(at)
}

// scalarField writes a field whose value is a string, a number or a literal.
func (t *otlpTranslator) scalarField(f *otlpField, value []byte) {
	text := stringOf(value)
	switch f.kind {
	case jsonHex:
		t.out = appendHex(t.out, f.number, value)
	case jsonFixed64:
		t.out = appendVarint(t.out, wireTag(f.number, wireFixed64))
		t.out = binary.LittleEndian.AppendUint64(t.out, parseUint(text))
	case jsonFixed32:
		t.out = appendVarint(t.out, wireTag(f.number, wireFixed32))
		t.out = binary.LittleEndian.AppendUint32(t.out, uint32(parseUint(text)))
	case jsonUint:
		t.out = appendWireInt(t.out, f.number, parseUint(text))
	case jsonSeverity:
		t.out = appendWireInt(t.out, f.number, parseSeverity(text))
	case jsonBool:
		if text != "true" && text != "false" {
			t.out = appendWireText(t.out, 1, text)
			break
		}
		t.out = appendVarint(t.out, wireTag(f.number, wireVarint))
		t.out = append(t.out, byte(len("false")-len(text)))
	case jsonInt:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.out = appendWireText(t.out, 1, text)
			break
		}
		t.out = appendVarint(appendVarint(t.out, wireTag(f.number, wireVarint)), uint64(n))
	case jsonDouble:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.out = appendWireText(t.out, 1, text)
			break
		}
		t.out = appendVarint(t.out, wireTag(f.number, wireFixed64))
		t.out = binary.LittleEndian.AppendUint64(t.out, math.Float64bits(n))
	case jsonBase64:
		t.appendBase64(f.number, text)
	}
}

// appendHex writes a field that hexadecimal digits say. If they say nothing, the field is left out.
func appendHex(b []byte, field uint64, digits []byte) []byte {
	if len(digits)%2 != 0 {
		return b
	}
	for _, c := range digits {
		if jsontext.Unhex(c) < 0 {
			return b
		}
	}
	b = appendVarint(b, wireTag(field, wireBytes))
	b = appendVarint(b, uint64(len(digits)/2))
	for i := 0; i < len(digits); i += 2 {
		b = append(b, byte(jsontext.Unhex(digits[i])<<4|jsontext.Unhex(digits[i+1])))
	}
	return b
}

// appendBase64 writes a field that is in base64, of the standard's letters or of those for URLs, with or without padding.
func (t *otlpTranslator) appendBase64(field uint64, text string) {
	encoding := base64.RawStdEncoding
	if strings.ContainsAny(text, "-_") {
		encoding = base64.RawURLEncoding
	}
	at := t.begin(field)
	out, err := encoding.AppendDecode(t.out, bytesOf(strings.TrimRight(text, "=")))
	if err != nil {
		t.out = t.out[:at-lengthBytes-1] // the tag has one byte
		t.out = appendWireText(t.out, 1, text)
		return
	}
	t.out = out
	t.finish(at)
}

// parseUint returns the number that a time or a count is, 0 if it is none.
func parseUint(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err == nil {
		return n
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && f >= 1 && f < 1<<64 {
		return uint64(f)
	}
	return 0
}

// parseSeverity returns the number of a severity, which may be its name in the protocol.
func parseSeverity(text string) uint64 {
	name, ok := strings.CutPrefix(text, "SEVERITY_NUMBER_")
	if !ok {
		n, _ := strconv.ParseInt(text, 10, 32)
		return uint64(n)
	}
	for i, level := range [...]string{"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"} {
		if rest, ok := strings.CutPrefix(name, level); ok {
			switch rest {
			case "":
				return uint64(4*i + 1)
			case "2", "3", "4":
				return uint64(4*i) + uint64(rest[0]-'0')
			}
		}
	}
	return 0
}
