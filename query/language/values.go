package language

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/valyala/fastjson"
)

// Value is a value in a record, as SQL's jsonb. It is good until the record reads another one.
type Value struct{ json *fastjson.Value }

// Value returns the value at the first of the ways that leads to one, as coalesce(data #> way, …) does. ok is false if none does; null is a value.
func (r *Record) Value(ways [][]string) (v Value, ok bool) {
	for _, way := range ways {
		if found := valueAt(r.root, way); found != nil {
			return Value{found}, true
		}
	}
	return Value{}, false
}

// valueAt returns the value that data #> way is, or nil. In an array a name is the number of a member, which may count from the end.
func valueAt(v *fastjson.Value, way []string) *fastjson.Value {
	for _, name := range way {
		switch v.Type() {
		case fastjson.TypeObject:
			v = v.GetObject().Get(name)
		case fastjson.TypeArray:
			members := v.GetArray()
			i, err := strconv.Atoi(name)
			if i < 0 {
				i += len(members)
			}
			if err != nil || i < 0 || i >= len(members) {
				return nil
			}
			v = members[i]
		default:
			return nil
		}
		if v == nil {
			return nil
		}
	}
	return v
}

// Text returns the text that #>> '{}' is. ok is false for null.
func (v Value) Text() (text string, ok bool) {
	switch v.json.Type() {
	case fastjson.TypeNull:
		return "", false
	case fastjson.TypeString:
		return string(v.json.GetStringBytes()), true
	}
	return string(appendJSONB(nil, v.json)), true
}

// IsNumeric reports whether the value is a number, or a string that comparisons take for one.
func (v Value) IsNumeric() bool {
	switch v.json.Type() {
	case fastjson.TypeNumber:
		return true
	case fastjson.TypeString:
		return isNumberText(string(v.json.GetStringBytes()))
	}
	return false
}

// Number returns the number that a value is for which IsNumeric holds.
func (v Value) Number() Number {
	if v.json.Type() == fastjson.TypeString {
		return ParseNumber(string(v.json.GetStringBytes()))
	}
	var buffer [32]byte
	return ParseNumber(string(v.json.MarshalTo(buffer[:0])))
}

// appendJSONB appends a value as PostgreSQL writes jsonb.
func appendJSONB(out []byte, v *fastjson.Value) []byte {
	switch v.Type() {
	case fastjson.TypeString:
		return AppendJSONB(out, string(v.GetStringBytes()))
	case fastjson.TypeArray:
		out = append(out, '[')
		for i, member := range v.GetArray() {
			if i > 0 {
				out = append(out, ", "...)
			}
			out = appendJSONB(out, member)
		}
		return append(out, ']')
	case fastjson.TypeObject:
		out = append(out, '{')
		isFirst := true
		v.GetObject().Visit(func(name []byte, member *fastjson.Value) {
			if !isFirst {
				out = append(out, ", "...)
			}
			isFirst = false
			out = append(AppendJSONB(out, string(name)), ": "...)
			out = appendJSONB(out, member)
		})
		return append(out, '}')
	}
	return v.MarshalTo(out)
}

// AppendJSONB appends a text as PostgreSQL writes a string of jsonb.
func AppendJSONB(out []byte, text string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	for i := range len(text) {
		switch c := text[i]; c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\f':
			out = append(out, '\\', 'f')
		case '\n':
			out = append(out, '\\', 'n')
		case '\r':
			out = append(out, '\\', 'r')
		case '\t':
			out = append(out, '\\', 't')
		default:
			if c < ' ' {
				out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}

// Number is a number as JSON writes it, exactly.
type Number struct {
	decimal decimal
	text    string
}

// ParseNumber returns the number that a text writes as JSON. Its exponent must fit an int32.
func ParseNumber(text string) Number { return Number{parseDecimal(text), text} }

// Bytes returns how many bytes the number takes, about.
func (n Number) Bytes() int { return len(n.text) + len(n.decimal.digits) }

// Compare returns -1 if n is less than another number, 0 if they are equal, 1 if n is greater.
func (n Number) Compare(other Number) int { return n.decimal.compare(other.decimal) }

// Float returns the double nearest to the number. ok is false if the number is not 0 and not from 1e-300 to 1e300, its sign aside.
func (n Number) Float() (f float64, ok bool) {
	d := n.decimal
	if d.digits == "" {
		return 0, true
	}
	if d.exponent < -299 || d.exponent > 301 || d.exponent == 301 && d.digits != "1" {
		return 0, false
	}
	f, err := strconv.ParseFloat(n.text, 64)
	return f, err == nil
}

// mostDigits is how many digits a number may have, zeros between its digits and the point included, that Scaled returns.
const mostDigits = 1000

// Scaled returns the number as a whole number and how many of its last digits stand behind the point. ok is false if it has more than mostDigits.
func (n Number) Scaled() (whole *big.Int, scale int, ok bool) {
	d := n.decimal
	if len(d.digits) > mostDigits || d.exponent > mostDigits || d.exponent < -mostDigits {
		return nil, 0, false
	}
	digits := d.digits
	scale = len(digits) - d.exponent
	if scale < 0 {
		digits, scale = digits+strings.Repeat("0", -scale), 0
	}
	whole = new(big.Int)
	if digits != "" {
		whole.SetString(digits, 10)
	}
	if d.negative {
		whole.Neg(whole)
	}
	return whole, scale, true
}

// Plain returns the number as trim_scale writes it: without an exponent, and without zeros at the end of a fraction. ok is false if it has more
// than mostDigits.
func (n Number) Plain() (text string, ok bool) {
	whole, scale, ok := n.Scaled()
	if !ok {
		return "", false
	}
	return Plain(whole, scale), true
}

// Plain returns a whole number whose last digits, so many, stand behind the point, as trim_scale writes it.
func Plain(whole *big.Int, scale int) string {
	text := new(big.Int).Abs(whole).String()
	if scale > 0 {
		if len(text) <= scale {
			text = strings.Repeat("0", scale+1-len(text)) + text
		}
		text = text[:len(text)-scale] + "." + text[len(text)-scale:]
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	if whole.Sign() < 0 {
		text = "-" + text
	}
	return text
}
