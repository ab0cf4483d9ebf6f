package cells

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/internal/testenv"
)

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// gauge returns the value of one of the metrics of a file.
func gauge(t testing.TB, f *File, name string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	if err := f.Register(r); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestAChangeIsTakenOnlyIfItIsSafe has a file watched that is changed four times: as it should be, without notice, with a mistake, and back.
func TestAChangeIsTakenOnlyIfItIsSafe(t *testing.T) {
	const (
		one  = "cell a postgres://u:hunter2@h/a\ncell b postgres://u:hunter2@h/b\nsince beginning a\n"
		soon = one + "since 2026-03-04T12:01:00Z a b\n"
		then = one + "since 2026-03-04T13:00:00Z a b\n"
	)
	name := filepath.Join(t.TempDir(), "cells")
	write(t, name, one)
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	now := moment(t, "2026-03-04T12:00:00Z")
	f.now = func() time.Time { return now }
	log := new(testenv.Output)
	again := make(chan os.Signal)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		f.Watch(ctx, again, slog.New(slog.NewTextHandler(log, nil)))
		close(done)
	}()
	defer func() { stop(); <-done }()
	for i, step := range []struct{ text, want, log string }{
		{then, "2026-03-04T13:00:00Z a b", "read the cells again"},
		{soon, "2026-03-04T13:00:00Z a b", "too short a notice: ids from 2026-03-04T12:01:00Z to 2026-03-04T13:00:00Z go from a to a b"},
		{then + "cell c postgres://u:hunter2@h/c/@d\n", "2026-03-04T13:00:00Z a b", "line 5: URL of c"},
		{one, "beginning a", "read the cells again"},
	} {
		before := len(log.String())
		write(t, name, step.text)
		testenv.Eventually(t, testenv.LeastWait, step.log, func() bool { return strings.Contains(log.String()[before:], step.log) })
		periods := f.Map().Periods()
		last := periods[len(periods)-1]
		if got := last.Stamp() + " " + f.Map().Names(last); got != step.want {
			t.Errorf("change %d: got %s, want %s", i+1, got, step.want)
		}
		want := 0.0
		if strings.HasPrefix(step.log, "read") {
			want = 1
		}
		if got := gauge(t, f, "millrace_cells_last_reload_success"); got != want {
			t.Errorf("change %d: success is %v, want %v", i+1, got, want)
		}
	}
	if got := gauge(t, f, "millrace_cells_reload_errors_total"); got != 2 {
		t.Errorf("%v errors are counted, want 2", got)
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log has a password: %s", log)
	}
}

// TestACellGoesFromARunningServiceOnceItsIDsAreOld has a service that runs while a file says how long ids are needed, and leaves a cell out.
func TestACellGoesFromARunningServiceOnceItsIDsAreOld(t *testing.T) {
	const (
		drained = "cell a\ncell b\nsince beginning a b\nsince 2026-03-01T00:00:00Z a\n"
		gone    = "cell a\nsince beginning a\n"
		keep    = "keep 2d\n"
	)
	name := filepath.Join(t.TempDir(), "cells")
	write(t, name, drained)
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	now := moment(t, "2026-03-02T12:00:00Z")
	f.now = func() time.Time { return now }
	for i, step := range []struct {
		text, refused string
		wait          time.Duration
	}{
		{gone, "no line keep says how long", 0},
		{gone + keep, "no line keep says how long", 0}, // what is in force counts
		{drained + keep, "", 0},
		{gone + keep, "which are needed until 2026-03-03T00:00:00Z", 0},
		{gone + keep, "", 12 * time.Hour},
	} {
		now = now.Add(step.wait)
		write(t, name, step.text)
		err := f.Reload()
		if (err == nil) != (step.refused == "") || err != nil && !strings.Contains(err.Error(), step.refused) {
			t.Errorf("change %d: got %v, want %s", i+1, err, step.refused)
		}
	}
	if cells := f.Map().Cells(); len(cells) != 1 {
		t.Errorf("got %d cells, want the one that is left", len(cells))
	}
}

// TestAURLInThePlaceOfAFileIsNotRepeated has names of files that hold a password.
func TestAURLInThePlaceOfAFileIsNotRepeated(t *testing.T) {
	for _, name := range []string{"postgres://u:hunter2@h/d", "host=h user=u password=hunter2", "user=u:hunter2 host=h", "u:hunter2@h"} {
		if _, err := Open(name); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "takes the name of a file") {
			t.Errorf("got %v", err)
		}
	}
}

func TestWithoutAFileThereIsNoMap(t *testing.T) {
	f, err := Open("")
	if err != nil || f.Map() != nil || f.Register(prometheus.NewRegistry()) != nil {
		t.Fatalf("got %v, %v", f, err)
	}
	f.Watch(context.Background(), nil, nil)
	for name, want := range map[string]string{filepath.Join(t.TempDir(), "none"): "no such file", t.TempDir(): "not a regular file"} {
		if _, err := Open(name); err == nil || !strings.HasPrefix(err.Error(), "CELLS_FILE") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}
