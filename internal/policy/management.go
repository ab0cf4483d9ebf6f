package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/broker"
	"millrace/internal/config"
	"millrace/internal/httpclient"
)

const (
	// ShieldPriority is the priority of the policies that shield the queues. A policy with a lower priority does not
	// apply to them. RabbitMQ allows a higher one, but that would be set on purpose.
	ShieldPriority = 1_000_000

	// managementTimeout bounds one request to the management API, and managementBytes its answer.
	managementTimeout = 5 * time.Second
	managementBytes   = 1 << 20
)

// Shield is a policy that keeps others from applying to our queues.
type Shield struct {
	Name       string         `json:"-"`
	Pattern    string         `json:"pattern"`
	Definition map[string]any `json:"definition"`
	Priority   int            `json:"priority"`
	ApplyTo    string         `json:"apply-to"`
}

// Shields returns the policies that shield the queues of a topology, first that of the quorum queues, then that of the
// stream. A policy needs a key, and applies only to queues whose type knows all its keys. So there are two, and each
// sets a key to what holds anyway.
func Shields(t broker.Topology) []Shield {
	name := regexp.QuoteMeta(t.Exchange())
	return []Shield{
		{"millrace." + t.Exchange(), `^` + name + `\.([0-9]+|dead|parked|canary)$`, map[string]any{"overflow": "reject-publish"}, ShieldPriority, "queues"},
		{"millrace." + t.Exchange() + ".last", `^` + regexp.QuoteMeta(t.LastStream()) + `$`, map[string]any{"queue-leader-locator": "client-local"}, ShieldPriority, "queues"},
	}
}

// management asks RabbitMQ's management API.
type management struct {
	urls     config.ManagementURLs
	vhost    string
	topology broker.Topology
	client   http.Client
}

// newManagement returns the management API of the server that c.URLs leads to.
func newManagement(c config.Broker) (*management, error) {
	m := &management{urls: c.Management, topology: broker.NewTopology(c), client: http.Client{Timeout: managementTimeout, CheckRedirect: httpclient.NoRedirect}}
	uri, err := config.Parse(c.URLs[0], amqp.ParseURI)
	if err != nil {
		return nil, err
	}
	m.vhost = uri.Vhost
	return m, nil
}

// statusError is an answer of the management API with a status of 300 or more.
type statusError struct {
	code int
	path string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("RabbitMQ's management API answered %d to %s", e.code, e.path)
}

// hasStatus reports whether err is a statusError with one of the codes.
func hasStatus(err error, codes ...int) bool {
	var status *statusError
	if errors.As(err, &status) {
		for _, c := range codes {
			if status.code == c {
				return true
			}
		}
	}
	return false
}

// call makes a request to the first of the URLs that answers. It sends in as JSON unless that is nil, and decodes the
// answer into out unless that is nil.
func (m *management) call(ctx context.Context, method, path string, in, out any) error {
	var last error
	for _, base := range m.urls {
		last = m.callOne(ctx, base, method, path, in, out)
		var status *statusError
		if last == nil || errors.As(last, &status) {
			break
		}
	}
	return last
}

// callOne makes a request to one URL; see call.
func (m *management) callOne(ctx context.Context, base config.ManagementURL, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, string(base)+path, body)
	if err != nil {
		return errors.New("RABBITMQ_MANAGEMENT_URL is no URL to ask")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.client.Do(req)
	if err != nil {
		return fmt.Errorf("RabbitMQ's management API at %v: %w", base, httpclient.WithoutURL(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, managementBytes))
	if err != nil {
		return fmt.Errorf("RabbitMQ's management API at %v: %w", base, err)
	}
	if resp.StatusCode >= 300 {
		return &statusError{resp.StatusCode, method + " " + strings.SplitN(path, "?", 2)[0]}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("RabbitMQ's management API at %v: %w", base, err)
	}
	return nil
}

// path returns a path below /api, made of names, which it escapes.
func path(names ...string) string {
	var b strings.Builder
	b.WriteString("/api")
	for _, n := range names {
		b.WriteString("/" + url.PathEscape(n))
	}
	return b.String()
}

// look returns what harms the queues, and whether the shields apply to all of them. It passes over a queue that does
// not exist yet: the next service to connect declares it.
func (m *management) look(ctx context.Context) (found []Harm, shielded bool, err error) {
	shielded = true
	shields := Shields(m.topology)
	for _, name := range append(m.topology.WorkQueues(), m.topology.LastStream()) {
		var q queue
		err := m.call(ctx, http.MethodGet, path("queues", m.vhost, name)+
			"?columns=name,type,arguments,policy,operator_policy,effective_policy_definition", nil, &q)
		if hasStatus(err, http.StatusNotFound) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		want := shields[0].Name
		if name == m.topology.LastStream() {
			want = shields[1].Name
		}
		shielded = shielded && q.Policy == want
		found = append(found, harms(m.topology, q, func(key string) string { return m.source(ctx, q, key) })...)
	}
	return found, shielded, nil
}

// source returns words for the policy that a key of a queue comes from.
func (m *management) source(ctx context.Context, q queue, key string) string {
	regular, operator := "the policy "+q.Policy, "the operator policy "+q.Operator
	switch {
	case q.Operator == "":
		return regular
	case q.Policy == "":
		return operator
	}
	var p struct{ Definition map[string]any }
	if err := m.call(ctx, http.MethodGet, path("operator-policies", m.vhost, q.Operator), nil, &p); err != nil {
		return regular + " or " + operator
	}
	if p.Definition[key] == q.Definition[key] {
		return operator
	}
	return regular
}

// shield sets the policies that shield the queues.
func (m *management) shield(ctx context.Context) error {
	for _, s := range Shields(m.topology) {
		if err := m.call(ctx, http.MethodPut, path("policies", m.vhost, s.Name), s, nil); err != nil {
			return err
		}
	}
	return nil
}
