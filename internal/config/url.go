package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// serverURL is the parts of a server's URL. Only the parameters are unescaped.
type serverURL struct {
	scheme, user, hosts, path, query string

	parameters []parameter // those of query; set by parseURL
}

// parameter is one name=value of a connection string.
type parameter struct{ name, value string }

// splitURL returns the parts of a URL, split as the drivers do. The last "@" before the path ends the user and
// password.
func splitURL(raw string) (u serverURL) {
	u.scheme, raw, _ = strings.Cut(raw, "://")
	authority, tail := raw, ""
	if i := strings.IndexAny(raw, "/?#"); i >= 0 {
		authority, tail = raw[:i], raw[i:]
	}
	u.hosts = authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		u.user, u.hosts = authority[:i], authority[i+1:]
	}
	u.path, u.query, _ = strings.Cut(tail, "?")
	return u
}

// hasScheme reports whether raw begins with one of schemes, in any case.
func hasScheme(raw string, schemes ...string) bool {
	return slices.ContainsFunc(schemes, func(s string) bool { return len(raw) >= len(s) && strings.EqualFold(raw[:len(s)], s) })
}

// parseURL returns the parts of a URL, and checks what all servers' URLs have in common. Its errors name a character
// or a part, and repeat nothing else: if a password is written wrongly, any part may be a piece of the password.
func parseURL(raw string, schemes ...string) (serverURL, error) {
	switch {
	case raw != "" && strings.Contains(`"'`+"`", raw[:1]):
		return serverURL{}, errors.New("begins with a quotation mark, which is taken for a part of the value")
	case strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return serverURL{}, errors.New("holds a control character, such as the end of a line")
	case !hasScheme(raw, schemes...):
		return serverURL{}, fmt.Errorf("begins with none of %s", strings.Join(schemes, ", "))
	case strings.Contains(raw, " "):
		return serverURL{}, mustBeWritten("", ' ')
	}
	u := splitURL(raw)
	// After the host an "@" must be escaped. So a plain one there means that the password holds a character that ends
	// the host.
	_, rest, _ := strings.Cut(raw, "://")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 && strings.Contains(rest[i:], "@") {
		return u, fmt.Errorf(`%w (an "@" that comes after the host must be written %%40)`, mustBeWritten("the user or password", rune(rest[i])))
	}
	if strings.Contains(rest, "#") {
		return u, mustBeWritten("", '#')
	}
	if strings.Contains(u.user, "%") && !isEscaped(u.user) {
		return u, mustBeWritten("the user or password", '%')
	}
	for _, r := range u.user {
		switch {
		case r > '~':
			return u, errors.New("the user or password holds a character beyond ASCII, of which each byte must be written % and two hexadecimal digits")
		case strings.ContainsRune("\"<>[]\\^`{|}", r):
			return u, mustBeWritten("the user or password", r)
		}
	}
	if strings.Contains(u.hosts, "%") && !strings.HasPrefix(u.hosts, "[") {
		return u, errors.New(`the host holds "%"`)
	}
	if !isEscaped(u.path) || !isEscaped(u.query) {
		return u, mustBeWritten("what follows the host", '%')
	}
	if u.query != "" {
		for pair := range strings.SplitSeq(u.query, "&") {
			name, value, _ := strings.Cut(pair, "=")
			var p parameter
			var err error
			if p.name, err = url.QueryUnescape(name); err == nil {
				p.value, err = url.QueryUnescape(value)
			}
			if err != nil {
				return u, mustBeWritten("a parameter", '%')
			}
			u.parameters = append(u.parameters, p)
		}
	}
	return u, nil
}

// mustBeWritten returns the error for a character that must be escaped in a part of a URL.
func mustBeWritten(part string, r rune) error {
	text := fmt.Sprintf("holds %q, which must be written %%%02X", string(r), r)
	if part == "" {
		return errors.New(text)
	}
	return errors.New(part + " " + text)
}

// isEscaped reports whether each "%" is followed by two hexadecimal digits.
func isEscaped(s string) bool {
	_, err := url.PathUnescape(s)
	return err == nil
}

// requireHost returns an error if the URL has no host, or one that is not valid.
func (u serverURL) requireHost() error {
	if u.hosts == "" || strings.HasPrefix(u.hosts, ":") {
		return errors.New("there is no host in it")
	}
	return checkHost(u.hosts)
}

// checkHost returns an error if host:port is not valid. Both may be missing.
func checkHost(hostPort string) error {
	host, port := hostPort, ""
	if end := strings.LastIndexByte(hostPort, ']'); strings.HasPrefix(hostPort, "[") && end > 0 {
		host, port = hostPort[1:end], hostPort[end+1:]
		address, _, _ := strings.Cut(host, "%") // a zone may follow
		if net.ParseIP(address) == nil || port != "" && port[0] != ':' {
			return errors.New("the host is no IPv6 address in brackets")
		}
		port = strings.TrimPrefix(port, ":")
	} else if i := strings.IndexByte(hostPort, ':'); i >= 0 {
		host, port = hostPort[:i], hostPort[i+1:]
	}
	if port != "" && !isNumber(port, 1, 65535) {
		return errors.New(`the port after the host is no number from 1 to 65535 (an "@" stands between password and host)`)
	}
	if strings.ContainsAny(host, ",\"<>[]\\^`{|}") {
		return errors.New("the host is no name or address")
	}
	return nil
}

// isNumber reports whether s is a whole number from low to high.
func isNumber(s string, low, high int) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= low && n <= high
}

// parsePairs reads PostgreSQL's key=value pairs as libpq does. A value may be in quotation marks ('a value'); a
// quotation mark within the value has a backslash before it.
func parsePairs(s string) (pairs []parameter, err error) {
	const space = " \t\n\r\v\f"
	for s = strings.Trim(s, space); s != ""; s = strings.TrimLeft(s, space) {
		name, rest, found := strings.Cut(s, "=")
		name = strings.TrimRight(name, space)
		if !found || name == "" || strings.ContainsAny(name, space) {
			return nil, errors.New(`a word has no "=": a value that holds a space must be quoted, as in password='…'`)
		}
		s = strings.TrimLeft(rest, space)
		quoted := strings.HasPrefix(s, "'")
		if quoted {
			s = s[1:]
		}
		var value strings.Builder
		for {
			if s == "" && quoted {
				return nil, errors.New("a quotation mark has no second one")
			}
			if s == "" || quoted && s[0] == '\'' || !quoted && strings.IndexByte(space, s[0]) >= 0 {
				break
			}
			if s[0] == '\\' && len(s) > 1 {
				s = s[1:]
			}
			value.WriteByte(s[0])
			s = s[1:]
		}
		if quoted {
			s = s[1:]
		}
		pairs = append(pairs, parameter{name, value.String()})
	}
	return pairs, nil
}

// values is what a known parameter takes: one of some words, or a whole number. The zero value means any text.
type values struct {
	words  []string
	number bool
}

// oneOf returns the values of a parameter that takes one of some words.
func oneOf(words ...string) values { return values{words: words} }

var anyText, wholeNumber = values{}, values{number: true}

// rabbitMQParameters are the parameters that the AMQP client's ParseURI reads, and those of other clients that it
// ignores. See https://www.rabbitmq.com/docs/uri-query-parameters.
var rabbitMQParameters = map[string]values{
	"certfile": anyText, "keyfile": anyText, "cacertfile": anyText, "server_name_indication": anyText, "auth_mechanism": oneOf("plain", "amqplain", "external", "PLAIN", "AMQPLAIN", "EXTERNAL"),
	"heartbeat": wholeNumber, "connection_timeout": wholeNumber, "channel_max": wholeNumber, "verify": anyText, "depth": wholeNumber,
	"fail_if_no_peer_cert": anyText, "password": anyText,
}

// redisParameters are the parameters of the Redis client's ParseURL, which checks its numbers and durations itself.
var redisParameters = map[string]values{
	"db": wholeNumber, "protocol": wholeNumber, "client_name": anyText, "max_retries": wholeNumber, "min_retry_backoff": anyText,
	"max_retry_backoff": anyText, "dial_timeout": anyText, "read_timeout": anyText, "write_timeout": anyText, "pool_fifo": anyText,
	"pool_size": wholeNumber, "pool_timeout": anyText, "min_idle_conns": wholeNumber, "max_idle_conns": wholeNumber,
	"max_active_conns": wholeNumber, "max_concurrent_dials": wholeNumber, "pipeline_pool_size": wholeNumber,
	"pipeline_read_buffer_size": wholeNumber, "pipeline_write_buffer_size": wholeNumber, "conn_max_idle_time": anyText,
	"idle_timeout": anyText, "conn_max_lifetime": anyText, "max_conn_age": anyText, "conn_max_lifetime_jitter": anyText, "skip_verify": anyText,
}

// postgresParameters are the parameters that pgx reads itself. All others are settings of the session, which the
// server checks.
var postgresParameters = map[string]values{
	"host": anyText, "port": anyText, "user": anyText, "password": anyText, "dbname": anyText, "database": anyText,
	"passfile": anyText, "service": anyText, "servicefile": anyText, "options": anyText, "application_name": anyText, "client_encoding": anyText,
	"connect_timeout":      wholeNumber,
	"sslmode":              oneOf("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
	"sslnegotiation":       oneOf("postgres", "direct"),
	"sslcertmode":          oneOf("disable", "allow", "require"),
	"channel_binding":      oneOf("disable", "prefer", "require"),
	"target_session_attrs": oneOf("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
	"min_protocol_version": oneOf("3.0", "3.2", "latest"), "max_protocol_version": oneOf("3.0", "3.2", "latest"),
	"sslkey": anyText, "sslcert": anyText, "sslrootcert": anyText, "sslpassword": anyText, "sslsni": oneOf("0", "1"), "ssl": anyText,
	"krbspn": anyText, "krbsrvname": anyText, "require_auth": anyText,
	"default_query_exec_mode":  oneOf("cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"),
	"statement_cache_capacity": wholeNumber, "description_cache_capacity": wholeNumber,
	"pool_max_conns": wholeNumber, "pool_min_conns": wholeNumber, "pool_min_idle_conns": wholeNumber, "pool_max_conn_lifetime": anyText,
	"pool_max_conn_idle_time": anyText, "pool_health_check_period": anyText, "pool_max_conn_lifetime_jitter": anyText, "pool_ping_timeout": anyText,
}

// postgresNever are parameters that only libpq has. pgx would send them to the server, which would refuse every
// connection.
var postgresNever = []string{
	"gssencmode", "gssdelegation", "gsslib", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "requirepeer",
	"requiressl", "sslcompression", "sslcrl", "sslcrldir", "ssl_min_protocol_version", "ssl_max_protocol_version", "tcp_user_timeout",
	"fallback_application_name",
}

// checkParameters returns an error for the first parameter of the URL that is unknown or wrong.
func (u serverURL) checkParameters(known map[string]values, never []string) error {
	for i, p := range u.parameters {
		if _, ok := known[p.name]; !ok {
			return unknownParameter(i, p.name, known)
		}
	}
	return checkParameters(u.parameters, known, never)
}

// checkParameters returns an error for the first parameter that is wrong. It names only known parameters: an unknown
// one may be a piece of a password.
func checkParameters(pairs []parameter, known map[string]values, never []string) error {
	for i, p := range pairs {
		takes, ok := known[p.name]
		switch {
		case slices.Contains(never, p.name):
			return fmt.Errorf("the parameter %s is one of libpq's that this program does not have", p.name)
		case !ok && (!isIdentifier(p.name) || nearest(p.name, known) != ""):
			return unknownParameter(i, p.name, known)
		case takes.number && !isNumber(p.value, 0, 1<<31-1):
			return fmt.Errorf("%s: takes a whole number", p.name)
		case takes.words != nil && !slices.Contains(takes.words, p.value):
			return fmt.Errorf("%s: takes %s", p.name, strings.Join(takes.words, ", "))
		case p.name == "port":
			for port := range strings.SplitSeq(p.value, ",") {
				if port != "" && !isNumber(port, 1, 65535) {
					return errors.New("port: takes a number from 1 to 65535")
				}
			}
		}
	}
	return nil
}

// unknownParameter returns the error for an unknown parameter, the i-th.
func unknownParameter(i int, name string, known map[string]values) error {
	if near := nearest(name, known); near != "" {
		return fmt.Errorf("parameter %d is unknown; %s is the nearest there is", i+1, near)
	}
	return fmt.Errorf("parameter %d is unknown", i+1)
}

// isIdentifier reports whether s could be the name of a PostgreSQL setting.
func isIdentifier(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// nearest returns the known name that differs from name by case alone, or by one letter, or by two if it is long. It
// returns "" if there is none.
func nearest(name string, known map[string]values) string {
	for k := range known {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	best, least := "", 3
	for k := range known {
		d := distance(strings.ToLower(name), k)
		if limit := min(2, len(k)/4); d <= limit && (d < least || d == least && k < best) {
			best, least = k, d
		}
	}
	return best
}

// distance returns the Levenshtein distance of a and b: how many letters must be inserted, removed or replaced to turn
// a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
