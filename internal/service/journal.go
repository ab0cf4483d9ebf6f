package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
)

// journal is a handler for the journal: each line begins with its priority, as sd-daemon(3) has it, and has no time,
// since the journal keeps its own. There is one inner handler for each priority.
type journal [4]slog.Handler

func newJournal(w io.Writer, inner func(io.Writer) slog.Handler) journal {
	var j journal
	for i, priority := range []string{"<7>", "<6>", "<4>", "<3>"} {
		j[i] = inner(prefixed{priority, w})
	}
	return j
}

// withoutTime leaves a record's time out.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.Attr{}
	}
	return a
}

func (j journal) at(l slog.Level) slog.Handler {
	switch {
	case l < slog.LevelInfo:
		return j[0]
	case l < slog.LevelWarn:
		return j[1]
	case l < slog.LevelError:
		return j[2]
	}
	return j[3]
}

func (j journal) Enabled(ctx context.Context, l slog.Level) bool { return j.at(l).Enabled(ctx, l) }

func (j journal) Handle(ctx context.Context, r slog.Record) error {
	return j.at(r.Level).Handle(ctx, r)
}

func (j journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range j {
		j[i] = j[i].WithAttrs(attrs)
	}
	return j
}

func (j journal) WithGroup(name string) slog.Handler {
	for i := range j {
		j[i] = j[i].WithGroup(name)
	}
	return j
}

// prefixed puts prefix before each write; slog's handlers write one line at a time.
type prefixed struct {
	prefix string
	w      io.Writer
}

func (p prefixed) Write(line []byte) (int, error) {
	n, err := p.w.Write(append([]byte(p.prefix), line...))
	return max(0, n-len(p.prefix)), err
}

// Notify tells the service manager a state such as READY=1 or STOPPING=1. Where NOTIFY_SOCKET is not set nobody is
// there to be told. See sd_notify(3).
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", name)
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
