package scan

import "slices"

// Verdict tells what became of one record. It is a byte, so that all of a body's verdicts take little memory.
type Verdict uint8

// accepted is the verdict of an accepted record; of others it is their reason and one.
const accepted Verdict = 0

// Accepted reports whether the record was accepted.
func (v Verdict) Accepted() bool { return v == accepted }

// Reason returns why the record was refused. It is for records that were.
func (v Verdict) Reason() Reason { return Reason(v) - 1 }

// Begin empties b for records that come one by one, by Add, Append and Refuse. End ends them. It is for protocols whose
// bodies are not JSON, or more than records.
func (b *Body) Begin(lim Limits) {
	b.Reset()
	b.lim = lim
}

// Add takes src as one record, with white space around it, and reports whether it was accepted. src begins at byte at of the
// body. Any fault costs that record alone.
func (b *Body) Add(src []byte, at int) bool {
	b.src = src
	s := &b.s
	i := skipSpace(src, 0)
	if startsBOM(src, i) {
		i = skipSpace(src, i+len(bom))
	}
	end, ok := s.value(src, i)
	if ok {
		if end = skipSpace(src, end); end < len(src) {
			s.fail(src, end, wantNothing)
			ok = false
		}
	}
	if ok && b.take(i) {
		return true
	}
	f := &s.refusal
	if !ok {
		f = &s.broke
		s.n = b.taken
	}
	b.reject(f)
	if n := len(b.Errors); n > 0 && b.Errors[n-1].Index == b.Accepted+b.Rejected-1 {
		b.Errors[n-1].Err.Offset += at
	}
	return false
}

// Append takes a record that is known to be one: compacted JSON that jsonb takes, without exponents in its numbers, nested no
// deeper than MaxDepth. It reports whether it was accepted: it may be larger than Limits.RecordBytes.
func (b *Body) Append(record []byte) bool {
	s := &b.s
	if room := len(record) + slack; len(s.out)-s.n < room {
		s.out = slices.Grow(s.out[:s.n], room)
		s.out = s.out[:cap(s.out)]
	}
	s.refused, s.longer = false, 0
	s.n += copy(s.out[s.n:], record)
	if !b.take(0) {
		b.reject(&s.refusal)
		return false
	}
	return true
}

// Refuse counts a record that is refused before it was made. at is its byte in the body.
func (b *Body) Refuse(r Reason, at int) {
	if len(b.Errors) < MaxErrors {
		b.Errors = append(b.Errors, RecordError{b.Accepted + b.Rejected, Error{Reason: r, Offset: at, Msg: r.what()}})
	}
	if b.KeepVerdicts {
		b.Verdicts = append(b.Verdicts, Verdict(r)+1)
	}
	b.Rejected++
	b.RejectedBy[r]++
}

// End ends the records that came one by one. What b holds is complete then.
func (b *Body) End() { _ = b.finish(nil) } // always nil

// what says a reason in words.
func (r Reason) what() string {
	switch r {
	case Syntax:
		return "not JSON"
	case Depth:
		return (&fault{reason: Depth}).msg(nil)
	case NotObject:
		return "not an object"
	}
	return r.String()
}
