package eventtime

import (
	"bytes"
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// came is the time at which the records of the tests came.
var came = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func newRule(t testing.TB, fields []string, zone *time.Location) *Rule {
	t.Helper()
	r, err := New(fields, zone, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// at returns what At finds, as text.
func at(r *Rule, record string) string {
	micros, result := r.At([]byte(record), came.UnixMicro())
	text := time.UnixMicro(micros).UTC().Format("2006-01-02T15:04:05.999999")
	if result != Own {
		if micros != came.UnixMicro() {
			return result.String() + ", but not the time that it came: " + text
		}
		return result.String()
	}
	return text
}

func TestTimesOfCommonLoggersAreFound(t *testing.T) {
	r := newRule(t, DefaultFields, nil)
	for logger, c := range map[string]struct{ record, want string }{
		"slog":                                {`{"time":"2026-03-04T09:08:07.123456789+01:00","level":"INFO","msg":"hello","n":3}`, "2026-03-04T08:08:07.123456"},
		"zerolog":                             {`{"level":"info","time":"2026-03-04T09:08:07Z","message":"hello"}`, "2026-03-04T09:08:07"},
		"zerolog, Unix ms":                    {`{"level":"info","time":1772615287123,"message":"hello"}`, "2026-03-04T09:08:07.123"},
		"logrus":                              {`{"level":"info","msg":"hello","time":"2026-03-04T09:08:07+01:00"}`, "2026-03-04T08:08:07"},
		"zap, production":                     {`{"level":"info","ts":1772615287.1234567,"caller":"main.go:8","msg":"hello"}`, "2026-03-04T09:08:07.123456"},
		"zap, ISO 8601":                       {`{"level":"info","ts":"2026-03-04T09:08:07.123+0100","msg":"hello"}`, "2026-03-04T08:08:07.123"},
		"pino":                                {`{"level":30,"time":1772615287123,"pid":7,"hostname":"h","msg":"hello"}`, "2026-03-04T09:08:07.123"},
		"bunyan":                              {`{"name":"app","hostname":"h","pid":7,"level":30,"msg":"hello","time":"2026-03-04T09:08:07.123Z","v":0}`, "2026-03-04T09:08:07.123"},
		"winston":                             {`{"level":"info","message":"hello","timestamp":"2026-03-04T09:08:07.123Z"}`, "2026-03-04T09:08:07.123"},
		"Serilog":                             {`{"@t":"2026-03-04T09:08:07.1234567Z","@mt":"hello {n}","n":3}`, "2026-03-04T09:08:07.123456"},
		"System.Text.Json":                    {`{"Message":"hello","timestamp":"2026-03-04T09:08:07.1234567\u002B01:00"}`, "2026-03-04T08:08:07.123456"},
		"Log4j, ECS layout":                   {`{"@timestamp":"2026-03-04T09:08:07.123Z","log.level":"INFO","message":"hello","ecs.version":"1.2.0"}`, "2026-03-04T09:08:07.123"},
		"Log4j, instant":                      {`{"instant":{"epochSecond":1772615287,"nanoOfSecond":1},"timestamp":"1772615287123","level":"INFO"}`, "2026-03-04T09:08:07.123"},
		"python-json-logger, with a zone":     {`{"message":"hello","timestamp":"2026-03-04 09:08:07,123+00:00"}`, "2026-03-04T09:08:07.123"},
		"structlog":                           {`{"event":"hello","timestamp":"2026-03-04T09:08:07.123456Z"}`, "2026-03-04T09:08:07.123456"},
		"loguru":                              {`{"text":"hello\n","record":{"time":{"timestamp":1.5}},"timestamp":1772615287.123456}`, "2026-03-04T09:08:07.123456"},
		"Fluent Bit, double":                  {`{"date":1772615287.123456,"log":"hello"}`, "2026-03-04T09:08:07.123456"},
		"Fluent Bit beside the program's own": {`{"date":1772620000.0,"time":"2026-03-04T09:08:07Z","log":"hello"}`, "2026-03-04T09:08:07"},
		"Filebeat beside the program's own":   {`{"@timestamp":"2026-03-04T11:00:00Z","agent":{"time":1},"timestamp":"2026-03-04T09:08:07Z"}`, "2026-03-04T09:08:07"},
		"Docker":                              {`{"log":"hello\n","stream":"stdout","time":"2026-03-04T09:08:07.123456789Z"}`, "2026-03-04T09:08:07.123456"},
		"CloudTrail":                          {`{"eventVersion":"1.08","eventTime":"2026-03-04T09:08:07Z","eventName":"GetObject"}`, "2026-03-04T09:08:07"},
		"Cloudflare, ns":                      {`{"ClientIP":"192.0.2.1","EdgeStartTimestamp":1772615287123456789}`, "2026-03-04T09:08:07.123456"},
		"Cloudflare, text":                    {`{"ClientIP":"192.0.2.1","EdgeStartTimestamp":"2026-03-04T09:08:07Z"}`, "2026-03-04T09:08:07"},
		"Vector, Loki":                        {`{"_time":"1772615287123456789","line":"hello"}`, "2026-03-04T09:08:07.123456"},
		"Ruby, Ougai":                         {`{"name":"app","level":30,"time":"2026-03-04T09:08:07.123+01:00","v":0}`, "2026-03-04T08:08:07.123"},
	} {
		if got := at(r, c.record); got != c.want {
			t.Errorf("%s: got %s, want %s", logger, got, c.want)
		}
	}
}

func TestWhatIsATimeAndWhatIsNot(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{`"2026-03-04T09:08:07Z"`, "2026-03-04T09:08:07"},
		{`"2026-03-04t09:08:07z"`, "2026-03-04T09:08:07"},
		{`"2026-03-04 09:08:07Z"`, "2026-03-04T09:08:07"},
		{`"2026-03-04T09:08:07,5Z"`, "2026-03-04T09:08:07.5"},
		{`"2026-03-04T09:08:07.9999999Z"`, "2026-03-04T09:08:07.999999"},
		{`"2026-03-04T09:08:07-0330"`, "2026-03-04T12:38:07"},
		{`"2026-03-04T09:08:07+23:59"`, "2026-03-03T09:09:07"},
		{`"2016-12-31T23:59:60Z"`, "2017-01-01T00:00:00"},
		{`"2024-02-29T00:00:00Z"`, "2024-02-29T00:00:00"},
		{`"2026\u002d03-04T09:08:07Z"`, "2026-03-04T09:08:07"},
		{`"1970-01-02T00:00:00.000001Z"`, "1970-01-02T00:00:00.000001"},
		{`"1970-01-02T00:00:00Z"`, "unreadable"},
		{`"0001-01-01T00:00:00Z"`, "unreadable"},
		{`"2026-03-04T13:00:00Z"`, "2026-03-04T13:00:00"},
		{`"2026-03-04T13:00:00.000001Z"`, "ahead"},
		{`"9999-12-31T23:59:59Z"`, "ahead"},
		{`"2026-03-04T09:08:07"`, "no_zone"},
		{`"2026-03-04 09:08:07,123"`, "no_zone"},
		{`"2026-02-29T00:00:00Z"`, "unreadable"},
		{`"2100-02-29T00:00:00Z"`, "unreadable"},
		{`"2026-13-01T00:00:00Z"`, "unreadable"},
		{`"2026-03-04T24:00:00Z"`, "unreadable"},
		{`"2026-03-04T09:08:61Z"`, "unreadable"},
		{`"2026-03-04T09:08:07+24:00"`, "unreadable"},
		{`"2026-03-04T09:08:07+01:60"`, "unreadable"},
		{`"2026-03-04T09:08:07+01"`, "unreadable"},
		{`"2026-03-04T09:08:07.Z"`, "unreadable"},
		{`"2026-03-04T09:08Z"`, "unreadable"},
		{`"2026-03-04"`, "unreadable"},
		{`"04/Mar/2026:09:08:07 +0000"`, "unreadable"},
		{`"Mar  4 09:08:07"`, "unreadable"},
		{`"now"`, "unreadable"},
		{`""`, "unreadable"},
		{`"0"`, "unreadable"},
		{`"-"`, "unreadable"},
		{`0`, "unreadable"},
		{`86400`, "unreadable"},
		{`86400.000001`, "1970-01-02T00:00:00.000001"},
		{`-1772615287`, "unreadable"},
		{`1772615287`, "2026-03-04T09:08:07"},
		{`1772615287.5`, "2026-03-04T09:08:07.5"},
		{`1.772615287e9`, "2026-03-04T09:08:07"},
		{`1.7726152875E+9`, "2026-03-04T09:08:07.5"},
		{`17726152875000e-4`, "2026-03-04T09:08:07.5"}, // by its size, a count of seconds
		{`1e400`, "unreadable"},
		{`1e-400`, "unreadable"},
		{`99999999999`, "ahead"},
		{`100000000000`, "1973-03-03T09:46:40"},
		{`1772615287123`, "2026-03-04T09:08:07.123"},
		{`1772615287123.4567`, "2026-03-04T09:08:07.123456"},
		{`1772615287123456`, "2026-03-04T09:08:07.123456"},
		{`1772615287123456789`, "2026-03-04T09:08:07.123456"},
		{`9999999999999999999`, "ahead"},
		{`10000000000000000000`, "unreadable"},
		{`"1772615287123"`, "2026-03-04T09:08:07.123"},
		{`"1772615287.25"`, "2026-03-04T09:08:07.25"},
		{`"000000000001772615287"`, "2026-03-04T09:08:07"},
		{`"1.7e9"`, "unreadable"},
		{`null`, "unreadable"},
		{`true`, "unreadable"},
		{`{}`, "unreadable"},
		{`["2026-03-04T09:08:07Z"]`, "unreadable"},
	} {
		if got := at(newRule(t, []string{"time"}, nil), `{"time":`+c.value+`}`); got != c.want {
			t.Errorf("%s: got %s, want %s", c.value, got, c.want)
		}
	}
}

func TestTheFirstReadableFieldAtTheTopLevelCounts(t *testing.T) {
	r := newRule(t, []string{"a", "b", "c"}, nil)
	const t1, t2, t3 = `"2026-01-01T00:00:00Z"`, `"2026-01-02T00:00:00Z"`, `"2026-01-03T00:00:00Z"`
	for _, c := range []struct{ record, want string }{
		{`{}`, "absent"},
		{`{"x":{"a":` + t1 + `},"y":[{"a":` + t1 + `}],"z":"\"a\":` + `1"}`, "absent"},
		{`{"b":` + t2 + `,"a":` + t1 + `}`, "2026-01-01T00:00:00"},
		{`{"a":"x","b":` + t2 + `}`, "2026-01-02T00:00:00"},
		{`{"a":"x","b":"2026-01-02T00:00:00","c":` + t3 + `}`, "2026-01-03T00:00:00"},
		{`{"a":"x","b":"2026-01-02T00:00:00","c":null}`, "no_zone"},
		{`{"a":null,"b":[]}`, "unreadable"},
		{`{"a":"2099-01-01T00:00:00Z","b":` + t2 + `}`, "ahead"},
		{`{"a":` + t1 + `,"a":` + t2 + `}`, "2026-01-01T00:00:00"},
		{`{"b":"x","b":` + t2 + `,"b":` + t1 + `,"a":null}`, "2026-01-02T00:00:00"},
		{`{"\u0061":` + t1 + `}`, "2026-01-01T00:00:00"},
		{` { "b" : 1 , "a" : ` + t1 + ` } `, "2026-01-01T00:00:00"},
		{`{"A":` + t1 + `}`, "absent"},
	} {
		if got := at(r, c.record); got != c.want {
			t.Errorf("%s: got %s, want %s", c.record, got, c.want)
		}
	}
}

func TestATimeWithoutAZoneIsOfTheZoneThatIsSet(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	r := newRule(t, []string{"time"}, berlin)
	for value, want := range map[string]string{
		`"2026-01-15T09:08:07"`:         "2026-01-15T08:08:07",
		`"2025-07-15 09:08:07.1234567"`: "2025-07-15T07:08:07.123456",
		`"2026-01-15T09:08:07Z"`:        "2026-01-15T09:08:07",
		`"2025-12-31T23:59:60"`:         "2025-12-31T23:00:00",
	} {
		if got := at(r, `{"time":`+value+`}`); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
}

func TestRulesThatCanNotBeLookedForAreRefused(t *testing.T) {
	for _, fields := range [][]string{{""}, {"a", "b", "a"}, {strings.Repeat("x", MaxFieldBytes+1)}, make([]string, MaxFields+1)} {
		if _, err := New(fields, nil, 0); err == nil {
			t.Errorf("%q: not refused", fields)
		}
	}
	many := make([]string, MaxFields)
	for i := range many {
		many[i] = strings.Repeat("x", i+1)
	}
	if got := at(newRule(t, many, nil), `{"`+many[MaxFields-1]+`":"2026-01-01T00:00:00Z"}`); got != "2026-01-01T00:00:00" {
		t.Errorf("the last of the most fields: got %s", got)
	}
}

// reference finds a record's time by the standard library alone.
func reference(r *Rule, record []byte) (micros int64, result Result) {
	var first = make(map[string]int64) // by name, the first value that is a time
	result = Absent
	d := json.NewDecoder(bytes.NewReader(record))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return 0, Results
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return 0, Results
		}
		name := token.(string)
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			return 0, Results
		}
		if !slices.Contains(r.fields, name) {
			continue
		}
		micros, is := referenceValue(raw)
		if _, found := first[name]; is == Own && !found {
			first[name] = micros
		} else if is != Own && result != NoZone {
			result = is
		}
	}
	for _, name := range r.fields {
		if micros, found := first[name]; found {
			return micros, Own
		}
	}
	return 0, result
}

// referenceValue returns the time that a JSON value is.
func referenceValue(raw []byte) (micros int64, result Result) {
	result = Unreadable
	ok := false
	var text string
	if raw[0] == '"' {
		if json.Unmarshal(raw, &text) != nil {
			return 0, Unreadable
		}
		if micros, ok = referenceDate(text); !ok && regexp.MustCompile(`^\d+(\.\d+)?$`).MatchString(text) {
			micros, ok = referenceNumber(text)
		}
		if !ok {
			if _, isDate := referenceDate(text + "Z"); isDate && regexp.MustCompile(`\d$`).MatchString(text) {
				result = NoZone
			}
		}
	} else if regexp.MustCompile(`^\d`).Match(raw) {
		micros, ok = referenceNumber(string(raw))
	}
	if ok && micros > Earliest {
		return micros, Own
	}
	return 0, result
}

func referenceNumber(s string) (micros int64, ok bool) {
	if _, exponent, found := strings.Cut(strings.ToLower(s), "e"); found && len(strings.TrimLeft(exponent, "+-0")) > 2 {
		return 0, false
	}
	n, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, false
	}
	whole := new(big.Int).Quo(n.Num(), n.Denom())
	scale := big.NewRat(1, 1000)
	switch digits := len(whole.String()); {
	case digits > 19:
		return 0, false
	case digits <= 11:
		scale = big.NewRat(1_000_000, 1)
	case digits <= 14:
		scale = big.NewRat(1000, 1)
	case digits <= 17:
		scale = big.NewRat(1, 1)
	}
	n.Mul(n, scale)
	return new(big.Int).Quo(n.Num(), n.Denom()).Int64(), true
}

func referenceDate(s string) (micros int64, ok bool) {
	m := regexp.MustCompile(`^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:)(\d\d)(?:[.,](\d+))?(?:([Zz])|([+-]\d\d):?(\d\d))$`).FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	second, zone := m[3], "Z"
	if m[6] != "" {
		zone = m[6] + ":" + m[7]
	}
	leap := time.Duration(0)
	if second == "60" {
		second, leap = "59", time.Second
	}
	at, err := time.Parse(time.RFC3339, m[1]+"T"+m[2]+second+zone)
	if err != nil || m[6] == "+24" || m[6] == "-24" {
		return 0, false
	}
	fraction, _ := new(big.Int).SetString((m[4] + "000000")[:6], 10)
	return at.Add(leap).UnixMicro() + fraction.Int64(), true
}

func FuzzTimesAreThoseOfTheReference(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"time":1772615287.5e0,"ts":"2026-03-04T09:08:07,5+01:00"}`, `{"a":{"time":1},"time":"1772615287123"}`, `{"time":"\u0032026-03-04T09:08:07Z"}`,
		`{"t\u0069me":1e10,"time":null,"@t":"2026-03-04 09:08:60"}`, ` {"x":[1,{"y":"}"}] , "ts" : 17726152871234567.1E2 } `, `{"time":"2026-03-04T09:08:07+24:00"}`,
	} {
		f.Add([]byte(s))
	}
	r := newRule(f, DefaultFields, nil)
	f.Fuzz(func(t *testing.T, record []byte) {
		micros, result := r.Find(record) // must not panic, whatever it is
		if !json.Valid(record) || bytes.IndexByte(bytes.TrimSpace(record), '{') != 0 {
			return
		}
		wantMicros, want := reference(r, record)
		if want != Results && (micros != wantMicros || result != want) {
			t.Errorf("%s: got %d, %v; want %d, %v", record, micros, result, wantMicros, want)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	r := newRule(b, DefaultFields, nil)
	rest := `"level":"info","service":"checkout","host":"web-07.example.com","message":"request done","http":{"method":"GET","path":"/orders/1234","status":200},"duration_ms":12.75,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"`
	for name, record := range map[string]string{
		"second": `{"level":"info","timestamp":"2026-03-04T09:08:07.123Z",` + rest + `}`,
		"first":  `{"timestamp":"2026-03-04T09:08:07.123Z",` + rest + `}`,
		"last":   `{` + rest + `,"time":"2026-03-04T09:08:07.123Z"}`,
		"number": `{"ts":1772615287.123456,` + rest + `}`,
		"none":   `{` + rest + `}`,
	} {
		b.Run(name, func(b *testing.B) {
			record := []byte(record)
			b.SetBytes(int64(len(record)))
			b.ReportAllocs()
			for b.Loop() {
				r.Find(record)
			}
		})
	}
}
