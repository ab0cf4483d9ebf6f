// Package chaos breaks a whole Millrace, again and again, and counts what is stored. It puts promise 2 to the proof.
//
// A run starts private servers, two APIs, two workers and a query service as processes of their own, with a proxy on
// every connection between them. Clients post at a steady rate, send again under the same Idempotency-Key until they
// hear a 2xx, and note what was acked. Some of them are shippers, which speak other protocols and send the same bytes again
// without a key. Meanwhile faults from a seeded schedule strike one after another, now and then
// two at once. In the end all faults are healed and the queues are empty. Then what PostgreSQL has is compared with the
// notes. All that was acked must be there, once, as it was sent and under the id that was answered, and nothing else.
// The dead letters must be those that were poisoned on purpose.
//
// The same seed gives the same schedule and the same requests. What meets what within a millisecond is chance.
//
// Goroutines: Run starts them all and returns when they have ended, the processes and servers too. A proxy (link) has
// one for its listener and two for each connection; a process (unit) has one that waits for its end.
package chaos
