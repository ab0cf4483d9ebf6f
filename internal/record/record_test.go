package record

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"millrace/internal/scan"
)

func newList() *List {
	return &List{Limits: scan.Limits{RecordBytes: 1 << 20, PieceBytes: 64 << 10}}
}

func TestARecordIsBuiltAsItIsWritten(t *testing.T) {
	l := newList()
	l.Begin()
	ok := l.Build(0, func(w *Writer) {
		w.String("message", "a \"b\"\\\n\r\t\x01é\U0001f600")
		w.Text("nul", []byte("a\x00b"))
		w.String("bytes", "\xff\xc3")
		w.Int("least", math.MinInt64)
		w.Uint("most", math.MaxUint64)
		w.Float("half", 0.5)
		w.Float("large", 1e21)
		w.Float("none", math.NaN())
		w.Float("low", math.Inf(-1))
		w.Bool("yes", true)
		w.Null("null")
		w.Time("time", time.Unix(0, 1))
		w.Object("o", func(w *Writer) { w.Object("empty", func(*Writer) {}) })
		w.Array("a", func(a Elements) {
			a.Int(1)
			a.String("{")
			a.Array(func(Elements) {})
			a.Object(func(w *Writer) { w.Bool("no", false) })
			a.Null()
		})
		if !w.Repaired() {
			t.Error("nothing is said to be repaired")
		}
	})
	l.End()
	want := `{"message":"a \"b\"\\\n\r\t\u0001é😀","nul":"a�b","bytes":"��","least":-9223372036854775808,"most":18446744073709551615,` +
		`"half":0.5,"large":1000000000000000000000,"none":"NaN","low":"-Infinity","yes":true,"null":null,"time":"1970-01-01T00:00:00.000000001Z",` +
		`"o":{"empty":{}},"a":[1,"{",[],{"no":false},null]}` + "\n"
	if !ok || string(l.NDJSON) != want {
		t.Errorf("accepted %v, got\n%s want\n%s", ok, l.NDJSON, want)
	}
}

func TestWhatIsRefusedOfBuiltRecordsHarmsNoOther(t *testing.T) {
	l := newList()
	l.Limits.RecordBytes = 500
	l.KeepVerdicts = true
	l.Begin()
	var nest func(depth int) func(w *Writer)
	nest = func(depth int) func(w *Writer) {
		return func(w *Writer) {
			if depth > 1 {
				w.Object("", nest(depth-1))
			}
		}
	}
	got := []bool{
		l.Build(0, nest(100)),
		l.Build(1, func(w *Writer) { w.String("m", strings.Repeat("x", 500)) }),
		l.Build(2, nest(scan.MaxDepth+1)),
		l.Build(3, func(w *Writer) { w.JSON("j", []byte(` {"a" : [1] } `)) }),
		l.Build(4, func(w *Writer) { w.JSON("j", []byte(`{"a":"\u0000"}`)) }),
		l.Build(5, func(w *Writer) { w.JSON("j", []byte(`1},{"a":2`)) }),
		l.Build(6, func(w *Writer) { w.JSON("j", []byte(`1e200`)) }),
		l.Add([]byte(`{"added":true}`), 7),
	}
	l.End()
	for i, want := range []bool{true, false, false, true, false, false, true, true} {
		if got[i] != want || l.Verdicts[i].Accepted() != want {
			t.Errorf("record %d: accepted %v, want %v", i, got[i], want)
		}
	}
	for i, want := range []scan.Reason{scan.TooLarge, scan.Depth, scan.NUL, scan.Syntax} {
		if e := l.Errors[i]; e.Err.Reason != want {
			t.Errorf("error %d: %v, want %v", i, e.Err.Reason, want)
		}
	}
	lines := strings.Split(strings.TrimSuffix(string(l.NDJSON), "\n"), "\n")
	if len(lines) != 4 || lines[1] != `{"j":{"a":[1]}}` || lines[3] != `{"added":true}` {
		t.Errorf("got %q", lines)
	}
	l.Clear()
	if l.KeepVerdicts || l.Single([]byte("{}")) != nil || len(l.Verdicts) > 0 {
		t.Error("verdicts are kept for the next request")
	}
}

func TestABuiltRecordSaysWhatWasRepaired(t *testing.T) {
	l := newList()
	l.Limits.RecordBytes, l.Limits.Repair = 1000, true
	l.Begin()
	for i, fill := range []func(w *Writer){
		func(w *Writer) {
			w.String("a", "\x00\x00")
			w.Int("b", 1)
			w.Object("c", func(w *Writer) { w.Text("d", []byte("\xff")); w.Float("e", math.Inf(1)) })
		},
		func(w *Writer) { w.String("a\x00", "x") },
		func(w *Writer) { w.Array("_repaired", func(a Elements) { a.String("x") }); w.Float("f", math.NaN()) },
		func(w *Writer) { w.String("m", strings.Repeat("x", 2000)); w.String("n", "\x00") },
		func(w *Writer) { w.JSON("j", []byte(`"\u0000"`)); w.String("n", "\x00") },
		func(w *Writer) { w.String("m", "fine") },
	} {
		if !l.Build(i, fill) {
			t.Errorf("record %d is refused: %v", i, l.Errors)
		}
	}
	l.End()
	var nest func(depth int) func(w *Writer)
	nest = func(depth int) func(w *Writer) {
		return func(w *Writer) {
			if depth > 1 {
				w.Object("", nest(depth-1))
			}
		}
	}
	got := string(l.NDJSON)
	want := `{"a":"��","b":1,"c":{"d":"�","e":"Infinity"},"_repaired":["a","c"]}` + "\n" +
		`{"a�":"x","_repaired":["a�"]}` + "\n" + `{"f":"NaN","_repaired":["x","f"]}` + "\n" +
		`{"m":"` + strings.Repeat("x", 960) + `","n":"�","_repaired":["m","n"]}` + "\n" +
		`{"j":"�","n":"�","_repaired":["j","n"]}` + "\n" + `{"m":"fine"}` + "\n"
	if got != want || l.Repaired != 5 || l.RepairedBy(scan.NUL) != 4 {
		t.Errorf("%d repaired, got\n%s want\n%s", l.Repaired, got, want)
	}
	l.Begin()
	l.Build(0, nest(scan.MaxDepth+3))
	l.End()
	if l.Accepted != 1 || l.RepairedBy(scan.Depth) != 1 || !strings.Contains(string(l.NDJSON), `:"{\"\":{\"\":{}}}"}`) {
		t.Errorf("nested too deep: %v, %s", l.Errors, l.NDJSON)
	}
	l.Begin()
	if l.Build(0, func(w *Writer) { w.JSON("j", []byte(`x`)); w.String("n", "\x00") }) || l.Errors[0].Err.Reason != scan.Syntax {
		t.Errorf("no JSON: %v", l.Errors)
	}
	l.End()
	if l.Clear(); l.Limits.Repair || l.Repaired > 0 {
		t.Error("the next request's records are repaired")
	}
}

func TestBuildingRecordsCostsNoAllocation(t *testing.T) {
	l := newList()
	message := []byte(strings.Repeat("hello \"world\" é", 10))
	build := func() {
		l.Begin()
		for range 100 {
			l.Build(0, func(w *Writer) {
				w.Text("message", message)
				w.Object("host", func(w *Writer) { w.String("name", "a") })
				w.Array("list", func(a Elements) { a.Float(1.5) })
			})
		}
		l.End()
	}
	build()
	if got := testing.AllocsPerRun(10, build); got != 0 {
		t.Errorf("100 records cost %v allocations", got)
	}
}

// FuzzBuild writes whatever the bytes say. The scanner must take the record and leave it as
// it is.
func FuzzBuild(f *testing.F) {
	f.Add([]byte("\x00key\x01\xff\x02{\x03\x04\x05\x06\x07"), 1.5)
	f.Add([]byte(strings.Repeat("\x05", 200)), math.Inf(1))
	f.Add([]byte("\x06\x06\x00a\x00\x06\x05\x00\xed\xa0\x80"), 5e-324)
	f.Fuzz(func(t *testing.T, ops []byte, number float64) {
		next := func() byte {
			if len(ops) == 0 {
				return 23 // ends arrays and objects
			}
			c := ops[0]
			ops = ops[1:]
			return c
		}
		text := func() string {
			n := min(int(next())%9, len(ops))
			s := string(ops[:n])
			ops = ops[n:]
			return s
		}
		var object func(w *Writer)
		var array func(a Elements)
		object = func(w *Writer) {
			for {
				switch c := next(); c % 8 {
				case 0:
					w.String(text(), text())
				case 1:
					w.Text(text(), []byte(text()))
				case 2:
					w.Int(text(), int64(c)-100)
				case 3:
					w.Float(text(), number*float64(c))
				case 4:
					w.Null(text())
				case 5:
					w.Object(text(), object)
				case 6:
					w.Array(text(), array)
				default:
					return
				}
			}
		}
		array = func(a Elements) {
			for {
				switch c := next(); c % 6 {
				case 0:
					a.String(text())
				case 1:
					a.Float(number / float64(c))
				case 2:
					a.Bool(c < 100)
				case 3:
					a.Object(object)
				case 4:
					a.Array(array)
				default:
					return
				}
			}
		}
		l := newList()
		l.Begin()
		ok := l.Build(0, object)
		l.End()
		if !ok {
			if e := l.Errors[0].Err; e.Reason != scan.Depth && e.Reason != scan.TooLarge {
				t.Fatalf("refused: %v", &e)
			}
			return
		}
		built := string(l.NDJSON)
		if !json.Valid([]byte(built)) {
			t.Fatalf("not JSON: %s", built)
		}
		again := newList()
		if err := again.Single([]byte(built)); err != nil || string(again.NDJSON) != built {
			t.Errorf("the scanner makes of %q %q, %v", built, again.NDJSON, err)
		}
	})
}
