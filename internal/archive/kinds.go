package archive

import (
	"math"
	"strconv"
)

// Kind is what a column holds.
type Kind uint8

// The kinds. Their numbers and names are stored.
const (
	Text    Kind = iota // strings
	Double              // numbers of up to 15 digits, which order as doubles as they do as decimals
	Integer             // integers that fit an int64, where most have more than 15 digits
	Bool
	Micros // times of up to 6 digits after the second, in Unix microseconds
	Nanos  // times of up to 9 digits, in Unix nanoseconds
	kinds
)

var kindNames = [kinds]string{"text", "double", "integer", "bool", "micros", "nanos"}

func (k Kind) String() string { return kindNames[k] }

// ParseKind returns the kind of a name.
func ParseKind(name string) (Kind, bool) {
	for k, known := range kindNames {
		if known == name {
			return Kind(k), true
		}
	}
	return 0, false
}

// Form is how the values of a column are written as text.
type Form uint8

const (
	// PointZero is the form of a Double whose integers are written with ".0".
	PointZero Form = 1
	// Trimmed is the form of times without zeros at the end of the fraction. Every other form of a time is its number of digits.
	Trimmed Form = 10
)

// Column is a column for the values at a path.
type Column struct {
	Name string   // of the column in the file: the names of the path with dots between them
	Path []string // the names on the way to the value, from the record's top
	Kind Kind
	Form Form

	dictionary bool // few values are distinct
	bloom      bool // nearly all are
	long       bool // texts whose least and greatest would be of no use
}

// IsTime reports whether the column holds times. They are strings in the record.
func (c *Column) IsTime() bool { return c.Kind == Micros || c.Kind == Nanos }

// maxDigits is the number of decimal digits that a double gives back whatever they are.
const maxDigits = 15

// parseDouble returns the double of a JSON number, and reports whether a column of the form gives back the same text for it.
func parseDouble(text []byte, form Form) (float64, bool) {
	if len(text) > maxDigits+3 { // a sign, a point, and the zero before or after it
		return 0, false
	}
	v, ok := parseShort(text)
	if !ok {
		return 0, false
	}
	var again [40]byte
	return v, string(AppendDouble(again[:0], v, form)) == string(text)
}

// powers are those of ten that a double holds exactly, as far as they are needed.
var powers = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16}

// parseShort returns the number that a text of digits and a point writes, and reports whether it is one of at most 15 digits. Both the
// digits and the power of ten are exact as doubles, so their quotient is the nearest double.
func parseShort(text []byte) (float64, bool) {
	i := 0
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		i++
	}
	digits, n, point := int64(0), 0, -1
	for ; i < len(text); i++ {
		c := text[i]
		if c == '.' && point < 0 {
			point = n
			continue
		}
		if c < '0' || c > '9' || n == len(powers)-1 {
			return 0, false
		}
		digits = digits*10 + int64(c-'0')
		n++
	}
	if n == 0 || digits >= 1e15 {
		return 0, false
	}
	v := float64(digits)
	if point >= 0 {
		v /= powers[n-point]
	}
	if negative {
		v = -v
	}
	return v, true
}

// AppendDouble appends the text of a number in a column.
func AppendDouble(b []byte, v float64, form Form) []byte {
	// If the double nearest to n/1000 is v and n has at most 15 digits, then n/1000 is the shortest text that reads as v: no two texts of
	// at most 15 digits read as the same double. That holds for nearly all numbers in records, and costs a fraction of strconv.
	if thousandths := math.Round(v * 1000); math.Abs(thousandths) < 1e15 && thousandths/1000 == v && (v != 0 || !math.Signbit(v)) {
		n := int64(thousandths)
		if n < 0 {
			b, n = append(b, '-'), -n
		}
		whole, fraction := n/1000, n%1000
		b = strconv.AppendInt(b, whole, 10)
		switch {
		case fraction == 0:
			if form == PointZero {
				b = append(b, '.', '0')
			}
		case fraction%100 == 0:
			b = append(b, '.', '0'+byte(fraction/100))
		case fraction%10 == 0:
			b = append(b, '.', '0'+byte(fraction/100), '0'+byte(fraction/10%10))
		default:
			b = append(b, '.', '0'+byte(fraction/100), '0'+byte(fraction/10%10), '0'+byte(fraction%10))
		}
		return b
	}
	start := len(b)
	b = strconv.AppendFloat(b, v, 'f', -1, 64)
	if form == PointZero {
		for _, c := range b[start:] {
			if c == '.' {
				return b
			}
		}
		b = append(b, '.', '0')
	}
	return b
}

// parseInteger returns the integer of a JSON number, and reports whether it gives back the same text.
func parseInteger(text []byte) (int64, bool) {
	i := 0
	if len(text) > 0 && text[0] == '-' {
		i = 1
	}
	if n := len(text) - i; n == 0 || n > 18 || text[i] == '0' && (n > 1 || i == 1) { // 18 digits fit; 19 may not
		return 0, false
	}
	v := int64(0)
	for _, c := range text[i:] {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	if i == 1 {
		v = -v
	}
	return v, true
}

// ParseTime returns the time of a text, and reports whether a column of the kind and form gives back the same text for it: RFC 3339 in UTC
// with "T" and "Z".
func ParseTime(text []byte, kind Kind, form Form) (int64, bool) {
	const whole = len("2006-01-02T15:04:05")
	n := len(text)
	if n <= whole || text[n-1] != 'Z' || text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' || text[16] != ':' {
		return 0, false
	}
	digits := n - 1 - whole
	if digits > 0 {
		if text[whole] != '.' {
			return 0, false
		}
		digits--
		if digits == 0 || form == Trimmed && text[n-2] == '0' {
			return 0, false
		}
	}
	unit := 6
	if kind == Nanos {
		unit = 9
	}
	if digits > unit || form != Trimmed && digits != int(form) {
		return 0, false
	}
	year, ok1 := number(text[:4])
	month, ok2 := number(text[5:7])
	day, ok3 := number(text[8:10])
	hour, ok4 := number(text[11:13])
	minute, ok5 := number(text[14:16])
	second, ok6 := number(text[17:19])
	fraction, ok7 := int64(0), true
	if digits > 0 {
		fraction, ok7 = number(text[whole+1 : n-1])
	}
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 || month < 1 || month > 12 || day < 1 || day > 28 && day > daysIn(year, month) ||
		hour > 23 || minute > 59 || second > 59 || kind == Nanos && (year < 1700 || year > 2200) {
		return 0, false
	}
	for ; digits < unit; digits++ {
		fraction *= 10
	}
	return ((daysSince1970(year, month, day)*24+hour)*60+minute)*60*pow10[unit] + second*pow10[unit] + fraction, true
}

var pow10 = [...]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

// number returns the number that digits write.
func number(digits []byte) (n int64, ok bool) {
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func daysIn(year, month int64) int64 {
	if month == 2 {
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return [...]int64{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}[month-1]
}

// daysSince1970 returns the days from 1970-01-01 to a day of the proleptic Gregorian calendar. Years count from March here, so that the
// leap day is the last of its year: https://howardhinnant.github.io/date_algorithms.html.
func daysSince1970(year, month, day int64) int64 {
	if month <= 2 {
		year--
	}
	era := floorDiv(year, 400)
	ofEra := year - era*400
	ofYear := (153*((month+9)%12)+2)/5 + day - 1
	return era*146097 + ofEra*365 + ofEra/4 - ofEra/100 + ofYear - 719468
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// AppendTime appends the text of a time in a column, of a year from 0 to 9999.
func AppendTime(b []byte, v int64, kind Kind, form Form) []byte {
	unit := 6
	if kind == Nanos {
		unit = 9
	}
	seconds := floorDiv(v, pow10[unit])
	fraction := v - seconds*pow10[unit]
	days := floorDiv(seconds, 86400)
	ofDay := seconds - days*86400
	year, month, day := dateOf(days)
	b = append(appendTwo(appendTwo(b, year/100), year%100), '-')
	b = append(appendTwo(b, month), '-')
	b = append(appendTwo(b, day), 'T')
	b = append(appendTwo(b, ofDay/3600), ':')
	b = append(appendTwo(b, ofDay/60%60), ':')
	b = appendTwo(b, ofDay%60)
	digits := int(form)
	if form == Trimmed {
		digits = unit
		for digits > 0 && fraction%10 == 0 {
			fraction /= 10
			digits--
		}
	} else {
		fraction /= pow10[unit-digits]
	}
	if digits > 0 {
		b = appendDigits(append(b, '.'), fraction, digits)
	}
	return append(b, 'Z')
}

// dateOf returns the day that lies some days after 1970-01-01; see daysSince1970. The year must be from 0 to 9999.
func dateOf(days int64) (year, month, day int64) {
	days += 719468
	era := floorDiv(days, 146097)
	ofEra := days - era*146097
	yearOfEra := (ofEra - ofEra/1460 + ofEra/36524 - ofEra/146096) / 365
	ofYear := ofEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	fromMarch := (5*ofYear + 2) / 153
	year, month, day = yearOfEra+era*400, (fromMarch+2)%12+1, ofYear-(153*fromMarch+2)/5+1
	if month <= 2 {
		year++
	}
	return year, month, day
}

const twoDigits = "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849" +
	"5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"

func appendTwo(b []byte, n int64) []byte {
	i := 2 * (uint64(n) % 100)
	return append(b, twoDigits[i], twoDigits[i+1])
}

func appendDigits(b []byte, n int64, digits int) []byte {
	start := len(b)
	b = append(b, "000000000"[:digits]...)
	for i := len(b) - 1; i >= start && n > 0; i-- {
		b[i] = '0' + byte(n%10)
		n /= 10
	}
	return b
}
