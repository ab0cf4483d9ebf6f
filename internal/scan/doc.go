// Package scan reads JSON records out of request bodies and decides, in one
// pass over each, whether PostgreSQL can store it.
//
// What it promises:
//
//   - A record is accepted exactly when PostgreSQL's jsonb takes it (in a UTF-8
//     database) and it is an object nested at most [MaxDepth] deep and at most
//     [Limits].RecordBytes long, with its numbers written out as jsonb does:
//     else a few bytes came back as gigabytes. FuzzValueAgainstPostgres holds it to that.
//   - Accepted records come out compacted (no white space outside strings,
//     everything else byte for byte as it was sent), one a line.
//   - Whatever it holds, a body costs time linear in its length, and memory of
//     about its length and one byte a record. Nothing recurses.
//   - Once a [Body]'s buffers have grown, records cost no allocation; only
//     refusals that are reported do.
//   - The source is neither kept nor changed, and nothing returned aliases it.
//
// The jsonb rules beyond the JSON grammar are: no \u0000, no lone surrogates,
// valid UTF-8, numbers that numeric can hold (number.go), and jsonb's own limits
// on a container: 2^28-1 bytes, and as many elements as double up to 1 GiB of
// working memory, which are 2^24 array elements or 2^23 members. A record of up
// to [MaxRecordBytes] can't reach those, so they are not counted.
//
// Records that do not come as a body of JSON are taken one by one (add.go). Their
// verdicts, and those of any body's records, are kept when asked for: a byte each.
//
// A byte-order mark where a record or an array could begin is passed over: it is
// part of no record. What a fault costs, in each form of body, is told in body.go.
//
// Of an object that has a key twice, jsonb keeps the last value; that is no fault,
// and nothing here looks for it.
//
// Nothing here starts a goroutine. A Body belongs to one goroutine at a time.
package scan
