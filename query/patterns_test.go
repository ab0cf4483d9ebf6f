package query

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// patternText returns the pattern of a message with a * for each wildcard.
func patternText(message string) string {
	var p patternBuilder
	p.build(message)
	return strings.Join(p.parts(), "*")
}

func TestWhatDiffersInAMessageBecomesAWildcard(t *testing.T) {
	for message, want := range map[string]string{
		"":                                         "",
		"cache is warm":                            "cache is warm",
		"took 12 ms":                               "took * ms",
		"took 12.5ms, 3 retries":                   "took *, * retries",
		"GET /api/v2/users/42 200":                 "GET /api/v*/users/* *",
		"2026-11-27 13:42:33,123 x":                "* * x",
		"2026-11-27T13:42:33.123Z":                 "*",
		"from 10.251.73.220:50010":                 "from *",
		"from [fe80::1]:80 and ::1":                "from [* and *",
		"mac 0a:1b:2c:3d:4e:5f up":                 "mac * up",
		"id 0190a5d0-ac96-774b-bcce-b302099a8057.": "id *.",
		"block blk_-1608999687919862906 lost":      "block blk_* lost",
		"temperature -5, +7":                       "temperature *, *",
		"thread-12 on node7: e2e k8s i18n":         "thread-* on node*: e2e k8s i18n",
		"mail from jane.doe+x@mail.example.com to": "mail from * to",
		"commit deadbe3f, 0x7fff, sha256":          "commit *, *, sha*",
		"a=1 b=2 c=3 d=4 e=5 f=6 g=7 h":            "a=* b=* c=* d=* e=* f=*",
		"first line 1\nat Foo.java:12":             "first line *",
		"1 größer als 2 Größen":                    "* größer als * Größen",
		`50% of "x" \ *`:                           `*% of "x" \ *`,
		strings.Repeat("word ", 60):                strings.Repeat("word ", 40) + "*",
		strings.Repeat("1 ", 300):                  "* * * * * *",
		"é" + strings.Repeat("x", 600):             "*",
	} {
		if got := patternText(message); got != want {
			t.Errorf("%q: got %q, want %q", message, got, want)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("took 12 ms from fe80::1 jane@mail.example.com 0190a5d0-ac96-774b-bcce-b302099a8057\nx")
	f.Fuzz(func(t *testing.T, message string) {
		var p patternBuilder
		p.build(strings.ReplaceAll(message, "\x00", ""))
		if n := strings.Count(string(p.buf), "\x00"); n > patternStars || len(p.buf) > patternBytes+patternStars+1 {
			t.Errorf("%q: %q", message, p.buf)
		}
	})
}

type patternsAnswer struct {
	Records, Other, Missing int64
	Patterns                []patternCount
	Complete                bool
	VsComplete              *bool `json:"vs_complete"`
}

// TestEachPatternIsAQueryThatFindsItsMessages generates messages of known kinds in two windows.
func TestEachPatternIsAQueryThatFindsItsMessages(t *testing.T) {
	f := newFixture(t, nil)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	address := func() string {
		return fmt.Sprintf("%d.%d.%d.%d:%d", rng.IntN(256), rng.IntN(256), rng.IntN(256), rng.IntN(256), rng.IntN(65536))
	}
	kinds := map[string]func() string{
		"user * logged in from *": func() string { return fmt.Sprintf("user %d logged in from %s", rng.IntN(1e6), address()) },
		`query "*" took *`:        func() string { return fmt.Sprintf("query \"%d\" took %dms", rng.IntN(99), rng.IntN(9999)) },
		"request *: path /a_b/* (* left)": func() string {
			return fmt.Sprintf("request %s: path /a_b/%06x0 (%d left)", idAt(time.Now(), rng.IntN(1e6)), rng.IntN(1e6), rng.IntN(10))
		},
		"cache is warm":              func() string { return "cache is warm" },
		`backslash \ and % on node*`: func() string { return fmt.Sprintf(`backslash \ and %% on node%d`, rng.IntN(100)) },
		"trace*":                     func() string { return fmt.Sprintf("trace%d", rng.IntN(5)) },
	}
	now := time.Now().UTC().Truncate(time.Minute)
	partition(t, f.db, now)
	partition(t, f.db, now.Add(-24*time.Hour))
	want, wantBefore := map[string]int64{}, map[string]int64{}
	var docs, docsBefore []string
	for range 400 {
		for pattern, message := range kinds {
			if rng.IntN(3) == 0 {
				continue
			}
			field := []string{"message", "msg"}[rng.IntN(2)]
			doc, _ := json.Marshal(map[string]any{field: message(), "level": "info"})
			if want[field+pattern]++; pattern != "trace*" && rng.IntN(2) == 0 {
				wantBefore[field+pattern]++
				docsBefore = append(docsBefore, string(doc))
			}
			docs = append(docs, string(doc))
		}
	}
	insert(t, f.db, now.Add(-time.Minute), 0, docs...)
	insert(t, f.db, now.Add(-time.Minute), 9000, `{"level":"info"}`, `{"message":["a"]}`)
	insert(t, f.db, now.Add(-24*time.Hour-time.Minute), 0, docsBefore...)

	from, to := now.Add(-time.Hour).Format(time.RFC3339), now.Format(time.RFC3339)
	for _, budget := range []string{"", "50s"} {
		var got patternsAnswer
		f.ok(with("/logs/patterns", "from", from, "to", to, "vs", "1d", "budget", budget), &got)
		if !got.Complete || !*got.VsComplete || got.Missing != 2 || got.Other != 0 || got.Records != int64(len(docs)) || len(got.Patterns) != 12 {
			t.Fatalf("got %+v", got)
		}
		for i, p := range got.Patterns {
			field := "msg"
			if strings.HasPrefix(p.Q, "message") || strings.HasPrefix(p.Q, `"message`) {
				field = "message"
			}
			if p.Count != want[field+p.Pattern] || *p.Before != wantBefore[field+p.Pattern] {
				t.Errorf("%s: got %d, %d before, want %d, %d", p.Q, p.Count, *p.Before, want[field+p.Pattern], wantBefore[field+p.Pattern])
			}
			if (i < 2) != (*p.Before == 0) {
				t.Errorf("%s is number %d, with %d before", p.Q, i, *p.Before)
			}
			if patternText(p.Sample) != p.Pattern {
				t.Errorf("%s: the sample is %q", p.Q, p.Sample)
			}
			var count struct{ Count int64 }
			if f.ok(with("/logs/count", "from", from, "to", to, "q", p.Q), &count); count.Count != p.Count {
				t.Errorf("%s finds %d, want %d", p.Q, count.Count, p.Count)
			}
		}
	}
	var one patternsAnswer
	f.ok(with("/logs/patterns", "from", from, "to", to, "field", "level", "limit", "1", "vs", "now-2d,now-1d"), &one)
	if len(one.Patterns) != 1 || one.Patterns[0].Q != `level:"info"` || one.Missing != 1 {
		t.Errorf("got %+v", one)
	}
	for _, bad := range []string{"vs=x", "vs=now", "vs=now,now-1d", "limit=0", "field=a:", "cursor=x"} {
		if r := f.get("/logs/patterns?" + bad); r.status != http.StatusBadRequest {
			t.Errorf("%s: got %d, %s", bad, r.status, r.body)
		}
	}
}
