package searches

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/query/language"
)

// told returns a notice of a search by two fields: one group fires since this evaluation, one did before, one is resolved.
func told(t *testing.T) *notice {
	t.Helper()
	at := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	s := &Search{
		Name: "errors", Q: "level:error OR level:fatal", By: []string{"service", "http.status"}, Every: time.Minute, Labels: map[string]string{"severity": "page"},
		Condition: &Condition{Text: "count > 5 in 5m", kind: figures, Window: 5 * time.Minute, figures: []string{"count"}},
	}
	group := func(service *string, status string) Group {
		return Group{Fields: s.By, Values: []*string{service, &status}, Count: 7, Value: map[string]json.RawMessage{"count": json.RawMessage("7")}}
	}
	shop, empty := `the "shop"`, ""
	f := &File{Page: "https://logs.example.com"}
	st := &State{Alerts: map[string]*Alert{}}
	from, to := s.window(at, time.Time{})
	s.Step(st, at.Add(-time.Minute), from, to, &Found{Groups: []Group{group(nil, "500"), group(&empty, "a")}})
	changes := s.Step(st, at, from, to, &Found{Groups: []Group{group(nil, "500"), group(&shop, "500")}})
	return f.notice(s, st, at, from, to, changes)
}

func TestAWebhookIsToldWhatChanged(t *testing.T) {
	body, err := told(t).webhookBody("the id")
	if err != nil {
		t.Fatal(err)
	}
	var m webhookMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	if m.Status != "firing" || m.ID != "the id" || m.Firing != 2 || len(m.Groups) != 2 || m.Groups[0].Status != "firing" || m.Groups[1].Status != "resolved" {
		t.Fatalf("got %s", body)
	}
	if *m.Groups[0].Group["service"] != `the "shop"` || m.Groups[0].Count != 7 || m.Groups[1].Resolved != "2026-03-04T12:00:00.000Z" {
		t.Errorf("got %s", body)
	}
	want := `https://logs.example.com/?from=2026-03-04T11%3A55%3A00.000Z&q=%28level%3Aerror+OR+level%3Afatal%29+AND+service%3A%22the+%5C%22shop%5C%22%22+AND+http.status%3A500&to=2026-03-04T12%3A00%3A00.000Z`
	if diff := cmp.Diff(want, m.Groups[0].Link); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAlertmanagerIsToldWhatFiresAndWhatIsResolved(t *testing.T) {
	now := time.Date(2026, 3, 4, 13, 0, 0, 0, time.UTC)
	body, err := told(t).alertsBody(now)
	if err != nil {
		t.Fatal(err)
	}
	var alerts []alert
	if err := json.Unmarshal(body, &alerts); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range alerts {
		got = append(got, strings.Join([]string{a.Labels["alertname"], a.Labels["severity"], a.Labels["service"], a.Labels["http_status"], a.EndsAt.Format(time.TimeOnly)}, " "))
	}
	want := []string{`errors page the "shop" 500 13:05:00`, `errors page "" a 12:00:00`, `errors page  500 13:05:00`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestTheQueryOfAGroupFindsIt parses the queries of all kinds of values.
func TestTheQueryOfAGroupFindsIt(t *testing.T) {
	value := func(s string) *string { return &s }
	for want, v := range map[string]*string{
		"NOT f:*": nil, `f:""`: value(""), "f:5": value("5"), "f:true": value("true"), `f:"a b"`: value("a b"), `f:"a\\b\"\n<&>"`: value("a\\b\"\n<&>"), `f:"\u0001"`: value("\x01"),
		"": value(`{"a": 1}`),
	} {
		got := groupTest("f", v)
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if _, err := language.Parse(got); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
}

// TestTheSignatureIsThatOfTheDocument has the example of deploy/ALERTS.md, which openssl makes too:
// printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
func TestTheSignatureIsThatOfTheDocument(t *testing.T) {
	got := signature("0123456789abcdef", time.Unix(1700000000, 0), []byte(`{"a":1}`))
	if want := "t=1700000000,v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPausesBetweenTriesGrow(t *testing.T) {
	if first := pauseAfter(0); first > time.Second {
		t.Errorf("after the first try: %v", first)
	}
	if later := pauseAfter(1000); later < longestPause/2 || later > longestPause*3/2 {
		t.Errorf("after many tries: %v", later)
	}
}
