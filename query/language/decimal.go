package language

import (
	"cmp"
	"strconv"
	"strings"
)

// decimal is a number as JSON writes it, exactly: 0.d₁d₂d₃… × 10^exponent.
type decimal struct {
	negative bool
	digits   string // without zeros at either end; empty is zero
	exponent int
}

// parseDecimal returns the number that s writes as JSON. Its exponent must fit an int32.
func parseDecimal(s string) (d decimal) {
	if rest, found := strings.CutPrefix(s, "-"); found {
		d.negative, s = true, rest
	}
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		d.exponent, _ = strconv.Atoi(s[i+1:]) // digits, as the number is one
		s = s[:i]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	d.exponent += len(whole)
	digits := whole
	if fraction != "" {
		digits += fraction
	}
	trimmed := strings.TrimLeft(digits, "0")
	d.exponent -= len(digits) - len(trimmed)
	d.digits = strings.TrimRight(trimmed, "0")
	if d.digits == "" {
		return decimal{}
	}
	return d
}

// String returns the number as JSON, in one form for all ways to write it.
func (d decimal) String() string {
	if d.digits == "" {
		return "0"
	}
	s := d.digits
	switch n := len(s); {
	case d.exponent == n:
	case 0 < d.exponent && d.exponent < n:
		s = s[:d.exponent] + "." + s[d.exponent:]
	case -6 < d.exponent && d.exponent <= 0:
		s = "0." + strings.Repeat("0", -d.exponent) + s
	case n < d.exponent && d.exponent <= 15:
		s += strings.Repeat("0", d.exponent-n)
	default:
		s += "e" + strconv.Itoa(d.exponent-n)
	}
	if d.negative {
		s = "-" + s
	}
	return s
}

// compare returns -1 if d is less than o, 0 if they are equal, 1 if d is greater.
func (d decimal) compare(o decimal) int {
	if d.sign() != o.sign() {
		return cmp.Compare(d.sign(), o.sign())
	}
	n := cmp.Compare(d.exponent, o.exponent)
	if n == 0 {
		n = strings.Compare(d.digits, o.digits)
	}
	return n * d.sign()
}

// CompareNumbers returns -1 if the JSON number a is less than b, 0 if they are equal, 1 if a is greater.
func CompareNumbers(a, b string) int { return parseDecimal(a).compare(parseDecimal(b)) }

// sign returns -1, 0 or 1.
func (d decimal) sign() int {
	switch {
	case d.digits == "":
		return 0
	case d.negative:
		return -1
	}
	return 1
}
