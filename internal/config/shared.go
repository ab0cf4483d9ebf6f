package config

import (
	"os"
	"time"

	"millrace/internal/eventtime"
)

// Broker holds the settings of every service that talks to RabbitMQ. All services must agree on those of
// the queues.
type Broker struct {
	URLs     BrokerURLs `env:"RABBITMQ_URL" help:"RabbitMQ; for a cluster the URLs of its nodes."`
	Shards   int        `env:"QUEUE_SHARDS" envDefault:"1" min:"1" max:"64" help:"Queues (logs.0, logs.1, …) that the frames are spread over; the API and the workers must agree."`
	MaxBytes Bytes      `env:"QUEUE_MAX_BYTES" envDefault:"0" help:"Most bytes that wait in one queue before the API answers 503; 0 is no limit."`

	Management ManagementURLs `env:"RABBITMQ_MANAGEMENT_URL" help:"RabbitMQ's management API, http://user:password@host:15672: the policies that apply to the queues are read there, and one that shields them is set where the user may; empty: a queue logs.canary shows whether messages stay."`

	// Name is the name of the exchange and the prefix of the queues; empty means "logs". Tests set it to
	// keep apart from each other.
	Name string
}

// EventTime holds the settings that say where a record tells when its event happened.
type EventTime struct {
	TimeFields FieldNames    `env:"TIME_FIELDS" envDefault:"time,timestamp,@timestamp,ts,_time,@t,date,eventTime,EdgeStartTimestamp" help:"Fields that may hold the time of a record's event; the first one that does counts."`
	TimeZone   TimeZone      `env:"TIME_ZONE" help:"Time zone of times that are written without one; empty: they are not taken."`
	TimeAhead  time.Duration `env:"TIME_AHEAD" envDefault:"1h" min:"0s" help:"How far a record's time may be ahead of the time that it came; beyond that it is of a wrong clock, and not taken."`
}

// Rule returns the rule that the settings make. They must have been checked.
func (c EventTime) Rule() (*eventtime.Rule, error) {
	return eventtime.New(c.TimeFields.names(), c.TimeZone.Location(), c.TimeAhead)
}

// Process holds the settings that every service has.
type Process struct {
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"30s" min:"1s" help:"Longest time to finish what is under way when told to stop."`
	LogLevel        string        `env:"LOG_LEVEL" envDefault:"info" oneof:"debug info warn error" help:"Least level that is logged."`
	LogFormat       string        `env:"LOG_FORMAT" envDefault:"text" oneof:"text json" help:"Form of the log lines on standard error."`
	Profiles        Loopback      `env:"PPROF_ADDR" help:"Where profiles can be fetched, under /debug/pprof/; empty: nowhere."`
}

// Access holds the settings of who may call an HTTP service, and how.
type Access struct {
	KeysFile       string `env:"KEYS_FILE" is:"file" help:"File of API keys, as printed by millrace keys new, read again when it changes; empty: no keys are asked for, and only loopback addresses are served."`
	AllowAnonymous bool   `env:"ALLOW_ANONYMOUS" envDefault:"false" help:"Serve other than loopback addresses without keys."`
	TLSCertFile    string `env:"TLS_CERT_FILE" is:"file" help:"Certificate chain (PEM); with TLS_KEY_FILE it turns TLS on."`
	TLSKeyFile     string `env:"TLS_KEY_FILE" is:"file" help:"Private key of the certificate (PEM)."`
	TLSClientCA    string `env:"TLS_CLIENT_CA_FILE" is:"file" help:"Authorities (PEM) that client certificates must come from; empty: none are asked for."`

	// Reload may be nil. KEYS_FILE is read again for each signal that it brings.
	Reload <-chan os.Signal
}
