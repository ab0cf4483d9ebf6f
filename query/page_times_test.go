package query

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"millrace/internal/testenv"
)

// modules calls a function with a module of the page, in the page, and returns what it returns.
func modules[T any](p *tab, module, function string, arguments ...any) T {
	p.t.Helper()
	given, err := json.Marshal(arguments)
	if err != nil {
		p.t.Fatal(err)
	}
	expression := fmt.Sprintf(`import(document.querySelector('script[type="module"]').src.replace("app.js", %q)).then((m) => (%s)(m, ...%s))`, module, function, given)
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", function, err)
	}
	return v
}

// TestThePageTellsTimesAsTheirZoneDoes compares what the page shows with what Go says, in five zones around both changes of their clocks:
// in Lord Howe's by half an hour, in Santiago's at midnight.
func TestThePageTellsTimesAsTheirZoneDoes(t *testing.T) {
	browser := newBrowser(t)
	p := newTab(t, browser, pageClient(t).base)
	p.open("/")
	for _, name := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Auckland"} {
		t.Run(name, func(t *testing.T) {
			zone, err := time.LoadLocation(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := chromedp.Call(p.ctx, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: name}); err != nil {
				t.Fatal(err)
			}
			found := changes(zone)
			if len(found) != 2 {
				t.Fatalf("the clocks change %d times in 2026", len(found))
			}
			for _, change := range found {
				aroundChange(t, p, zone, change)
			}
		})
	}
}

// changes returns when a zone's offset changes in 2026.
func changes(zone *time.Location) (at []time.Time) {
	for t := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC); t.Year() == 2026; t = t.Add(15 * time.Minute) {
		_, before := t.Add(-time.Second).In(zone).Zone()
		if _, after := t.In(zone).Zone(); before != after {
			at = append(at, t)
		}
	}
	return at
}

func aroundChange(t *testing.T, p *tab, zone *time.Location, change time.Time) {
	t.Helper()
	type reading struct{ Date, Clock, Offset string }
	read := func(at time.Time) reading {
		local := at.In(zone)
		_, seconds := local.Zone()
		sign, size := "+", seconds/60
		if size < 0 {
			sign, size = "−", -size
		}
		text := fmt.Sprintf("UTC%s%d", sign, size/60)
		if size%60 != 0 {
			text += fmt.Sprintf(":%02d", size%60)
		}
		if size == 0 {
			text = "UTC"
		}
		return reading{local.Format("Mon 2 Jan"), local.Format("15:04:05"), text}
	}
	var times []int64
	var want []reading
	for at := change.Add(-50 * time.Hour); at.Before(change.Add(50 * time.Hour)); at = at.Add(15 * time.Minute) {
		times = append(times, at.UnixMilli())
		want = append(want, read(at))
	}
	got := modules[[]reading](p, "time.js", `(time, list) => list.map((ms) => ({ Date: time.date(ms), Clock: time.clock(ms), Offset: time.offsetText(ms) }))`, times)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("around %s (-Go +page):\n%.2000s", change, diff)
	}
	if lost := modules[[]int64](p, "time.js", `(time, list) => list.filter((ms) => !time.instants(time.wall(ms)).includes(ms))`, times); len(lost) > 0 {
		t.Errorf("around %s: the page does not come back to %v from what the clocks show", change, lost)
	}

	// What the clocks show twice or never is read as the first, the last, or the moment of the change.
	_, before := change.Add(-time.Second).In(zone).Zone()
	_, after := change.In(zone).Zone()
	shift := time.Duration(after-before) * time.Second
	shown := change.Add(time.Duration(before) * time.Second) // what the clocks would show at the change, as UTC
	first, last := change, change
	if shift < 0 { // they show the time before the change again
		shown = shown.Add(shift / 2)
		first, last = change.Add(shift/2), change.Add(-shift/2)
	} else {
		shown = shown.Add(shift / 2)
	}
	typed := shown.UTC().Format("2006-01-02 15:04:05")
	for isEnd, want := range map[bool]time.Time{false: first, true: last} {
		got := modules[struct {
			Ms   int64  `json:"ms"`
			Note string `json:"note"`
		}](p, "when.js", `(when, text, isEnd) => when.read(text, { isEnd })`, typed, isEnd)
		if got.Ms != want.UnixMilli() || got.Note == "" {
			t.Errorf("%s (end: %t) is read as %s (%q), want %s", typed, isEnd, time.UnixMilli(got.Ms).UTC(), got.Note, want)
		}
	}

	// The axis: each day once, and hours at whole hours of the clocks, in order.
	type tick struct {
		At    int64
		Label string
	}
	ticks := func(from, to time.Time, n int) []tick {
		return modules[[]tick](p, "time.js", `(time, from, to, n) => time.ticks(from, to, n).map(([At, Label]) => ({ At, Label }))`, from.UnixMilli(), to.UnixMilli(), n)
	}
	from, to := change.Add(-72*time.Hour), change.Add(72*time.Hour)
	var days []tick
	for at := from.Truncate(15 * time.Minute); !at.After(to); at = at.Add(15 * time.Minute) {
		if !at.Before(from) && at.In(zone).Day() != at.Add(-time.Second).In(zone).Day() {
			days = append(days, tick{at.UnixMilli(), at.In(zone).Format("Mon 2 Jan")})
		}
	}
	if diff := cmp.Diff(days, ticks(from, to, 7)); diff != "" {
		t.Errorf("the days around %s (-Go +page):\n%s", change, diff)
	}
	for _, count := range []int{6, 10, 24, 60} {
		previous := int64(0)
		marks := ticks(change.Add(-5*time.Hour), change.Add(7*time.Hour), count)
		for _, mark := range marks {
			at := time.UnixMilli(mark.At).In(zone)
			isDay := strings.Contains(mark.Label, " ")
			if mark.At <= previous || !isDay && at.Format("15:04") != mark.Label || isDay && at.Format("Mon 2 Jan") != mark.Label {
				t.Errorf("around %s: the mark %q is at %s", change, mark.Label, at)
			}
			previous = mark.At
		}
		if len(marks) < count/4 {
			t.Errorf("around %s: %d marks of %d", change, len(marks), count)
		}
	}
}

// TestTimesAreReadAsPeopleWriteThem has what people type and what logs write, in Europe/Berlin, on 2026-11-29 at 12:00 UTC.
func TestTimesAreReadAsPeopleWriteThem(t *testing.T) {
	p := newTab(t, newBrowser(t), pageClient(t).base)
	p.open("/")
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"12:05":                          "2026-11-29T11:05:00Z",
		"13:05":                          "2026-11-28T12:05:00Z", // has not been today
		"14:05:30.25":                    "2026-11-28T13:05:30.25Z",
		"2:05 pm":                        "2026-11-28T13:05:00Z",
		"yesterday 14:05":                "2026-11-28T13:05:00Z",
		"14:05 yesterday":                "2026-11-28T13:05:00Z",
		"today":                          "2026-11-28T23:00:00Z",
		"fri 08:00":                      "2026-11-27T07:00:00Z",
		"2026-11-27":                     "2026-11-26T23:00:00Z",
		"2026-11-27 13:42:33,123":        "2026-11-27T12:42:33.123Z",
		"2026-11-27T13:42:33.123456789Z": "2026-11-27T13:42:33.123Z",
		"2026-11-27t13:42:33z":           "2026-11-27T13:42:33Z",
		"2026-11-27 13:42:33 +0530":      "2026-11-27T08:12:33Z",
		"2026/11/27 13:42:33":            "2026-11-27T12:42:33Z",
		"[27/Nov/2026:13:42:33 -0500]":   "2026-11-27T18:42:33Z",
		"Nov 27 13:42:33":                "2026-11-27T12:42:33Z",
		"Dec 24 13:42:33":                "2025-12-24T12:42:33Z", // syslog writes no year
		"Fri, 27 Nov 2026 13:42:33 GMT":  "2026-11-27T13:42:33Z",
		"Fri Nov 27 13:42:33 UTC 2026":   "2026-11-27T13:42:33Z",
		"27.11.2026 13:42":               "2026-11-27T12:42:00Z",
		"1795786953":                     "2026-11-27T13:42:33Z",
		"1795786953123":                  "2026-11-27T13:42:33.123Z",
		"1795786953123456789":            "2026-11-27T13:42:33.123Z",
		"2026-07-01 12:00":               "2026-07-01T10:00:00Z", // in summer
		"now-1h30m":                      "now-1h30m",
		"-15m":                           "now-15m",
		"90 min ago":                     "now-90m",
		"last 2 hours":                   "now-2h",
		"now/d":                          "now/d",
		"soon":                           "",
		"25:00":                          "",
		"2026-02-30":                     "",
		"2026-02-30 10:00":               "",
		"Fri Nov 27 13:42:33 CEST 2026":  "", // a zone's short name may mean several
		"":                               "",
		"12:60":                          "",
		"now-":                           "",
		"99999999999999999999999999999":  "",
		"<script>":                       "",
		"2026-11-27 13:42:33 +99999":     "",
		"2026-11-27T13:42:33.5+01:00":    "2026-11-27T12:42:33.5Z",
		`"2026-11-27T13:42:33+01:00"`:    "2026-11-27T12:42:33Z",
		"nov 27, 2026 1:42 am":           "2026-11-27T00:42:00Z",
		"Thursday 23:59":                 "2026-11-26T22:59:00Z",
		"2026-11-27 24:00":               "2026-11-27T23:00:00Z",
	} {
		got := modules[*struct {
			Ms   int64  `json:"ms"`
			Text string `json:"text"`
		}](p, "when.js", `(when, text, now) => when.read(text, { now })`, text, now.UnixMilli())
		said := ""
		if got != nil {
			if said = got.Text; said == "" {
				said = time.UnixMilli(got.Ms).UTC().Format("2006-01-02T15:04:05.999Z")
			}
		}
		if said != want {
			t.Errorf("%q is read as %q, want %q", text, said, want)
		}
	}
	// The ends of a range: a day with all of it, a time of day behind the start.
	for typed, want := range map[string]string{"2026-11-27": "2026-11-27T23:00:00Z", "00:10": "2026-11-28T23:10:00Z", "23:55": "2026-11-28T22:55:00Z"} {
		after := time.Date(2026, 11, 28, 22, 50, 0, 0, time.UTC)
		got := modules[struct{ Ms int64 }](p, "when.js", `(when, text, after) => ({ Ms: when.read(text, { isEnd: true, after }).ms })`, typed, after.UnixMilli())
		if said := time.UnixMilli(got.Ms).UTC().Format(time.RFC3339); said != want {
			t.Errorf("the end %q after 23:50 is read as %s, want %s", typed, said, want)
		}
	}
	if got := modules[[]string](p, "when.js", `(when, text) => when.twoOf(text)`, "14:05 – 14:20"); !cmp.Equal(got, []string{"14:05", "14:20"}) {
		t.Errorf("a range is read as %q", got)
	}
}

// TestThePageReadsTimesAsTheServiceDoes compares the forms that an address may have.
func TestThePageReadsTimesAsTheServiceDoes(t *testing.T) {
	testenv.Database(t)
	p := newTab(t, newBrowser(t), pageClient(t).base)
	p.open("/")
	now := time.Date(2026, 11, 29, 12, 34, 56, 0, time.UTC)
	for _, text := range []string{"now", "now-1h", "now-1h30m", "now+5m", "now-1d+2h30m", "now/d", "now/w", "now-1w/w", "now/h", "2026-03-04", "1795786953", "1795786953123",
		"2026-11-27T13:42:33Z", "2026-11-27t13:42:33z", "2016-12-31T23:59:60Z", "2026-11-27T13:42:33.5+05:30", "now-", "later", "2026-02-30", "2026-13-01", "now/y"} {
		for _, isEnd := range []bool{false, true} {
			want := int64(-1)
			if at, ok := parseTime(text, isEnd, now); ok {
				want = at.ms
			}
			got := modules[int64](p, "time.js", `(time, text, now, isEnd) => { const ms = time.resolve(text, now, isEnd); return Number.isNaN(ms) ? -1 : ms; }`, text, now.UnixMilli(), isEnd)
			if got != want {
				t.Errorf("%q (end: %t) is %d on the page, %d for the service", text, isEnd, got, want)
			}
		}
	}
}
