package archive

import "math/bits"

// Bits is a set of rows of a row group, a bit a row.
type Bits []uint64

// NewBits returns an empty set for so many rows.
func NewBits(rows int) Bits { return make(Bits, (rows+63)/64) }

// AllBits returns the set of all of so many rows.
func AllBits(rows int) Bits {
	b := NewBits(rows)
	b.SetRange(0, rows)
	return b
}

// Set adds a row.
func (b Bits) Set(row int) { b[row>>6] |= 1 << (row & 63) }

// Remove removes a row.
func (b Bits) Remove(row int) { b[row>>6] &^= 1 << (row & 63) }

// Has reports whether a row is in the set.
func (b Bits) Has(row int) bool { return b[row>>6]>>(row&63)&1 == 1 }

// SetRange adds the rows from one to before another.
func (b Bits) SetRange(from, to int) {
	for from < to && from&63 != 0 {
		b.Set(from)
		from++
	}
	for ; from+64 <= to; from += 64 {
		b[from>>6] = ^uint64(0)
	}
	for ; from < to; from++ {
		b.Set(from)
	}
}

// And removes the rows that are not in another set.
func (b Bits) And(other Bits) {
	for i := range b {
		b[i] &= other[i]
	}
}

// AndNot removes the rows that are in another set.
func (b Bits) AndNot(other Bits) {
	for i := range b {
		b[i] &^= other[i]
	}
}

// Or adds the rows of another set.
func (b Bits) Or(other Bits) {
	for i := range b {
		b[i] |= other[i]
	}
}

// Clone returns a copy.
func (b Bits) Clone() Bits { return append(Bits(nil), b...) }

// Count returns how many rows are in the set.
func (b Bits) Count() (n int) {
	for _, word := range b {
		n += bits.OnesCount64(word)
	}
	return n
}

// IsEmpty reports whether no row is in the set.
func (b Bits) IsEmpty() bool {
	for _, word := range b {
		if word != 0 {
			return false
		}
	}
	return true
}

// Next returns the first row of the set from a row on, and -1 if there is none.
func (b Bits) Next(row int) int {
	i := row >> 6
	if i >= len(b) {
		return -1
	}
	word := b[i] >> (row & 63) << (row & 63)
	for word == 0 {
		if i++; i == len(b) {
			return -1
		}
		word = b[i]
	}
	return i<<6 + bits.TrailingZeros64(word)
}

// Each calls f with the rows of the set, in order.
func (b Bits) Each(f func(row int)) {
	for i, word := range b {
		for ; word != 0; word &= word - 1 {
			f(i<<6 + bits.TrailingZeros64(word))
		}
	}
}
