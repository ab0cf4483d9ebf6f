package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/cells"
	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/record"
	"millrace/internal/scan"
	"millrace/internal/service"
)

// testCells are Cells of a file, whose publishers have RabbitMQ stood in for. Nothing confirms for a cell once its publisher is stopped.
type testCells struct {
	*Cells
	name  string
	stop  map[string]func()
	ready *service.Ready

	mu  sync.Mutex
	got map[string][]frame.Segment // by the cell
}

func newTestCells(t *testing.T, text string) *testCells {
	c := &testCells{name: filepath.Join(t.TempDir(), "cells"), stop: make(map[string]func()), got: make(map[string][]frame.Segment), ready: new(service.Ready)}
	c.write(t, text)
	file, err := cells.Open(c.name)
	if err != nil {
		t.Fatal(err)
	}
	c.Cells = NewCells(CellsOptions{File: file, Ready: c.ready, Open: func(cell string, ready Readiness, base func() uuid.UUID) *Publisher {
		p := New(Options{
			Broker: config.Broker{Name: "logs." + cell, MaxBytes: 1 << 20}, FrameBytes: 64 << 10, Timeout: time.Minute, Metrics: NewMetrics(service.NewRegistry()), Ready: ready,
			Base: base, Probe: true,
		})
		c.stop[cell] = sync.OnceFunc(p.ConfirmAll(func(segments []frame.Segment, _ []byte) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.got[cell] = append(c.got[cell], segments...)
		}))
		return p
	}})
	t.Cleanup(func() {
		for _, stop := range c.stop {
			stop()
		}
	})
	return c
}

func (c *testCells) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(c.name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lose makes a cell's publisher one that has no connection.
func (c *testCells) lose(cell string) {
	p := c.publishers[cell]
	c.stop[cell]()
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.lanes)
	p.reportLocked()
}

// send hands one record to the cells and waits for its confirm.
func (c *testCells) send(key *uuid.UUID) (uuid.UUID, error) {
	line := []byte("{\"a\":1}\n")
	tickets, err := c.Add(nil, &record.List{Body: scan.Body{NDJSON: line, Pieces: []scan.Piece{{End: len(line), Records: 1}}}}, key)
	if err != nil {
		return uuid.UUID{}, err
	}
	return tickets[0].Base, Wait(tickets)
}

func TestRecordsGoToTheCellOfTheirIDs(t *testing.T) {
	c := newTestCells(t, "cell a\ncell b\ncell c\nsince beginning a b c\n")
	m := c.File.Map()
	for i := range 300 {
		var key *uuid.UUID
		if i%2 == 0 {
			base := frame.BaseOfKey(frame.NewBase())
			key = &base
		} else if i%3 == 0 {
			time.Sleep(sameBaseFor) // or one cell would have all
		}
		if base, err := c.send(key); err != nil || key != nil && base != *key {
			t.Fatalf("got %s, %v", base, err)
		}
	}
	for i, cell := range m.Cells() {
		if len(c.got[cell.Name]) < 40 {
			t.Errorf("%d segments went to cell %s, want about a hundred", len(c.got[cell.Name]), cell.Name)
		}
		for _, s := range c.got[cell.Name] {
			if m.Of(s.Base) != i {
				t.Errorf("segment %s went to cell %s, and leads to %s", s.Base, cell.Name, m.Cells()[m.Of(s.Base)].Name)
			}
		}
	}
}

// TestACellThatIsDownTakesNoneAndHoldsUpNone has a cell without a connection, then one that refuses, then both.
func TestACellThatIsDownTakesNoneAndHoldsUpNone(t *testing.T) {
	c := newTestCells(t, "cell a\ncell b\ncell c\nsince beginning a b c\n")
	keyIn := func(cell int) *uuid.UUID {
		base := c.File.Map().BaseIn(cell)
		return &base
	}
	c.lose("a")
	c.publishers["b"].refused(&Frame{done: make(chan struct{}), attempts: 1, begun: time.Now()}, time.Now())
	for range 50 {
		if base, err := c.send(nil); err != nil || c.File.Map().Of(base) != 2 {
			t.Fatalf("without a key: got %s, %v, want it in c", base, err)
		}
		time.Sleep(sameBaseFor / 2)
	}
	if _, err := c.send(keyIn(0)); !errors.Is(err, ErrCellDown) || !errors.Is(err, ErrNoBroker) || !strings.Contains(err.Error(), "(cell a)") {
		t.Errorf("under a key of a: got %v", err)
	}
	for _, cell := range []int{1, 2} {
		if base, err := c.send(keyIn(cell)); err != nil || c.File.Map().Of(base) != cell { // b may have room again
			t.Errorf("under a key of cell %d: got %s, %v", cell, base, err)
		}
	}
	if err := c.Usable(); err != nil {
		t.Errorf("two cells are up: %v", err)
	}
	if reasons := c.ready.Reasons(); len(reasons) > 0 {
		t.Errorf("not ready: %v", reasons)
	}
	c.lose("c")
	if base, err := c.send(nil); err != nil || c.File.Map().Of(base) != 1 {
		t.Errorf("without a key, b alone is up: got %s, %v", base, err)
	}
	c.lose("b")
	if _, err := c.send(nil); !errors.Is(err, ErrNoBroker) || !errors.Is(c.Usable(), ErrNoBroker) {
		t.Errorf("all are down: got %v, %v", err, c.Usable())
	}
	if c.ready.Holds("cells") != 0 {
		t.Error("all are down, and the service is ready")
	}
}

// TestACellThatComesIsOpenedBeforeItsIDs has a map with another cell to come, and a cell that goes.
func TestACellThatComesIsOpenedBeforeItsIDs(t *testing.T) {
	before := "cell a\ncell b\nsince beginning a b\n"
	c := newTestCells(t, before)
	soon := time.Now().Add(cells.LeastNotice + time.Second).UTC().Format(time.RFC3339)
	c.write(t, "cell z\n"+before+"since "+soon+" z\n")
	if err := c.File.Reload(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		base, err := c.send(nil)
		if name := c.File.Map().Cells()[c.File.Map().Of(base)].Name; err != nil || name == "z" {
			t.Fatalf("got %s in %s, %v", base, name, err)
		}
	}
	key := c.File.Map().BaseIn(0) // of a clock that is ahead
	if base, err := c.send(&key); err != nil || base != key {
		t.Fatalf("a key of the cell to come: got %s, %v", base, err)
	}
	if got := fmt.Sprint(c.got["z"]); got != fmt.Sprint([]frame.Segment{{Base: key, Records: 1}}) {
		t.Errorf("cell z got %s, want the key's segment alone", got)
	}
}

// TestCellsStop has cells run without RabbitMQ and stopped.
func TestCellsStop(t *testing.T) {
	c := newTestCells(t, "cell a\nsince beginning a\n")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	watched := make(chan string, 1)
	c.Watch = func(ctx context.Context, cell string) {
		watched <- cell
		<-ctx.Done()
	}
	go func() {
		c.Run(ctx, ctx)
		close(done)
	}()
	if cell := <-watched; cell != "a" {
		t.Errorf("cell %s is watched, want a", cell)
	}
	stop()
	<-done
	if _, err := c.send(nil); !errors.Is(err, ErrStopping) {
		t.Errorf("after the end: got %v", err)
	}
}
