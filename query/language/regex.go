package language

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode"
)

// maxRegex is the longest regular expression for PostgreSQL, in bytes.
const maxRegex = 4 << 10

// parseRegex returns the matcher of a regular expression, and what PostgreSQL takes in its place: an advanced regular expression that
// matches the same texts. The expression is read as RE2 and written anew, so that neither the database's locale nor its version
// changes what it matches.
func parseRegex(re string, fold bool) (matches *regexp.Regexp, forPostgres string, err error) {
	flags := syntax.Perl
	if fold {
		flags |= syntax.FoldCase
	}
	tree, err := syntax.Parse(re, flags)
	if err != nil {
		var fault *syntax.Error
		if errors.As(err, &fault) {
			return nil, "", fmt.Errorf("%s: %s", fault.Code, fault.Expr)
		}
		return nil, "", err
	}
	prefix := ""
	if fold {
		prefix = "(?i)"
	}
	if matches, err = regexp.Compile(prefix + re); err != nil {
		return nil, "", err
	}
	var w regexWriter
	w.expression(tree)
	if w.refused != "" {
		return nil, "", fmt.Errorf("PostgreSQL has nothing like %s", w.refused)
	}
	if w.b.Len() > maxRegex {
		return nil, "", fmt.Errorf("too long")
	}
	return matches, w.b.String(), nil
}

// regexWriter writes regular expressions for PostgreSQL.
type regexWriter struct {
	b       strings.Builder
	refused string // what there is no way to write
}

// expression writes an expression. Greedy or not makes no difference for whether there is a match.
func (w *regexWriter) expression(re *syntax.Regexp) {
	if w.b.Len() > maxRegex {
		return // refused anyway
	}
	switch re.Op {
	case syntax.OpNoMatch:
		w.b.WriteString(`(?!)`)
	case syntax.OpEmptyMatch:
		w.b.WriteString(`(?:)`)
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if re.Flags&syntax.FoldCase != 0 {
				w.folded(r)
			} else {
				w.character(r)
			}
		}
	case syntax.OpCharClass:
		w.class(re.Rune)
	case syntax.OpAnyCharNotNL:
		w.b.WriteString(`[^\n]`)
	case syntax.OpAnyChar:
		w.b.WriteString(`[\s\S]`)
	case syntax.OpBeginText:
		w.b.WriteString(`\A`)
	case syntax.OpEndText:
		w.b.WriteString(`\Z`)
	case syntax.OpBeginLine:
		w.b.WriteString(`(?:\A|(?<=\n))`)
	case syntax.OpEndLine:
		w.b.WriteString(`(?:\Z|(?=\n))`)
	case syntax.OpWordBoundary:
		w.b.WriteString(`(?:(?<=[0-9A-Za-z_])(?![0-9A-Za-z_])|(?<![0-9A-Za-z_])(?=[0-9A-Za-z_]))`)
	case syntax.OpNoWordBoundary:
		w.b.WriteString(`(?:(?<=[0-9A-Za-z_])(?=[0-9A-Za-z_])|(?<![0-9A-Za-z_])(?![0-9A-Za-z_]))`)
	case syntax.OpCapture:
		w.group(re.Sub[0])
	case syntax.OpStar:
		w.repeated(re.Sub[0], "*")
	case syntax.OpPlus:
		w.repeated(re.Sub[0], "+")
	case syntax.OpQuest:
		w.repeated(re.Sub[0], "?")
	case syntax.OpRepeat:
		switch {
		case re.Min > 255 || re.Max > 255:
			w.refused = "a repetition of more than 255 times"
		case re.Max == re.Min:
			w.repeated(re.Sub[0], fmt.Sprintf("{%d}", re.Min))
		case re.Max < 0:
			w.repeated(re.Sub[0], fmt.Sprintf("{%d,}", re.Min))
		default:
			w.repeated(re.Sub[0], fmt.Sprintf("{%d,%d}", re.Min, re.Max))
		}
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if sub.Op == syntax.OpAlternate {
				w.group(sub)
			} else {
				w.expression(sub)
			}
		}
	case syntax.OpAlternate:
		for i, sub := range re.Sub {
			if i > 0 {
				w.b.WriteByte('|')
			}
			w.expression(sub)
		}
	default:
		w.refused = re.String()
	}
}

// repeated writes an expression that is repeated.
func (w *regexWriter) repeated(re *syntax.Regexp, times string) {
	switch re.Op {
	case syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine, syntax.OpWordBoundary, syntax.OpNoWordBoundary, syntax.OpEmptyMatch:
		// PostgreSQL does not repeat what has no length.
		if times[0] != '*' && times[0] != '?' && times != "{0}" && !strings.HasPrefix(times, "{0,") {
			w.expression(re)
		}
		return
	}
	w.group(re)
	w.b.WriteString(times)
}

// group writes an expression as one that others can stand beside.
func (w *regexWriter) group(re *syntax.Regexp) {
	w.b.WriteString("(?:")
	w.expression(re)
	w.b.WriteByte(')')
}

// character writes a character that stands for itself.
func (w *regexWriter) character(r rune) {
	switch {
	case r == 0:
		w.refused = "the character 0"
	case r == '\n':
		w.b.WriteString(`\n`)
	case isEscapable(r) && r < 0x80 && r > ' ':
		w.b.WriteByte('\\')
		w.b.WriteRune(r)
	default:
		w.b.WriteRune(r)
	}
}

// folded writes a character in any case.
func (w *regexWriter) folded(r rune) {
	next := unicode.SimpleFold(r)
	if next == r {
		w.character(r)
		return
	}
	w.b.WriteByte('[')
	for w.b.WriteRune(r); next != r; next = unicode.SimpleFold(next) {
		w.b.WriteRune(next)
	}
	w.b.WriteByte(']')
}

// maxRanges is the most ranges that a class of characters may have. Classes such as \pL have hundreds.
const maxRanges = 100

// class writes a class of characters, which is pairs of first and last ones.
func (w *regexWriter) class(ranges []rune) {
	if len(ranges) > 2*maxRanges {
		w.refused = "a class of so many characters"
		return
	}
	if len(ranges) == 0 {
		w.b.WriteString(`(?!)`)
		return
	}
	w.b.WriteByte('[')
	for i := 0; i < len(ranges); i += 2 {
		first, last := max(ranges[i], 1), ranges[i+1]
		// PostgreSQL has no surrogates, which no text has either.
		for _, part := range [][2]rune{{first, min(last, 0xD7FF)}, {max(first, 0xE000), last}} {
			if part[0] > part[1] {
				continue
			}
			w.inClass(part[0])
			if part[1] > part[0] {
				w.b.WriteByte('-')
				w.inClass(part[1])
			}
		}
	}
	w.b.WriteByte(']')
}

// inClass writes a character within a class.
func (w *regexWriter) inClass(r rune) {
	if r < 0x80 && isEscapable(r) || r < ' ' {
		fmt.Fprintf(&w.b, `\x%02x`, r)
		return
	}
	fmt.Fprintf(&w.b, `\U%08x`, r)
}
