// Package protocol is a model of how a record gets from a client to the table once, checked in full. It has no code of
// the product, and starts no goroutine.
//
// It is the protocol in small, every interleaving of it: two requests, one of them keyed, large enough for two segments and
// sent again after no answer; two APIs, a queue, two workers, the ledger, and two faults. What the model calls one step is
// one in Millrace too: PostgreSQL's commit, RabbitMQ's taking of a message.
package protocol

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// rules are what the protocol rests on. The zero value is Millrace.
type rules struct {
	ackFirst     bool // the worker acknowledges before it commits
	noLedger     bool // the worker stores whatever it is delivered
	workerIDs    bool // ids are made by the worker: a redelivery has others
	answerFirst  bool // 202 before the confirm
	notMandatory bool // what has no queue is confirmed all the same
	movingBounds bool // where a request is cut into segments depends on what else is in the frame
}

// The segments. The keyed request has the records 0, 1, 2 and is cut into a and b, always; or, where bounds move, also into
// c and d. A segment's base id is that of its first record, so a and c have the same one. The other request is record 3.
const (
	segA     = 1 << iota // records 0, 1
	segB                 // record 2
	segC                 // record 0
	segD                 // records 1, 2
	segU                 // record 3
	segments = 5
)

var (
	recordsOf = [segments][]int{{0, 1}, {2}, {0}, {1, 2}, {3}}
	baseOf    = [segments]uint8{segA | segC, segB, segA | segC, segD, segU} // those with the same base
)

const (
	keyed, unkeyed = 0, 1 // requests
	tries          = 2    // of the keyed one; the other can't be sent again
	faults         = 2    // as many as happen
)

// state is one state of everything. It is a map's key: lists are arrays in order, zeros last.
type state struct {
	clients [2]struct{ at, api, tries uint8 } // by request; at: see below
	apis    [2]api
	bound   bool      // there is a queue for what is published
	late    [10]uint8 // frames that their API has given up, and the broker may yet read
	ready   [12]uint8 // frames in the queue
	workers [2]worker
	ledger  uint8    // segments
	rows    [4]uint8 // how often each record is stored; 2 is twice or more
	faults  uint8    // left
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
	frames [6]published
	wait   [2]uint8 // segments of each request that are not confirmed
}

// published is a frame: its segments, and how far its publish is.
type published struct{ segments, at uint8 }

const (
	unsent = iota
	sent   // on its way to the broker
	taken  // the confirm is on its way back
)

// worker holds a frame.
type worker struct{ frame, at uint8 }

const (
	none = iota
	delivered
	committed    // and not acknowledged
	acknowledged // and not committed, which no worker of Millrace ever is
)

// step is what happens between two states. A fault is nobody's duty: what must go on goes on without.
type step struct {
	what  string
	who   uint8
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
	text := fmt.Sprintf(s.what, s.who+1)
	if len(names) > 0 {
		text += " [" + strings.Join(names, " ") + "]"
	}
	return text
}

// put adds a frame to a list; there must be room.
func put(list []uint8, f uint8) {
	if list[len(list)-1] != 0 {
		panic("the model's lists are too short")
	}
	list[len(list)-1] = f
	slices.SortFunc(list, func(a, b uint8) int { return int(b) - int(a) })
}

// cut takes a frame out.
func cut(list []uint8, f uint8) {
	list[slices.Index(list, f)] = 0
	slices.SortFunc(list, func(a, b uint8) int { return int(b) - int(a) })
}

// normal makes states equal that differ in nothing that matters.
func (s state) normal() state {
	for i := range s.apis {
		a := &s.apis[i]
		slices.SortFunc(a.frames[:], func(x, y published) int {
			return (int(y.segments)<<8 | int(y.at)) - (int(x.segments)<<8 | int(x.at))
		})
		for r, c := range s.clients {
			if c.at != waiting || int(c.api) != i {
				a.wait[r] = 0
			}
		}
	}
	for r := range s.clients {
		if c := &s.clients[r]; c.at != waiting {
			c.api = 0
		}
	}
	slices.SortFunc(s.workers[:], func(x, y worker) int {
		return (int(y.frame)<<8 | int(y.at)) - (int(x.frame)<<8 | int(x.at))
	})
	return s
}

// store is the worker's transaction.
func (s *state) store(r rules, f uint8) {
	for i := range segments {
		if f&(1<<i) == 0 {
			continue
		}
		if s.ledger&baseOf[i] != 0 && !r.noLedger && !r.workerIDs {
			continue // stored before; or, under the same base with other records, a dead letter
		}
		s.ledger |= 1 << i
		for _, record := range recordsOf[i] {
			s.rows[record] = min(s.rows[record]+1, 2)
		}
	}
}

// next calls yield with every step that is possible, and the state behind it.
func (s state) next(r rules, yield func(step, state)) {
	for request, c := range s.clients {
		if c.at == waiting {
			n := s
			n.clients[request].at = unanswered
			yield(step{what: []string{"the client of the keyed request waits no longer", "the other client waits no longer"}[request]}, n)
		}
		if c.at == idle || c.at == unanswered && request == keyed && c.tries < tries {
			s.send(r, request, yield)
		}
	}
	for i := range s.apis {
		s.stepAPI(r, i, yield)
	}
	for i, f := range s.late {
		if f == 0 || i > 0 && f == s.late[i-1] {
			continue
		}
		n := s
		cut(n.late[:], f)
		if n.bound {
			put(n.ready[:], f)
		}
		yield(step{what: "the broker takes a frame late", frame: f}, n)
	}
	for i := range s.workers {
		s.stepWorker(r, i, yield)
	}
	if s.faults == 0 {
		return
	}
	s.faults--
	if s.bound {
		n := s
		n.bound = false
		yield(step{what: "the queue is unbound", fault: true}, n)
	}
	n := s
	for i := range n.apis {
		n.lose(i, false)
	}
	for i := range n.workers {
		n.giveBack(i)
	}
	yield(step{what: "the broker restarts", fault: true}, n)
}

// send has a client send its request to either API, which adds its segments to frames: together or apart, to one that
// waits to be published, or to new ones.
func (s state) send(r rules, request int, yield func(step, state)) {
	ways := [][]uint8{{segU}}
	if request == keyed {
		ways = [][]uint8{{segA, segB}}
		if r.movingBounds {
			ways = append(ways, []uint8{segC, segD})
		}
	}
	for i := range s.apis {
		for _, way := range ways {
			for _, apart := range []bool{false, true}[:len(way)] {
				for _, join := range []bool{false, true} {
					n := s
					var all uint8
					frames := []uint8{0}
					for _, segment := range way {
						if all |= segment; apart && frames[0] != 0 {
							frames = append(frames, 0)
						}
						frames[len(frames)-1] |= segment
					}
					a := &n.apis[i]
					if join {
						open := slices.IndexFunc(a.frames[:], func(f published) bool { return f.segments != 0 && f.at == unsent && f.segments&all == 0 })
						if open < 0 {
							continue
						}
						a.frames[open].segments |= frames[0]
						frames = frames[1:]
					}
					for _, f := range frames {
						free := slices.IndexFunc(a.frames[:], func(f published) bool { return f.segments == 0 })
						a.frames[free] = published{f, unsent}
					}
					a.wait[request] = all
					c := &n.clients[request]
					c.at, c.api, c.tries = waiting, uint8(i), c.tries+1
					yield(step{what: []string{"the keyed request comes to API %d", "the other request comes to API %d"}[request], who: uint8(i), frame: all}, n)
				}
			}
		}
	}
}

func (s state) stepAPI(r rules, i int, yield func(step, state)) {
	who := uint8(i)
	for j, f := range s.apis[i].frames {
		if f.segments == 0 || j > 0 && f == s.apis[i].frames[j-1] {
			continue
		}
		n := s
		a := &n.apis[i]
		switch f.at {
		case unsent:
			a.frames[j].at = sent
			yield(step{what: "API %d publishes", who: who, frame: f.segments}, n)
		case sent:
			switch {
			case s.bound:
				put(n.ready[:], f.segments)
				a.frames[j].at = taken
				yield(step{what: "the broker takes what API %d published", who: who, frame: f.segments}, n)
			case r.notMandatory:
				a.frames[j].at = taken
				yield(step{what: "the broker drops what API %d published, and confirms", who: who, frame: f.segments}, n)
			default:
				a.frames[j].at = unsent
				n.bound = true
				yield(step{what: "the broker returns what API %d published, which declares the queue anew", who: who, frame: f.segments}, n)
			}
		case taken:
			a.frames[j] = published{}
			for request := range a.wait {
				a.wait[request] &^= f.segments
			}
			yield(step{what: "the confirm reaches API %d", who: who, frame: f.segments}, n)
		}
	}
	for request, c := range s.clients {
		if c.at == waiting && int(c.api) == i && (s.apis[i].wait[request] == 0 || r.answerFirst) {
			n := s
			n.clients[request].at = acked
			yield(step{what: []string{"API %d answers 202 to the keyed request", "API %d answers 202 to the other request"}[request], who: who}, n)
		}
	}
	if s.faults == 0 || s.apis[i].frames[0].segments == 0 {
		return
	}
	s.faults--
	for _, late := range []bool{false, true} {
		n := s
		n.lose(i, late)
		yield(step{what: "API %d loses its connection", who: who, fault: true}, n)
		n = s
		n.lose(i, late)
		n.apis[i] = api{wait: [2]uint8{segA | segB, segU}} // whoever waits for it waits in vain
		yield(step{what: "API %d dies", who: who, fault: true}, n)
	}
}

// lose ends an API's connection: what was published and not confirmed is to be published again, and may be read from
// the connection yet.
func (s *state) lose(i int, late bool) {
	for j := range s.apis[i].frames {
		f := &s.apis[i].frames[j]
		if f.at == sent && late {
			put(s.late[:], f.segments)
		}
		f.at = unsent
	}
}

func (s state) stepWorker(r rules, i int, yield func(step, state)) {
	w := s.workers[i]
	n := s
	switch w.at {
	case none:
		if i > 0 && s.workers[i-1].at == none {
			return // one idle worker is like the other
		}
		for j, f := range s.ready {
			if f == 0 || j > 0 && f == s.ready[j-1] {
				continue
			}
			n := s
			cut(n.ready[:], f)
			n.workers[i] = worker{f, delivered}
			yield(step{what: "a worker gets", frame: f}, n)
		}
		return
	case delivered:
		if r.ackFirst {
			n.workers[i].at = acknowledged
			yield(step{what: "a worker acknowledges", frame: w.frame}, n)
			break
		}
		n.store(r, w.frame)
		n.workers[i].at = committed
		yield(step{what: "a worker commits", frame: w.frame}, n)
	case committed:
		n.workers[i] = worker{}
		yield(step{what: "a worker acknowledges", frame: w.frame}, n)
	case acknowledged:
		n.store(r, w.frame)
		n.workers[i] = worker{}
		yield(step{what: "a worker commits", frame: w.frame}, n)
	}
	if s.faults == 0 {
		return
	}
	s.faults--
	n = s
	n.giveBack(i)
	n.workers[i] = worker{}
	yield(step{what: "a worker dies", frame: w.frame, fault: true}, n)
	if w.at == delivered {
		n = s
		n.store(r, w.frame)
		yield(step{what: "a worker commits and does not get to know", frame: w.frame, fault: true}, n)
	}
}

// giveBack has the broker deliver anew what a worker has not acknowledged.
func (s *state) giveBack(i int) {
	if w := s.workers[i]; w.at == delivered || w.at == committed {
		put(s.ready[:], w.frame)
		s.workers[i] = worker{}
	}
}

// violation says what is wrong with a state: at once, or with one in which nothing is left to be done.
func (s state) violation(quiescent bool) string {
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
		case n == 0 && c.at == acked && quiescent:
			return fmt.Sprintf("record %d is acked and lost", record)
		}
	}
	return ""
}

// explore visits every state that can be reached, nearest first. It returns the shortest history that ends in a violation.
func explore(r rules) (violation string, history []step, states int) {
	type origin struct {
		from int32
		step step
	}
	first := state{bound: true, faults: faults}
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
		all[i].next(r, func(by step, n state) {
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
		if wrong := all[i].violation(quiescent); wrong != "" {
			return wrong, back(i), len(all)
		}
		if quiescent {
			good = append(good, i)
		}
	}
	// Every quiescent state is good now. Can each state come to one?
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

func tell(history []step) string {
	var b strings.Builder
	for i, s := range history {
		fmt.Fprintf(&b, "\n%3d  %v", i+1, s)
	}
	return b.String()
}

func TestTheProtocolLosesAndDoublesNothing(t *testing.T) {
	wrong, history, states := explore(rules{})
	if wrong != "" {
		t.Fatalf("%s:%s", wrong, tell(history))
	}
	t.Logf("%d states", states)
}

func TestEachRuleOfTheProtocolIsNeeded(t *testing.T) {
	for _, plant := range []struct {
		name  string
		rules rules
		want  string
	}{
		{"ack before commit", rules{ackFirst: true}, "lost"},
		{"no ledger", rules{noLedger: true}, "twice"},
		{"ids made in the worker", rules{workerIDs: true}, "twice"},
		{"202 before the confirm", rules{answerFirst: true}, "lost"},
		{"not mandatory", rules{notMandatory: true}, "lost"},
		{"segments that depend on the frame", rules{movingBounds: true}, "twice"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			wrong, history, _ := explore(plant.rules)
			if !strings.Contains(wrong, plant.want) {
				t.Fatalf("got %q, want a record that is %s", wrong, plant.want)
			}
			t.Logf("%s:%s", wrong, tell(history))
		})
	}
}
