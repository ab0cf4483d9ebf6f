// Package pg is what the services share about PostgreSQL: what its errors say (errors.go), how it is reached (connect.go), a
// connection that is opened again after it broke (link.go), and which poolers can't be used (pooler.go). Dropping a Link starts a
// goroutine that waits until pgx has closed the connection; the Link's WaitGroup counts it. Nothing else here starts a goroutine.
package pg
