package protocol

import (
	"net/http"

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
	if a.options == nil {
		return a.refusal(fill(records))
	}
	first := &record.List{Limits: records.Limits}
	first.KeepVerdicts = true
	err := fill(first)
	records.Rewrite(first, newRewriter(a.options).rewrite)
	return a.refusal(err)
}

// refusal returns the refusal of a body because of err, nil if that is nil.
func (a *ask) refusal(err *scan.Error) *Refusal {
	if err == nil {
		return nil
	}
	bad := Refuse(http.StatusBadRequest, "%v", err)
	bad.Body = err
	return bad
}
