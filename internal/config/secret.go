package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

// Secret is a setting that may hold a password. However it is printed, logged or encoded, it shows where it leads, or
// nothing. Only a conversion to string gives the value. The value belongs in a driver's parser and nowhere else;
// Parse passes it there. There is one exception: fmt prints unexported fields without calling their methods, so a
// struct that holds a Secret in an unexported field must not be printed.
//
// K is the kind of server that the setting leads to.
type Secret[K server] string

// server is a kind of Secret: it knows what values the kind takes.
type server interface {
	// takes returns a description of the kind, for refusals and help texts.
	takes() string
	// check returns what is wrong with a value, without repeating any of it; nil if nothing is.
	check(value string) error
}

type (
	rabbitMQ   struct{}
	management struct{}
	postgreSQL struct{}
	redisCache struct{}
	queryURL   struct{}
	apiURL     struct{}
	apiKey     struct{}
	hook       struct{}
	hookSecret struct{}
)

type (
	// BrokerURL is an amqp or amqps URL of one node.
	BrokerURL = Secret[rabbitMQ]

	// BrokerURLs are the URLs of a cluster's nodes.
	BrokerURLs []BrokerURL

	// ManagementURL is an http or https URL of the management API of one RabbitMQ node, with user and password.
	ManagementURL = Secret[management]

	// ManagementURLs are the management URLs of a cluster's nodes.
	ManagementURLs []ManagementURL

	// PostgresURL is a PostgreSQL connection string, a URL or key=value pairs.
	PostgresURL = Secret[postgreSQL]

	// RedisURL is a redis, rediss or unix URL.
	RedisURL = Secret[redisCache]

	// QueryURL is the http or https URL of a query service, with user and password if a proxy before it asks for them.
	QueryURL = Secret[queryURL]

	// APIURL is the http or https URL of an API, with user and password if a proxy before it asks for them.
	APIURL = Secret[apiURL]

	// APIKey is the key that a client shows to a service.
	APIKey = Secret[apiKey]

	// HookURL is the http or https URL that messages are posted to. Its path may be a secret too, and is not shown.
	HookURL = Secret[hook]

	// HookSecret is what messages are signed with.
	HookSecret = Secret[hookSecret]
)

// Takes returns a description of the kind, for refusals and help texts.
func (Secret[K]) Takes() string {
	var kind K
	return kind.takes()
}

// Check returns what is wrong with the value, without repeating any of it; nil if nothing is.
func (s Secret[K]) Check() error {
	var kind K
	return kind.check(string(s))
}

// String returns what may be shown of the value: where a URL leads, without user, password and parameters. Other
// values are hidden.
func (s Secret[K]) String() string {
	switch {
	case s == "":
		return ""
	case s.Check() != nil || !isURL(string(s)):
		return "(hidden)"
	}
	u := splitURL(string(s))
	var kind K
	if _, hidesPath := any(kind).(hook); hidesPath {
		return u.scheme + "://" + u.hosts
	}
	return u.scheme + "://" + u.hosts + u.path
}

// isURL reports whether a value begins as a URL does. In host=h password=a://b no scheme stands before the ://.
func isURL(value string) bool {
	scheme, _, found := strings.Cut(value, "://")
	return found && !strings.Contains(scheme, "=")
}

// GoString returns String in quotation marks.
func (s Secret[K]) GoString() string { return fmt.Sprintf("%q", s.String()) }

// Format prints String, whatever the verb.
func (s Secret[K]) Format(state fmt.State, verb rune) {
	text := s.String()
	if verb == 'q' || verb == 'v' && state.Flag('#') {
		text = fmt.Sprintf("%q", text)
	}
	_, _ = io.WriteString(state, text) // fmt keeps the error
}

// LogValue returns String, for log/slog.
func (s Secret[K]) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText returns String, for JSON and other encodings.
func (s Secret[K]) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Parse returns the result of parse, a driver's parser, for the value. Its error repeats nothing of the value, unlike
// the drivers' errors.
func Parse[K server, T any](s Secret[K], parse func(string) (T, error)) (T, error) {
	v, err := parse(string(s))
	if err == nil {
		return v, nil
	}
	if wrong := s.Check(); wrong != nil {
		err = wrong
	} else {
		err = notTaken(err, s.Takes())
	}
	return v, err
}

// notTaken returns the error for a value that a driver refuses with err. From err it takes only the reason why a file
// could not be read, because all else may repeat the value.
func notTaken(err error, takes string) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("a file that it names can't be read: %w", path.Err)
	}
	return errors.New("takes " + takes)
}

// parseSecret returns the value as a Secret, and what is wrong with it.
func parseSecret[K server](value string) (any, error) {
	s := Secret[K](value)
	return s, s.Check()
}

func (rabbitMQ) takes() string   { return "an amqp:// or amqps:// URL" }
func (management) takes() string { return "an http:// or https:// URL with user and password" }
func (redisCache) takes() string {
	return "a redis:// or rediss:// URL such as redis://:password@host:6379/0"
}
func (postgreSQL) takes() string {
	return "a PostgreSQL URL such as postgres://user:password@host:5432/database"
}

func (queryURL) takes() string { return "an http:// or https:// URL such as http://localhost:8081" }
func (hook) takes() string {
	return "an http:// or https:// URL such as https://chat.example.com/hooks/1"
}
func (hookSecret) takes() string {
	return "a secret of 16 to 1024 characters without spaces and ends of lines"
}
func (apiURL) takes() string { return "an http:// or https:// URL such as http://localhost:8080" }
func (apiKey) takes() string { return "an API key, as printed by millrace keys new" }

// Brokers returns the URLs in a string, separated by commas. It does not check them.
func Brokers(urls string) (list BrokerURLs) {
	for u := range strings.SplitSeq(urls, ",") {
		list = append(list, BrokerURL(strings.TrimSpace(u)))
	}
	return list
}

// Takes returns a description of the kind, for refusals and help texts.
func (BrokerURLs) Takes() string { return "amqp:// or amqps:// URLs, separated by commas" }

// parseBrokerURLs reads URLs that are separated by commas, and checks them.
func parseBrokerURLs(s string) (BrokerURLs, error) {
	urls := Brokers(s)
	for _, u := range urls {
		if len(urls) > 1 && !hasScheme(string(u), "amqp://", "amqps://") {
			return nil, errors.New(`a part between commas begins with neither amqp:// nor amqps:// (in a user or password a "," must be written %2C)`)
		}
	}
	return urls, urls.Check()
}

// Check returns what is wrong with the first of the URLs that is not taken; nil if all are.
func (urls BrokerURLs) Check() error { return checkEach(urls) }

// Takes returns a description of the kind, for refusals and help texts.
func (ManagementURLs) Takes() string {
	return "http:// or https:// URLs with user and password, separated by commas"
}

// Check returns what is wrong with the first of the URLs that is not taken; nil if all are.
func (urls ManagementURLs) Check() error { return checkEach(urls) }

// parseManagementURLs reads URLs that are separated by commas, and checks them.
func parseManagementURLs(s string) (urls ManagementURLs, err error) {
	for u := range strings.SplitSeq(s, ",") {
		urls = append(urls, ManagementURL(strings.TrimSuffix(strings.TrimSpace(u), "/")))
	}
	return urls, urls.Check()
}

// checkEach returns what is wrong with the first of several values that is not taken, and which one that is.
func checkEach[K server](urls []Secret[K]) error {
	for i, u := range urls {
		if err := u.Check(); err != nil && len(urls) > 1 {
			return fmt.Errorf("URL %d of %d: %w", i+1, len(urls), err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (k rabbitMQ) check(value string) error {
	u, err := parseURL(value, "amqp://", "amqps://")
	if err != nil {
		return err
	}
	if err := u.requireHost(); err != nil {
		return err
	}
	if err := u.checkParameters(rabbitMQParameters, nil); err != nil {
		return err
	}
	if _, err := amqp.ParseURI(value); err != nil {
		return notTaken(err, k.takes())
	}
	return nil
}

func (k management) check(value string) error {
	u, err := parseURL(value, "http://", "https://")
	if err != nil {
		return err
	}
	if err := u.requireHost(); err != nil {
		return err
	}
	if user, password, _ := strings.Cut(u.user, ":"); user == "" || password == "" {
		return errors.New("there is no user:password@ before the host")
	}
	return u.checkParameters(nil, nil)
}

func (queryURL) check(value string) error {
	u, err := parseURL(value, "http://", "https://")
	if err != nil {
		return err
	}
	if err := u.requireHost(); err != nil {
		return err
	}
	return u.checkParameters(nil, nil)
}

// check takes parameters of any name.
func (hook) check(value string) error {
	u, err := parseURL(value, "http://", "https://")
	if err != nil {
		return err
	}
	return u.requireHost()
}

// check refuses what is easily guessed, and what an editor may have added.
func (k hookSecret) check(value string) error {
	if len(value) < 16 || len(value) > 1024 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return errors.New("takes " + k.takes())
	}
	return nil
}

func (apiURL) check(value string) error { return queryURL{}.check(value) }

// check takes what a header of HTTP can have behind "Bearer" (RFC 6750, section 2.1).
func (apiKey) check(value string) error {
	isOther := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~+/=", r))
	}
	if strings.ContainsFunc(value, isOther) {
		return errors.New("holds a character that no API key has, such as a space or the end of a line")
	}
	return nil
}

func (k redisCache) check(value string) error {
	u, err := parseURL(value, "redis://", "rediss://", "unix://")
	if err != nil {
		return err
	}
	if u.scheme != "unix" {
		if err := u.requireHost(); err != nil {
			return err
		}
		if database := strings.Trim(u.path, "/"); !isNumber(database, 0, 1<<30) && database != "" {
			return errors.New("the database after the host is no number")
		}
	}
	if err := u.checkParameters(redisParameters, nil); err != nil {
		return err
	}
	if _, err := redis.ParseURL(value); err != nil {
		return notTaken(err, k.takes())
	}
	return nil
}

func (k postgreSQL) check(value string) error {
	var pairs []parameter
	if isURL(value) || !strings.Contains(value, "=") {
		u, err := parseURL(value, "postgres://", "postgresql://")
		if err != nil {
			return err
		}
		for host := range strings.SplitSeq(u.hosts, ",") {
			if err := checkHost(host); err != nil {
				return err
			}
		}
		pairs = u.parameters
	} else {
		var err error
		if pairs, err = parsePairs(value); err != nil {
			return err
		}
	}
	if err := checkParameters(pairs, postgresParameters, postgresNever); err != nil {
		return err
	}
	// The pool's parser calls the connection's: it takes what either of them takes.
	if _, err := pgxpool.ParseConfig(value); err != nil {
		return notTaken(err, k.takes())
	}
	return nil
}
