package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestASecretShowsWhereItLeadsHoweverItIsPrinted(t *testing.T) {
	for raw, want := range map[string]string{
		"postgres://user:hush@host:5432/d":            "postgres://host:5432/d",
		"postgres://u@h/d?password=hush":              "postgres://h/d",
		"postgres://u:hush@a:1,b:2/d?sslmode=require": "postgres://a:1,b:2/d",
		"postgres://u:hush@[::1]:5432/d":              "postgres://[::1]:5432/d",
		"host=h user=u password=hush dbname=d":        "(hidden)",
		"postgres://user:12/hush@h/d":                 "(hidden)",
		"postgres://user:hush@h/d?sslmode=banana":     "(hidden)",
		"hush": "(hidden)",
		"":     "",
		"postgres://u:hush@h/d?options=-c%20role%3Dx":   "postgres://h/d",
		"postgres:///d?host=/var/run/postgresql&user=u": "postgres:///d",
		// What holds :// is no URL for that.
		"host=h user=u dbname=x password=hush://x":                  "(hidden)",
		"host=h password=hush dbname=x application_name=a://b":      "(hidden)",
		"password=hush dbname=postgres://u:hush@h/x":                "(hidden)",
		"host=h dbname=x password='a b://hush' application_name=ab": "(hidden)",
	} {
		s := PostgresURL(raw)
		var text, lines bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("m", "k", s, "in", struct{ URL PostgresURL }{s})
		slog.New(slog.NewJSONHandler(&lines, nil)).Info("m", "k", s, "in", struct{ URL PostgresURL }{s})
		encoded, err := json.Marshal(map[string]any{"k": s, "all": []PostgresURL{s}})
		if err != nil {
			t.Fatal(err)
		}
		shown := []string{s.String(), s.GoString(), text.String(), lines.String(), string(encoded),
			fmt.Sprint(s), fmt.Sprint([]PostgresURL{s}), fmt.Sprint(&s), fmt.Sprintln(struct{ A *PostgresURL }{&s})}
		for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%X", "%d", "%T%[1]v", "%10s"} {
			shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, Broker{URLs: BrokerURLs{BrokerURL("amqp://u:hush@h/")}}))
		}
		shown = append(shown, fmt.Errorf("at %w: %v", errors.New("x"), s).Error())
		for _, one := range shown {
			if strings.Contains(one, "hush") || strings.Contains(one, "68757368") {
				t.Errorf("%q is shown as %q", raw, one)
			}
		}
		if s.String() != want {
			t.Errorf("%q: got %q, want %q", raw, s, want)
		}
	}
}

func TestWellWrittenURLsAreTaken(t *testing.T) {
	for _, value := range []string{
		"amqp://h", "amqp://h/", "amqps://u:p@h:5671/v?heartbeat=10&cacertfile=/ca.pem&auth_mechanism=EXTERNAL", "amqp://u:p%23%2F%3F%40@[::1]:5672/%2F", "amqp://u:p:q@h/", "amqp://u:p@q@h/",
		"AMQP://h/",
	} {
		if err := BrokerURL(value).Check(); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
	for _, value := range []string{
		"postgres://h/d", "postgresql://u:p@h:5432/d?sslmode=disable&application_name=x&statement_timeout=5s&search_path=a", "postgres:///d?host=/var/run",
		"postgres://u:p@a:1,b:2/d?target_session_attrs=read-write", "postgres://u:p@/d", "host=h port=1,2 user='a b' password='it''s'", `host=h password=a\ b`,
		"host=h password='a\\'b' sslmode = require", " dbname=d  ", "postgres://u%40server:p%25@h/d?connect_timeout=5", "postgres://[fe80::1%25eth0]:5432/d",
		"postgres://h/d?my.setting=1", "user=u password=://", "postgres://h/d?lock_timeout=1s&default_query_exec_mode=exec",
	} {
		if value == "host=h port=1,2 user='a b' password='it''s'" {
			continue // libpq has no doubled quotation marks, as SQL has them
		}
		if err := PostgresURL(value).Check(); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
	for _, value := range []string{"redis://h", "redis://:p@h:6379/3", "rediss://u:p@h?dial_timeout=3s&pool_size=5", "unix:///run/redis.sock?db=1", "unix://u:p@/run/redis.sock"} {
		if err := RedisURL(value).Check(); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestADriversErrorIsNotRepeated(t *testing.T) {
	_, err := Parse(RedisURL("redis://:hush@h:hush/"), redis.ParseURL)
	if err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "port") {
		t.Errorf("got %v", err)
	}
	_, err = Parse(RedisURL("redis://:hush@h/"), func(s string) (int, error) { return 0, errors.New(s) })
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v", err)
	}
}

func TestASecretMadeByHandIsChecked(t *testing.T) {
	type made struct {
		Broker
		DB PostgresURL `env:"DB"`
	}
	c := made{Broker: Broker{Shards: 1}, DB: "postgres://u:12/hush@h/"}
	if err := Check(c); err == nil || strings.Contains(err.Error(), "hush") || !strings.HasPrefix(err.Error(), "DB: ") {
		t.Errorf("got %v", err)
	}
	c.DB, c.URLs = "", BrokerURLs{"amqp://h/", "amqp://u:hush#@h/"}
	if err := Check(c); err == nil || strings.Contains(err.Error(), "hush") || !strings.HasPrefix(err.Error(), "RABBITMQ_URL: URL 2 of 2: ") {
		t.Errorf("got %v", err)
	}
}

func TestDurationsTakeDaysAndWeeks(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30d": 720 * time.Hour, "2w": 336 * time.Hour, "1d12h": 36 * time.Hour, "1.5d": 36 * time.Hour, "1w1d1h1m1s1ms": 193*time.Hour + time.Minute + time.Second + time.Millisecond,
		"0d": 0, "10s": 10 * time.Second, "-1s": -time.Second, "100y": -1, "1d-1h": -1, "d": -1, "-1d": -1, "1dd": -1, "200000d": -1, "15000w": 15000 * 168 * time.Hour,
	} {
		got, err := parseDuration(text)
		if want == -1 {
			if err == nil {
				t.Errorf("%s is taken as %v", text, got)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
	}
}

// FuzzARefusalRepeatsNoPassword puts any password into a URL of each kind, unescaped.
func FuzzARefusalRepeatsNoPassword(f *testing.F) {
	for _, s := range []string{"#", "/", "?", "%", "%zz", "@", ":", ",", "[", " ", "'", "&a=", "1/", "12?a=b&", "=", "\\", "é", "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, odd string) {
		password := "hush" + odd + "hush"
		for _, err := range []error{
			BrokerURL("amqp://u:" + password + "@h/").Check(), PostgresURL("postgres://u:" + password + "@h/d").Check(),
			PostgresURL("host=h password=" + password + " user=u").Check(), RedisURL("redis://:" + password + "@h").Check(),
			BrokerURL("amqp://u:1" + odd + "hush@h/").Check(), PostgresURL("postgres://u:1" + odd + "hush@h/d").Check(),
		} {
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("%q: %v", password, err)
			}
		}
	})
}
