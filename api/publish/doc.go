// Package publish puts the records of concurrent requests into frames, publishes the frames, and waits for
// RabbitMQ's confirms.
//
// Goroutines and who waits for them:
//
//   - Publisher.Run starts one goroutine a connection and one that watches deadlines, and waits for them.
//   - A connection's goroutine starts one a channel (a lane), one that watches for connection.blocked and one for
//     the connection's end; a lane starts one that receives its confirms. Each waits for those it started.
package publish
