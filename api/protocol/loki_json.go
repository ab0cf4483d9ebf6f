package protocol

import (
	"strconv"

	"millrace/api/protocol/mapping"
	"millrace/internal/jsontext"
	"millrace/internal/scan"
)

// json takes the records of a push in JSON:
//
//	{"streams":[{"stream":{"a":"b"},"values":[["1795822841000000000","line",{"k":"v"}]]}]}
//
// Before Loki 1.0 a stream was {"labels":"{a=\"b\"}","entries":[{"ts":"2026-11-28T10:00:00Z","line":"line"}]}.
func (d *lokiDecoder) json(body []byte) *scan.Error {
	d.b, d.i, d.err = SkipBOM(body), 0, nil
	switch d.peek() {
	case 0:
		if d.i < len(d.b) {
			d.fail("'{'")
		}
	case '[':
		d.elements(func() { d.fail("']'") }) // a push of nothing
	default:
		d.members(func(key []byte) {
			if string(key) == "streams" {
				d.elements(d.jsonStream)
			} else {
				d.skip()
			}
		})
	}
	d.end()
	return d.err
}

// jsonStream takes the stream that is next.
func (d *lokiDecoder) jsonStream() {
	hasLabels := false
	var later [][2]int // where values are that stand before the labels
	read := func(key string) {
		d.elements(func() {
			if key == "values" {
				d.jsonValue()
			} else {
				d.jsonEntry()
			}
		})
	}
	d.members(func(key []byte) {
		switch string(key) {
		case "stream":
			hasLabels = true
			d.beginStream()
			d.members(d.jsonLabel)
			d.m.EndShared()
		case "labels":
			hasLabels = true
			d.beginStream()
			if text, isString := d.scalarIn(&d.streamBuf); isString {
				d.addLabelsOfText(text)
			}
			d.m.EndShared()
		case "values", "entries":
			if hasLabels {
				read(string(key))
				return
			}
			d.peek()
			from := d.i
			if d.skip(); d.err == nil {
				later = append(later, [2]int{from, int(key[0])})
			}
		default:
			d.skip()
		}
	})
	if len(later) == 0 || d.err != nil {
		return
	}
	if !hasLabels {
		d.beginStream()
		d.m.EndShared()
	}
	behind := d.i
	for _, values := range later {
		d.i = values[0]
		if values[1] == 'v' {
			read("values")
		} else {
			read("entries")
		}
	}
	if d.err == nil {
		d.i = behind
	}
}

// jsonLabel takes a label's value.
func (d *lokiDecoder) jsonLabel(key []byte) {
	d.jsonField(lokiLabels, stringOf(key), &d.streamBuf)
}

// jsonField adds the value that is next. Clients send more than strings.
func (d *lokiDecoder) jsonField(source mapping.Source, name string, buf *[]byte) {
	switch d.peek() {
	case '"':
		text, _ := d.scalarIn(buf)
		d.m.String(source, name, text)
	case '{', '[':
		d.m.JSON(source, name, stringOf(d.value()))
	default:
		word := d.word()
		if d.err == nil && !isJSONWord(word) {
			d.i -= len(word)
			d.fail("a value")
		}
		if d.err != nil {
			return
		}
		if n, err := strconv.ParseInt(stringOf(word), 10, 64); err == nil {
			d.m.Int(source, name, n)
			return
		}
		d.m.JSON(source, name, stringOf(word))
	}
}

// scalarIn takes the string, number or literal that is next. If it has escapes, it is kept in buf.
func (d *lokiDecoder) scalarIn(buf *[]byte) (value string, isString bool) {
	if d.peek() != '"' {
		return stringOf(d.word()), false
	}
	raw, escaped := d.text()
	if !escaped {
		return stringOf(raw), true
	}
	from := len(*buf)
	*buf = jsontext.AppendUnescaped(*buf, raw)
	return stringOf((*buf)[from:]), true
}

// jsonValue takes an entry: its time, its line, and perhaps its metadata.
func (d *lokiDecoder) jsonValue() {
	at := d.begin()
	time, n := "", 0
	d.elements(func() {
		switch n++; n {
		case 1:
			time, _ = d.scalarIn(&d.entryBuf)
		case 2:
			d.jsonLine()
		case 3:
			d.members(d.jsonMetadata)
		default:
			d.skip()
		}
	})
	d.finishEntry(time, at)
}

// jsonEntry takes an entry in the form of before Loki 1.0.
func (d *lokiDecoder) jsonEntry() {
	at := d.begin()
	time := ""
	d.members(func(key []byte) {
		switch string(key) {
		case "ts", "timestamp":
			time, _ = d.scalarIn(&d.entryBuf)
		case "line":
			d.jsonLine()
		default:
			d.skip()
		}
	})
	d.finishEntry(time, at)
}

// begin begins an entry and returns where it is.
func (d *lokiDecoder) begin() (at int) {
	d.peek()
	d.entryBuf = d.entryBuf[:0]
	d.m.Begin()
	return d.i
}

// jsonLine takes a line. It is a string, but other values are taken, too.
func (d *lokiDecoder) jsonLine() {
	switch d.peek() {
	case '"':
		line, _ := d.scalarIn(&d.entryBuf)
		d.m.Message(line)
	case '{':
		d.m.Message(stringOf(d.value()))
	default:
		d.jsonField(mapping.Own, mapping.MessageField, &d.entryBuf)
	}
}

// jsonMetadata takes the value of metadata.
func (d *lokiDecoder) jsonMetadata(key []byte) {
	d.jsonField(lokiMetadata, stringOf(key), &d.entryBuf)
}

// finishEntry completes an entry with its time. One that is no number of nanoseconds stays as it came.
func (d *lokiDecoder) finishEntry(time string, at int) {
	if d.err != nil {
		return
	}
	switch nanos, err := strconv.ParseInt(time, 10, 64); {
	case err == nil && nanos != 0:
		d.m.Time(lokiTime, nanos)
	case err == nil, time == "", time == "null":
	default:
		d.m.String(lokiTime, mapping.TimeField, time)
	}
	d.m.End(at)
}
