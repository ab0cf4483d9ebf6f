package protocol

import (
	"bytes"
	"slices"
	"strconv"
	"time"

	"millrace/internal/jsontext"
	"millrace/internal/record"
	"millrace/internal/scan"
)

// containers are the names of arrays that records come in: pino-http-send's, Telegraf's, Firehose's, and others'.
var containers = []string{"logs", "metrics", "records", "events"}

// maxBeside is the most bytes beside a container's array that every record gets.
const maxBeside = 512

// maxTags is the most tags that are merged with a metric's fields. All of them are compared with all fields.
const maxTags = 64

// unwrapper takes records out of containers such as {"logs":[{…},{…}]}.
type unwrapper struct {
	records *record.List
	name    string // of the array; "true" means the only array, if it has one of the names of containers
	members []member
	beside  []member // the container's other members
	element []member
	tags    []member
	fields  []member
	out     objects
}

// unwrap fills records with those of body: containers or plain records, one after another or in arrays. The members beside a
// container's array are added to its records that lack them, if they are short. An error refuses the body whole.
func unwrap(records *record.List, body []byte, name string) *scan.Error {
	u := &unwrapper{records: records, name: name}
	records.Begin()
	i, found := 0, false
	for {
		i = skipSpace(body, i)
		if bytes.HasPrefix(body[i:], bom) {
			i += len(bom)
			continue
		}
		if i == len(body) {
			break
		}
		found = true
		end := jsontext.ValueEnd(body, i)
		if c := body[i]; end < 0 || c != '{' && c != '[' {
			records.End()
			err := (&record.List{Limits: records.Limits}).Single(body[i:]) // which says what is wrong
			if err == nil {
				err = &scan.Error{Reason: scan.Syntax, Msg: "not JSON"}
			}
			err.Offset += i
			records.Begin()
			records.End()
			return err
		}
		if body[i] == '{' {
			u.container(body[i:end], i)
		} else {
			u.each(body[i:end], func(element []byte, at int) { u.container(element, i+at) })
		}
		i = end
	}
	records.End()
	if !found {
		return &scan.Error{Reason: scan.Empty, Msg: "the body is empty"}
	}
	return nil
}

// each calls f for each element of an array, with its offset.
func (*unwrapper) each(array []byte, f func(element []byte, at int)) {
	for i := skipSpace(array, 1); i < len(array) && array[i] != ']'; {
		end := jsontext.ValueEnd(array, i)
		if end < 0 {
			f(array[i:len(array)-1], i) // no JSON, which is refused
			return
		}
		f(array[i:end], i)
		if i = skipSpace(array, end); i < len(array) && array[i] == ',' {
			i = skipSpace(array, i+1)
		}
	}
}

// container takes the records of a container, or what is no container as a record. at is its offset in the body.
func (u *unwrapper) container(text []byte, at int) {
	var ok bool
	array := -1
	if u.members, ok = appendMembers(u.members[:0], text); ok {
		array = u.array()
	}
	if array < 0 {
		u.records.Add(text, at)
		return
	}
	key, value := u.members[array].key, u.members[array].value
	u.beside = append(append(u.beside[:0], u.members[:array]...), u.members[array+1:]...)
	size := 0
	for _, m := range u.beside {
		size += len(m.key) + len(m.value)
	}
	if size > maxBeside || len(u.beside) > maxFields {
		u.beside = u.beside[:0]
	}
	isMetrics := isNamed(key, "metrics")
	offset := at + cap(text) - cap(value) // value is a part of text
	u.each(value, func(element []byte, at int) { u.take(element, offset+at, isMetrics) })
}

// array returns the index of the member that holds the records, -1 if there is none.
func (u *unwrapper) array() int {
	found := -1
	for i, m := range u.members {
		if m.value[0] != '[' || u.name != "true" && !isNamed(m.key, u.name) {
			continue
		}
		if u.name == "true" && (found >= 0 || !slices.ContainsFunc(containers, func(name string) bool { return isNamed(m.key, name) })) {
			return -1 // it is not the only array, or it has another name
		}
		found = i
	}
	return found
}

// take takes an element as a record.
func (u *unwrapper) take(text []byte, at int, isMetric bool) {
	if !isMetric && len(u.beside) == 0 {
		u.records.Add(text, at)
		return
	}
	var ok bool
	if u.element, ok = appendMembers(u.element[:0], text); !ok {
		u.records.Add(text, at)
		return
	}
	u.out.b = u.out.b[:0]
	u.out.begin()
	if !isMetric || !u.metric() {
		for _, m := range u.element {
			u.out.member(m)
		}
	}
	for _, m := range u.beside {
		if !slices.ContainsFunc(u.element, func(own member) bool { return bytes.Equal(own.key, m.key) }) {
			u.out.member(m)
		}
	}
	u.out.end()
	u.records.Add(u.out.b, at)
}

// metric writes the members of one of Telegraf's metrics, {"fields":{…},"name":"cpu","tags":{…},"timestamp":1795822841}: its time,
// its name, and its fields and tags side by side. A tag that has the name of a field stays in tags. It reports false, and writes
// nothing, if the element is something else.
func (u *unwrapper) metric() bool {
	name, fields, tags, stamp := find(u.element, "name"), find(u.element, "fields"), find(u.element, "tags"), find(u.element, "timestamp")
	if name == nil || fields == nil {
		return false
	}
	var ok bool
	if u.fields, ok = appendMembers(u.fields[:0], fields.value); !ok {
		return false
	}
	u.tags = u.tags[:0]
	if tags != nil {
		if u.tags, ok = appendMembers(u.tags, tags.value); !ok {
			return false
		}
	}
	tagsStay := len(u.tags) > maxTags
	has := func(key string) bool { return find(u.fields, key) != nil || !tagsStay && find(u.tags, key) != nil }
	if stamp != nil {
		key := `"time"`
		if has("time") {
			key = `"@timestamp"`
		}
		u.out.key([]byte(key))
		u.out.b = appendStamp(u.out.b, stamp.value)
	}
	key := `"name"`
	if has("name") {
		key = `"measurement"`
	}
	u.out.key([]byte(key))
	u.out.b = append(u.out.b, name.value...)
	for _, m := range u.fields {
		u.out.member(m)
	}
	left := 0 // tags that stay in tags
	for _, m := range u.tags {
		if tagsStay || slices.ContainsFunc(u.fields, func(f member) bool { return bytes.Equal(f.key, m.key) }) {
			u.tags[left] = m
			left++
			continue
		}
		u.out.member(m)
	}
	if left > 0 {
		u.out.key([]byte(`"tags"`))
		u.out.begin()
		for _, m := range u.tags[:left] {
			u.out.member(m)
		}
		u.out.end()
	}
	for _, m := range u.element {
		if !isNamed(m.key, "name") && !isNamed(m.key, "fields") && !isNamed(m.key, "tags") && !isNamed(m.key, "timestamp") {
			u.out.member(m)
		}
	}
	return true
}

// appendStamp writes a time that is a whole number, of seconds or of what its size tells, in the form of RFC 3339. Others stay as
// they are.
func appendStamp(b, value []byte) []byte {
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || n <= 0 {
		return append(b, value...)
	}
	at := time.Unix(0, n)
	switch {
	case n < unixSeconds:
		at = time.Unix(n, 0)
	case n < unixMillis:
		at = time.UnixMilli(n)
	case n < unixMicros:
		at = time.UnixMicro(n)
	}
	b = append(b, '"')
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}
