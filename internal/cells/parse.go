package cells

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/config"
	"millrace/internal/hotfile"
	"millrace/internal/rfc3339"
)

const (
	// maxFileBytes, maxCells and maxPeriods bound a file.
	maxFileBytes, maxCells, maxPeriods = 1 << 20, 64, 1000

	// beginning is the time of the first period, as the file has it.
	beginning = "beginning"

	// byteOrderMark is what some editors put before a text.
	byteOrderMark = "\ufeff"

	// nameTakes says what namePattern takes. A name becomes a part of the names of queues, and a label of metrics.
	nameTakes = "takes a name of at most 32 lower-case letters, digits and hyphens that begins with a letter"
)

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// Mistake is a mistake in a file of cells. Its text is short, and repeats no word of the file but the names of its cells and times: a URL that
// was broken, or in the wrong place, may have left a password anywhere.
type Mistake = hotfile.Mistake

// mistake returns a Mistake.
func mistake(line int, format string, args ...any) error {
	return Mistake{Line: line, Reason: fmt.Sprintf(format, args...)}
}

// Parse returns the map that a text describes. The text has three kinds of lines, in any order but for their times; blank lines and lines
// that start with # are passed over:
//
//	cell NAME [URL]         a cell, and where its database is: a connection string of PostgreSQL, to the end of the line
//	since TIME NAME [NAME…] from this time on, as RFC 3339 with at most three digits of a second, ids are spread over these cells;
//	                        the first TIME is the word beginning, and each later one is later than the one above it
//	keep DURATION           how long after their time ids are needed, at least LeastKeep; for ever where the line is missing. See Rules.Keep
//
// Either all cells have a URL or none has. The error is a Mistake.
func Parse(text []byte) (*Map, error) {
	if len(text) > maxFileBytes {
		return nil, mistake(0, "the file has more than %d bytes", maxFileBytes)
	}
	switch begins := string(text[:min(len(text), 3)]); {
	case begins == byteOrderMark:
		return nil, mistake(1, "begins with a byte order mark (EF BB BF), takes UTF-8 without one")
	case strings.HasPrefix(begins, "\xff\xfe"), strings.HasPrefix(begins, "\xfe\xff"):
		return nil, mistake(1, "begins with the byte order mark of UTF-16, takes UTF-8 without one")
	}
	m := new(Map)
	type sinceLine struct {
		line  int
		words []string
	}
	var since []sinceLine // read when all cells are known
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		switch words := strings.Fields(line); words[0] {
		case "cell":
			if err := m.addCell(i+1, line, words[1:]); err != nil {
				return nil, err
			}
		case "since":
			since = append(since, sinceLine{i + 1, words[1:]})
		case "keep":
			if err := m.setKeep(i+1, words[1:]); err != nil {
				return nil, err
			}
		default:
			return nil, mistake(i+1, "takes cell, since or keep as its first word")
		}
	}
	if len(m.cells) == 0 {
		return nil, mistake(0, "there is no line: cell NAME URL")
	}
	for _, s := range since {
		if err := m.addPeriod(s.line, s.words); err != nil {
			return nil, err
		}
	}
	if len(m.periods) == 0 {
		return nil, mistake(0, "there is no line: since %s NAME…", beginning)
	}
	return m, m.checkURLs()
}

// addCell reads a line that begins with cell. words are those after it.
func (m *Map) addCell(number int, line string, words []string) error {
	if len(words) == 0 {
		return mistake(number, "cell: the name is missing")
	}
	c := Cell{Name: words[0], line: number}
	if !namePattern.MatchString(c.Name) {
		return mistake(number, "name: %s", nameTakes)
	}
	if other := m.find(c.Name); other >= 0 {
		return mistake(number, "name: a cell %s stands in line %d already", c.Name, m.cells[other].line)
	}
	if len(m.cells) == maxCells {
		return mistake(number, "takes at most %d cells", maxCells)
	}
	if len(words) > 1 {
		rest := strings.TrimSpace(line[len("cell"):])[len(c.Name):]
		c.URL = config.PostgresURL(strings.TrimSpace(rest))
		if err := c.URL.Check(); err != nil {
			return mistake(number, "URL of %s: %v", c.Name, err)
		}
	}
	m.cells = append(m.cells, c)
	return nil
}

// find returns the index of a cell, -1 if there is none of that name.
func (m *Map) find(name string) int {
	return slices.IndexFunc(m.cells, func(c Cell) bool { return c.Name == name })
}

// addPeriod reads a line that begins with since. words are those after it.
func (m *Map) addPeriod(line int, words []string) error {
	if len(words) == 0 {
		return mistake(line, "since: the time is missing")
	}
	if len(m.periods) == maxPeriods {
		return mistake(line, "takes at most %d lines with since", maxPeriods)
	}
	p, err := periodOf(words[0])
	first := len(m.periods) == 0
	switch {
	case err != nil:
		return mistake(line, "since: %v", err)
	case first && words[0] != beginning:
		return mistake(line, "since: got %s, the first takes the word %s", p.Stamp(), beginning)
	case !first && words[0] == beginning:
		return mistake(line, "since: only the first takes the word %s", beginning)
	case !first && p.millis <= m.periods[len(m.periods)-1].millis:
		return mistake(line, "since: got %s, takes a time later than the one before", p.Stamp())
	case len(words) == 1:
		return mistake(line, "cells: takes the name of at least one cell")
	}
	for i, name := range words[1:] {
		c := m.find(name)
		if c < 0 {
			return mistake(line, "cells: name %d of %d is that of no cell: there is no line for it, or it holds a comma", i+1, len(words)-1)
		}
		if slices.Contains(p.Cells, c) {
			return mistake(line, "cells: %s stands there twice", name)
		}
		p.Cells = append(p.Cells, c)
	}
	m.periods = append(m.periods, p)
	return nil
}

// periodOf returns a period that begins at a time as the file has it.
func periodOf(word string) (p Period, err error) {
	if word == beginning {
		return p, nil
	}
	at, fraction, ok := rfc3339.Parse(word)
	if !ok {
		return p, fmt.Errorf("takes %s or a time as RFC 3339 has it, such as 2026-03-04T12:00:00Z", beginning)
	}
	fraction = strings.TrimRight(fraction, "0")
	if len(fraction) > 3 {
		return p, errors.New("takes at most three digits of a second: ids have milliseconds")
	}
	millis, _ := strconv.Atoi((fraction + "000")[:3]) // three digits
	p.Since = at.Add(time.Duration(millis) * time.Millisecond).UTC()
	if p.millis = p.Since.UnixMilli(); p.millis <= 0 || p.millis > rfc3339.Latest {
		return p, errors.New("takes a time after the beginning of 1970 and before the year 10000")
	}
	return p, nil
}

// setKeep reads a line that begins with keep. words are those after it.
func (m *Map) setKeep(line int, words []string) error {
	if m.keep > 0 {
		return mistake(line, "keep: stands there twice")
	}
	keep, err := time.Duration(0), error(nil)
	if len(words) == 1 {
		keep, err = config.ParseDuration(words[0])
	}
	if err != nil || keep < LeastKeep {
		return mistake(line, "keep: takes one duration such as 30d, at least %s", inWords(LeastKeep))
	}
	m.keep = keep
	return nil
}

// checkURLs returns an error if some cells have a URL and others not, or if two cells are one database. It notes where the URLs lead.
func (m *Map) checkURLs() error {
	for i, c := range m.cells {
		if (c.URL == "") != (m.cells[0].URL == "") {
			without, with := c, m.cells[0]
			if c.URL != "" {
				without, with = with, without
			}
			return mistake(without.line, "URL: %s has none, and %s has one: takes one for all cells, or for none", without.Name, with.Name)
		}
		if c.URL == "" {
			continue
		}
		parsed, err := config.Parse(c.URL, pgx.ParseConfig)
		if err != nil {
			return mistake(c.line, "URL of %s: %v", c.Name, err)
		}
		m.cells[i].place = placeOf(parsed)
		for _, other := range m.cells[:i] {
			if m.cells[i].place.isSame(other.place) {
				return mistake(c.line, "URL of %s: leads to the database of %s in line %d, and its records would be found twice", c.Name, other.Name, other.line)
			}
		}
	}
	return nil
}

// RequireURLs returns an error unless the cells have URLs. A service that talks to the databases asks for them.
func (m *Map) RequireURLs() error {
	for _, c := range m.cells {
		if c.URL == "" {
			return mistake(c.line, "URL: %s has none", c.Name)
		}
	}
	return nil
}
