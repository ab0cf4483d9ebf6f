package query

import (
	"testing"
	"time"
)

// TestASampleIsOfAllOfTheSearchAndSaysSo has a day in which nearly all records are of one hour.
func TestASampleIsOfAllOfTheSearchAndSaysSo(t *testing.T) {
	f := newFixture(t, nil)
	day := time.Now().UTC().Truncate(24 * time.Hour)
	partition(t, f.db, day)
	f.exec(`INSERT INTO logs (id, inserted_at, time, data) SELECT gen_random_uuid(), at, at, jsonb_build_object('hour', extract(hour FROM at AT TIME ZONE 'UTC'), 'n', n % 1000,
			'text', (n % 100)::text, 'rare', CASE WHEN n % 1000 = 0 THEN 'x' || n % 3000 END, 'a.b', 1)
		FROM (SELECT n, $1::timestamptz + CASE WHEN n % 100 = 0 THEN n * interval '2 s' ELSE interval '12 h' + n * interval '80 ms' END AS at FROM generate_series(0, 42000) n) AS rows`, day)
	window := []string{"from", day.Format(time.RFC3339), "to", day.Add(24 * time.Hour).Format(time.RFC3339)}
	type values struct {
		Sampled, Distinct int
		Values            []struct {
			Value any
			Count int
		}
		Numbers  *distribution
		Complete bool
	}
	var hours values
	f.ok(with("/logs/fields/hour/values", window...), &hours)
	if hours.Complete || hours.Sampled < sampleValues/2 || hours.Sampled > sampleValues || hours.Distinct != 24 || hours.Values[0].Value != 12.0 {
		t.Errorf("the hours: %+v", hours)
	}
	var n values
	f.ok(with("/logs/fields/n/values", append(window, "q", "hour:12", "budget", "30s")...), &n)
	if d := n.Numbers; n.Complete || d.Count != n.Sampled || d.Min < 0 || d.Min > 50 || d.P50 < 400 || d.P50 > 600 || d.P95 < 900 || d.P95 > 990 || d.Max > 999 || d.Max < 950 {
		t.Errorf("n in hour 12: %+v, %+v", n, n.Numbers)
	}
	var rare, flat values
	f.ok(with("/logs/fields/rare/values", append(window, "q", "rare~x")...), &rare)
	if !rare.Complete || rare.Sampled != 43 || rare.Distinct != 3 || rare.Values[0].Count != 15 || rare.Numbers != nil {
		t.Errorf("the rare ones: %+v", rare)
	}
	f.ok(with("/logs/fields/a.b/values", append(window, "q", "rare~x")...), &flat)
	if flat.Distinct != 1 || flat.Values[0].Count != 43 {
		t.Errorf("the field with a dot in its name: %+v", flat)
	}
	var fields struct {
		Sampled int
		Fields  []struct {
			Path    string
			Count   int
			Numbers *distribution
		}
		Complete bool
	}
	f.ok(with("/logs/fields", append(window, "q", "rare~x")...), &fields)
	if !fields.Complete || fields.Sampled != 43 || len(fields.Fields) != 5 {
		t.Errorf("the fields of the rare ones: %+v", fields)
	}
	for _, field := range fields.Fields {
		if field.Count != 43 || (field.Numbers != nil) != (field.Path != "rare") {
			t.Errorf("got %+v", field)
		}
	}
	f.ok(with("/logs/fields", window...), &fields)
	if fields.Complete || fields.Sampled < sampleRows/2 || fields.Sampled > sampleRows {
		t.Errorf("the fields of all: %d sampled, complete is %t", fields.Sampled, fields.Complete)
	}
}
