//go:build containers

package localstack

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
)

func TestContainersAreThoseOfDockerCompose(t *testing.T) {
	c := containers{credentials: credentials{
		PostgresPassword: "p", RabbitUser: "millrace", RabbitPassword: "r", RedisPassword: "c",
	}}
	project, err := loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  "../..",
		ConfigFiles: []types.ConfigFile{{Filename: "../../docker-compose.yml"}},
		Environment: map[string]string{
			"POSTGRES_PASSWORD": "p", "RABBITMQ_PASSWORD": "r", "REDIS_PASSWORD": "c",
			"POSTGRES_OWNER_PASSWORD": "-", "POSTGRES_WRITER_PASSWORD": "-", "POSTGRES_READER_PASSWORD": "-",
			"POSTGRES_MONITOR_PASSWORD": "-", "RABBITMQ_COOKIE": "-", "GRAFANA_PASSWORD": "-",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{postgres, rabbitmq, redis} {
		got, err := c.image(name)
		if err != nil {
			t.Fatal(err)
		}
		s := project.Services[name]
		if got.name != s.Image {
			t.Errorf("%s: image %s, docker-compose.yml has %s", name, got.name, s.Image)
		}
		if diff := cmp.Diff([]string(s.Command), got.command); diff != "" {
			t.Errorf("%s: command (-compose +containers):\n%s", name, diff)
		}
		if got.memory != int64(s.MemLimit) || got.shared != int64(s.ShmSize) {
			t.Errorf("%s: %d bytes of memory, %d of them shared; docker-compose.yml has %d and %d", name, got.memory, got.shared, s.MemLimit, s.ShmSize)
		}
		for variable, value := range got.env {
			if v := s.Environment[variable]; v == nil || *v != value {
				t.Errorf("%s: %s=%s is not what docker-compose.yml has", name, variable, value)
			}
		}
		for path, content := range got.files {
			for _, v := range s.Volumes {
				if v.Target != path {
					continue
				}
				text, err := os.ReadFile(v.Source)
				if err != nil {
					t.Fatal(err)
				}
				want := regexp.MustCompile(`(?m)^(#.*)?\n`).ReplaceAllString(string(text), "")
				if diff := cmp.Diff(want, content); diff != "" {
					t.Errorf("%s: %s (-compose +containers):\n%s", name, path, diff)
				}
			}
		}
	}
}

func TestContainersWithoutAnEngineAreAnErrorThatSaysSo(t *testing.T) {
	if _, err := os.Stat("/var/run/docker.sock"); err == nil {
		t.Skip("a Docker engine may answer")
	}
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	t.Setenv(stackSetting, "containers")
	_, err := Start(t.Context(), Options{Need: all})
	if err == nil || !strings.Contains(err.Error(), "MILLRACE_STACK=containers: no Docker engine answers: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line that says so", err)
	}
}

// TestContainersServe is for machines with a Docker engine.
func TestContainersServe(t *testing.T) {
	if os.Getenv(stackSetting) != "containers" {
		t.Skip("MILLRACE_STACK=containers runs this and all other tests on servers in containers")
	}
	s, err := Start(t.Context(), Options{Need: all})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{postgres, rabbitmq, redis} {
		if err := s.Kill(name); err != nil {
			t.Errorf("kill %s: %v", name, err)
		}
		if err := s.Restart(t.Context(), name); err != nil {
			t.Errorf("restart %s: %v", name, err)
		}
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}
