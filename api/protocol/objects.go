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
		visit := func(key, value []byte) bool {
			o.members = append(o.members, member{key, value})
			return len(o.members) <= mapping.MostMembers
		}
		p := jsonParser{src: body}
		for !records.Overflow {
			if !p.skipBetween() {
				if len(p.src) == len(body) {
					return nil
				}
				p.src = body[:lineEnd(body, p.at+1)]
				continue
			}
			at := p.at
			o.members, o.buf = o.members[:0], o.buf[:0]
			if !p.object(visit) {
				records.Refuse(scan.Syntax, at)
				p.at = lineEnd(body, at)
				p.src = body[:p.at]
				continue
			}
			if len(o.members) > 0 {
				m.Begin()
				take(m, o.members)
				m.End(at)
			}
		}
		return nil
	})
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
