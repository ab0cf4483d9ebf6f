package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// shown returns what a printer writes for records of this data.
func shown(t *testing.T, p *printer, data ...string) string {
	t.Helper()
	var out bytes.Buffer
	p.out, p.zone = bufio.NewWriter(&out), time.UTC
	for _, d := range data {
		r := new(logRecord)
		line := `{"id":"01890a5d-ac96-774b-bcce-b302099a8057","time":"2026-03-04T05:06:07.089Z","inserted_at":"2026-03-04T05:06:07.1Z", "data": ` + d + `}`
		if err := json.Unmarshal([]byte(line), r); err != nil {
			t.Fatal(err)
		}
		if err := p.print(r, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.out.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestARecordIsALineOfText(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, tt := range []struct{ data, want string }{
		{`{"level":"error","service":"shop","message":"no stock","sku":7}`, "ERROR shop no stock sku=7"},
		{`{"b":{"c":1.50,"d":[1, {"e":2}],"f":{}},"a":null,"z":""}`, `b.c=1.50 b.d=[1, {"e":2}] b.f={} a=null z=""`},
		{`{"msg":"a\nb\tc","severity":"Warning","service.name":"s"}`, `WARNING s a\nb\tc`},
		{`{"msg":"\u001b[31mred\u001b[0m \u202eback \u009b2J \u2028","k\u0007":"é 日本"}`, `\x1b[31mred\x1b[0m \u202eback \u009b2J \u2028 k\a="é 日本"`},
		{`{"a":"say \"x\"","b":"k=v","c":"plain"}`, `a="say \"x\"" b="k=v" c=plain`},
		{`{"a":"` + long + `"}`, "a=" + long},
		{`{"id":12345678901234567890123}`, "id=12345678901234567890123"},
		{`{"a":1,"a":2}`, "a=1 a=2"},
		{`{}`, ""},
		{`"only text"`, `="only text"`},
	} {
		want := strings.TrimRight("2026-03-04 05:06:07.089 "+tt.want, " ") + "\n"
		if got := shown(t, &printer{form: "text"}, tt.data); got != want {
			t.Errorf("%s: got %q, want %q", tt.data, got, want)
		}
	}
}

func TestATerminalIsShownLinesColoursAndCutValues(t *testing.T) {
	p := &printer{form: "text", terminal: true, colour: true}
	got := shown(t, p, `{"level":"error","message":"a\n\tb\r\u001b[2J","blob":"`+strings.Repeat("x", 1000)+`"}`)
	want := "\x1b[2m2026-03-04 05:06:07.089\x1b[0m \x1b[31mERROR\x1b[0m a\n        b\\r\\x1b[2J \x1b[2mblob=\x1b[0m" + strings.Repeat("x", widestField) + "…\n"
	if got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestARecordIsALineOfJSONAsItIsStored(t *testing.T) {
	data := `{"n":1.50,"big":12345678901234567890123,"text":"\u001b a\u0000b 日` + "\u202e\U000e0001" + `"}`
	want := `{"id":"01890a5d-ac96-774b-bcce-b302099a8057","time":"2026-03-04T05:06:07.089Z","inserted_at":"2026-03-04T05:06:07.1Z","data":` + data + "}\n"
	if got := shown(t, &printer{form: "json"}, data); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	onTerminal := shown(t, &printer{form: "json", terminal: true}, data)
	if want := strings.NewReplacer("\u202e", `\u202e`, "\U000e0001", `\udb40\udc01`).Replace(want); onTerminal != want {
		t.Errorf("on a terminal: got %q, want %q", onTerminal, want)
	}
	var a, b any
	if json.Unmarshal([]byte(onTerminal), &a) != nil || json.Unmarshal([]byte(want), &b) != nil {
		t.Error("not JSON")
	}
}

func TestRecordsAsCSV(t *testing.T) {
	data := []string{`{"level":"error","msg":"a, \"b\"\nc","http":{"status":500}}`, `{"n":1}`}
	const start = "2026-03-04T05:06:07.089Z,01890a5d-ac96-774b-bcce-b302099a8057,"
	want := "time,id,level,service,message,data\n" +
		start + `error,,"a, ""b""` + "\nc\",\"{\"\"level\"\":\"\"error\"\",\"\"msg\"\":\"\"a, \\\"\"b\\\"\"\\nc\"\",\"\"http\"\":{\"\"status\"\":500}}\"\n" +
		start + `,,,"{""n"":1}"` + "\n"
	if got := shown(t, &printer{form: "csv"}, data...); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	want = "time,id,n,http.status,http\n" + start + `,500,"{""status"":500}"` + "\n" + start + "1,,\n"
	if got := shown(t, &printer{form: "csv", columns: []string{"n", "http.status", "http"}}, data...); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestATableIsAligned(t *testing.T) {
	table := &statsTable{Columns: []string{"path", "count", "p95(ms)"}, Rows: [][]json.RawMessage{
		{json.RawMessage(`"/a\u001b"`), json.RawMessage("12"), json.RawMessage("1.23456")},
		{json.RawMessage(`"日本"`), json.RawMessage("3"), json.RawMessage("null")},
	}, Others: [][]json.RawMessage{{json.RawMessage(`"(others)"`), json.RawMessage("100"), json.RawMessage("0.0012345")}}}
	var out bytes.Buffer
	for form, want := range map[string]string{
		"text": "path      count  p95(ms)\n/a\\x1b       12    1.235\n日本          3        -\n(others)    100  0.00123\n",
		"json": `{"path":"/a\u001b","count":12,"p95(ms)":1.23456}` + "\n" + `{"path":"日本","count":3,"p95(ms)":null}` + "\n" + `{"path":"(others)","count":100,"p95(ms)":0.0012345}` + "\n",
		"csv":  "path,count,p95(ms)\n/a\x1b,12,1.23456\n日本,3,\n(others),100,0.0012345\n",
	} {
		out.Reset()
		p := &printer{form: form, out: bufio.NewWriter(&out)}
		if err := p.printTable(table); err != nil {
			t.Fatal(err)
		}
		if err := p.out.Flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got\n%s, want\n%s", form, out.String(), want)
		}
	}
}

func FuzzTheTextOfARecordIsOneLineWithoutCommands(f *testing.F) {
	for _, data := range []string{`{"a":{"b":[1]}}`, `{"msg":"\u001b\n"}`, "{\"\xff\":\"\xfe\u0085\"}", `{"":{"":{}}}`, `null`} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			return
		}
		p := &printer{form: "text", zone: time.UTC}
		line := p.text(&logRecord{Data: data}, true)
		if printable(line) != line {
			t.Errorf("%q becomes %q", data, line)
		}
		if escaped := printableJSON(data); !json.Valid(escaped) && !bytes.ContainsAny(data, "\t\r\n") {
			t.Errorf("%q becomes %q, which is no JSON", data, escaped)
		}
	})
}
