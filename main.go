// Millrace takes JSON logs and events over HTTP and puts every one of them, once, into PostgreSQL.
//
//	client ── POST /log, /log/batch ──▶ api ── confirmed publish ──▶ RabbitMQ ──▶ worker ── COPY ──▶ PostgreSQL
//	                                                                                                  │
//	person, dashboard ◀── GET /logs, /logs/count ── query (Redis cache) ◀─────────────────────────────┘
//
// internal/cli parses the command line, wires the services and runs them.
package main

import "millrace/internal/cli"

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

func main() { cli.Main(version) }
