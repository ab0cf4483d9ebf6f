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

// Place is where a follower goes on: it has what before saw, and of what after saw the rows up to last. after is nil
// when that is nothing.
type Place struct {
	at            time.Time
	before, after *snapshot
	last          uuid.UUID
}

// ParsePlace reads the id of an event, or of a heartbeat.
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
	if p.before, ok = parsePosition(parts[2]); !ok || len(parts) == 3 {
		return p, ok
	}
	if p.after, ok = parsePosition(parts[3]); !ok {
		return p, false
	}
	p.last, err = uuid.Parse(parts[4])
	return p, err == nil && len(parts[4]) == 36
}

func parsePosition(s string) (*snapshot, bool) {
	var all []int64
	for part := range strings.SplitSeq(s, "-") {
		x, err := strconv.ParseInt(part, 36, 64)
		if err != nil || x < 0 {
			return nil, false
		}
		all = append(all, x)
	}
	p := &snapshot{xmax: all[0], pending: all[1:]}
	p.xmin = slices.Min(all)
	return p, true
}

// missed says whether a row that is visible now, written by x, is one that the follower has not had.
func (p Place) missed(id uuid.UUID, x int64) bool {
	if p.before.sees(x) {
		return false
	}
	return p.after == nil || !p.after.sees(x) || bytes.Compare(id[:], p.last[:]) > 0
}
