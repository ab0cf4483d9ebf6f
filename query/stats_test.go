package query

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// measured is a record of the stats' test, as its evaluator sees it.
type measured struct {
	id             uuid.UUID
	at             time.Time
	level, service *string
	duration       any // float64, string or nil
}

// number returns the duration as a number, if it is one.
func (m measured) number() (float64, bool) {
	switch d := m.duration.(type) {
	case float64:
		return d, true
	case string:
		f, err := strconv.ParseFloat(d, 64)
		return f, err == nil
	}
	return 0, false
}

// figure computes a figure of a group. ok is false for null.
func figure(name string, group []measured, seconds float64) (v any, ok bool) {
	var numbers []float64
	texts := map[string]bool{}
	for _, m := range group {
		if f, ok := m.number(); ok {
			numbers = append(numbers, f)
		}
		if m.level != nil {
			texts[*m.level] = true
		}
	}
	slices.Sort(numbers)
	sum := 0.0
	for _, f := range numbers {
		sum += f
	}
	switch name {
	case "count":
		return float64(len(group)), true
	case "count(duration)":
		n := 0
		for _, m := range group {
			if m.duration != nil {
				n++
			}
		}
		return float64(n), true
	case "rate":
		return float64(len(group)) / seconds, true
	case "uniq(level)":
		return float64(len(texts)), true
	case "share(level:error)":
		n := 0
		for _, m := range group {
			if m.level != nil && *m.level == "error" {
				n++
			}
		}
		return float64(n) / float64(len(group)), true
	case "first(level)", "last(level)":
		with := slices.DeleteFunc(slices.Clone(group), func(m measured) bool { return m.level == nil })
		if len(with) == 0 {
			return nil, false
		}
		slices.SortFunc(with, func(a, b measured) int { return cmp.Or(a.at.Compare(b.at), slices.Compare(a.id[:], b.id[:])) })
		if name == "first(level)" {
			return *with[0].level, true
		}
		return *with[len(with)-1].level, true
	}
	if isText := slices.ContainsFunc(group, func(m measured) bool { return m.duration == "soon" }); len(numbers) == 0 {
		return "soon", isText && (name == "min(duration)" || name == "max(duration)")
	}
	switch name {
	case "sum(duration)":
		return sum, true
	case "avg(duration)":
		return sum / float64(len(numbers)), true
	case "min(duration)":
		return numbers[0], true
	case "max(duration)":
		return numbers[len(numbers)-1], true
	case "p50(duration)", "p99.9(duration)":
		q := map[string]float64{"p50(duration)": 0.5, "p99.9(duration)": 0.999}[name]
		place := q * float64(len(numbers)-1)
		low := int(math.Floor(place))
		high := min(low+1, len(numbers)-1)
		return numbers[low] + (place-float64(low))*(numbers[high]-numbers[low]), true
	}
	panic(name)
}

// TestStatsAreThoseOfTheRecords compares tables with an evaluator's, over random records and questions.
func TestStatsAreThoseOfTheRecords(t *testing.T) {
	f := newFixture(t, nil)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	day := time.Now().UTC().Truncate(24 * time.Hour)
	partition(t, f.db, day)
	var records []measured
	for n := range 600 {
		at := day.Add(time.Duration(rng.IntN(3600)) * time.Second)
		m := measured{id: idAt(at, n), at: at}
		data := map[string]any{}
		if rng.IntN(6) > 0 {
			level := []string{"error", "info", "debug", "warn", "Error"}[rng.IntN(5)]
			m.level, data["level"] = &level, level
		}
		if rng.IntN(6) > 0 {
			service := strconv.Itoa(rng.IntN(12))
			m.service, data["svc.name"] = &service, service
			if rng.IntN(2) == 0 { // a nested member, and a number in place of the text
				delete(data, "svc.name")
				data["svc"] = map[string]any{"name": json.Number(service)}
			}
		}
		switch rng.IntN(5) {
		case 0, 1:
			m.duration = float64(rng.IntN(1000)) / 4
			data["duration"] = m.duration
		case 2:
			m.duration = strconv.Itoa(rng.IntN(1000))
			data["duration"] = m.duration
		case 3:
			m.duration, data["duration"] = "soon", "soon"
		}
		records = append(records, m)
		doc, _ := json.Marshal(data)
		f.exec("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $2, $3)", [16]byte(m.id), at, string(doc))
	}
	figures := []string{"count", "count(duration)", "sum(duration)", "avg(duration)", "min(duration)", "max(duration)", "p50(duration)", "p99.9(duration)", "uniq(level)", "share(level:error)", "first(level)", "last(level)", "rate"}
	from, to := day, day.Add(time.Hour)
	for range 60 {
		calcs := []string{"count"}
		for _, name := range figures[1:] {
			if rng.IntN(2) == 0 {
				calcs = append(calcs, name)
			}
		}
		fields := [][]string{nil, {"level"}, {"svc.name"}, {"level", "svc.name"}}[rng.IntN(4)]
		every := []string{"", "10m"}[rng.IntN(2)]
		limit := 1 + rng.IntN(20)
		least, having := 0, ""
		if rng.IntN(2) == 0 {
			least = rng.IntN(100)
			having = fmt.Sprintf("count>=%d,count(duration)>=0", least)
		}
		budget := []string{"", "50s"}[rng.IntN(2)]
		var got statsTable
		f.ok(with("/logs/stats", "from", from.Format(time.RFC3339), "to", to.Format(time.RFC3339), "calc", strings.Join(calcs, ","), "by", strings.Join(fields, ","), "every", every, "limit", strconv.Itoa(limit), "having", having, "budget", budget), &got)
		if !got.Complete || (got.SearchedTo != "") != (budget != "") {
			t.Fatalf("budget %q: complete is %t, searched_to %q", budget, got.Complete, got.SearchedTo)
		}

		keyOf := func(m measured) string {
			var parts []string
			for _, field := range fields {
				v := m.level
				if field == "svc.name" {
					v = m.service
				}
				b, _ := json.Marshal(v)
				parts = append(parts, string(b))
			}
			return strings.Join(parts, ",")
		}
		groups := map[string][]measured{}
		for _, m := range records {
			groups[keyOf(m)] = append(groups[keyOf(m)], m)
		}
		if len(fields) > 0 {
			maps.DeleteFunc(groups, func(_ string, group []measured) bool { return len(group) < least })
		}
		names := slices.Collect(maps.Keys(groups))
		told := map[string]bool{}
		for _, row := range got.Rows {
			var parts []string
			for _, cell := range row[len(row)-len(calcs)-len(fields) : len(row)-len(calcs)] {
				parts = append(parts, string(cell))
			}
			told[strings.Join(parts, ",")] = true
		}
		if len(fields) > 0 && len(told) != min(limit, len(names)) {
			t.Fatalf("%q, limit %d: %d groups of %d", fields, limit, len(told), len(names))
		}
		// Nobody left out is larger than anybody told.
		for _, in := range names {
			for _, out := range names {
				if told[in] && !told[out] && len(groups[out]) > len(groups[in]) {
					t.Errorf("%s is left out with %d records, and %s is told with %d", out, len(groups[out]), in, len(groups[in]))
				}
			}
		}
		want := map[string][]measured{}
		for _, m := range records {
			key := keyOf(m)
			if len(groups[key]) == 0 {
				continue
			}
			if len(fields) > 0 && !told[key] {
				key = strings.Repeat(`"(others)",`, len(fields))[:len(fields)*len(`"(others)",`)-1]
			}
			if every != "" {
				key = fmt.Sprintf("%q,%s", m.at.Truncate(10*time.Minute).Format(timeFormat), key)
			}
			want[strings.TrimSuffix(key, ",")] = append(want[strings.TrimSuffix(key, ",")], m)
		}
		if len(fields) == 0 {
			maps.DeleteFunc(want, func(_ string, group []measured) bool { return len(group) < least })
		}
		seconds := to.Sub(from).Seconds()
		if every != "" {
			seconds = 600
		}
		rows := append(got.Rows, got.Others...)
		if len(rows) != len(want) {
			t.Fatalf("by %q every %q: %d rows, want %d", fields, every, len(rows), len(want))
		}
		for _, row := range rows {
			var parts []string
			for _, cell := range row[:len(row)-len(calcs)] {
				parts = append(parts, string(cell))
			}
			group := want[strings.Join(parts, ",")]
			if group == nil {
				t.Fatalf("a row of %s", parts)
			}
			for i, name := range calcs {
				v, ok := figure(name, group, seconds)
				cell := row[len(row)-len(calcs)+i]
				var have any
				if err := json.Unmarshal(cell, &have); err != nil {
					t.Fatal(err)
				}
				number, isNumber := v.(float64)
				haveNumber, haveIs := have.(float64)
				same := !ok && have == nil || ok && (isNumber && haveIs && math.Abs(number-haveNumber) <= 1e-9*max(1, math.Abs(number)) || !isNumber && have == v)
				if !same {
					t.Errorf("%s of %s: got %s, want %v", name, parts, cell, v)
				}
			}
		}
	}
	for _, bad := range []string{"calc=nothing", "calc=p101(a)", "calc=sum", "calc=rate(a)", "calc=share(a:)", "by=a,b,c,d,e,f", "every=1x", "limit=0", "order=sum(a)", "tz=UTC", "calc=p(a)", "having=count", "having=count>x", "having=nothing>1", "having=count(>1", "having=>1", "budget=1ms"} {
		if r := f.get("/logs/stats?" + bad); r.status != http.StatusBadRequest {
			t.Errorf("%s: got %d, %s", bad, r.status, r.body)
		}
	}
}
