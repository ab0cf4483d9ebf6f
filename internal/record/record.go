// Package record holds the records of a request on their way from its body to the publisher. They are JSON objects that
// PostgreSQL's jsonb takes, compacted, one a line, and cut into pieces that become segments.
//
// A protocol fills a List in one of two ways. Single, Split, Lines and IsLines take a whole body of JSON. Records one by one
// begin with Begin and end with End; between them Add, Build and Refuse are called in any order. Add checks JSON from outside.
// Build makes a record that is valid by construction. Whatever a record holds, it harms no other.
//
// Nothing here starts a goroutine. A List belongs to one goroutine at a time. What it holds is valid until it is filled again.
package record

import "millrace/internal/scan"

// List is the records of one request. The zero value, with Limits, is ready.
//
// The fields of scan.Body are its contents: NDJSON, the Pieces that become segments, and how many records were accepted and
// rejected, and why.
type List struct {
	scan.Body
	Limits scan.Limits

	writer Writer
}

// Clear empties l for another request and keeps its memory. It unsets KeepVerdicts and Limits.Repair.
func (l *List) Clear() {
	// Reset would do more than is needed, because whatever fills l resets the rest. Its time shows beside a short record's
	// scan.
	l.KeepVerdicts = false
	l.Limits.Repair = false
	l.Overflow = false
	l.NDJSON, l.Pieces, l.Errors, l.Verdicts = l.NDJSON[:0], l.Pieces[:0], l.Errors[:0], l.Verdicts[:0]
	if l.Rejected > 0 {
		clear(l.RejectedBy[:])
	}
	l.Accepted, l.Rejected, l.Repaired = 0, 0, 0
}

// Single takes text as exactly one record. Any fault is an error, and leaves l empty.
func (l *List) Single(text []byte) *scan.Error { return l.Body.Single(text, l.Limits) }

// Split takes text as NDJSON, objects one after another, or arrays of them; see scan.Body.Batch. The error is nil even if
// single records were refused. If it is not nil, the body was refused whole, and l is empty.
func (l *List) Split(text []byte) *scan.Error { return l.Body.Batch(text, l.Limits) }

// Lines takes text as a part of NDJSON; see scan.Body.Lines.
func (l *List) Lines(text []byte) *scan.Error { return l.Body.Lines(text, l.Limits) }

// IsLines reports whether text, the beginning of a body, shows the body to be NDJSON; see scan.Body.IsLines. l then holds the
// records of text. other is scratch space.
func (l *List) IsLines(other *List, text []byte) bool {
	return l.Body.IsLines(&other.Body, text, l.Limits)
}

// Rewrite fills l with the records of from, each as rewrite makes it; see scan.Body.Rewrite.
func (l *List) Rewrite(from *List, rewrite func(dst, record []byte) []byte) {
	l.Body.Rewrite(&from.Body, l.Limits, rewrite)
}

// Begin empties l for records that come one by one.
func (l *List) Begin() { l.Body.Begin(l.Limits) }

// Build has fill write the members of one record, and reports whether it was accepted. A record is refused only if it is larger
// than Limits.RecordBytes, if it is nested deeper than scan.MaxDepth, or if Writer.JSON was given something that jsonb can't
// hold. at is the record's offset in the body.
//
// If Limits.Repair is set, such a record is repaired unless what Writer.JSON was given is no JSON; see scan.Limits. One in which a
// Writer has replaced something then says where.
func (l *List) Build(at int, fill func(w *Writer)) bool {
	w := &l.writer
	w.begin(l.Limits.Repair)
	fill(w)
	w.b = append(w.b, '}')
	switch {
	case l.Limits.Repair && (w.repaired || w.tooDeep):
		return l.AppendRepaired(w.b, w.changed, w.why, at)
	case w.tooDeep:
		l.Refuse(scan.Depth, at)
		return false
	case w.unchecked:
		return l.Add(w.b, at)
	}
	return l.Append(w.b)
}
