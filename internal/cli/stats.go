package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	neturl "net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const statsHelp = `Asks the query service at QUERY_URL for figures of the records that Q finds, by groups and as series. Without Q it takes all records. A query
that begins with - goes behind --.

  --calc F,…     the figures (default count): count, count(FIELD), sum(FIELD), avg(FIELD), min(FIELD), max(FIELD), p50(FIELD) and the like,
                 uniq(FIELD), first(FIELD), last(FIELD), rate, share(QUERY)
  --by F,…       the fields that make the groups
  --every T      a row for each 5m, 1h, 1d …, or auto
  --tz ZONE      of the days and weeks of --every (default UTC)
  --order F      the figure that the groups are ordered by; -F is the largest first (default the first figure)
  --limit N      how many groups (default 100); the others are summed up
  --having C,…   only groups for which this holds, such as count>100
  --since T, --until T, --clock C
                 the window, as for millrace logs
  --budget D     answer after this time at the latest, for the newest part of the window; standard error says how far it came
  -o text|json|csv
                 text (default): a table; json: each row as an object on a line; csv

Ends with status 0 if something was found, 1 if nothing, 2 if the search failed.

  millrace stats --since 1h --by service level:error
  millrace stats --by path --calc 'count,p95(duration_ms),share(status:>=500)' --order '-p95(duration_ms)' --limit 10
  millrace stats --since 1d --every 1h --calc rate -o csv > rate.csv
  watch -n 5 millrace stats --since 5m --by level`

// statsTable is the answer to GET /logs/stats.
type statsTable struct {
	Columns    []string            `json:"columns"`
	Rows       [][]json.RawMessage `json:"rows"`
	Others     [][]json.RawMessage `json:"others"`
	SearchedTo string              `json:"searched_to"`
	Complete   bool                `json:"complete"`
}

// searchStats runs millrace stats.
func searchStats(ctx context.Context, args []string) error {
	flags := newFlags("stats")
	var since, until, clock string
	passed := make(map[string]*string) // flags that are parameters of the same name
	for _, name := range []string{"calc", "by", "every", "tz", "order", "limit", "having"} {
		passed[name] = flags.String(name, "", "")
	}
	flags.StringVar(&since, "since", "", "")
	flags.StringVar(&until, "until", "", "")
	flags.StringVar(&clock, "clock", "", "")
	form := flags.String("o", "text", "")
	colour := flags.String("color", "auto", "")
	budget := flags.Duration("budget", 0, "")
	q, err := parseSearchFlags(flags, args)
	if err != nil {
		return err
	}
	if err := cmp.Or(takesOneOf("stats", "o", *form, "text", "json", "csv"), takesOneOf("stats", "-color", *colour, "auto", "always", "never")); err != nil {
		return err
	}
	parameters := make(neturl.Values)
	if err := setWindow(parameters, "stats", q, since, until, clock, time.Now()); err != nil {
		return err
	}
	for name, value := range passed {
		if *value != "" {
			parameters.Set(name, *value)
		}
	}
	if *budget != 0 {
		parameters.Set("budget", budget.String())
	}
	client, err := newQueryClient()
	if err != nil {
		return searchError{err}
	}
	var table statsTable
	err = client.get(ctx, "/logs/stats", parameters, *budget, &table)
	if ctx.Err() != nil {
		return commandEnded(130)
	}
	if err == nil {
		err = table.check()
	}
	if err != nil {
		return searchFailed(err, q)
	}
	p := newPrinter(*form, *colour, false)
	err = p.printTable(&table)
	if flushErr := p.out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return searchError{err}
	}
	if !table.Complete {
		fmt.Fprintf(os.Stderr, "millrace: the time of --budget is used up: searched %s\n", searchedUpTo(table.SearchedTo, false, time.Local))
	}
	if table.isEmpty() {
		return commandEnded(1)
	}
	return nil
}

// check returns an error if a row has not a cell for each column.
func (t *statsTable) check() error {
	for _, rows := range [][][]json.RawMessage{t.Rows, t.Others} {
		for _, row := range rows {
			if len(row) != len(t.Columns) {
				return errors.New("the answer is no table: a row has more or fewer cells than there are columns")
			}
		}
	}
	return nil
}

// isEmpty reports whether no record was found: each figure is 0 or null. A group has at least one record.
func (t *statsTable) isEmpty() bool {
	for _, row := range t.Rows {
		for i, cell := range row {
			if text := cellText(cell); text != "" && text != "0" && !(i == 0 && t.Columns[0] == "time") {
				return false
			}
		}
	}
	return true
}

// cellText returns a cell as text: a string without quotes, nothing for null, all else as JSON.
func cellText(cell json.RawMessage) string {
	var text string
	if json.Unmarshal(cell, &text) == nil { // which leaves it empty for null
		return text
	}
	return string(cell)
}

// printTable writes a table.
func (p *printer) printTable(t *statsTable) error {
	rows := append(t.Rows[:len(t.Rows):len(t.Rows)], t.Others...)
	if p.form == "json" {
		for _, row := range rows {
			line := []byte("{")
			for i, cell := range row {
				if i > 0 {
					line = append(line, ',')
				}
				line = append(line, quoteForSearch(t.Columns[i])...)
				line = append(line, ':')
				var compact bytes.Buffer
				if err := json.Compact(&compact, cell); err != nil {
					return err
				}
				line = append(line, compact.Bytes()...)
			}
			if line = append(line, '}'); p.terminal {
				line = printableJSON(line)
			}
			_, _ = p.out.Write(line) // the writer keeps its error
			if err := p.out.WriteByte('\n'); err != nil {
				return err
			}
		}
		return nil
	}
	cells := [][]string{append([]string(nil), t.Columns...)}
	for _, row := range rows {
		texts := make([]string, len(row))
		for i, cell := range row {
			texts[i] = cellText(cell)
		}
		cells = append(cells, texts)
	}
	if p.form == "csv" {
		return p.writeCSV(cells)
	}
	return p.printAligned(cells)
}

// printAligned writes rows in columns, the first as their head. Columns of numbers are aligned to the right.
func (p *printer) printAligned(rows [][]string) error {
	columns := len(rows[0])
	widths, isNumeric := make([]int, columns), make([]bool, columns)
	for i := range columns {
		isNumeric[i] = true
		for j, row := range rows {
			switch _, err := strconv.ParseFloat(row[i], 64); {
			case j == 0:
			case row[i] == "":
				row[i] = "-"
			case err == nil:
				row[i] = shortNumber(row[i])
			default:
				isNumeric[i] = false
			}
			row[i] = printable(row[i])
			widths[i] = max(widths[i], width(row[i]))
		}
	}
	for j, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-width(cell))
			if i > 0 {
				line.WriteString("  ")
			}
			if j == 0 {
				cell = p.painted(dim, cell)
			}
			switch {
			case isNumeric[i]:
				line.WriteString(pad + cell)
			case i == columns-1:
				line.WriteString(cell)
			default:
				line.WriteString(cell + pad)
			}
		}
		if _, err := p.out.WriteString(strings.TrimRight(line.String(), " ") + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// shortNumber returns a number as a table shows it: with at most three digits behind the point. Whole numbers stay as they are.
func shortNumber(s string) string {
	whole, fraction, found := strings.Cut(s, ".")
	f, err := strconv.ParseFloat(s, 64)
	if !found || err != nil || len(fraction) <= 3 || strings.ContainsAny(s, "eE") {
		return s
	}
	if strings.Trim(whole, "-0") == "" { // small ones keep what they say
		return strconv.FormatFloat(f, 'g', 3, 64)
	}
	return strconv.FormatFloat(f, 'f', 3, 64)
}
