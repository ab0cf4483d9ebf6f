// Package sockets takes the messages of protocols in which nothing is answered, such as syslog, over TCP, TLS and UDP. A Stream listens for connections, a
// Datagrams for packets. Both hand what they read to a protocol, which makes records, and the records to a Sink, which has them confirmed.
//
// As nothing is answered, a sender never learns what became of a message. So this is held to:
//
//   - What was read is published until it is confirmed, also while the service stops, for as long as Run's flush lasts.
//   - While a connection's messages wait for a confirm, nothing more is read of it. TCP then holds the sender back. Packets can't be held back: those that
//     find no room are dropped and counted.
//   - Memory is bounded: Budget bounds what connections and packets hold, Options the connections and the longest message.
//   - Who is not admitted gets nothing read of it but the handshake of TLS.
//
// Run starts all goroutines of a Stream or Datagrams, and returns when they have ended.
package sockets
