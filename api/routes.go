package api

import (
	"bytes"
	"slices"
	"strings"

	"millrace/api/protocol"
)

// reportPaths are the paths that tell about the service itself.
var reportPaths = []string{"/health", "/ready", "/metrics"}

// endpoint is a path that the API serves, or all others together.
type endpoint struct {
	path     string // as the metrics have it
	methods  []string
	protocol protocol.Protocol // answers what is refused, and where records is true everything
	records  bool              // records come here
	found    bool              // false for all other paths
	metrics  *route
}

// endpoints are all that the API serves.
type endpoints struct {
	exact    map[string]*endpoint
	patterns []*endpoint // with a * in their path
	other    *endpoint
	paths    string // for those who look for one
}

// newEndpoints lists the paths of protocols, of which the first answers what is no protocol's own, and the reports. It is the
// only place where paths are listed.
func newEndpoints(protocols []protocol.Protocol) *endpoints {
	e := &endpoints{exact: make(map[string]*endpoint), other: &endpoint{path: "other", protocol: protocols[0]}}
	var paths []string
	add := func(one *endpoint) {
		one.found = true
		if strings.Contains(one.path, "*") {
			e.patterns = append(e.patterns, one)
		} else {
			e.exact[one.path] = one
		}
		paths = append(paths, one.methods[0]+" "+one.path)
	}
	for _, p := range protocols {
		for _, r := range p.Routes() {
			add(&endpoint{path: r.Path, methods: r.Methods, protocol: p, records: true})
		}
	}
	for _, path := range reportPaths {
		add(&endpoint{path: path, methods: []string{"GET", "HEAD"}, protocol: protocols[0]})
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

// find returns the endpoint of a path.
func (e *endpoints) find(path []byte) *endpoint {
	if one := e.exact[string(path)]; one != nil {
		return one
	}
	for _, one := range e.patterns {
		if matches(one.path, path) {
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

// takesWhat says which methods it takes. HEAD goes without saying.
func (e *endpoint) takesWhat() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(e.methods), func(m string) bool { return m == "HEAD" }), ", ")
}

// matches reports whether path is pattern, in which an element * stands for any one that is not empty.
func matches(pattern string, path []byte) bool {
	for {
		want, restOfPattern, more := strings.Cut(pattern, "/")
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
