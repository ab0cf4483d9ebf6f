package query

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// TestTheContextOfARowIsItsNeighbours compares contexts with the neighbours in a sorted list of rows, many of which share a time.
func TestTheContextOfARowIsItsNeighbours(t *testing.T) {
	f := newFixture(t, nil)
	now := time.Now().UTC().Truncate(time.Second)
	for _, day := range []time.Time{now, now.Add(-24 * time.Hour)} {
		partition(t, f.db, day)
	}
	type stored struct {
		id       uuid.UUID
		at, came time.Time
		service  string
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var rows []stored
	for n := range 300 {
		r := stored{came: now.Add(-time.Duration(rng.IntN(100)) * 10 * time.Minute), service: []string{"a", "b"}[rng.IntN(2)]}
		r.id = idAt(r.came, n)
		r.at = r.came.Add(-time.Duration(rng.IntN(3)) * 10 * time.Minute)
		if d := r.came.Sub(r.at); d > time.Hour || d < 0 {
			t.Fatal("such a row would have to be noted in late_hours")
		}
		rows = append(rows, r)
		f.exec("INSERT INTO logs (id, inserted_at, time, data) VALUES ($1, $2, $3, $4)", [16]byte(r.id), r.came, r.at, fmt.Sprintf(`{"service":%q}`, r.service))
	}
	for range 40 {
		row := rows[rng.IntN(len(rows))]
		clock, service := []string{"time", "inserted_at"}[rng.IntN(2)], []string{"", "a"}[rng.IntN(2)]
		at := func(r stored) time.Time {
			if clock == "time" {
				return r.at
			}
			return r.came
		}
		order := func(a, b stored) int {
			return cmp.Or(at(a).Compare(at(b)), slices.Compare(a.id[:], b.id[:]))
		}
		before, after := []string{}, []string{}
		slices.SortFunc(rows, order)
		for _, r := range rows {
			if service != "" && r.service != service {
				continue
			}
			switch order(r, row) {
			case -1:
				before = append(before, r.id.String())
			case 1:
				after = append(after, r.id.String())
			}
		}
		b, a := rng.IntN(30), rng.IntN(30)
		q := ""
		if service != "" {
			q = "service:" + service
		}
		var got struct {
			Before, After []struct{ ID string }
			Log           struct {
				ID   string
				Data json.RawMessage
			}
			MoreBefore bool `json:"more_before"`
			MoreAfter  bool `json:"more_after"`
		}
		f.ok(with("/logs/"+row.id.String()+"/context", "before", strconv.Itoa(b), "after", strconv.Itoa(a), "clock", clock, "q", q), &got)
		ids := func(list []struct{ ID string }) []string {
			all := []string{}
			for _, l := range list {
				all = append(all, l.ID)
			}
			return all
		}
		if diff := gocmp.Diff(before[max(0, len(before)-b):], ids(got.Before)); diff != "" {
			t.Errorf("before (-want +got):\n%s", diff)
		}
		if diff := gocmp.Diff(after[:min(len(after), a)], ids(got.After)); diff != "" {
			t.Errorf("after (-want +got):\n%s", diff)
		}
		if got.MoreBefore != (len(before) > b) || got.MoreAfter != (len(after) > a) || got.Log.ID != row.id.String() || len(got.Log.Data) == 0 {
			t.Errorf("got %+v for %d of %d before, %d of %d after", got, b, len(before), a, len(after))
		}
	}
	if r := f.get("/logs/" + idAt(now, 100_000).String() + "/context"); r.status != http.StatusNotFound {
		t.Errorf("an unknown id: got %d, %s", r.status, r.body)
	}
	if r := f.get("/logs/" + rows[0].id.String() + "/context?before=501"); r.status != http.StatusBadRequest {
		t.Errorf("before=501: got %d, %s", r.status, r.body)
	}
}
