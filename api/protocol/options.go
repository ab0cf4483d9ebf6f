package protocol

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"millrace/internal/eventtime"
)

const (
	// maxQuery is the most bytes that a query string of Millrace's own protocol may have.
	maxQuery = 2 << 10

	// maxFields and maxFieldBytes bound the constant fields. All records of a body get them, and a record can be as short as {}.
	maxFields     = 16
	maxFieldBytes = 512
)

// Options are what a client may ask for beside its records, in the query string or in a header. Clients that can only be given a
// URL need the query string, which wins over the header.
type Options struct {
	IDs       bool   // ids=true: the answer lists the records' ids
	Status200 bool   // ok=200 or Prefer: status=200: an answer of success, also of partial success, has the status 200
	Repair    bool   // repair=true: see scan.Limits
	Unwrap    string // unwrap=NAME: the records are elements of the array of that name; "true" finds the name
	NoParse   bool   // parse=false or X-Parse: false: text that is a JSON object stays text

	TimeFields []string // time_field=a,b or X-Time-Field: the names of fields that may hold a record's time, before all others
	Fields     []Field  // fields=a=b,c=d or X-Fields: what every record gets that lacks it
}

// Field is a constant field: its name and its value, both as JSON strings.
type Field struct{ Name, Value []byte }

// OptionFields are the fields of a header that ReadOptions and DedupeOf read, in their canonical form.
var OptionFields = []string{"Prefer", "X-Fields", "X-Time-Field", "X-Parse", "X-Dedupe"}

// ReadOptions returns what a request asks for, and the first parameter of its query string that is none of the options; "" if all
// are. It does not read dedupe, which DedupeOf does.
func ReadOptions(r Request) (o Options, unknown string, bad *Refusal) {
	if !r.Plain {
		bad = o.readHeader(r.Header)
	}
	if bad != nil || len(r.Query) == 0 {
		return o, "", bad
	}
	unknown, bad = o.readQuery(r.Query)
	return o, unknown, bad
}

// readHeader reads the headers that ask for options.
func (o *Options) readHeader(h Header) *Refusal {
	if prefer := h.Peek("Prefer"); len(prefer) > 0 {
		for _, preference := range strings.Split(string(prefer), ",") {
			if strings.EqualFold(strings.ReplaceAll(preference, " ", ""), "status=200") {
				o.Status200 = true
			}
		}
	}
	if names := h.Peek("X-Time-Field"); len(names) > 0 {
		if bad := o.setTimeFields("X-Time-Field", string(names)); bad != nil {
			return bad
		}
	}
	if fields := h.Peek("X-Fields"); len(fields) > 0 {
		return o.setFields("X-Fields", string(fields))
	}
	return nil
}

// readQuery reads a query string. It returns the first parameter that is no option.
func (o *Options) readQuery(query []byte) (unknown string, bad *Refusal) {
	args := fasthttp.AcquireArgs() // fasthttp parses what net/url refuses
	defer fasthttp.ReleaseArgs(args)
	args.ParseBytes(query)
	for k, v := range args.All() {
		switch string(k) {
		case "ids":
			bad = setBool(&o.IDs, "ids", v)
		case "repair":
			bad = setBool(&o.Repair, "repair", v)
		case "parse":
			var parse bool
			bad = setBool(&parse, "parse", v)
			o.NoParse = !parse
		case "ok":
			if o.Status200 = string(v) == "200"; !o.Status200 {
				bad = Refuse(http.StatusBadRequest, "ok: got %q, takes 200", v)
			}
		case "unwrap":
			if o.Unwrap = string(v); o.Unwrap != "true" && !slices.Contains(containers, o.Unwrap) {
				bad = Refuse(http.StatusBadRequest, "unwrap: got %q, takes true, %s", v, strings.Join(containers, ", "))
			}
		case "time_field":
			bad = o.setTimeFields("time_field", string(v))
		case "fields":
			bad = o.setFields("fields", string(v))
		case "dedupe":
		default:
			if unknown == "" {
				unknown = string(k)
			}
		}
		if bad != nil {
			return unknown, bad
		}
	}
	return unknown, nil
}

// setBool sets b to the value of a parameter.
func setBool(b *bool, name string, value []byte) *Refusal {
	v, err := strconv.ParseBool(string(value))
	if err != nil {
		return Refuse(http.StatusBadRequest, "%s: got %q, takes true or false", name, value)
	}
	*b = v
	return nil
}

// setTimeFields sets the names of fields that may hold a time.
func (o *Options) setTimeFields(source, value string) *Refusal {
	o.TimeFields = strings.Split(value, ",")
	for i, name := range o.TimeFields {
		o.TimeFields[i] = strings.TrimSpace(name)
	}
	if _, err := eventtime.New(o.TimeFields, nil, 0); err != nil {
		return Refuse(http.StatusBadRequest, "%s: got %q, takes names of fields such as a,b: %v", source, value, err)
	}
	return nil
}

// setFields sets the constant fields.
func (o *Options) setFields(source, value string) *Refusal {
	o.Fields = nil
	total := 0
	for _, pair := range strings.Split(value, ",") {
		name, text, ok := strings.Cut(pair, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return Refuse(http.StatusBadRequest, "%s: got %q, takes pairs such as env=prod,region=eu", source, value)
		}
		f := Field{quote(name), quote(strings.TrimSpace(text))}
		if bytes.Contains(f.Name, []byte(`\u0000`)) || bytes.Contains(f.Value, []byte(`\u0000`)) {
			return Refuse(http.StatusBadRequest, "%s: got %q, takes no NUL", source, value)
		}
		o.Fields = append(o.Fields, f)
		total += len(f.Name) + len(f.Value)
	}
	if len(o.Fields) > maxFields || total > maxFieldBytes {
		return Refuse(http.StatusBadRequest, "%s: %d fields of %d bytes, takes at most %d of %d bytes together", source, len(o.Fields), total, maxFields, maxFieldBytes)
	}
	return nil
}

// Dedupe says whether a request without an Idempotency-Key gets one that is made from its body.
type Dedupe uint8

// What a request may say of it.
const (
	DedupeAsSet Dedupe = iota // as DERIVE_KEYS says
	DedupeBody                // dedupe=body, or X-Dedupe: body
	DedupeNone                // dedupe=none, or X-Dedupe: none
)

// DedupeOf returns what a request says of a key that is made from its body. Any protocol's clients may say it.
func DedupeOf(r Request) (Dedupe, *Refusal) {
	if r.Plain && len(r.Query) == 0 {
		return DedupeAsSet, nil
	}
	value := r.Header.Peek("X-Dedupe")
	if bytes.Contains(r.Query, []byte("dedupe")) {
		args := fasthttp.AcquireArgs()
		defer fasthttp.ReleaseArgs(args)
		args.ParseBytes(r.Query)
		if args.Has("dedupe") {
			value = bytes.Clone(args.Peek("dedupe"))
		}
	}
	switch string(value) {
	case "":
		return DedupeAsSet, nil
	case "body":
		return DedupeBody, nil
	case "none":
		return DedupeNone, nil
	}
	return DedupeAsSet, Refuse(http.StatusBadRequest, "dedupe: got %q, takes body or none", value)
}

// isText reports whether a request's body is said to be plain text.
func isText(h Header) bool {
	const text = "text/plain"
	content := h.Peek("Content-Type")
	return len(content) >= len(text) && bytes.EqualFold(content[:len(text)], []byte(text))
}

// isFalse reports whether a header says false.
func isFalse(value []byte) bool { return len(value) > 0 && strings.EqualFold(string(value), "false") }
