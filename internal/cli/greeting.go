package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/localstack"
)

// directory learns where the services listen.
type directory struct {
	tls   bool // of api and query
	mu    sync.Mutex
	addrs map[string]string
}

func (d *directory) listener(name string) func(net.Addr) {
	return func(a net.Addr) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.addrs[name] = a.String()
	}
}

// url is where a service is, "" while it does not listen.
func (d *directory) url(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch addr := d.addrs[name]; {
	case addr == "":
		return ""
	case d.tls && name != "worker":
		return "https://" + addr
	default:
		return "http://" + addr
	}
}

// leaveWord writes into dir what programs beside millrace run want to know: targets.json has the addresses of all
// metrics for Prometheus' file_sd_configs, env the servers' URLs for a shell.
func leaveWord(dir string, where *directory, stack *localstack.Stack, environ map[string]string) error {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var groups []group
	add := func(job, scheme string, targets ...string) {
		groups = append(groups, group{targets, map[string]string{"job": job, "__scheme__": scheme}})
	}
	for _, name := range []string{"api", "worker", "query"} {
		scheme, address, _ := strings.Cut(where.url(name), "://")
		add(name, scheme, address)
	}
	if len(stack.RabbitMQMetrics) > 0 {
		add("rabbitmq", "http", stack.RabbitMQMetrics...)
	}
	targets, err := json.MarshalIndent(groups, "", "  ")
	if err != nil {
		return err
	}
	var env strings.Builder
	for _, name := range []string{"POSTGRES_URL", "RABBITMQ_URL", "REDIS_URL"} {
		fmt.Fprintf(&env, "%s='%s'\n", name, strings.ReplaceAll(environ[name], "'", `'\''`))
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "targets.json"), append(targets, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "env"), []byte(env.String()), 0o600),
	)
}

// greet waits until all services are ready and says where they are.
func greet(ctx context.Context, w io.Writer, where *directory, stack *localstack.Stack, dir string) {
	for _, name := range []string{"api", "worker", "query"} {
		for !isReady(ctx, where.url(name)) {
			if broker.Sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nMillrace is running. Search and follow the logs at %s/\n", where.url("query"))
	fmt.Fprintf(t, "  api\t%s\tPOST /log, POST /log/batch\n", where.url("api"))
	fmt.Fprintf(t, "  query\t%s\tGET /logs, GET /logs/{id}, GET /logs/count\n", where.url("query"))
	fmt.Fprintf(t, "  worker\t%s\tGET /metrics, GET /ready\n", where.url("worker"))
	for _, kv := range stack.Env() {
		name, value, _ := strings.Cut(kv, "=")
		server, _, _ := strings.Cut(name, "_")
		fmt.Fprintf(t, "  %s\t%s\n", strings.ToLower(server), shownServers(name, value))
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	fmt.Fprintf(t, "  data\t%s\tits file env has the servers' URLs with their passwords\n", dir)
	fmt.Fprintf(t, "\nSend a log:  curl -X POST -d '{\"level\":\"info\",\"message\":\"hello\"}' %s/log\n", where.url("api"))
	fmt.Fprintf(t, "See it:      curl %s/logs\n", where.url("query"))
	fmt.Fprintln(t, "Ctrl-C stops everything.")
	_ = t.Flush() // standard output may be closed; the services run all the same
}

// shownServers returns what may be shown of the URLs of private servers: where they lead, without the passwords.
func shownServers(setting, urls string) string {
	switch setting {
	case "POSTGRES_URL":
		return config.PostgresURL(urls).String()
	case "REDIS_URL":
		return config.RedisURL(urls).String()
	}
	return strings.Trim(fmt.Sprint(config.Brokers(urls)), "[]")
}

// isReady asks a service on this machine. One that speaks TLS is ready when it listens: what its certificate says
// and whom it lets in is between it and its clients.
func isReady(ctx context.Context, url string) bool {
	if strings.HasPrefix(url, "https://") {
		return true
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/ready", nil)
	if err != nil || url == "" {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
