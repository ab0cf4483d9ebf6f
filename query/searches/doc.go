// Package searches has the searches that watch: saved searches with a condition, whose alerts are told to receivers.
//
// A file in YAML (file.go, read by parse.go) names the searches and the receivers. A Watch reads it again when it changes. A file with a
// mistake is not taken; the one before stays.
//
// A Runner evaluates the searches and sends the messages. Many of them, one in each query service, work on one database.
//
// # Once, and on time
//
// Each search is due at fixed times: whole multiples of its interval after the epoch, shifted by a part of the interval that follows
// from its name, so that many searches spread. What is due is evaluated in one transaction, which holds an advisory lock of the search,
// reads its state, and writes the new state, what changed, and the messages about it. So an evaluation counts as a whole or not at all: if a
// process is killed, its transaction is rolled back, the lock is free, and the next process evaluates the same window. Who comes to an
// evaluation that is done sees that by the state. After an outage the last time that was due is evaluated, and not each one before.
//
// A message is sent in a transaction that holds the message's row. Other processes pass over it, and over later messages about the same search to
// the same place. If the process is killed between the receiver's answer and the commit, the message comes again with the same id.
//
// What the alerts of a search become is computed by Step (step.go) alone. It knows neither a clock nor a database, and millrace searches test
// calls it as well.
//
// # Goroutines
//
// Runner.Run starts some and waits for them. Watch.Run starts none. Both are called by one goroutine each; all other methods may be called
// by many at once.
package searches
