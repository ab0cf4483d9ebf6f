package eventtime

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"
)

// leadRule returns a rule whose first field Lead puts before the others.
func leadRule(t testing.TB) *Rule {
	t.Helper()
	r, err := New([]string{"@timestamp", "time", "timestamp"}, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTheLeadMakesTheFirstFieldCount(t *testing.T) {
	const (
		first = `"2026-03-04T12:00:00Z"`
		other = `"2025-01-01T00:00:00Z"`
	)
	rule, err := New(DefaultFields, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		record, key, value string
		finds              string // the time that DefaultFields then find
	}{
		{`{"@timestamp":` + first + `,"time":` + other + `}`, "time", first, first},
		{`{"time":` + other + `, "@timestamp" : ` + first + ` }`, "time", first, first},
		{`{"timestamp":` + other + `,"@timestamp":` + first + `}`, "timestamp", first, first},
		{`{"timestamp":` + other + `,"time":` + other + `,"@timestamp":` + first + `}`, "time", first, first},
		{`{"time":` + other + `,"\u0040timestamp":` + first + `}`, "time", first, first},
		{`{"time":` + other + `,"@timestamp":1772625600000 }`, "time", "1772625600000", first},
		{`{"time":"12 ms","@timestamp":` + first + `}`, "time", first, first},
		{`{"time":` + other + `,"@timestamp":"now"}`, "time", `"now"`, other},
		{`{"\u0074ime":` + other + `,"@timestamp":` + first + `}`, "", "", other}, // nobody writes so
		{`{"@timestamp":` + first + `}`, "", "", first},
		{`{"@timestamp":` + first + `,"ts":` + other + `,"a":{"time":` + other + `}}`, "", "", first},
		{`{"time":` + other + `}`, "", "", other},
		{`{"time":` + other + `,"@timestamp":null}`, "", "", other},
		{`{"time":` + other + `,"@timestamp":{"a":1}}`, "", "", other},
		{`{"time":` + other + `,"@timestamp":1e100000}`, "", "", other},
		{`{"time":` + other + `,"@timestamp":""}`, "time", `""`, other},
	} {
		key, value := leadRule(t).Lead([]byte(tt.record))
		if key != tt.key || string(value) != tt.value {
			t.Errorf("%s: got %q %s, want %q %s", tt.record, key, value, tt.key, tt.value)
		}
		record := tt.record
		if key != "" {
			record = `{"` + key + `":` + string(value) + `,` + record[1:]
		}
		var want time.Time
		if err := json.Unmarshal([]byte(tt.finds), &want); err != nil {
			t.Fatal(err)
		}
		if got, is := rule.Find([]byte(record)); is != Own || got != want.UnixMicro() {
			t.Errorf("%s: got %v %v, want %v", record, got, is, want)
		}
	}
}

func TestTheNamesOfOtherFieldsAreSeenAnywhere(t *testing.T) {
	for n := range 40 {
		for _, name := range []string{"time", "timestamp", "tim", "times", "@timestamp", "t", ""} {
			for after := range 12 {
				text := strings.Repeat("t\"!#", 10)[:n] + `"` + name + `"` + strings.Repeat("\"", after)
				want := name == "time" || name == "timestamp"
				if got := leadRule(t).mayHaveOther([]byte(text)); got != want {
					t.Errorf("%q: got %v", text, got)
				}
			}
		}
	}
}

// Whatever the record, the lead takes nothing from it, and adds nothing that is stored.
func FuzzLead(f *testing.F) {
	f.Add([]byte(`{"time":"a","@timestamp":"b"}`))
	f.Add([]byte(`{"@timestamp":1 ,"timestamp" : {} }`))
	f.Add([]byte(`{"@timestamp":[1],"time":"`))
	f.Fuzz(func(t *testing.T, record []byte) {
		key, value := leadRule(t).Lead(record)
		var before, after map[string]any
		if json.Unmarshal(record, &before) != nil || key == "" {
			return
		}
		joined := `{"` + key + `":` + string(value) + "," + string(record[skipSpace(record, 0)+1:])
		if err := json.Unmarshal([]byte(joined), &after); err != nil {
			t.Fatalf("%s: %v", joined, err)
		}
		if !maps.EqualFunc(before, after, func(a, b any) bool {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return string(x) == string(y)
		}) {
			t.Errorf("%s is not %s", joined, record)
		}
	})
}
