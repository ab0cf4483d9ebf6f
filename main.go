// Millrace takes JSON logs and events over HTTP and puts every one of them, once, into PostgreSQL.
//
//	client ── POST /log, /log/batch ──▶ api ── confirmed publish ──▶ RabbitMQ ──▶ worker ── COPY ──▶ PostgreSQL
//	                                                                                                  │
//	person, dashboard ◀── page, search, tail, export ── query (Redis cache) ◀─────────────────────────┘
//
// internal/cli has the commands, a file each; run.go there puts the three services together. Each service is a package
// with a Config and a Run: api, worker, query. DESIGN.md follows one record through them.
package main

import "millrace/internal/cli"

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

func main() { cli.Main(version) }
