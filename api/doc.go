// Package api takes JSON records over HTTP and answers 2xx only after RabbitMQ has confirmed every frame that holds them,
// routed, on quorum queues.
//
// A request's path:
//
//   - api/front accepts its connection.
//   - server.go finds its endpoint (routes.go) and its key, and has the endpoint's protocol look at its header.
//   - body.go reads the body within bounds (inflight.go) and decodes it (encoding.go).
//   - api/protocol makes records of it (internal/record), which internal/scan has checked, and prepares the answer.
//   - api/publish puts the records into frames and has them confirmed.
//   - server.go, or api/front at the very moment of the confirm, sends the answer.
//
// A chunked body that lasts is taken in parts (upload.go), on its request's own goroutine.
//
// Goroutines and who waits for them:
//
//   - Run starts the HTTP server, the publisher, the watch over RabbitMQ's policies and the one over the keys' file, and waits
//     for all.
//   - fasthttp has a goroutine for each connection; its Shutdown, or Listener.CloseAll, ends them.
//   - api/publish and api/front tell of their own.
//
// What holds all along:
//
//   - A pending frame is settled exactly once: confirmed, refused, or out of time. Its requests wait for that and for nothing
//     else. So each is answered no later than CONFIRM_TIMEOUT and the deadline watch's period after its body was read. A long
//     upload waits so for each of its parts.
//   - A frame whose outcome is unknown, because its channel or connection ended before the confirm came, is published again under
//     the same ids while it has time. The workers' ledger makes that harmless.
//   - What a request holds counts against MAX_INFLIGHT_BYTES: its body's buffer until its records are in frames, then those
//     records until it is answered.
//   - Records are copied into frames. So nothing of a request is used after its handler returns, as fasthttp demands.
package api
