// Package api takes JSON records over HTTP. It answers 2xx only after RabbitMQ has routed every frame that holds them to quorum
// queues and has confirmed it.
//
// A request's path:
//
//   - api/front accepts its connection.
//   - server.go finds its endpoint (routes.go), checks its key, and passes its header to the endpoint's protocol.
//   - body.go reads the body within bounds (inflight.go) and decodes it (encoding.go).
//   - api/protocol makes records of it (internal/record), each checked by internal/scan, and makes the answer.
//   - derive.go makes a key from the body where a request that brings none is to be stored once.
//   - api/publish puts the records into frames and has them confirmed.
//   - api/front sends the answer at the very moment of the confirm, or else server.go does.
//
// A long chunked body is taken in parts (upload.go), on its request's own goroutine.
//
// Goroutines and who waits for them:
//
//   - Run starts the HTTP server, the publisher, the watch over RabbitMQ's policies and the watch over the keys' file, and
//     waits for all of them.
//   - fasthttp has a goroutine for each connection; its Shutdown, or Listener.CloseAll, ends them.
//   - api/publish and api/front describe their own.
//
// Invariants:
//
//   - A pending frame is settled exactly once: confirmed, refused, or out of time. Its requests wait for that and for nothing
//     else. So each is answered within CONFIRM_TIMEOUT after its body was read, plus the period at which deadlines are checked.
//     A long upload waits in this way for each of its parts.
//   - A frame's outcome is unknown if its channel or connection ended before the confirm came. Until its deadline such a frame
//     is published again under the same ids. The workers' ledger makes that harmless.
//   - The memory of a request counts against MAX_INFLIGHT_BYTES: the buffer of its body until its records are in frames, then
//     those records until it is answered.
//   - Records are copied into frames, so nothing of a request is used after its handler returns. fasthttp demands that.
package api
