package language

import (
	"reflect"
	"strings"
	"testing"

	"millrace/internal/fieldindex"
)

func TestIndexedFieldsAreReadAsSearchesReadThem(t *testing.T) {
	for list, want := range map[string][][]string{
		"":                                nil,
		" trace_id , user.id":             {{"trace_id"}, {"user", "id"}},
		`labels."app.kubernetes.io/name"`: {{"labels", "app.kubernetes.io/name"}},
		`"a,b","\u00e9\"".c`:              {{"a,b"}, {`é"`, "c"}},
		"@timestamp,größe,k8s/pod-name":   {{"@timestamp"}, {"größe"}, {"k8s/pod-name"}},
	} {
		got, ok := fieldindex.Parse(list)
		if !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v, want %q", list, got, ok, want)
		}
		for i, path := range got {
			if len(got) > 1 && strings.Contains(list, `"a,b"`) {
				break // the parts can't be told by their commas
			}
			field := strings.TrimSpace(strings.Split(list, ",")[i])
			if as, err := ParseField(field); err != nil || !reflect.DeepEqual(as, path) {
				t.Errorf("%s: a search reads %q, %v", field, as, err)
			}
		}
	}
	for _, list := range []string{",", "a,", "a,a", "a..b", ".a", "a.", "a b", "a*", "a:b", `"a`, `"\x"`, `"a"b`, "a(b)", `"\u0000"`,
		`"\ud800"`, strings.Repeat("a.", 8) + "a", "a" + strings.Repeat(",a", fieldindex.Most)} {
		if got, ok := fieldindex.Parse(list); ok {
			t.Errorf("%s: got %q", list, got)
		}
	}
}
