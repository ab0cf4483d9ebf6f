package protocol

import (
	"bytes"
	"strings"

	"millrace/internal/scan"
)

// hint says what a body of which no record could be taken seems to be, and what to send instead. It returns "" if it can't
// tell. err is the fault of the body, or of its first record.
func hint(header Header, text []byte, err *scan.Error, isSingle bool) string {
	if err.Reason == scan.Format || err.Reason == scan.Empty {
		return "" // err says it already
	}
	text = bytes.TrimLeft(text, " \t\r\n")
	content, _, _ := strings.Cut(strings.ToLower(string(header.Peek("Content-Type"))), ";")
	content = strings.TrimSpace(content)
	begins := func(with string) bool { return bytes.HasPrefix(text, []byte(with)) }
	json := begins("{") || begins("[") || begins(`"`)
	switch {
	case strings.HasPrefix(content, "multipart/") && begins("--"):
		return "the body is a multipart form, as curl -F sends; takes the JSON alone (curl --data-binary @FILE)"
	case begins("%7B"), begins("%7b"), begins("%5B"), begins("%5b"):
		return "the JSON is percent-encoded, as forms are; takes it as it is"
	case content == "application/x-www-form-urlencoded" && !json && bytes.IndexByte(text, '=') > 0:
		return "the body is a form (name=value&…), as Python's logging.HTTPHandler sends; takes JSON"
	case begins("<"):
		return "the body looks like HTML or XML; takes JSON"
	case isSingle && err.Reason == scan.NotObject && begins("["):
		return "POST /log takes one object; POST /log/batch takes arrays"
	case isSingle && strings.HasSuffix(err.Msg, scan.NothingMore):
		return "POST /log takes one object; POST /log/batch takes several"
	case strings.HasPrefix(content, "text/plain") && !json:
		return "the body is text; takes JSON, an object a line"
	case !json && isForeign(content):
		return "the body is " + content + ", as Content-Type says; takes JSON"
	}
	return ""
}

// isForeign reports whether content is a content type that loggers send in place of JSON.
func isForeign(content string) bool {
	for _, part := range []string{"protobuf", "msgpack", "cbor", "avro", "grpc", "xml", "journal"} {
		if strings.Contains(content, part) {
			return true
		}
	}
	return false
}
