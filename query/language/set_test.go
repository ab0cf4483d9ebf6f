package language

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
	var all Set[int]
	queries := make(map[*Entry[int]]Query)
	for range 600 {
		n := Query{root: g.node(2)}
		queries[all.Entry(n)] = n
	}
	for _, q := range []string{"a:1", "a:1.0 b:x", `a:"1"`, "a:true", "a:null", "a.b:1 -c:2", "a:1 a:2"} {
		n, err := Parse(q)
		if err != nil {
			t.Fatal(err)
		}
		queries[all.Entry(n)] = n
	}
	if len(all.others) == len(queries) || len(all.others) == 0 {
		t.Fatalf("%d of %d queries require no value", len(all.others), len(queries))
	}
	matched := 0
	var r Record
	for round := range 2 {
		for range 500 {
			data, err := json.Marshal(g.object(3))
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Read(data); err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for e, n := range queries {
				if e.match(&r) {
					want = append(want, n.String())
				}
			}
			all.Each(&r, func(e *Entry[int]) { got = append(got, queries[e].String()) })
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", data, diff)
			}
			matched += len(want)
		}
		for e := range queries {
			if round == 1 || g.IntN(2) == 0 {
				all.Remove(e)
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
