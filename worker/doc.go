// Package worker moves frames from RabbitMQ into PostgreSQL, every record exactly once.
//
// Invariants:
//
//   - A delivery is acknowledged only after the transaction that stored its records, or set them aside in
//     dead_letters, has committed. Nothing is ever rejected or given back while its records could still be
//     stored: RabbitMQ delivers a message a hundred times at most.
//   - The ledger decides what is stored (ledger.go has its rules). Its row for a segment commits with the segment's records, so a
//     redelivery, a client's retry and a commit whose answer was lost are all found out as duplicates.
//   - A batch has two exits, stored or set aside. A record that PostgreSQL refuses goes to dead_letters in the
//     transaction of its good neighbours; every other error makes the batch wait and try again.
//   - Rows reach a partition that was attached, never one that was created in place: ingest and long SELECTs do
//     not wait for each other.
//   - Memory is bounded in bytes: a stream aims to hold frames of two batches of BATCH_BYTES. It reads nothing more
//     from its connection while it holds over twice that.
//
// # The way of a frame
//
// consumer.go takes deliveries. decode.go makes segments of them: foreign.go for other programs' messages. deadletter.go makes dead
// letters of what can't be stored. batcher.go gathers batches, and stream.go tries until a batch is stored. store.go is the
// transaction: ledger.go finds what is new (known.go if the ledger may have forgotten it), partition makes room, copy.go writes the
// rows, bisect.go finds a bad record. replay.go is for dead letters afterwards.
//
// # Goroutines
//
// Run owns them all and returns when all have ended:
//
//	Run ─┬─ the admin server (health, readiness, metrics)
//	     ├─ partition.Keeper: partitions ahead of time, retention        one database connection
//	     ├─ partition.Indexer: indexes on closed partitions              one database connection
//	     ├─ parkedReader: what RabbitMQ set aside twice                  one database connection
//	     ├─ rehearser: whether logs takes rows                           a database connection now and then
//	     ├─ policy.Watch: what harms the queues
//	     └─ stream, WORKER_STREAMS of them and one for the dead queue    one database connection: store, acknowledge
//	          └─ session, as long as its broker connection lives
//	               ├─ consumer.receive, one for each queue: deliveries → items; now and then one that resizes its window
//	               ├─ batcher.run: items → batches
//	               └─ some that watch: for a stop, RabbitMQ's alarms, a consumer that its queue has forgotten
//
// The stream's own goroutine works on one batch at a time while the batcher fills another. A batch is handed over
// on an unbuffered channel: when the stream takes one, it is done with the one before, which may be filled again. Only the
// batcher closes that channel. Several goroutines send to the channel of items, so nobody closes it: lost ends them all.
//
// # Messages of other programs
//
// Any AMQP client may publish JSON to the exchange. Exactly-once then needs a message_id that is a fresh UUIDv7:
// it becomes the base of the records' ids. Without one each delivery makes new ids, and the records are stored
// at least once.
package worker
