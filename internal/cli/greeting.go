package cli

import (
	"bytes"
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

	"millrace/internal/config"
	"millrace/internal/localstack"
	"millrace/internal/retry"
)

// addresses are where the services listen. Many goroutines may call its methods at once.
type addresses struct {
	tls bool // whether api and query speak TLS; the worker never does

	mu        sync.Mutex
	listening map[string]string // host:port by the service's name
}

// note returns a function that notes a service's address. It is for the service's OnListen.
func (a *addresses) note(name string) func(net.Addr) {
	return func(addr net.Addr) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.listening[name] = addr.String()
	}
}

// url returns the URL of a service, "" while it does not listen.
func (a *addresses) url(name string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch addr := a.listening[name]; {
	case addr == "":
		return ""
	case a.tls && name != "worker":
		return "https://" + addr
	default:
		return "http://" + addr
	}
}

// writeAddresses writes two files into dir for other programs: targets.json has the addresses of all metrics, for Prometheus'
// file_sd_configs; env has the servers' URLs, for a shell.
func writeAddresses(dir string, addrs *addresses, stack *localstack.Stack, environ map[string]string) error {
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var groups []group
	add := func(job, scheme string, targets ...string) {
		groups = append(groups, group{targets, map[string]string{"job": job, "__scheme__": scheme}})
	}
	for _, name := range []string{"api", "worker", "query"} {
		scheme, address, _ := strings.Cut(addrs.url(name), "://")
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

// greetWhenReady waits until all services are ready and then writes where they are. It reports false, and writes nothing, if ctx
// ends before.
func greetWhenReady(ctx context.Context, w io.Writer, addrs *addresses, stack *localstack.Stack, dir string) bool {
	for _, name := range []string{"api", "worker", "query"} {
		for !isReady(ctx, addrs.url(name)) {
			if retry.Sleep(ctx, 50*time.Millisecond) != nil {
				return false
			}
		}
	}
	var greeting bytes.Buffer // written as one, so that no line of the log falls between its lines
	t := tabwriter.NewWriter(&greeting, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nMillrace is running. Search and follow the logs at %s/\n", addrs.url("query"))
	fmt.Fprintf(t, "  api\t%s\tPOST /log, POST /log/batch\n", addrs.url("api"))
	fmt.Fprintf(t, "  query\t%s\tGET /logs, GET /logs/{id}, GET /logs/count\n", addrs.url("query"))
	fmt.Fprintf(t, "  worker\t%s\tGET /metrics, GET /ready\n", addrs.url("worker"))
	for _, kv := range stack.Env() {
		name, value, _ := strings.Cut(kv, "=")
		server, _, _ := strings.Cut(name, "_")
		fmt.Fprintf(t, "  %s\t%s\n", strings.ToLower(server), shownServers(name, value))
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	fmt.Fprintf(t, "  data\t%s\tits file env has the servers' URLs with their passwords\n", dir)
	fmt.Fprintf(t, "\nSend a log:  curl -X POST -d '{\"level\":\"info\",\"message\":\"hello\"}' %s/log\n", addrs.url("api"))
	fmt.Fprintf(t, "See it:      curl %s/logs\n", addrs.url("query"))
	fmt.Fprintln(t, "Ctrl-C stops everything.")
	_ = t.Flush()                    // a buffer takes everything
	_, _ = w.Write(greeting.Bytes()) // standard output may be closed; the services run all the same
	return true
}

// shownServers returns the URLs of a private server without the password.
func shownServers(setting, urls string) string {
	switch setting {
	case "POSTGRES_URL":
		return config.PostgresURL(urls).String()
	case "REDIS_URL":
		return config.RedisURL(urls).String()
	}
	return strings.Trim(fmt.Sprint(config.Brokers(urls)), "[]")
}

// isReady reports whether a service of this process is ready. One that speaks TLS counts as ready when it listens, because
// its certificate may name another host, and it may ask for a client's certificate.
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
