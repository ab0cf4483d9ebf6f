package query

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"millrace/internal/service"
)

func TestTheWindowHasDefaults(t *testing.T) {
	day, hour := 24*time.Hour, time.Hour
	tests := []struct {
		query    string
		from, to time.Duration // from noon
		fixed    bool
	}{
		{"", -day, hour, false},
		{"from=&to=", -day, hour, false},
		{"from=now-1h", -hour, hour, false},
		{"to=now", -day, 0, false},
		{"to=2026-03-04T11:00:00Z", -day - hour, -hour, true},
		{"from=2026-03-04T10:00:00Z", -2 * hour, hour, false},
		{"from=2026-03-04T10:00:00Z&to=1772622000", -2 * hour, -hour, true},
		{"from=now-3h&to=1772622000", -3 * hour, -hour, false},
		{"from=1772622000&to=1772622000", -hour, -hour, true},
	}
	for _, tt := range tests {
		s, err := parseSearch(tt.query, windowParameters, noon)
		if err != nil {
			t.Errorf("%s: %v", tt.query, err)
			continue
		}
		from, to := time.UnixMilli(s.from).Sub(noon), time.UnixMilli(s.to).Sub(noon)
		if from != tt.from || to != tt.to || s.isFixed != tt.fixed {
			t.Errorf("%s: got %v to %v, fixed %t, want %v to %v, %t", tt.query, from, to, s.isFixed, tt.from, tt.to, tt.fixed)
		}
	}
}

// badParameters of /logs; the error holds all texts.
var badParameters = []struct {
	query string
	want  []string
}{
	{"form=now", []string{`unknown parameter "form"`, "from, to, clock, q, limit, order, cursor"}},
	{"From=now", []string{`unknown parameter "From"`}},
	{"%00=1", []string{`unknown parameter "\x00"`}},
	{"=1", []string{`unknown parameter ""`}},
	{"from=now&from=now", []string{"from: given 2 times"}},
	{"from=yesterday", []string{`from: got "yesterday"`, "RFC 3339"}},
	{"to=tomorrow", []string{`to: got "tomorrow"`, "RFC 3339"}},
	{"from=now%2Bh", []string{`from: got "now+h"`, "now-1h30m"}},
	{"from=now&to=now-1m", []string{`from: got "now"`, "not after to"}},
	{"from=2026-03-04T13:00:00.001Z", []string{"from: ", "not after to", "2026-03-04T13:00:00.000Z"}},
	{"limit=0", []string{`limit: got "0"`, "from 1 to 1000"}},
	{"limit=1001", []string{`limit: got "1001"`}},
	{"limit=-1", []string{"limit: "}},
	{"limit=1e2", []string{"limit: "}},
	{"limit=99999999999999999999", []string{"limit: "}},
	{"limit=%D9%A3", []string{"limit: "}},
	{"order=up", []string{`order: got "up"`, "asc or desc"}},
	{"order=DESC", []string{"order: "}},
	{"cursor=x", []string{`cursor: got "x"`}},
	{"cursor=%00", []string{"cursor: "}},
	{"q=a%ZZ", []string{"the URL's query can't be read"}},
	{"q=a;b", []string{"the URL's query can't be read"}},
	{"q=a:b)", []string{"q: unexpected ) at 4"}},
	{"q=a:b%00", []string{`q: unexpected '\x00' at 4`}},
	{"q=a:%ff", []string{"q: not UTF-8 at 3"}},
	{"q=a:[1", []string{"q: TO is missing at 5"}},
	{"q=" + strings.Repeat("a", 100_000), []string{"q: got 100000 bytes"}},
	{"q=" + strings.Repeat("(", 10_000), []string{"q: got 10000 bytes"}},
	{"q=" + strings.Repeat("(", 2000), []string{"q: nested deeper than 64 at 65"}},
	{"from=" + strings.Repeat("9", 5000), []string{"from: got "}},
}

func TestBadParametersAreRefusedByName(t *testing.T) {
	for _, tt := range badParameters {
		_, err := parseSearch(tt.query, pageParameters, noon)
		var f *failure
		if !errors.As(err, &f) || f.status != 400 {
			t.Errorf("%.80s: got %v, want a 400", tt.query, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(f.message, want) || len(f.message) > 300 {
				t.Errorf("%.80s: got %q, want it to hold %q", tt.query, f.message, want)
			}
		}
	}
	for _, query := range []string{"limit=5", "order=asc", "cursor=x", "interval=1m"} {
		if _, err := parseSearch(query, windowParameters, noon); err == nil {
			t.Errorf("count takes %s", query)
		}
	}
}

func TestAPanicIsAnswered500(t *testing.T) {
	s := &server{metrics: newMetrics(nil, new(service.Ready)), log: slog.New(slog.NewTextHandler(io.Discard, nil)), requestTime: time.Minute}
	mux := http.NewServeMux()
	mux.HandleFunc("/before", func(http.ResponseWriter, *http.Request) { panic("before") })
	mux.HandleFunc("/within", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half an"))
		panic("within")
	})
	h := s.wrap(mux)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/before", nil))
	if w.Code != 500 || w.Body.String() != `{"error":"internal error"}`+"\n" {
		t.Errorf("before an answer: got %d %s", w.Code, w.Body)
	}
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("within an answer: got %v, want the connection cut", p)
		}
	}()
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/within", nil))
}
