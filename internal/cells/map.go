// Package cells says which of several PostgreSQL databases, the cells, has a record. The record's id alone decides.
//
// The cell can't follow from anything else. A request that is sent again under its Idempotency-Key may reach another API, another queue
// and another worker, and each cell's ledger knows only what that cell has stored. So the same id must lead to the same cell, whoever
// asks and whenever. frame.ID counts up in the last 8 bytes of an id, so all records of a keyed request share a cell.
//
// Which cells there are changes with time. A Map lists from which time on which cells take records, and looks that up by the time in the
// id, not by the clock: what an id of yesterday meant yesterday, it means today. So a change may only be about ids that nobody can have
// made yet, and everybody must know it before somebody makes the first; see Map.Follows.
//
// Only File.Watch lasts, and starts no goroutine. A Map never changes.
package cells

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"

	"millrace/internal/config"
	"millrace/internal/frame"
)

// Cell is one of the databases.
type Cell struct {
	// Name is what the periods call the cell. Two maps mean the same cell by the same name.
	Name string
	// URL is where the cell's database is. It is empty in a file for a service that needs no database, such as the API.
	URL config.PostgresURL

	line  int   // of the file
	place place // where URL leads
}

// Period is a time from which on ids are spread over the same cells, until the next period begins.
type Period struct {
	// Since is the first millisecond of the ids, in UTC. It is the zero time for the first period, which has all earlier ids, too.
	Since time.Time
	// Cells are the indexes of the cells in Map.Cells. Their order counts.
	Cells []int

	millis int64 // Since in Unix milliseconds; 0 for the first period
}

// Map says which cell has which ids. Any number of goroutines may use it at once.
type Map struct {
	cells   []Cell
	periods []Period // the earliest first
	keep    time.Duration
}

// Cells returns the cells, in the order of the file. The caller may not change them.
func (m *Map) Cells() []Cell { return m.cells }

// Periods returns the periods, the earliest first. The caller may not change them.
func (m *Map) Periods() []Period { return m.periods }

// Index returns the index in Cells of the cell of a name, -1 if there is none.
func (m *Map) Index(name string) int { return m.find(name) }

// Keep returns how long ids are needed after their time, as the file has it; 0 for ever.
func (m *Map) Keep() time.Duration { return m.keep }

// Of returns which cell has an id, a UUIDv7: its index in Cells. It looks at the first 8 bytes of the id alone.
func (m *Map) Of(id uuid.UUID) int {
	p := m.at(frame.Millis(id))
	if len(p.Cells) == 1 {
		return p.Cells[0]
	}
	return p.Cells[spread(id)%uint64(len(p.Cells))]
}

// spread returns a number that looks random for the first 8 bytes of an id: its time in milliseconds, the version, and the 12 bits
// after them. It may never become another number: where the records are depends on it.
func spread(id uuid.UUID) uint64 { return xxhash.Sum64(id[:8]) }

// At returns the cells over which ids of a time are spread, by their indexes in Cells. The caller may not change them.
func (m *Map) At(t time.Time) []int { return m.at(t.UnixMilli()).Cells }

// Since returns the cells that take ids of a time or of later ones, by their indexes in Cells, each once.
func (m *Map) Since(t time.Time) (cells []int) {
	for i := m.index(t.UnixMilli()); i < len(m.periods); i++ {
		for _, c := range m.periods[i].Cells {
			if !slices.Contains(cells, c) {
				cells = append(cells, c)
			}
		}
	}
	return cells
}

// BaseIn returns a fresh base, from which ids may count up, that leads to a cell. It has the current time, or, where the cell takes no ids of
// that time, the nearest one whose ids it takes: a clock may go back, and a period may end, after the caller has chosen the cell. The cell must
// take ids in some period.
func (m *Map) BaseIn(cell int) uuid.UUID {
	for base := frame.NewBase(); ; {
		millis := frame.Millis(base)
		nearest := m.nearest(cell, millis)
		if nearest == millis && m.Of(base) == cell {
			return base
		}
		if nearest == millis {
			base = frame.NewBase()
		} else {
			base = frame.BaseAt(time.UnixMilli(nearest))
			if m.Of(base) == cell {
				return base
			}
		}
	}
}

// nearest returns the time nearest to one whose ids a cell takes, both in Unix milliseconds.
func (m *Map) nearest(cell int, millis int64) int64 {
	best, distance := millis, int64(math.MaxInt64)
	for i, p := range m.periods {
		if !slices.Contains(p.Cells, cell) {
			continue
		}
		at := max(millis, p.millis)
		if i+1 < len(m.periods) {
			at = min(at, m.periods[i+1].millis-1)
		}
		if d := max(at-millis, millis-at); d < distance {
			best, distance = at, d
		}
	}
	return best
}

// index returns the index of the period of a time in Unix milliseconds. Most ids are new, so it looks from the end.
func (m *Map) index(millis int64) int {
	i := len(m.periods) - 1
	for i > 0 && m.periods[i].millis > millis {
		i--
	}
	return i
}

// at returns the period of a time in Unix milliseconds.
func (m *Map) at(millis int64) *Period { return &m.periods[m.index(millis)] }

// names returns the names of cells, with spaces between them.
func (m *Map) names(cells []int) string {
	names := make([]string, len(cells))
	for i, c := range cells {
		names[i] = m.cells[c].Name
	}
	return strings.Join(names, " ")
}

// Names returns the names of a period's cells, with spaces between them, as the file has them.
func (m *Map) Names(p Period) string { return m.names(p.Cells) }

// Fingerprint returns 16 hexadecimal digits that are equal for maps that send each id to a cell of the same name. URLs don't count: the
// services reach the same databases as different users.
func (m *Map) Fingerprint() string {
	text := new(strings.Builder)
	before := ""
	for i, p := range m.periods {
		if names := m.Names(p); i == 0 || names != before { // a period that changes nothing does not count
			fmt.Fprintf(text, "%d %s\n", p.millis, names)
			before = names
		}
	}
	sum := sha256.Sum256([]byte(text.String()))
	return hex.EncodeToString(sum[:8])
}
