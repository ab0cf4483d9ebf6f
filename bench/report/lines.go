package main

import (
	"slices"
	"strings"
)

// line is a benchmark that every run must have, and what documents and the picture call it.
type line struct {
	name    string   // of the benchmark
	what    string   // is measured; "" where the documents have the table's lines for it
	ceiling string   // what the ceiling is, "" where there is none
	also    []string // further units that belong to the figure
	short   bool     // shown in the README and the picture
}

// units returns the units that a result must have.
func (l line) units() []string {
	units := slices.Clone(l.also)
	if l.ceiling != "" {
		units = append(units, "ratio", "spread")
	}
	return units
}

// Ceilings of several lines.
const (
	validator    = "goccy/go-json `Valid`, which only validates"
	onlyS2       = "s2 alone, into a buffer that is there"
	readyMade    = "a publisher of ready-made compressed 64 KiB frames"
	onlyAnswers  = "a fasthttp handler that only answers 202"
	ownBatch     = "the same records by `/log/batch`"
	withoutEarly = "the same API without them"
	onlyCopy     = "two sessions of `pgx.CopyFrom`, alone on the machine"
)

var lines = slices.Concat([]line{
	{"Scan/ndjson", "scanner, NDJSON", validator, []string{"ns/record", "allocs/record", "fastjson-MB/s", "encoding/json-MB/s"}, true},
	{"Scan/array", "scanner, an array", validator, []string{"ns/record"}, false},
	{"Scan/pretty", "scanner, objects over several lines, which are compacted", validator, []string{"ns/record"}, false},
	{"Scan/one", "scanner, one record", validator, []string{"ns/record", "allocs/record"}, false},
	{"Frame/encode/plain", "a frame made, plain", "copying its records", []string{"ns/record", "allocs/record"}, false},
	{"Frame/encode/s2", "a frame made, compressed", onlyS2, []string{"ns/record", "allocs/record"}, false},
	{"Frame/decode/plain", "a frame taken apart, plain", "finding its newlines", []string{"ns/record", "allocs/record"}, false},
	{"Frame/decode/s2", "a frame taken apart, compressed", onlyS2, []string{"ns/record", "allocs/record"}, false},
	{"Publish/records=1", "publisher without HTTP, 256 callers of one record", "a publisher of ready-made frames of 256 records, one at a time", nil, false},
	{"Publish/records=500", "publisher without HTTP, 500 records a call", readyMade, nil, true},
	{"AcceptOne/connections=1", "one record a request, confirmed, 1 connection", onlyAnswers, []string{"p50-ms", "p99-ms", "load-cores"}, false},
	{"AcceptOne/connections=64", "one record a request, 64 connections", onlyAnswers, []string{"p50-ms", "p99-ms", "load-cores"}, true},
	{"AcceptOne/connections=256", "one record a request, 256 connections", onlyAnswers, []string{"p50-ms", "p99-ms", "load-cores"}, true},
	{"AcceptEarly/connections=64", "early answers, 64 connections", withoutEarly, []string{"p99-ms"}, false},
	{"AcceptEarly/connections=256", "early answers, 256 connections", withoutEarly, []string{"p99-ms"}, false},
	{"AcceptBatch", "batches of 500, confirmed", readyMade, []string{"p99-ms", "load-cores"}, true},
	{"AcceptDoor/otlp-protobuf", "batches of 500 by OTLP, protobuf", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, true},
	{"AcceptDoor/otlp-json", "batches of 500 by OTLP, JSON", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, false},
	{"AcceptDoor/bulk", "batches of 500 by Elasticsearch's `_bulk`", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, true},
	{"AcceptDoor/loki-protobuf", "batches of 500 by Loki's push, protobuf", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, true},
	{"AcceptDoor/loki-json", "batches of 500 by Loki's push, JSON", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, false},
	{"AcceptDoor/hec", "batches of 500 by Splunk's HEC", ownBatch, []string{"p99-ms", "allocs/record", "api-ns/record"}, false},
	{"Slowloris", "one record a request, beside 200 connections that send a byte a second", "the same API without them", nil, false},
	{"Drain/streams=1", "backlog stored, one stream", "one session of `pgx.CopyFrom` from memory", []string{"psql-rows/s", "resident-MiB"}, false},
	{"Drain/streams=2", "backlog stored, two streams", "two sessions of `pgx.CopyFrom` from memory", []string{"psql-rows/s", "resident-MiB"}, true},
	{"EndToEnd/load=full", "HTTP to committed rows", onlyCopy, []string{"lag-p99-ms", "load-cores"}, true},
	{"EndToEnd/load=half", "the same at half that load", onlyCopy, []string{"lag-p99-ms", "load-cores"}, false},
	{"Visible", "100 one-record requests a second, accept to visible", "", []string{"p50-ms", "p99-ms"}, true},
	{"Export", "export of 200,000 rows", "`COPY (SELECT …) TO STDOUT`", []string{"resident-MiB"}, true},
	{"Tail", "tail, 300 followers of 1 % each, 10,000 rows/s stored", "", []string{"p50-ms", "p99-ms", "resident-MiB"}, false},
},
	search("least SQL that brings the same, by pgx", "latest100/open", "latest100/closed", "error1h/open", "error1h/closed", "countError1h/open",
		"countError1h/closed", "countTrace/closed", "phrase15m/open", "phrase15m/closed", "histogramDay/closed/uncached", "histogram1h/open/uncached", "fields/open"),
	search("the service's /health", "histogramDay/closed/cached", "histogram1h/open/cached"),
)

// search returns lines of BenchmarkSearch. The documents have them at another size.
func search(ceiling string, names ...string) (all []line) {
	for _, name := range names {
		all = append(all, line{name: "Search/" + name, ceiling: ceiling})
	}
	return all
}

// words is how documents write the units that belong to a figure. # stands for the number.
var words = map[string]string{
	"p50-ms":             "p50 # ms",
	"p99-ms":             "p99 # ms",
	"lag-p99-ms":         "accept to commit p99 # ms",
	"resident-MiB":       "# MiB resident",
	"psql-rows/s":        "psql `\\copy` # rows/s",
	"ns/record":          "# ns a record",
	"api-ns/record":      "# ns of the API's processors a record",
	"allocs/record":      "# allocations a record",
	"fastjson-MB/s":      "fastjson # MB/s",
	"encoding/json-MB/s": "encoding/json # MB/s",
}

// told returns what documents say of a line's further units.
func (l line) told(r result, units ...string) string {
	var parts []string
	for _, unit := range units {
		if form, ok := words[unit]; ok {
			parts = append(parts, strings.Replace(form, "#", number(r.values[unit]), 1))
		}
	}
	return strings.Join(parts, ", ")
}
