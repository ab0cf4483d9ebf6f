package api

import (
	"fmt"
	"log/slog"
	"net"
	"time"

	"millrace/internal/config"
	"millrace/internal/keys"
	"millrace/internal/service"
)

// Config is what the API needs to run; see internal/config for the tags.
type Config struct {
	config.Broker
	config.Access
	config.Process

	Addr               config.Address `env:"API_ADDR" envDefault:"127.0.0.1:8080" help:"Where the API listens."`
	MaxBodyBytes       config.Bytes   `env:"MAX_BODY_BYTES" envDefault:"16MiB" min:"1KiB" max:"1GiB" help:"Largest body of a request, after decoding."`
	MaxRecordBytes     config.Bytes   `env:"MAX_RECORD_BYTES" envDefault:"1MiB" min:"64B" max:"12MiB" help:"Largest record, without white space between its tokens; a frame must stay under the 16 MiB that RabbitMQ 4 takes."`
	MaxInflightBytes   config.Bytes   `env:"MAX_INFLIGHT_BYTES" envDefault:"128MiB" min:"1MiB" help:"Most bytes of bodies under way at once, over all requests; beyond it they are answered 503."`
	ConfirmTimeout     time.Duration  `env:"CONFIRM_TIMEOUT" envDefault:"10s" min:"10ms" help:"Longest wait for RabbitMQ's confirms before a request is answered 503."`
	PublishConnections int            `env:"PUBLISH_CONNECTIONS" envDefault:"4" min:"1" max:"64" help:"Connections to publish on."`
	PublishChannels    int            `env:"PUBLISH_CHANNELS" envDefault:"1" min:"1" max:"64" help:"Channels on each of them."`
	FrameBytes         config.Bytes   `env:"FRAME_BYTES" envDefault:"64KiB" min:"1KiB" max:"2MiB" help:"Size at which a frame takes no more records."`

	// Log is where the service logs to; nil is standard error, as the settings say.
	Log *slog.Logger
	// OnListen, when set, is called once with the address that the API listens on.
	OnListen func(net.Addr)
}

// Validate checks what no single field's bounds can, the files that the settings name among it. Run does so before
// anything else.
func (c *Config) Validate() error {
	if err := config.Check(c); err != nil {
		return err
	}
	if len(c.URLs) == 0 {
		return config.Missing("RABBITMQ_URL")
	}
	if c.MaxInflightBytes < c.MaxBodyBytes {
		return fmt.Errorf("MAX_INFLIGHT_BYTES: got %s, takes at least MAX_BODY_BYTES (%s)", c.MaxInflightBytes, c.MaxBodyBytes)
	}
	if _, err := keys.Load(c.KeysFile); err != nil {
		return err
	}
	return service.CheckAddress("API_ADDR", c.Addr, c.Access)
}
