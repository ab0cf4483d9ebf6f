package helm

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// everything turns on all that the chart has.
const everything = `
api:
  tls: {secret: api-tls, clientCASecret: clients}
  ingress: {enabled: true, className: nginx, hosts: [logs.example.com], tls: [{hosts: [logs.example.com], secretName: logs}]}
  httpRoute: {enabled: true, parentRefs: [{name: gateway}], hostnames: [logs.example.com]}
  autoscaling: {enabled: true}
  extraPorts: [{name: syslog, port: 514, targetPort: 5514}]
  settings: {SYSLOG_TCP_ADDR: ":5514", SYSLOG_ALLOW: 10.0.0.0/8}
worker:
  keda: {enabled: true}
  secrets: {POSTGRES_OWNER_URL: {name: postgres, key: owner}}
query:
  tls: {secret: query-tls}
  searches: {secret: searches}
  ingress: {enabled: true, hosts: [search.example.com]}
  httpRoute: {enabled: true, parentRefs: [{name: gateway}]}
  autoscaling: {enabled: true}
secrets: {REDIS_URL: {name: redis, key: url}}
archive: {existingClaim: archive}
migrate: {hook: true}
networkPolicy: {enabled: true}
serviceMonitor: {enabled: true}
prometheusRule: {enabled: true}
dashboards: {enabled: true}
extraObjects:
  - apiVersion: v1
    kind: ConfigMap
    metadata: {name: "{{ .Release.Name }}-more"}
`

func TestTheChartPassesLint(t *testing.T) {
	for name, values := range map[string]string{"least": least, "everything": merged(t, least, everything)} {
		var given map[string]any
		if err := yaml.Unmarshal([]byte(values), &given); err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.RunAll("millrace", given, "logs").Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// TestNamesAndSelectorsStay holds what can't change without an interruption: a Deployment's selector, and the names that clients use.
func TestNamesAndSelectorsStay(t *testing.T) {
	rendered := render(t, least)
	want := []string{
		"Deployment/logs-millrace-api", "Deployment/logs-millrace-query", "Deployment/logs-millrace-worker",
		"Pod/logs-millrace-test", "PodDisruptionBudget/logs-millrace-api", "PodDisruptionBudget/logs-millrace-query", "PodDisruptionBudget/logs-millrace-worker",
		"Service/logs-millrace-api", "Service/logs-millrace-api-metrics", "Service/logs-millrace-query", "Service/logs-millrace-query-metrics",
		"Service/logs-millrace-worker-metrics", "ServiceAccount/logs-millrace",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(rendered))); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	for _, name := range []string{"api", "worker", "query"} {
		selector := map[string]string{"app.kubernetes.io/name": "millrace", "app.kubernetes.io/instance": "logs", "app.kubernetes.io/component": name}
		d := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name)
		if diff := cmp.Diff(selector, d.Spec.Selector.MatchLabels); diff != "" {
			t.Errorf("%s: selector (-want +got):\n%s", name, diff)
		}
		services := []string{"-metrics"}
		if name != "worker" {
			services = append(services, "")
		}
		for _, suffix := range services {
			s := get[corev1.Service](t, rendered, "Service/logs-millrace-"+name+suffix)
			if diff := cmp.Diff(selector, s.Spec.Selector); diff != "" {
				t.Errorf("Service %s: selector (-want +got):\n%s", s.Name, diff)
			}
		}
	}
	if o := render(t, least, "fullnameOverride: millrace"); o["Service/millrace-api"] == nil {
		t.Errorf("fullnameOverride: got %v", slices.Sorted(maps.Keys(o)))
	}
}

// TestNonsenseIsRefusedByName holds that a misspelt key, and a value that can't be, stop the installation and are named.
func TestNonsenseIsRefusedByName(t *testing.T) {
	for values, want := range map[string]string{
		"apis: {}":                                    "apis",
		"api: {replica: 3}":                           "replica",
		"api: {replicas: three}":                      "replicas",
		"api: {readinessPath: /alive}":                "readinessPath",
		"worker: {ingress: {enabled: true}}":          "ingress",
		"worker: {keda: {minReplicas: 0}}":            "minReplicas",
		"settings: {MAX_BODY_BYTE: 1MiB}":             "MAX_BODY_BYTE",
		"api: {settings: {MAX_BODY_BYTES: 1 MB}}":     "MAX_BODY_BYTES",
		"settings: {LOG_LEVEL: verbose}":              "LOG_LEVEL",
		"settings: {SHUTDOWN_TIMEOUT: 30}":            "SHUTDOWN_TIMEOUT",
		"settings: {QUEUE_SHARDS: 100}":               "QUEUE_SHARDS",
		"settings: {RABBITMQ_URL: amqp://u:p@h/}":     "RABBITMQ_URL", // a secret
		"settings: {KEYS_FILE: /keys}":                "KEYS_FILE",    // keys.secret decides
		"settings: {ARCHIVE_URL: 's3://u:p@bucket'}":  "ARCHIVE_URL",
		"settings: {ARCHIVE_URL: 'file:///a?b=c'}":    "ARCHIVE_URL",
		"secrets: {REDIS_URL: {name: redis}}":         "key",
		"secrets: {RABBITMQ_URLS: {name: r, key: u}}": "RABBITMQ_URLS",
		"secrets: {LOG_LEVEL: {name: r, key: u}}":     "LOG_LEVEL",
		"networkPolicy: {ports: {postgres: [pg]}}":    "ports",
		"image: {pullPolicy: Sometimes}":              "pullPolicy",
	} {
		// A whole document of its own, so that only what is wrong is wrong.
		if _, err := template(t, merged(t, least, values)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s named", values, err, want)
		}
	}
	if _, err := template(t, least, "global: {imageRegistry: example.com}"); err != nil {
		t.Errorf("global is for other charts: %v", err)
	}
	for _, url := range []string{
		"file:///var/lib/millrace/archive", "s3://bucket/prefix", "s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-central-1",
	} {
		if _, err := template(t, least, fmt.Sprintf("settings: {ARCHIVE_URL: %q}", url)); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// TestWhatIsMissingIsSaid holds that the chart says what to do about what no schema knows.
func TestWhatIsMissingIsSaid(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{"keys: {secret: keys}", "api needs RABBITMQ_URL: name the Secret and the key that hold it"},
		{"keys: {secret: keys}\nsecrets: {RABBITMQ_URL: {name: r, key: u}}", "worker needs POSTGRES_URL"},
		{"keys: {secret: keys}\nsecrets: {RABBITMQ_URL: {name: r, key: u}}\nworker: {secrets: {POSTGRES_URL: {name: p, key: u}}}", "query needs POSTGRES_URL"},
		{merged(t, least, "keys: {secret: ''}"), "api would serve everybody in the cluster without a key"},
		{merged(t, least, "keys: {secret: ''}\napi: {settings: {ALLOW_ANONYMOUS: true}}"), "query would serve everybody"},
		{merged(t, least, "api: {tls: {clientCASecret: ca}}"), "api.tls.clientCASecret needs api.tls.secret"},
		{merged(t, least, "api: {terminationGracePeriodSeconds: 35}"), "SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT are 35 seconds"},
		{merged(t, least, "query: {autoscaling: {enabled: true, minReplicas: 9}}"), "query.autoscaling: minReplicas is more than maxReplicas"},
		{merged(t, least, "api: {httpRoute: {enabled: true}}"), "api.httpRoute.parentRefs is empty"},
		{"keys: {secret: keys}\nsecrets: {RABBITMQ_URL: {name: r, key: u}}\nworker: {enabled: false}\nquery: {enabled: false}\nmigrate: {hook: true}",
			"migrate.hook needs migrate.secrets: {POSTGRES_URL: {name: SECRET, key: KEY}}"},
	} {
		if _, err := template(t, c.values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot %v, want %s", c.values, err, c.want)
		}
	}
	for _, values := range []string{
		merged(t, least, "keys: {secret: ''}\nsettings: {ALLOW_ANONYMOUS: true}"),
		"keys: {secret: keys}\napi: {extraEnvFrom: [{secretRef: {name: all}}]}\nworker: {extraEnvFrom: [{secretRef: {name: all}}]}\nquery: {enabled: false}",
	} {
		if _, err := template(t, values); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// sample returns a value that a setting takes, by its schema.
func sample(t *testing.T, name string, schema map[string]any) any {
	t.Helper()
	if words, ok := schema["enum"].([]any); ok {
		return words[len(words)-1]
	}
	kinds, _ := schema["type"].([]any)
	if kind, ok := schema["type"].(string); ok {
		kinds = []any{kind}
	}
	switch {
	case slices.Contains(kinds, "boolean"):
		return true
	case slices.Contains(kinds, "integer") && schema["maximum"] != nil:
		return schema["maximum"] // 1000000 among them, which YAML's numbers make 1e+06
	case slices.Contains(kinds, "integer"):
		return 16777216
	}
	pattern, _ := schema["pattern"].(string)
	for _, text := range []string{"text", "1m30s", ":6060", "s3://bucket/prefix"} {
		if regexp.MustCompile(pattern).MatchString(text) {
			return text
		}
	}
	t.Fatalf("%s: no value for %s", name, pattern)
	return nil
}

// TestEverySettingReachesItsServices holds that each setting that the chart takes comes to each service that has it, as it was given, from
// the values for all and from the service's own, and to no other.
func TestEverySettingReachesItsServices(t *testing.T) {
	var schema struct {
		Definitions map[string]struct{ Properties map[string]map[string]any }
	}
	var known struct {
		API, Worker, Query []string
		Secrets            map[string][]string
	}
	for path, to := range map[string]any{"millrace/values.schema.json": &schema, "millrace/files/settings.yaml": &known} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, to); err != nil {
			t.Fatal(err)
		}
	}
	settings, secrets := make(map[string]any), make(map[string]any)
	for name, s := range schema.Definitions["settings"].Properties {
		settings[name] = sample(t, name, s)
	}
	for name := range schema.Definitions["secrets"].Properties {
		secrets[name] = map[string]any{"name": "of-" + strings.ToLower(strings.ReplaceAll(name, "_", "-")), "key": "k." + name}
	}
	if len(settings) < 50 || len(secrets) < 8 {
		t.Fatalf("the schema has %d settings and %d secrets", len(settings), len(secrets))
	}
	all, err := yaml.Marshal(map[string]any{"settings": settings, "secrets": secrets})
	if err != nil {
		t.Fatal(err)
	}
	own := make(map[string]any)
	for _, service := range []string{"api", "worker", "query"} {
		own[service] = map[string]any{"settings": settings, "secrets": secrets}
	}
	each, err := yaml.Marshal(own)
	if err != nil {
		t.Fatal(err)
	}
	for from, values := range map[string]string{"for all": string(all), "of each service": string(each)} {
		rendered := render(t, values)
		for service, names := range map[string][]string{"api": known.API, "worker": known.Worker, "query": known.Query} {
			c := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+service).Spec.Template.Spec.Containers[0]
			given := environment(c)
			for _, name := range names {
				want := fmt.Sprint(settings[name])
				if n, ok := settings[name].(float64); ok {
					want = strconv.FormatFloat(n, 'f', -1, 64)
				}
				if given[name] != want {
					t.Errorf("%s: %s gets %s=%q, want %q", from, service, name, given[name], want)
				}
			}
			seen := make(map[string]int)
			for _, e := range c.Env {
				seen[e.Name]++
				if _, plain := settings[e.Name]; plain && !slices.Contains(names, e.Name) {
					t.Errorf("%s: %s has no setting %s", from, service, e.Name)
				}
				if _, secret := secrets[e.Name]; !secret {
					continue
				}
				if e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil || e.ValueFrom.SecretKeyRef.Key != "k."+e.Name || e.Value != "" {
					t.Errorf("%s: %s gets %s otherwise than from its Secret: %+v", from, service, e.Name, e)
				}
				if !slices.Contains(known.Secrets[service], e.Name) {
					t.Errorf("%s: %s has no secret %s", from, service, e.Name)
				}
			}
			for _, name := range known.Secrets[service] {
				if seen[name] != 1 {
					t.Errorf("%s: %s gets %s %d times", from, service, name, seen[name])
				}
			}
			for name, times := range seen {
				if times != 1 {
					t.Errorf("%s: %s gets %s %d times", from, service, name, times)
				}
			}
		}
	}
}

// TestTheServicesTakeWhatTheChartGives holds that an own setting wins, and that what the chart sets by itself is what its ports and volumes need.
func TestTheServicesTakeWhatTheChartGives(t *testing.T) {
	rendered := render(t, least, everything, "settings: {LOG_LEVEL: warn, SHUTDOWN_TIMEOUT: 20s}\nquery: {settings: {LOG_LEVEL: debug}}")
	want := map[string]map[string]string{
		"api": {
			"API_ADDR": ":8080", "API_METRICS_ADDR": ":8082", "KEYS_FILE": "/etc/millrace/keys/keys", "LOG_LEVEL": "warn", "LOG_FORMAT": "json",
			"TLS_CERT_FILE": "/etc/millrace/tls/tls.crt", "TLS_KEY_FILE": "/etc/millrace/tls/tls.key", "TLS_CLIENT_CA_FILE": "/etc/millrace/client-ca/ca.crt",
			"SHUTDOWN_DELAY": "5s", "SHUTDOWN_TIMEOUT": "20s", "SYSLOG_TCP_ADDR": ":5514", "SYSLOG_ALLOW": "10.0.0.0/8",
		},
		"worker": {
			"WORKER_ADDR": ":8082", "ALLOW_ANONYMOUS": "true", "AUTO_MIGRATE": "false", "ARCHIVE_URL": "file:///var/lib/millrace/archive",
			"LOG_LEVEL": "warn", "LOG_FORMAT": "json", "SHUTDOWN_TIMEOUT": "20s", "GOMEMLIMIT": "460MiB",
		},
		"query": {
			"QUERY_ADDR": ":8081", "QUERY_METRICS_ADDR": ":8082", "KEYS_FILE": "/etc/millrace/keys/keys", "LOG_LEVEL": "debug", "LOG_FORMAT": "json",
			"TLS_CERT_FILE": "/etc/millrace/tls/tls.crt", "TLS_KEY_FILE": "/etc/millrace/tls/tls.key", "SEARCHES_FILE": "/etc/millrace/searches/searches.yaml",
			"ARCHIVE_URL": "file:///var/lib/millrace/archive", "SHUTDOWN_DELAY": "5s", "SHUTDOWN_TIMEOUT": "20s", "GOMEMLIMIT": "921MiB",
		},
	}
	for name, variables := range want {
		pod := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Template.Spec
		got := make(map[string]string)
		for k, v := range environment(pod.Containers[0]) {
			if v != "" {
				got[k] = v
			}
		}
		if diff := cmp.Diff(variables, got); diff != "" {
			t.Errorf("%s: environment (-want +got):\n%s", name, diff)
		}
		mounted := make(map[string]string)
		for _, m := range pod.Containers[0].VolumeMounts {
			if m.SubPath != "" || m.SubPathExpr != "" {
				t.Errorf("%s: %s is mounted by subPath, and would not change with its Secret", name, m.Name)
			}
			if !m.ReadOnly && !(m.Name == "archive" && name == "worker") {
				t.Errorf("%s may write to %s", name, m.MountPath)
			}
			mounted[m.Name] = m.MountPath
		}
		if len(mounted) != len(pod.Volumes) {
			t.Errorf("%s has %d volumes and mounts %v", name, len(pod.Volumes), mounted)
		}
		for k, v := range got {
			folder, isFile := strings.CutSuffix(k, "_FILE")
			if isFile && !slices.Contains(slices.Collect(maps.Values(mounted)), filepath.Dir(v)) {
				t.Errorf("%s: %s=%s is in no folder that is mounted: %v", name, folder, v, mounted)
			}
		}
	}
}

// TestNumbersAreWrittenOut holds that large numbers reach a service as digits.
func TestNumbersAreWrittenOut(t *testing.T) {
	rendered := render(t, least, "api: {settings: {MAX_CONNECTIONS: 1000000, MAX_BODY_BYTES: 33554432}}")
	env := environment(get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-api").Spec.Template.Spec.Containers[0])
	if env["MAX_CONNECTIONS"] != "1000000" || env["MAX_BODY_BYTES"] != "33554432" {
		t.Errorf("got %s and %s", env["MAX_CONNECTIONS"], env["MAX_BODY_BYTES"])
	}
}

// TestPodsAreRestricted holds every pod, those of Jobs and of helm test among them, to the Pod Security Standard restricted and to what
// the image promises beyond it.
func TestPodsAreRestricted(t *testing.T) {
	found := pods(render(t, least, everything))
	maps.Copy(found, pods(render(t, least))) // helm test has no certificate for an API that wants one
	if len(found) != 5 {
		t.Errorf("found %d pods", len(found))
	}
	for name, pod := range found {
		if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: %+v", name, s)
		}
		if pod.HostNetwork || pod.HostPID || pod.HostIPC || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
			t.Errorf("%s has more of its host or of the cluster than it needs", name)
		}
		for _, v := range pod.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s mounts %s of its host", name, v.HostPath.Path)
			}
		}
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			s := c.SecurityContext
			if s == nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || s.Capabilities.Add != nil || s.RunAsUser != nil {
				t.Errorf("%s %s: %+v", name, c.Name, s)
			}
			if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
				t.Errorf("%s %s: resources %+v, want a limit of memory, a request of processor time and no limit of it", name, c.Name, c.Resources)
			}
		}
	}
}

// TestNoSecretIsMadeAndNoDatabase holds that the chart has no secret of its own, renders the same every time, and runs nothing but Millrace.
func TestNoSecretIsMadeAndNoDatabase(t *testing.T) {
	first, err := template(t, least, everything)
	if err != nil {
		t.Fatal(err)
	}
	second, err := template(t, least, everything)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("two renderings differ:\n%s", diff)
	}
	rendered := read(t, first)
	for name := range rendered {
		if kind, _, _ := strings.Cut(name, "/"); slices.Contains([]string{"Secret", "StatefulSet", "PersistentVolumeClaim", "Role", "ClusterRole"}, kind) {
			t.Errorf("the chart makes %s", name)
		}
	}
	for name, pod := range pods(rendered) {
		for _, c := range append(pod.InitContainers, pod.Containers...) {
			if c.Image != "millrace:dev" {
				t.Errorf("%s runs %s", name, c.Image)
			}
		}
	}
}

func TestTheImageCanBeAnother(t *testing.T) {
	rendered := render(t, least, `
image: {registry: "registry.example.com:5000", repository: tools/millrace, tag: "1.4"}
imagePullSecrets: [{name: registry}]
worker: {image: {tag: "1.5"}}
query: {image: {digest: "sha256:0123"}}
`)
	for name, want := range map[string]string{
		"api": "registry.example.com:5000/tools/millrace:1.4", "worker": "registry.example.com:5000/tools/millrace:1.5", "query": "registry.example.com:5000/tools/millrace@sha256:0123",
	} {
		pod := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Template.Spec
		if got := pod.Containers[0].Image; got != want || len(pod.ImagePullSecrets) != 1 {
			t.Errorf("%s: got %s with %v, want %s", name, got, pod.ImagePullSecrets, want)
		}
	}
}

// TestProbesNeedNoCertificate holds that the kubelet and Prometheus ask a port without TLS, whatever clients must bring, and what they ask.
func TestProbesNeedNoCertificate(t *testing.T) {
	rendered := render(t, least, everything)
	for name, want := range map[string][3]string{"api": {"/ready", "/health", "/health"}, "query": {"/ready", "/health", "/health"}, "worker": {"/health", "/health", "/ready"}} {
		c := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Template.Spec.Containers[0]
		ports := make(map[string]int32)
		for _, p := range c.Ports {
			ports[p.Name] = p.ContainerPort
		}
		address := environment(c)[strings.ToUpper(name)+"_METRICS_ADDR"]
		if name == "worker" {
			address = environment(c)["WORKER_ADDR"]
		}
		if address != fmt.Sprintf(":%d", ports["metrics"]) {
			t.Errorf("%s answers at %s, and is asked at %d", name, address, ports["metrics"])
		}
		for i, probe := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Port.StrVal != "metrics" || probe.HTTPGet.Scheme != "" || probe.HTTPGet.Path != want[i] {
				t.Errorf("%s: probe %d is %+v, want %s at the port metrics without TLS", name, i, probe, want[i])
			}
		}
		if p := c.StartupProbe; name != "worker" && time.Duration(p.FailureThreshold*p.PeriodSeconds)*time.Second < 24*time.Hour {
			t.Errorf("%s is killed while its servers are away: %+v", name, p)
		}
	}
	if path := get[appsv1.Deployment](t, render(t, least, "api: {readinessPath: /ready}"), "Deployment/logs-millrace-api").Spec.Template.Spec.Containers[0].ReadinessProbe.HTTPGet.Path; path != "/ready" {
		t.Errorf("api.readinessPath: got %s", path)
	}
}

// TestAPodIsNotKilledBeforeItHasStopped holds the grace to the settings of stopping.
func TestAPodIsNotKilledBeforeItHasStopped(t *testing.T) {
	for _, c := range []struct {
		values, service string
		want            int64
	}{
		{"", "api", 45}, {"", "query", 45}, {"", "worker", 40},
		{"settings: {SHUTDOWN_TIMEOUT: 1m30s}", "api", 105},
		{"settings: {SHUTDOWN_TIMEOUT: 1m30s}", "worker", 100},
		{"api: {settings: {SHUTDOWN_DELAY: 500ms, SHUTDOWN_TIMEOUT: 1h}}", "api", 3611},
		{"query: {settings: {SHUTDOWN_DELAY: 1.5m}}", "query", 130},
		{"api: {terminationGracePeriodSeconds: 600}", "api", 600},
	} {
		d := get[appsv1.Deployment](t, render(t, least, c.values+"\n"), "Deployment/logs-millrace-"+c.service)
		if got := *d.Spec.Template.Spec.TerminationGracePeriodSeconds; got != c.want {
			t.Errorf("%s: %s has %d seconds, want %d", c.values, c.service, got, c.want)
		}
	}
}

func TestUpgradesAndDrainsLeavePodsThatServe(t *testing.T) {
	rendered := render(t, least)
	for _, name := range []string{"api", "worker", "query"} {
		d := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name)
		if s := d.Spec.Strategy.RollingUpdate; s == nil || s.MaxUnavailable.IntValue() != 0 || s.MaxSurge.IntValue() != 1 {
			t.Errorf("%s: strategy %+v", name, s)
		}
		budget := get[policyv1.PodDisruptionBudget](t, rendered, "PodDisruptionBudget/logs-millrace-"+name)
		if p := budget.Spec.UnhealthyPodEvictionPolicy; budget.Spec.MaxUnavailable.IntValue() != 1 || p == nil || *p != policyv1.AlwaysAllow ||
			cmp.Diff(budget.Spec.Selector, d.Spec.Selector) != "" {
			t.Errorf("%s: budget %+v", name, budget.Spec)
		}
		var keys []string
		for _, c := range d.Spec.Template.Spec.TopologySpreadConstraints {
			keys = append(keys, c.TopologyKey)
			if c.WhenUnsatisfiable != corev1.ScheduleAnyway || !slices.Equal(c.MatchLabelKeys, []string{"pod-template-hash"}) || cmp.Diff(c.LabelSelector, d.Spec.Selector) != "" {
				t.Errorf("%s: spread %+v", name, c)
			}
		}
		if diff := cmp.Diff([]string{"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, keys); diff != "" {
			t.Errorf("%s is spread over (-want +got):\n%s", name, diff)
		}
	}
	// One pod and a budget: its node could not be drained.
	for name := range render(t, least, "api: {replicas: 1, spread: false}\nworker: {replicas: 1}\nquery: {replicas: 1}") {
		if strings.HasPrefix(name, "PodDisruptionBudget") {
			t.Errorf("there is %s for one pod", name)
		}
	}
	other := render(t, least, "api: {topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]}")
	if c := get[appsv1.Deployment](t, other, "Deployment/logs-millrace-api").Spec.Template.Spec.TopologySpreadConstraints; len(c) != 1 || c[0].TopologyKey != "rack" {
		t.Errorf("other constraints: got %+v", c)
	}
}

// TestAScalerDecidesAlone holds that a Deployment that is scaled has no number of its own, which each upgrade would set.
func TestAScalerDecidesAlone(t *testing.T) {
	rendered := render(t, least, everything)
	for _, name := range []string{"api", "worker", "query"} {
		if n := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-"+name).Spec.Replicas; n != nil {
			t.Errorf("%s: replicas is %d", name, *n)
		}
	}
	h := get[autoscalingv2.HorizontalPodAutoscaler](t, rendered, "HorizontalPodAutoscaler/logs-millrace-api")
	if h.Spec.ScaleTargetRef.Name != "logs-millrace-api" || *h.Spec.MinReplicas != 2 || h.Spec.MaxReplicas != 6 || *h.Spec.Metrics[0].Resource.Target.AverageUtilization != 70 {
		t.Errorf("got %+v", h.Spec)
	}
	scaled := get[unstructured.Unstructured](t, rendered, "ScaledObject/logs-millrace-worker").Object["spec"].(map[string]any)
	want := map[string]any{
		"scaleTargetRef": map[string]any{"name": "logs-millrace-worker"}, "minReplicaCount": 1.0, "maxReplicaCount": 4.0, "cooldownPeriod": 300.0,
		"triggers": []any{map[string]any{"type": "prometheus", "metadata": map[string]any{
			"serverAddress": "http://prometheus-operated.monitoring.svc:9090", "query": `sum(rabbitmq_detailed_queue_messages{queue=~"logs[.][0-9]+"})`,
			"threshold": "2000", "ignoreNullValues": "false",
		}}},
	}
	if diff := cmp.Diff(want, scaled); diff != "" {
		t.Errorf("ScaledObject (-want +got):\n%s", diff)
	}
}

// TestMigrationsAreAHookOnlyByChoice holds that nothing has to run before the workers do, unless it is asked for.
func TestMigrationsAreAHookOnlyByChoice(t *testing.T) {
	plain, err := template(t, least)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(plain, "pre-install") || strings.Contains(plain, "AUTO_MIGRATE") {
		t.Error("there is a hook that nobody has asked for")
	}
	for values, secret := range map[string]string{
		"migrate: {hook: true}": "postgres.uri",
		"migrate: {hook: true}\nworker: {secrets: {POSTGRES_OWNER_URL: {name: owner, key: url}}}":   "owner.url",
		"migrate: {hook: true, secrets: {POSTGRES_URL: {name: superuser, key: u}}}":                 "superuser.u",
		"migrate: {hook: true, secrets: {POSTGRES_OWNER_URL: {name: own, key: u}}}\nkeys: {key: k}": "own.u",
	} {
		job := get[batchv1.Job](t, render(t, least, values), "Job/logs-millrace-migrate")
		pod := job.Spec.Template.Spec
		c := pod.Containers[0]
		if job.Annotations["helm.sh/hook"] != "pre-install,pre-upgrade" || pod.ServiceAccountName != "" || !slices.Equal(c.Args, []string{"migrate", "up"}) || len(c.Env) != 1 {
			t.Errorf("%s: got %+v", values, job)
			continue
		}
		if ref := c.Env[0].ValueFrom.SecretKeyRef; ref.Name+"."+ref.Key != secret {
			t.Errorf("%s: got the URL of %s, want %s", values, ref.Name+"."+ref.Key, secret)
		}
	}
}

// TestTheMigrationConnectsAsTheWorkersDo holds that the Job has what the workers have beside their settings: it may be a certificate that
// the URL names, or the URL itself. What migrate.secrets says wins.
func TestTheMigrationConnectsAsTheWorkersDo(t *testing.T) {
	const with = `
keys: {secret: keys}
secrets: {RABBITMQ_URL: {name: rabbitmq, key: connection_string}}
migrate: {hook: true}
query: {secrets: {POSTGRES_URL: {name: postgres, key: uri}}}
worker:
  extraEnv: [{name: PASSWORD, value: p}, {name: POSTGRES_URL, value: "postgres://u:$(PASSWORD)@h/d"}]
  extraVolumes: [{name: ca, secret: {secretName: ca}}]
  extraVolumeMounts: [{name: ca, mountPath: /ca}]
  nodeSelector: {disk: fast}
  tolerations: [{key: logs, operator: Exists}]
`
	for _, c := range []struct {
		values string
		env    []string
	}{
		{"", []string{"PASSWORD=p", "POSTGRES_URL=postgres://u:$(PASSWORD)@h/d"}},
		{"migrate: {secrets: {POSTGRES_URL: {name: owner, key: uri}}}", []string{"POSTGRES_URL=", "PASSWORD=p"}},
		{"worker: {secrets: {POSTGRES_OWNER_URL: {name: owner, key: uri}}}", []string{"POSTGRES_URL=", "PASSWORD=p"}},
		{"worker: {extraEnv: [], extraEnvFrom: [{secretRef: {name: all}}]}", nil},
	} {
		rendered := render(t, with, c.values)
		job := get[batchv1.Job](t, rendered, "Job/logs-millrace-migrate").Spec.Template.Spec
		worker := get[appsv1.Deployment](t, rendered, "Deployment/logs-millrace-worker").Spec.Template.Spec
		var env []string
		for _, e := range job.Containers[0].Env {
			env = append(env, e.Name+"="+e.Value)
		}
		if diff := cmp.Diff(c.env, env); diff != "" {
			t.Errorf("%s: variables (-want +got):\n%s", c.values, diff)
		}
		same := func(p corev1.PodSpec) []any {
			return []any{p.Containers[0].EnvFrom, p.Containers[0].VolumeMounts, p.Volumes, p.NodeSelector, p.Tolerations}
		}
		if diff := cmp.Diff(same(worker), same(job)); diff != "" {
			t.Errorf("%s: beside the worker (-worker +job):\n%s", c.values, diff)
		}
	}
}

func TestRoutesLeadToTheirServices(t *testing.T) {
	rendered := render(t, least, everything)
	for name, port := range map[string]int32{"api": 8080, "query": 8081} {
		backend := get[networkingv1.Ingress](t, rendered, "Ingress/logs-millrace-"+name).Spec.Rules[0].HTTP.Paths[0].Backend.Service
		route := get[gatewayv1.HTTPRoute](t, rendered, "HTTPRoute/logs-millrace-"+name).Spec.Rules[0]
		if backend.Name != "logs-millrace-"+name || backend.Port.Number != port {
			t.Errorf("%s: the Ingress leads to %+v", name, backend)
		}
		if to := route.BackendRefs[0]; string(to.Name) != "logs-millrace-"+name || *to.Port != port || *route.Timeouts.Request != "0s" {
			t.Errorf("%s: the HTTPRoute is %+v", name, route)
		}
		service := get[corev1.Service](t, rendered, "Service/logs-millrace-"+name)
		if service.Spec.Ports[0].Port != port || service.Spec.Ports[0].Name != "https" {
			t.Errorf("%s: the Service has %+v", name, service.Spec.Ports)
		}
	}
	if p := get[corev1.Service](t, rendered, "Service/logs-millrace-api").Spec.Ports; len(p) != 2 || p[1].Port != 514 || p[1].TargetPort.StrVal != "syslog" {
		t.Errorf("the port of syslog: %+v", p)
	}
}

// TestTheNetworkPolicyIsOffAndThenNarrow holds which ports each service may be asked at and may ask. The query service sends alerts to 9093,
// Alertmanager's. At 80 a machine tells the key of its role.
func TestTheNetworkPolicyIsOffAndThenNarrow(t *testing.T) {
	for name := range render(t, least) {
		if strings.HasPrefix(name, "NetworkPolicy") {
			t.Errorf("there is %s, which nobody has asked for", name)
		}
	}
	rendered := render(t, least, everything, "networkPolicy: {metricsFrom: [{namespaceSelector: {}}]}")
	for name, want := range map[string][2][]string{
		"api":    {{"http", "syslog", "metrics"}, {"53", "53", "5672", "5671", "15672", "15671"}},
		"worker": {{"metrics"}, {"53", "53", "5672", "5671", "15672", "15671", "5432", "443", "9000", "80"}},
		"query":  {{"http", "metrics"}, {"53", "53", "5432", "6379", "443", "9000", "80", "9093"}},
	} {
		spec := get[networkingv1.NetworkPolicy](t, rendered, "NetworkPolicy/logs-millrace-"+name).Spec
		var got [2][]string
		for _, rule := range spec.Ingress {
			for _, p := range rule.Ports {
				got[0] = append(got[0], p.Port.String())
				if metrics := p.Port.String() == "metrics"; metrics != (len(rule.From) == 1) {
					t.Errorf("%s: who may reach %s: %+v", name, p.Port.String(), rule.From)
				}
			}
		}
		for _, rule := range spec.Egress {
			for _, p := range rule.Ports {
				got[1] = append(got[1], p.Port.String())
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || len(spec.PolicyTypes) != 2 {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestPrometheusFindsTheJobsThatTheRulesName holds that rules and dashboards are those of deploy/prometheus and deploy/grafana, and that
// the ServiceMonitor finds each service's metrics under the job of its name.
func TestPrometheusFindsTheJobsThatTheRulesName(t *testing.T) {
	rendered := render(t, least, everything)
	monitor := get[monitoringv1.ServiceMonitor](t, rendered, "ServiceMonitor/logs-millrace").Spec
	var jobs []string
	for _, o := range rendered {
		service, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		chosen := true
		for k, v := range monitor.Selector.MatchLabels {
			chosen = chosen && service.Labels[k] == v
		}
		if chosen {
			jobs = append(jobs, service.Labels[monitor.JobLabel])
			if service.Spec.Ports[0].Name != monitor.Endpoints[0].Port || service.Spec.ClusterIP != "None" || !service.Spec.PublishNotReadyAddresses {
				t.Errorf("%s: %+v", service.Name, service.Spec)
			}
		}
	}
	slices.Sort(jobs)
	if diff := cmp.Diff([]string{"api", "query", "worker"}, jobs); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	rules, alerts := get[monitoringv1.PrometheusRule](t, rendered, "PrometheusRule/logs-millrace"), 0
	for _, g := range rules.Spec.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				alerts++
				if !strings.Contains(r.Annotations["summary"], "{{") && strings.Contains(r.Annotations["summary"], "$labels") {
					t.Errorf("%s: its template was executed: %s", r.Alert, r.Annotations["summary"])
				}
			}
		}
	}
	if alerts < 20 {
		t.Errorf("there are %d alerts", alerts)
	}
	found, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(found) == 0 {
		t.Fatal(err)
	}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		c := get[corev1.ConfigMap](t, rendered, "ConfigMap/logs-millrace-dashboard-"+name)
		if c.Data[filepath.Base(path)] != string(text) || c.Labels["grafana_dashboard"] != "1" {
			t.Errorf("the dashboard %s is another", name)
		}
	}
}

// TestTheExamplesAreValues holds that each file of values that the documents name renders, and that the objects beside them are what they say.
func TestTheExamplesAreValues(t *testing.T) {
	for _, path := range []string{"millrace/values-demo.yaml", "examples/values-production.yaml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if rendered := render(t, string(text)); rendered["Deployment/logs-millrace-api"] == nil {
			t.Errorf("%s: got %v", path, slices.Sorted(maps.Keys(rendered)))
		}
	}
	found, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(found) < 3 {
		t.Fatalf("found %d examples: %v", len(found), err)
	}
	for _, path := range found {
		if strings.HasPrefix(filepath.Base(path), "values-") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(read(t, string(text))) == 0 {
			t.Errorf("%s has no objects", path)
		}
	}
}

// TestTheRolesJobMigratesFirst holds that the schema is there before the users are made, and that both connect to the chart's database: of
// a superuser the operator's Secret has a URL without one.
func TestTheRolesJobMigratesFirst(t *testing.T) {
	text, err := os.ReadFile("examples/roles-job.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pod := get[batchv1.Job](t, read(t, string(text)), "Job/millrace-roles").Spec.Template.Spec
	if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
		t.Fatalf("got %+v", pod)
	}
	up, roles := pod.InitContainers[0], pod.Containers[0]
	if !slices.Equal(up.Args, []string{"migrate", "up"}) || !slices.Equal(roles.Args, []string{"migrate", "roles"}) {
		t.Errorf("got %v and then %v", up.Args, roles.Args)
	}
	if e := roles.Env; len(e) != 2 || e[0].Name != "PASSWORD" || e[0].ValueFrom.SecretKeyRef.Key != "password" || e[1].Name != "POSTGRES_URL" ||
		e[1].Value != "postgres://postgres:$(PASSWORD)@logs-postgres-rw:5432/millrace" {
		t.Errorf("the variables are %+v", e)
	}
	up.Name, up.Args = roles.Name, roles.Args
	if diff := cmp.Diff(roles, up); diff != "" {
		t.Errorf("the two containers differ beside name and arguments (-roles +up):\n%s", diff)
	}
}

// TestTheServicesHaveTheSameKeys holds that what can be said of one service can be said of each, where it has it: only worker has no
// clients, only query has searches, and workers are scaled by KEDA.
func TestTheServicesHaveTheSameKeys(t *testing.T) {
	text, err := os.ReadFile("millrace/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	keys := func(service string, without ...string) []string {
		all := slices.Sorted(maps.Keys(values[service].(map[string]any)))
		return slices.DeleteFunc(all, func(key string) bool { return slices.Contains(without, key) })
	}
	api := keys("api")
	if diff := cmp.Diff(api, keys("query", "searches")); diff != "" {
		t.Errorf("query beside api (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(keys("api", "service", "extraPorts", "tls", "ingress", "httpRoute", "autoscaling"), keys("worker", "keda")); diff != "" {
		t.Errorf("worker beside api (-want +got):\n%s", diff)
	}
}

// TestTheDemosServersAreThoseOfCompose holds that values-demo.yaml starts the versions that are tested in containers, restricted like all else.
func TestTheDemosServersAreThoseOfCompose(t *testing.T) {
	compose, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("millrace/values-demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	servers := 0
	for name, pod := range pods(render(t, string(text))) {
		if !strings.HasPrefix(name, "StatefulSet/millrace-demo-") {
			continue
		}
		servers++
		c := pod.Containers[0]
		if !strings.Contains(string(compose), "image: "+c.Image+"\n") {
			t.Errorf("%s runs %s, which docker-compose.yml does not", name, c.Image)
		}
		if s := c.SecurityContext; !*pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s is not restricted", name)
		}
	}
	if servers != 3 {
		t.Errorf("found %d servers", servers)
	}
}
