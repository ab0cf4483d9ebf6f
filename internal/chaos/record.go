package chaos

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"millrace/internal/frame"
)

// A record says whose it is: client, number of the request, and place in it. All the rest follows from these and the
// seed, so that what is stored can be compared with what was sent without keeping it.

// poisoner is the client number of what is published past the API.
const poisoner = 1_000_000

// shape is what a request looks like. It follows from the seed, the client and the number.
type shape struct {
	records  int
	bad      int // the record that is refused, or -1
	single   bool
	keyed    bool
	ids      bool // asks for the ids
	encoding string
	door     door
	form     form
}

// form is how a poisoned message is made; zero is a request to the API.
type form int

const (
	viaAPI       form = iota
	typedFrame        // a frame with a record that jsonb refuses: PostgreSQL finds it
	foreignLines      // NDJSON without a type, with a line that the scanner refuses
	garbage           // nothing that is JSON
	brokenFrame       // a frame whose header does not fit its body
	unknownType       // a frame of a version to come
	forms
)

// maker makes the requests and records of a run.
type maker struct {
	seed  uint64
	start time.Time // about when the run began
	batch int       // mean number of records of a batch
	// doorsEvery is from one of a shipper's requests to the next. Zero: its records are of the last six hours. Else they are of about two hours
	// before: with partitions of a minute, records of six hours would make hundreds of them.
	doorsEvery time.Duration
	pads       string
}

// newMaker returns a maker of requests that have mean records on average. Half of them have one. start is about when the run begins.
func newMaker(seed uint64, mean float64, start time.Time) *maker {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789      "
	rng := rand.New(rand.NewPCG(seed, 1))
	pads := make([]byte, 64<<10)
	for i := range pads {
		pads[i] = letters[rng.IntN(len(letters))]
	}
	// See shape: of a hundred requests 50 have one record, 5 have about 10 on average, and 1 has about 400. The other 44 have
	// batch records on average.
	batch := max(2, int((mean-0.5-0.5-4)/0.44))
	return &maker{seed: seed, start: start.Truncate(time.Second), batch: batch, pads: string(pads)}
}

// rng returns the source of chance for a record, or for the shape of its request if record is -1.
func (m *maker) rng(client, number, record int) *rand.Rand {
	return rand.New(rand.NewPCG(m.seed^uint64(record)<<1, uint64(client)<<32|uint64(number)))
}

// shape returns the shape of a request.
func (m *maker) shape(client, number int) shape {
	rng := m.rng(client, number, -1)
	if client == poisoner {
		s := shape{form: typedFrame + form(number%int(forms-1)), bad: -1, keyed: true}
		if s.form == typedFrame || s.form == foreignLines {
			s.records = 2 + rng.IntN(20)
			s.bad = rng.IntN(s.records)
		}
		return s
	}
	if client == latecomer {
		return shape{records: 1 + rng.IntN(4), bad: -1, keyed: true, form: typedFrame}
	}
	s := shape{records: 1, bad: -1, keyed: rng.IntN(10) > 0, encoding: []string{"", "", "gzip", "zstd"}[rng.IntN(4)]}
	if s.door = doorOf(client); s.door != native {
		s.keyed = false // the API makes the key
		if s.door == lokiProtobuf {
			s.encoding = "" // it has one of its own
		}
	}
	switch {
	case rng.IntN(2) == 0:
		s.single = s.door == native
		return s
	case !s.keyed && s.door == native:
		s.records = 1 + rng.IntN(min(2*m.batch, 20)) // one segment, so that its ids follow each other
		s.ids = true
	case rng.IntN(45) == 0: // several segments
		s.records = 200 + rng.IntN(max(m.batch, 400))
	default:
		s.records = 1 + rng.IntN(2*m.batch)
	}
	s.ids = s.ids || rng.IntN(4) == 0
	if s.records > 1 && rng.IntN(8) == 0 && s.door.refuses() {
		s.bad = rng.IntN(s.records)
		if s.door != native {
			s.bad = max(s.bad, 1) // see doorTime
		}
	}
	return s
}

// accepted returns how many of the request's records are to be stored.
func (s shape) accepted() int {
	if s.bad >= 0 {
		return s.records - 1
	}
	return s.records
}

// id returns the id of record i of a request, given the request's base.
func (s shape) id(base uuid.UUID, i int) uuid.UUID {
	if s.bad >= 0 && i > s.bad && s.form != typedFrame { // a frame's positions count what is refused later, too
		i--
	}
	return frame.ID(base, i)
}

// appendRecord appends a record in the form that PostgreSQL writes jsonb in.
func (m *maker) appendRecord(b []byte, client, number, record int, bad bool) []byte {
	b = m.appendFields(b, client, number, record, bad)
	door := doorOf(client)
	if at, has := m.time(client, number, record); has {
		b = door.appendStoredTime(b, at)
	}
	if door != native {
		b = append(b, `, "`+door.field()+`": "`+source+`"`...)
	}
	return append(b, '}')
}

// appendFields appends what a record has besides its time, without the bracket that ends it.
func (m *maker) appendFields(b []byte, client, number, record int, bad bool) []byte {
	b = fmt.Appendf(b, `{"c": %d, "i": %d, "n": %d, "pad": "`, client, record, number)
	if bad {
		b = append(b, `\u0000`...)
	}
	b = append(b, m.pad(client, number, record)...)
	return append(b, '"')
}

// pad returns the text of a record, which needs no escapes.
func (m *maker) pad(client, number, record int) string {
	h := m.hash(client, number, record)
	size := 20 + int(h>>56)
	if h>>40&63 == 0 {
		size += 3000
	}
	at := int(h >> 20 % uint64(len(m.pads)-size))
	return m.pads[at : at+size]
}

// hash chooses what is in a record. It is a multiplicative hash: a generator for each record would cost more than all else.
func (m *maker) hash(client, number, record int) uint64 {
	return (m.seed ^ uint64(client)<<40 ^ uint64(number)<<16 ^ uint64(record)) * 0x9e3779b97f4a7c15
}

// time returns the time that a record tells, and reports whether it tells one. Most are of the run's time. Some come late, some are from a
// backfill of a year, and some are of a client whose clock is days ahead.
func (m *maker) time(client, number, record int) (at time.Time, has bool) {
	if doorOf(client) != native {
		return m.doorTime(client, number, record)
	}
	h := m.hash(client, number, record) * 0xff51afd7ed558ccd
	within := func(span time.Duration) time.Duration { return time.Duration(h>>8) % span }
	switch p := h & 127; {
	case p < 20:
		return at, false
	case p < 110:
		at = m.start.Add(within(20 * time.Minute))
	case p < 120:
		at = m.start.Add(-within(6 * time.Hour))
	case p < 125:
		at = m.start.Add(-within(365 * 24 * time.Hour))
	default:
		at = m.start.Add(48*time.Hour + within(48*time.Hour))
	}
	return at.Truncate(time.Millisecond), true
}

// storedTime returns the time that a record's row must have, if the record came at a time.
func (m *maker) storedTime(client, number, record int, came time.Time) time.Time {
	if at, has := m.time(client, number, record); has && !at.After(came.Add(time.Hour)) {
		return at
	}
	return came
}

// parseRecord returns whose record a stored one is: the client, the number of the request, and the place in it.
func parseRecord(text string) (client, number, record int, ok bool) {
	rest, ok := strings.CutPrefix(text, `{"c": `)
	c, rest, ok2 := strings.Cut(rest, `, "i": `)
	i, rest, ok3 := strings.Cut(rest, `, "n": `)
	n, _, ok4 := strings.Cut(rest, `, "pad": "`)
	if !ok || !ok2 || !ok3 || !ok4 {
		return 0, 0, 0, false
	}
	client, err := strconv.Atoi(c)
	record, err2 := strconv.Atoi(i)
	number, err3 := strconv.Atoi(n)
	return client, number, record, err == nil && err2 == nil && err3 == nil
}

// body returns the path and the encoded body of a request.
func (m *maker) body(client, number int, s shape) (path string, body []byte, err error) {
	var b []byte
	switch {
	case s.door != native:
		if path, b, err = m.doorBody(client, number, s); err != nil {
			return "", nil, err
		}
	case s.single:
		path = "/log"
	case s.ids:
		path = "/log/batch?ids=true"
	default:
		path = "/log/batch"
	}
	if s.door == native {
		for i := range s.records {
			b = m.appendRecord(b, client, number, i, i == s.bad)
			b = append(b, '\n')
		}
	}
	var out bytes.Buffer
	switch s.encoding {
	case "gzip":
		w := gzip.NewWriter(&out)
		_, err = w.Write(b)
		if err == nil {
			err = w.Close()
		}
	case "zstd":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(128<<10)); err != nil {
			return "", nil, err
		}
		_, err = w.Write(b)
		if err == nil {
			err = w.Close()
		}
	default:
		return path, b, nil
	}
	return path, out.Bytes(), err
}
