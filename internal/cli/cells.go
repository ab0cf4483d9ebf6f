package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"millrace/internal/cells"
	"millrace/internal/config"
)

const cellsHelp = `Looks at a file of cells: several PostgreSQL databases, each of which has the records of some ids. The services of this version do not store or
search over cells yet, and refuse to start with CELLS_FILE set, as do the commands that go to a database. What a file would say can be tried.

  check FILE    says what is wrong with the file and in which line, or what it has
  ls [FILE]     prints the cells and from when on which of them take ids; FILE is CELLS_FILE where it is not given

  --from OLD    check: FILE is to take the place of the file OLD. Says which ids then go elsewhere, and refuses what is not safe: a change of ids that
                somebody may have made already, too short a notice, a cell gone that is still needed
  --notice D    check: how long before its time a change is known to all services, at least 6m (default 10m): keys may be 5 minutes ahead of the clock
  --keep D      check: how long ids are needed after their time, in tables, queues, dead letters and retries, at least 24h1m: so long a request may be sent
                again. By default what OLD says, which is what services go by; for ever if it says nothing

A line of the file is: cell NAME [URL], or: since TIME NAME [NAME…], or: keep D. The first TIME is the word beginning. Blank lines and lines that start
with # are passed over. The cell of an id follows from the cells of its own time and from its first 8 bytes, so no line that is in force may change. The map that
ls and check print is equal for files that send each id to the same cell; their URLs may differ.

check ends with status 0 if all is in order.

  millrace cells check --from /etc/millrace/cells cells.new`

// cellsSettings are the settings of millrace cells.
type cellsSettings struct {
	File string `env:"CELLS_FILE" is:"file" help:"The file of cells that ls shows where none is named."`
}

// runCells runs millrace cells.
func runCells(_ context.Context, args []string) error {
	if len(args) == 0 || args[0] != "check" && args[0] != "ls" {
		return usagef("cells: want one of check FILE, ls [FILE]")
	}
	action := args[0]
	flags := newFlags("cells " + action)
	old, notice, keep := "", cells.DefaultNotice.String(), ""
	if action == "check" {
		flags.StringVar(&old, "from", "", "")
		flags.StringVar(&notice, "notice", notice, "")
		flags.StringVar(&keep, "keep", "", "")
	}
	words, err := wordsAndFlags(flags, args[1:])
	if err != nil {
		return err
	}
	if action == "ls" {
		return listCells(words)
	}
	if len(words) != 1 {
		return usagef("cells check: want one FILE")
	}
	var rules cells.Rules
	if rules.Notice, err = config.ParseDuration(notice); err != nil || rules.Notice < cells.LeastNotice {
		return usagef("cells check: --notice: takes a duration of at least %v", cells.LeastNotice)
	}
	if keep != "" {
		if rules.Keep, err = config.ParseDuration(keep); err != nil || rules.Keep < cells.LeastKeep {
			return usagef("cells check: --keep: takes a duration such as 30d, at least 24h1m: so long a request may be sent again under its key")
		}
	}
	return checkCells(words[0], old, rules)
}

// listCells prints what a file has.
func listCells(words []string) error {
	if len(words) > 1 {
		return usagef("cells ls: want one FILE at most")
	}
	var c cellsSettings
	if len(words) == 1 {
		c.File = words[0]
	} else if err := config.Load(&c); err != nil {
		return err
	}
	if c.File == "" {
		return usagef("cells ls: want a FILE, or the setting CELLS_FILE")
	}
	m, err := readCells(c.File)
	if err != nil {
		return err
	}
	now := m.At(time.Now())
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CELL\tSHARE OF NEW IDS\tDATABASE")
	for i, cell := range m.Cells() {
		share := "none"
		if slices.Contains(now, i) {
			share = fmt.Sprintf("1/%d", len(now))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", cell.Name, share, cell.URL)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Println()
	for _, p := range m.Periods() {
		fmt.Printf("since %s  %s\n", p.Stamp(), m.Names(p))
	}
	fmt.Printf("\nmap %s\n", m.Fingerprint())
	return nil
}

// readCells returns what a file of cells says. The error for a mistake begins as those of compilers do.
func readCells(name string) (*cells.Map, error) {
	m, err := cells.ReadFile(name)
	var mistake cells.Mistake
	if errors.As(err, &mistake) {
		return nil, fmt.Errorf("%s:%d: %s", name, max(mistake.Line, 1), mistake.Reason)
	}
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "CELLS_FILE: "), "CELLS_FILE "))
	}
	return m, nil
}

// checkCells says what a file has, and what it changes where it is to take the place of the file old, "" for none. It fails if that is not safe.
func checkCells(name, old string, rules cells.Rules) error {
	m, err := readCells(name)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %s, map %s\n", name, counted(len(m.Cells()), "cell"), counted(len(m.Periods()), "period"), m.Fingerprint())
	if old == "" {
		return nil
	}
	before, err := readCells(old)
	if err != nil {
		return err
	}
	now, said := time.Now(), rules
	said.Keep = before.Keep()
	if rules.Keep == 0 {
		rules.Keep = said.Keep
	}
	if refusals := m.Follows(before, now, rules); len(refusals) > 0 {
		lines := []string{fmt.Sprintf("%s may not take the place of %s:", name, old)}
		for _, r := range refusals {
			lines = append(lines, "  "+r.Error())
		}
		return errors.New(strings.Join(lines, "\n"))
	}
	differences := before.Differences(m)
	for _, d := range differences {
		fmt.Printf("ids %s go to %s in the place of %s\n", d.Stretch(), cells.Few(d.After), cells.Few(d.Before))
	}
	if len(differences) == 0 {
		fmt.Println("no id goes elsewhere")
	}
	for _, cell := range before.Added(m) {
		fmt.Printf("cell %s is new: it needs the schema before it takes ids\n", cell)
	}
	for _, cell := range m.Added(before) {
		fmt.Printf("cell %s goes: see first that its queues, its dead letters and its tables are empty\n", cell)
	}
	if len(m.Follows(before, now, said)) > 0 {
		fmt.Printf("services that run refuse it, because %s does not say keep; they take it when they start anew\n", old)
	}
	for _, cell := range before.Moved(m) {
		fmt.Printf("cell %s is at another place: its rows and its ledger must be there, too\n", cell)
	}
	return nil
}

// counted returns a number and what it counts.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// refuseCells returns an error if CELLS_FILE is set. A service or a command that passed it over would store into one database, or look into it,
// for what belongs into several.
func refuseCells(environ map[string]string) error {
	if environ["CELLS_FILE"] == "" {
		return nil
	}
	return errors.New("CELLS_FILE: is set, but this version stores into one database, POSTGRES_URL; only millrace cells reads the file")
}
