// Package fieldindex says what an index of a record's field is, which INDEX_FIELDS asks for. The worker builds such indexes, and the
// query service writes conditions that they serve.
//
// An index has a hash of the member's value, so it takes values of any length, and is small where many records have the same value.
// PostgreSQL's own index of hashes gets slow there. Arrays on the way to the member all have the hash of an empty array: a search reads
// those records too, and looks into them.
package fieldindex

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
	var isArray []string
	for i := range path {
		isArray = append(isArray, "jsonb_typeof("+member(path[:i+1])+") = 'array'")
	}
	return fmt.Sprintf("jsonb_hash_extended(CASE WHEN %s THEN '[]'::jsonb ELSE %s END, 0)", strings.Join(isArray, " OR "), member(path))
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
