package archive

import (
	"bytes"
	"encoding/binary"
	"hash"

	"github.com/cespare/xxhash/v2"

	"millrace/internal/jsontext"
)

// formatVersion is the version of the files. A reader refuses the files of a later one.
const formatVersion = 1

// Keys of a file's metadata.
const (
	columnsKey = "millrace.columns" // fileMarks
	groupsKey  = "millrace.groups"  // []GroupMarks
)

// fileMarks is what a file says of its columns.
type fileMarks struct {
	Version int           `json:"version"`
	Columns []columnMarks `json:"columns"`
}

type columnMarks struct {
	Path []string `json:"path"`
	Kind string   `json:"kind"`
	Form Form     `json:"form,omitempty"`
}

// GroupMarks is what a file says of a row group, so that the group need not be read where nothing in it can be found.
type GroupMarks struct {
	Rows     int    `json:"rows"`
	Hash     uint64 `json:"hash,string"` // of the rows as they were given, see rowHash
	MinID    []byte `json:"min_id"`
	MaxID    []byte `json:"max_id"`
	MinCame  int64  `json:"min_inserted_at"` // Unix microseconds
	MaxCame  int64  `json:"max_inserted_at"`
	MinTime  int64  `json:"min_time"` // of the rows' times; a row without one counts by its inserted_at
	MaxTime  int64  `json:"max_time"`
	OwnTimes int    `json:"own_times"` // rows that have a time

	RestRows int       `json:"rest_rows,omitempty"`
	RestKeys []byte    `json:"rest_keys,omitempty"` // see pathFilter
	RestSet  ByteSet   `json:"rest_set"`
	Sets     []ByteSet `json:"sets"` // by column; only of texts
}

// ByteSet is the set of the bytes that texts have, ASCII letters in lower case. Of the others it has whether there are any.
type ByteSet [2]uint64

// otherBit of a ByteSet stands for all bytes that are not ASCII. Its place is that of the byte 0, which no text has.
const otherBit = 1

// byteSetOf returns the set of a text's bytes.
func byteSetOf(text []byte) (set ByteSet) {
	var seen [256]bool
	for _, c := range text {
		seen[c] = true
	}
	for c, is := range seen {
		if !is {
			continue
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c >= 0x80 {
			set[0] |= otherBit
			continue
		}
		set[c>>6] |= 1 << (c & 63)
	}
	// Two signs beyond ASCII are the same letters in another case: the long s and the one for kelvin.
	if set[0]&otherBit != 0 {
		if bytes.Contains(text, []byte("ſ")) {
			set['s'>>6] |= 1 << ('s' & 63)
		}
		if bytes.Contains(text, []byte("\u212a")) {
			set['k'>>6] |= 1 << ('k' & 63)
		}
	}
	return set
}

// Admits reports whether a text whose bytes are in the set may have another one in it, whatever the case of the letters.
func (set ByteSet) Admits(text string) bool {
	for _, r := range text {
		switch {
		case r == 'ſ':
			r = 's'
		case r == '\u212a':
			r = 'k'
		case r >= 0x80:
			if set[0]&otherBit == 0 {
				return false
			}
			continue
		case 'A' <= r && r <= 'Z':
			r += 'a' - 'A'
		}
		if r != 0 && set[r>>6]>>(r&63)&1 == 0 {
			return false
		}
	}
	return true
}

// admitsEscaped does what Admits does for texts as JSON strings. Characters that JSON escapes are not looked at.
func (set ByteSet) admitsEscaped(text string) bool {
	for _, r := range text {
		if r < ' ' || r == '"' || r == '\\' {
			continue
		}
		if !set.Admits(string(r)) {
			return false
		}
	}
	return true
}

// pathFilter is a Bloom filter of the paths in the rests of a row group: each member of an object, at any depth, by the names on the way
// to it. The members of an array count as if they stood in its place. With 500 paths, 5 % of the others seem to be there.
type pathFilter []byte

const pathFilterBytes = 512

// pathSeed begins the hash of a path.
const pathSeed = 14695981039346656037

// stepPath returns the hash of a path with one more name.
func stepPath(h uint64, name []byte) uint64 {
	h = (h ^ xxhash.Sum64(name)) * 0x9E3779B97F4A7C15
	return h ^ h>>29
}

func (f pathFilter) add(h uint64) {
	f[h%(8*pathFilterBytes)/8] |= 1 << (h % 8)
	h >>= 32
	f[h%(8*pathFilterBytes)/8] |= 1 << (h % 8)
}

func (f pathFilter) has(h uint64) bool {
	g := h >> 32
	return f[h%(8*pathFilterBytes)/8]>>(h%8)&1 == 1 && f[g%(8*pathFilterBytes)/8]>>(g%8)&1 == 1
}

// addValue adds the paths in a value that stands at a path.
func (f pathFilter) addValue(value []byte, h uint64) {
	switch value[0] {
	case '{':
		for i := 1; ; {
			m, ok := memberAt(value, i)
			if !ok {
				return
			}
			i = m.next
			name := m.key[1 : len(m.key)-1]
			if m.keyEscaped {
				name = jsontext.AppendUnescaped(nil, name)
			}
			at := stepPath(h, name)
			f.add(at)
			f.addValue(m.value, at)
		}
	case '[':
		for i := 1; ; {
			end := jsontext.ValueEnd(value, i)
			if end < 0 {
				return
			}
			f.addValue(value[i:end], h)
			if i = end + 2; i >= len(value) {
				return
			}
		}
	}
}

// rowHash hashes rows: each with its id, its times and its data.
type rowHash struct {
	digest hash.Hash64
	buffer [40]byte
}

func newRowHash() *rowHash { return &rowHash{digest: xxhash.New()} }

func (h *rowHash) add(r *Row) {
	copy(h.buffer[:], r.ID[:])
	binary.LittleEndian.PutUint64(h.buffer[16:], uint64(r.InsertedAt))
	binary.LittleEndian.PutUint64(h.buffer[24:], uint64(r.Time))
	binary.LittleEndian.PutUint64(h.buffer[32:], uint64(len(r.Data)))
	h.digest.Write(h.buffer[:])
	h.digest.Write(r.Data)
}
