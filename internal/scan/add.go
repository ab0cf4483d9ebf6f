package scan

import (
	"bytes"
	"slices"
)

// Verdict says what became of one record. It is a byte, so that the verdicts of a whole body take little memory.
type Verdict uint8

// accepted is the verdict of an accepted record. The verdict of a refused one is its Reason plus one.
const accepted Verdict = 0

// Accepted reports whether the record was accepted.
func (v Verdict) Accepted() bool { return v == accepted }

// Reason returns why the record was refused. It must not be called for an accepted one.
func (v Verdict) Reason() Reason { return Reason(v) - 1 }

// Begin empties b for records that come one by one, through Add, Append and Refuse. End must be called after the last. This
// is for protocols whose bodies are not JSON, or hold more than records.
func (b *Body) Begin(lim Limits) {
	b.Reset()
	b.lim = lim
}

// Add takes src as one record, with white space around it, and reports whether it was accepted. at is the offset of src in
// the body. Any fault costs that record alone.
func (b *Body) Add(src []byte, at int) bool {
	b.src = src
	s := &b.s
	i := skipSpace(src, 0)
	if startsBOM(src, i) {
		i = skipSpace(src, i+len(bom))
	}
	f := b.one(src, i)
	if f == nil {
		return true
	}
	s.n = b.taken
	b.reject(f)
	if n := len(b.Errors); n > 0 && b.Errors[n-1].Index == b.Accepted+b.Rejected-1 {
		b.Errors[n-1].Err.Offset += at
	}
	return false
}

// AddWith is Add for a record that gets more members. members is what stands between the braces of an object that is not empty,
// compacted, and jsonb takes it. If the record has one of its keys too, jsonb keeps what the record has. The record's bytes are
// not copied or scanned a second time for it.
func (b *Body) AddWith(members, src []byte, at int) bool {
	i := skipSpace(src, 0)
	if startsBOM(src, i) {
		i = skipSpace(src, i+len(bom))
	}
	if len(members) == 0 || i == len(src) || src[i] != '{' {
		return b.Add(src, at)
	}
	b.src = src
	s := &b.s
	if room := len(members) + 1; len(s.out)-s.n < room {
		s.out = slices.Grow(s.out[:s.n], room)
		s.out = s.out[:cap(s.out)]
	}
	s.out[s.n] = '{'
	s.n += 1 + copy(s.out[s.n+1:], members)
	brace := s.n // where the scanner writes the record's own brace
	if end, ok := s.value(src, i); ok && !s.refused && skipSpace(src, end) == len(src) {
		if s.out[brace+1] == '}' {
			s.out[brace] = '}'
			s.n = brace + 1
		} else {
			s.out[brace] = ','
		}
		if b.take(i) {
			return true
		}
	}
	// What can't be taken as it is goes the way of all such records.
	s.n = b.taken
	joined := append(append(append(make([]byte, 0, len(src)+len(members)+2), '{'), members...), ',')
	rest := src[skipSpace(src, i+1):]
	if len(rest) > 0 && rest[0] == '}' {
		joined = joined[:len(joined)-1]
	}
	joined = append(joined, rest...)
	faults := len(b.Errors)
	accepted := b.Add(joined, at-len(joined)+len(src))
	if len(b.Errors) > faults {
		e := &b.Errors[faults].Err
		e.Offset = max(at, e.Offset)
	}
	return accepted
}

// Try is Add for what may be something else than a record: if it can't be taken, Try reports false, and nothing is counted.
func (b *Body) Try(src []byte) bool {
	b.src = src
	if b.one(src, skipSpace(src, 0)) == nil {
		return true
	}
	b.s.n = b.taken
	return false
}

// Rewrite fills b with the records of from, each as rewrite makes it. rewrite appends the new record, which is checked, to dst. What
// from refused stays refused. from must have kept its verdicts.
func (b *Body) Rewrite(from *Body, lim Limits, rewrite func(dst, record []byte) []byte) {
	b.Begin(lim)
	rest, errors := from.NDJSON, from.Errors
	var buf []byte
	for index, v := range from.Verdicts {
		if v.Accepted() {
			end := bytes.IndexByte(rest, '\n')
			buf = rewrite(buf[:0], rest[:end])
			rest = rest[end+1:]
			b.Add(buf, 0)
			continue
		}
		if len(errors) > 0 && errors[0].Index == index {
			if len(b.Errors) < MaxErrors {
				b.Errors = append(b.Errors, errors[0])
			}
			errors = errors[1:]
		}
		if b.KeepVerdicts {
			b.Verdicts = append(b.Verdicts, v)
		}
		b.Rejected++
		b.RejectedBy[v.Reason()]++
	}
	for r := range NumReasons {
		if n := from.RepairedBy(r); n > 0 {
			b.repairing().by[r] += n
			b.Repaired += n
		}
	}
	b.End()
	b.Overflow = b.Overflow || from.Overflow // records of the body are missing
}

// Append takes a record without scanning it. The caller knows that it is a compacted JSON object that jsonb takes, without
// exponents in its numbers, nested no deeper than MaxDepth. Append reports whether the record was accepted: it refuses one
// that is larger than Limits.RecordBytes, unless that can be repaired.
func (b *Body) Append(record []byte) bool {
	s := &b.s
	if room := len(record) + slack; len(s.out)-s.n < room {
		s.out = slices.Grow(s.out[:s.n], room)
		s.out = s.out[:cap(s.out)]
	}
	s.refused, s.longer = false, 0
	s.n += copy(s.out[s.n:], record)
	if b.take(0) {
		return true
	}
	if _, ok := b.repair(record, 0, true); ok {
		return true
	}
	b.reject(&s.refusal)
	return false
}

// Refuse counts a record that the caller refuses for r. at is its offset in the body.
func (b *Body) Refuse(r Reason, at int) {
	if len(b.Errors) < MaxErrors {
		b.Errors = append(b.Errors, RecordError{b.Accepted + b.Rejected, Error{Reason: r, Offset: at, Msg: r.Words()}})
	}
	if b.KeepVerdicts {
		b.Verdicts = append(b.Verdicts, Verdict(r)+1)
	}
	b.Rejected++
	b.RejectedBy[r]++
}

// End completes what b holds after the last of the records that came one by one.
func (b *Body) End() { _ = b.finish(nil) } // always nil

// Words returns r as a message for people.
func (r Reason) Words() string {
	switch r {
	case Syntax:
		return "not JSON"
	case Depth:
		return (&fault{reason: Depth}).msg(nil)
	case NotObject:
		return "not an object"
	case TooLarge:
		return "too large"
	}
	return r.String()
}

// Growth returns by how many bytes the numbers of the record that was added last grow when PostgreSQL writes them out.
func (b *Body) Growth() int { return b.s.longer }
