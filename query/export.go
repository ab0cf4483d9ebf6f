package query

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/klauspost/compress/gzip"
	"github.com/valyala/fastjson"

	"millrace/query/language"
)

// exportBytes is how much of an export is gathered before it is sent.
const exportBytes = 128 << 10

// mostExported is the largest limit of an export.
const mostExported = 1_000_000_000_000

// exportSearch is what a request asks of GET /logs/export.
type exportSearch struct {
	search
	isCSV   bool
	columns []exportColumn // nil: the whole record
	name    string         // of the file that browsers make of it
}

// maxFileName is how many bytes the name of a file may have, as on the usual file systems.
const maxFileName = 255

// exportColumn is a column of an export: a column of the row, or a field of the record.
type exportColumn struct {
	name string
	ways [][]string // the members that the field may mean; nil: the row's column of that name
}

// rowColumns are the names of a row's own columns in exports, in the order of CSV without fields.
var rowColumns = []string{"id", "time", "inserted_at", "data"}

// parseExport returns what a URL's query asks of GET /logs/export.
func parseExport(rawQuery string, now time.Time) (*exportSearch, error) {
	p, err := parseParameters(rawQuery, exportParameters)
	if err != nil {
		return nil, err
	}
	e := &exportSearch{}
	if err := e.window(p["from"], p["to"], now); err != nil {
		return nil, err
	}
	if err := e.what(p, now); err != nil {
		return nil, err
	}
	switch p["order"] {
	case "", "asc":
		e.ascending = true
	case "desc":
	default:
		return nil, refused("order", p["order"], "asc or desc")
	}
	switch p["format"] {
	case "", "ndjson":
	case "csv":
		e.isCSV = true
	default:
		return nil, refused("format", p["format"], "ndjson or csv")
	}
	if err := readLimit(&e.limit, p["limit"], mostExported); err != nil {
		return nil, err
	}
	e.name = cmp.Or(p["name"], map[bool]string{false: "logs.ndjson", true: "logs.csv"}[e.isCSV])
	if len(e.name) > maxFileName || strings.ContainsFunc(e.name, func(r rune) bool { return r == '/' || r == '\\' || !unicode.IsPrint(r) }) {
		return nil, refused("name", e.name, fmt.Sprintf("a file's name of at most %d bytes, without slashes and control characters", maxFileName))
	}
	names := splitList(p["fields"])
	if p["fields"] == "" {
		names = nil
		if e.isCSV {
			names = rowColumns
		}
	}
	for _, name := range names {
		c := exportColumn{name: name}
		if !slices.Contains(rowColumns, name) || name == "data" && p["fields"] != "" {
			path, err := language.ParseField(name)
			if err != nil {
				return nil, badRequest("fields: %v", err)
			}
			c.ways = language.Ways(path)
		}
		e.columns = append(e.columns, c)
	}
	if len(e.columns) > maxColumns {
		return nil, badRequest("fields: got %d, takes at most %d", len(e.columns), maxColumns)
	}
	return e, nil
}

// maxColumns is how many fields an export takes.
const maxColumns = 200

// export sends a line for each row of a window, several with each call of send. CSV has the names of its columns first.
func (s *store) export(ctx context.Context, e *exportSearch, timeout time.Duration, send func([]byte) error) error {
	out := make([]byte, 0, exportBytes+4096)
	if e.isCSV {
		for i, c := range e.columns {
			out = appendCSV(out, i, []byte(c.name))
		}
		out = append(out, "\r\n"...)
	}
	var parser fastjson.Parser
	err := s.exportRows(ctx, &e.search, timeout, func(r row) (err error) {
		if out, err = e.appendLine(out, r, &parser); err != nil || len(out) < exportBytes {
			return err
		}
		err = send(out)
		out = out[:0]
		return err
	})
	if err != nil {
		return err
	}
	return send(out)
}

// appendLine appends a row as the export has it.
func (e *exportSearch) appendLine(out []byte, r row, parser *fastjson.Parser) ([]byte, error) {
	if e.columns == nil {
		return append(r.appendJSON(out), '\n'), nil
	}
	var record *fastjson.Value
	if slices.ContainsFunc(e.columns, func(c exportColumn) bool { return c.ways != nil }) {
		var err error
		if record, err = parser.ParseBytes(r.data); err != nil {
			return out, err
		}
	}
	for i, c := range e.columns {
		if e.isCSV {
			out = appendCSV(out, i, c.text(r, record))
			continue
		}
		out = append(out, "{,"[min(i, 1)])
		name, _ := json.Marshal(c.name) // a text always has a JSON form
		out = append(append(out, name...), ':')
		out = append(out, c.json(r, record)...)
	}
	if e.isCSV {
		return append(out, "\r\n"...), nil
	}
	return append(out, "}\n"...), nil
}

// member returns the column's member of a record, or nil.
func (c exportColumn) member(record *fastjson.Value) *fastjson.Value {
	for _, way := range c.ways {
		if v := record.Get(way...); v != nil {
			return v
		}
	}
	return nil
}

// json returns the column's value as JSON.
func (c exportColumn) json(r row, record *fastjson.Value) []byte {
	if c.ways == nil {
		return append(append([]byte{'"'}, c.text(r, nil)...), '"') // no id and no time needs to be escaped
	}
	if v := c.member(record); v != nil {
		return v.MarshalTo(nil)
	}
	return []byte("null")
}

// text returns the column's value as text: a string as it is, what is null or missing as nothing, and all else as JSON.
func (c exportColumn) text(r row, record *fastjson.Value) []byte {
	if c.ways == nil {
		switch c.name {
		case "id":
			return []byte(r.id.String())
		case "time":
			return appendTime(nil, r.time)
		case "inserted_at":
			return r.insertedAt.UTC().AppendFormat(nil, timeFormat)
		}
		return r.data
	}
	v := c.member(record)
	switch {
	case v == nil || v.Type() == fastjson.TypeNull:
		return nil
	case v.Type() == fastjson.TypeString:
		return v.GetStringBytes()
	}
	return v.MarshalTo(nil)
}

// appendCSV appends the cell number i of a line, as RFC 4180 has it.
func appendCSV(out []byte, i int, cell []byte) []byte {
	if i > 0 {
		out = append(out, ',')
	}
	if !bytes.ContainsAny(cell, "\",\r\n") {
		return append(out, cell...)
	}
	out = append(out, '"')
	for _, c := range cell {
		if c == '"' {
			out = append(out, '"')
		}
		out = append(out, c)
	}
	return append(out, '"')
}

// getExport answers GET /logs/export. If something goes wrong after the first line, the connection is cut, so that no client
// takes a part for the whole. HTTP/1.0 is refused, because its answers end where the connection ends.
func (s *server) getExport(w http.ResponseWriter, r *http.Request) error {
	q, err := parseExport(r.URL.RawQuery, time.Now())
	if err != nil {
		return err
	}
	if !r.ProtoAtLeast(1, 1) {
		return &failure{http.StatusHTTPVersionNotSupported, "an export takes HTTP/1.1: over HTTP/1.0 one that is cut off looks whole (a proxy may have to be told, as nginx by proxy_http_version 1.1)"}
	}
	select {
	case s.exports <- struct{}{}:
		defer func() { <-s.exports }()
	default:
		return tooMany(strconv.Itoa(cap(s.exports)) + " exports are under way, the most at once")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	s.working.Go(func() {
		select {
		case <-keyOf(r).Gone():
			cancel()
		case <-ctx.Done():
		}
	})
	out := newExportAnswer(w, r, q)
	err = s.store.export(ctx, q, s.exportTimeout, out.write)
	if err == nil {
		err = out.finish()
	}
	switch {
	case err == nil, errors.Is(err, errHead):
		return nil
	case out.hasBegun:
		if ctx.Err() == nil {
			s.log.Warn("an export was cut off", "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	for _, name := range []string{"Content-Disposition", "Content-Type"} {
		w.Header().Del(name)
	}
	switch {
	case r.Context().Err() != nil:
	case s.stopping.Err() != nil:
		return &failure{http.StatusServiceUnavailable, "the service stops"}
	case ctx.Err() != nil:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return &failure{http.StatusUnauthorized, "the API key was revoked"}
	case s.failureOf(err).status == http.StatusGatewayTimeout:
		return &failure{http.StatusGatewayTimeout, "the export took longer than " + s.exportTimeout.String() + "; narrow the time range"}
	}
	return err
}

// exportAnswer sends an export, compressed if the client takes that.
type exportAnswer struct {
	w         http.ResponseWriter
	control   *http.ResponseController
	isHead    bool
	takesGzip bool
	hasBegun  bool         // the header is sent
	zip       *gzip.Writer // nil: nothing is compressed
}

// newExportAnswer returns the answer to a request, which has no deadline any more.
func newExportAnswer(w http.ResponseWriter, r *http.Request, q *exportSearch) *exportAnswer {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	if q.isCSV {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	}
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": q.name}))
	w.Header().Add("Vary", "Accept-Encoding")
	return &exportAnswer{w: w, control: control, isHead: r.Method == http.MethodHead, takesGzip: accepts(r.Header.Get("Accept-Encoding"), "gzip")}
}

// write sends a piece. The client may take writeTime to receive it. If only the header was asked for, it returns errHead.
func (a *exportAnswer) write(b []byte) error {
	_ = a.control.SetWriteDeadline(time.Now().Add(writeTime))
	if !a.hasBegun {
		a.hasBegun = true
		if a.takesGzip {
			a.w.Header().Set("Content-Encoding", "gzip")
			a.zip, _ = gzip.NewWriterLevel(a.w, gzip.BestSpeed) // the level is one
		}
		a.w.WriteHeader(http.StatusOK)
	}
	var to io.Writer = a.w
	switch {
	case a.isHead:
		return errHead
	case a.zip != nil:
		to = a.zip
	}
	_, err := to.Write(b)
	return err
}

// finish sends what compression holds back.
func (a *exportAnswer) finish() error {
	if a.zip == nil {
		return nil
	}
	return a.zip.Close()
}

// errHead ends an export of which only the header was asked for.
var errHead = errors.New("only the header was asked for")

// accepts reports whether a client's Accept-Encoding admits an encoding: by its name, or else by "*".
func accepts(accept, encoding string) (takes bool) {
	for part := range strings.SplitSeq(accept, ",") {
		name, quality, _ := strings.Cut(part, ";")
		name = strings.TrimSpace(name)
		isNamed := strings.EqualFold(name, encoding)
		if !isNamed && name != "*" {
			continue
		}
		q, found := strings.CutPrefix(strings.TrimSpace(quality), "q=")
		weight, err := strconv.ParseFloat(q, 64)
		takes = !found || err == nil && weight > 0
		if isNamed {
			return takes
		}
	}
	return takes
}
