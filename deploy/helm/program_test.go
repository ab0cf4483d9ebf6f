package helm

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// TestTheServicesStartAsTheChartStartsThem runs each service with the arguments and variables that its pod has, without any server to
// talk to, and asks what the pod's probes ask. That is a cluster in which RabbitMQ and PostgreSQL are away: the services live, new pods
// get no requests, and pods that had some keep them, because the API tells its clients when to come back.
func TestTheServicesStartAsTheChartStartsThem(t *testing.T) {
	millrace, err := filepath.Abs("../../bin/millrace")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(millrace); err != nil {
		t.Skip("bin/millrace is missing: make chart builds it")
	}
	rendered := render(t, least, "keys: {secret: ''}\nsettings: {ALLOW_ANONYMOUS: true, SHUTDOWN_TIMEOUT: 5s}\nsecrets: {REDIS_URL: {name: redis, key: url}}")
	away := map[string]string{"RABBITMQ_URL": "amqp://u:p@127.0.0.1:1/", "POSTGRES_URL": "postgres://u:p@127.0.0.1:1/d", "REDIS_URL": "redis://127.0.0.1:1/0"}
	for _, name := range []string{"api", "worker", "query"} {
		c := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Template.Spec.Containers[0]
		given := environment(c)
		for k, v := range given {
			if v == "" {
				given[k] = away[k]
			}
		}
		// The container's ports are its own; here others may have them.
		addresses := map[string]string{":8080": freeAddress(t), ":8081": freeAddress(t), ":8082": freeAddress(t)}
		for k, v := range given {
			if addr, ok := addresses[v]; ok {
				given[k] = addr
			}
		}
		cmd := exec.Command(millrace, c.Args...)
		cmd.Dir = t.TempDir() // without .env
		for k, v := range given {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		ask := func(probe *corev1.Probe) int { return status("http://" + addresses[":8082"] + probe.HTTPGet.Path) }
		deadline := time.Now().Add(time.Minute)
		for ask(c.LivenessProbe) != http.StatusOK {
			select {
			case err := <-ended:
				t.Fatalf("%s: %v\n%s", name, err, &said)
			case <-time.After(20 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill() // the test has failed
				t.Fatalf("%s is not alive\n%s", name, &said)
			}
		}
		starts, ready := ask(c.StartupProbe), ask(c.ReadinessProbe)
		switch name {
		case "api":
			if starts != http.StatusServiceUnavailable || ready != http.StatusOK {
				t.Errorf("api without RabbitMQ: the probe of the start gets %d and that of readiness %d, want 503 and 200", starts, ready)
			}
			resp, err := http.Post("http://"+addresses[":8080"]+"/log", "application/json", strings.NewReader(`{"message":"away"}`))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
				t.Errorf("api without RabbitMQ answers %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
			}
		case "query":
			if starts != http.StatusServiceUnavailable || ready != http.StatusOK {
				t.Errorf("query without PostgreSQL: the probe of the start gets %d and that of readiness %d, want 503 and 200", starts, ready)
			}
			if page, logs := status("http://"+addresses[":8081"]+"/"), status("http://"+addresses[":8081"]+"/logs"); page != http.StatusOK || logs != http.StatusServiceUnavailable {
				t.Errorf("query without PostgreSQL: the page is %d and a search %d, want 200 and 503", page, logs)
			}
		case "worker":
			if starts != http.StatusOK || ready != http.StatusServiceUnavailable {
				t.Errorf("worker without its servers: the probe of the start gets %d and that of readiness %d, want 200 and 503", starts, ready)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		grace := time.Duration(*get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, &said)
			}
		case <-time.After(grace):
			_ = cmd.Process.Kill() // the test has failed
			t.Errorf("%s has not stopped within the pod's grace of %v\n%s", name, grace, &said)
		}
	}
}

// freeAddress returns an address of this machine at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// status returns the status of a GET, 0 if there is no answer.
func status(url string) int {
	resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}
