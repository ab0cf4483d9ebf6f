package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"millrace/internal/config"
	"millrace/internal/send"
)

const sendHelp = `Sends the lines of the files to the API at API_URL, or those of standard input if there is no FILE or it is -. Files may be compressed by
gzip, zstd or bzip2. Each line becomes a record, blank ones are passed over. A file is sent from where an earlier run has ended: run it again
after whatever happened to it, to the API or to the network, and each line is stored once.

  -f, --follow    go on with what is appended to the files, also when they are rotated or truncated; ends with Ctrl-C or SIGTERM
  --parse FORMAT  auto (default): a line that is a JSON object is the record, of any other the record is {"message":"…"}
                  json: what is no JSON object is refused; text: every line is a message
                  nginx, apache: their access logs (common, combined, with a virtual host before) and error logs
                  syslog: RFC 5424 and 3164, with a priority or, as in files, without; logfmt: key=value pairs
                  A line that is not of these four formats is stored as a message, and counted
  --fields F=V,…  every record that lacks these fields gets them
  --refused FILE  a line of JSON for each line that is not stored: file, line, error, text; appended
  --unsure FILE   the same for lines of which it is not known whether they are stored: an answer was missing, and the key is older than a day,
                  or the lines are gone, or came by standard input. Without it send ends where it finds such lines in a file
  --give-up D     end if one request has no good answer for so long (default 10m, with -f never)
  --again         send the files from their beginning, whatever was sent of them before
  --positions DIR where the positions are (default $STATE_DIRECTORY, $XDG_STATE_HOME/millrace, ~/.local/state/millrace)
  --parallel N    most requests at once (default 4)
  --compress auto|on|off
                  zstd for the bodies; auto (default): unless the API is on this machine

How far a file was sent is known by its device, its inode and its first bytes, so it may be renamed. Standard input has no position: what is
sent twice is stored twice, unless it was the answer alone that was lost. The refused may be named twice after a kill.
Standard error has a progress bar on a terminal, and one line at the end.
Ends with status 0 if all lines are stored, 1 if some are refused or unsure, 2 if the sending failed, 130 after Ctrl-C without -f.

  millrace send app.log old/*.log.gz
  millrace send -f --parse nginx --fields service=web /var/log/nginx/access.log
  kubectl logs deploy/shop | millrace send --refused refused.ndjson
  API_KEY=$(cat key) API_URL=https://logs.example.com millrace send app.ndjson`

// sendSettings are the settings of millrace send.
type sendSettings struct {
	URL config.APIURL `env:"API_URL" envDefault:"http://localhost:8080" help:"The API to which lines are sent."`
	Key config.APIKey `env:"API_KEY" help:"The key that it wants, with the scope write; empty: none is shown."`
}

// sendLines runs millrace send.
func sendLines(ctx context.Context, args []string) error {
	c := send.Config{Agent: "millrace/" + version, Stdin: os.Stdin, Progress: func(int64) {}}
	flags := newFlags("send")
	flags.BoolVar(&c.Follow, "f", false, "")
	flags.BoolVar(&c.Follow, "follow", false, "")
	flags.StringVar(&c.Format, "parse", "auto", "")
	flags.StringVar(&c.Fields, "fields", "", "")
	flags.StringVar(&c.Refused, "refused", "", "")
	flags.StringVar(&c.Unsure, "unsure", "", "")
	flags.DurationVar(&c.GiveUp, "give-up", 0, "")
	flags.BoolVar(&c.Again, "again", false, "")
	flags.StringVar(&c.Folder, "positions", "", "")
	flags.IntVar(&c.Parallel, "parallel", 4, "")
	compress := flags.String("compress", "auto", "")
	var err error
	if c.Files, err = parseMixedFlags(flags, args); err != nil {
		return err
	}
	switch {
	case c.Parallel < 1 || c.Parallel > 64:
		return usagef("send: --parallel takes a whole number from 1 to 64")
	case c.GiveUp < 0:
		return usagef("send: --give-up: takes a duration above 0")
	case c.Follow && (len(c.Files) == 0 || slices.Contains(c.Files, "-")):
		return usagef("send: -f goes with files; standard input is sent as it comes anyway")
	case c.Follow && c.Again:
		return usagef("send: -f goes on where it ended, so it does not go with --again")
	case strings.ContainsFunc(c.Fields, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return usagef("send: --fields holds a control character")
	}
	for _, err := range []error{
		takesOneOf("send", "-parse", c.Format, send.Formats()...),
		takesOneOf("send", "-compress", *compress, "auto", "on", "off"),
	} {
		if err != nil {
			return err
		}
	}
	if c.GiveUp == 0 && !c.Follow {
		c.GiveUp = 10 * time.Minute
	}
	var settings sendSettings
	if err := config.Load(&settings); err != nil {
		return searchError{err}
	}
	c.URL, c.Key = settings.URL, settings.Key
	c.Compress = *compress == "on" || *compress == "auto" && !isLoopback(c.URL)
	if c.Folder == "" {
		if c.Folder, err = positionsFolder(); err != nil {
			return searchError{err}
		}
	}
	began := time.Now()
	show := newSendProgress(c.Files, c.Follow)
	c.Note, c.Progress = show.note, show.add
	result, err := send.Run(ctx, c)
	show.end()
	fmt.Fprintln(os.Stderr, "millrace: "+sendSummary(result, time.Since(began)))
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		if !c.Follow {
			return commandEnded(130)
		}
	case err != nil:
		return searchError{errors.New(printable(err.Error()))}
	}
	if result.Refused+result.Unsure > 0 {
		return commandEnded(1)
	}
	return nil
}

// isLoopback reports whether a URL leads to this machine.
func isLoopback(raw config.APIURL) bool {
	u, err := neturl.Parse(string(raw))
	return err == nil && config.IsLoopback(u.Hostname())
}

// positionsFolder returns the folder of the position files that is taken if none is named.
func positionsFolder() (string, error) {
	if folder := os.Getenv("STATE_DIRECTORY"); folder != "" { // of a unit of systemd
		first, _, _ := strings.Cut(folder, ":")
		return first, nil
	}
	if folder := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(folder) {
		return filepath.Join(folder, "millrace"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("--positions DIR says where the positions are to be: %w", err)
	}
	return filepath.Join(home, ".local", "state", "millrace"), nil
}

// sendSummary says in one line what became of the lines.
func sendSummary(r send.Result, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d lines stored, %d refused", r.Stored, r.Refused)
	for _, more := range []struct {
		n    int64
		what string
	}{
		{r.Unparsed, "of the stored are not of the format and are messages"},
		{r.Unsure, "may be stored or not"},
		{r.Pending, "had no answer yet: the next run sends them again, and they are stored once"},
	} {
		if more.n > 0 {
			fmt.Fprintf(&b, ", %d %s", more.n, more.what)
		}
	}
	seconds := max(took.Seconds(), 0.001)
	fmt.Fprintf(&b, "; %.1f MiB in %.1f s, %.0f lines/s", float64(r.Bytes)/(1<<20), took.Seconds(), float64(r.Stored+r.Refused)/seconds)
	return b.String()
}

// sendProgress shows on a terminal how far the sending is. Many goroutines may use it at once.
type sendProgress struct {
	mu  sync.Mutex
	bar *progressbar.ProgressBar // nil if standard error is no terminal
}

// newSendProgress returns the progress of files.
func newSendProgress(files []string, follow bool) *sendProgress {
	if !isTerminal(os.Stderr) {
		return &sendProgress{}
	}
	total := int64(0)
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil || follow {
			total = 0
			break
		}
		total += info.Size()
	}
	return &sendProgress{bar: progressbar.NewOptions64(cmp.Or(total, -1), progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription("sending"),
		progressbar.OptionShowBytes(true), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())}
}

// add counts bytes that are settled.
func (p *sendProgress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Add64(n) // more than there was: the file has grown
	}
}

// note tells people something, above the bar.
func (p *sendProgress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear() // it is drawn again
	}
	fmt.Fprintln(os.Stderr, "millrace: "+printable(fmt.Sprintf(format, args...)))
}

// end takes the bar away.
func (p *sendProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear() // the summary follows
	}
}
