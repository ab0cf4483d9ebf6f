// Package fieldindex says what an index of a record's field is, which INDEX_FIELDS asks for. The worker builds such indexes, and the
// query service writes conditions that they serve.
//
// An index has a hash of the member's value, so it takes values of any length, and is small where many records have the same value.
// PostgreSQL's own index of hashes gets slow there. Records with an array on the way to the member, or with several members that the field
// may mean, all have the hash of an empty array: a search reads those records too, and looks into them.
package fieldindex

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Most is how many fields can have indexes. Each costs every record that is stored.
const Most = 16

// Parse returns the fields of a list such as trace_id,user.id, each by the names on the way to it. They are written as searches have
// them; a name that is more than letters, digits and the like is a JSON string, as in labels."app.kubernetes.io/name". ok is false if the
// list can't be read, has a field twice, or has more than Most.
func Parse(list string) (paths [][]string, ok bool) {
	list = strings.TrimSpace(list)
	if list == "" {
		return nil, true
	}
	seen := make(map[string]bool)
	for rest := list; ; {
		var path []string
		for {
			name, after, ok := cutName(rest)
			if !ok {
				return nil, false
			}
			path, rest = append(path, name), after
			if !strings.HasPrefix(rest, ".") {
				break
			}
			rest = rest[1:]
		}
		if seen[Suffix(path)] || len(seen) == Most || len(path) > maxNames {
			return nil, false
		}
		seen[Suffix(path)] = true
		paths = append(paths, path)
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return paths, true
		}
		if rest[0] != ',' {
			return nil, false
		}
		rest = strings.TrimSpace(rest[1:])
	}
}

// maxNames is how many names may be on the way to a field.
const maxNames = 8

// cutName takes a name from the beginning of s.
func cutName(s string) (name, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		n := strings.IndexFunc(s, func(r rune) bool { return strings.ContainsRune(`":.,()*\`+"\x00", r) || unicode.IsSpace(r) })
		if n < 0 {
			n = len(s)
		}
		return s[:n], s[n:], n > 0 && utf8.ValidString(s[:n])
	}
	for end := 1; end < len(s); end++ {
		switch s[end] {
		case '\\':
			end++
		case '"':
			err := json.Unmarshal([]byte(s[:end+1]), &name)
			return name, s[end+1:], err == nil && !strings.ContainsAny(name, "\x00\uFFFD")
		}
	}
	return "", "", false
}

// mostLoose is the most dots of which all may be parts of names, in any combination. If there are more, those up to a place may be, or
// those from it on, and of more than mostPlaces all or none.
const (
	mostLoose  = 3
	mostPlaces = 8
)

// Ways returns the members that a field may mean, each by the names on the way to it: first with each name as a member's, then with
// neighbours joined to one name, as in {"user.id":1}. isLoose reports whether the dot before the name i may be a part of a name.
func Ways(names []string, isLoose func(i int) bool) [][]string {
	var loose []int
	for i := 1; i < len(names); i++ {
		if isLoose(i) {
			loose = append(loose, i)
		}
	}
	ways := [][]string{names}
	join := func(at func(i int) bool) {
		way := []string{names[0]}
		for i, name := range names[1:] {
			if isLoose(i+1) && at(i+1) {
				way[len(way)-1] += "." + name
			} else {
				way = append(way, name)
			}
		}
		ways = append(ways, way)
	}
	switch {
	case len(loose) <= mostLoose:
		for set := 1; set < 1<<len(loose); set++ {
			join(func(i int) bool { return set&(1<<slices.Index(loose, i)) != 0 })
		}
	case len(loose) > mostPlaces:
		join(func(int) bool { return true })
	default:
		for k, place := range loose {
			join(func(i int) bool { return i >= place })
			if k < len(loose)-1 {
				join(func(i int) bool { return i <= place })
			}
		}
	}
	return ways
}

// Infix is what stands in an index's name between the partition's name and the field's hash.
const Infix = "_field_"

// Suffix returns the end of the names of the field's indexes. path are the names on the way to the field.
func Suffix(path []string) string {
	name, _ := json.Marshal(path) // strings always have a JSON form
	sum := sha256.Sum256(name)
	return Infix + hex.EncodeToString(sum[:4])
}

// Expression returns the expression on the column data, a bigint, that the field's indexes are on.
func Expression(path []string) string {
	var members, isSpecial []string
	seen := make(map[string]bool)
	for _, way := range Ways(path, func(int) bool { return true }) {
		for i := range way {
			if m := member(way[:i+1]); !seen[m] {
				seen[m] = true
				isSpecial = append(isSpecial, "jsonb_typeof("+m+") = 'array'")
			}
		}
		members = append(members, member(way))
	}
	one := members[0]
	if len(members) > 1 {
		all := strings.Join(members, ", ")
		isSpecial = append(isSpecial, "num_nonnulls("+all+") > 1")
		one = "coalesce(" + all + ")"
	}
	return fmt.Sprintf("jsonb_hash_extended(CASE WHEN %s THEN '[]'::jsonb ELSE %s END, 0)", strings.Join(isSpecial, " OR "), one)
}

// Condition returns a condition that holds for all records whose member at the path is one of the values, or may be. An index of the
// field serves it. values are SQL expressions of the type jsonb.
func Condition(path []string, values []string) string {
	hashes := []string{"jsonb_hash_extended('[]'::jsonb, 0)"}
	for _, value := range values {
		hashes = append(hashes, "jsonb_hash_extended("+value+", 0)")
	}
	return Expression(path) + " = ANY (ARRAY[" + strings.Join(hashes, ", ") + "])"
}

// member returns the member at a path.
func member(path []string) string {
	if len(path) == 1 {
		return "(data -> " + literal(path[0]) + ")"
	}
	names := make([]string, len(path))
	for i, name := range path {
		names[i] = literal(name)
	}
	return "(data #> ARRAY[" + strings.Join(names, ", ") + "])"
}

// literal returns s as a literal of SQL.
func literal(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return `E'` + strings.ReplaceAll(s, `\`, `\\`) + `'::text`
	}
	return `'` + s + `'::text`
}
