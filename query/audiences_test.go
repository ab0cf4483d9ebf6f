package query

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryAudienceGetsWhatItsQuerySays: audiences are found by what they ask for, and that must not lose a record.
func TestEveryAudienceGetsWhatItsQuerySays(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(11, 12))}
	var all audiences
	queries := make(map[*audience]node)
	for range 600 {
		n := g.node(2)
		queries[all.of(n)] = n
	}
	for _, q := range []string{"a:1", "a:1.0 b:x", `a:"1"`, "a:true", "a:null", "a.b:1 -c:2", "a:1 a:2"} {
		n, err := parse(q)
		if err != nil {
			t.Fatal(err)
		}
		queries[all.of(n)] = n
	}
	if len(all.others) == len(queries) || len(all.others) == 0 {
		t.Fatalf("%d of %d audiences are in no field", len(all.others), len(queries))
	}
	matched := 0
	var r record
	for round := range 2 {
		for range 500 {
			data, err := json.Marshal(g.object(3))
			if err != nil {
				t.Fatal(err)
			}
			if err := r.read(data); err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for a, n := range queries {
				if a.match(&r) {
					want = append(want, n.String())
				}
			}
			all.each(&r, func(a *audience) { got = append(got, queries[a].String()) })
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", data, diff)
			}
			matched += len(want)
		}
		for a := range queries {
			if round == 1 || g.IntN(2) == 0 {
				all.drop(a)
				delete(queries, a)
			}
		}
	}
	if matched < 1000 {
		t.Errorf("only %d matches, the test tests little", matched)
	}
	if len(all.byName)+len(all.byField)+len(all.others) != 0 {
		t.Errorf("left over: %v, %v, %v", all.byName, all.byField, all.others)
	}
}
