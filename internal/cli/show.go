package cli

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The names under which records usually say their level, the service they are of, and their message. The first that a record has counts.
var (
	levelNames   = []string{"level", "severity", "lvl", "loglevel", "log_level", "severity_text", "Level", "log.level", "severityText"}
	serviceNames = []string{"service", "service.name", "service_name", "app", "application"}
	messageNames = []string{"message", "msg", "Message", "body", "text", "event", "log"}
)

// The colours of a terminal, as ECMA-48 has them.
const (
	plainText = "\x1b[0m"
	dim       = "\x1b[2m"
	cyan      = "\x1b[36m"
)

// levelColours are the colours of levels, and which levels have them.
var levelColours = []struct {
	level  *regexp.Regexp
	colour string
}{
	{regexp.MustCompile(`(?i)^(fatal|crit(ical)?|panic|emerg(ency)?|alert|[67]0)$`), "\x1b[1;31m"},
	{regexp.MustCompile(`(?i)^(err(or)?|severe|failure|50)$`), "\x1b[31m"},
	{regexp.MustCompile(`(?i)^(warn(ing)?|40)$`), "\x1b[33m"},
	{regexp.MustCompile(`(?i)^(info(rmation(al)?)?|notice|30)$`), "\x1b[32m"},
	{regexp.MustCompile(`(?i)^(debug|trace|verbose|[12]0)$`), dim},
}

// widestField is how many characters of a field's value a terminal is shown.
const widestField = 160

// printable returns s with every character escaped that a terminal could take for a command, and that has no picture of its own.
// What is not UTF-8 becomes U+FFFD.
func printable(s string) string {
	isPlain := func(r rune) bool {
		return unicode.IsGraphic(r) || r == '\u200c' || r == '\u200d' // joiners are parts of words and of emoji
	}
	s = strings.ToValidUTF8(s, "\ufffd")
	if !strings.ContainsFunc(s, func(r rune) bool { return !isPlain(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isPlain(r) {
			b.WriteRune(r)
		} else {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// printableJSON returns one line of JSON with every character escaped, as JSON does, that printable escapes. Such characters stand in
// strings alone.
func printableJSON(line []byte) []byte {
	if !bytes.ContainsFunc(line, func(r rune) bool { return !unicode.IsGraphic(r) || r == utf8.RuneError }) {
		return line
	}
	var b []byte
	for _, r := range string(line) {
		switch {
		case unicode.IsGraphic(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// width returns how many columns of a terminal a text takes, near enough for a table.
func width(s string) (n int) {
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana) || r >= 0x1f300 && r < 0x1faff:
			n += 2
		default:
			n++
		}
	}
	return n
}

// printer writes records in one of the forms of the flag -o.
type printer struct {
	out      *bufio.Writer
	form     string         // text, json or csv
	zone     *time.Location // of the times in the text form
	terminal bool           // long values are cut, and line breaks of messages are shown as such
	colour   bool
	marks    bool     // each record says whether the search found it, or it is shown for context
	columns  []string // of CSV, beside time and id; nil: level, service, message and the record
	hasBegun bool
}

// isTerminal reports whether a file is a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// newPrinter returns a printer to standard output. when says when there are colours: auto, always or never.
func newPrinter(form, when string, utc bool) *printer {
	p := &printer{out: bufio.NewWriterSize(os.Stdout, 64<<10), form: form, zone: time.Local, terminal: isTerminal(os.Stdout)}
	p.colour = when == "always" || when == "auto" && p.terminal && os.Getenv("NO_COLOR") == ""
	if utc {
		p.zone = time.UTC
	}
	return p
}

// separate writes a line between records that do not follow each other.
func (p *printer) separate() error {
	if p.form != "text" {
		return nil
	}
	_, err := p.out.WriteString(p.painted(dim, "--") + "\n")
	return err
}

// painted returns text in a colour, if the printer has colours.
func (p *printer) painted(colour, text string) string {
	if !p.colour || colour == "" || text == "" {
		return text
	}
	return colour + text + plainText
}

// print writes a record. found is false if it is only shown for context.
func (p *printer) print(r *logRecord, found bool) error {
	switch p.form {
	case "json":
		line := r.line
		if p.marks {
			line = append(fmt.Appendf(nil, `{"match":%t,`, found), line[1:]...)
		}
		if p.terminal {
			line = printableJSON(line)
		}
		_, _ = p.out.Write(line) // the writer keeps its error
		return p.out.WriteByte('\n')
	case "csv":
		return p.printCSV(r, found)
	}
	_, err := p.out.WriteString(p.text(r, found) + "\n")
	return err
}

// text returns a record as text: time, level, service, message, then the other fields as key=value.
func (p *printer) text(r *logRecord, found bool) string {
	fields := flatten(r.Data)
	take := func(names []string) (field, bool) {
		for _, name := range names {
			for i, f := range fields {
				if f.name == name && f.value != "" {
					fields = append(fields[:i:i], fields[i+1:]...)
					return f, true
				}
			}
		}
		return field{}, false
	}
	var words []string
	if p.marks {
		words = append(words, map[bool]string{true: ">", false: " "}[found])
	}
	words = append(words, p.painted(dim, r.Time.In(p.zone).Format("2006-01-02 15:04:05.000")))
	if level, ok := take(levelNames); ok {
		colour := ""
		for _, l := range levelColours {
			if l.level.MatchString(level.value) {
				colour = l.colour
			}
		}
		words = append(words, p.painted(colour, fmt.Sprintf("%-5s", strings.ToUpper(printable(level.value)))))
	}
	if service, ok := take(serviceNames); ok {
		words = append(words, p.painted(cyan, printable(service.value)))
	}
	if message, ok := take(messageNames); ok {
		words = append(words, p.message(message.value))
	}
	for _, f := range fields {
		value := printable(f.value)
		if p.terminal && utf8.RuneCountInString(value) > widestField {
			value = string([]rune(value)[:widestField]) + "…"
		}
		if f.isText && needsQuotes(f.value) {
			value = `"` + strings.ReplaceAll(value, `"`, `\"`) + `"`
		}
		words = append(words, p.painted(dim, printable(f.name)+"=")+value)
	}
	return strings.Join(words, " ")
}

// message returns a message as it is shown. In a pipe it stays on its line. On a terminal its own lines are set in, so that none looks
// like a record.
func (p *printer) message(text string) string {
	if !p.terminal {
		return printable(text)
	}
	lines := strings.Split(strings.ReplaceAll(strings.TrimRight(text, "\r\n"), "\r\n", "\n"), "\n")
	for i, line := range lines {
		lines[i] = printable(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n    ")
}

// needsQuotes reports whether a text would not look like one value behind key=.
func needsQuotes(s string) bool {
	return s == "" || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '=' })
}

// field is a value of a record that is no object, by its dotted name.
type field struct {
	name   string
	value  string // a text without quotes, all else as JSON
	isText bool
}

// flatten returns the fields of a record in their order. One that is no object has one field without a name.
func flatten(data []byte) []field {
	return appendFields(nil, "", data)
}

// deepestField is how deep objects are taken apart. Deeper ones are one value.
const deepestField = 32

// appendFields appends the fields of a value with the dotted name.
func appendFields(fields []field, name string, value json.RawMessage) []field {
	if len(value) > 0 && value[0] == '{' && strings.Count(name, ".") < deepestField {
		members := json.NewDecoder(bytes.NewReader(value))
		_, err := members.Token()
		empty := true
		for err == nil && members.More() {
			var key json.Token
			var member json.RawMessage
			if key, err = members.Token(); err == nil {
				err = members.Decode(&member)
			}
			if err != nil {
				break
			}
			empty = false
			inner := fmt.Sprint(key)
			if name != "" {
				inner = name + "." + inner
			}
			fields = appendFields(fields, inner, member)
		}
		if !empty || name == "" {
			return fields
		}
	}
	var text string
	if len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &text) == nil {
		return append(fields, field{name, text, true})
	}
	return append(fields, field{name, string(value), false})
}

// printCSV writes a record as CSV, and before the first the names of the columns.
func (p *printer) printCSV(r *logRecord, found bool) error {
	names := [][]string{levelNames, serviceNames, messageNames}
	header := []string{"time", "id", "level", "service", "message", "data"}
	if p.columns != nil {
		names, header = nil, append([]string{"time", "id"}, p.columns...)
		for _, column := range p.columns {
			names = append(names, []string{column})
		}
	}
	row := []string{r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), r.ID}
	fields := flatten(r.Data)
	for _, alternatives := range names {
		row = append(row, valueOf(fields, r.Data, alternatives))
	}
	if p.columns == nil {
		row = append(row, string(r.Data))
	}
	if p.marks {
		header, row = append(header, "match"), append(row, strconv.FormatBool(found))
	}
	rows := [][]string{row}
	if !p.hasBegun {
		rows = [][]string{header, row}
	}
	p.hasBegun = true
	return p.writeCSV(rows)
}

// writeCSV writes rows as CSV.
func (p *printer) writeCSV(rows [][]string) error {
	var out io.Writer = p.out
	if p.terminal {
		for _, row := range rows {
			for i, cell := range row {
				row[i] = printable(cell)
			}
		}
	}
	w := csv.NewWriter(out)
	for _, row := range rows {
		if err := w.Write(row); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// valueOf returns the first of the alternatives that a record has, as text; an object as JSON; "" if it has none.
func valueOf(fields []field, data json.RawMessage, alternatives []string) string {
	for _, name := range alternatives {
		for _, f := range fields {
			if f.name == name && f.value != "" && f.value != "null" {
				return f.value
			}
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(data, &members) == nil && len(members[name]) > 0 && string(members[name]) != "null" {
			if members[name][0] == '{' {
				return string(members[name])
			}
		}
	}
	return ""
}
