package ceiling

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"millrace/internal/frame"
)

// RecordBytes is the size of the records that are sent by default, without the line's end.
const RecordBytes = 264

// FrameRecords is how many records of RecordBytes fill a frame of the default size.
const FrameRecords = frame.SegmentBytes/(RecordBytes+1) + 1

// words fill records up to their size.
var words = strings.Repeat("request served from the upstream pool after one retry with a warm cache and nothing else to say ", 1100)

// record returns a log record of a size, like those that services write. Its event happened at most two seconds before now. Below 240
// bytes it lacks what an access log has.
func record(rng *rand.Rand, size int, now time.Time) []byte {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	level := pick("info", "info", "info", "warn", "error")
	head := fmt.Sprintf(`{"level":%q,"trace_id":"%016x","message":"`, level, rng.Uint64())
	if size >= 240 {
		head = fmt.Sprintf(`{"time":%q,"level":%q,"service":%q,"trace_id":"%016x","http":{"method":%q,"path":"/api/v1/%s/%d","status":%d},"duration_ms":%.3f,"message":"`,
			now.Add(-time.Duration(rng.Int64N(2e9))).UTC().Format("2006-01-02T15:04:05.000000Z"),
			level, pick("checkout", "cart", "search", "auth"), rng.Uint64(),
			pick("GET", "POST"), pick("orders", "users", "items"), rng.IntN(1e6), 200+rng.IntN(4)*100, rng.ExpFloat64()*40)
	}
	return append(append([]byte(head), words[:size-len(head)-2]...), `"}`...)
}

// Bodies returns count NDJSON bodies of n records of a size, from 100 to 100,000 bytes each. They are the same every time, but for the
// records' times, which are those of the last two seconds.
func Bodies(count, n, size int) [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, count)
	now := time.Now()
	for i := range all {
		for range n {
			all[i] = append(append(all[i], record(rng, size, now)...), '\n')
		}
	}
	return all
}
