// Package model is a model of a record's way from a client into the table, where it must arrive once. It has no code of the
// product, and starts no goroutine.
//
// It is Millrace in small. There are up to two requests. One has a key, is large enough for two segments, and is sent again if no
// answer comes. There are two APIs, a queue, two workers, the ledger, and up to two faults. Each scope leaves one of these out, and
// every order of steps in it is tried. In some scopes there are two cells, databases with a ledger and a queue each, and the map of
// cells changes: ids of before the change are all in the first cell, and of those after it, the keyed request's are in the second. A step of the model is one step of Millrace too, such as PostgreSQL's commit, or RabbitMQ's
// taking of a message.
//
// To see what a rule is for, or whether a change of the protocol is safe: put the change into the model, and run its tests.
package model

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// rules are ways to break the rules that exactly-once rests on. The zero value breaks none, and is Millrace.
type rules struct {
	ackFirst     bool // the worker acknowledges before it commits
	noLedger     bool // the worker stores whatever it is delivered
	workerIDs    bool // ids are made by the worker: a redelivery has others
	answerFirst  bool // 202 before the confirm
	notMandatory bool // a frame that no queue takes is confirmed all the same
	anyQueue     bool // a frame that only another program's queue takes is confirmed
	movingBounds bool // where a request is cut into segments depends on what else is in the frame
	keyIsBase    bool // ids count up from the keys themselves; the other request's key is the next one
	forgetsBlind bool // the ledger forgets by a clock, and nobody notes what it has forgotten
	idsSuffice   bool // a segment that the ledger has forgotten counts as stored if its ids are in use

	cellByQueue bool // a frame goes to the queue of either cell, by turns
	cellByClock bool // the cell of a request follows from the time of its try, not from that of its key
	noNotice    bool // keys may be of after the change while an API does not know the change
	movesLate   bool // records without a key go to the other cell even after their frame was published
}

// The segments. The keyed request has the records 0, 1 and 2. It is always cut into a and b, or also into c and d if bounds move. A
// segment's base id is the id of its first record, so a and c have the same one. The other request has record 3.
const (
	segA     = 1 << iota // records 0, 1
	segB                 // record 2
	segC                 // record 0
	segD                 // records 1, 2
	segU                 // record 3
	segments = 5

	// What a frame says beside its segments.
	secondCell = 1 << 5 // it is for the second cell
	published  = 1 << 6 // it was, and may have been taken
)

// cellOf returns the cell that a frame is for, 0 or 1.
func cellOf(f uint8) uint8 { return f / secondCell % 2 }

var (
	recordsOf = [segments][]int{{0, 1}, {2}, {0}, {1, 2}, {3}}
	baseOf    = [segments]uint8{segA | segC, segB, segA | segC, segD, segU} // the segments with the same base id
)

// idOf returns the id of a record. The keyed request's first record has the id 0. So has the other request's record if both requests
// come under one key, by a client's mistake.
func idOf(r rules, in scope, record int) int {
	switch {
	case record == 3 && in.oneKey:
		return 0
	case record == 3 && r.keyIsBase:
		return 1
	}
	return record
}

const keyed, unkeyed = 0, 1 // requests

// scope bounds what happens.
type scope struct {
	tries  [2]uint8 // how often each request is sent; the one without a key is not sent again
	faults uint8
	oneKey bool // both requests come under one key
	forget bool // one of the faults may be that the ledger forgets all
	cells  bool // there are two cells, and their map changes
	byID   bool // the keyed request's records must be in the cell where they are looked for
}

// state is one state of everything. It is a map's key, so lists are in order, with zeros last.
//
// Situations that can't be told apart later are one state. A frame that was published and not taken is like one that was not
// published. A frame that the broker took, and whose confirm is lost, is in the queue, however late it was taken.
type state struct {
	clients [2]client
	apis    [2]api
	bound   [2]bool  // each cell's queue is there to take frames
	late    bool     // keys are of after the change of the map
	queue   [8]uint8 // frames
	workers [2]worker
	ledgers [2]uint8 // segments
	rows    [4]uint8 // how often each record is stored; 2 is twice or more
	letters uint8    // records that are dead letters, because others have their ids
	noted   bool     // that the ledger has forgotten
	faults  uint8    // left
}

type client struct {
	at, api, tries uint8
	late           bool // its ids are of after the change of the map
}

// Where a client is.
const (
	idle = iota
	waiting
	acked
	unanswered
)

// api is an API's memory.
type api struct {
	frames [5]uint8 // not confirmed
	wait   [2]uint8 // segments of each request that are not confirmed
	newMap bool     // it knows the change of the map
}

// worker holds a frame.
type worker struct{ frame, at uint8 }

const (
	none = iota
	delivered
	committed    // and not acknowledged
	acknowledged // and not committed: no worker of Millrace ever is
)

// step is what happens between two states. A fault is a step that need not happen: all work must come to an end without it.
type step struct {
	what  string
	frame uint8
	fault bool
}

func (s step) String() string {
	var names []string
	for i := range segments {
		if s.frame&(1<<i) != 0 {
			names = append(names, string("abcdu"[i]))
		}
	}
	if names == nil {
		return s.what
	}
	if cellOf(s.frame) == 1 {
		names = append(names, "for cell 2")
	}
	return fmt.Sprintf("%s %v", s.what, names)
}

// put adds a frame to a list, which must have room for it.
func put(list []uint8, f uint8) {
	if list[len(list)-1] != 0 {
		panic("the model's lists are too short")
	}
	list[len(list)-1] = f
	sort(list)
}

// cut takes a frame out of a list.
func cut(list []uint8, f uint8) {
	list[slices.Index(list, f)] = 0
	sort(list)
}

func sort(list []uint8) { slices.SortFunc(list, func(a, b uint8) int { return int(b) - int(a) }) }

// normal returns one and the same state for states whose differences don't matter.
func (s state) normal() state {
	for r := range s.clients {
		c := &s.clients[r]
		for i := range s.apis {
			if c.at != waiting || int(c.api) != i {
				s.apis[i].wait[r] = 0
			}
		}
		if c.at != waiting {
			c.api = 0
		}
	}
	slices.SortFunc(s.workers[:], func(x, y worker) int {
		return (int(y.frame)<<8 | int(y.at)) - (int(x.frame)<<8 | int(x.at))
	})
	return s
}

// store does what the worker's transaction does.
func (s *state) store(r rules, in scope, f uint8) {
	ledger := &s.ledgers[cellOf(f)]
	for i := range segments {
		if f&(1<<i) == 0 {
			continue
		}
		same := baseOf[i]
		if in.oneKey && same&(segA|segU) != 0 {
			same |= segA | segU
		}
		if *ledger&same != 0 && !r.noLedger && !r.workerIDs {
			if *ledger&(1<<i) == 0 { // under the same base with other records
				s.setAside(i)
			}
			continue
		}
		if s.noted {
			equal, other := s.known(r, in, i)
			if equal || other && r.idsSuffice {
				continue
			}
			if other {
				s.setAside(i)
				continue
			}
		}
		*ledger |= 1 << i
		for _, record := range recordsOf[i] {
			s.rows[record] = min(s.rows[record]+1, 2)
		}
	}
}

// setAside makes a segment's records dead letters.
func (s *state) setAside(segment int) {
	for _, record := range recordsOf[segment] {
		s.letters |= 1 << record
	}
}

// known looks among the rows and dead letters, and reports whether all records of a segment are there, and whether other records have
// any of their ids.
func (s *state) known(r rules, in scope, segment int) (equal, other bool) {
	equal = true
	for _, record := range recordsOf[segment] {
		if s.rows[record] > 0 || s.letters&(1<<record) != 0 {
			continue
		}
		equal = false
		for q, n := range s.rows {
			other = other || n > 0 && q != record && idOf(r, in, q) == idOf(r, in, record)
		}
	}
	return equal, other
}

// next calls yield with each step that is possible, and the state after it.
func (s state) next(r rules, in scope, yield func(step, state)) {
	for request, c := range s.clients {
		if c.at == waiting {
			n := s
			n.clients[request].at = unanswered
			yield(step{what: "the client waits no longer", frame: []uint8{segA | segB, segU}[request]}, n)
		}
		if (c.at == idle || c.at == unanswered) && c.tries < in.tries[request] {
			s.send(r, in, request, yield)
		}
	}
	for i := range s.apis {
		s.stepAPI(r, in, i, yield)
	}
	for i := range s.workers {
		s.stepWorker(r, in, i, yield)
	}
	if in.cells {
		s.changeMap(r, yield)
	}
	if in.forget && s.ledgers != [2]uint8{} && s.faults > 0 {
		n := s
		n.ledgers, n.noted = [2]uint8{}, !r.forgetsBlind
		n.faults--
		yield(step{what: "the ledger forgets", fault: true}, n)
	}
	for c, bound := range s.bound {
		if bound && s.faults > 0 && (c == 0 || in.cells) {
			n := s
			n.bound[c] = false
			n.faults--
			yield(step{what: "the queue is deleted while it is empty", fault: true}, n)
		}
	}
}

// changeMap yields the steps of a change of the map: each API reads it, and then time goes on until keys may be of after the change.
func (s state) changeMap(r rules, yield func(step, state)) {
	all := true
	for i, a := range s.apis {
		if all = all && a.newMap; !a.newMap {
			n := s
			n.apis[i].newMap = true
			yield(step{what: fmt.Sprintf("API %d reads the new map", i+1)}, n)
		}
	}
	if !s.late && (all || r.noNotice) {
		s.late = true
		yield(step{what: "keys may be of after the change from now on"}, s)
	}
}

// cellsFor returns the cells that an API may choose for a client's request, in bits of a frame: one under a key, and any that takes
// records where there is none.
func (s state) cellsFor(r rules, in scope, i, request int, c client) []uint8 {
	late := c.late
	if r.cellByClock {
		late = s.late
	}
	switch {
	case !in.cells || !late || !s.apis[i].newMap:
		return []uint8{0}
	case request == keyed:
		return []uint8{secondCell}
	}
	return []uint8{0, secondCell}
}

// send has a client send its request to either API. The API puts the request's segments into frames: into one or one each, and into a
// frame that waits to be published or a new one.
func (s state) send(r rules, in scope, request int, yield func(step, state)) {
	ways := [][]uint8{{segU}}
	if request == keyed {
		ways = [][]uint8{{segA, segB}}
		if r.movingBounds {
			ways = append(ways, []uint8{segC, segD})
		}
	}
	c := s.clients[request]
	if c.at, c.tries = waiting, c.tries+1; c.tries == 1 {
		c.late = s.late
	}
	for i := range s.apis {
		c.api = uint8(i)
		for _, cell := range s.cellsFor(r, in, i, request, c) {
			for _, way := range ways {
				s.put(request, c, cell, way, yield)
			}
		}
	}
}

// put has an API take a request, cut into the segments of way, for a cell.
func (s state) put(request int, c client, cell uint8, way []uint8, yield func(step, state)) {
	for pieces := range len(way) { // frames beside the first
		frames := []uint8{cell, cell}[:pieces+1]
		var all uint8
		for j, segment := range way {
			frames[min(j, pieces)] |= segment
			all |= segment
		}
		n := s
		n.clients[request] = c
		a := &n.apis[c.api]
		a.wait[request] = all
		by := step{what: fmt.Sprintf("a request comes to API %d", c.api+1), frame: all | cell}
		for _, f := range frames[1:] {
			put(a.frames[:], f)
		}
		before := *a
		put(a.frames[:], frames[0])
		yield(by, n)
		for _, open := range s.apis[c.api].frames {
			if open != 0 && open&(all|published) == 0 && cellOf(open) == cellOf(cell) {
				*a = before
				cut(a.frames[:], open)
				put(a.frames[:], open|frames[0])
				yield(by, n)
				break
			}
		}
	}
}

// stepAPI yields the steps of an API: frames are taken, an answer is given, the API dies.
func (s state) stepAPI(r rules, in scope, i int, yield func(step, state)) {
	name := fmt.Sprintf("API %d", i+1)
	for j, f := range s.apis[i].frames {
		if f == 0 || j > 0 && f == s.apis[i].frames[j-1] {
			continue
		}
		s.publish(r, in, i, f, f&^published, yield)
		if r.cellByQueue && in.cells {
			s.publish(r, in, i, f, f&^published^secondCell, yield)
		}
		if in.cells && s.late && s.apis[i].newMap && f&^(secondCell|published) == segU && (f&published == 0 || r.movesLate) {
			n := s
			cut(n.apis[i].frames[:], f)
			put(n.apis[i].frames[:], f&^published^secondCell)
			yield(step{what: name + " gives a frame's records ids of another cell", frame: f ^ secondCell}, n)
		}
	}
	for request, c := range s.clients {
		if c.at == waiting && int(c.api) == i && (s.apis[i].wait[request] == 0 || r.answerFirst) {
			n := s
			n.clients[request].at = acked
			yield(step{what: name + " answers 202", frame: []uint8{segA | segB, segU}[request]}, n)
		}
	}
	if s.faults > 0 && s.apis[i].frames[0] != 0 {
		s.faults--
		s.apis[i] = api{wait: [2]uint8{segA | segB, segU}, newMap: s.apis[i].newMap} // whoever waits for its answer waits in vain
		yield(step{what: name + " dies", fault: true}, s)
	}
}

// publish yields what may become of a frame of an API, when it is published as f.
func (s state) publish(r rules, in scope, i int, own, f uint8, yield func(step, state)) {
	name := fmt.Sprintf("API %d", i+1)
	n := s
	a := &n.apis[i]
	confirm := func() {
		cut(a.frames[:], own)
		for request := range a.wait {
			a.wait[request] &^= f
		}
	}
	switch {
	case s.bound[cellOf(f)]:
		put(n.queue[:], f)
		unknown := n
		confirm()
		yield(step{what: "the broker takes a frame and confirms it to " + name, frame: f}, n)
		if s.faults > 0 {
			unknown.faults--
			if in.cells {
				cut(unknown.apis[i].frames[:], own)
				put(unknown.apis[i].frames[:], own|published)
			}
			yield(step{what: "the broker takes a frame, and its confirm does not reach " + name, frame: f, fault: true}, unknown)
		}
	case r.anyQueue:
		confirm()
		yield(step{what: "the broker gives a frame to another program's queue and confirms it to " + name, frame: f}, n)
	case r.notMandatory:
		confirm()
		yield(step{what: "the broker drops a frame and confirms it to " + name, frame: f}, n)
	default:
		n.bound[cellOf(f)] = true
		yield(step{what: "the broker returns a frame to " + name + ", which declares the queue", frame: f}, n)
	}
}

// stepWorker yields the steps of a worker: it gets a frame, commits, acknowledges, dies.
func (s state) stepWorker(r rules, in scope, i int, yield func(step, state)) {
	w := s.workers[i]
	n := s
	switch w.at {
	case none:
		if i > 0 && s.workers[i-1].at == none {
			return // one idle worker is like the other
		}
		for j, f := range s.queue {
			if f != 0 && (j == 0 || f != s.queue[j-1]) {
				n := s
				cut(n.queue[:], f)
				n.workers[i] = worker{f, delivered}
				yield(step{what: "a worker gets a frame", frame: f}, n)
			}
		}
		return
	case delivered:
		if n.workers[i].at = acknowledged; r.ackFirst {
			yield(step{what: "a worker acknowledges", frame: w.frame}, n)
			break
		}
		n.store(r, in, w.frame)
		n.workers[i].at = committed
		yield(step{what: "a worker commits", frame: w.frame}, n)
	case committed:
		n.workers[i] = worker{}
		yield(step{what: "a worker acknowledges", frame: w.frame}, n)
	case acknowledged:
		n.store(r, in, w.frame)
		n.workers[i] = worker{}
		yield(step{what: "a worker commits", frame: w.frame}, n)
	}
	if s.faults > 0 {
		s.faults--
		n = s
		if n.workers[i] = (worker{}); w.at != acknowledged {
			put(n.queue[:], w.frame)
		}
		yield(step{what: "a worker, or its connection, dies", frame: w.frame, fault: true}, n)
		if w.at == delivered {
			n = s
			n.store(r, in, w.frame)
			yield(step{what: "a worker commits and does not get to know", frame: w.frame, fault: true}, n)
		}
	}
}

// violation returns what is wrong with a state, or "". In a quiescent state nothing is left to do.
func (s state) violation(r rules, in scope, quiescent bool) string {
	for record, n := range s.rows {
		request := keyed
		if record == 3 {
			request = unkeyed
		}
		c := s.clients[request]
		switch {
		case n > 1:
			return fmt.Sprintf("record %d is stored twice", record)
		case n > 0 && c.tries == 0:
			return fmt.Sprintf("record %d is stored and was never sent", record)
		case n == 0 && c.at == acked && quiescent && s.letters&(1<<record) == 0:
			return fmt.Sprintf("record %d is acked and lost", record)
		}
		for q := range record {
			if n > 0 && s.rows[q] > 0 && idOf(r, in, q) == idOf(r, in, record) {
				return fmt.Sprintf("records %d and %d are stored under one id", q, record)
			}
		}
	}
	for c, ledger := range s.ledgers {
		if late := s.clients[keyed].late; in.byID && ledger&(segA|segB|segC|segD) != 0 && late != (c == 1) {
			return fmt.Sprintf("a record is in cell %d, and is looked for in the other", c+1)
		}
	}
	return ""
}

// explore visits each state that can be reached, the nearest first. It returns the shortest history that ends in a violation.
func explore(r rules, in scope) (violation string, history []step, states int) {
	type origin struct {
		from int32
		step step
	}
	first := state{bound: [2]bool{true, true}, faults: in.faults}
	index := map[state]int32{first: 0}
	all := []state{first}
	origins := []origin{{from: -1}}
	back := func(i int32) (steps []step) {
		for ; origins[i].from >= 0; i = origins[i].from {
			steps = append(steps, origins[i].step)
		}
		slices.Reverse(steps)
		return steps
	}
	var edges [][2]int32 // without faults
	var good []int32     // quiescent
	for i := int32(0); int(i) < len(all); i++ {
		quiescent := true
		all[i].next(r, in, func(by step, n state) {
			n = n.normal()
			j, seen := index[n]
			if !seen {
				j = int32(len(all))
				index[n] = j
				all = append(all, n)
				origins = append(origins, origin{i, by})
			}
			if !by.fault {
				quiescent = false
				edges = append(edges, [2]int32{i, j})
			}
		})
		if wrong := all[i].violation(r, in, quiescent); wrong != "" {
			return wrong, back(i), len(all)
		}
		if quiescent {
			good = append(good, i)
		}
	}
	// Every quiescent state is good. Does a way without faults lead from each state to a quiescent one?
	before := make([][]int32, len(all))
	for _, e := range edges {
		before[e[1]] = append(before[e[1]], e[0])
	}
	ends := make([]bool, len(all))
	for len(good) > 0 {
		i := good[len(good)-1]
		good = good[:len(good)-1]
		if ends[i] {
			continue
		}
		ends[i] = true
		good = append(good, before[i]...)
	}
	if i := slices.Index(ends, false); i >= 0 {
		return "there is no end to it", back(int32(i)), len(all)
	}
	return "", nil, len(all)
}

// tell returns a history as text, a line a step.
func tell(history []step) string {
	var b strings.Builder
	for i, s := range history {
		fmt.Fprintf(&b, "\n%3d  %v", i+1, s)
	}
	return b.String()
}

// scopes are small enough to be explored in seconds. They are large enough for each broken rule to show.
var scopes = []scope{
	{tries: [2]uint8{2, 0}, faults: 2},
	{tries: [2]uint8{1, 1}, faults: 2},
	{tries: [2]uint8{1, 1}, faults: 2, oneKey: true, forget: true},
	{tries: [2]uint8{2, 0}, faults: 1, cells: true, byID: true},
	{tries: [2]uint8{0, 1}, faults: 2, cells: true},
}

func init() {
	if os.Getenv("MILLRACE_LONG_TESTS") != "" { // 15 s with the race detector
		scopes = append(scopes, scope{tries: [2]uint8{2, 1}, faults: 1}, scope{tries: [2]uint8{1, 1}, faults: 1, cells: true, byID: true})
	}
}

func TestTheProtocolLosesAndDoublesNothing(t *testing.T) {
	for _, in := range scopes {
		t.Run(fmt.Sprint(in), func(t *testing.T) {
			began := time.Now()
			wrong, history, states := explore(rules{}, in)
			if wrong != "" {
				t.Fatalf("%s:%s", wrong, tell(history))
			}
			t.Logf("%d states in %v", states, time.Since(began).Round(time.Millisecond))
		})
	}
}

func TestEachRuleOfTheProtocolIsNeeded(t *testing.T) {
	cells := scope{tries: [2]uint8{2, 0}, cells: true}
	for _, plant := range []struct {
		name  string
		rules rules
		in    scope
		want  string
	}{
		{"ack before commit", rules{ackFirst: true}, scopes[0], "lost"},
		{"no ledger", rules{noLedger: true}, scopes[0], "twice"},
		{"ids made in the worker", rules{workerIDs: true}, scopes[0], "twice"},
		{"202 before the confirm", rules{answerFirst: true}, scopes[0], "lost"},
		{"not mandatory", rules{notMandatory: true}, scopes[0], "lost"},
		{"content with any queue", rules{anyQueue: true}, scopes[0], "lost"},
		{"segments that depend on the frame", rules{movingBounds: true}, scopes[0], "twice"},
		{"the base of the ids is the key itself", rules{keyIsBase: true}, scopes[1], "under one id"},
		{"a ledger that forgets by a clock", rules{forgetsBlind: true}, scopes[2], "twice"},
		{"ids compared, not contents", rules{idsSuffice: true}, scopes[2], "lost"},
		{"the cell by the queue", rules{cellByQueue: true}, cells, "twice"},
		{"the cell by the queue, and a look by id", rules{cellByQueue: true}, scopes[3], "looked for"},
		{"the cell by the clock", rules{cellByClock: true}, cells, "twice"},
		{"a map without notice", rules{noNotice: true}, cells, "twice"},
		{"a map without notice, and a look by id", rules{noNotice: true}, scopes[3], "looked for"},
		{"another cell after the publish", rules{movesLate: true}, scopes[4], "twice"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			wrong, history, _ := explore(plant.rules, plant.in)
			if !strings.Contains(wrong, plant.want) {
				t.Fatalf("got %q, want a record that is %s", wrong, plant.want)
			}
			t.Logf("%s:%s", wrong, tell(history))
		})
	}
}
