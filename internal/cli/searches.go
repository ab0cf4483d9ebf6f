package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	neturl "net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/internal/rfc3339"
	"millrace/query"
	"millrace/query/language"
	"millrace/query/searches"
)

const searchesHelp = `Looks at a file of searches, as SEARCHES_FILE names it (deploy/ALERTS.md).

  check FILE        says what is wrong with it and in which line, or what it has. With --now it also asks the query service at QUERY_URL for which
                    groups each condition holds now.
  test FILE [NAME…] says when the searches, or those of these names, would have rung. It asks the query service at QUERY_URL, tells no receiver,
                    and changes nothing.

  --from T, --to T  test: from when to when, as --since and --until of millrace logs (default the last hour)
  -o text|json      test: as lines of text, or of JSON

check ends with status 0 if the file is in order. test ends with status 0 if something would have rung, 1 if nothing, 2 if the test failed.

  millrace searches check searches.yaml
  millrace searches test searches.yaml checkout-errors --from 1d`

// runSearches runs millrace searches.
func runSearches(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] != "check" && args[0] != "test" {
		return usagef("searches: want one of check FILE, test FILE [NAME…]")
	}
	action := args[0]
	flags := newFlags("searches " + action)
	from, to, form := "1h", "now", "text"
	isNow := false
	if action == "test" {
		flags.StringVar(&from, "from", from, "")
		flags.StringVar(&to, "to", to, "")
		flags.StringVar(&form, "o", form, "")
	} else {
		flags.BoolVar(&isNow, "now", false, "")
	}
	words, err := wordsAndFlags(flags, args[1:])
	if err != nil {
		return err
	}
	if len(words) == 0 || action == "check" && len(words) > 1 {
		return usagef("searches %s: want one FILE", action)
	}
	if err := takesOneOf("searches test", "o", form, "text", "json"); err != nil {
		return err
	}
	file, err := searches.ReadFile(words[0], query.SearchTerms())
	if err != nil {
		return fileMistakes(words[0], err)
	}
	if action == "check" {
		return checkSearches(ctx, words[0], file, isNow)
	}
	chosen, err := chosenSearches(file, words[1:])
	if err != nil {
		return err
	}
	now := time.Now()
	first, isTime := momentOf(from, false, now)
	last, isTimeToo := momentOf(to, true, now)
	if !isTime || !isTimeToo || first.After(last) {
		return usagef("searches test: --from %q and --to %q: takes two times, the first one before the other, such as 1d, today, 2026-03-04 or RFC 3339", from, to)
	}
	return testSearches(ctx, chosen, first, last, form)
}

// wordsAndFlags parses args, in which words and flags may stand in any order, and returns the words.
func wordsAndFlags(flags *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := parseFlags(flags, args, -1); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			return words, nil
		}
		words, args = append(words, flags.Arg(0)), flags.Args()[1:]
	}
}

// fileMistakes returns the error for a file that is not taken. Each mistake has a line, as compilers write them.
func fileMistakes(name string, err error) error {
	var mistakes searches.Mistakes
	if !errors.As(err, &mistakes) {
		return errors.New(strings.TrimPrefix(err.Error(), "SEARCHES_FILE: "))
	}
	lines := []string{fmt.Sprintf("%s: %d mistakes", name, len(mistakes))}
	if len(mistakes) == 1 {
		lines = []string{name + ": one mistake"}
	}
	for _, m := range mistakes {
		lines = append(lines, fmt.Sprintf("%s:%d: %s", name, max(m.Line, 1), m.Reason))
	}
	return errors.New(strings.Join(lines, "\n"))
}

// chosenSearches returns the searches of these names that have conditions; all of them if there are no names.
func chosenSearches(file *searches.File, names []string) (chosen []*searches.Search, err error) {
	for _, s := range file.Searches {
		if !s.CountsAlone() && (len(names) == 0 || slices.Contains(names, s.Name)) {
			chosen = append(chosen, s)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(chosen, func(s *searches.Search) bool { return s.Name == name }) {
			return nil, usagef("searches test: the file has no search %q with a condition", name)
		}
	}
	return chosen, nil
}

// momentOf returns the time that a flag gives, as --since takes it.
func momentOf(text string, isEnd bool, now time.Time) (at time.Time, ok bool) {
	value, ok := windowTime(text, isEnd, now)
	switch {
	case !ok:
		return at, false
	case strings.HasPrefix(value, "now"):
		at, _, ok = language.ParseTime(value, now)
		return at, ok
	case numberPattern.MatchString(value):
		n, err := strconv.ParseInt(value, 10, 64)
		if n < 100_000_000_000 { // seconds, as the service tells them from milliseconds
			n *= 1000
		}
		return time.UnixMilli(n), err == nil
	}
	at, _, ok = rfc3339.Parse(value)
	return at, ok
}

// serviceAnswers asks the query service.
type serviceAnswers struct{ client *queryClient }

// Answer implements searches.Answers.
func (a serviceAnswers) Answer(ctx context.Context, route string, parameters neturl.Values) ([]byte, error) {
	var answer json.RawMessage
	err := a.client.get(ctx, route, parameters, 0, &answer)
	return answer, err
}

// checkSearches tells what a file has, and if isNow, for which groups its conditions hold.
func checkSearches(ctx context.Context, name string, file *searches.File, isNow bool) error {
	alerting, err := chosenSearches(file, nil)
	if err != nil {
		return err
	}
	fmt.Printf("%s: in order: %d searches, %d with a condition, %d receivers\n", name, len(file.Searches), len(alerting), len(file.Receivers))
	if !isNow {
		return nil
	}
	client, err := newQueryClient()
	if err != nil {
		return err
	}
	for _, s := range alerting {
		groups, err := s.HoldsNow(ctx, serviceAnswers{client}, time.Now())
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s: holds for %d groups\n", s.Name, s.Condition.Text, len(groups))
		for _, g := range groups {
			group, figures := g.Describe()
			fmt.Println(printable(strings.TrimRight("  "+strings.TrimSpace(group+"  "+figures), " ")))
		}
	}
	return nil
}

// rungLine is a line of JSON that tells when a search would have rung.
type rungLine struct {
	Time    time.Time                  `json:"time"`
	Search  string                     `json:"search"`
	What    string                     `json:"what"`
	Group   map[string]*string         `json:"group"`
	Pattern string                     `json:"pattern,omitempty"`
	Count   int64                      `json:"count"`
	Value   map[string]json.RawMessage `json:"value,omitempty"`
}

// testSearches tells when searches would have rung.
func testSearches(ctx context.Context, chosen []*searches.Search, first, last time.Time, form string) error {
	client, err := newQueryClient()
	if err != nil {
		return searchError{err}
	}
	rung := 0
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for _, s := range chosen {
		ofThis, began := 0, time.Now()
		n, err := s.Rehearse(ctx, serviceAnswers{client}, first, last, func(due time.Time, changes []searches.Change) {
			for _, c := range changes {
				if c.What == "fired" {
					ofThis++
				}
				if form == "json" {
					_ = out.Encode(rungLine{due, s.Name, c.What, c.Group.Named(), c.Group.Text, c.Group.Count, c.Group.Value}) // standard output may be closed
					continue
				}
				group, figures := c.Group.Describe()
				line := fmt.Sprintf("%s  %s  %-8s", due.Local().Format("2006-01-02 15:04:05"), s.Name, c.What)
				for _, more := range []string{group, figures} {
					if more != "" {
						line += "  " + more
					}
				}
				fmt.Println(printable(line))
			}
		})
		if ctx.Err() != nil {
			return commandEnded(130)
		}
		if err != nil {
			return searchError{err}
		}
		rung += ofThis
		fmt.Fprintf(os.Stderr, "millrace: %s: would have rung %d times in %d evaluations, which took %v\n", s.Name, ofThis, n, time.Since(began).Round(time.Millisecond))
	}
	if rung == 0 {
		return commandEnded(1)
	}
	return nil
}
