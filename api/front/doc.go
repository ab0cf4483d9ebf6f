// Package front has the API's connections: how many there are, their deadlines, and answers that are written the moment
// RabbitMQ confirms a request's records.
//
// It starts goroutines only for connections beyond the limit, to tell them so; Listener.Wait waits for those.
package front
