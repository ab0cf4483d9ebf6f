// Package publish takes records from concurrent requests, puts them into frames, and has RabbitMQ confirm those.
//
// Goroutines and who waits for them:
//
//   - Publisher.Run starts one goroutine a connection and one that watches deadlines, and waits for them.
//   - A connection's goroutine starts one a channel (a lane), one that watches for connection.blocked and one for
//     the connection's end; a lane starts one that receives its confirms. Each waits for those it started.
package publish
