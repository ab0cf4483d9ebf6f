package protocol

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"millrace/internal/eventtime"
	"millrace/internal/record"
)

// DefaultESVersion is the version of Elasticsearch that an Elastic without a Version says it is.
const DefaultESVersion = "8.19.0"

// Elastic is the part of Elasticsearch's protocol that shippers use: the bulk API, single documents, and what clients ask before
// they send. Nothing is indexed, so templates and policies are taken and forgotten.
type Elastic struct {
	Version string // the version that clients are told
}

// Name implements Protocol.
func (Elastic) Name() string { return "elastic" }

// elasticPrefixes are the paths below which Elastic's paths are there, too. One of them is for clients that need a path.
var elasticPrefixes = []string{"", "/elasticsearch", "/es"}

// shimLabel is the metrics' label of all that clients ask before they send.
const shimLabel = "/"

// elasticShims are the paths of what clients ask for, or leave with a server, before they send.
var elasticShims = func() (routes []Route) {
	add := func(methods string, paths ...string) {
		for _, path := range paths {
			routes = append(routes, Route{Path: path, Methods: strings.Fields(methods), Label: shimLabel})
		}
	}
	add("GET HEAD", "/", "/_license", "/_xpack", "/_nodes/http", "/_nodes/*/http", "/_cluster/health", "/_cluster/health/*", "/_cat/*", "/_cat/*/*")
	add("GET HEAD PUT POST", "/_alias/*", "/_ilm/policy/*", "/_index_template/*", "/_component_template/*", "/_template/*", "/_data_stream/*", "/_ingest/pipeline/*")
	add("GET POST", "/_search", "/*/_search", "/_msearch", "/*/_msearch", "/_count", "/*/_count")
	return routes
}()

// Routes implements Protocol.
func (Elastic) Routes() (routes []Route) {
	send := []string{http.MethodPost, http.MethodPut}
	for _, prefix := range elasticPrefixes {
		routes = append(routes,
			Route{Path: prefix + "/_bulk", Methods: send, Label: "/_bulk"},
			Route{Path: prefix + "/*/_bulk", Methods: send, Label: "/*/_bulk"},
			Route{Path: prefix + "/*/_doc", Methods: send, Label: "/*/_doc"},
			Route{Path: prefix + "/*/_doc/*", Methods: send, Label: "/*/_doc"},
			Route{Path: prefix + "/*/_create/*", Methods: send, Label: "/*/_doc"})
		for _, shim := range elasticShims {
			shim.Path = prefix + shim.Path
			routes = append(routes, shim)
		}
		if prefix == "" {
			// Clients ask with HEAD whether an index is there.
			routes = append(routes, Route{Path: "/*", Methods: []string{http.MethodHead}, Label: shimLabel})
			continue
		}
		all := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete}
		routes = append(routes,
			Route{Path: prefix, Methods: []string{http.MethodGet, http.MethodHead}, Label: shimLabel},
			Route{Path: prefix + "/**", Methods: all, Label: shimLabel})
	}
	return routes
}

// maxIndexName is the most bytes of an index's name in a path. It is Elasticsearch's own limit.
const maxIndexName = 255

// Open implements Protocol.
func (e Elastic) Open(r Request) (Exchange, *Refusal) {
	parts := elasticPath(r.Path)
	first, second := parts[0], parts[1]
	isBulk := second == "_bulk" || first == "_bulk" && second == ""
	if !isBulk && second != "_doc" && second != "_create" {
		return e.shim(r, parts)
	}
	var index []byte // in quotes
	if second != "" {
		if len(first) > maxIndexName {
			return nil, Refuse(http.StatusBadRequest, "the name of the index has %d bytes, %d are the most", len(first), maxIndexName)
		}
		index = quoteStorable(first)
	}
	options, _, bad := ReadOptions(r) // Elasticsearch has other parameters, which mean nothing here
	if bad != nil {
		return nil, bad
	}
	if isBulk {
		return newBulk(index, newRewriter(&options)), nil
	}
	d := &document{index: index, rewriter: newRewriter(&options)}
	if id := parts[2]; id != "" {
		d.id = quoteStorable(id)
	}
	return d, nil
}

// elasticPath returns the elements of a path, without the prefix. There are no more than three that matter.
func elasticPath(path []byte) (parts [3]string) {
	for _, prefix := range elasticPrefixes[1:] {
		if rest, ok := bytes.CutPrefix(path, []byte(prefix)); ok && (len(rest) == 0 || rest[0] == '/') {
			path = rest
			break
		}
	}
	path = bytes.TrimPrefix(path, []byte("/"))
	for i := range parts {
		part, rest, _ := bytes.Cut(path, []byte("/"))
		parts[i], path = string(part), rest
	}
	return parts
}

// elasticHeader tells clients that they talk to Elasticsearch. Without it some give up.
var elasticHeader = [][2]string{{"X-Elastic-Product", "Elasticsearch"}}

// elasticAnswer returns an answer of Elastic.
func elasticAnswer(status int, body []byte) Answer {
	return Answer{Status: status, ContentType: "application/json", Header: elasticHeader, Body: body}
}

// Refuse implements Protocol.
func (Elastic) Refuse(dst []byte, _ Request, why *Refusal) Answer {
	kind := "illegal_argument_exception"
	switch why.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = "security_exception"
	case http.StatusNotFound:
		kind = "resource_not_found_exception"
	case http.StatusMethodNotAllowed:
		kind = "method_not_allowed_exception"
	case http.StatusRequestEntityTooLarge:
		kind = "content_too_long_exception"
	case http.StatusTooManyRequests:
		kind = "es_rejected_execution_exception"
	case http.StatusServiceUnavailable:
		kind = "process_cluster_event_timeout_exception"
	}
	dst = append(dst, `{"error":`...)
	dst = appendCause(dst, kind, why.Msg)
	dst = append(dst[:len(dst)-1], `,"root_cause":[`...) // some clients show their users this alone
	dst = appendCause(dst, kind, why.Msg)
	dst = append(dst, `]},"status":`...)
	dst = strconv.AppendInt(dst, int64(why.Status), 10)
	return elasticAnswer(why.Status, append(dst, '}'))
}

// appendCause appends an error as Elasticsearch tells it.
func appendCause(dst []byte, kind, reason string) []byte {
	dst = append(dst, `{"type":"`...)
	dst = append(dst, kind...)
	dst = append(dst, `","reason":`...)
	dst = append(dst, quote(reason)...)
	return append(dst, '}')
}

// elasticShim is the Exchange of what clients ask before they send. It is the answer's body.
type elasticShim string

// Shim implements Shim.
func (elasticShim) Shim() {}

// Decode implements Exchange.
func (elasticShim) Decode(Request, []byte, *record.List) *Refusal { return nil }

// Answer implements Exchange.
func (s elasticShim) Answer(dst []byte, _ Request, _ Outcome) Answer {
	return elasticAnswer(http.StatusOK, append(dst, s...))
}

// elasticHealth is the Exchange of the question how the cluster is.
type elasticHealth struct{ elasticShim }

// Answer implements Exchange. The cluster is red while no records can be taken.
func (elasticHealth) Answer(dst []byte, _ Request, o Outcome) Answer {
	health := "green"
	if o.Down != nil {
		health = "red"
	}
	return elasticAnswer(http.StatusOK, fmt.Appendf(dst, `{"cluster_name":"millrace","status":%q,"timed_out":false,"number_of_nodes":1,"number_of_data_nodes":1}`, health))
}

// clusterUUID names the cluster. Clients compare it with what they were told before.
const clusterUUID = "bWlsbHJhY2UtZWxhc3RpYw"

// basicLicense is the license that Elasticsearch has where nobody has bought one.
const basicLicense = `{"uid":"` + clusterUUID + `","type":"basic","mode":"basic","status":"active"}`

// shim returns the exchange for what is no document.
func (e Elastic) shim(r Request, parts [3]string) (Exchange, *Refusal) {
	version := cmp.Or(e.Version, DefaultESVersion)
	ok := func(body string) (Exchange, *Refusal) { return elasticShim(body), nil }
	switch last := cmp.Or(parts[1], parts[0]); {
	case string(r.Method) == http.MethodHead:
		return ok("")
	case last == "_search", last == "_msearch", last == "_count":
		return nil, Refuse(http.StatusBadRequest, "searches are not answered here; Millrace's query service answers them, at GET /logs")
	}
	switch parts[0] {
	case "":
		return ok(greeting(version))
	case "_license":
		return ok(`{"license":` + basicLicense + `}`)
	case "_xpack":
		return ok(`{"build":{},"license":` + basicLicense + `,"features":{"ilm":{"available":false,"enabled":false}}}`)
	case "_nodes":
		return ok(nodes(version, r.Header.Peek("Host")))
	case "_cluster":
		if parts[1] == "health" {
			return elasticHealth{}, nil
		}
	case "_alias", "_ilm", "_index_template", "_component_template", "_template", "_data_stream", "_ingest":
		if m := string(r.Method); m == http.MethodPut || m == http.MethodPost {
			return ok(`{"acknowledged":true}`)
		}
		return ok(`{}`)
	case "_cat":
		return ok(`{}`)
	}
	return nil, Refuse(http.StatusNotFound, "no such path: %s; of Elasticsearch there are _bulk, {index}/_bulk, {index}/_doc and {index}/_create/{id}", r.Path)
}

// greeting returns what a server says of itself.
func greeting(version string) string {
	major, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(major) // 0 for what is no number
	return fmt.Sprintf(`{"name":"millrace","cluster_name":"millrace","cluster_uuid":%q,"version":{"number":%s,"build_flavor":"default",`+
		`"build_type":"tar","build_hash":"-","build_date":"2025-01-01T00:00:00Z","build_snapshot":false,"lucene_version":"9.12.0",`+
		`"minimum_wire_compatibility_version":"%d.17.0","minimum_index_compatibility_version":"%d.0.0"},"tagline":"You Know, for Search"}`,
		clusterUUID, quote(version), max(0, n-1), max(0, n-1))
}

// nodes returns the list of nodes: this one, at the address that the client has used. Some clients send to those of the list only.
func nodes(version string, host []byte) string {
	address := quoteStorable(string(host))
	return fmt.Sprintf(`{"_nodes":{"total":1,"successful":1,"failed":0},"cluster_name":"millrace","nodes":{%q:{"name":"millrace","transport_address":%s,`+
		`"host":%s,"ip":%s,"version":%s,"build_hash":"-","roles":["data","ingest","master"],"http":{"bound_address":[%s],"publish_address":%s,`+
		`"max_content_length_in_bytes":104857600}}}}`, clusterUUID, address, address, address, quote(version), address, address)
}

// document is the Exchange of a single document.
type document struct {
	index, id []byte    // in quotes; id may be nil
	rewriter  *rewriter // nil if nothing is asked for
}

// Decode implements Exchange.
func (d *document) Decode(_ Request, body []byte, records *record.List) *Refusal {
	records.Limits.Repair = true
	records.Begin()
	ok := records.AddWith(appendNeeded(appendPlace(nil, d.index, d.id), body, d.rewriter), body, 0)
	records.End()
	if !ok {
		bad := records.Errors[0].Err
		records.Begin()
		records.End()
		return UnreadableBody(&bad)
	}
	return nil
}

// Answer implements Exchange. A document without an id is told the record's.
func (d *document) Answer(dst []byte, _ Request, o Outcome) Answer {
	dst = append(dst, `{"_index":`...)
	dst = append(dst, d.index...)
	dst = append(dst, `,"_id":`...)
	if d.id != nil {
		dst = append(dst, d.id...)
	} else {
		dst = appendID(dst, o.IDs[0].Base)
	}
	dst = append(dst, `,"_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":0,"_primary_term":1}`...)
	return elasticAnswer(http.StatusCreated, dst)
}

// appendPlace appends the members that a document gets: where it was sent to. Elasticsearch refuses documents that have these
// members, so no document brings its own. index and id are in quotes, and may be empty.
func appendPlace(members, index, id []byte) []byte {
	if len(index) > 0 {
		members = append(append(members, `"_index":`...), index...)
	}
	if len(id) > 0 {
		if len(members) > 0 {
			members = append(members, ',')
		}
		members = append(append(members, `"_id":`...), id...)
	}
	return members
}

// elasticTimes has @timestamp count before the fields that stand before it elsewhere: in a document it is what the sender means.
var elasticTimes = func() *eventtime.Rule {
	fields := []string{"@timestamp"}
	for _, name := range eventtime.DefaultFields {
		if name == fields[0] {
			break
		}
		fields = append(fields, name)
	}
	rule, err := eventtime.New(fields, nil, 0)
	if err != nil {
		panic(err) // a test sees it
	}
	return rule
}()

// appendNeeded appends what else a document needs at its beginning: the member that makes its time count before others, and the
// constant fields that it lacks. rewriter holds what the client asks for, nil for nothing. A client that names the fields of the time
// puts them in the place of @timestamp.
func appendNeeded(members, source []byte, rewriter *rewriter) []byte {
	if rewriter == nil {
		return appendLead(members, source)
	}
	if len(rewriter.times) == 0 {
		members = appendLead(members, source)
	}
	return rewriter.appendAdded(members, bytes.TrimSpace(source))
}

// appendLead appends the member that a document needs, at its beginning, for its @timestamp to be its time. Most need none.
func appendLead(members, source []byte) []byte {
	key, value := elasticTimes.Lead(source)
	if key == "" {
		return members
	}
	if len(members) > 0 {
		members = append(members, ',')
	}
	members = append(append(append(members, '"'), key...), `":`...)
	return append(members, value...)
}

// quoteStorable returns s as a JSON string that jsonb takes.
func quoteStorable(s string) []byte {
	return quote(strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd"))
}
