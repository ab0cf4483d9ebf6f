// Package tail gives rows to followers as they become visible in the database, each row once.
//
// How the tail finds every row once, also one that commits minutes after the time it carries.
//
// The reader polls. Each poll is one snapshot of the database, and shows the rows that are visible in it and were
// not in the poll before. PostgreSQL tells that by a row's xmin, the transaction that wrote it: nothing older than
// the oldest transaction that ran at the last poll (its snapshot's xmin) can be new, and of what is younger the
// reader remembers the transactions it has seen. That needs no list of running transactions, which would lack
// subtransactions, and is empty on a replica.
//
// Where to look, since no index is on xmin:
//
//   - All rows whose time lies in the last moments (sweepMin to sweepMax, as far as a look costs little). That
//     also finds rows which were written by hand.
//   - Older rows by the ledger, which has one row for a few hundred records and is entered in the same
//     transaction: back to when the oldest transaction that ran at the last poll can have begun, and over the hours
//     that late_changes tells of.
//   - Records that were dead letters at the last look and are none any more.
//
// Goroutines: Run is the reader's, which alone reads. A Follower's Take and CatchUp belong to one goroutine, that of its
// client. The package starts none itself.
package tail
