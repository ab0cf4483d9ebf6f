package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"millrace/internal/cli"
	"millrace/internal/config"
)

const chartFolder = "deploy/helm/millrace/"

// chartSets are the settings that the chart gives itself, because volumes and ports hang on them, and the value that decides.
var chartSets = map[string]string{
	"API_ADDR": "api.service", "QUERY_ADDR": "query.service", "WORKER_ADDR": "", "API_METRICS_ADDR": "", "QUERY_METRICS_ADDR": "",
	"KEYS_FILE": "keys.secret", "SEARCHES_FILE": "query.searches.secret",
	"TLS_CERT_FILE": "api.tls.secret, query.tls.secret", "TLS_KEY_FILE": "api.tls.secret, query.tls.secret",
	"TLS_CLIENT_CA_FILE": "api.tls.clientCASecret, query.tls.clientCASecret",
}

// isSecretOfChart reports whether the chart takes a setting from a Secret alone. ARCHIVE_URL holds no password: it refuses one.
func isSecretOfChart(s config.Setting) bool { return s.IsSecret() && s.Name != "ARCHIVE_URL" }

// TestTheChartsSettingsAreThoseOfTheStructs holds what the chart knows of the settings: the schema of its values, the list of
// each service's settings, and the table of deploy/helm/README.md.
func TestTheChartsSettingsAreThoseOfTheStructs(t *testing.T) {
	all, services := cli.Settings()
	known := map[string]any{"secrets": map[string][]string{}}
	plain, secret := map[string]any{}, map[string]any{}
	secretRef := map[string]any{"$ref": "#/definitions/secretKey"}
	for _, s := range all {
		if _, fixed := chartSets[s.Name]; fixed {
			continue
		}
		for _, service := range services[s.Name] {
			switch {
			case isSecretOfChart(s):
				list := known["secrets"].(map[string][]string)
				list[service] = append(list[service], s.Name)
				secret[s.Name] = secretRef
			default:
				list, _ := known[service].([]string)
				known[service] = append(list, s.Name)
				plain[s.Name] = settingSchema(s)
			}
		}
	}
	noneTwice := func(what string, names []string) {
		seen := make(map[string]bool)
		for _, name := range names {
			if seen[name] {
				t.Errorf("%s: %s is there twice", what, name)
			}
			seen[name] = true
		}
	}
	for service, names := range known {
		switch names := names.(type) {
		case []string:
			noneTwice(service, names)
		case map[string][]string:
			for of, names := range names {
				noneTwice(service+" of "+of, names)
			}
		}
	}
	var list bytes.Buffer
	list.WriteString("# The settings of each service that the chart takes in settings and in secrets. Made by: go test . -run Settings -update\n")
	encoder := yaml.NewEncoder(&list)
	encoder.SetIndent(2)
	if err := encoder.Encode(known); err != nil {
		t.Fatal(err)
	}
	check(t, chartFolder+"files/settings.yaml", read(t, chartFolder+"files/settings.yaml"), list.String())

	var document yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, chartFolder+"values.yaml")), &document); err != nil {
		t.Fatal(err)
	}
	values := chartValues{t: t, descriptions: make(map[string]string)}
	schema := values.object("", document.Content[0])
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["title"] = "Values of the chart millrace"
	schema["definitions"] = map[string]any{
		"settings": map[string]any{"type": "object", "additionalProperties": false, "properties": plain},
		"secrets":  map[string]any{"type": "object", "additionalProperties": false, "properties": secret},
		"secretKey": map[string]any{
			"type": "object", "additionalProperties": false, "required": []string{"name", "key"},
			"properties": map[string]any{"name": named("The Secret."), "key": named("Its key that holds the value.")},
		},
	}
	var text bytes.Buffer
	jsonEncoder := json.NewEncoder(&text)
	jsonEncoder.SetEscapeHTML(false)
	jsonEncoder.SetIndent("", "  ")
	if err := jsonEncoder.Encode(schema); err != nil {
		t.Fatal(err)
	}
	check(t, chartFolder+"values.schema.json", read(t, chartFolder+"values.schema.json"), text.String())

	const page, begin, end = "deploy/helm/README.md", "<!-- values -->\n", "<!-- /values -->"
	before, rest, ok := strings.Cut(read(t, page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks %s… %s", page, begin, end)
	}
	check(t, page, before+begin+rest, before+begin+"| value | default | what it is |\n| --- | --- | --- |\n"+values.table.String()+end+after)
}

// read returns a file's text, nothing if there is none and -update is set.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	return string(text)
}

func named(description string) map[string]any {
	return map[string]any{"type": "string", "minLength": 1, "description": description}
}

// settingSchema returns the schema of a setting's value.
func settingSchema(s config.Setting) map[string]any {
	takes := "Takes " + s.Takes + "."
	if s.Default != "" {
		takes += " Default: " + s.Default + "."
	}
	schema := map[string]any{"description": s.Help + " " + takes}
	if oneof := s.Field.Tag.Get("oneof"); oneof != "" {
		schema["enum"] = strings.Fields(oneof)
		return schema
	}
	switch s.Field.Type {
	case reflect.TypeFor[bool]():
		schema["type"], schema["pattern"] = []string{"boolean", "string"}, "^(true|false)$"
	case reflect.TypeFor[int]():
		schema["type"], schema["pattern"] = []string{"integer", "string"}, "^[0-9]+$"
		for tag, word := range map[string]string{"min": "minimum", "max": "maximum"} {
			if bound := s.Field.Tag.Get(tag); bound != "" {
				schema[word] = json.Number(bound)
			}
		}
	case reflect.TypeFor[time.Duration]():
		schema["type"], schema["pattern"] = "string", `^([0-9]+([.][0-9]+)?(ns|us|µs|ms|s|m|h|d|w))+$`
	case reflect.TypeFor[config.Bytes]():
		schema["type"], schema["minimum"], schema["pattern"] = []string{"integer", "string"}, 0, "^[0-9]+ *(B|KiB|MiB|GiB)?$"
	case reflect.TypeFor[config.Address](), reflect.TypeFor[config.Loopback]():
		schema["type"], schema["pattern"] = "string", ":[0-9]+$"
	case reflect.TypeFor[config.ArchiveURL]():
		schema["type"], schema["pattern"] = "string", "^(file://[^@?]*|s3://[^@]*)$"
	default:
		schema["type"] = "string"
	}
	return schema
}

// chartValues makes a schema and a table of values.yaml.
type chartValues struct {
	t            *testing.T
	table        strings.Builder
	descriptions map[string]string // of api's keys, by their path within api
}

// open are the objects whose keys are Kubernetes' or the user's, by the end of their path.
var open = []string{
	"global", "resources", "podSecurityContext", "securityContext", "strategy", "annotations", "labels", "commonLabels", "podAnnotations", "podLabels",
	"nodeSelector", "affinity", "behavior", "service.spec",
}

// enums are the words that a value may be, by its path or the end of it.
var enums = map[string][]any{
	"pullPolicy": {"Always", "IfNotPresent", "Never"}, "readinessPath": {"/health", "/ready"}, "service.type": {"ClusterIP", "NodePort", "LoadBalancer"},
}

// object returns the schema of a mapping. Other keys than those of values.yaml are refused, because a misspelt one would do nothing.
func (c *chartValues) object(path string, node *yaml.Node) map[string]any {
	properties := make(map[string]any)
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		properties[key.Value] = c.value(strings.TrimPrefix(path+"."+key.Value, "."), key, value)
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
}

func (c *chartValues) value(path string, key, node *yaml.Node) map[string]any {
	description := strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimPrefix(lastParagraph(key.HeadComment), "# "), "\n# ", " ")), " ")
	service, within, _ := strings.Cut(path, ".")
	switch service {
	case "api":
		c.descriptions[within] = description
	case "worker", "query":
		if description == "" {
			description = c.descriptions[within]
		}
	}
	endsIn := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return path == name || strings.HasSuffix(path, "."+name) })
	}
	var schema map[string]any
	switch {
	case endsIn([]string{"settings"}):
		schema = map[string]any{"allOf": []any{map[string]any{"$ref": "#/definitions/settings"}}}
	case endsIn([]string{"secrets"}):
		schema = map[string]any{"allOf": []any{map[string]any{"$ref": "#/definitions/secrets"}}}
	case node.Kind == yaml.MappingNode && endsIn(open):
		schema = map[string]any{"type": "object"}
	case node.Kind == yaml.MappingNode:
		schema = c.object(path, node)
		if description != "" {
			schema["description"] = description
		}
		return schema // its keys have rows of their own
	case node.Kind == yaml.SequenceNode:
		schema = map[string]any{"type": "array"}
		if path == "networkPolicy.ports."+key.Value {
			schema["items"] = map[string]any{"type": "integer", "minimum": 1, "maximum": 65535}
		}
	default:
		types := map[string]string{"!!str": "string", "!!bool": "boolean", "!!int": "integer"}
		if types[node.Tag] == "" {
			c.t.Fatalf("values.yaml: %s is %s", path, node.Tag)
		}
		schema = map[string]any{"type": types[node.Tag]}
		if node.Tag == "!!int" {
			schema["minimum"] = 0
			if key.Value == "minReplicas" {
				schema["minimum"] = 1
			}
		}
		for end, words := range enums {
			if endsIn([]string{end}) {
				schema = map[string]any{"enum": words}
			}
		}
	}
	shown := "`" + strings.Join(strings.Fields(inline(c.t, node)), " ") + "`"
	if shown == "`\"\"`" {
		shown = ""
	}
	text := description
	if text == "" {
		text = "As in Kubernetes."
	} else {
		schema["description"] = description
	}
	fmt.Fprintf(&c.table, "| `%s` | %s | %s |\n", path, strings.ReplaceAll(shown, "|", "\\|"), strings.ReplaceAll(text, "|", "\\|"))
	return schema
}

// lastParagraph returns the lines of a comment after the last empty one: those before it are about more than the key.
func lastParagraph(comment string) string {
	if i := strings.LastIndex(comment, "\n\n"); i >= 0 {
		return comment[i+2:]
	}
	return comment
}

// inline returns a value as YAML on one line.
func inline(t *testing.T, node *yaml.Node) string {
	t.Helper()
	var value any
	if err := node.Decode(&value); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestTheChartsFilesAreThoseOfDeploy holds the chart's copies to the files in deploy: a chart has what is in its folder alone.
func TestTheChartsFilesAreThoseOfDeploy(t *testing.T) {
	for pattern, to := range map[string]string{"deploy/prometheus/rules/*.yml": "files/rules/", "deploy/grafana/dashboards/*.json": "files/dashboards/"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: found %d files: %v", pattern, len(found), err)
		}
		want := make(map[string]bool)
		for _, path := range found {
			copied := chartFolder + to + filepath.Base(path)
			want[filepath.Clean(copied)] = true
			if *update {
				if err := os.MkdirAll(chartFolder+to, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			check(t, copied, read(t, copied), read(t, path))
		}
		copies, err := filepath.Glob(chartFolder + to + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range copies {
			if !want[filepath.Clean(path)] {
				t.Errorf("%s is a copy of nothing", path)
			}
		}
	}
}
