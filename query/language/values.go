package language

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/valyala/fastjson"

	"millrace/internal/archive"
)

// Value is a value in a record, as SQL's jsonb. It is good until the record reads another one.
type Value struct{ json *fastjson.Value }

// Value returns the value that Member finds in the record's data. ok is false if there is none; null is a value.
func (r *Record) Value(ways [][]string) (v Value, ok bool) {
	found := Member(r.root, ways)
	return Value{found}, found != nil
}

// Member returns the value at the first of the ways that leads to one, as coalesce(data #> way, …) does, or nil.
func Member(data *fastjson.Value, ways [][]string) *fastjson.Value {
	for _, way := range ways {
		if v := MemberAt(data, way); v != nil {
			return v
		}
	}
	return nil
}

// MemberAt returns the value that data #> way is, or nil. In an array a name is the number of a member, which may count from the end.
func MemberAt(data *fastjson.Value, way []string) *fastjson.Value {
	for _, name := range way {
		switch data.Type() {
		case fastjson.TypeObject:
			data = data.GetObject().Get(name)
		case fastjson.TypeArray:
			members := data.GetArray()
			i, err := strconv.Atoi(name)
			if i < 0 {
				i += len(members)
			}
			if err != nil || i < 0 || i >= len(members) {
				return nil
			}
			data = members[i]
		default:
			return nil
		}
		if data == nil {
			return nil
		}
	}
	return data
}

// Text returns the text that #>> '{}' is. ok is false for null.
func (v Value) Text() (text string, ok bool) {
	switch v.json.Type() {
	case fastjson.TypeNull:
		return "", false
	case fastjson.TypeString:
		return string(v.json.GetStringBytes()), true
	}
	return string(archive.AppendValue(nil, v.json)), true
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

// Plain returns a whole number whose last digits, so many, stand behind the point, as trim_scale writes it. Less than none stand for zeros to
// be put behind it.
func Plain(whole *big.Int, scale int) string {
	if whole.Sign() == 0 {
		return "0"
	}
	text := new(big.Int).Abs(whole).String()
	if scale <= 0 {
		text += strings.Repeat("0", -scale)
	} else {
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
