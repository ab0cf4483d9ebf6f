package cells

import (
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// place is where a URL leads, as the driver reads it: with its defaults, and those of the environment.
type place struct {
	hosts            []string // host:port of each server that may answer
	database, schema string
}

// placeOf returns where a parsed URL leads.
func placeOf(c *pgx.ConnConfig) place {
	p := place{hosts: []string{hostPort(c.Host, c.Port)}, database: c.Database, schema: schemaOf(c.RuntimeParams)}
	for _, f := range c.Fallbacks {
		p.hosts = append(p.hosts, hostPort(f.Host, f.Port))
	}
	if p.database == "" {
		p.database = c.User // PostgreSQL's own default
	}
	return p
}

// isSame reports whether two places are seen to be the same tables. A server may have two names, which can't be seen.
func (p place) isSame(other place) bool {
	return p.database == other.database && p.schema == other.schema &&
		slices.ContainsFunc(p.hosts, func(host string) bool { return slices.Contains(other.hosts, host) })
}

// hostPort returns host:port in one form for all forms of a name or an address. The folder of a socket is kept as it is.
func hostPort(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return path.Clean(host) + ":" + strconv.Itoa(int(port))
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	} else {
		host = strings.TrimSuffix(strings.ToLower(host), ".")
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// schemaOf returns the first schema of the search path that a URL asks for, by itself or among options; public, the server's default, if it
// asks for none. Tables are made in the first.
func schemaOf(parameters map[string]string) string {
	searchPath, ok := parameters["search_path"] // counts more than options do
	if !ok {
		words := strings.Fields(parameters["options"])
		for i, word := range words {
			setting := ""
			switch {
			case word == "-c" && i+1 < len(words):
				setting = words[i+1]
			case strings.HasPrefix(word, "--"):
				setting = word[2:]
			case strings.HasPrefix(word, "-c"):
				setting = word[2:]
			}
			if name, value, found := strings.Cut(setting, "="); found && strings.ReplaceAll(strings.ToLower(name), "-", "_") == "search_path" {
				searchPath = strings.ReplaceAll(value, `\`, "")
			}
		}
	}
	for schema := range strings.SplitSeq(searchPath, ",") {
		schema = strings.TrimSpace(schema)
		if quoted, isQuoted := strings.CutPrefix(schema, `"`); isQuoted {
			schema = strings.TrimSuffix(quoted, `"`)
		} else {
			schema = strings.ToLower(schema)
		}
		if schema != "" && schema != "$user" {
			return schema
		}
	}
	return "public"
}
