package protocol

import (
	"github.com/valyala/fasthttp"

	"millrace/api/protocol/mapping"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// ask is what a client of a protocol other than Millrace's own asks for beside its records.
type ask struct {
	keepText bool     // text that is a JSON object stays text
	options  *Options // constant fields and fields that hold a time; nil for most
}

// readAsk returns what a request asks for. Parameters that are unknown are passed over: clients of other servers have them.
func readAsk(r Request) (ask, *Refusal) {
	o, _, bad := ReadOptions(r)
	if bad != nil {
		return ask{}, bad
	}
	a := ask{keepText: o.NoParse || isFalse(r.Header.Peek("X-Parse"))}
	if len(o.Fields) > 0 || len(o.TimeFields) > 0 {
		a.options = &o
	}
	return a, nil
}

// decode has fill fill records, with repairs, and changes them as the client asks.
func (a *ask) decode(records *record.List, fill func(records *record.List) *scan.Error) *Refusal {
	records.Limits.Repair = true
	var err *scan.Error
	if a.options == nil {
		err = fill(records)
	} else {
		err = newRewriter(a.options).fill(records, fill)
	}
	if err != nil {
		return UnreadableBody(err)
	}
	return nil
}

// shareQuery has all records share what a query string says in the parameters of some names. add adds one of them to m.
func shareQuery(m *mapping.Mapper, query []byte, names []string, add func(name, value string)) {
	if len(query) == 0 {
		return
	}
	args := fasthttp.AcquireArgs() // fasthttp parses what net/url refuses
	defer fasthttp.ReleaseArgs(args)
	args.ParseBytes(query)
	m.BeginShared()
	for _, name := range names {
		if v := args.Peek(name); len(v) > 0 {
			add(name, string(v))
		}
	}
	m.EndShared()
}
