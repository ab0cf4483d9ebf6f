package language

import (
	"strings"
	"unicode"
)

// Alternative is another query that somebody may have meant.
type Alternative struct {
	Text  string // the query
	Query Query
	Finds string // what its records have in common, behind their number
}

// maxAlternatives is how many alternatives a query has at most.
const maxAlternatives = 8

// Alternatives returns other queries that may have been meant, if this one finds nothing: with a field's test read as text, such as a
// pasted address that has a colon in it; with a value in another case, or as a part of a longer one; with a leading - as a part of the
// text. Each differs in one test.
func (q Query) Alternatives() []Alternative {
	var all []Alternative
	add := func(t test, instead, finds string) {
		if len(all) == maxAlternatives {
			return
		}
		text := q.input[:t.start] + instead + q.input[t.end:]
		if parsed, err := Parse(text); err == nil && parsed.String() != q.String() {
			all = append(all, Alternative{text, parsed, finds})
		}
	}
	for _, t := range q.tests {
		raw := q.input[t.start:t.end]
		isNegated := t.start > 0 && (q.input[t.start-1] == '-' || q.input[t.start-1] == '!')
		if isNegated {
			if _, isText := t.node.(text); isText && q.input[t.start-1] == '-' && !strings.Contains(raw, `"`) {
				add(test{t.start - 1, t.end, t.node}, quote("-"+raw), "contain that with the - as text")
			}
			continue
		}
		if n, ok := t.node.(equals); ok {
			if n.value != "" && strings.ContainsFunc(n.value, unicode.IsLetter) {
				add(t, n.path.String()+":i("+quote(n.value)+")", "have it in another case")
			}
			if n.value != "" {
				add(t, n.path.String()+"~"+quote(n.value), "contain it in the field")
			}
		}
		if _, isText := t.node.(text); !isText && !strings.Contains(raw, `"`) {
			add(t, quote(raw), "contain it as text")
		}
	}
	return all
}
