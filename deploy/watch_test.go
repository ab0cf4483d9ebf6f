package deploy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"millrace/internal/config"
	"millrace/internal/frame"
	"millrace/internal/localstack"
	"millrace/internal/testenv"
)

// timeScale is how much shorter the rules' durations are in the test, so that an alert takes seconds instead of minutes. It
// applies to the ranges of rates and to the for of alerts, not to thresholds.
const timeScale = 120

// scrapeEvery is the interval of scrapes and evaluations. The configuration for make run has 5 s.
const scrapeEvery = "500ms"

// prometheusServer is a running Prometheus.
type prometheusServer struct{ url string }

// scaled returns a rules file with its durations divided by timeScale.
func scaled(text string) string {
	units := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	return regexp.MustCompile(`(\[|for: )(\d+)([smhd])\b`).ReplaceAllStringFunc(text, func(s string) string {
		m := regexp.MustCompile(`^(\[|for: )(\d+)([smhd])$`).FindStringSubmatch(s)
		n, _ := strconv.Atoi(m[2]) // digits
		return fmt.Sprintf("%s%dms", m[1], (time.Duration(n) * units[m[3]] / timeScale).Milliseconds())
	})
}

// startPrometheus starts a Prometheus with the configuration for make run and the scaled rules.
func startPrometheus(t testing.TB, targets, exporter string) prometheusServer {
	t.Helper()
	path := program(t, "prometheus")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "rules"), 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("deploy/prometheus/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, "rules", filepath.Base(f)), []byte(scaled(readAll(t, f))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := testenv.FreeAddress(t)
	conf := readAll(t, "deploy/prometheus/local.yml")
	for _, r := range [][2]string{
		{"_interval: 5s", "_interval: " + scrapeEvery},
		// postgres_exporter takes a second to say that PostgreSQL is down.
		{"job_name: postgres\n", "job_name: postgres\n    scrape_interval: 2s\n    scrape_timeout: 2s\n"},
		{"../../.millrace/targets.json", targets}, {"127.0.0.1:9187", exporter}, {"127.0.0.1:9090", addr},
	} {
		if !strings.Contains(conf, r[0]) {
			t.Fatalf("local.yml has no %q", r[0])
		}
		conf = strings.ReplaceAll(conf, r[0], r[1])
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.RunProgram(t, nil, path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--log.level=warn")
	p := prometheusServer{"http://" + addr}
	testenv.Eventually(t, 30*time.Second, "Prometheus is ready", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// get asks Prometheus' API and decodes data.
func (p prometheusServer) get(t testing.TB, path string, params url.Values, data any) error {
	t.Helper()
	resp, err := http.Get(p.url + "/api/v1/" + path + "?" + params.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read to its end
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("status %d: %w", resp.StatusCode, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s", answer.Error)
	}
	return nil
}

// series is what a query returns.
type series struct {
	Metric map[string]string
	Value  [2]any // time and value, as text
}

func (p prometheusServer) query(t testing.TB, expr string) ([]series, error) {
	t.Helper()
	var data struct{ Result []series }
	err := p.get(t, "query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}

// firing returns the names of the alerts that fire. The test fails if an alert's text has an error in it.
func (p prometheusServer) firing(t testing.TB) []string {
	t.Helper()
	var data struct {
		Alerts []struct {
			Labels, Annotations map[string]string
			State               string
		}
	}
	if err := p.get(t, "alerts", nil, &data); err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, a := range data.Alerts {
		for _, text := range a.Annotations {
			if strings.Contains(text, "<error") || strings.Contains(text, "<no value>") {
				t.Errorf("%s says %q", a.Labels["alertname"], text)
			}
		}
		if a.State == "firing" {
			names[a.Labels["alertname"]] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// await waits until all these alerts fire, and logs which others do.
func (p prometheusServer) await(t testing.TB, alerts ...string) {
	t.Helper()
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("at last these fired: %v", last)
		}
	}()
	testenv.Eventually(t, time.Minute, fmt.Sprintf("%v fire", alerts), func() bool {
		last = p.firing(t)
		for _, a := range alerts {
			if !slices.Contains(last, a) {
				return false
			}
		}
		return true
	})
	t.Logf("%s firing: %v", time.Now().Format("05.0"), last)
}

// quiet waits until no alert fires. Those of the error budget may: their ranges are minutes even when scaled.
func (p prometheusServer) quiet(t testing.TB) {
	t.Helper()
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("at last these fired: %v", last)
		}
	}()
	testenv.Eventually(t, 90*time.Second, "no alert fires", func() bool {
		last = slices.DeleteFunc(p.firing(t), func(name string) bool { return strings.HasPrefix(name, "MillraceErrorBudget") })
		return len(last) == 0
	})
}

// TestPrometheusAndTheDashboardsSeeMillrace has a real Prometheus watch millrace run under load, by the configuration in
// deploy/. All targets are up, the rules work, and every panel's query returns data. Alerts fire and clear when a dead letter
// comes, when RabbitMQ blocks, and when PostgreSQL dies. Durations are scaled: see timeScale.
func TestPrometheusAndTheDashboardsSeeMillrace(t *testing.T) {
	if testing.Short() {
		t.Skip("starts private servers")
	}
	testenv.NeedServers(t)
	program(t, "prometheus")
	exporterPath := program(t, "prometheus-postgres-exporter")

	stack, err := localstack.Start(t.Context(), localstack.Options{Need: localstack.Need{Postgres: true, RabbitMQ: true, Redis: true}, Metrics: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	cert, certKey, _ := selfSigned(t)
	keysFile, secret := newKeysFile(t)
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(hook.Close)
	searches := filepath.Join(dir, "searches.yaml")
	text := fmt.Sprintf("receivers: [{name: hook, webhook: %q}]\nsearches: [{name: errors, q: level:error, when: count > 0 in 1m, by: service, every: 1s, delay: 0s, tell: hook}]\n", hook.URL)
	if err := os.WriteFile(searches, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api, query, exporter := testenv.FreeAddress(t), testenv.FreeAddress(t), testenv.FreeAddress(t)
	testenv.StartMillrace(t, dir, append(stack.Env(), "API_ADDR="+api, "QUERY_ADDR="+query, "WORKER_ADDR=127.0.0.1:0",
		"KEYS_FILE="+keysFile, "TLS_CERT_FILE="+cert, "TLS_KEY_FILE="+certKey, "SEARCHES_FILE="+searches, "CONFIRM_TIMEOUT=2s", "SYSLOG_UDP_ADDR="+testenv.FreeAddress(t)), "run")
	testenv.RunProgram(t, []string{"DATA_SOURCE_NAME=" + stack.PostgresURL}, exporterPath, "--web.listen-address="+exporter)

	// The test starts the servers itself, to break them. So millrace run does not list their metrics.
	targets := filepath.Join(dir, ".millrace", "targets.json")
	testenv.Eventually(t, time.Minute, "millrace run lists its targets", func() bool {
		b, err := os.ReadFile(targets)
		return err == nil && bytes.HasSuffix(b, []byte("]\n"))
	})
	b, err := os.ReadFile(targets)
	if err != nil {
		t.Fatal(err)
	}
	b = append(bytes.TrimSuffix(b, []byte("\n]\n")), fmt.Sprintf(`, {"targets": [%q], "labels": {"job": "rabbitmq"}}]`, stack.RabbitMQMetrics[0])...)
	withRabbitMQ := filepath.Join(dir, "targets.json")
	if err := os.WriteFile(withRabbitMQ, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startPrometheus(t, withRabbitMQ, exporter)

	stop := loadAndSearch(t, "https://"+api, "https://"+query, secret)
	defer stop()

	testenv.Eventually(t, 30*time.Second, "all targets are up", func() bool {
		up, err := p.query(t, "up == 1")
		if err != nil {
			t.Fatal(err)
		}
		var jobs []string
		for _, s := range up {
			jobs = append(jobs, s.Metric["job"])
		}
		slices.Sort(jobs)
		return slices.Equal(jobs, []string{"api", "postgres", "prometheus", "query", "rabbitmq", "rabbitmq-queues", "worker"})
	})
	p.quiet(t)
	t.Log(time.Now().Format("05.0"), "quiet")

	// A message that is no frame becomes a dead letter.
	ch := testenv.Channel(t, config.Broker{URLs: config.Brokers(stack.RabbitMQURL)})
	if err := ch.PublishWithContext(t.Context(), "logs", "logs.0", true, false, amqp.Publishing{Type: "millrace.frame.v1", Body: []byte("no frame")}); err != nil {
		t.Fatal(err)
	}
	p.await(t, "MillraceDeadLetters")
	t.Run("panels", func(t *testing.T) { everyPanelReturnsData(t, p, stack.PostgresURL) })
	t.Run("rules", func(t *testing.T) { everyRuleWorks(t, p) })
	t.Run("names", func(t *testing.T) { everyMetricIsExported(t, p) })
	p.quiet(t)
	t.Log(time.Now().Format("05.0"), "quiet")

	ctl := func(args ...string) {
		t.Helper()
		if err := stack.RabbitMQCtl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	ctl("set_vm_memory_high_watermark", "0.000001")
	p.await(t, "RabbitMQAlarm", "MillraceBrokerBlocked", "MillraceRequestsRefused")
	ctl("set_vm_memory_high_watermark", "0.4")
	p.quiet(t)
	t.Log(time.Now().Format("05.0"), "quiet")

	if err := stack.Kill("postgres"); err != nil {
		t.Fatal(err)
	}
	p.await(t, "PostgresDown", "MillraceDatabaseUnusable", "MillraceNotStoring")
	if err := stack.Restart(t.Context(), "postgres"); err != nil {
		t.Fatal(err)
	}
	p.quiet(t)
	t.Log(time.Now().Format("05.0"), "quiet")
}

// loadAndSearch posts and searches until stop is called. It does enough for every metric to have a value, and so little that
// is refused that no alert fires for it.
func loadAndSearch(t testing.TB, api, query, secret string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	every := func(pause time.Duration, f func(n int)) {
		working.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				f(n)
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
			}
		})
	}
	late := frame.NewBase()
	binary.BigEndian.PutUint64(late[:], uint64(time.Now().Add(-5*time.Minute).UnixMilli())<<16|0x7000)
	askWithKey(t, "POST", api+"/log", secret, []byte(`{"level":"info","message":"late"}`), "Idempotency-Key", late.String())
	every(50*time.Millisecond, func(n int) {
		var body bytes.Buffer
		for i := range 50 {
			fmt.Fprintf(&body, `{"level":%q,"service":"s%d","message":"record %d of batch %d"}`+"\n", []string{"info", "warn", "error"}[i%3], i%7, i, n)
		}
		if n%20 == 0 {
			body.WriteString("{\"message\":\"\\u0000\"}\n")
		}
		askWithKey(t, "POST", api+"/log/batch", secret, body.Bytes())
		askWithKey(t, "POST", api+"/log", secret, []byte(`{"level":"info","msg":"one"}`))
	})
	closed := fmt.Sprintf("from=%d&to=%d", time.Now().Add(-time.Hour).Unix(), time.Now().Add(-10*time.Minute).Unix())
	paths := []string{
		"/logs?q=level:error", "/logs/count?" + closed, "/logs/histogram?by=level", "/logs/fields", "/logs/fields/service/values", "/logs/export?from=now-1m", "/logs?q=(", "/",
	}
	every(20*time.Millisecond, func(n int) { askWithKey(t, "GET", query+paths[n%len(paths)], secret, nil) })
	working.Go(func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, query+"/logs/tail", nil)
		if err != nil {
			return
		}
		req.Header.Set("X-API-Key", secret)
		if resp, err := insecureClient.Do(req); err == nil {
			<-ctx.Done()
			_ = resp.Body.Close()
		}
	})
	return func() {
		cancel()
		working.Wait()
	}
}

// everyRuleWorks checks that Prometheus has evaluated all rules without an error.
func everyRuleWorks(t *testing.T, p prometheusServer) {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get(t, "rules", nil, &data); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" {
				t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	if want := len(regexp.MustCompile(`(?m)^      - (alert|record): `).FindAllString(rules(t), -1)); n != want || n == 0 {
		t.Errorf("Prometheus has %d rules, the files %d", n, want)
	}
}

// everyMetricIsExported checks that each metric that the rules and the dashboards name is exported.
func everyMetricIsExported(t *testing.T, p prometheusServer) {
	var exported []string
	if err := p.get(t, "label/__name__/values", nil, &exported); err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^ +(summary|description|runbook|#).*$`).ReplaceAllString(rules(t), "")
	for _, d := range dashboards(t) {
		for _, panel := range d.Panels {
			for _, target := range panel.Targets {
				text += "\n" + target.Expr
			}
		}
	}
	name := regexp.MustCompile(`\b(millrace|rabbitmq|pg|process|go|prometheus)[_:][a-z0-9_:]+`)
	found := name.FindAllString(text, -1)
	slices.Sort(found)
	found = slices.Compact(found)
	for _, name := range found {
		if !slices.Contains(exported, name) {
			t.Errorf("%s is not exported", name)
		}
	}
	t.Logf("%d metrics are named", len(found))
}

// quietPanels have no data while nothing is wrong.
var quietPanels = []string{"worker.json/Transactions tried again/s"}

// everyPanelReturnsData runs each query of each panel as Grafana would.
func everyPanelReturnsData(t *testing.T, p prometheusServer, db string) {
	conn, err := pgx.Connect(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) // it only read
	queries := 0
	for _, d := range dashboards(t) {
		variables := make(map[string]string)
		for _, v := range d.Templating.List {
			variables[v.Name] = v.Query
		}
		for _, panel := range d.Panels {
			name := d.file + "/" + panel.Title
			for _, target := range panel.Targets {
				if target.URL != "" {
					continue // a test of the query service asks those
				}
				queries++
				returned := func() (n int, err error) {
					if target.RawSQL != "" {
						return p.sqlRows(t, conn, target, variables)
					}
					result, err := p.query(t, strings.NewReplacer("$__rate_interval", "5s", "$__interval", "1s", "$__range", "1m").Replace(target.Expr))
					return len(result), err
				}
				testenv.Eventually(t, 20*time.Second, name+" returns data", func() bool {
					n, err := returned()
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					return n > 0 || slices.Contains(quietPanels, name)
				})
			}
		}
	}
	t.Logf("%d queries", queries)
}

// panelSQL returns a query of the PostgreSQL data source over the last two hours, its variables and macros replaced as
// Grafana does.
func panelSQL(t testing.TB, target target, variables map[string]string) string {
	t.Helper()
	sql := regexp.MustCompile(`\$\{(\w+):sqlstring\}`).ReplaceAllStringFunc(target.RawSQL, func(s string) string {
		value, ok := variables[strings.TrimSuffix(strings.TrimPrefix(s, "${"), ":sqlstring}")]
		if !ok {
			t.Fatalf("no variable %s", s)
		}
		return "'" + strings.ReplaceAll(value, "'", "''") + "'"
	})
	const interval = 15 * time.Second
	from, to := time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339Nano), time.Now().UTC().Format(time.RFC3339Nano)
	sql = strings.ReplaceAll(sql, "$__interval", "15s")
	sql = regexp.MustCompile(`\$(__\w+)\(([^)]*)\)`).ReplaceAllStringFunc(sql, func(s string) string {
		m := regexp.MustCompile(`\$(__\w+)\(([^)]*)\)`).FindStringSubmatch(s)
		column, _, _ := strings.Cut(m[2], ",")
		switch m[1] {
		case "__timeFilter":
			return fmt.Sprintf("%s BETWEEN '%s' AND '%s'", column, from, to)
		case "__timeFrom":
			return "'" + from + "'"
		case "__timeGroupAlias":
			return fmt.Sprintf(`floor(extract(epoch from %s)/%v)*%v AS "time"`, column, interval.Seconds(), interval.Seconds())
		}
		t.Fatalf("the test does not know the macro %s", m[1])
		return ""
	})
	return sql
}

// sqlRows runs a query of the PostgreSQL data source and returns the number of rows. The types of the columns must be
// those that Grafana's panels take.
func (prometheusServer) sqlRows(t testing.TB, conn *pgx.Conn, target target, variables map[string]string) (int, error) {
	t.Helper()
	sql := panelSQL(t, target, variables)
	if strings.Contains(sql, "$") {
		return 0, fmt.Errorf("not replaced: %s", sql)
	}
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
	}
	if target.Format == "time_series" && rows.FieldDescriptions()[0].Name != "time" {
		return 0, fmt.Errorf("the first column is %s, want time", rows.FieldDescriptions()[0].Name)
	}
	return n, rows.Err()
}
