package record

import (
	"unsafe"

	"millrace/internal/scan"
)

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

// CloseAll ends all objects that Open began.
func (w *Writer) CloseAll() {
	for w.depth > 1 {
		w.Close()
	}
}

// Key writes the key of a member. The member's value must be written next, by a method that takes a key too, which it does not write.
func (w *Writer) Key(key string) {
	w.key(key)
	w.hasKey = true
}

// Head is what stands between two values: the ends of objects, the beginnings of others, and a key.
type Head struct {
	text  string
	top   int // where in text the key of a top-level member begins, or -1
	depth int // how many containers are open behind it
}

// Head returns what was written behind a value that ended at from, and ends with Key. Its text is appended to buf, and must stay as
// it is.
func (w *Writer) Head(buf *[]byte, from int) Head {
	start := len(*buf)
	*buf = append(*buf, w.b[from:]...)
	text := (*buf)[start:]
	return Head{text: unsafe.String(unsafe.SliceData(text), len(text)), top: max(w.topKey-from, -1), depth: w.depth}
}

// Again writes what Head has returned for another record. It must follow the same value, or none as there. The member's value must be
// written next, as after Key.
func (w *Writer) Again(h Head) {
	if h.top >= 0 {
		w.topKey = len(w.b) + h.top
	}
	w.b = append(w.b, h.text...)
	w.depth, w.hasKey = h.depth, true
}
