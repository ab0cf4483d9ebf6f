package protocol

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf8"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/syslog"
)

// Journald is the protocol in which systemd-journal-upload sends a journal: its entries in the "Journal Export Format" of systemd's documentation.
type Journald struct{}

// Name implements Protocol.
func (Journald) Name() string { return "journald" }

// Routes implements Protocol. The program appends the path to the URL that it is given.
func (Journald) Routes() []Route {
	return []Route{{Path: "/upload", Methods: []string{http.MethodPost}}}
}

// Open implements Protocol.
func (Journald) Open(r Request) (Exchange, *Refusal) {
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	return &journal{ask: asked}, nil
}

// Refuse implements Protocol. The program writes the text to its own log.
func (Journald) Refuse(dst []byte, _ Request, why *Refusal) Answer {
	return Answer{Status: why.Status, ContentType: "text/plain; charset=utf-8", Body: append(append(dst, why.Msg...), '\n')}
}

// journalEntry is the source of all that an entry says beside its message.
const journalEntry = mapping.First

var journalSources = []mapping.SourceConfig{{Name: "entry", Dotted: true}}

// journal is the Exchange of an upload.
type journal struct {
	ask     ask
	entries []RecordName // of the accepted records of the last text

	// The current entry.
	fields []journalField
	cursor []byte
	rest   []journalField // the fields that the object journal has
}

// journalField is a field of an entry.
type journalField struct{ name, value []byte }

// The fields that have a place of their own. The names of those that belong to the journal's files begin with two underscores.
const (
	journalCursor   = "__CURSOR"
	journalRealtime = "__REALTIME_TIMESTAMP"
	journalSource   = "_SOURCE_REALTIME_TIMESTAMP"
	journalMessage  = "MESSAGE"
	journalPriority = "PRIORITY"
)

// journalTexts are the fields that become members of the record under another name.
var journalTexts = []struct{ field, member string }{
	{"_HOSTNAME", mapping.HostField},
	{"SYSLOG_IDENTIFIER", mapping.ServiceField},
	{"_SYSTEMD_UNIT", "unit"},
	{"_PID", "pid"},
}

// next takes the entry that text begins with, and returns its length with the blank line that ends it. It returns 0 if text ends before. It reports false if text can't be the
// beginning of an entry.
func (j *journal) next(text []byte) (n int, ok bool) {
	j.fields = j.fields[:0]
	for at := 0; ; {
		end := bytes.IndexByte(text[at:], '\n')
		if end < 0 {
			return 0, len(text)-at <= mostJournalName || bytes.IndexByte(text[at:at+mostJournalName+1], '=') > 0
		}
		line := text[at : at+end]
		at += end + 1
		if len(line) == 0 {
			return at, true
		}
		if equals := bytes.IndexByte(line, '='); equals >= 0 {
			j.fields = append(j.fields, journalField{line[:equals], line[equals+1:]})
			continue
		}
		// The value has its length before it: eight bytes, the least first.
		if len(line) > mostJournalName {
			return 0, false
		}
		if len(text)-at < 8 {
			return 0, true
		}
		length := binary.LittleEndian.Uint64(text[at:])
		if length > math.MaxInt32 {
			return 0, false
		}
		at += 8
		if uint64(len(text)-at) <= length {
			return 0, true
		}
		value := text[at : at+int(length)]
		if at += int(length); text[at] != '\n' {
			return 0, false
		}
		at++
		j.fields = append(j.fields, journalField{line, value})
	}
}

// mostJournalName is the length of the longest name of a field; journald takes no longer one.
const mostJournalName = 64

// isJournalName reports whether journald could have a field of a name.
func isJournalName(name []byte) bool {
	for _, c := range name {
		if c-'0' > 9 && c-'A' > 'Z'-'A' && c != '_' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= mostJournalName
}

// Complete implements Parts.
func (j *journal) Complete(text []byte) (complete int) {
	for {
		n, _ := j.next(text[complete:])
		if n == 0 {
			return complete
		}
		complete += n
	}
}

// First implements Parts.
func (j *journal) First(text []byte, records, _ *record.List) bool {
	return j.decode(text, records) == nil && records.Accepted > 0
}

// Part implements Parts.
func (j *journal) Part(text []byte, records *record.List) *scan.Error {
	if bad := j.decode(text, records); bad != nil {
		return bad.Body
	}
	return nil
}

// Decode implements Exchange.
func (j *journal) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return j.decode(body, records)
}

// decode takes the entries of a text, which must be whole.
func (j *journal) decode(text []byte, records *record.List) *Refusal {
	j.entries = j.entries[:0]
	return j.ask.decode(records, func(records *record.List) *scan.Error {
		records.Begin()
		defer records.End()
		m := mapping.New(records, mapping.Config{Sources: journalSources, Encoder: j}, j.ask.keepText)
		defer m.Free()
		for at := 0; at < len(text) && !records.Overflow; {
			n, ok := j.next(text[at:])
			if n == 0 && ok && len(j.fields) > 0 && bytes.HasSuffix(text, []byte("\n")) {
				// The blank line behind the last entry may be missing, but no part of a field.
				if last := j.fields[len(j.fields)-1].value; cap(last)-len(last) == cap(text)-len(text)+1 {
					n = len(text) - at
				}
			}
			if n == 0 {
				records.Begin()
				return &scan.Error{Reason: scan.Syntax, Offset: at, Msg: "the text is no entry of a journal in its export format, or ends in the middle of one"}
			}
			if len(j.fields) > 0 {
				j.take(m, records, at)
			}
			at += n
		}
		if most := records.Limits.TotalBytes; most > 0 && j.Holds() > most {
			records.Overflow = true
		}
		return nil
	})
}

// take makes the record of the current entry.
func (j *journal) take(m *mapping.Mapper, records *record.List, at int) {
	var message, level, realtime, source []byte
	var texts [4][]byte // of journalTexts
	j.cursor, j.rest = nil, j.rest[:0]
	first := func(to *[]byte, f journalField) {
		if *to == nil && utf8.Valid(f.value) {
			*to = f.value[:len(f.value):len(f.value)]
		} else {
			j.rest = append(j.rest, f)
		}
	}
	for _, f := range j.fields {
		switch name := stringOf(f.name); name {
		case journalCursor:
			j.cursor = f.value
		case journalRealtime:
			realtime = f.value
		case journalSource:
			source = f.value
		case journalMessage:
			if message == nil { // bytes that are no text are repaired
				message = f.value
			} else {
				j.rest = append(j.rest, f)
			}
		case journalPriority:
			if len(f.value) == 1 && syslog.Level(int(f.value[0])-'0') != "" {
				first(&level, f)
			} else {
				j.rest = append(j.rest, f)
			}
		default:
			i := slices.IndexFunc(journalTexts, func(t struct{ field, member string }) bool { return t.field == name })
			switch {
			case i >= 0:
				first(&texts[i], f)
			case isJournalName(f.name) && !bytes.HasPrefix(f.name, []byte("__")):
				j.rest = append(j.rest, f)
			}
		}
	}
	m.Begin()
	if message != nil {
		m.Message(stringOf(message))
	}
	if level != nil {
		m.String(journalEntry, mapping.LevelField, syslog.Level(int(level[0])-'0'))
	}
	for i, text := range texts {
		if n, err := strconv.ParseInt(stringOf(text), 10, 64); text != nil && err == nil && journalTexts[i].member == "pid" && strconv.FormatInt(n, 10) == stringOf(text) {
			m.Int(journalEntry, "pid", n)
		} else if text != nil {
			m.String(journalEntry, journalTexts[i].member, stringOf(text))
		}
	}
	m.Encoded(journalEntry, "journal", "", 0)
	micros := journalMicros(source)
	if micros == 0 {
		micros = journalMicros(realtime)
	}
	if micros > 0 {
		m.Time(journalEntry, micros*1000)
	}
	if m.End(at) {
		j.entries = append(j.entries, RecordName{stringOf(j.cursor), max(micros, journalMicros(realtime)) / 1000})
	}
}

// journalMicros returns the microseconds since 1970 that a field says, 0 for none, and for those that nanoseconds can't count.
func journalMicros(value []byte) int64 {
	if n, err := strconv.ParseInt(stringOf(value), 10, 64); err == nil && n > 0 && n < math.MaxInt64/1000 {
		return n
	}
	return 0
}

// Encode implements mapping.Encoder: it writes the object journal. Several fields of one name become an array.
func (j *journal) Encode(w *record.Writer, key, _ string, _ uint64) {
	w.Open(key)
	// Equal names stand together then. The order of their values stays.
	slices.SortStableFunc(j.rest, func(a, b journalField) int { return bytes.Compare(a.name, b.name) })
	for i := 0; i < len(j.rest); {
		n := i + 1
		for n < len(j.rest) && bytes.Equal(j.rest[n].name, j.rest[i].name) {
			n++
		}
		name := stringOf(j.rest[i].name)
		if value := j.rest[i].value; n > i+1 {
			w.Array(name, func(a record.Elements) {
				for _, f := range j.rest[i:n] {
					if isJournalText(f.value) {
						a.Text(f.value)
					} else {
						a.Object(func(w *record.Writer) { w.String("base64", base64.StdEncoding.EncodeToString(f.value)) })
					}
				}
			})
		} else if isJournalText(value) {
			w.Text(name, value)
		} else {
			w.Open(name)
			w.String("base64", base64.StdEncoding.EncodeToString(value))
			w.Close()
		}
		i = n
	}
	if len(j.cursor) > 0 {
		w.Text("cursor", j.cursor)
	}
	w.Close()
}

// isJournalText reports whether a value can be stored as text.
func isJournalText(value []byte) bool { return utf8.Valid(value) && bytes.IndexByte(value, 0) < 0 }

// Names implements Named. An entry's name is its cursor.
func (j *journal) Names() []RecordName { return j.entries }

// journalNameBytes is about what a name holds, with what the API makes of it.
const journalNameBytes = 96

// Holds implements Holder.
func (j *journal) Holds() int { return len(j.entries) * journalNameBytes }

// Answer implements Exchange. The program takes all below 300 for success.
func (*journal) Answer(dst []byte, r Request, o Outcome) Answer {
	if o.Records.Accepted == 0 && o.Records.Rejected > 0 {
		return Journald{}.Refuse(dst, r, Refuse(http.StatusBadRequest, "%v", &o.Records.Errors[0].Err))
	}
	return Answer{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8", Body: append(dst, "OK.\n"...)}
}

// AnswerParts implements Parts.
func (j *journal) AnswerParts(dst []byte, r Request, total *record.List, stopped *Refusal) Answer {
	if stopped != nil {
		return Journald{}.Refuse(dst, r, stopped)
	}
	return j.Answer(dst, r, Outcome{Records: total})
}
