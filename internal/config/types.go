package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgconn"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

type (
	// Bytes is a size in bytes, written as a whole number with an optional unit: 512, 64KiB, 16MiB, 2GiB.
	Bytes int64

	// Address is a TCP address to listen on, host:port.
	Address string

	// Loopback is an Address that only this machine reaches, or empty.
	Loopback string

	// BrokerURLs are the amqp or amqps URLs of a cluster's nodes.
	BrokerURLs []string

	// ManagementURLs are the http or https URLs of the management API of a cluster's nodes, with user and password.
	ManagementURLs []string

	// PostgresURL is a PostgreSQL connection string, a URL or key=value pairs.
	PostgresURL string

	// RedisURL is a redis, rediss or unix URL.
	RedisURL string
)

// Takes describe the types in refusals and help texts.
func (Bytes) Takes() string      { return "a size such as 512, 64KiB or 16MiB" }
func (Address) Takes() string    { return "host:port such as 127.0.0.1:8080" }
func (Loopback) Takes() string   { return "host:port of this machine alone such as 127.0.0.1:6060" }
func (BrokerURLs) Takes() string { return "amqp:// or amqps:// URLs, separated by commas" }
func (ManagementURLs) Takes() string {
	return "http:// or https:// URLs with user and password, separated by commas"
}
func (PostgresURL) Takes() string {
	return "a PostgreSQL URL such as postgres://user:password@host:5432/database"
}
func (RedisURL) Takes() string { return "a redis:// or rediss:// URL" }

func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

var units = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

var errNotTaken = errors.New("not taken")

var parsers = map[reflect.Type]env.ParserFunc{
	reflect.TypeFor[int]():            func(s string) (any, error) { return strconv.Atoi(s) },
	reflect.TypeFor[bool]():           func(s string) (any, error) { return strconv.ParseBool(s) },
	reflect.TypeFor[time.Duration]():  func(s string) (any, error) { return time.ParseDuration(s) },
	reflect.TypeFor[Bytes]():          func(s string) (any, error) { return parseBytes(s) },
	reflect.TypeFor[Address]():        func(s string) (any, error) { return parseAddress(s) },
	reflect.TypeFor[Loopback]():       func(s string) (any, error) { return parseLoopback(s) },
	reflect.TypeFor[BrokerURLs]():     func(s string) (any, error) { return parseBrokerURLs(s) },
	reflect.TypeFor[ManagementURLs](): func(s string) (any, error) { return parseManagementURLs(s) },
	reflect.TypeFor[PostgresURL](): func(s string) (any, error) {
		_, err := pgconn.ParseConfig(s)
		return PostgresURL(s), err
	},
	reflect.TypeFor[RedisURL](): func(s string) (any, error) {
		_, err := redis.ParseURL(s)
		return RedisURL(s), err
	},
}

func parseBytes(s string) (Bytes, error) {
	for _, u := range units {
		if digits, ok := strings.CutSuffix(s, u.name); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
			if err != nil || n > math.MaxInt64/uint64(u.size) {
				return 0, errNotTaken
			}
			return Bytes(int64(n) * u.size), nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 63)
	return Bytes(n), err
}

func parseAddress(s string) (Address, error) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", err
	}
	return Address(s), nil
}

// Loopback says whether only this machine reaches the address.
func (a Address) Loopback() bool {
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func parseLoopback(s string) (Loopback, error) {
	a, err := parseAddress(s)
	if err == nil && !a.Loopback() {
		err = errNotTaken
	}
	return Loopback(a), err
}

func parseBrokerURLs(s string) (BrokerURLs, error) {
	var urls BrokerURLs
	for u := range strings.SplitSeq(s, ",") {
		u = strings.TrimSpace(u)
		if _, err := amqp.ParseURI(u); err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

func parseManagementURLs(s string) (ManagementURLs, error) {
	var urls ManagementURLs
	for raw := range strings.SplitSeq(s, ",") {
		raw = strings.TrimSpace(raw)
		u, err := url.Parse(raw)
		if err != nil {
			return nil, err
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User == nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, errNotTaken
		}
		urls = append(urls, strings.TrimSuffix(raw, "/"))
	}
	return urls, nil
}

// Redacted returns what may be logged of a URL: where it leads, without user, password and parameters.
func Redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// Missing is the error for a setting that has no default and is not set.
func Missing(name string) error {
	return fmt.Errorf("%s is not set; millrace run starts a private server for it", name)
}
