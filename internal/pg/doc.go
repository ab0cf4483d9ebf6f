// Package pg is what the services share about PostgreSQL: what its errors say (errors.go), how it is
// reached (connect.go), a connection that is opened again when it broke (link.go), and which poolers don't do (pooler.go). A Link that
// is dropped has a goroutine wait until pgx has closed its connection; its WaitGroup tells when that is over. Nothing else here starts
// a goroutine.
package pg
