// Package scan cuts request bodies into JSON records and decides, in one pass over each
// record, whether PostgreSQL can store it.
//
// What it promises:
//
//   - A record is accepted exactly when PostgreSQL's jsonb takes it (in a UTF-8
//     database), it is an object, and it is nested at most [MaxDepth] deep and at most
//     [Limits].RecordBytes long. Its length counts numbers as jsonb writes them:
//     otherwise a few bytes could come back as gigabytes. FuzzValueAgainstPostgres checks
//     this against a server.
//   - Accepted records come out compacted (no white space outside strings,
//     everything else byte for byte as it was sent), one a line.
//   - Whatever a body holds, it costs time linear in its length, and about as much memory
//     as its length and one byte a record. Nothing recurses.
//   - Once a [Body]'s buffers have grown, only refusals that are reported allocate.
//   - The source is neither kept nor changed, and nothing returned aliases it.
//
// The jsonb rules beyond the JSON grammar are: no \u0000, no lone surrogates, valid
// UTF-8, numbers that numeric can hold (number.go), and jsonb's own limits on a
// container: 2^28-1 bytes, and the number of elements that fit into 1 GiB of working
// memory, which doubles as it grows: 2^24 array elements or 2^23 members. A record of up
// to [MaxRecordBytes] can't reach those, so they are not counted.
//
// Records that do not come as a body of JSON are taken one by one (add.go). A verdict for
// every record, a byte each, is kept if KeepVerdicts is set.
//
// A byte-order mark where a record or an array could begin is passed over: it is part of
// no record. [Body.Batch] says what a fault costs in each form of body.
//
// If an object has a key twice, jsonb keeps the last value. That is not a fault, and
// nothing here looks for it.
//
// With [Limits].Repair, an object that can't be taken as it is is rewritten so that it can,
// and says which of its members were changed (repair.go). What comes out is accepted by all
// the rules above. A record that needs no repair comes out as without it.
//
// Nothing here starts a goroutine. A Body belongs to one goroutine at a time.
package scan
