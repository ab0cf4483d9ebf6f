package record

import "millrace/internal/scan"

// Len returns how many bytes of the record are written.
func (w *Writer) Len() int { return len(w.b) }

// Copy appends to dst what was written from offset from on. With what Len returned before some members were written, that is these
// members.
func (w *Writer) Copy(dst []byte, from int) []byte {
	if from < len(w.b) && w.b[from] == ',' {
		from++ // it parts them from members before
	}
	return append(dst, w.b[from:]...)
}

// Made writes members, separated by commas, that jsonb takes as they are: a Writer wrote them before, and replaced nothing in them,
// or package scan has accepted them. They have no white space and no exponents.
func (w *Writer) Made(members string) {
	if members == "" {
		return
	}
	w.comma()
	w.b = append(w.b, members...)
}

// Unchecked writes members that came from outside, separated by commas. The whole record is then checked as after JSON.
func (w *Writer) Unchecked(members string) {
	w.Made(members)
	w.unchecked = true
}

// MadeJSON writes a member whose value is JSON that jsonb takes as it is; see Made.
func (w *Writer) MadeJSON(key, value string) {
	w.key(key)
	w.b = append(w.b, value...)
}

// Open begins a member whose value is an object. The members that are written up to Close are the object's.
func (w *Writer) Open(key string) {
	w.key(key)
	w.b = append(w.b, '{')
	w.depth++
	w.tooDeep = w.tooDeep || w.depth > scan.MaxDepth
}

// Close ends the object that Open began last.
func (w *Writer) Close() {
	w.b = append(w.b, '}')
	w.depth--
}
