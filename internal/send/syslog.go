package send

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// severities are the names of syslog's severities, by their numbers (RFC 5424, 6.2.1).
var severities = [...]string{"emergency", "alert", "critical", "error", "warning", "notice", "info", "debug"}

// facilities are the names of syslog's facilities, by their numbers, as syslog(3) and logger(1) have them.
var facilities = [...]string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

var (
	syslogPriority = regexp.MustCompile(`^<(\d{1,3})>`)
	// syslog5424 is what follows the priority in RFC 5424: version, time, host, program, process, message id.
	syslog5424 = regexp.MustCompile(`^1 (\S+) (\S+) (\S+) (\S+) (\S+) `)
	// syslogTime is the time of RFC 3164, or that of RFC 3339, as rsyslog and syslog-ng write it into files.
	syslogTime = regexp.MustCompile(`^(?:([A-Z][a-z]{2} [ 0-9]\d(?: \d{4})? \d{2}:\d{2}:\d{2})|(\d{4}-\d{2}-\d{2}T\S+)) `)
	syslogTag  = regexp.MustCompile(`^([^\s:\[]{1,64})(?:\[([^\]\s]{1,64})\])?: ?`)
)

// parseSyslog reads a line of RFC 5424 or RFC 3164, with a priority or, as in files, without one. A time without a zone is local, and one without a year is the last before at, or
// a day after it at most.
func parseSyslog(line []byte, at time.Time) ([]member, bool) {
	rest := string(line)
	var out []member
	if m := syslogPriority.FindStringSubmatch(rest); m != nil {
		n, err := strconv.Atoi(m[1])
		if err != nil || n > 191 {
			return nil, false
		}
		out = append(out, member{"level", severities[n%8]}, member{"facility", facilities[n/8]})
		rest = rest[len(m[0]):]
		if m := syslog5424.FindStringSubmatch(rest); m != nil {
			return parse5424(out, m, rest[len(m[0]):])
		}
	}
	m := syslogTime.FindStringSubmatch(rest)
	if m == nil {
		return nil, false
	}
	happened, ok := timeOfSyslog(m[1], m[2], at)
	if !ok {
		return nil, false
	}
	out = append(out, member{"time", happened})
	host, rest, ok := strings.Cut(rest[len(m[0]):], " ")
	if !ok {
		return nil, false
	}
	if strings.HasSuffix(host, ":") || strings.HasSuffix(host, "]:") { // no host: that is the tag
		host, rest = "", host+" "+rest
	}
	if host != "" {
		out = append(out, member{"host", host})
	}
	if m := syslogTag.FindStringSubmatch(rest); m != nil {
		out = appendProcess(append(out, member{"service", m[1]}), m[2])
		rest = rest[len(m[0]):]
	}
	return append(out, member{"message", rest}), true
}

// appendProcess adds a process's id, which is a number for most.
func appendProcess(out []member, text string) []member {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return append(out, member{"pid", n})
	}
	if text != "" {
		out = append(out, member{"pid", text})
	}
	return out
}

// timeOfSyslog returns a time of RFC 3164, or one of RFC 3339.
func timeOfSyslog(old, rfc3339 string, at time.Time) (time.Time, bool) {
	if rfc3339 != "" {
		t, err := time.Parse(time.RFC3339Nano, rfc3339)
		return t, err == nil
	}
	if t, err := time.ParseInLocation("Jan _2 2006 15:04:05", old, time.Local); err == nil {
		return t, true
	}
	// With the year before it, 29 February is found where it is.
	for year := at.Year() + 1; year >= at.Year()-4; year-- {
		t, err := time.ParseInLocation("2006 Jan _2 15:04:05", strconv.Itoa(year)+" "+old, time.Local)
		if err == nil && t.Before(at.Add(24*time.Hour)) {
			return t, true
		}
	}
	return time.Time{}, false
}

// parse5424 reads the fields of RFC 5424, and the structured data and message behind them.
func parse5424(out []member, fields []string, rest string) ([]member, bool) {
	if fields[1] != "-" {
		t, err := time.Parse(time.RFC3339Nano, fields[1])
		if err != nil {
			return nil, false
		}
		out = append(out, member{"time", t})
	}
	for i, key := range []string{2: "host", 3: "service", 5: "message_id"} {
		if key != "" && fields[i] != "-" {
			out = append(out, member{key, fields[i]})
		}
	}
	if fields[4] != "-" {
		out = appendProcess(out, fields[4])
	}
	if after, ok := strings.CutPrefix(rest, "-"); ok {
		rest = after
	} else {
		for strings.HasPrefix(rest, "[") {
			end := structuredEnd(rest)
			if end < 0 {
				return nil, false
			}
			element := rest[1:end]
			rest = rest[end+1:]
			id, parameters, _ := strings.Cut(element, " ")
			for _, m := range structuredParameter.FindAllStringSubmatch(parameters, -1) {
				out = append(out, member{id + "." + m[1], structuredEscape.Replace(m[2])})
			}
		}
	}
	if rest != "" && rest[0] != ' ' {
		return nil, false
	}
	message := strings.TrimPrefix(strings.TrimPrefix(rest, " "), "\ufeff")
	return append(out, member{"message", message}), true
}

var (
	structuredParameter = regexp.MustCompile(`([^\s="\]]+)="((?:[^"\\]|\\.)*)"`)
	structuredEscape    = strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\]`, `]`)
)

// structuredEnd returns where the first element of structured data ends, or -1.
func structuredEnd(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ']' && !quoted:
			return i
		}
	}
	return -1
}
