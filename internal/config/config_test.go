package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/eventtime"
)

type example struct {
	Broker
	Addr   Address       `env:"ADDR" envDefault:"127.0.0.1:8080" help:"Where."`
	Rows   int           `env:"ROWS" envDefault:"5000" min:"1" max:"100000" help:"Most rows."`
	Size   Bytes         `env:"SIZE" envDefault:"16MiB" min:"1KiB" max:"64MiB" help:"Most bytes."`
	Linger time.Duration `env:"LINGER" envDefault:"50ms" min:"0s" help:"Longest wait."`
	Here   Loopback      `env:"HERE" help:"Where nobody else gets."`
	Redis  RedisURL      `env:"REDIS" help:"Cache."`
	DB     PostgresURL   `env:"DB" help:"Database."`
	Every  time.Duration `env:"EVERY" envDefault:"24h" oneof:"1h 24h" help:"How often."`
	Level  string        `env:"LEVEL" envDefault:"info" oneof:"info warn" help:"Level."`
	On     bool          `env:"ON" envDefault:"true" help:"Switch."`
}

func TestDefaultsFillWhatIsUnset(t *testing.T) {
	var got example
	if err := LoadFrom(nil, &got); err != nil {
		t.Fatal(err)
	}
	want := example{Broker: Broker{Shards: 1}, Addr: "127.0.0.1:8080", Rows: 5000, Size: 16 << 20,
		Linger: 50 * time.Millisecond, Every: 24 * time.Hour, Level: "info", On: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestValuesAreRead(t *testing.T) {
	var got example
	err := LoadFrom(map[string]string{
		"RABBITMQ_URL": "amqp://a:5672/, amqps://b/v", "QUEUE_SHARDS": "3", "ADDR": ":80", "ROWS": "1", "SIZE": "64KiB",
		"LINGER": "0s", "HERE": "[::1]:6060", "EVERY": "60m", "REDIS": "redis://h:1/0", "DB": "postgres://h/d", "LEVEL": "warn", "ON": "false",
	}, &got)
	if err != nil {
		t.Fatal(err)
	}
	want := example{Broker: Broker{URLs: BrokerURLs{"amqp://a:5672/", "amqps://b/v"}, Shards: 3}, Addr: ":80", Rows: 1,
		Size: 64 << 10, Here: "[::1]:6060", Every: time.Hour, Redis: "redis://h:1/0", DB: "postgres://h/d", Level: "warn"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestARefusalNamesTheVariableWhatItGotAndWhatItTakes(t *testing.T) {
	tests := []struct{ name, value, takes string }{
		{"ROWS", "many", "a whole number from 1 to 100000"},
		{"ROWS", "0", "a whole number from 1 to 100000"},
		{"ROWS", "100001", "a whole number from 1 to 100000"},
		{"SIZE", "16 megs", "a size such as"},
		{"SIZE", "-1", "a size such as"},
		{"SIZE", "65MiB", "from 1KiB to 64MiB"},
		{"SIZE", "9223372036854775807KiB", "a size such as"},
		{"LINGER", "50", "a duration such as"},
		{"LINGER", "-1s", "at least 0s"},
		{"LINGER", "-1d", "a duration such as"},
		{"LINGER", "1y", "24h or 30d"},
		{"LINGER", "d", "24h or 30d"},
		{"LINGER", "1w999999w", "24h or 30d"},
		{"SIZE", "16MB", "16MiB"},
		{"ADDR", "8080", "127.0.0.1:8080"},
		{"EVERY", "2h", "1h, 24h"},
		{"EVERY", "daily", "1h, 24h"},
		{"ADDR", "localhost", "host:port"},
		{"ADDR", "localhost:http", "host:port"},
		{"HERE", "0.0.0.0:6060", "host:port of this machine alone"},
		{"HERE", ":6060", "host:port of this machine alone"},
		{"HERE", "192.0.2.1:6060", "host:port of this machine alone"},
		{"HERE", "localhost", "host:port of this machine alone"},
		{"ON", "maybe", "true or false"},
		{"LEVEL", "loud", "info, warn"},
		{"QUEUE_SHARDS", "65", "a whole number from 1 to 64"},
	}
	for _, tt := range tests {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			err := LoadFrom(map[string]string{tt.name: tt.value}, new(example))
			if err == nil {
				t.Fatal("got no error")
			}
			if got := err.Error(); !strings.HasPrefix(got, tt.name+": got ") || !strings.Contains(got, tt.value) ||
				!strings.Contains(got, tt.takes) || strings.Contains(got, "\n") {
				t.Errorf("got %q, want one line that names %s, %q and %q", got, tt.name, tt.value, tt.takes)
			}
		})
	}
}

func TestTheEnvironmentWinsOverTheFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte("ROWS=7\nLEVEL=warn\nADDR=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ROWS", "8")
	t.Setenv("LEVEL", "") // empty is unset, but it still hides the file's
	var got example
	if err := Load(&got); err != nil {
		t.Fatal(err)
	}
	if got.Rows != 8 || got.Level != "info" || got.Addr != "127.0.0.1:8080" {
		t.Errorf("got ROWS %d, LEVEL %q, ADDR %q, want 8 from the environment, the defaults for the empty ones", got.Rows, got.Level, got.Addr)
	}
}

func TestBytesPrintAsTheyAreWritten(t *testing.T) {
	for b, want := range map[Bytes]string{0: "0", 1: "1B", 1 << 10: "1KiB", 16 << 20: "16MiB", 3 << 30: "3GiB", 1500: "1500B"} {
		if got := b.String(); got != want {
			t.Errorf("Bytes(%d) prints %q, want %q", int64(b), got, want)
		}
	}
}

func TestAConfigMadeByHandIsChecked(t *testing.T) {
	var c example
	if err := LoadFrom(nil, &c); err != nil {
		t.Fatal(err)
	}
	if err := Check(&c); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	c.Every = time.Minute
	if err := Check(c); err == nil || err.Error() != `EVERY: got "1m0s", takes 1h, 24h` {
		t.Errorf("got %v, want the setting, the value and what it takes", err)
	}
}

func TestTheFieldsForTimesAreThoseOfCommonLoggers(t *testing.T) {
	var c EventTime
	if err := LoadFrom(nil, &c); err != nil {
		t.Fatal(err)
	}
	if got, want := string(c.TimeFields), strings.Join(eventtime.DefaultFields, ","); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for name, value := range map[string]string{"TIME_FIELDS": "a,,b", "TIME_ZONE": "Mars/Olympus", "TIME_AHEAD": "-1s"} {
		if err := LoadFrom(map[string]string{name: value}, &c); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: got %v, want an error with both", name, value, err)
		}
	}
}

func TestAVersionHasThreeNumbers(t *testing.T) {
	var c struct {
		Version Version `env:"VERSION" help:"A version."`
	}
	for value, taken := range map[string]bool{"8.19.0": true, "": true, "8": false, "8.19": false, "8.19.0.1": false, "8.19.x": false, "v8.19.0": false, "8..0": false, "-1.0.0": false} {
		c.Version = ""
		err := LoadFrom(map[string]string{"VERSION": value}, &c)
		if (err == nil) != taken || taken && string(c.Version) != value || err != nil && !strings.Contains(err.Error(), "takes a version of three numbers such as 8.19.0") {
			t.Errorf("%q: got %v, taken %v", value, err, taken)
		}
	}
}
