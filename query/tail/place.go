package tail

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"millrace/internal/rfc3339"
)

// Place is where a follower goes on. The follower has had every row visible in before, and those of after up to the id last.
// after is nil if it has had none of those.
//
// The id of an event is a place as text: 1.TIME.BEFORE or 1.TIME.BEFORE.AFTER.LAST. TIME is the time of before in Unix
// milliseconds. A snapshot is written as its xmax and the pending transactions, with - between them. Numbers are in base 36.
type Place struct {
	at            time.Time
	before, after *snapshot
	last          uuid.UUID
}

// maxPending is how many pending transactions a place holds at most, the latest ones. So an event's id stays below a kilobyte.
const maxPending = 64

// wholePlace returns the text of the place of a follower that has had all that is visible in s.
func wholePlace(s *snapshot) string {
	return "1." + strconv.FormatInt(s.at.UnixMilli(), 36) + "." + s.text()
}

// placePrefix returns the beginning of the text of a place: that of followers which have had what is visible in before, and a
// part of what is visible in after. The id of the last row must follow.
func placePrefix(before, after *snapshot) string {
	return wholePlace(before) + "." + after.text() + "."
}

// text returns a snapshot as the text of a place has it.
func (s *snapshot) text() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(s.xmax, 36))
	for _, x := range s.pending[max(0, len(s.pending)-maxPending):] {
		b.WriteByte('-')
		b.WriteString(strconv.FormatInt(x, 36))
	}
	return b.String()
}

// ParsePlace returns the place that the id of an event or of a heartbeat tells. ok is false if the id tells none.
func ParsePlace(s string) (p Place, ok bool) {
	parts := strings.Split(s, ".")
	if len(s) > 4096 || parts[0] != "1" || len(parts) != 3 && len(parts) != 5 {
		return p, false
	}
	ms, err := strconv.ParseInt(parts[1], 36, 64)
	if err != nil || ms < rfc3339.Earliest || ms > rfc3339.Latest {
		return p, false
	}
	p.at = time.UnixMilli(ms)
	if p.before, ok = parseSnapshot(parts[2]); !ok || len(parts) == 3 {
		return p, ok
	}
	if p.after, ok = parseSnapshot(parts[3]); !ok {
		return p, false
	}
	p.last, err = uuid.Parse(parts[4])
	return p, err == nil && len(parts[4]) == 36
}

// parseSnapshot returns the snapshot that snapshot.text wrote. Its xmin is the oldest transaction in the text.
func parseSnapshot(s string) (*snapshot, bool) {
	var all []int64
	for part := range strings.SplitSeq(s, "-") {
		x, err := strconv.ParseInt(part, 36, 64)
		if err != nil || x < 0 {
			return nil, false
		}
		all = append(all, x)
	}
	return &snapshot{xmin: slices.Min(all), xmax: all[0], pending: all[1:]}, true
}

// lacks reports whether a follower has not had a row that is visible now. writer is the transaction that wrote the row.
func (p *Place) lacks(id uuid.UUID, writer int64) bool {
	if p.before.sees(writer) {
		return false
	}
	return p.after == nil || !p.after.sees(writer) || bytes.Compare(id[:], p.last[:]) > 0
}
