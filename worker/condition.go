package worker

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
)

// reminderInterval is the time after which a condition that still fails is logged again.
const reminderInterval = 30 * time.Second

// readiness is told why a condition does not hold, "" if it holds; see service.Ready and service.Part.
type readiness interface {
	Set(condition, reason string)
}

// condition knows whether all streams can use a server that they need. It fails as long as one of them can't. Many goroutines may use
// it at once.
type condition struct {
	name  string    // as /ready shows it
	ready readiness // may be nil
	log   *slog.Logger
	gauge prometheus.Gauge // 1 while it holds; may be nil

	mu     sync.Mutex
	failed map[string]string // the reason, by stream; a stream without an entry can use the server
	logged time.Time         // when a failure was logged last; zero: not since the condition last held
}

// fail records that the condition does not hold for a stream, and why.
func (c *condition) fail(stream string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = make(map[string]string)
	}
	c.failed[stream] = publicReason(err)
	c.publish()
	if time.Since(c.logged) >= reminderInterval {
		c.logged = time.Now()
		c.log.Warn(c.name+" fails, trying again", "stream", stream, "error", err)
	}
}

// publicReason returns what /ready may tell anybody about err. Hosts, users and databases stay in the log.
func publicReason(err error) string {
	var connect *pgconn.ConnectError
	var answer *pgconn.PgError
	var network *net.OpError
	var name *net.DNSError
	switch {
	case errors.As(err, &connect) && errors.As(err, &answer):
		return "refuses the connection (SQLSTATE " + answer.Code + "); the log says why"
	case errors.As(err, &connect), errors.As(err, &network), errors.As(err, &name):
		return "can't be connected to; the log says why"
	}
	return err.Error()
}

// pending records that a stream does not know yet whether the condition holds.
func (c *condition) pending(stream string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = make(map[string]string)
	}
	c.failed[stream] = "not connected yet"
	c.publish()
}

// hold records that the condition holds for a stream.
func (c *condition) hold(stream string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.failed[stream]; !ok {
		return
	}
	delete(c.failed, stream)
	c.publish()
	if len(c.failed) == 0 && !c.logged.IsZero() {
		c.logged = time.Time{}
		c.log.Info(c.name + " answers again")
	}
}

// publish sets /ready and the gauge to the present state. The caller holds mu.
func (c *condition) publish() {
	reason, value := "", 1.0
	for _, r := range c.failed {
		reason, value = r, 0
	}
	if c.ready != nil {
		c.ready.Set(c.name, reason)
	}
	if c.gauge != nil {
		c.gauge.Set(value)
	}
}
