// Package tail gives followers each row that becomes visible in the database, once, even a row that commits minutes after the
// time it carries.
//
// # How it finds every row once
//
// One reader polls for all followers. Each poll takes one snapshot of the database, and shows the rows that are visible in
// it and were not visible in the last one. PostgreSQL tells that by a row's xmin, the transaction that wrote it. A snapshot's
// xmin is the oldest transaction that ran then, and nothing that an older one wrote can be new. Of the younger transactions
// the reader remembers those whose rows it has seen. A list of running transactions would not do: it lacks
// subtransactions, and is empty on a replica.
//
// No index is on a row's xmin, so a poll (poll.go) looks in these places:
//
//   - All rows whose time lies in the last moments (sweepMin to sweepMax, as far back as a sweep stays cheap). That also finds
//     rows which were written by hand.
//   - The ledger, which has one row for a few hundred records, written in the same transaction. The poll looks back to when the
//     oldest transaction that ran at the last poll can have begun.
//   - The ledger over the hours that late_changes tells of.
//   - Records that were dead letters at the last look and are none any more.
//
// A follower that comes back with the place of its last event (place.go) catches up by the same looks, from a snapshot of its
// own (catchup.go).
//
// What a poll gave out before it failed is remembered, so that the next poll does not give it out again.
//
// # Goroutines
//
// The package starts none. Run is the reader's; one goroutine calls it. Each follower's client has a goroutine,
// which alone calls the follower's Take and CatchUp. Join, Leave and Place may be called by many at once.
package tail
