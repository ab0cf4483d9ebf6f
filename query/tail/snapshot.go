package tail

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

const snapshotSQL = `SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
		ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x ORDER BY 1), clock_timestamp() FROM pg_current_snapshot() AS s`

// snapshot is what a poll sees. Transaction ids have 64 bits.
type snapshot struct {
	xmin, xmax int64
	pending    []int64 // transactions before xmax that it does not see, as far as the server tells
	at         time.Time
}

// position writes a place between two transactions.
func (s *snapshot) position() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(s.xmax, 36))
	pending := s.pending[max(0, len(s.pending)-64):]
	for _, x := range pending {
		b.WriteByte('-')
		b.WriteString(strconv.FormatInt(x, 36))
	}
	return b.String()
}

// place writes the place of a follower that has had all that is visible in s.
func (s *snapshot) place() string {
	return "1." + strconv.FormatInt(s.at.UnixMilli(), 36) + "." + s.position()
}

// placePrefix writes the places of followers that have had what is visible in before, and a part of what is in after,
// up to the id of their last row.
func placePrefix(before, after *snapshot) string {
	return before.place() + "." + after.position() + "."
}

// sees says whether what x wrote is in the snapshot.
func (s *snapshot) sees(x int64) bool { return x < s.xmax && !slices.Contains(s.pending, x) }

// full makes 64 bits of the 32 that a row keeps.
func (s *snapshot) full(x uint32) int64 {
	full := s.xmax&^0xffffffff | int64(x)
	if full >= s.xmax {
		full -= 1 << 32
	}
	return full
}
