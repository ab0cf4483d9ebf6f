package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"syscall"
	"time"

	"millrace/internal/config"
	"millrace/internal/httpclient"
)

const healthHelp = `Asks URL, or /health of whatever listens at API_ADDR, QUERY_ADDR and WORKER_ADDR, and ends with status 0 when the
answer is 200, else 1. It is made for health checks of containers, which have neither a shell nor curl.`

// healthTimeout is how long a service may take to answer and still count as alive.
const healthTimeout = 3 * time.Second

// health runs millrace health.
func health(ctx context.Context, args []string) error {
	if len(args) > 1 {
		return usagef("health: unexpected argument %s", config.Shown(args[1]))
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if len(args) == 1 {
		return ask(ctx, args[0])
	}
	var a struct {
		API    config.Address `env:"API_ADDR" envDefault:"127.0.0.1:8080"`
		Query  config.Address `env:"QUERY_ADDR" envDefault:"127.0.0.1:8081"`
		Worker config.Address `env:"WORKER_ADDR" envDefault:"127.0.0.1:8082"`
		config.Access
	}
	if err := config.Load(&a); err != nil {
		return err
	}
	listening := 0
	for _, addr := range []config.Address{a.API, a.Query, a.Worker} {
		scheme := "http://"
		if a.TLSCertFile != "" && addr != a.Worker {
			scheme = "https://"
		}
		switch err := ask(ctx, scheme+reachable(string(addr))+"/health"); {
		case errors.Is(err, syscall.ECONNREFUSED):
			continue // another service's address
		case err != nil:
			return err
		}
		listening++
	}
	if listening == 0 {
		return fmt.Errorf("health: nothing listens at %s, %s or %s", a.API, a.Query, a.Worker)
	}
	return nil
}

// reachable returns an address at which this machine reaches what listens at addr. They differ when addr stands for all
// addresses of the machine, as 0.0.0.0:8080 does.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr
	}
	return net.JoinHostPort("localhost", port)
}

// ask returns an error unless url answers 200, or asks for a client's certificate.
func ask(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usagef("health: %s is no URL", config.Shown(url))
	}
	// The certificate is not checked: it hardly names localhost, and whether a service is alive does not depend on it.
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error": // TLS's own answer: it wants a client certificate
		return nil
	case err != nil:
		return fmt.Errorf("health: %s: %w", withoutUser(req.URL), httpclient.WithoutURL(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the reason, as far as it came
	return fmt.Errorf("health: %s: %s %s", withoutUser(req.URL), resp.Status, bytes.TrimSpace(body))
}

// withoutUser returns a URL without user, password and parameters.
func withoutUser(u *neturl.URL) string { return u.Scheme + "://" + u.Host + u.Path }
