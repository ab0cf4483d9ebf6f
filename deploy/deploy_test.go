package deploy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"millrace/internal/keys"
	"millrace/internal/testenv"
)

// program returns the path of a program. Where it is not installed the test is skipped, or fails if CI is set.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed; make test installs it", name)
	}
	return path
}

func TestPrometheusTakesItsConfigurationAndRules(t *testing.T) {
	promtool := program(t, "promtool")
	tests, err := filepath.Glob("deploy/prometheus/tests/*.yml")
	if err != nil || len(tests) == 0 {
		t.Fatalf("no tests of the rules: %v", err)
	}
	for _, args := range [][]string{
		{"check", "config", "deploy/prometheus/prometheus.yml", "deploy/prometheus/local.yml"},
		append([]string{"test", "rules"}, tests...),
	} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestPrometheusWatchesWhatRunsBesideIt holds that prometheus.yml looks for every container, or for one that speaks for it,
// and for nothing else.
func TestPrometheusWatchesWhatRunsBesideIt(t *testing.T) {
	project, err := compose(t, generated(t), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{
		"postgres":   true, // by postgres-exporter
		"redis":      true, // a cache: nothing depends on it
		"grafana":    true, // nothing depends on it
		"prometheus": true, // as 127.0.0.1
	}
	conf := regexp.MustCompile(`(?m)#.*$`).ReplaceAllString(readAll(t, "deploy/prometheus/prometheus.yml"), "")
	for _, m := range regexp.MustCompile(`(?:names|targets): \[([^\]]+)\]`).FindAllStringSubmatch(conf, -1) {
		for _, name := range strings.Split(m[1], ",") {
			name, _, _ = strings.Cut(strings.TrimSpace(name), ":")
			if _, ok := project.Services[name]; !ok && name != "127.0.0.1" {
				t.Errorf("prometheus.yml looks for %s, which docker-compose.yml lacks", name)
			}
			found[name] = true
		}
	}
	for name, s := range project.Services {
		if !found[name] && s.Restart != "no" {
			t.Errorf("prometheus.yml lacks %s", name)
		}
	}
}

// rules returns the text of all rules.
func rules(t testing.TB) string {
	t.Helper()
	return readAll(t, "deploy/prometheus/rules/*.yml")
}

func readAll(t testing.TB, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return string(all)
}

func TestEveryAlertHasItsTestsAndItsPlaceInTheRunbook(t *testing.T) {
	tests, runbook := readAll(t, "deploy/prometheus/tests/*.yml"), readAll(t, "deploy/RUNBOOK.md")
	headings := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(runbook, -1) {
		headings[m[1]] = true
	}
	for _, block := range strings.Split(rules(t), "- alert: ")[1:] {
		name, _, _ := strings.Cut(block, "\n")
		if !strings.Contains(tests, fmt.Sprintf(`alertname="%s"`, name)) {
			t.Errorf("no test has %s fire", name)
		}
		if !headings[name] {
			t.Errorf("the runbook has no ### %s", name)
		}
		delete(headings, name)
		for _, want := range []string{"severity: ", "summary: ", "description: ", "runbook: deploy/RUNBOOK.md#" + strings.ToLower(name) + "\n"} {
			if !strings.Contains(block, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
	}
	for name := range headings {
		t.Errorf("the runbook speaks of %s, which is no alert", name)
	}
}

// dashboard has the parts of a Grafana dashboard that the tests look at.
type dashboard struct {
	file       string
	UID, Title string
	Panels     []struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		Datasource  struct{ UID string }
		Targets     []target
		FieldConfig struct{ Defaults struct{ Unit string } }
	}
	Templating struct {
		List []struct{ Name, Query string }
	}
}

// target is a panel's query: PromQL, SQL, or a path of the query service.
type target struct{ RefID, Expr, RawSQL, Format, URL string }

func dashboards(t testing.TB) []dashboard {
	t.Helper()
	files, err := filepath.Glob("deploy/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := make([]dashboard, len(files))
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &all[i])
		}
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all[i].file = filepath.Base(f)
	}
	return all
}

func TestDashboardsAreWhole(t *testing.T) {
	sources := readAll(t, "deploy/grafana/provisioning/datasources/*.yml")
	uids := make(map[string]string)
	for _, d := range dashboards(t) {
		if want := "millrace-" + strings.TrimSuffix(d.file, ".json"); d.UID != want {
			t.Errorf("%s: uid %s, want %s", d.file, d.UID, want)
		}
		if other := uids[d.Title]; other != "" || d.Title == "" {
			t.Errorf("%s and %s have the title %q", d.file, other, d.Title)
		}
		uids[d.Title] = d.file
		taken := make(map[[2]int]string)
		ids := make(map[int]bool)
		for _, p := range d.Panels {
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
						t.Fatalf("%s: %q lies over %q, or outside", d.file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if ids[p.ID] || p.Title == "" {
				t.Errorf("%s: panel %d %q: no title, or its id is another's", d.file, p.ID, p.Title)
			}
			ids[p.ID] = true
			if p.Type == "row" {
				continue
			}
			if len(p.Targets) == 0 || p.FieldConfig.Defaults.Unit == "" || !strings.Contains(sources, "uid: "+p.Datasource.UID+"\n") {
				t.Errorf("%s: %q has %d queries, the unit %q and the data source %q", d.file, p.Title, len(p.Targets), p.FieldConfig.Defaults.Unit, p.Datasource.UID)
			}
		}
	}
}

// selfSigned writes a certificate for 127.0.0.1 that is valid for a year, and its key.
func selfSigned(t testing.TB) (certFile, keyFile string, notAfter time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	notAfter = time.Now().AddDate(1, 0, 0).Truncate(time.Second)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "millrace test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", der), notAfter
}

// newKeysFile writes a KEYS_FILE with one key for everything, and returns the key.
func newKeysFile(t testing.TB) (file, secret string) {
	t.Helper()
	key, secret, err := keys.New("tester", []string{keys.Write, keys.Read})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, secret
}

// insecureClient talks to a server with a certificate of selfSigned.
var insecureClient = &http.Client{
	Timeout:   30 * time.Second,
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
}

// askWithKey sends a request with an API key, and with headers given as name, value, name, value. It returns the answer's
// status and body; without an answer they are 0 and the error.
func askWithKey(t testing.TB, method, url, secret string, body []byte, headers ...string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", secret)
	for h := range slices.Chunk(headers, 2) {
		req.Header.Set(h[0], h[1])
	}
	resp, err := insecureClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// TestEveryMetricIsDocumented runs the services without servers and with everything switched on that has metrics. It
// compares what they export with deploy/METRICS.md. go test -run EveryMetric -update ./deploy writes it anew.
func TestEveryMetricIsDocumented(t *testing.T) {
	cert, key, notAfter := selfSigned(t)
	keysFile, secret := newKeysFile(t)
	searches := filepath.Join(t.TempDir(), "searches.yaml")
	if err := os.WriteFile(searches, []byte("receivers: [{name: hook, webhook: 'http://127.0.0.1:1'}]\nsearches: [{name: errors, q: level:error, when: count > 0 in 1m, tell: hook}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{"api": testenv.FreeAddress(t), "worker": testenv.FreeAddress(t), "query": testenv.FreeAddress(t)}
	env := []string{
		"RABBITMQ_URL=amqp://127.0.0.1:1/", "POSTGRES_URL=postgres://127.0.0.1:1/d", "KEYS_FILE=" + keysFile, "TLS_CERT_FILE=" + cert, "TLS_KEY_FILE=" + key, "SEARCHES_FILE=" + searches,
		"API_ADDR=" + addrs["api"], "WORKER_ADDR=" + addrs["worker"], "QUERY_ADDR=" + addrs["query"],
		"SYSLOG_TCP_ADDR=" + testenv.FreeAddress(t), "SYSLOG_UDP_ADDR=" + testenv.FreeAddress(t), "GELF_TCP_ADDR=" + testenv.FreeAddress(t), "GELF_UDP_ADDR=" + testenv.FreeAddress(t),
	}
	type metric struct {
		kind, help string
		labels     []string
		services   []string
	}
	found := make(map[string]*metric)
	line := regexp.MustCompile(`(?m)^# (HELP|TYPE) (millrace_\w+) (.*)$`)
	sample := regexp.MustCompile(`(?m)^(millrace_\w+)\{([^}]*)\}`)
	label := regexp.MustCompile(`(\w+)="`)
	for _, name := range []string{"api", "worker", "query"} {
		testenv.StartMillrace(t, t.TempDir(), env, name)
		url := "https://" + addrs[name]
		if name == "worker" {
			url = "http://" + addrs[name]
		}
		testenv.Eventually(t, 30*time.Second, name+" listens", func() bool {
			status, _ := askWithKey(t, "GET", url+"/health", "", nil)
			return status == http.StatusOK
		})
		// Series with labels begin with the first request.
		askWithKey(t, "POST", url+"/log", secret, []byte(`{}`))
		askWithKey(t, "GET", url+"/logs", secret, nil)
		_, text := askWithKey(t, "GET", url+"/metrics", "", nil)
		if name != "worker" && !strings.Contains(text, fmt.Sprintf("millrace_certificate_expiry_timestamp_seconds %v\n", float64(notAfter.Unix()))) {
			t.Errorf("%s does not say that its certificate expires at %v", name, notAfter)
		}
		for _, m := range line.FindAllStringSubmatch(text, -1) {
			f := found[m[2]]
			if f == nil {
				f = new(metric)
				found[m[2]] = f
			}
			if m[1] == "TYPE" {
				f.kind = m[3]
				f.services = append(f.services, name)
				continue
			}
			if help := strings.ReplaceAll(m[3], `\\`, `\`); f.help == "" {
				f.help = help
			} else if f.help != help {
				f.help += " " + strings.ToUpper(name[:1]) + name[1:] + ": " + help
			}
		}
		for _, m := range sample.FindAllStringSubmatch(text, -1) {
			f := found[m[1]]
			if f == nil {
				f = found[strings.TrimSuffix(m[1], "_bucket")]
			}
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if f != nil && l[1] != "le" && !slices.Contains(f.labels, l[1]) {
					f.labels = append(f.labels, l[1])
				}
			}
		}
	}
	var doc strings.Builder
	doc.WriteString("# Metrics\n\n" +
		"What `/metrics` of the services exports, beside the Go runtime's (`go_…`), the process's (`process_…`) and the build's\n" +
		"(`go_build_info`). A test compares this table with running services.\n\n" +
		"| metric | type | labels | services | what it is |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(found)) {
		f := found[name]
		fmt.Fprintf(&doc, "| `%s` | %s | %s | %s | %s |\n", name, f.kind, strings.Join(f.labels, ", "), strings.Join(f.services, ", "), f.help)
	}
	got, err := os.ReadFile("deploy/METRICS.md")
	if err != nil && !*update {
		t.Fatal(err)
	}
	if string(got) == doc.String() {
		return
	}
	if !*update {
		t.Fatalf("deploy/METRICS.md is not what the services export; go test -run EveryMetric -update ./deploy writes it anew:\n%s", doc.String())
	}
	if err := os.WriteFile("deploy/METRICS.md", []byte(doc.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestTheLogsDashboardTellsValuesFromTheRest stores values named "other" and "(none)", which are also the dashboard's names
// for all other values and for records without the field.
func TestTheLogsDashboardTellsValuesFromTheRest(t *testing.T) {
	conn := testenv.Connect(t, testenv.Schema(t))
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE TABLE logs_all PARTITION OF logs DEFAULT")
	// A number is stored as many times as it says; the n-th text of the list n hundred times.
	exec(`INSERT INTO logs SELECT gen_random_uuid(), now() - interval '1 minute', jsonb_build_object('level', v)
		FROM generate_series(1, 14) v, generate_series(1, v)`)
	exec(`INSERT INTO logs SELECT gen_random_uuid(), now() - interval '1 minute', jsonb_build_object('level', v)
		FROM unnest(ARRAY['other', '(none)', '"other"', '"(none)"', NULL]) WITH ORDINALITY AS t (v, n), generate_series(1, 100 * n)`)
	for title, inTop := range map[string]int{"Records by ${by}": 6, "Values of ${by}": 14} {
		want := map[string]int{"(none)": 500, `"(none)"`: 200, `"\"other\""`: 300, `"\"(none)\""`: 400}
		for n := 14 - inTop + 1; n <= 14; n++ {
			want[fmt.Sprint(n)] = n
		}
		if inTop == 14 {
			want["other"] = 100 // a table has no row for all other values
		} else {
			want[`"other"`], want["other"] = 100, 1+2+3+4+5+6+7+8
		}
		sql := ""
		for _, d := range dashboards(t) {
			for _, panel := range d.Panels {
				if d.file == "logs.json" && panel.Title == title {
					sql = panelSQL(t, panel.Targets[0], map[string]string{"by": "level", "contains": "{}", "text": ""})
				}
			}
		}
		rows, err := conn.Query(t.Context(), sql)
		if err != nil {
			t.Fatalf("%s: %v", title, err)
		}
		got := make(map[string]int)
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				t.Fatal(err)
			}
			got[values[len(values)-2].(string)] += int(values[len(values)-1].(int64))
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", title, diff)
		}
	}
}
