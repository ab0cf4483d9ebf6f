package send

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-logfmt/logfmt"

	"millrace/internal/record"
	"millrace/internal/syslog"
)

// member is a member of a record. value is a string, an int64 or a time.Time, JSON as the type number, or a *syslog.Message for the
// object of what it says beside its text.
type member struct {
	key   string
	value any
}

// number is a number as JSON has it.
type number string

// format makes a record of a line.
type format struct {
	// parse returns the members of the record of a line, or ok false if the line is not of the format. at is when the line was first about to be sent; years that
	// a line lacks are told by it. It is nil for the formats auto, json and text.
	parse func(line []byte, at time.Time) (members []member, ok bool)

	isJSON bool // a line that is a JSON object is the record
	only   bool // and every other line is refused
}

// formats are the formats by their names.
var formats = map[string]*format{
	"auto":   {isJSON: true},
	"json":   {isJSON: true, only: true},
	"text":   {},
	"nginx":  {parse: parseWeb},
	"apache": {parse: parseWeb},
	"syslog": {parse: parseSyslog},
	"logfmt": {parse: parseLogfmt},
}

// Formats returns the names of the formats, in the order in which help lists them.
func Formats() []string {
	return []string{"auto", "json", "text", "nginx", "apache", "syslog", "logfmt"}
}

// add adds the record of a line to a list. It reports whether the line is of the format, and whether it was taken.
func (f *format) add(list *record.List, line []byte, at time.Time) (parsed, ok bool) {
	if f.only {
		return true, list.Add(line, 0)
	}
	trimmed := bytes.TrimSpace(line)
	if f.isJSON && len(trimmed) >= 2 && trimmed[0] == '{' && trimmed[len(trimmed)-1] == '}' && list.Try(trimmed) {
		return true, true
	}
	if f.parse == nil {
		return true, list.Build(0, func(w *record.Writer) { w.Text("message", line) })
	}
	members, parsed := f.parse(line, at)
	return parsed, list.Build(0, func(w *record.Writer) {
		if !parsed {
			w.Text("message", line) // the line is kept whole
			return
		}
		for _, m := range members {
			switch v := m.value.(type) {
			case string:
				w.String(m.key, v)
			case []byte:
				w.Text(m.key, v)
			case int64:
				w.Int(m.key, v)
			case number:
				w.JSON(m.key, []byte(v))
			case bool:
				w.Bool(m.key, v)
			case time.Time:
				w.Time(m.key, v)
			case *syslog.Message:
				w.Open(m.key)
				v.Write(w)
				w.Close()
			}
		}
	})
}

// quotedText is text between quotation marks, in which a backslash comes before a quotation mark.
const quotedText = `"((?:[^"\\]|\\.)*)"`

var (
	// accessLine is a line of nginx's combined log, of Apache's common and combined logs, and of the latter's with the virtual host before it.
	accessLine = regexp.MustCompile(`^(\S+ \S+.*?) ?\[(\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\] ` + quotedText + ` (\d{3}) (\d+|-)(?: ` + quotedText + ` ` + quotedText + `)?(?: (.*))?$`)

	// nginxError is a line of nginx's error log.
	nginxError = regexp.MustCompile(`^(\d{4}/\d{2}/\d{2} \d{2}:\d{2}:\d{2}) \[([a-z]+)\] (\d+)#(\d+): (?:\*(\d+) )?(.*)$`)

	// apacheError is a line of Apache's error log.
	apacheError = regexp.MustCompile(`^\[[A-Z][a-z]{2} ([A-Z][a-z]{2} \d{2} \d{2}:\d{2}:\d{2}(?:\.\d+)? \d{4})\] \[([a-z0-9_-]*):?([a-z0-9]+)\] (?:\[pid (\d+)(?::tid \d+)?\] )?(?:\[client ([^\]]+)\] )?(.*)$`)

	hostAndPort = regexp.MustCompile(`^\S+:\d+$`)
	requestLine = regexp.MustCompile(`^([A-Z-]+) (\S+)(?: (HTTP/\d(?:\.\d)?))?$`)
)

// parseWeb reads a line of the logs of nginx and Apache. Formats: nginx.org, ngx_http_log_module; httpd.apache.org, mod_log_config.
func parseWeb(line []byte, _ time.Time) ([]member, bool) {
	if m := accessLine.FindStringSubmatch(string(line)); m != nil {
		at, err := time.Parse("02/Jan/2006:15:04:05 -0700", m[2])
		if err != nil {
			return nil, false
		}
		vhost, who := "", strings.SplitN(m[1], " ", 4)
		if len(who) == 4 && who[1] != "-" && hostAndPort.MatchString(who[0]) {
			vhost, who = who[0], strings.SplitN(m[1][len(who[0])+1:], " ", 3)
		} else {
			who = strings.SplitN(m[1], " ", 3)
		}
		request := unescapeWeb(m[3])
		status, _ := strconv.ParseInt(m[4], 10, 64) // three digits
		out := []member{{"time", at}, {"message", request}, {"remote_addr", who[0]}, {"status", status}}
		if r := requestLine.FindStringSubmatch(request); r != nil {
			out = append(out, member{"method", r[1]}, member{"path", r[2]})
			if r[3] != "" {
				out = append(out, member{"protocol", r[3]})
			}
		}
		if m[5] == "-" { // Apache's %b for none
			m[5] = "0"
		}
		out = appendNumber(out, "bytes", m[5])
		user := ""
		if len(who) == 3 {
			user = who[2]
		}
		for _, text := range []member{{"vhost", vhost}, {"user", user}, {"referer", unescapeWeb(m[6])}, {"user_agent", unescapeWeb(m[7])}, {"rest", m[8]}} {
			if text.value != "" && text.value != "-" {
				out = append(out, text)
			}
		}
		return out, true
	}
	if m := nginxError.FindStringSubmatch(string(line)); m != nil {
		at, err := time.ParseInLocation("2006/01/02 15:04:05", m[1], time.Local)
		if err != nil {
			return nil, false
		}
		return appendNumber(appendNumber([]member{{"time", at}, {"level", m[2]}, {"message", m[6]}}, "pid", m[3]), "connection", m[5]), true
	}
	if m := apacheError.FindStringSubmatch(string(line)); m != nil {
		at, err := time.ParseInLocation("Jan 02 15:04:05.999999 2006", m[1], time.Local)
		if err != nil {
			return nil, false
		}
		out := appendNumber([]member{{"time", at}, {"level", m[3]}, {"message", m[6]}}, "pid", m[4])
		for _, text := range []member{{"module", m[2]}, {"client", m[5]}} {
			if text.value != "" {
				out = append(out, text)
			}
		}
		return out, true
	}
	return nil, false
}

// appendNumber adds a member whose value is a number, if text is one.
func appendNumber(out []member, key, text string) []member {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		out = append(out, member{key, n})
	}
	return out
}

// unescapeWeb undoes the escapes of nginx (\x22) and Apache (\").
func unescapeWeb(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		i++
		if s[i] == 'x' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b, i = append(b, byte(c)), i+2
				continue
			}
		}
		switch s[i] {
		case '"', '\\':
			b = append(b, s[i])
		case 'n':
			b = append(b, '\n')
		case 't':
			b = append(b, '\t')
		case 'r':
			b = append(b, '\r')
		default:
			b = append(b, '\\', s[i])
		}
	}
	return string(b)
}

// plainNumber is a number that JSON has in the same form, and that no reader rounds.
var plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?$`)

// parseLogfmt reads a line of key=value pairs. A value that is a number, true or false is that in the record.
func parseLogfmt(line []byte, _ time.Time) ([]member, bool) {
	d := logfmt.NewDecoderSize(bytes.NewReader(line), len(line)+1)
	var out []member
	pairs := false
	for d.ScanRecord() {
		for d.ScanKeyval() {
			value := string(d.Value())
			pairs = pairs || d.Value() != nil
			switch {
			case d.Value() == nil, value == "true": // a key alone is a flag
				out = append(out, member{string(d.Key()), true})
			case value == "false":
				out = append(out, member{string(d.Key()), false})
			case plainNumber.MatchString(value):
				out = append(out, member{string(d.Key()), number(value)})
			default:
				out = append(out, member{string(d.Key()), value})
			}
		}
	}
	return out, d.Err() == nil && pairs
}

// FormatOf returns whether a name is that of a format, and an error that names all if not.
func FormatOf(name string) error {
	if formats[name] == nil {
		return fmt.Errorf("got %q, takes %s", name, strings.Join(Formats(), ", "))
	}
	return nil
}
