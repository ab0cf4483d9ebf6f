package query

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestASetFindsEveryQueryThatARecordSatisfies: queries are found by the values that they require, and none may be lost by that.
func TestASetFindsEveryQueryThatARecordSatisfies(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(11, 12))}
	var all querySet[int]
	queries := make(map[*setEntry[int]]query)
	for range 600 {
		n := query{g.node(2)}
		queries[all.entry(n)] = n
	}
	for _, q := range []string{"a:1", "a:1.0 b:x", `a:"1"`, "a:true", "a:null", "a.b:1 -c:2", "a:1 a:2"} {
		n, err := parse(q)
		if err != nil {
			t.Fatal(err)
		}
		queries[all.entry(n)] = n
	}
	if len(all.others) == len(queries) || len(all.others) == 0 {
		t.Fatalf("%d of %d queries require no value", len(all.others), len(queries))
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
			for e, n := range queries {
				if e.match(&r) {
					want = append(want, n.String())
				}
			}
			all.each(&r, func(e *setEntry[int]) { got = append(got, queries[e].String()) })
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", data, diff)
			}
			matched += len(want)
		}
		for e := range queries {
			if round == 1 || g.IntN(2) == 0 {
				all.remove(e)
				delete(queries, e)
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
