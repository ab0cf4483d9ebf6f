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

// journal is a slog.Handler for systemd's journal. Each line begins with its priority, in the form of sd-daemon(3).
// It has no time, because the journal keeps its own. There is one inner handler for each priority.
type journal [4]slog.Handler

// newJournal returns a journal that writes to w by the handlers that inner makes.
func newJournal(w io.Writer, inner func(io.Writer) slog.Handler) journal {
	var j journal
	for i, priority := range []string{"<7>", "<6>", "<4>", "<3>"} {
		j[i] = inner(prefixed{priority, w})
	}
	return j
}

// withoutTime is a slog.HandlerOptions.ReplaceAttr that removes a record's time.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.Attr{}
	}
	return a
}

// handlerFor returns the inner handler for a level.
func (j journal) handlerFor(l slog.Level) slog.Handler {
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

func (j journal) Enabled(ctx context.Context, l slog.Level) bool {
	return j.handlerFor(l).Enabled(ctx, l)
}

func (j journal) Handle(ctx context.Context, r slog.Record) error {
	return j.handlerFor(r.Level).Handle(ctx, r)
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

// Notify tells the service manager a state such as READY=1 or STOPPING=1. It does nothing if NOTIFY_SOCKET is not
// set. See sd_notify(3).
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
