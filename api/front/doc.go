// Package front holds the API's connections. It bounds their number, sets their deadlines, and writes answers the
// moment RabbitMQ confirms a request's records.
//
// It starts goroutines only to turn away connections beyond the limit; Listener.Wait waits for those.
package front
