package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	neturl "net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const logsHelp = `Asks the query service at QUERY_URL for the records that Q finds, and prints the newest of them, the oldest of these first, as
journalctl does. Without Q it finds all. Several words are one query: level:error timeout. The language is that of the page
(query/README.md). A query that begins with - goes behind --.

  -n N            how many records (default 100, with -f 10), or all
  -f              go on with what comes; ends with Ctrl-C
  -r              the newest first
  --since T       from when on (default 24 hours before --until): 1h, 2d, today, yesterday, 2026-03-04, "2026-03-04 15:04", RFC 3339, now-1h30m
  --until T       until when
  --clock C       whose times count: time, when it happened (default), or inserted_at, when it came
  -C N            N records before and after each one found; -B and -A one side alone
  --same F,…      for -C, -A, -B: only records that have the same values of these fields
  -o text|json|csv
                  text (default): local time, level, service, message, other fields; json: each record on a line, as stored;
                  csv: time,id,level,service,message,data
  --fields F,…    the columns of csv beside time and id
  --utc           times of the text form in UTC
  --color auto|always|never
                  auto (default): colours on a terminal, unless NO_COLOR is set
  --budget D      answer after this time at the latest, with what is found until then; standard error says how far the search came

On a terminal fields that are wider than 160 characters are cut, and control characters are escaped. In a pipe a record is a line.
Ends with status 0 if something was found, 1 if nothing, 2 if the search failed.

  millrace logs --since 1h level:error
  millrace logs -f service:checkout -o json | jq -r .data.message
  millrace logs -n all --since today -o json 'path:/api/*' | jq -s 'map(.data.duration_ms) | add / length'
  millrace logs -C 5 --same service '"connection reset"' --color always | less -R
  API_KEY=$(cat key) QUERY_URL=https://logs.example.com millrace logs -n 20 -- -level:debug`

const (
	// largestPage is the most records of a page that the service takes.
	largestPage = 1000
	// pageBudget is how long the service may search for a page before it tells how far it came.
	pageBudget = 3 * time.Second
	// longestBudget is the longest that the service takes.
	longestBudget = time.Minute
	// heldBytes bounds what is held in memory in order to print the oldest first.
	heldBytes = 512 << 20
)

// logsFlags are the flags of millrace logs.
type logsFlags struct {
	follow, reverse, utc  bool
	number                string
	since, until, clock   string
	before, after, around int
	same, fields          string
	form, colour          string
	budget                time.Duration
}

// wanted is what a search asks for.
type wanted struct {
	q          string
	parameters neturl.Values // the window, the clock and q
	number     int           // how many records; 0: all
	budget     time.Duration // of the whole search; 0: until its end
}

// attachedNumber is a flag with its number behind it, as people write them.
var attachedNumber = regexp.MustCompile(`^-[nABC][0-9]+$`)

// parseSearchFlags parses flags that may stand between the words of a query, and returns the query. All behind -- is the query's.
func parseSearchFlags(flags *flag.FlagSet, args []string) (q string, err error) {
	words, err := parseMixedFlags(flags, args)
	return strings.Join(words, " "), err
}

// parseMixedFlags parses flags that may stand between other arguments, and returns those. All behind -- is no flag.
func parseMixedFlags(flags *flag.FlagSet, args []string) (words []string, err error) {
	for len(args) > 0 {
		if attachedNumber.MatchString(args[0]) {
			args = append([]string{args[0][:2], args[0][2:]}, args[1:]...)
		}
		if args[0] == "--" {
			words = append(words, args[1:]...)
			break
		}
		if !strings.HasPrefix(args[0], "-") || args[0] == "-" {
			words, args = append(words, args[0]), args[1:]
			continue
		}
		// One flag a time: flags.Parse would pass over -- without a word.
		n := 1
		if name := strings.TrimLeft(args[0], "-"); !strings.Contains(name, "=") && len(args) > 1 {
			f := flags.Lookup(name)
			if f == nil && strings.ContainsAny(name, ":\" ") {
				return nil, usagef("%s: a query that begins with - goes behind --", flags.Name())
			}
			if b, ok := any(f).(*flag.Flag); ok && b != nil {
				if isBool, ok := b.Value.(interface{ IsBoolFlag() bool }); !ok || !isBool.IsBoolFlag() {
					n = 2
				}
			}
		}
		if err := parseFlags(flags, args[:n], 0); err != nil {
			return nil, err
		}
		args = args[n:]
	}
	return words, nil
}

// takesOneOf returns an error if a flag has a value that is not among those allowed.
func takesOneOf(command, name, got string, allowed ...string) error {
	if slices.Contains(allowed, got) {
		return nil
	}
	return usagef("%s: -%s: got %q, takes %s", command, name, got, strings.Join(allowed, ", "))
}

// searchLogs runs millrace logs.
func searchLogs(ctx context.Context, args []string) error {
	var f logsFlags
	flags := newFlags("logs")
	flags.BoolVar(&f.follow, "f", false, "")
	flags.BoolVar(&f.follow, "follow", false, "")
	flags.BoolVar(&f.reverse, "r", false, "")
	flags.BoolVar(&f.reverse, "reverse", false, "")
	flags.BoolVar(&f.utc, "utc", false, "")
	flags.StringVar(&f.number, "n", "", "")
	flags.StringVar(&f.since, "since", "", "")
	flags.StringVar(&f.until, "until", "", "")
	flags.StringVar(&f.clock, "clock", "", "")
	flags.IntVar(&f.before, "B", 0, "")
	flags.IntVar(&f.after, "A", 0, "")
	flags.IntVar(&f.around, "C", 0, "")
	flags.StringVar(&f.same, "same", "", "")
	flags.StringVar(&f.fields, "fields", "", "")
	flags.StringVar(&f.form, "o", "text", "")
	flags.StringVar(&f.colour, "color", "auto", "")
	flags.DurationVar(&f.budget, "budget", 0, "")
	q, err := parseSearchFlags(flags, args)
	if err != nil {
		return err
	}
	if f.before == 0 {
		f.before = f.around
	}
	if f.after == 0 {
		f.after = f.around
	}
	w, err := f.wanted(q, time.Now())
	if err != nil {
		return err
	}
	client, err := newQueryClient()
	if err != nil {
		return searchError{err}
	}
	p := newPrinter(f.form, f.colour, f.utc)
	if f.fields != "" {
		p.columns = strings.Split(f.fields, ",")
	}
	s := &logSearch{client: client, wanted: w, printer: p, flags: f, notes: os.Stderr}
	return s.end(ctx, s.run(ctx))
}

// wanted returns what the flags ask for. It fails if they contradict each other.
func (f *logsFlags) wanted(q string, now time.Time) (wanted, error) {
	w := wanted{q: q, parameters: make(neturl.Values), budget: f.budget}
	hasContext := f.before != 0 || f.after != 0
	const mostContext = 500
	switch {
	case f.before < 0 || f.after < 0 || f.before > mostContext || f.after > mostContext:
		return w, usagef("logs: -A, -B and -C take a whole number from 0 to %d", mostContext)
	case f.follow && f.until != "":
		return w, usagef("logs: -f has no end, so it takes no --until")
	case f.follow && f.reverse:
		return w, usagef("logs: -f shows what comes last, so it does not go with -r")
	case hasContext && (f.follow || f.reverse):
		return w, usagef("logs: -A, -B and -C go neither with -f nor with -r")
	case f.same != "" && !hasContext:
		return w, usagef("logs: --same goes with -A, -B or -C")
	case f.fields != "" && f.form != "csv":
		return w, usagef("logs: --fields goes with -o csv")
	case f.budget < 0:
		return w, usagef("logs: --budget: takes a duration above 0")
	}
	for _, err := range []error{
		takesOneOf("logs", "o", f.form, "text", "json", "csv"),
		takesOneOf("logs", "-color", f.colour, "auto", "always", "never"),
		takesOneOf("logs", "-clock", f.clock, "", "time", "inserted_at"),
	} {
		if err != nil {
			return w, err
		}
	}
	switch {
	case f.number == "all":
	case f.number == "" && f.follow:
		w.number = 10
	case f.number == "":
		w.number = 100
	default:
		n, err := strconv.Atoi(f.number)
		if err != nil || n < 0 || n == 0 && !f.follow {
			return w, usagef("logs: -n: got %q, takes a whole number above 0, or all", f.number)
		}
		w.number = n
	}
	if f.follow && f.number == "0" {
		w.number = -1
	}
	return w, setWindow(w.parameters, "logs", q, f.since, f.until, f.clock, now)
}

// setWindow sets the parameters of a search that have a value.
func setWindow(parameters neturl.Values, command, q, since, until, clock string, now time.Time) error {
	for _, bound := range []struct {
		flag, parameter, text string
		isEnd                 bool
	}{{"since", "from", since, false}, {"until", "to", until, true}} {
		if bound.text == "" {
			continue
		}
		value, ok := windowTime(bound.text, bound.isEnd, now)
		if !ok {
			return usagef("%s: --%s: got %q, takes a duration before now such as 1h or 2d, today, yesterday, 2026-03-04, \"2026-03-04 15:04\", RFC 3339 or now-1h30m", command, bound.flag, bound.text)
		}
		parameters.Set(bound.parameter, value)
	}
	for name, value := range map[string]string{"q": q, "clock": clock} {
		if value != "" {
			parameters.Set(name, value)
		}
	}
	return nil
}

var (
	durationPattern = regexp.MustCompile(`^([0-9]+[smhdw])+$`)
	numberPattern   = regexp.MustCompile(`^[0-9]{9,}$`)
)

// windowTime returns a bound of a window as the service takes it. Days and times without a zone are local; a day as an end is taken
// whole.
func windowTime(text string, isEnd bool, now time.Time) (value string, ok bool) {
	switch {
	case durationPattern.MatchString(text):
		return "now-" + text, true
	case strings.HasPrefix(text, "now"), numberPattern.MatchString(text):
		return text, true // the service knows
	}
	y, m, d := now.Date()
	day := time.Date(y, m, d, 0, 0, 0, 0, now.Location())
	switch text {
	case "today":
	case "yesterday":
		day = day.AddDate(0, 0, -1)
	default:
		var err error
		if day, err = time.ParseInLocation(time.DateOnly, text, now.Location()); err != nil {
			return localTime(text, now.Location())
		}
	}
	if isEnd {
		day = day.AddDate(0, 0, 1)
	}
	return day.Format(time.RFC3339), true
}

// localTime returns a time of the day as the service takes it.
func localTime(text string, zone *time.Location) (value string, ok bool) {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.Format(time.RFC3339Nano), true
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if at, err := time.ParseInLocation(layout, text, zone); err == nil {
			return at.Format(time.RFC3339Nano), true
		}
	}
	return "", false
}

// logSearch is one run of millrace logs. One goroutine alone uses it.
type logSearch struct {
	wanted
	client  *queryClient
	printer *printer
	flags   logsFlags
	notes   *os.File // where people are told what is not an answer

	found bool
}

// end returns the error to end with. What was printed is written out first.
func (s *logSearch) end(ctx context.Context, err error) error {
	if flushErr := s.printer.out.Flush(); err == nil {
		err = flushErr
	}
	switch {
	case ctx.Err() != nil:
		return commandEnded(130) // as a shell has it for a program that Ctrl-C ended
	case err != nil:
		return searchFailed(err, s.q)
	case !s.found:
		return commandEnded(1)
	}
	return nil
}

// note tells people something that is no part of the answer.
func (s *logSearch) note(format string, args ...any) {
	fmt.Fprintf(s.notes, "millrace: "+format+"\n", args...)
}

// run searches and prints.
func (s *logSearch) run(ctx context.Context) error {
	if s.flags.follow {
		return s.followLogs(ctx)
	}
	s.printer.marks = s.flags.before > 0 || s.flags.after > 0
	give := func(r *logRecord) error {
		s.found = true
		return s.printer.print(r, true)
	}
	if s.flags.reverse || s.number == 0 && !s.printer.marks {
		return s.pages(ctx, !s.flags.reverse, give)
	}
	held, err := s.newest(ctx)
	if err != nil {
		return err
	}
	if s.printer.marks {
		return s.printContext(ctx, held)
	}
	for _, r := range held {
		if err := give(r); err != nil {
			return err
		}
	}
	return nil
}

// newest returns the newest records of the search, the oldest first.
func (s *logSearch) newest(ctx context.Context) (held []*logRecord, err error) {
	size := 0
	err = s.pages(ctx, false, func(r *logRecord) error {
		held = append(held, r)
		if size += 2 * len(r.line); size > heldBytes { // its data is held beside its line
			return fmt.Errorf("the oldest can't come first: the records have more than %d MiB; -r prints them as they are found, as does -n all", heldBytes>>20)
		}
		return nil
	})
	slices.Reverse(held)
	return held, err
}

// pages calls give with the records of the search, page by page, as many as are wanted.
func (s *logSearch) pages(ctx context.Context, ascending bool, give func(*logRecord) error) error {
	parameters := make(neturl.Values)
	for name, values := range s.parameters {
		parameters[name] = values
	}
	if ascending {
		parameters.Set("order", "asc")
	}
	budget, given := pageBudget, 0
	began := time.Now()
	for first := true; ; first = false {
		limit := largestPage
		if s.number > 0 {
			limit = min(limit, s.number-given)
		}
		parameters.Set("limit", strconv.Itoa(limit))
		thisBudget := budget
		if s.budget > 0 {
			thisBudget = max(min(budget, s.budget-time.Since(began)), 50*time.Millisecond)
		}
		thisBudget = thisBudget.Round(time.Millisecond)
		parameters.Set("budget", thisBudget.String())
		var page logsPage
		if err := s.client.get(ctx, "/logs", parameters, thisBudget, &page); err != nil {
			return err
		}
		for _, r := range page.Logs {
			if r == nil {
				return errors.New("the answer has null in place of a record")
			}
			if err := give(r); err != nil {
				return err
			}
		}
		given += len(page.Logs)
		if first && len(page.Logs) == 0 {
			for _, h := range page.Hints {
				s.note("%s: %s", printable(h.Text), printable(h.Q))
			}
		}
		if page.Next == "" || s.number > 0 && given >= s.number {
			return nil
		}
		if s.budget > 0 && time.Since(began) >= s.budget {
			s.note("the time of --budget is used up: searched %s", searchedUpTo(page.SearchedTo, ascending, s.printer.zone))
			return nil
		}
		if page.Next == parameters.Get("cursor") { // it came nowhere in its time
			budget = min(2*budget, longestBudget)
		} else {
			budget = pageBudget
		}
		if first && s.printer.form == "text" || ascending || s.flags.reverse {
			if err := s.printer.out.Flush(); err != nil {
				return err
			}
		}
		parameters.Set("cursor", page.Next)
	}
}

// searchedUpTo says in words how far a search came.
func searchedUpTo(text string, ascending bool, zone *time.Location) string {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return "a part of the window"
	}
	direction := "back to "
	if ascending {
		direction = "up to "
	}
	return direction + at.In(zone).Format("2006-01-02 15:04:05 -07:00")
}

// logContext is the answer to GET /logs/{id}/context.
type logContext struct {
	Before []*logRecord `json:"before"`
	After  []*logRecord `json:"after"`
}

// printContext prints the records that were found, each between those before and after it. As grep does, it prints none twice, and a
// line between groups that do not follow each other.
func (s *logSearch) printContext(ctx context.Context, held []*logRecord) error {
	found, printed := make(map[string]bool), make(map[string]bool)
	for _, r := range held {
		found[r.ID] = true
	}
	for i, r := range held {
		s.found = true
		// One more than is printed tells whether the record before has been printed.
		parameters := neturl.Values{"before": {strconv.Itoa(min(s.flags.before+1, 500))}, "after": {strconv.Itoa(s.flags.after)}}
		if clock := s.parameters.Get("clock"); clock != "" {
			parameters.Set("clock", clock)
		}
		if q := s.sameQuery(r); q != "" {
			parameters.Set("q", q)
		}
		var around logContext
		if err := s.client.get(ctx, "/logs/"+neturl.PathEscape(r.ID)+"/context", parameters, 0, &around); err != nil {
			return err
		}
		follows := slices.ContainsFunc(append(slices.Clone(around.Before), r), func(r *logRecord) bool { return r != nil && printed[r.ID] })
		if i > 0 && !follows {
			if err := s.printer.separate(); err != nil {
				return err
			}
		}
		before := around.Before[max(0, len(around.Before)-s.flags.before):]
		for _, r := range slices.Concat(before, []*logRecord{r}, around.After) {
			if r == nil || printed[r.ID] {
				continue
			}
			printed[r.ID] = true
			if err := s.printer.print(r, found[r.ID]); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameQuery returns the query for records that have what r has in the fields of --same.
func (s *logSearch) sameQuery(r *logRecord) string {
	if s.flags.same == "" {
		return ""
	}
	fields := flatten(r.Data)
	var conditions []string
	for name := range strings.SplitSeq(s.flags.same, ",") {
		if value := valueOf(fields, r.Data, []string{name}); value != "" {
			conditions = append(conditions, name+":"+quoteForSearch(value))
		}
	}
	return strings.Join(conditions, " ")
}

// quoteForSearch returns a value in quotes as the search language has them, which are those of JSON.
func quoteForSearch(s string) string {
	var b strings.Builder
	quotes := json.NewEncoder(&b)
	quotes.SetEscapeHTML(false)
	_ = quotes.Encode(s) // a builder takes every string
	return strings.TrimSuffix(b.String(), "\n")
}
