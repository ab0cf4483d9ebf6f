package api

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"millrace/api/protocol"
)

// reportPaths are the paths of the reports about the service itself.
var reportPaths = []string{"/health", "/ready", "/metrics"}

// endpoint is a path that the API serves, or stands for all other paths.
type endpoint struct {
	path     string // what it matches
	label    string // in metrics and in the list of all paths
	methods  []string
	protocol protocol.Protocol // answers refused requests, and all requests if records is true
	records  bool              // records come here
	found    bool              // false for other: all paths that the API does not serve
	keyless  []string          // methods for which no key is asked
	limit    protocol.Limit    // of the bodies
	derives  bool              // requests without a key get one made from their body
	stripBOM bool              // a body's byte-order mark is passed over before the protocol sees the body
	metrics  *route
}

// endpoints are all that the API serves.
type endpoints struct {
	exact    map[string]*endpoint
	patterns []*endpoint // those with a * in their path
	other    *endpoint
	paths    string // all paths with their methods, for the answer 404
}

// newEndpoints returns the endpoints of protocols and of the reports. The first protocol answers requests that belong to
// none. No other place lists paths.
func newEndpoints(protocols []protocol.Protocol) *endpoints {
	e := &endpoints{exact: make(map[string]*endpoint), other: &endpoint{label: "other", protocol: protocols[0]}}
	var paths []string
	add := func(one *endpoint) {
		one.found = true
		if strings.Contains(one.path, "*") {
			e.patterns = append(e.patterns, one)
		} else {
			e.exact[one.path] = one
		}
		if text := one.methods[0] + " " + one.label; !slices.Contains(paths, text) {
			paths = append(paths, text)
		}
	}
	for i, p := range protocols {
		for _, r := range p.Routes() {
			// Millrace's own protocol passes it over itself, since the offsets in its answers count it.
			add(&endpoint{path: r.Path, label: cmp.Or(r.Label, r.Path), methods: r.Methods, protocol: p, records: true, keyless: r.Keyless, limit: r.Limit, stripBOM: i > 0})
		}
	}
	for _, path := range reportPaths {
		add(&endpoint{path: path, label: path, methods: []string{"GET", "HEAD"}, protocol: protocols[0]})
	}
	last := len(paths) - 1
	e.paths = strings.Join(paths[:last], ", ") + " and " + paths[last]
	return e
}

// all returns every endpoint.
func (e *endpoints) all() []*endpoint {
	all := append([]*endpoint{e.other}, e.patterns...)
	for _, one := range e.exact {
		all = append(all, one)
	}
	return all
}

// find returns the endpoint of a path, e.other if the API does not serve it.
func (e *endpoints) find(method, path []byte) *endpoint {
	if one := e.exact[string(path)]; one != nil {
		return one
	}
	for _, one := range e.patterns {
		if matches(one.path, path) && (one.takes(method) || strings.Trim(one.path, "/*") != "") {
			return one
		}
	}
	return e.other
}

// takes reports whether the endpoint takes a method.
func (e *endpoint) takes(method []byte) bool {
	for _, m := range e.methods {
		if m == string(method) {
			return true
		}
	}
	return false
}

// asksKey reports whether a request with a method needs a key, where keys are asked for at all.
func (e *endpoint) asksKey(method []byte) bool {
	for _, m := range e.keyless {
		if m == string(method) {
			return false
		}
	}
	return true
}

// methodList returns the methods that the endpoint takes, for messages. It leaves out HEAD, which goes with GET, and OPTIONS.
func (e *endpoint) methodList() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(e.methods), func(m string) bool { return m == "HEAD" || m == "OPTIONS" }), ", ")
}

// matches reports whether path matches pattern. An element * of pattern matches any element that is not empty. A last element **
// matches whatever follows.
func matches(pattern string, path []byte) bool {
	for {
		want, restOfPattern, more := strings.Cut(pattern, "/")
		if want == "**" {
			return true
		}
		got, restOfPath, moreOfPath := bytes.Cut(path, []byte("/"))
		if want != string(got) && (want != "*" || len(got) == 0) || more != moreOfPath {
			return false
		}
		if !more {
			return true
		}
		pattern, path = restOfPattern, restOfPath
	}
}
