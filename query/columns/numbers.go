package columns

import (
	"math"
	"math/big"
	"strconv"
	"strings"

	"millrace/internal/archive"
	"millrace/query/language"
)

// number is the number that a value counts as: itself, or the one that a string writes.
type number struct {
	isRead, is bool
	isDouble   bool    // double holds it about as it is
	double     float64 // the nearest one
	text       string  // JSON
}

// number returns the number that the value with a code counts as. is is false if it counts as none.
func (v *fieldValues) number(code int32) *number {
	if v.numbers == nil {
		v.numbers = make([]number, len(v.texts))
	}
	n := &v.numbers[code]
	if n.isRead {
		return n
	}
	n.isRead = true
	text := v.texts[code]
	if kind := v.kinds[code]; kind != isNumber && (kind != isString || !language.IsNumberText(text)) {
		return n
	}
	n.is, n.text = true, text
	// Numbers out of these bounds are left out of what is computed with doubles, as the SQL does.
	f, err := strconv.ParseFloat(text, 64)
	n.double = f
	n.isDouble = err == nil && (math.Abs(f) >= 1e-300 && math.Abs(f) <= 1e300 || f == 0 && isZero(text))
	return n
}

// isZero reports whether a JSON number is zero.
func isZero(text string) bool {
	mantissa, _, _ := strings.Cut(strings.ToLower(text), "e")
	return !strings.ContainsAny(mantissa, "123456789")
}

// decimal is a number, exactly: unscaled / 10^scale.
type decimal struct {
	unscaled *big.Int
	scale    int // may be negative
}

// parseDecimal returns the number that JSON writes.
func parseDecimal(text string) decimal {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(text), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	d := decimal{new(big.Int), len(fraction)}
	d.unscaled.SetString(whole+fraction, 10) // digits, as the number is one
	if n, err := strconv.Atoi(exponent); err == nil {
		d.scale -= n
	}
	return d
}

// add adds another number to d.
func (d *decimal) add(o decimal) {
	if d.unscaled == nil {
		*d = decimal{new(big.Int).Set(o.unscaled), o.scale}
		return
	}
	other := o.unscaled
	switch n := d.scale - o.scale; {
	case n > 0:
		other = new(big.Int).Mul(other, powerOfTen(n))
	case n < 0:
		d.unscaled.Mul(d.unscaled, powerOfTen(-n))
		d.scale = o.scale
	}
	d.unscaled.Add(d.unscaled, other)
}

func powerOfTen(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }

// String returns the number as PostgreSQL writes a numeric, without zeros at its end.
func (d decimal) String() string {
	if d.unscaled == nil {
		return "0"
	}
	return language.Plain(d.unscaled, d.scale)
}

// double returns the double nearest to the number.
func (d decimal) double() float64 {
	f, _ := strconv.ParseFloat(d.String(), 64)
	return f
}

// plainNumber returns a JSON number as PostgreSQL writes a numeric, without zeros at its end.
func plainNumber(text string) string { return parseDecimal(text).String() }

// sum is an exact sum. The zero value is that of nothing.
type sum struct {
	n      int64
	scaled [2]int64 // thousandths, and millionths
	rest   decimal
}

// mostScaled is what scaled may hold before it goes to the rest.
const mostScaled = 1 << 62

// addDouble adds a number of a column of kind Double. Those with up to three digits behind the point, or six, are integers of thousandths or
// millionths; see archive.AppendDouble.
func (s *sum) addDouble(v float64) {
	s.n++
	for i, scale := range [2]float64{1e3, 1e6} {
		t := math.Round(v * scale)
		if math.Abs(t) >= 1e15 || t/scale != v {
			continue
		}
		if s.scaled[i] += int64(t); s.scaled[i] > mostScaled || s.scaled[i] < -mostScaled {
			s.rest.add(decimal{big.NewInt(s.scaled[i]), 3 * (i + 1)})
			s.scaled[i] = 0
		}
		return
	}
	var buffer [32]byte
	s.rest.add(parseDecimal(string(archive.AppendDouble(buffer[:0], v, 0))))
}

// add adds a number.
func (s *sum) add(n *number) {
	if len(n.text) <= maxShort && n.isDouble {
		s.addDouble(n.double)
		return
	}
	s.n++
	s.rest.add(parseDecimal(n.text))
}

// maxShort is the length up to which a number has 15 digits at most, so that its double gives it back.
const maxShort = 15

func (s *sum) merge(o *sum) {
	s.n += o.n
	s.rest.add(o.total())
}

// total returns the sum.
func (s *sum) total() (d decimal) {
	for i, n := range s.scaled {
		d.add(decimal{big.NewInt(n), 3 * (i + 1)})
	}
	if s.rest.unscaled != nil {
		d.add(s.rest)
	}
	return d
}
