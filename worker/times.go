package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/eventtime"
	"millrace/worker/partition"
)

// maxNotedHours is in how many hours a transaction notes changes one by one. A transaction that stores records of more hours notes that
// everything may have changed: a statement for each of thousands of hours would take longer than the COPY.
const maxNotedHours = 64

// lateTimesSQL notes the hours of rows whose time is no longer new when they are stored, by the database's clock. lateHoursSQL notes
// which partitions have them.
var (
	lateTimesSQL = partition.NoteTimesSQL(`SELECT date_trunc('hour', at) FROM unnest($1::timestamptz[]) AS t (at)
		WHERE at < clock_timestamp() - interval '30 seconds' ORDER BY 1`)
	manyTimesSQL = partition.NoteTimesSQL("SELECT '-infinity'::timestamptz")
	lateHoursSQL = `INSERT INTO late_hours (hour, from_at, to_at) SELECT * FROM unnest($1::timestamptz[], $2::timestamptz[], $3::timestamptz[]) ON CONFLICT DO NOTHING`
)

// recordTimes finds the times of records as they are copied, and gathers what a transaction has to note about them. It belongs to one
// goroutine at a time.
type recordTimes struct {
	rule  *eventtime.Rule
	parts *partition.Set

	counts   timeCounts
	earliest map[int64]int64         // by the beginning of an hour, the earliest time in it; Unix microseconds
	far      map[partition.Hour]bool // hours of times that are not near the records' inserted_at

	// Of the segment whose records are copied.
	came     int64 // when it came, in Unix microseconds
	from, to int64 // the range of its partition

	// Of the records before, as long as the next ones are of the same hour.
	hour, hourEarliest int64
	isFar              bool // one of them is not near
	hasHour            bool
}

// timeCounts counts records by what their time is.
type timeCounts struct {
	results [eventtime.Results]int
	delays  delayCounts
}

// add adds other to c.
func (c *timeCounts) add(other *timeCounts) {
	for i, n := range other.results {
		c.results[i] += n
	}
	c.delays.add(&other.delays)
}

func newRecordTimes(rule *eventtime.Rule, parts *partition.Set) *recordTimes {
	return &recordTimes{rule: rule, parts: parts, earliest: make(map[int64]int64), far: make(map[partition.Hour]bool)}
}

// begin begins with the records of a segment that came at a time.
func (t *recordTimes) begin(came time.Time) {
	t.came = came.UnixMicro()
	if t.came < t.from || t.came >= t.to {
		t.keep()
		t.from, t.to = t.parts.LogsAt(came)
	}
}

const hourMicros = int64(time.Hour / time.Microsecond)

// of returns the time of a record of the segment, in Unix microseconds.
func (t *recordTimes) of(record []byte) int64 {
	micros, result := t.rule.At(record, t.came)
	t.counts.results[result]++
	delay := t.came - micros
	if result == eventtime.Own {
		t.counts.delays.observe(delay)
	}
	if !t.hasHour || micros < t.hour || micros >= t.hour+hourMicros {
		t.keep()
		t.hour = micros - (micros%hourMicros+hourMicros)%hourMicros
		t.hourEarliest, t.isFar, t.hasHour = micros, false, true
	}
	t.hourEarliest = min(t.hourEarliest, micros)
	if delay > nearMicros || delay < -nearMicros {
		t.isFar = true
	}
	return micros
}

const nearMicros = int64(eventtime.Near / time.Microsecond)

// keep puts what is known of the current hour into the maps.
func (t *recordTimes) keep() {
	if !t.hasHour {
		return
	}
	t.hasHour = false
	t.note(t.hour, t.hourEarliest)
	if t.isFar {
		t.far[partition.Hour{Start: t.hour, From: t.from, To: t.to}] = true
	}
}

// note notes that there is a time in an hour.
func (t *recordTimes) note(hour, at int64) {
	if earliest, found := t.earliest[hour]; !found || at < earliest {
		t.earliest[hour] = at
	}
}

// add adds what other has gathered.
func (t *recordTimes) add(other *recordTimes) {
	other.keep()
	t.counts.add(&other.counts)
	for hour, at := range other.earliest {
		t.note(hour, at)
	}
	maps.Copy(t.far, other.far)
}

// queue adds the statements that note the times to a batch. It returns the hours that are noted for their partitions.
func (t *recordTimes) queue(b *pgx.Batch) []partition.Hour {
	t.keep()
	if len(t.earliest) > maxNotedHours {
		b.Queue(manyTimesSQL)
	} else if len(t.earliest) > 0 {
		times := make([]time.Time, 0, len(t.earliest))
		for _, at := range t.earliest {
			times = append(times, time.UnixMicro(at))
		}
		b.Queue(lateTimesSQL, times)
	}
	far := t.parts.UnnotedHours(t.far)
	if len(far) == 0 {
		return nil
	}
	slices.SortFunc(far, func(a, b partition.Hour) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.From, b.From))
	})
	hours, from, to := make([]time.Time, len(far)), make([]time.Time, len(far)), make([]time.Time, len(far))
	for i, h := range far {
		hours[i], from[i], to[i] = time.UnixMicro(h.Start), time.UnixMicro(h.From), time.UnixMicro(h.To)
	}
	b.Queue(lateHoursSQL, hours, from, to)
	return far
}

// notedRule is what settings has under time_rule. The commands that replay dead letters find times as the workers do.
type notedRule struct {
	Fields string `json:"fields"` // TIME_FIELDS
	Zone   string `json:"zone"`   // TIME_ZONE
	Ahead  string `json:"ahead"`  // TIME_AHEAD
}

// noteOf returns the note of the settings.
func noteOf(c config.EventTime) string {
	note, _ := json.Marshal(notedRule{string(c.TimeFields), string(c.TimeZone), c.TimeAhead.String()}) // strings always have a JSON form
	return string(note)
}

// readRule returns the rule that the keeper has noted, or that of the default settings if there is no note.
func readRule(ctx context.Context, conn *pgx.Conn) (*eventtime.Rule, error) {
	var text string
	err := conn.QueryRow(ctx, "SELECT value FROM settings WHERE name = 'time_rule'").Scan(&text)
	environ := make(map[string]string)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return nil, err
	default:
		var note notedRule
		if err := json.Unmarshal([]byte(text), &note); err != nil {
			return nil, fmt.Errorf("settings: time_rule: %w", err)
		}
		environ["TIME_FIELDS"], environ["TIME_ZONE"], environ["TIME_AHEAD"] = note.Fields, note.Zone, note.Ahead
		if note.Zone == "" {
			delete(environ, "TIME_ZONE")
		}
	}
	var c config.EventTime
	if err := config.LoadFrom(environ, &c); err != nil {
		return nil, fmt.Errorf("settings: time_rule: %w", err)
	}
	return c.Rule()
}
