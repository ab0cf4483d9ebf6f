package worker

import (
	"log/slog"
	"net"
	"time"

	"millrace/internal/config"
	"millrace/internal/service"
)

// Config holds the worker's settings.
type Config struct {
	config.Broker
	config.Process

	Postgres          config.PostgresURL `env:"POSTGRES_URL" help:"PostgreSQL, 14 or newer, with the encoding UTF8."`
	Owner             config.PostgresURL `env:"POSTGRES_OWNER_URL" help:"The same database as the user that owns the tables, who migrates, drops and indexes partitions; empty: the user of POSTGRES_URL does."`
	Addr              config.Address     `env:"WORKER_ADDR" envDefault:"127.0.0.1:8082" help:"Address of the worker's metrics and health."`
	AllowAnonymous    bool               `env:"ALLOW_ANONYMOUS" envDefault:"false" help:"Serve other than loopback addresses without keys."`
	Streams           int                `env:"WORKER_STREAMS" envDefault:"2" min:"1" max:"64" help:"Independent paths from the queues to the database, each with one connection to both."`
	Prefetch          int                `env:"PREFETCH" envDefault:"500" min:"1" max:"2000" help:"Most frames of a queue that a stream holds without having acknowledged them; fewer while frames are large."`
	BatchRows         int                `env:"BATCH_ROWS" envDefault:"5000" min:"1" help:"Rows that close a batch, which is one transaction."`
	BatchBytes        config.Bytes       `env:"BATCH_BYTES" envDefault:"8MiB" min:"1" help:"Bytes of records that close a batch; a stream holds at most four times as much."`
	BatchLinger       time.Duration      `env:"BATCH_LINGER" envDefault:"50ms" min:"0s" help:"Age that closes a batch, counted from its first frame."`
	AutoMigrate       bool               `env:"AUTO_MIGRATE" envDefault:"true" help:"Bring the schema up to date at the start; false: refuse to start on an older schema."`
	PartitionInterval time.Duration      `env:"PARTITION_INTERVAL" envDefault:"24h" oneof:"1h 24h" help:"Length of a partition of logs; partitions that exist stay as they are."`
	Retention         time.Duration      `env:"RETENTION" min:"0s" help:"Age at which partitions are dropped, such as 30d; empty: they are kept."`
	IndexFields       config.FieldPaths  `env:"INDEX_FIELDS" help:"Fields such as trace_id,user.id whose values are looked up in an index in all partitions, also the open one; built and dropped in the background."`
	IndexClosed       bool               `env:"INDEX_CLOSED_PARTITIONS" envDefault:"true" help:"Build a GIN index on partitions that no longer grow."`

	config.Archive
	ArchiveAfter     time.Duration `env:"ARCHIVE_AFTER" envDefault:"10m" min:"5m" help:"Time from the end of a partition to its copy in the archive."`
	ArchiveRetention time.Duration `env:"ARCHIVE_RETENTION" min:"0s" help:"Age at which files of the archive are deleted, such as 365d; empty: they are kept."`

	config.EventTime

	// CellsFile is the name of a file of several databases, the cells, in the place of Postgres and Owner; empty: there is one. See package cells.
	CellsFile string

	// Log takes the worker's log; nil is standard error.
	Log *slog.Logger
	// OnListen, when set, is told the address of the metrics and health once it is open.
	OnListen func(net.Addr)

	maxHold, slowAfter, renewAfter, idleAfter time.Duration // zero: the constants of these names; tests set them
}

// Validate checks what the tags of the fields do not say, and that the addresses of the servers are set. Run does so
// before anything else.
func (c *Config) Validate() error {
	if err := config.Check(c); err != nil {
		return err
	}
	if err := c.checkCells(); err != nil {
		return err
	}
	switch {
	case c.Postgres == "" && c.CellsFile == "":
		return config.Missing("POSTGRES_URL")
	case len(c.URLs) == 0:
		return config.Missing("RABBITMQ_URL")
	}
	return service.CheckAddress("WORKER_ADDR", c.Addr, config.Access{AllowAnonymous: c.AllowAnonymous})
}
