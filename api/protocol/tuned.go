package protocol

import (
	"net/http"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// tuned is the Exchange of a request in Millrace's own protocol that asks for something beside its records, or sends plain text.
// Its body is taken whole.
type tuned struct {
	options  Options
	isSingle bool
	isText   bool      // the body is lines of text, unless it is JSON
	rewriter *rewriter // nil if records stay as they are
}

// read returns the options of a request. POST /log takes them from the query string alone, so that nothing is looked for in the
// header of a request that has none.
func (t *tuned) read(r Request) (o Options, unknown string, bad *Refusal) {
	if t.isSingle {
		unknown, bad = o.readQuery(r.Query)
		for name, isSet := range map[string]bool{"ids": o.IDs, "unwrap": o.Unwrap != "", "parse": o.NoParse} {
			if isSet {
				unknown = name // it is for batches
			}
		}
		return o, unknown, bad
	}
	return ReadOptions(r)
}

// Decode implements Exchange.
func (t tuned) Decode(r Request, body []byte, records *record.List) *Refusal {
	err := t.fill(records, func(records *record.List) *scan.Error { return t.split(body, records) })
	if err == nil || err.Reason == scan.Empty && t.options.Status200 && !t.isSingle { // some shippers send nothing, to see who answers
		return nil
	}
	return unreadable(r, body, err, t.isSingle)
}

// fill fills records by split, with repairs if they are asked for, and has them rewritten.
func (t tuned) fill(records *record.List, split func(records *record.List) *scan.Error) *scan.Error {
	records.Limits.Repair = t.options.Repair
	return t.rewriter.fill(records, split)
}

// split cuts a body into records.
func (t tuned) split(body []byte, records *record.List) *scan.Error {
	switch {
	case t.isSingle:
		return records.Single(body)
	case t.options.Unwrap != "":
		return unwrap(records, body, t.options.Unwrap)
	case !t.isText:
		return records.Split(body)
	}
	if format := scan.ForeignFormat(body); format != "" {
		return &scan.Error{Reason: scan.Format, Msg: format}
	}
	// What browsers send has this type, though it is JSON. So has what fetch sends unless it is told a type.
	if !t.options.NoParse && beginsJSON(body) && records.Split(body) == nil && records.RejectedBy[scan.Syntax]+records.RejectedBy[scan.NotObject] == 0 {
		return nil
	}
	return t.lines(body, records)
}

// lines takes a body, or a part of one, as lines of text.
func (t tuned) lines(text []byte, records *record.List) *scan.Error {
	rest := SkipBOM(text)
	records.Begin()
	appendLines(records, rest, len(text)-len(rest), !t.options.NoParse)
	records.End()
	if records.Accepted+records.Rejected == 0 {
		return &scan.Error{Reason: scan.Empty, Msg: "the body is empty"}
	}
	return nil
}

// Answer implements Exchange.
func (t tuned) Answer(dst []byte, r Request, o Outcome) Answer {
	var a Answer
	if t.isSingle {
		a = single{}.Answer(dst, r, o)
	} else {
		a = batch{}.Answer(dst, r, o)
	}
	if t.options.IDs {
		a = withIDs(a, o)
	}
	if t.options.Status200 {
		a.Status = http.StatusOK
	}
	return a
}

// tunedParts is tuned for a body that may be taken in parts.
type tunedParts struct{ tuned }

// Complete implements Parts.
func (tunedParts) Complete(text []byte) int { return batch{}.Complete(text) }

// First implements Parts.
func (t tunedParts) First(text []byte, records, spare *record.List) bool {
	isLines := !t.isText || !beginsJSON(text)
	if !isLines {
		return false
	}
	err := t.fill(records, func(records *record.List) *scan.Error {
		if t.isText {
			return t.lines(text, records)
		}
		isLines = records.IsLines(spare, text)
		return nil
	})
	return isLines && err == nil && records.Accepted > 0
}

// Part implements Parts.
func (t tunedParts) Part(text []byte, records *record.List) *scan.Error {
	err := t.fill(records, func(records *record.List) *scan.Error {
		if t.isText {
			return t.lines(text, records)
		}
		return records.Lines(text)
	})
	if err != nil && err.Reason == scan.Empty {
		return nil
	}
	return err
}

// AnswerParts implements Parts.
func (t tunedParts) AnswerParts(dst []byte, r Request, total *record.List, stopped *Refusal) Answer {
	a := batch{}.AnswerParts(dst, r, total, stopped)
	if stopped == nil && t.options.Status200 {
		a.Status = http.StatusOK
	}
	return a
}
