// Package service holds what every Millrace service has: a logger, a metrics registry, the state behind /health and
// /ready, and an HTTP server that stops in order. It also has the group that stops several services from upstream to
// downstream.
//
// Its caller waits for every goroutine that is started here: Serve returns when its server has stopped, Group.Wait
// when every service has.
package service

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"millrace/internal/config"
)

// NewLogger returns a logger that writes to w as the settings say. If w is systemd's journal, each line begins with
// its priority.
func NewLogger(w io.Writer, p config.Process) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(p.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	handler := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, o) }
	if p.LogFormat == "json" {
		handler = func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, o) }
	}
	if toJournal(w) {
		o.ReplaceAttr = withoutTime
		return slog.New(newJournal(w, handler))
	}
	return slog.New(handler(w))
}

// Logger returns the logger of the service with that name, made from log. If log is nil, it logs to standard error as
// the settings say.
func Logger(log *slog.Logger, p config.Process, name string) *slog.Logger {
	if log == nil {
		log = NewLogger(os.Stderr, p)
	}
	return log.With("service", name)
}

// NewRegistry returns a registry with the metrics of the build, the Go runtime and the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewBuildInfoCollector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Ready is the state behind /ready: the conditions that do not hold, by name. The zero value is ready. Many
// goroutines may use it at once.
type Ready struct {
	mu       sync.Mutex
	reasons  map[string]string
	degraded map[string]string
}

// Set notes why a condition does not hold. An empty reason means that it holds.
func (r *Ready) Set(condition, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reason == "" {
		delete(r.reasons, condition)
		return
	}
	if r.reasons == nil {
		r.reasons = make(map[string]string)
	}
	r.reasons[condition] = reason
}

// Degrade notes what works less well than it should by the name of a part, without which the service is ready all the same. An empty reason
// means that the part works.
func (r *Ready) Degrade(part, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if reason == "" {
		delete(r.degraded, part)
		return
	}
	if r.degraded == nil {
		r.degraded = make(map[string]string)
	}
	r.degraded[part] = reason
}

// answer returns the status and the body of /ready.
func (r *Ready) answer() (status int, body map[string]any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	status, body = http.StatusOK, map[string]any{"status": "ready"}
	if len(r.reasons) > 0 {
		status, body = http.StatusServiceUnavailable, map[string]any{"status": "not ready", "reasons": maps.Clone(r.reasons)}
	}
	if len(r.degraded) > 0 {
		body["degraded"] = maps.Clone(r.degraded)
	}
	return status, body
}

// both returns copies of the reasons of the conditions that do not hold, and of what works less well than it should.
func (r *Ready) both() (reasons, degraded map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	reasons, degraded = make(map[string]string), make(map[string]string)
	maps.Copy(reasons, r.reasons)
	maps.Copy(degraded, r.degraded)
	return reasons, degraded
}

// Reasons returns the reasons of the conditions that do not hold, by the conditions' names.
func (r *Ready) Reasons() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]string, len(r.reasons))
	for k, v := range r.reasons {
		out[k] = v
	}
	return out
}

// Holds returns 1 if a condition holds, else 0, for a gauge.
func (r *Ready) Holds(condition string) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, fails := r.reasons[condition]; fails {
		return 0
	}
	return 1
}

// Handle adds GET /health, /ready and /metrics to mux, and the gauge millrace_ready to registry.
func Handle(mux *http.ServeMux, ready *Ready, registry *prometheus.Registry) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_ready",
		Help: "1 while /ready answers 200, else 0.",
	}, func() float64 {
		if len(ready.Reasons()) > 0 {
			return 0
		}
		return 1
	}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		WriteJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		status, body := ready.answer()
		WriteJSON(w, status, body)
	})
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		// The answer is made in full first: while a client reads slowly, its bytes take several times less memory
		// than the metrics it is made of.
		made := &Answer{Head: w.Header()}
		metrics.ServeHTTP(made, r)
		made.Head.Set("Content-Length", strconv.Itoa(made.Body.Len()))
		w.WriteHeader(cmp.Or(made.Status, http.StatusOK))
		_, _ = made.Body.WriteTo(w) // the client may be gone: nobody is left to tell
	})
}

// Answer is an http.ResponseWriter that keeps the answer.
type Answer struct {
	Head   http.Header
	Status int // 0: none was set, which means 200
	Body   bytes.Buffer
}

// Header returns the header to be sent.
func (a *Answer) Header() http.Header { return a.Head }

// WriteHeader keeps the status.
func (a *Answer) WriteHeader(status int) { a.Status = cmp.Or(a.Status, status) }

// Write keeps p.
func (a *Answer) Write(p []byte) (int, error) { return a.Body.Write(p) }

// WriteJSON answers with v as JSON. encoding/json must be able to encode v.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone: nobody is left to tell
}

// CheckAddress returns an error if Listen would refuse addr, as far as that shows without opening it. name is the
// name of its setting. Without keys Listen opens only loopback addresses, unless ALLOW_ANONYMOUS is set.
func CheckAddress(name string, addr config.Address, access config.Access) error {
	_, err := allow(name, addr, access)
	return err
}

// allow returns the error of CheckAddress, or the TLS configuration for the address, which is nil if access asks for
// no TLS.
func allow(name string, addr config.Address, access config.Access) (*tls.Config, error) {
	if access.KeysFile == "" && !access.AllowAnonymous && !addr.Loopback() {
		return nil, fmt.Errorf("%s: %s is not a loopback address and no keys are asked for: set KEYS_FILE, or ALLOW_ANONYMOUS=true", name, addr)
	}
	return TLSConfig(access)
}

// listen opens an address that CheckAddress allows, with TLS if access asks for it.
func listen(name string, addr config.Address, access config.Access) (net.Listener, error) {
	tlsConfig, err := allow(name, addr, access)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", string(addr))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if tlsConfig != nil {
		ln = tls.NewListener(ln, tlsConfig)
	}
	return ln, nil
}

// Open opens a service's address that CheckAddress allows, with TLS if access asks for it, and its profiles where
// PPROF_ADDR says. closeProfiles waits for their end.
func Open(name string, addr config.Address, access config.Access, p config.Process, log *slog.Logger) (ln net.Listener, closeProfiles func(), err error) {
	if ln, err = listen(name, addr, access); err != nil {
		return nil, nil, err
	}
	if closeProfiles, err = serveProfiles(p, log); err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	return ln, closeProfiles, nil
}

// TLSConfig returns the TLS configuration that a asks for, nil if it asks for none.
func TLSConfig(a config.Access) (*tls.Config, error) {
	if a.TLSCertFile == "" && a.TLSKeyFile == "" {
		if a.TLSClientCA != "" {
			return nil, errors.New("TLS_CLIENT_CA_FILE needs TLS_CERT_FILE and TLS_KEY_FILE")
		}
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(a.TLSCertFile, a.TLSKeyFile)
	if err != nil {
		return nil, fmt.Errorf("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if a.TLSClientCA != "" {
		pem, err := os.ReadFile(a.TLSClientCA)
		if err != nil {
			return nil, fmt.Errorf("TLS_CLIENT_CA_FILE: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS_CLIENT_CA_FILE: no certificate in %s", a.TLSClientCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// RegisterCertificate adds to a service's metrics the time at which its certificate expires. Without TLS it adds
// nothing. It reads the certificate once: a file that is replaced counts when the service is started again.
func RegisterCertificate(r prometheus.Registerer, a config.Access) error {
	if a.TLSCertFile == "" {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(a.TLSCertFile, a.TLSKeyFile)
	if err != nil {
		return fmt.Errorf("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
	}
	expiry := cert.Leaf.NotAfter
	for _, der := range cert.Certificate[1:] { // a chain expires with the first of its certificates
		if c, err := x509.ParseCertificate(der); err == nil && c.NotAfter.Before(expiry) {
			expiry = c.NotAfter
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_certificate_expiry_timestamp_seconds",
		Help: "When the certificate that is served, or one of its chain, expires.",
	})
	g.Set(float64(expiry.Unix()))
	return r.Register(g)
}
