package chaos

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// state returns what the parts of the system say of themselves: what each process answers to /ready, and the end of its log; how
// many messages wait in each queue; what PostgreSQL's sessions do. It is for whoever must find out why there is no recovery.
func (r *run) state(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var b strings.Builder
	fmt.Fprintf(&b, "the system's state: %d requests acked", r.load.acked.Load())
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, u := range r.units {
		status, text := readiness(ctx, client, u.addr)
		fmt.Fprintf(&b, "\n  %s, process %d: %d %s\n%s", u.name, u.pid(), status, text, u.tail())
	}
	if waiting, err := r.waiting(ctx); err != nil {
		fmt.Fprintf(&b, "\n  RabbitMQ: %v", err)
	} else {
		for _, name := range slices.Sorted(maps.Keys(waiting)) {
			fmt.Fprintf(&b, "\n  queue %s: %d", name, waiting[name])
		}
	}
	sessions, err := r.sessions(ctx)
	if err != nil {
		fmt.Fprintf(&b, "\n  PostgreSQL: %v", err)
	}
	for _, s := range sessions {
		fmt.Fprintf(&b, "\n  session %s", s)
	}
	return b.String()
}

// readiness returns the status of a process's answer to /ready and the beginning of what it says, or 0 and why there is no answer.
func readiness(ctx context.Context, client *http.Client, addr string) (status int, text string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ready", nil)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() // read as far as is needed
	body, err := io.ReadAll(io.LimitReader(resp.Body, 500))
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

// sessions returns a line for each session of PostgreSQL that does something or holds a transaction, but its own.
func (s *system) sessions(ctx context.Context) ([]string, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx) // nothing to lose
	rows, err := conn.Query(ctx, `SELECT format('%s %s, %s, waits for %s, blocked by %s, transaction of %s: %s', pid, application_name, state,
			coalesce(wait_event, 'nothing'), pg_blocking_pids(pid)::text, coalesce((clock_timestamp() - xact_start)::text, 'none'), left(query, 120))
		FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() ORDER BY xact_start NULLS LAST, pid`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
