package mapping

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/record"
	"millrace/internal/scan"
)

const (
	attributes = First + iota
	service
	resource
	labels
)

var config = Config{
	Sources: []SourceConfig{{"attributes", true}, {"protocol", true}, {"resource", true}, {"labels", false}},
	Encoder: upper{},
}

// upper writes a value in capitals.
type upper struct{}

func (upper) Encode(w *record.Writer, key, value string, form uint64) {
	w.Array(key, func(a record.Elements) { a.String(strings.ToUpper(value)); a.Uint(form) })
}

func newList() *record.List {
	return &record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10, Repair: true}}
}

// made returns the records that fill makes, as JSON with sorted keys.
func made(t testing.TB, fill func(m *Mapper)) string {
	t.Helper()
	l := newList()
	l.Begin()
	m := New(l, config, false)
	fill(m)
	m.Free()
	l.End()
	for _, e := range l.Errors {
		t.Errorf("refused: %v", e)
	}
	var all []string
	for _, line := range strings.Split(strings.TrimSuffix(string(l.NDJSON), "\n"), "\n") {
		all = append(all, sorted(t, line))
	}
	return strings.Join(all, "\n")
}

// sorted returns JSON with sorted keys.
func sorted(t testing.TB, text string) string {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestARecordHasWhatEachSourceSays(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(m *Mapper)
		want string
	}{
		{"nothing", func(*Mapper) {}, `{}`},
		{"a text", func(m *Mapper) { m.Message("hello") }, `{"message":"hello"}`},
		{"every kind", func(m *Mapper) {
			m.String(Own, "s", "a\"b")
			m.Int(Own, "i", math.MinInt64)
			m.Uint(Own, "u", math.MaxUint64)
			m.Float(Own, "f", 0.5)
			m.Bool(Own, "b", true)
			m.Null(Own, "n")
			m.Hex(Own, "h", "\x00\xab")
			m.JSON(Own, "j", `{"a": [1e2]}`)
			m.Encoded(Own, "e", "x", 7)
		}, `{"b":true,"e":["X",7],"f":0.5,"h":"00ab","i":-9223372036854775808,"j":{"a":[1e2]},"n":null,"s":"a\"b","u":18446744073709551615}`},
		{"dots make objects", func(m *Mapper) {
			m.String(attributes, "http.request.method", "GET")
			m.Int(attributes, "http.status", 200)
			m.String(resource, "http.host", "h")
		}, `{"http":{"host":"h","request":{"method":"GET"},"status":200}}`},
		{"dots of other sources stay", func(m *Mapper) { m.String(labels, "a.b", "c"); m.String(Own, "d.e", "f") }, `{"a.b":"c","d.e":"f"}`},
		{"odd dots stay", func(m *Mapper) {
			for _, key := range []string{".", "..", "a.", ".b", "c..d", ""} {
				m.Int(attributes, key, 1)
			}
		}, `{"":1,".":1,"..":1,".b":1,"a.":1,"c":{".d":1}}`},
		{"a prefix that has a value keeps the rest", func(m *Mapper) {
			m.String(attributes, "http", "x")
			m.Int(attributes, "http.status", 200)
			m.Int(resource, "http.status.a", 1)
		}, `{"http":"x","http.status":200,"http.status.a":1}`},
		{"a value whose name is an object's loses", func(m *Mapper) {
			m.Int(attributes, "http.status", 200)
			m.String(attributes, "http", "x")
			m.String(resource, "http", "y")
		}, `{"attributes":{"http":"x"},"http":{"status":200},"resource":{"http":"y"}}`},
		{"the first source wins", func(m *Mapper) {
			m.String(Own, "a", "own")
			m.String(attributes, "a", "attribute")
			m.String(attributes, "b.c", "attribute")
			m.String(resource, "a", "resource")
			m.String(resource, "b.c", "resource")
		}, `{"a":"own","attributes":{"a":"attribute"},"b":{"c":"attribute"},"resource":{"a":"resource","b":{"c":"resource"}}}`},
		{"equal values are there once", func(m *Mapper) {
			m.Message(`{"a":"x","b":{"c":"y"}}`)
			m.String(attributes, "a", "x")
			m.String(attributes, "b.c", "y")
			m.Int(attributes, "d", 1)
			m.Int(resource, "d", 1)
		}, `{"a":"x","b":{"c":"y"},"d":1}`},
		{"the last of one source counts", func(m *Mapper) {
			m.Int(Own, "z", 0)
			for i := range 3 {
				m.Int(attributes, "a.b", int64(i))
				m.Int(attributes, "z", int64(i+1))
			}
		}, `{"a":{"b":2},"attributes":{"z":3},"z":0}`},
		{"the name for losers is taken", func(m *Mapper) {
			m.Message(`{"attributes":{"a":1},"_attributes":2,"a":0}`)
			m.Int(attributes, "a", 3)
			m.Int(attributes, "attributes", 4)
			m.Int(attributes, "__attributes.a", 5)
		}, `{"__attributes":{"a":3,"attributes":4},"__attributes.a":5,"_attributes":2,"a":0,"attributes":{"a":1}}`},
		{"losers that have no place among losers", func(m *Mapper) {
			m.Message(`{"a":{"b":1}}`)
			m.Int(attributes, "a.b", 2)
			m.Int(attributes, "a", 3)
			m.Int(attributes, "_", 4)
			m.Int(attributes, "a", 5)
		}, `{"_":4,"a":{"b":1},"attributes":{"_":{"a":5},"a":{"b":2}}}`},
		{"JSON becomes the record's own fields", func(m *Mapper) {
			m.Message(" {\"level\":30, \"msg\":\"hi\", \"host\":{\"ip\":\"1\"}}\r\n")
			m.Time(service, 1e9)
			m.Level(service, "INFO")
			m.String(service, HostField, "h")
			m.String(service, ServiceField, "s")
		}, `{"host":{"ip":"1"},"host.name":"h","level":30,"msg":"hi","protocol":{"level":"info"},"service":{"name":"s"},"time":"1970-01-01T00:00:01Z"}`},
		{"JSON that has the path already", func(m *Mapper) {
			m.Message(`{"host":{"na\u006de":"a"},"service":{"name":"s"},"os":{"a.b":1}}`)
			m.String(service, HostField, "h")
			m.String(service, ServiceField, "s")
			m.Int(service, "os.a.b", 2)
		}, `{"host":{"name":"a"},"os":{"a.b":1},"protocol":{"host":{"name":"h"},"os":{"a":{"b":2}}},"service":{"name":"s"}}`},
		{"JSON that has the key with its dots", func(m *Mapper) {
			m.Message(`{"service.name":"a"}`)
			m.String(service, ServiceField, "s")
			m.String(resource, ServiceField, "a")
		}, `{"protocol":{"service":{"name":"s"}},"service.name":"a"}`},
		{"text that is nearly JSON", func(m *Mapper) { m.Message(`{"a":1} {"b":2}`) }, `{"message":"{\"a\":1} {\"b\":2}"}`},
		{"text in braces", func(m *Mapper) { m.Message(`{a}`) }, `{"message":"{a}"}`},
		{"an empty object", func(m *Mapper) { m.Message(`{ }`); m.Int(attributes, "a", 1) }, `{"a":1}`},
		{"JSON that has to be repaired", func(m *Mapper) {
			m.Message(`{ "a":"\u0000", "b":"x" }`)
			m.String(attributes, "b", "\x00")
		}, `{"_repaired":["a","attributes"],"a":"�","attributes":{"b":"�"},"b":"x"}`},
		{"JSON whose numbers grow", func(m *Mapper) { m.Message(`{"a":1e3}`); m.Int(resource, "b", 1) }, `{"a":1e3,"b":1}`},
		{"the log of Docker's files", func(m *Mapper) {
			m.Message(`{"log":"{\"time\":\"a\",\"msg\":\"hi\"}\n","stream":"stdout","time":"b"}`)
			m.Time(service, 5)
		}, `{"@timestamp":"1970-01-01T00:00:00.000000005Z","msg":"hi","outer":{"time":"b"},"stream":"stdout","time":"a"}`},
		{"a log that is text", func(m *Mapper) { m.Message(`{"log":"{hi\n","stream":"stdout"}`) }, `{"log":"{hi\n","stream":"stdout"}`},
		{"a log without escapes", func(m *Mapper) { m.Message(`{"log":"{}","a":"\ud800"}`) }, `{"_repaired":["a"],"a":"�"}`},
		{"the record has a time", func(m *Mapper) {
			m.Message(`{"time":"mine"}`)
			m.Time(service, -1)
		}, `{"@timestamp":"1969-12-31T23:59:59.999999999Z","time":"mine"}`},
		{"the record has both times", func(m *Mapper) {
			m.String(attributes, "time", "1")
			m.String(attributes, "@timestamp", "2")
			m.Time(service, 1_500_000_000)
		}, `{"@timestamp":"2","protocol":{"time":"1970-01-01T00:00:01.5Z"},"time":"1"}`},
		{"levels in small letters", func(m *Mapper) { m.Level(service, "ÄRGER Fatal") }, `{"level":"ärger fatal"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := made(t, func(m *Mapper) { m.Begin(); c.fill(m); m.End(0) })
			if tree := made(t, func(m *Mapper) { m.alwaysInTree = true; m.Begin(); c.fill(m); m.End(0) }); tree != got {
				t.Errorf("without a tree %s\nwith one %s", got, tree)
			}
			if diff := cmp.Diff(sorted(t, c.want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if many := made(t, func(m *Mapper) { withManyFields(m, c.fill) }); many != sorted(t, withManyWanted(c.want)) {
				t.Errorf("with many fields more got\n%s want\n%s", many, sorted(t, withManyWanted(c.want)))
			}
		})
	}
}

// many is how many fields are added to a record to make it one with a table.
const many = 3 * tableFrom

// withManyFields makes a record of fill with many fields more, the last of which are shared.
func withManyFields(m *Mapper, fill func(m *Mapper)) {
	m.BeginShared()
	for i := range many {
		m.Int(labels, fmt.Sprintf("many%d", many+i), 0)
	}
	m.EndShared()
	m.Begin()
	fill(m)
	for i := range many {
		m.Int(labels, fmt.Sprintf("many%d", i), 0)
	}
	m.End(0)
}

func withManyWanted(want string) string {
	var b strings.Builder
	b.WriteString(strings.TrimSuffix(want, "}"))
	for i := range 2 * many {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"many%d":0`, i)
	}
	return b.String() + "}"
}

func TestRecordsHaveWhatTheyShare(t *testing.T) {
	got := made(t, func(m *Mapper) {
		m.BeginShared()
		m.String(resource, "service.name", "shop")
		m.String(resource, "level", "x")
		m.String(labels, "level", "y")
		m.Hex(labels, "id", "\x01")
		m.EndShared()
		for _, text := range []string{"a", "b", `{"level":"x"}`, `{"level":"z","service":1}`, `{"service.name":"other"}`, `{"resource":1,"level":2}`, "c"} {
			m.Begin()
			m.Message(text)
			m.End(0)
		}
		m.BeginShared()
		m.String(labels, "level", "\x00")
		m.EndShared()
		for range 2 {
			m.Begin()
			m.End(0)
		}
		m.BeginShared()
		m.EndShared()
		m.Begin()
		m.Message("d")
		m.End(0)
	})
	want := `{"id":"01","labels":{"level":"y"},"level":"x","message":"a","service":{"name":"shop"}}
{"id":"01","labels":{"level":"y"},"level":"x","message":"b","service":{"name":"shop"}}
{"id":"01","labels":{"level":"y"},"level":"x","service":{"name":"shop"}}
{"id":"01","labels":{"level":"y"},"level":"z","resource":{"level":"x"},"service":1,"service.name":"shop"}
{"id":"01","labels":{"level":"y"},"level":"x","resource":{"service":{"name":"shop"}},"service.name":"other"}
{"_resource":{"level":"x"},"id":"01","labels":{"level":"y"},"level":2,"resource":1,"service":{"name":"shop"}}
{"id":"01","labels":{"level":"y"},"level":"x","message":"c","service":{"name":"shop"}}
{"_repaired":["level"],"level":"�"}
{"_repaired":["level"],"level":"�"}
{"message":"d"}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTextIsKeptWhereThatIsAsked(t *testing.T) {
	l := newList()
	l.Begin()
	m := New(l, config, true)
	m.Begin()
	m.Message(`{"a":1}`)
	m.End(0)
	m.Free()
	l.End()
	if got, want := string(l.NDJSON), `{"message":"{\"a\":1}"}`+"\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

// added is a value that a test has added, with a number that no other value of it has.
type added struct {
	source Source
	key    string
	number int64
}

// TestARecordIsTheSameBehindOthers makes records one behind the other, and each alone. Most differ little from the one before.
func TestARecordIsTheSameBehindOthers(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	keys := []string{"a", "b", "a.b", "a.b.c", "a.c", "c.d.e.f", "time", "@timestamp", "a.time", "b\xff", "x.\xff.y", "long.name.of.a.field", "labels", "", "a..b"}
	texts := []string{"text", "", "a\x00b", `quote"`, `{"a":1,"time":"t"}`, `{}`, "\xff"}
	type step func(m *Mapper)
	newStep := func() step {
		s, key, text, number := Source(random.IntN(5)), keys[random.IntN(len(keys))], texts[random.IntN(len(texts))], random.Int64N(1e6)
		if s == Outer {
			s = attributes
		}
		switch random.IntN(9) {
		case 0:
			return func(m *Mapper) { m.Time(service, number) }
		case 1:
			return func(m *Mapper) { m.Stamp(s, key, number) }
		case 2:
			return func(m *Mapper) { m.Encoded(s, key, text, uint64(number)) }
		case 3:
			return func(m *Mapper) { m.JSON(s, key, `{"u":"\u0000"}`) }
		case 4, 5:
			return func(m *Mapper) { m.Int(s, key, number) }
		default:
			return func(m *Mapper) { m.String(s, key, text) }
		}
	}
	type record struct {
		shared, steps []step
	}
	lines := func(records ...record) string {
		l := newList()
		l.Begin()
		m := New(l, config, false)
		for i, r := range records {
			if i == 0 || !sameSteps(r.shared, records[i-1].shared) {
				m.BeginShared()
				for _, add := range r.shared {
					add(m)
				}
				m.EndShared()
			}
			m.Begin()
			for _, add := range r.steps {
				add(m)
			}
			m.End(0)
		}
		m.Free()
		l.End()
		if len(l.Errors) > 0 {
			t.Fatal(l.Errors)
		}
		return string(l.NDJSON)
	}
	for range 20_000 {
		var r record
		for range random.IntN(3) {
			r.shared = append(r.shared, newStep())
		}
		if random.IntN(2) == 0 {
			text := texts[random.IntN(len(texts))]
			r.steps = append(r.steps, func(m *Mapper) { m.Message(text) })
		}
		for range 1 + random.IntN(8) {
			r.steps = append(r.steps, newStep())
		}
		all, alone := []record{r}, lines(r)
		for range 1 + random.IntN(6) {
			r.steps = slices.Clone(r.steps)
			switch i := random.IntN(len(r.steps)); random.IntN(7) {
			case 0:
				r.steps = append(r.steps, newStep())
			case 1:
				r.steps = r.steps[:i+1]
			case 2:
				if i > 0 { // a text comes first
					r.steps[i] = newStep()
				}
			case 3:
				slices.Reverse(r.steps[i+1:])
			case 4:
				r.shared = []step{newStep()}
			}
			all, alone = append(all, r), alone+lines(r)
		}
		if together := lines(all...); together != alone {
			t.Fatalf("together\n%s\nalone\n%s", together, alone)
		}
	}
}

// sameSteps reports whether a and b are the same slice.
func sameSteps[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// TestEveryValueIsInTheRecord adds random values and looks for each.
func TestEveryValueIsInTheRecord(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b", "time", "attributes", "_attributes", "resource", "labels", "_", "log", "", "outer", "@timestamp"}
	key := func() string {
		parts := make([]string, 1+random.IntN(3))
		for i := range parts {
			parts[i] = words[random.IntN(len(words))]
		}
		return strings.Join(parts, ".")
	}
	for range 3000 {
		var all, shared []added
		for _, s := range []Source{attributes, resource, labels} {
			for range random.IntN(6) * (1 + 9*random.IntN(2)*random.IntN(2)) {
				v := added{s, key(), int64(1000 + len(all))}
				if all = append(all, v); s >= resource {
					shared = append(shared, v)
				}
			}
		}
		own := map[string]any{}
		for range random.IntN(6) {
			own[key()] = any(100 + len(own))
			if random.IntN(3) == 0 {
				own[words[random.IntN(len(words))]] = map[string]any{key(): 200 + len(own)}
			}
		}
		text, err := json.Marshal(own)
		if err != nil {
			t.Fatal(err)
		}
		fill := func(m *Mapper) {
			m.BeginShared()
			for _, v := range shared {
				m.Int(v.source, v.key, v.number)
			}
			m.EndShared()
			m.Begin()
			m.Message(string(text))
			for _, v := range all[:len(all)-len(shared)] {
				m.Int(v.source, v.key, v.number)
			}
			m.Time(service, 77)
			m.End(0)
		}
		got := made(t, fill)
		if again := made(t, fill); again != got {
			t.Fatalf("the same values make\n%s\nand\n%s", got, again)
		}
		inTree := func(m *Mapper) {
			m.alwaysInTree = true
			fill(m)
		}
		if other := made(t, inTree); other != got {
			t.Fatalf("without a tree\n%s\nwith one\n%s", got, other)
		}
		var record map[string]any
		if err := json.Unmarshal([]byte(got), &record); err != nil {
			t.Fatal(err)
		}
		for k, v := range own {
			want, _ := json.Marshal(v)
			if is, _ := json.Marshal(record[k]); string(is) != string(want) {
				t.Fatalf("own field %q is %s, want %s, in %s from %s", k, is, want, got, text)
			}
		}
		if !strings.Contains(got, `"1970-01-01T00:00:00.000000077Z"`) {
			t.Fatalf("the time is not in %s", got)
		}
		for i, v := range all {
			last := true
			for _, other := range all[i+1:] {
				last = last && (other.source != v.source || other.key != v.key)
			}
			if want := fmt.Sprintf(":%d", v.number); last && !strings.Contains(got, want) {
				t.Fatalf("%v is not in %s from %s and %v", v, got, text, all)
			}
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, text := range []string{`{"a":1}`, `{"a":{"b":"c"},"log":"{\"d\":[1,\"\\u0000\"]}"}`, ` { "a" : "\ud800" , "b":1e400 } `, "{}", "{", `{"":"","log":"{}"}`, `{"a":"\\","b":"\""}`} {
		f.Add(text, "a.b", "x")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		l := newList()
		l.Begin()
		m := New(l, config, false)
		m.BeginShared()
		m.String(labels, key, value)
		m.EndShared()
		for range 2 {
			m.Begin()
			m.Message(text)
			m.String(attributes, key, value)
			m.Time(service, 1)
			m.End(0)
		}
		m.Free()
		l.End()
		if l.Accepted != 2 {
			t.Fatalf("refused: %v", l.Errors)
		}
		check := record.List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
		if err := check.Split(append([]byte(nil), l.NDJSON...)); err != nil || check.Accepted != 2 || string(check.NDJSON) != string(l.NDJSON) {
			t.Fatalf("what was made is not as it would be stored: %v %v\n%s", err, check.Errors, l.NDJSON)
		}
		lines := strings.Split(string(l.NDJSON), "\n")
		if lines[0] != lines[1] {
			t.Fatalf("the same values make\n%s\nand\n%s", lines[0], lines[1])
		}
	})
}

// fillCommon adds what a common record has.
func fillCommon(m *Mapper, message string) {
	m.Begin()
	m.Message(message)
	m.String(attributes, "http.request.method", "GET")
	m.Int(attributes, "http.response.status_code", 200)
	m.String(attributes, "url.path", "/checkout")
	m.Float(attributes, "duration", 0.25)
	m.Time(service, 1795809601123456789)
	m.Level(service, "INFO")
	m.Int(service, "severity_number", 9)
	m.Hex(service, TraceField, "0123456789abcdef")
	m.End(0)
}

// shareCommon adds what common records share.
func shareCommon(m *Mapper) {
	m.BeginShared()
	m.String(resource, "service.name", "checkout")
	m.String(resource, "service.version", "1.2.3")
	m.String(resource, "host.name", "web-1")
	m.EndShared()
}

func TestCommonRecordsCostNoAllocation(t *testing.T) {
	for _, message := range []string{strings.Repeat("hello world ", 10), `{"msg":"hello world","n":1,"nested":{"a":[1,2,3]}}`} {
		l := newList()
		l.Begin()
		m := New(l, config, false)
		shareCommon(m)
		allocs := testing.AllocsPerRun(200, func() {
			l.Begin()
			fillCommon(m, message)
			l.End()
		})
		m.Free()
		if l.Rejected > 0 || allocs > 0 {
			t.Errorf("%v allocations, %v", allocs, l.Errors)
		}
	}
}

// BenchmarkRecord makes records. Its last line reads the same records as NDJSON.
func BenchmarkRecord(b *testing.B) {
	const batch = 500
	text := strings.Repeat("hello world ", 8)
	for _, c := range []struct{ name, message string }{
		{"text", text},
		{"JSON", `{"msg":"hello world hello world","n":1,"nested":{"a":[1,2,3]},"user":"someone"}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newList()
			l.Begin()
			m := New(l, config, false)
			shareCommon(m)
			b.ReportAllocs()
			for i := range b.N {
				if i%batch == 0 {
					l.End()
					l.Begin()
				}
				fillCommon(m, c.message)
			}
			m.Free()
		})
	}
	b.Run("Split", func(b *testing.B) {
		l := newList()
		l.Begin()
		m := New(l, config, false)
		shareCommon(m)
		for range batch {
			fillCommon(m, text)
		}
		m.Free()
		l.End()
		body := append([]byte(nil), l.NDJSON...)
		b.ReportAllocs()
		for i := 0; i < b.N; i += batch {
			if err := l.Split(body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A member takes two bytes of protobuf, and a hundred here.
func TestARecordWithTooManyMembersIsRefused(t *testing.T) {
	limits := scan.Limits{RecordBytes: 1 << 30, PieceBytes: 1 << 30}
	config := Config{Sources: []SourceConfig{{Name: "attributes", Dotted: true}}}
	for name, fill := range map[string]func(m *Mapper){
		"members": func(m *Mapper) {
			m.Begin()
			for range MostMembers + 1 {
				m.Null(First, "")
			}
		},
		"objects of dots": func(m *Mapper) {
			m.Begin()
			for i := range MostMembers / 8 {
				m.Null(First, fmt.Sprintf("%d.b.c.d.e.f.g.h.i.j", i))
			}
		},
		"shared members": func(m *Mapper) {
			m.BeginShared()
			for range MostMembers {
				m.Null(First, "")
			}
			m.EndShared()
			m.Begin()
			m.Null(First, "one more")
		},
		"shared objects of dots": func(m *Mapper) {
			m.BeginShared()
			for i := range MostMembers / 8 {
				m.Null(First, fmt.Sprintf("%d.b.c.d.e.f.g.h.i.j", i))
			}
			m.EndShared()
			m.Begin()
		},
		"members of its own": func(m *Mapper) {
			object := []byte("{")
			for i := range MostMembers {
				object = fmt.Appendf(object, `"%d":1,`, i)
			}
			m.Begin()
			m.Fields(string(append(object, `"a":1}`...)))
			m.Null(First, "a")
		},
	} {
		records := &record.List{Limits: limits}
		records.Begin()
		m := New(records, config, false)
		fill(m)
		refused := !m.End(0)
		m.BeginShared()
		m.EndShared()
		m.Begin()
		m.Message("the next")
		taken := m.End(1)
		m.Free()
		records.End()
		if !refused || !taken || records.RejectedBy[scan.TooLarge] != 1 || string(records.NDJSON) != "{\"message\":\"the next\"}\n" {
			t.Errorf("%s: refused %v, the next taken %v, records %.100s", name, refused, taken, records.NDJSON)
		}
	}
}
