// Package policy guards the queues against policies on the RabbitMQ server.
//
// A policy whose pattern matches our queues may give messages a time to live, or cut or delete the queues. Only one
// regular policy applies to a queue, so Millrace sets one of its own with a high priority where it may. Operator policies
// apply beside it. So Watch checks again and again what is in force: by the management API (management.go), or without
// one by a queue that shows whether messages stay (canary.go). It starts no goroutine.
package policy

import (
	"fmt"
	"strings"
	"time"

	"millrace/internal/broker"
)

// Reasons of harm, in the words of the metric.
const (
	messageTTL      = "message_ttl"      // messages expire
	expires         = "expires"          // unused queues are deleted with what is in them
	maxLength       = "max_length"       // a full queue drops its oldest messages
	overflow        = "overflow"         // what is set aside may be lost on its way
	deliveryLimit   = "delivery_limit"   // frames are set aside after a few restarts of a worker
	consumerTimeout = "consumer_timeout" // frames go back while the database is away, and are set aside in the end
	streamRetention = "stream_retention" // messages that expired are deleted from the stream before they are read
	unchecked       = "unchecked"        // the queues' policies could not be checked
)

var reasons = []string{messageTTL, expires, maxLength, overflow, deliveryLimit, consumerTimeout, streamRetention, unchecked}

// leastConsumerTimeout is longer than a worker ever keeps a frame, which is the ten minutes that it waits for a database,
// and a transaction.
const leastConsumerTimeout = 15 * time.Minute

// Harm is something on the server that harms one of our queues.
type Harm struct {
	Queue  string
	Reason string // one of the reasons above
	What   string // for people: policy, key, value and what it does

	// Loses is true if accepted records may vanish without a trace. Records that expire do not: they become dead letters.
	Loses bool
}

// Sentence describes harms in one line. It names a harm to several queues once. It returns "" if there are no harms.
func Sentence(harms []Harm) string {
	var whats []string
	queues := make(map[string][]string) // by What
	for _, h := range harms {
		if queues[h.What] == nil {
			whats = append(whats, h.What)
		}
		queues[h.What] = append(queues[h.What], h.Queue)
	}
	for i, what := range whats {
		whats[i] = what + " (" + strings.Join(queues[what], ", ") + ")"
	}
	return strings.Join(whats, "; ")
}

// queue is what the management API answers about a queue.
type queue struct {
	Name       string
	Type       string
	Arguments  map[string]any
	Policy     string
	Operator   string         `json:"operator_policy"`
	Definition map[string]any `json:"effective_policy_definition"` // of both policies together
}

// harms returns what the policies in force do to q, one of the topology's queues. source returns the policy that a key
// comes from.
//
// Other keys are harmless: for dead-lettering the queue's arguments win over policies, and the rest decide where a
// queue's members are or how much memory it may take.
func harms(t broker.Topology, q queue, source func(key string) string) []Harm {
	var found []Harm
	add := func(key, reason string, loses bool, does string) {
		what := fmt.Sprintf("%s sets %s to %v: %s", source(key), key, plain(q.Definition[key]), does)
		found = append(found, Harm{Queue: q.Name, Reason: reason, What: what, Loses: loses})
	}
	number := func(key string) (float64, bool) {
		n, ok := q.Definition[key].(float64)
		return n, ok
	}
	if q.Name == t.LastStream() {
		for _, key := range []string{"max-age", "max-length-bytes"} {
			if _, ok := q.Definition[key]; ok {
				add(key, streamRetention, false, "what has expired may be forgotten before a worker reads it")
			}
		}
		return found
	}
	if _, ok := q.Definition["message-ttl"]; ok {
		add("message-ttl", messageTTL, false, "records that wait so long become dead letters")
	}
	if _, ok := q.Definition["expires"]; ok {
		add("expires", expires, true, "the queue is deleted with its records when no worker reads it for so long")
	}
	// The policy's value wins over the argument.
	drops := q.Arguments["x-overflow"] != "reject-publish"
	if v, ok := q.Definition["overflow"]; ok {
		if drops = v != "reject-publish"; drops {
			add("overflow", overflow, false, "what a queue sets aside may be lost on its way")
		}
	}
	if drops {
		for _, key := range []string{"max-length", "max-length-bytes"} {
			if _, ok := q.Definition[key]; ok {
				add(key, maxLength, true, "a full queue drops its oldest records")
			}
		}
		if _, ok := q.Arguments["x-max-length-bytes"]; ok && q.Definition["overflow"] != nil {
			add("overflow", maxLength, true, "a queue at QUEUE_MAX_BYTES drops its oldest records")
		}
	}
	if n, ok := number("delivery-limit"); ok && n >= 0 && int(n) < t.DeliveryLimit(q.Name) && q.Name != t.ParkedQueue() {
		add("delivery-limit", deliveryLimit, false, fmt.Sprintf("records are set aside after so many restarts of a worker, instead of %d", t.DeliveryLimit(q.Name)))
	}
	if n, ok := number("consumer-timeout"); ok && n < float64(leastConsumerTimeout.Milliseconds()) {
		add("consumer-timeout", consumerTimeout, false, fmt.Sprintf("records go back to RabbitMQ while the database is away, and are set aside in the end; %v is enough", leastConsumerTimeout))
	}
	return found
}

// plain returns whole numbers as integers, so that they are shown without an exponent.
func plain(v any) any {
	if n, ok := v.(float64); ok && n == float64(int64(n)) {
		return int64(n)
	}
	return v
}
