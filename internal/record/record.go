// Package record has the records of a request on their way from its body to the publisher: JSON objects that PostgreSQL's jsonb
// takes, compacted, one a line, cut into segments.
//
// A protocol fills a List in one of two ways. Single, Split, Lines and IsLines take a whole body of JSON. Begin, then Add,
// Build and Refuse in any order, then End take records one by one: Add checks JSON that came, Build makes a record that
// is valid by construction. Whatever a record holds, it harms no other.
//
// Nothing here starts a goroutine. A List belongs to one goroutine at a time. What it holds is good until it is filled again.
package record

import "millrace/internal/scan"

// List is the records of one request. The zero value, with Limits, is ready.
//
// The fields of scan.Body tell what it holds: NDJSON and Pieces, which are its segments, how many records were accepted and
// rejected, and why.
type List struct {
	scan.Body
	Limits scan.Limits

	writer Writer
}

// Clear empties l for another request and keeps its memory. No verdicts are kept until KeepVerdicts is set again.
func (l *List) Clear() {
	// Not Reset: whatever fills l resets the rest, which shows beside a short record's scan.
	l.KeepVerdicts = false
	l.NDJSON, l.Pieces, l.Errors, l.Verdicts = l.NDJSON[:0], l.Pieces[:0], l.Errors[:0], l.Verdicts[:0]
	if l.Rejected > 0 {
		clear(l.RejectedBy[:])
	}
	l.Accepted, l.Rejected = 0, 0
}

// Single takes text as exactly one record. Any fault is an error, and leaves l empty.
func (l *List) Single(text []byte) *scan.Error { return l.Body.Single(text, l.Limits) }

// Split takes text as NDJSON, objects one after another, or arrays of them; see scan.Body.Batch. The error is nil even if
// records were refused. If it is not, the body was refused whole, and l is empty.
func (l *List) Split(text []byte) *scan.Error { return l.Body.Batch(text, l.Limits) }

// Lines takes text as a part of NDJSON; see scan.Body.Lines.
func (l *List) Lines(text []byte) *scan.Error { return l.Body.Lines(text, l.Limits) }

// IsLines reports whether text, the beginning of a body, shows the body to be NDJSON; see scan.Body.IsLines. l then holds its
// records. other is changed.
func (l *List) IsLines(other *List, text []byte) bool {
	return l.Body.IsLines(&other.Body, text, l.Limits)
}

// Begin empties l for records that come one by one.
func (l *List) Begin() { l.Body.Begin(l.Limits) }

// Build has fill write the members of one record, and reports whether it was accepted. It is refused only if it is larger than
// Limits.RecordBytes, nested deeper than scan.MaxDepth, or if Writer.JSON was given what jsonb can't hold. at is where the
// record begins in the body.
func (l *List) Build(at int, fill func(w *Writer)) bool {
	w := &l.writer
	w.begin()
	fill(w)
	w.b = append(w.b, '}')
	switch {
	case w.tooDeep:
		l.Refuse(scan.Depth, at)
		return false
	case w.unchecked:
		return l.Add(w.b, at)
	}
	return l.Append(w.b)
}
