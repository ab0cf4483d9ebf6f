// Package pg is what the services share about PostgreSQL: what its errors say, and how it is reached. It starts no goroutine.
package pg
