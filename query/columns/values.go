package columns

import (
	"context"
	"slices"
	"strconv"

	"github.com/valyala/fastjson"

	"millrace/internal/archive"
	"millrace/query/language"
)

// fieldValues are the values of a field in a row group.
type fieldValues struct {
	texts []string
	codes []int32 // by row: the number of its text, -1 if it has none; nil: no field is asked for

	// What is asked for besides.
	kinds    []valueKind  // of the texts
	doubles  []float64    // by row
	isDouble archive.Bits // the rows whose value is in doubles. They have no text.

	numbers []number // of the texts, as far as they were asked for; see number
}

// fieldNeeds is what is asked for of the values of a field besides their texts.
type fieldNeeds struct {
	kinds   bool // the kind of each. Then a null is a value, with an empty text.
	doubles bool // numbers as they are, where a column has them
}

// valueKind is the kind of a value.
type valueKind byte

const (
	isString valueKind = iota
	isNumber
	isNull
	isOther // true, false, an array, an object
)

// kindOf returns the kind of a value.
func kindOf(v *fastjson.Value) valueKind {
	switch v.Type() {
	case fastjson.TypeString:
		return isString
	case fastjson.TypeNumber:
		return isNumber
	case fastjson.TypeNull:
		return isNull
	}
	return isOther
}

// kindOfColumn returns the kind of a column's values.
func kindOfColumn(k archive.Kind) valueKind {
	switch k {
	case archive.Double, archive.Integer:
		return isNumber
	case archive.Bool:
		return isOther
	}
	return isString
}

// coder numbers values.
type coder struct {
	*fieldValues
	needs fieldNeeds
	known map[string]int32 // nil until there are others than those of one column
	key   []byte
}

func (c *coder) keyOf(text string, kind valueKind) []byte {
	c.key = append(append(c.key[:0], byte(kind)), text...)
	return c.key
}

// code returns the number of a value. Texts of different kinds are told apart only if kinds are asked for.
func (c *coder) code(text string, kind valueKind) int32 {
	if !c.needs.kinds {
		kind = 0
	}
	if c.known == nil {
		c.known = make(map[string]int32)
		for i, text := range c.texts {
			of := valueKind(0)
			if c.needs.kinds {
				of = c.kinds[i]
			}
			c.known[string(c.keyOf(text, of))] = int32(i)
		}
	}
	code, ok := c.known[string(c.keyOf(text, kind))]
	if !ok {
		code = int32(len(c.texts))
		c.texts = append(c.texts, text)
		if c.needs.kinds {
			c.kinds = append(c.kinds, kind)
		}
		c.known[string(c.key)] = code
	}
	return code
}

// set sets the value of a row, unless it is a null that is not asked for.
func (c *coder) set(row int, v *fastjson.Value) {
	kind := kindOf(v)
	switch {
	case kind != isNull:
		c.codes[row] = c.code(Text(v), kind)
	case c.needs.kinds:
		c.codes[row] = c.code("", isNull)
	}
}

// readField returns the values of a field in rows of a group, as PostgreSQL's #> finds them: of several members that the field may mean,
// the first that is there. Rows outside of the set may have a value or not.
func readField(ctx context.Context, g *archive.Group, field []string, rows archive.Bits, needs fieldNeeds) (fieldValues, error) {
	ways := language.Ways(field)
	for _, c := range g.File.Columns {
		for _, way := range ways {
			if len(way) < len(c.Path) && slices.Equal(way, c.Path[:len(way)]) {
				return readFieldOfRecords(ctx, g, ways, rows, needs) // the value may be an object, parts of which are in columns
			}
		}
	}
	v := fieldValues{}
	coder := coder{fieldValues: &v, needs: needs}
	var decided archive.Bits // rows that an earlier way has a member for
	for _, way := range ways {
		column := slices.IndexFunc(g.File.Columns, func(c archive.Column) bool { return slices.Equal(c.Path, way) })
		if column >= 0 && !g.IsEmpty(column) {
			if err := coder.readColumn(ctx, g, column, rows, &decided); err != nil {
				return v, err
			}
		}
		if v.codes == nil {
			v.codes = slices.Repeat([]int32{-1}, g.Rows)
		}
		if decided == nil {
			decided = archive.NewBits(g.Rows)
		}
		if !mayBeInRests(g, way) {
			continue
		}
		var parser fastjson.Parser
		if err := g.Rests(ctx, rows, func(row int, rest []byte) error {
			if decided.Has(row) {
				return nil
			}
			root, err := parser.ParseBytes(rest)
			if err != nil {
				return err
			}
			if value := language.MemberAt(root, way); value != nil {
				decided.Set(row)
				coder.set(row, value)
			}
			return nil
		}); err != nil {
			return v, err
		}
	}
	return v, nil
}

// readColumn reads the values of a column in the rows that are not decided, and adds those that have one.
func (c *coder) readColumn(ctx context.Context, g *archive.Group, column int, rows archive.Bits, decided *archive.Bits) error {
	if c.needs.doubles && c.isDouble == nil && g.File.Columns[column].Kind == archive.Double {
		values, are, err := g.DoubleValues(ctx, column, rows)
		if err != nil {
			return err
		}
		if *decided == nil {
			*decided = archive.NewBits(g.Rows)
		}
		are.AndNot(*decided)
		c.doubles, c.isDouble = values, are
		decided.Or(are)
		return nil
	}
	texts, codes, err := g.Values(ctx, column)
	if err != nil {
		return err
	}
	kind := kindOfColumn(g.File.Columns[column].Kind)
	if *decided == nil { // it is the first
		c.texts, c.codes = texts, codes
		if c.needs.kinds {
			c.kinds = slices.Repeat([]valueKind{kind}, len(texts))
		}
		*decided = archive.NewBits(g.Rows)
		for row, code := range codes {
			if code >= 0 {
				decided.Set(row)
			}
		}
		return nil
	}
	if c.codes == nil {
		c.codes = slices.Repeat([]int32{-1}, g.Rows)
	}
	recoded := make([]int32, len(texts))
	for i, text := range texts {
		recoded[i] = c.code(text, kind)
	}
	for row, code := range codes {
		if code >= 0 && !decided.Has(row) {
			c.codes[row] = recoded[code]
			decided.Set(row)
		}
	}
	return nil
}

// mayBeInRests reports whether a rest of the group may have a value at a way. A name that is a number also stands for a member of an
// array.
func mayBeInRests(g *archive.Group, way []string) bool {
	for i, name := range way {
		if _, err := strconv.Atoi(name); err == nil {
			return g.RestRows > 0 && (i == 0 || g.MayHaveInRests(way[:i]))
		}
	}
	return g.MayHaveInRests(way)
}

// readFieldOfRecords does what readField does by putting the records together.
func readFieldOfRecords(ctx context.Context, g *archive.Group, ways [][]string, rows archive.Bits, needs fieldNeeds) (fieldValues, error) {
	v := fieldValues{codes: slices.Repeat([]int32{-1}, g.Rows)}
	coder := coder{fieldValues: &v, needs: needs}
	var parser fastjson.Parser
	row := -1
	err := g.Records(ctx, rows, func(r *archive.Row) error {
		row = rows.Next(row + 1)
		root, err := parser.ParseBytes(r.Data)
		if err != nil {
			return err
		}
		if value := language.Member(root, ways); value != nil {
			coder.set(row, value)
		}
		return nil
	})
	return v, err
}
