package scan

import "bytes"

// MaxErrors is the most record errors that a Body keeps.
const MaxErrors = 100

// Limits bound what a Body accepts and how it is cut up. Both must be set.
type Limits struct {
	RecordBytes int // the largest record, compacted, its numbers without exponents; at most MaxRecordBytes
	PieceBytes  int // a piece closes once it holds at least this many bytes

	// TotalBytes is the most bytes that NDJSON may have; 0 is no limit. Records of JSON have no more than their body, but a
	// protocol that repeats something in every record can make much of few bytes. What is left of a body then is refused, and
	// Overflow is set.
	TotalBytes int

	// Repair has records rewritten that are objects but can't be taken as they are; see RepairedKey. What a string can't hold
	// becomes U+FFFD in it. NaN, the infinities, and numbers that numeric can't hold become strings. So does a value that is
	// nested too deep: its text is kept. If a record is too large, its longest strings are cut.
	Repair bool
}

// Piece is a run of accepted records that follow one another: their half-open
// range in NDJSON, and their number. Pieces depend on the records alone: the
// same records make the same pieces, in whatever form they were sent.
type Piece struct{ Start, End, Records int }

// Body is one request body split into records. The zero value is ready. It
// reuses its buffers, so what it holds is valid until the next call.
type Body struct {
	NDJSON     []byte  // the accepted records, compacted, each ended by '\n'
	Pieces     []Piece // they cover NDJSON
	Accepted   int
	Rejected   int
	Errors     []RecordError // the first MaxErrors, by index
	RejectedBy [NumReasons]int
	Repaired   int // how many of the accepted records were repaired, if Limits.Repair is set

	Overflow bool // the records take more than Limits.TotalBytes; the body should be refused whole

	KeepVerdicts bool      // a Verdict is kept for every record
	Verdicts     []Verdict // by index, if they are kept

	s     scanner // s.out[:taken] is NDJSON under construction
	taken int
	src   []byte
	lim   Limits
	cut   bool // a line was lost only because src ended within a record

	repairs *repairs // nil while there were none

	pieceAt      int // where the open piece starts
	pieceRecords int // the number of records in the closed pieces

	// The state before the first record of the line that is being read.
	lineAt       int             // offset of its first record
	lineTaken    int             // taken
	lineAccepted int             // Accepted
	lineRejected int             // Rejected
	lineReasons  [NumReasons]int // RejectedBy, once a record of the line was refused
}

// Reset empties b and keeps its buffers.
func (b *Body) Reset() {
	// A single literal would be made elsewhere and copied, which shows beside a
	// short record's scan.
	ndjson, pieces, errors, deep, keep, verdicts := b.NDJSON, b.Pieces, b.Errors, b.s.deep, b.KeepVerdicts, b.Verdicts
	*b = Body{}
	b.NDJSON, b.Pieces, b.Errors, b.KeepVerdicts, b.Verdicts = ndjson[:0], pieces[:0], errors[:0], keep, verdicts[:0]
	b.s.out, b.s.deep = ndjson[:cap(ndjson)], deep[:0]
}

// Batch splits src into records. src may be NDJSON, objects one after another,
// each on one line or several, or JSON arrays of objects, which the first byte
// tells. A byte-order mark is passed over where a record or an array could
// begin: concatenated files have one each.
//
// Well-formed JSON that can't be taken as a record costs that record alone, in
// every form. Where the JSON itself breaks, Batch never guesses where the next
// record starts, because it might store a fragment of a broken record:
//
//   - A break in an array, or between arrays, costs the body.
//   - Elsewhere, if the broken record has not gone over a line's end and the
//     body is line-delimited, the break costs that line. All records on it
//     count as one.
//   - If the broken record has gone over a line's end, its line may be a line
//     of NDJSON that was cut short, so that its open brackets swallowed the
//     next lines. That is so, and costs that line, if the body is
//     line-delimited and either an earlier line is a record by itself, or the
//     break is a '{' that starts a line. In the rest of that body no record may
//     go over a line's end. That also keeps the work linear, because no line is
//     scanned more than twice.
//   - Every other break costs the body.
//
// A body is line-delimited if no line starts with something that can only
// continue a record: one of }],: or a '"'. A line that starts with '"' is
// allowed if it is a value by itself. Pretty-printed JSON is never
// line-delimited.
//
// The error is nil even if single records were refused. If it is not nil, the
// body was refused whole, and b is empty.
func (b *Body) Batch(src []byte, lim Limits) *Error {
	i, err := b.begin(src, lim)
	if err != nil {
		return err
	}
	if src[i] == '[' {
		err = b.arrays(i)
	} else {
		err = b.stream(i, src)
	}
	return b.finish(err)
}

// Lines splits src, a part of a longer NDJSON body, into records. No record may
// go over a line's end. A break in the JSON costs its line, or all of src if
// that is not line-delimited; see Batch. Lines is for bodies that IsLines has
// reported to be NDJSON.
func (b *Body) Lines(src []byte, lim Limits) *Error {
	// No check for another format: it would show at the body's beginning, which
	// IsLines has seen.
	i, err := b.skip(src, lim)
	if err != nil {
		return err
	}
	return b.finish(b.stream(i, src[:lineEnd(src, i)]))
}

// IsLines reports whether src shows that a body is NDJSON. src is the body's
// beginning up to the end of a line. It shows that if Batch and Lines get the
// same from it, with at least one record, and if it does not matter where src
// ends. If IsLines reports true, b holds the result of Lines. other is scratch
// space.
func (b *Body) IsLines(other *Body, src []byte, lim Limits) bool {
	return other.Batch(src, lim) == nil && !other.cut && b.Lines(src, lim) == nil &&
		b.Accepted > 0 && b.Rejected == other.Rejected && bytes.Equal(b.NDJSON, other.NDJSON)
}

// Single takes src as exactly one record, with white space around it. Any fault
// is an error, and leaves b empty.
func (b *Body) Single(src []byte, lim Limits) *Error {
	i, err := b.begin(src, lim)
	if err != nil {
		return err
	}
	if fault := b.one(src, i); fault != nil {
		return b.finish(b.refusal(fault))
	}
	return b.finish(nil)
}

// one takes the record at src[i], behind which only white space may follow. It returns why it can't.
func (b *Body) one(src []byte, i int) *fault {
	end, ok := b.s.value(src, i)
	if ok {
		if end = skipSpace(src, end); end < len(src) {
			b.s.fail(src, end, wantNothing)
			return &b.s.broke
		}
		if b.take(i) {
			return nil
		}
		if _, ok = b.repair(src, i, true); ok {
			return nil
		}
		return &b.s.refusal
	}
	if _, ok = b.repairBroken(src, i, true); ok {
		return nil
	}
	return &b.s.broke
}

// begin does what skip does, and also refuses a body whose format is not JSON.
func (b *Body) begin(src []byte, lim Limits) (int, *Error) {
	i, err := b.skip(src, lim)
	if err != nil {
		return 0, err
	}
	if c := src[i]; c != '{' && c != '[' || i+1 < len(src) && src[i+1] == 0 {
		if name := ForeignFormat(src); name != "" {
			return 0, b.finish(&Error{Reason: Format, Msg: name})
		}
	}
	return i, nil
}

// skip makes b ready for src. It returns the offset of the first byte that is
// neither white space nor part of a byte-order mark. It refuses a body without
// such a byte.
func (b *Body) skip(src []byte, lim Limits) (int, *Error) {
	b.Reset()
	b.src, b.lim = src, lim
	i := skipSpace(src, 0)
	if startsBOM(src, i) {
		i = skipSpace(src, i+len(bom))
	}
	if i == len(src) {
		return 0, b.finish(b.refusal(&fault{reason: Empty}))
	}
	return i, nil
}

// finish completes what b holds, or empties b if err refuses the body whole. It
// returns err.
func (b *Body) finish(err *Error) *Error {
	if err != nil {
		b.NDJSON = b.s.out[:0]
		b.Reset()
		return err
	}
	if b.pieceAt < b.taken {
		b.closePiece()
	}
	b.NDJSON = b.s.out[:b.taken]
	b.src = nil
	return nil
}

// refusal returns f in words.
func (b *Body) refusal(f *fault) *Error {
	err := f.err(b.src)
	return &err
}

// arrays takes the elements of the array that starts at src[i], and of the
// arrays that follow it.
func (b *Body) arrays(i int) *Error {
	src := b.src
	for {
		end, err := b.array(i)
		if err != nil {
			return err
		}
		if i = skipSpace(src, end); startsBOM(src, i) {
			i = skipSpace(src, i+len(bom))
		}
		if i == len(src) {
			return nil
		}
		if src[i] != '[' {
			b.s.fail(src, i, wantArray)
			return b.refusal(&b.s.broke)
		}
	}
}

// array takes the elements of the array that starts at src[i], and returns the
// offset behind it.
func (b *Body) array(i int) (end int, err *Error) {
	src := b.src
	i = skipSpace(src, i+1)
	if i < len(src) && src[i] == ']' {
		return i + 1, nil
	}
	w := wantElement
	for {
		if i >= len(src) || !startsValue(src[i]) {
			b.s.fail(src, i, w)
			return i, b.refusal(&b.s.broke)
		}
		end, ok := b.s.value(src, i)
		if !ok {
			if end, ok = b.repairBroken(src, i, false); !ok {
				return i, b.refusal(&b.s.broke)
			}
		} else if !b.take(i) {
			if _, ok = b.repair(src, i, false); !ok {
				b.reject(&b.s.refusal)
			}
		}
		i = skipSpace(src, end)
		if i < len(src) && src[i] == ']' {
			return i + 1, nil
		}
		if i >= len(src) || src[i] != ',' {
			b.s.fail(src, i, wantMoreElements)
			return i, b.refusal(&b.s.broke)
		}
		i = skipSpace(src, i+1)
		w = wantValue
	}
}

// stream takes records that follow one another, from src[i] on. seen is the
// part of src that may be scanned: all of it, or, once a line was found to be
// cut short, src up to the end of the current line.
func (b *Body) stream(i int, seen []byte) *Error {
	src := b.src
	delimited := false // src is known to be line-delimited
	sawRecord := false // an earlier line is one or more whole records
	newLine := true    // the next record is the first of its line
	end := 0           // where the last record ended, 0 if its line was lost
	for {
		for uint(i) < uint(len(seen)) && isSpace(seen[i]) {
			newLine = newLine || seen[i] == '\n'
			i++
		}
		if i >= len(seen) {
			if len(seen) == len(src) {
				return nil
			}
			seen = src[:lineEnd(src, i+1)]
			continue
		}
		if newLine {
			newLine = false
			if !sawRecord && end != 0 {
				sawRecord = src[b.lineAt] == '{' && oneLine(src[b.lineAt:end])
			}
			b.enterLine(i)
		}
		var ok bool
		if end, ok = b.s.value(seen, i); ok {
			if !b.take(i) {
				if _, ok = b.repair(seen, i, false); !ok {
					b.reject(&b.s.refusal)
				}
			}
			i = end
			continue
		}

		broke := b.s.broke
		if repaired, ok := b.repairBroken(seen, i, false); ok {
			i, end = repaired, repaired
			continue
		}
		if broke.at == i && startsBOM(seen, i) {
			newLine = b.lineAt == i // if so, the line begins behind the mark
			i += len(bom)
			continue
		}
		delimited = delimited || b.lineDelimited()
		switch {
		case !delimited || !oneLine(src[b.lineAt:i]):
			return b.refusal(&broke)
		case oneLine(src[i:broke.at]):
			b.leaveLine()
			b.reject(&broke)
			i = lineEnd(src, broke.at)
		case sawRecord || startsLine(src, broke.at):
			// The line is scanned again, but only to its end, where it breaks.
			// So it is lost.
			b.cut = b.cut || broke.at == len(src)
			b.leaveLine()
			newLine = true
			i = b.lineAt
			seen = src[:lineEnd(src, i)]
		default:
			return b.refusal(&broke)
		}
		end = 0
	}
}

// lineDelimited reports whether src is line-delimited, as Batch defines it.
func (b *Body) lineDelimited() bool {
	for at := 0; at < len(b.src); {
		line := b.src[:lineEnd(b.src, at)]
		i := skipSpace(line, at)
		if startsBOM(line, i) {
			i = skipSpace(line, i+len(bom))
		}
		at = len(line) + 1
		if i == len(line) {
			continue
		}
		switch line[i] {
		case '}', ']', ',', ':':
			return false
		case '"':
			end, ok := b.s.value(line, i)
			b.s.n = b.taken
			if !ok || skipSpace(line, end) < len(line) {
				return false
			}
		}
	}
	return true
}

// take accepts the record that was scanned last, at src[at]. It reports false
// if it can't; then s.refusal says why.
func (b *Body) take(at int) bool {
	s := &b.s
	// Readers of the record get its numbers written out: 1e131071 is 128 KiB.
	if size := s.n - b.taken + s.longer; size > b.lim.RecordBytes && !s.refused {
		s.refused = true
		s.refusal = fault{reason: TooLarge, at: at, n: size, longer: s.longer > 0, limit: b.lim.RecordBytes}
	}
	if s.refused {
		s.n = b.taken
		return false
	}
	s.out[s.n] = '\n' // the scanner leaves room for it
	s.n++
	b.taken = s.n
	b.Accepted++
	if b.KeepVerdicts {
		b.Verdicts = append(b.Verdicts, accepted)
	}
	if b.taken-b.pieceAt >= b.lim.PieceBytes {
		b.closePiece()
	}
	return true
}

// reject counts a record as refused for f.
func (b *Body) reject(f *fault) {
	if b.Rejected == b.lineRejected {
		b.lineReasons = b.RejectedBy
	}
	if len(b.Errors) < MaxErrors {
		b.Errors = append(b.Errors, RecordError{b.Accepted + b.Rejected, f.err(b.src)})
	}
	if b.KeepVerdicts {
		b.Verdicts = append(b.Verdicts, Verdict(f.reason)+1)
	}
	b.Rejected++
	b.RejectedBy[f.reason]++
}

// closePiece ends the open piece after the record accepted last.
func (b *Body) closePiece() {
	records := b.Accepted - b.pieceRecords
	b.Pieces = append(b.Pieces, Piece{b.pieceAt, b.taken, records})
	b.pieceAt = b.taken
	b.pieceRecords += records
	if most := b.lim.TotalBytes; most > 0 && b.taken > most {
		b.Overflow = true
		b.lim.RecordBytes = 0 // no more of them
	}
}

// enterLine notes the state before the first record of a line, at src[i].
func (b *Body) enterLine(i int) {
	b.lineAt = i
	b.lineTaken = b.taken
	b.lineAccepted = b.Accepted
	b.lineRejected = b.Rejected
}

// leaveLine restores the state that enterLine noted.
func (b *Body) leaveLine() {
	index := b.lineAccepted + b.lineRejected
	for n := len(b.Errors); n > 0 && b.Errors[n-1].Index >= index; n-- {
		b.Errors = b.Errors[:n-1]
	}
	if b.KeepVerdicts {
		b.Verdicts = b.Verdicts[:index]
	}
	for n := len(b.Pieces); n > 0 && b.Pieces[n-1].End > b.lineTaken; n-- {
		b.pieceAt = b.Pieces[n-1].Start
		b.pieceRecords -= b.Pieces[n-1].Records
		b.Pieces = b.Pieces[:n-1]
	}
	if b.Rejected != b.lineRejected {
		b.RejectedBy = b.lineReasons
	}
	b.leaveRepairs()
	b.Accepted = b.lineAccepted
	b.Rejected = b.lineRejected
	b.taken = b.lineTaken
	b.s.n = b.taken
}

// lineEnd returns the offset of the first newline in src from i on, or len(src)
// if there is none.
func lineEnd(src []byte, i int) int {
	if i >= len(src) {
		return len(src)
	}
	if n := bytes.IndexByte(src[i:], '\n'); n >= 0 {
		return i + n
	}
	return len(src)
}

// oneLine reports whether b holds no newline.
func oneLine(b []byte) bool { return bytes.IndexByte(b, '\n') < 0 }

// startsLine reports whether src[i] is a '{' with nothing but blanks before it
// on its line, or the byte-order mark before one.
func startsLine(src []byte, i int) bool {
	brace := i
	if startsBOM(src, i) {
		brace += len(bom)
	}
	if brace >= len(src) || src[brace] != '{' {
		return false
	}
	for i--; i >= 0 && (src[i] == ' ' || src[i] == '\t' || src[i] == '\r'); i-- {
	}
	return i < 0 || src[i] == '\n'
}

// bom is the byte-order mark in UTF-8.
const bom = "\xef\xbb\xbf"

// startsBOM reports whether a byte-order mark starts at src[i].
func startsBOM(src []byte, i int) bool {
	return i < len(src) && src[i] == bom[0] && bytes.HasPrefix(src[i:], []byte(bom))
}
