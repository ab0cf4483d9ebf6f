package protocol

import (
	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// objectRecords makes records of JSON objects, which follow one another, with or without white space between them, or are in arrays.
type objectRecords struct {
	ask    ask
	config mapping.Config

	// keep makes a record of a text in which an object can't be read. It may be nil: then such an object is refused, and the next line is read.
	keep func(m *mapping.Mapper, text []byte)

	jsonAdder
	members []member // of the current object
}

// decode takes the objects of a body. share adds what all records have; take adds what an object says. Where an object can't be read, its line is lost, because it is
// not certain where the next one begins. From then on objects have a line each. An object without members is none.
func (o *objectRecords) decode(body []byte, records *record.List, share func(m *mapping.Mapper), take func(m *mapping.Mapper, members []member)) *Refusal {
	return o.ask.decode(records, func(records *record.List) *scan.Error {
		records.Begin()
		defer records.End()
		m := mapping.New(records, o.config, o.ask.keepText)
		defer m.Free()
		share(m)
		o.each(m, body, records, take)
		return nil
	})
}

// each makes records of the objects of a text.
func (o *objectRecords) each(m *mapping.Mapper, text []byte, records *record.List, take func(m *mapping.Mapper, members []member)) {
	visit := func(key, value []byte) bool {
		o.members = append(o.members, member{key, value})
		return len(o.members) <= mapping.MostMembers
	}
	p := jsonParser{src: text}
	for !records.Overflow {
		if !p.skipBetween() {
			if len(p.src) == len(text) {
				return
			}
			p.src = text[:lineEnd(text, p.at+1)]
			continue
		}
		at := p.at
		o.members, o.buf = o.members[:0], o.buf[:0]
		switch {
		case p.object(visit):
			if len(o.members) > 0 {
				m.Begin()
				take(m, o.members)
				m.End(at)
			}
		case o.keep != nil:
			m.Begin()
			o.keep(m, text[at:])
			m.End(at)
			return
		default:
			records.Refuse(scan.Syntax, at)
			p.at = lineEnd(text, at)
			p.src = text[:p.at]
		}
	}
}

// addMessage adds the value of a message: a string, which may be the text of an object, an object, or anything else.
func (o *objectRecords) addMessage(m *mapping.Mapper, value []byte) {
	switch {
	case value[0] == '"':
		m.Message(o.text(value))
	case value[0] == '{' && m.Fields(stringOf(value)):
	default:
		o.add(m, mapping.Own, mapping.MessageField, value)
	}
}
