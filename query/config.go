package query

import (
	"log/slog"
	"net"
	"time"

	"millrace/internal/config"
	"millrace/internal/keys"
	"millrace/internal/service"
)

// Config holds the settings of the query service.
type Config struct {
	config.Process
	config.Access
	config.Archive
	ArchiveCache config.Bytes `env:"ARCHIVE_CACHE" envDefault:"128MiB" min:"16MiB" max:"64GiB" help:"How much of the archive's files in an S3 store the query service keeps in memory."`

	Postgres    config.PostgresURL `env:"POSTGRES_URL" help:"PostgreSQL; reading from a replica is fine."`
	Redis       config.RedisURL    `env:"REDIS_URL" help:"Redis, which keeps answers about closed windows; empty: no cache."`
	Addr        config.Address     `env:"QUERY_ADDR" envDefault:"127.0.0.1:8081" help:"Where the query service listens."`
	MetricsAddr config.Address     `env:"QUERY_METRICS_ADDR" help:"Where /health, /ready and /metrics of the query service are answered as well, without TLS, for probes and scrapes that have no certificate; empty: at QUERY_ADDR alone."`
	Timeout     time.Duration      `env:"QUERY_TIMEOUT" envDefault:"10s" min:"10ms" max:"1h" help:"Longest time one statement may take in the database."`
	Connections int                `env:"QUERY_CONNECTIONS" envDefault:"8" min:"1" max:"1000" help:"Most database connections for queries; eight times as many requests are taken at once."`
	CacheTTL    time.Duration      `env:"CACHE_TTL" envDefault:"10m" min:"1s" max:"720h" help:"How long Redis keeps an answer."`

	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"500ms" min:"0s" max:"5m" help:"How long requests are still taken after /ready has begun to fail, for load balancers to notice; not part of SHUTDOWN_TIMEOUT."`

	ExportTime time.Duration `env:"EXPORT_TIMEOUT" envDefault:"1h" min:"10ms" max:"24h" help:"Longest time an export may take."`
	Followers  int           `env:"TAIL_FOLLOWERS" envDefault:"1000" min:"1" max:"100000" help:"Most clients that follow the tail at once; up to 4 MiB of records wait for each."`
	Origins    string        `env:"CORS_ORIGINS" help:"Origins such as https://grafana.example.com whose pages may read answers, separated by commas; * is all; empty: none but the service's own."`

	Searches         string             `env:"SEARCHES_FILE" is:"file" help:"File (YAML) of searches that are counted and that alert, read again when it changes; empty: there are none."`
	SearchesPostgres config.PostgresURL `env:"SEARCHES_POSTGRES_URL" help:"PostgreSQL, where the state of the searches in SEARCHES_FILE is kept; empty: POSTGRES_URL, which then must not be a replica."`

	MaxConnections int `env:"QUERY_MAX_CONNECTIONS" envDefault:"2000" min:"1" max:"1000000" help:"Most connections to the query service at once, those that follow the tail included; one more takes the place of an idle one without a key, or is answered 503."`

	// Log is where the service logs; nil makes a logger on standard error from Process.
	Log *slog.Logger
	// OnListen, if set, is told the address once it is open.
	OnListen func(net.Addr)
}

// Validate returns an error if a setting is out of its bounds, is missing, doesn't go with another one, or names a file that
// can't be used. Run calls it before anything else.
func (c *Config) Validate() error {
	if err := config.Check(c); err != nil {
		return err
	}
	if c.Postgres == "" {
		return config.Missing("POSTGRES_URL")
	}
	if _, err := parseOrigins(c.Origins); err != nil {
		return err
	}
	if _, err := keys.Open(c.KeysFile); err != nil {
		return err
	}
	if err := service.CheckMetricsAddress("QUERY_METRICS_ADDR", c.MetricsAddr, c.Access); err != nil {
		return err
	}
	return service.CheckAddress("QUERY_ADDR", c.Addr, c.Access)
}
