package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"millrace/internal/eventtime"
	"millrace/internal/fieldindex"
	"millrace/internal/timezone"
)

type (
	// Bytes is a size in bytes, written as a whole number with an optional unit: 512, 64KiB, 16MiB, 2GiB.
	Bytes int64

	// Address is a TCP address to listen on, host:port.
	Address string

	// Loopback is an Address that only this machine reaches. It may be empty.
	Loopback string

	// Intakes are names of protocols in which records come, separated by commas.
	Intakes string

	// FieldNames are names of fields at the top level of a record, in order and separated by commas.
	FieldNames string

	// FieldPaths are fields as searches have them, such as trace_id or user.id, separated by commas. It may be empty.
	FieldPaths string

	// Networks are networks of IP addresses in the form of CIDR, and single addresses, separated by commas. It may be empty.
	Networks string

	// TimeZone is the name of one of IANA's time zones. It may be empty.
	TimeZone string

	// Version is a version of three numbers. It may be empty.
	Version string
)

// Takes returns a description of the type, for refusals and help texts.
func (Bytes) Takes() string   { return "a size such as 512, 64KiB, 16MiB or 2GiB" }
func (Address) Takes() string { return "host:port such as 127.0.0.1:8080" }
func (FieldNames) Takes() string {
	return fmt.Sprintf("names of fields separated by commas, each once, at most %d of %d bytes", eventtime.MaxFields, eventtime.MaxFieldBytes)
}
func (FieldPaths) Takes() string {
	return fmt.Sprintf("fields as searches have them, such as trace_id,user.id, separated by commas, each once, at most %d", fieldindex.Most)
}
func (Intakes) Takes() string { return "intakes separated by commas such as otlp,loki, or none" }
func (Networks) Takes() string {
	return "networks separated by commas such as 10.0.0.0/8,192.0.2.7,fd00::/8"
}
func (TimeZone) Takes() string { return "the name of a time zone such as Europe/Berlin or UTC" }
func (Version) Takes() string  { return "a version of three numbers such as 8.19.0" }
func (Loopback) Takes() string { return "host:port of this machine alone such as 127.0.0.1:6060" }

// String returns b with the largest unit that leaves a whole number.
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
	reflect.TypeFor[time.Duration]():  func(s string) (any, error) { return parseDuration(s) },
	reflect.TypeFor[Bytes]():          func(s string) (any, error) { return parseBytes(s) },
	reflect.TypeFor[Address]():        func(s string) (any, error) { return parseAddress(s) },
	reflect.TypeFor[Loopback]():       func(s string) (any, error) { return parseLoopback(s) },
	reflect.TypeFor[BrokerURLs]():     func(s string) (any, error) { return parseBrokerURLs(s) },
	reflect.TypeFor[BrokerURL]():      parseSecret[rabbitMQ],
	reflect.TypeFor[ManagementURLs](): func(s string) (any, error) { return parseManagementURLs(s) },
	reflect.TypeFor[PostgresURL]():    parseSecret[postgreSQL],
	reflect.TypeFor[RedisURL]():       parseSecret[redisCache],
	reflect.TypeFor[Intakes]():        func(s string) (any, error) { return parseIntakes(s) },
	reflect.TypeFor[QueryURL]():       parseSecret[queryURL],
	reflect.TypeFor[APIURL]():         parseSecret[apiURL],
	reflect.TypeFor[APIKey]():         parseSecret[apiKey],
	reflect.TypeFor[FieldNames]():     func(s string) (any, error) { return parseFieldNames(s) },
	reflect.TypeFor[FieldPaths]():     func(s string) (any, error) { return parseFieldPaths(s) },
	reflect.TypeFor[Networks]():       func(s string) (any, error) { return parseNetworks(s) },
	reflect.TypeFor[TimeZone]():       func(s string) (any, error) { return parseTimeZone(s) },
	reflect.TypeFor[ArchiveURL]():     parseSecret[archiveStore],
	reflect.TypeFor[ArchiveKey]():     parseSecret[archiveKey],
	reflect.TypeFor[Version]():        func(s string) (any, error) { return parseVersion(s) },
}

// parseBytes reads a size with an optional unit.
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

// ParseDuration reads a duration as settings have it.
func ParseDuration(s string) (time.Duration, error) { return parseDuration(s) }

// parseDuration is time.ParseDuration with two more units: d is 24 hours, and w is 7 days. A duration with one of them
// can't be negative.
func parseDuration(s string) (time.Duration, error) {
	if !strings.ContainsAny(s, "dw") {
		return time.ParseDuration(s)
	}
	var sum time.Duration
	for rest := s; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		unit := len(rest[digits:]) - len(strings.TrimLeft(rest[digits:], "abcdefghijklmnopqrstuvwxyzµμ"))
		number, name := rest[:digits], rest[digits:digits+unit]
		times := time.Duration(1)
		switch name {
		case "d":
			name, times = "h", 24
		case "w":
			name, times = "h", 7*24
		}
		d, err := time.ParseDuration(number + name)
		if err != nil || d > (math.MaxInt64-sum)/times {
			return 0, errNotTaken
		}
		sum += d * times
		rest = rest[digits+unit:]
	}
	return sum, nil
}

// parseAddress returns s if it is host:port.
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

// Loopback reports whether only this machine reaches the address.
func (a Address) Loopback() bool {
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	return IsLoopback(host)
}

// IsLoopback reports whether a host, a name or an IP address, is this machine's loopback interface.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// parseLoopback returns s if it is host:port and only this machine reaches it.
func parseLoopback(s string) (Loopback, error) {
	a, err := parseAddress(s)
	if err == nil && !a.Loopback() {
		err = errNotTaken
	}
	return Loopback(a), err
}

// Missing returns the error for a setting that has no default and is not set.
func Missing(name string) error {
	return fmt.Errorf("%s is not set; millrace run starts a private server for it", name)
}

// parseFieldNames checks that each name is one that can be looked for.
func parseFieldNames(s string) (FieldNames, error) {
	_, err := eventtime.New(FieldNames(s).names(), nil, 0)
	return FieldNames(s), err
}

// names returns the names.
func (f FieldNames) names() []string {
	names := strings.Split(string(f), ",")
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
	}
	return names
}

// parseFieldPaths checks that each field is one that a search can have.
func parseFieldPaths(s string) (FieldPaths, error) {
	if _, ok := fieldindex.Parse(s); !ok {
		return "", errNotTaken
	}
	return FieldPaths(s), nil
}

// Paths returns the fields, each by the names on the way to it.
func (f FieldPaths) Paths() [][]string {
	paths, _ := fieldindex.Parse(string(f))
	return paths
}

// parseIntakes checks that each name may be one.
func parseIntakes(s string) (Intakes, error) {
	for _, name := range Intakes(s).Names() {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return "", errNotTaken
		}
	}
	return Intakes(s), nil
}

// Names returns the names, none for "none" and "false".
func (i Intakes) Names() []string {
	if i == "none" || i == "false" {
		return nil
	}
	names := strings.Split(string(i), ",")
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
	}
	return names
}

// parseNetworks checks that each is a network, or an address.
func parseNetworks(s string) (Networks, error) {
	for _, one := range strings.Split(s, ",") {
		if _, err := parseNetwork(strings.TrimSpace(one)); err != nil {
			return "", errNotTaken
		}
	}
	return Networks(s), nil
}

// parseNetwork returns the network that s is, of one address if s is an address.
func parseNetwork(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, errNotTaken
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	network, err := netip.ParsePrefix(s)
	if err != nil || network.Addr().Is4In6() {
		return netip.Prefix{}, errNotTaken
	}
	return network.Masked(), nil
}

// Prefixes returns the networks, nil if there are none.
func (n Networks) Prefixes() (prefixes []netip.Prefix) {
	if n == "" {
		return nil
	}
	for _, one := range strings.Split(string(n), ",") {
		network, _ := parseNetwork(strings.TrimSpace(one)) // it was checked
		prefixes = append(prefixes, network)
	}
	return prefixes
}

// Location returns the time zone, nil if it is empty.
func (z TimeZone) Location() *time.Location {
	if z == "" {
		return nil
	}
	at, _ := timezone.Load(string(z)) // it was checked
	return at
}

// parseTimeZone checks that there is such a zone.
func parseTimeZone(s string) (TimeZone, error) {
	if _, known := timezone.Load(s); !known && s != "" {
		return "", errNotTaken
	}
	return TimeZone(s), nil
}

// parseVersion returns s if it is three numbers with dots between them.
func parseVersion(s string) (Version, error) {
	parts := strings.Split(s, ".")
	for _, part := range parts {
		if _, err := strconv.ParseUint(part, 10, 16); err != nil && s != "" {
			return "", err
		}
	}
	if len(parts) != 3 && s != "" {
		return "", errNotTaken
	}
	return Version(s), nil
}
