package query

import (
	"testing"
	"time"
)

// TestASearchThatFindsNothingSaysWhatWould has queries as people paste and type them.
func TestASearchThatFindsNothingSaysWhatWould(t *testing.T) {
	f := newFixture(t, nil)
	at := time.Now().Add(-time.Minute)
	partition(t, f.db, at)
	insert(t, f.db, at, 0,
		`{"level":"ERROR","message":"GET http://shop.example/cart?id=7 from fe80::1 failed in std::vector at CheckoutService.java:141 at 2026-11-27 13:42:33"}`,
		`{"level":"ERROR","message":"java -Xmx512m died: connection timeout to 10.0.0.1:8080, arn:aws:s3:::bucket/key","client":{"ip":"10.1.2.3"}}`,
		`{"level":"info","message":"user=42 path=/api/","status":"500"}`,
	)
	for q, want := range map[string]string{
		"http://shop.example/cart?id=7": `"http://shop.example/cart?id=7"`,
		"fe80::1":                       `"fe80::1"`,
		"std::vector":                   `"std::vector"`,
		"CheckoutService.java:141":      `"CheckoutService.java:141"`,
		"10.0.0.1:8080":                 `"10.0.0.1:8080"`,
		"arn:aws:s3:::bucket/key":       `"arn:aws:s3:::bucket/key"`,
		"level:error":                   `"level":i("error")`,
		"message:timeout":               `"message"~"timeout"`,
		"level:ERROR message:timeout":   `level:ERROR "message"~"timeout"`,
		"2026-11-27 13:42:33":           `2026-11-27 "13:42:33"`,
		"user=42":                       `"user=42"`,
		"status:501":                    ``,
		"nothing":                       ``,
	} {
		for _, path := range []string{"/logs", "/logs/count"} {
			var got struct {
				Hints []hint
				Count int
				Logs  []any
			}
			f.ok(with(path, "q", q), &got)
			if len(got.Logs)+got.Count > 0 {
				t.Errorf("%s %s finds something", path, q)
			}
			has := want == "" && len(got.Hints) == 0
			for _, h := range got.Hints {
				has = has || h.Q == want
				var again struct{ Count int }
				if f.ok(with("/logs/count", "q", h.Q), &again); again.Count == 0 {
					t.Errorf("%s: the hint %+v finds nothing", q, h)
				}
			}
			if !has {
				t.Errorf("%s %s: got %+v, want %s", path, q, got.Hints, want)
			}
		}
	}
	for _, q := range []string{"level:ERROR", "failed", "client.ip:10.1.0.0/16", "status>400", "a or failed", "level:(info, x)"} {
		var got struct {
			Hints []hint
			Count int
		}
		if f.ok(with("/logs/count", "q", q), &got); got.Count == 0 || got.Hints != nil {
			t.Errorf("%s: got %+v", q, got)
		}
	}
}
