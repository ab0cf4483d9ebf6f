package scan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func repairing(bytes int) Limits {
	return Limits{RecordBytes: bytes, PieceBytes: 1 << 10, Repair: true}
}

func TestARecordThatCantBeStoredIsRepaired(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 128)
	deepEnd := strings.Repeat("}", 128)
	for _, tt := range []struct {
		name, src, want string
		reason          Reason
	}{
		{"a NUL escape", `{"a" : "x\u0000y", "b":"\u0000"}`, `{"a":"x�y","b":"�","_repaired":["a","b"]}`, NUL},
		{"a bare NUL", "{\"a\":\"x\x00\"}", `{"a":"x�","_repaired":["a"]}`, NUL},
		{"a NUL in a key", `{"a\u0000":1}`, `{"a�":1,"_repaired":["a�"]}`, NUL},
		{"half a pair", `{"a":"\ud800\ud83d\ude00\udc00x"}`, `{"a":"�\ud83d\ude00�x","_repaired":["a"]}`, Surrogate},
		{"not UTF-8", "{\"a\":\"\xffé\xc3\"}", `{"a":"�é�","_repaired":["a"]}`, UTF8},
		{"no numbers", `{"a":NaN,"b":[Infinity,-Infinity,{"c":NaN}],"d":1}`, `{"a":"NaN","b":["Infinity","-Infinity",{"c":"NaN"}],"d":1,"_repaired":["a","b"]}`, Number},
		{"a number too large", `{"a":{"b":1e400000,"c":1e2}}`, `{"a":{"b":"1e400000","c":1e2},"_repaired":["a"]}`, Number},
		{"the first reason counts", `{"a":NaN,"b":"\u0000"}`, `{"a":"NaN","b":"�","_repaired":["a","b"]}`, Number},
		{"nested too deep", deep + `{"b":[1, "\"\\\n\u0000é\ud800",NaN,true]}` + deepEnd,
			deep + `"{\"b\":[1,\"\\\"\\\\\\n\\u0000é\\ud800\",NaN,true]}"` + deepEnd[:127] + `,"_repaired":["a"]}`, Depth},
		{"the same name twice", `{"a":NaN,"a":NaN}`, `{"a":"NaN","a":"NaN","_repaired":["a"]}`, Number},
		{"names from before", `{"_repaired":["x","a"],"a":NaN,"b":NaN}`, `{"a":"NaN","b":"NaN","_repaired":["x","a","b"]}`, Number},
		{"no names from before", `{"b":NaN,"_repaired":[]}`, `{"b":"NaN","_repaired":["b"]}`, Number},
		{"nothing but names", `{"_repaired":["\u0000"]}`, `{"_repaired":["�"]}`, NUL},
		{"the record's own member", `{"_repaired":true,"__repaired":1,"a":NaN}`, `{"_repaired":true,"__repaired":1,"a":"NaN","___repaired":["a"]}`, Number},
		{"empty containers", ` { "a" : [ ] , "b":{ },"c":NaN }`, `{"a":[],"b":{},"c":"NaN","_repaired":["c"]}`, Number},
	} {
		for form, src := range map[string]string{"one": tt.src, "a batch": tt.src + "\n{}\n", "an array": "[" + tt.src + ",{}]", "added": tt.src} {
			var b Body
			var err *Error
			lim := repairing(1 << 20)
			switch form {
			case "one":
				err = b.Single([]byte(src), lim)
			case "added":
				b.Begin(lim)
				b.Add([]byte(src), 0)
				b.End()
			default:
				err = b.Batch([]byte(src), lim)
			}
			got := strings.TrimSuffix(strings.TrimSuffix(string(b.NDJSON), "{}\n"), "\n")
			if err != nil || b.Rejected > 0 || got != tt.want || b.Repaired != 1 || b.RepairedBy(tt.reason) != 1 {
				t.Errorf("%s in %s: got %v, %d repaired, %v\n%s, want\n%s", tt.name, form, err, b.Repaired, b.Errors, got, tt.want)
			}
			lim.Repair = false
			if err := new(Body).Single([]byte(tt.src), lim); err == nil {
				t.Errorf("%s: taken without repair", tt.name)
			}
		}
	}
}

func TestWhatIsNoRecordIsNotRepaired(t *testing.T) {
	for _, src := range []string{`5`, `"x"`, `[NaN]`, `NaN`, `{"a":NaN`, `{"a":NaN}}`, `{"a":NaN} x`, `{"a":NaN,}`, `{"a":nan}`, `{NaN:1}`, "{\"a\":\"\x01\"}", `{"a":-NaN}`, `{"a":"\u00`, "{\"a\x00", `{"a":[NaN}`, `{"a":"\x00"}`, ``, `{"a":Infinityx}`} {
		var b Body
		if err := b.Single([]byte(src), repairing(1<<10)); err == nil {
			t.Errorf("%s: taken as %s", src, b.NDJSON)
		}
		if b.Begin(repairing(1 << 10)); b.Add([]byte(src), 0) {
			t.Errorf("%s: added as %s", src, b.NDJSON)
		}
	}
}

func TestARecordThatIsTooLargeIsCut(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		limit     int
		want      string
	}{
		{"its longest string", `{"a":"` + strings.Repeat("x", 100) + `","b":"` + strings.Repeat("y", 30) + `"}`, 100,
			`{"a":"` + strings.Repeat("x", 35) + `","b":"` + strings.Repeat("y", 30) + `","_repaired":["a"]}`},
		{"and the next", `{"a":"` + strings.Repeat("x", 100) + `","b":{"c":["` + strings.Repeat("y", 90) + `"]}}`, 80,
			`{"a":"","b":{"c":["` + strings.Repeat("y", 31) + `"]},"_repaired":["a","b"]}`},
		{"not within a character", `{"a":"` + strings.Repeat("é", 60) + `"}`, 80, `{"a":"` + strings.Repeat("é", 24) + `","_repaired":["a"]}`},
		{"not within a pair", `{"a":"` + strings.Repeat(`\ud83d\ude00`, 10) + `"}`, 80, `{"a":"` + strings.Repeat(`\ud83d\ude00`, 4) + `","_repaired":["a"]}`},
		{"not within an escape", `{"a":"` + strings.Repeat(`\n`, 60) + `"}`, 81, `{"a":"` + strings.Repeat(`\n`, 25) + `","_repaired":["a"]}`},
		{"a number is written out", `{"a":1e500,"b":"xyz"}`, 100, `{"a":"1e500","b":"xyz","_repaired":["a"]}`},
		{"the list has room, too", `{"a":"` + strings.Repeat("x", 66) + `"}`, 73, `{"a":"` + strings.Repeat("x", 47) + `","_repaired":["a"]}`},
	} {
		var b Body
		err := b.Single([]byte(tt.src), repairing(tt.limit))
		if got := strings.TrimSuffix(string(b.NDJSON), "\n"); err != nil || len(got) > tt.limit || len(got) < len(tt.want)-1 || b.RepairedBy(TooLarge) != 1 {
			t.Errorf("%s: got %v, %d bytes %s, want %d %s", tt.name, err, len(got), got, len(tt.want), tt.want)
		} else if strings.Contains(tt.want, `"_repaired":["a"]`) && !strings.HasPrefix(got, tt.want[:20]) {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	for _, tt := range []struct{ src, want string }{
		{`{"a":[` + strings.Repeat("1,", 100) + `1],"b":1}`, `{"a":"[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1","b":1,"_repaired":["a"]}`},
		{`{"a":` + strings.Repeat("1", 100) + `,"b":[` + strings.Repeat(`"",`, 100) + `{}]}`, `{"a":"111111111111111111111111111","b":"","_repaired":["a","b"]}`},
	} {
		var b Body
		if err := b.Single([]byte(tt.src), repairing(64)); err != nil || string(b.NDJSON) != tt.want+"\n" {
			t.Errorf("without long strings: got %v, %d %s, want %s", err, len(b.NDJSON), b.NDJSON, tt.want)
		}
	}
	var b Body
	if err := b.Single([]byte(`{"`+strings.Repeat("a", 100)+`":1}`), repairing(64)); err == nil || err.Reason != TooLarge {
		t.Errorf("a long name: got %v, want it refused", err)
	}
}

func TestWhatTakesMoreThanTheWholeBodyMayIsRefused(t *testing.T) {
	var b Body
	b.Begin(Limits{RecordBytes: 1 << 10, PieceBytes: 100, TotalBytes: 250})
	accepted := 0
	for range 100 {
		if b.Add([]byte(`{"a":"`+strings.Repeat("x", 40)+`"}`), 0) {
			accepted++
		}
	}
	b.End()
	if !b.Overflow || accepted != 6 || b.Rejected != 94 || len(b.NDJSON) > 350 {
		t.Errorf("overflow %v, %d accepted, %d bytes", b.Overflow, accepted, len(b.NDJSON))
	}
	if b.Begin(Limits{RecordBytes: 1 << 10, PieceBytes: 100, TotalBytes: 250}); b.Overflow || !b.Add([]byte("{}"), 0) {
		t.Error("the next body is refused, too")
	}
}

// A repair that fails must not cost more than the line it fails on, once it is known what a body is.
func TestRepairsTakeLinearTime(t *testing.T) {
	var b Body
	line := `{"a":NaN,"b":[` + "\n"
	src := []byte("{}\n" + strings.Repeat(line, 100_000))
	if err := b.Batch(src, repairing(1<<20)); err != nil || b.Accepted != 1 || b.Rejected != 100_000 {
		t.Errorf("got %v, %d accepted, %d rejected", err, b.Accepted, b.Rejected)
	}
	members := make([]string, 50_000)
	for i := range members {
		members[i] = fmt.Sprintf(`"%d":"%s"`, i, strings.Repeat("x", minCut))
	}
	if err := b.Single([]byte("{"+strings.Join(members, ",")+"}"), repairing(700_000)); err == nil && len(b.NDJSON) > 700_001 {
		t.Errorf("many members: got %v, %d bytes", err, len(b.NDJSON))
	}
	src = []byte(strings.Repeat("{\n\"a\":NaN\n}\n", 10_000))
	if err := b.Batch(src, repairing(1<<20)); err != nil || b.Accepted != 10_000 || b.Repaired != 10_000 {
		t.Errorf("over lines: got %v, %d accepted, %d repaired", err, b.Accepted, b.Repaired)
	}
}

func TestRepairsOfALineThatIsLostAreNotCounted(t *testing.T) {
	var b Body
	if err := b.Batch([]byte("{\"a\":NaN}\n{\"b\":NaN}{\"c\":1\n{}\n"), repairing(1<<10)); err != nil || b.Accepted != 2 || b.Rejected != 1 || b.Repaired != 1 || b.RepairedBy(Number) != 1 {
		t.Errorf("got %v, %d accepted, %d rejected, %d repaired", err, b.Accepted, b.Rejected, b.Repaired)
	}
}

// FuzzRepair repairs whatever bytes come. What comes out is taken by the scanner as it is, and what is fine is not changed.
func FuzzRepair(f *testing.F) {
	for _, seed := range []string{
		`{"a":"x\u0000","_repaired":["a","b"],"__repaired":1}`, "{\"a\":NaN,\"b\":[-Infinity]}\n{\"\xff\":\"\\ud800\"}", `{"a":1e999999,"b":1e99}`,
		strings.Repeat(`[`, 10) + `{"a":` + strings.Repeat(`[{"\"":`, 100) + `"\\\u0000"` + strings.Repeat(`}]`, 100) + `}`,
		`{"a":` + strings.Repeat(`[{"\"":`, 100) + `"\\\u0000é"` + strings.Repeat(`}]`, 100) + `}`,
		`{"a":"` + strings.Repeat(`é\n\ud83d\ude00`, 50) + `","b":"` + strings.Repeat("x", 200) + `"}`, "{\"a\":\x00}", "{\"a\":\"\x00\"}\n{\"x\":[\n{\"b\":NaN}\n",
	} {
		f.Add([]byte(seed), uint8(30))
	}
	f.Fuzz(func(t *testing.T, src []byte, size uint8) {
		strict := Limits{RecordBytes: 64 + int(size), PieceBytes: 1 + int(size)}
		lim := strict
		lim.Repair = true
		before := bytes.Clone(src)
		var plain, b, again Body
		plainErr := plain.Batch(src, strict)
		err := b.Batch(src, lim)
		if !bytes.Equal(src, before) {
			t.Fatal("the source was changed")
		}
		checkBody(t, &b, lim)
		if plainErr == nil && plain.Rejected == 0 {
			if err != nil || !bytes.Equal(plain.NDJSON, b.NDJSON) || b.Repaired != 0 {
				t.Fatalf("%q is fine, and was changed to %q", src, b.NDJSON)
			}
		}
		if err != nil {
			return
		}
		total := 0
		for r := range NumReasons {
			total += b.RepairedBy(r)
		}
		if total != b.Repaired || b.Repaired > b.Accepted {
			t.Fatalf("%d repaired of %d, by reasons %d", b.Repaired, b.Accepted, total)
		}
		for line := range bytes.Lines(b.NDJSON) {
			if line[0] != '{' || !json.Valid(line) {
				t.Fatalf("accepted %q", line)
			}
			if err := again.Single(line, strict); err != nil || !bytes.Equal(again.NDJSON, line) {
				t.Fatalf("%q comes out as %q, %v", line, again.NDJSON, err)
			}
		}
		if b.Begin(lim); b.Add(src, 0) {
			b.End()
			if err := again.Single(b.NDJSON, strict); err != nil {
				t.Fatalf("%q was added, but: %v", b.NDJSON, err)
			}
			if b.Repaired == 1 {
				var record map[string]any
				if json.Unmarshal(b.NDJSON, &record) != nil || !strings.Contains(fmt.Sprint(record), "_repaired:[") {
					t.Fatalf("%q does not say what was repaired", b.NDJSON)
				}
			}
		}
	})
}

// A member of a few bytes takes several times as many while its record is repaired.
func TestARepairTakesLittleMemoryForManyMembers(t *testing.T) {
	src := []byte("{" + strings.Repeat(`"":1,`, 1<<20) + `"a":1}`)
	b := new(Body)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.Begin(Limits{RecordBytes: 1 << 20, PieceBytes: 1 << 20, Repair: true})
	taken := b.Add(src, 0)
	b.End()
	runtime.ReadMemStats(&after)
	if taken || b.RejectedBy[TooLarge] != 1 {
		t.Errorf("taken %v, %d refused as too large", taken, b.RejectedBy[TooLarge])
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(12*len(src)) {
		t.Errorf("%d bytes were allocated for a record of %d", took, len(src))
	}
}
