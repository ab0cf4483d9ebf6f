package protocol

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"millrace/internal/record"
	"millrace/internal/scan"
)

// OTLP is OpenTelemetry's protocol over HTTP, for logs, as protobuf and as JSON. Its documents are
// https://opentelemetry.io/docs/specs/otlp/#otlphttp and opentelemetry-proto.
//
// An answer has the form of its request. Success is 200 with an empty message, also if some records were refused: then the message
// says how many. Clients must not send these again. Errors are messages google.rpc.Status.
type OTLP struct{}

// otlpPaths are the paths for logs. The second is that of Loki.
var otlpPaths = []string{"/v1/logs", "/otlp/v1/logs"}

// otlpOtherPaths are the paths for what is no log. A collector with one endpoint for everything sends it there.
var otlpOtherPaths = []string{"/v1/traces", "/v1/metrics", "/otlp/v1/traces", "/otlp/v1/metrics"}

// Name implements Protocol.
func (OTLP) Name() string { return "otlp" }

// Routes implements Protocol.
func (OTLP) Routes() []Route {
	var routes []Route
	for _, path := range append(otlpPaths[:len(otlpPaths):len(otlpPaths)], otlpOtherPaths...) {
		routes = append(routes, Route{Path: path, Methods: []string{http.MethodPost}})
	}
	return routes
}

const (
	protobufType = "application/x-protobuf"
	jsonType     = "application/json"
)

// The exchanges of requests that ask for nothing beside their records.
var (
	otlpProtobuf = &otlpExchange{}
	otlpJSON     = &otlpExchange{isJSON: true}
)

// Open implements Protocol.
func (OTLP) Open(r Request) (Exchange, *Refusal) {
	if !bytes.HasSuffix(r.Path, []byte("/logs")) {
		return nil, Refuse(http.StatusNotFound, "%s is not taken, only logs are: set logs_endpoint in place of endpoint, or send other signals elsewhere", r.Path)
	}
	e := otlpProtobuf
	switch content := r.Header.Peek("Content-Type"); {
	case isMediaType(content, protobufType):
	case isMediaType(content, jsonType):
		e = otlpJSON
	default:
		return nil, Refuse(http.StatusUnsupportedMediaType, "Content-Type: got %.100q, takes %s or %s", content, protobufType, jsonType)
	}
	asked, bad := readAsk(r)
	if bad != nil {
		return nil, bad
	}
	if asked != (ask{}) {
		e = &otlpExchange{isJSON: e.isJSON, ask: asked}
	}
	return e, nil
}

// isMediaType reports whether a Content-Type is a media type, with or without parameters.
func isMediaType(content []byte, mediaType string) bool {
	name, _, _ := bytes.Cut(content, []byte(";"))
	return bytes.EqualFold(bytes.TrimSpace(name), []byte(mediaType))
}

// Refuse implements Protocol.
func (OTLP) Refuse(dst []byte, r Request, why *Refusal) Answer {
	code := rpcCode(why.Status)
	if isMediaType(r.Header.Peek("Content-Type"), protobufType) {
		return inProtobuf(why.Status, appendWireText(appendWireInt(dst, 1, code), 2, why.Msg))
	}
	dst = strconv.AppendUint(append(dst, `{"code":`...), code, 10)
	dst = append(append(dst, `,"message":`...), quote(why.Msg)...)
	return inJSON(why.Status, append(dst, '}'))
}

// inProtobuf returns an answer whose body is a protobuf message.
func inProtobuf(status int, body []byte) Answer {
	return Answer{Status: status, ContentType: protobufType, Body: body}
}

// rpcCode returns the code of gRPC that says what a status of HTTP says. The numbers are those of google/rpc/code.proto.
func rpcCode(status int) uint64 {
	switch status {
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return 12 // UNIMPLEMENTED
	case http.StatusTooManyRequests:
		return 8 // RESOURCE_EXHAUSTED
	case http.StatusServiceUnavailable:
		return 14 // UNAVAILABLE
	case http.StatusRequestTimeout:
		return 4 // DEADLINE_EXCEEDED
	}
	if status >= http.StatusInternalServerError {
		return 13 // INTERNAL
	}
	return 3 // INVALID_ARGUMENT
}

// otlpExchange is the Exchange of a request for logs.
type otlpExchange struct {
	isJSON bool
	ask
}

// Decode implements Exchange.
func (e *otlpExchange) Decode(_ Request, body []byte, records *record.List) *Refusal {
	return e.ask.decode(records, func(records *record.List) *scan.Error {
		if !e.isJSON {
			return decodeOTLP(stringOf(body), records, e.keepText)
		}
		wire := wirePool.Get().(*[]byte)
		defer putWire(wire)
		if err := otlpFromJSON(wire, body); err != nil {
			return err
		}
		return decodeOTLP(stringOf(*wire), records, e.keepText)
	})
}

// Answer implements Exchange.
func (e *otlpExchange) Answer(dst []byte, _ Request, o Outcome) Answer {
	refused := o.Records.Rejected
	switch {
	case e.isJSON && refused == 0:
		return inJSON(http.StatusOK, append(dst, `{}`...))
	case refused == 0:
		return inProtobuf(http.StatusOK, dst)
	case e.isJSON:
		dst = strconv.AppendInt(append(dst, `{"partialSuccess":{"rejectedLogRecords":"`...), int64(refused), 10)
		dst = append(append(dst, `","errorMessage":`...), quote(partialMessage(o.Records))...)
		return inJSON(http.StatusOK, append(dst, `}}`...))
	}
	partial := appendWireInt(nil, 1, uint64(refused))
	partial = appendWireText(partial, 2, partialMessage(o.Records))
	return inProtobuf(http.StatusOK, appendWireText(dst, 1, partial))
}

// partialMessage tells why some records were refused: 3 of 100 refused: record 7: nested deeper than 128; ...
func partialMessage(records *record.List) string {
	const most = 5
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d refused", records.Rejected, records.Accepted+records.Rejected)
	for i, e := range records.Errors {
		if i == most {
			b.WriteString("; ...")
			break
		}
		mark := "; "
		if i == 0 {
			mark = ": "
		}
		fmt.Fprintf(&b, "%srecord %d: %s", mark, e.Index, e.Err.Msg)
	}
	return b.String()
}
