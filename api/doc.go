// Package api takes JSON records over HTTP and answers 2xx only after RabbitMQ has confirmed every frame that
// holds them, routed, on quorum queues.
//
// A request's path: the body is read and decoded within bounds (body.go), checked and cut into records by
// internal/scan, appended to the frame under construction (publisher.go), published and confirmed on one of a
// pool of channels (lane.go), and answered (server.go).
//
// A chunked batch that lasts goes that way in parts (upload.go), on its own goroutine.
//
// Goroutines and who waits for them:
//
//   - Run starts the HTTP server and the publisher and waits for both.
//   - publisher.run starts one goroutine a connection and one that watches deadlines, and waits for them.
//   - A connection's goroutine starts one a channel (a lane), one that watches for connection.blocked and one for
//     the connection's end; a lane starts one that receives its confirms. Each waits for those it started.
//
// What holds all along:
//
//   - A pending frame is settled exactly once: confirmed, refused, or out of time. Its requests wait for that
//     and for nothing else, so none is answered later than CONFIRM_TIMEOUT and the deadline watch's period after
//     its body was read. A long upload waits so for each of its parts.
//   - A frame whose outcome is unknown (its channel or connection ended before the confirm came) is published
//     again under the same ids while it has time; the workers' ledger makes that harmless.
//   - What a request holds counts against MAX_INFLIGHT_BYTES: its body's buffer until its records are in frames, then
//     those records until it is answered.
//   - Nothing of a request is kept by fasthttp's rules after its handler returns: records are copied into frames.
package api
