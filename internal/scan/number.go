package scan

import (
	"encoding/binary"
	"math/bits"
)

// Limits of numeric, from PostgreSQL's src/backend/utils/adt/numeric.c:
// NUMERIC_DSCALE_MAX digits behind the decimal point; a weight of at most
// NUMERIC_WEIGHT_MAX in base 10000 (32767*4+3 as a power of ten); and an
// exponent in the text whose absolute value is smaller than INT_MAX/2, even if
// the number is zero.
const (
	maxScale    = 16383
	maxWeight   = 131071
	endExponent = 1073741823
)

// digits returns the number of decimal digits that src has from i on.
func digits(src []byte, i int) int {
	start := i
	for i >= 0 && i <= len(src)-8 {
		w := binary.LittleEndian.Uint64(src[i:])
		// The high bit of each byte that is below '0', above '9', or not ASCII;
		// as in special, the lowest one set is exact.
		if m := ((w - 0x30*ones) | (w + 0x46*ones) | w) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8 - start
		}
		i += 8
	}
	for i >= 0 && i < len(src) && src[i]-'0' <= 9 {
		i++
	}
	return i - start
}

// number scans the number that starts at src[i] with a digit or '-', and
// returns the offset behind it. ok is false if the JSON breaks; then s.broke
// says where.
func (s *scanner) number(src []byte, i int) (end int, ok bool) {
	start := i
	if src[i] == '-' {
		i++
	}
	n := 1 // a 0 stands alone before the point
	if i >= len(src) || src[i] != '0' {
		if n = digits(src, i); n == 0 {
			return s.fail(src, i, wantDigit)
		}
	}
	i += n
	if i < len(src) && src[i] == '.' {
		if n = digits(src, i+1); n == 0 {
			return s.fail(src, i+1, wantDigit)
		}
		i += 1 + n
	}
	if i < len(src) && src[i]|0x20 == 'e' {
		i++
		if i < len(src) && (src[i] == '+' || src[i] == '-') {
			i++
		}
		if n = digits(src, i); n == 0 {
			return s.fail(src, i, wantDigit)
		}
		i += n
	} else if i-start <= maxScale {
		return i, true // too short to pass any limit
	}
	length, ok := asNumeric(src[start:i])
	if !ok {
		s.refuseNumber(start, i-start)
	}
	s.longer += max(0, length-(i-start))
	return i, true
}

// asNumeric reports whether numeric can hold num, a well-formed JSON number. It
// returns the length of num as PostgreSQL writes it, without an exponent.
func asNumeric(num []byte) (length int, ok bool) {
	i := 0
	if num[0] == '-' {
		i = 1
	}
	length = i
	whole := digits(num, i)
	frac := 0
	first := -1 // index of the first digit that is not 0, counted in digits
	seen := 0
	for ; i < len(num); i++ {
		c := num[i]
		if c == '.' {
			frac = digits(num, i+1)
			continue
		}
		if c|0x20 == 'e' {
			break
		}
		if c != '0' && first < 0 {
			first = seen
		}
		seen++
	}
	exponent := 0
	if i < len(num) {
		i++
		negative := num[i] == '-'
		if negative || num[i] == '+' {
			i++
		}
		for ; i < len(num); i++ {
			exponent = exponent*10 + int(num[i]-'0')
			if exponent >= endExponent {
				return 0, false
			}
		}
		if negative {
			exponent = -exponent
		}
	}
	scale := max(0, frac-exponent)
	weight := 0
	if first >= 0 {
		weight = whole - 1 - first + exponent
	}
	if scale > maxScale || weight > maxWeight {
		return 0, false
	}
	if length += max(0, weight) + 1; scale > 0 {
		length += len(".") + scale
	}
	return length, true
}
