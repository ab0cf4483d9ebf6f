package localstack

import (
	"strings"
	"testing"
)

// all are the servers that Millrace uses.
var all = Need{Postgres: true, RabbitMQ: true, Redis: true}

func TestTheStackSettingIsOneOfTwo(t *testing.T) {
	t.Setenv(stackSetting, "vms")
	if _, err := Start(t.Context(), Options{Need: all}); err == nil || !strings.Contains(err.Error(), `got "vms", takes local, containers`) {
		t.Errorf("got %v, want what is taken", err)
	}
}
