// Package helm tests the chart in the folder millrace: what it renders, what it refuses, and that the examples install. It
// runs the helm program, and reads what comes out strictly into Kubernetes' own types.
package helm

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"
)

// program returns the helm program that the tests run.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/helm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatal("bin/helm is missing: make chart builds it")
	}
	t.Skip("bin/helm is missing: make chart builds it")
	return ""
}

// helm runs helm and returns what it writes to standard output, and to standard error.
func helm(t *testing.T, stdin string, args ...string) (out string, err error) {
	t.Helper()
	cmd := exec.Command(program(t), args...)
	cmd.Stdin = strings.NewReader(stdin)
	// No cluster and no configuration of whoever runs the tests.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir(), "KUBECONFIG=/dev/null")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), errors.New(strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// least is the values that an installation can't be without.
const least = `
secrets:
  RABBITMQ_URL: {name: rabbitmq, key: connection_string}
  POSTGRES_URL: {name: postgres, key: uri}
keys: {secret: keys}
`

// merged returns values with others laid over them.
func merged(t *testing.T, values ...string) string {
	t.Helper()
	all := make(map[string]any)
	for _, text := range values {
		var one map[string]any
		if err := yaml.Unmarshal([]byte(text), &one); err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		overlay(all, one)
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func overlay(under, over map[string]any) {
	for k, v := range over {
		below, ok := under[k].(map[string]any)
		above, ok2 := v.(map[string]any)
		if ok && ok2 {
			overlay(below, above)
			continue
		}
		under[k] = v
	}
}

// objects are what a chart renders, by kind and name.
type objects map[string]runtime.Object

// decoder reads Kubernetes' kinds, and those of the operators that the chart has objects for. A field that a kind lacks is an error.
var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		gatewayv1.Install, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// read returns the objects of a stream of YAML documents. Kinds that decoder doesn't know are *unstructured.Unstructured.
func read(t *testing.T, text string) objects {
	t.Helper()
	found := make(objects)
	for _, document := range strings.Split("\n"+text, "\n---") {
		var o unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, document)
		}
		if len(o.Object) == 0 {
			continue
		}
		name := o.GetKind() + "/" + o.GetName()
		if found[name] != nil {
			t.Errorf("%s comes twice", name)
		}
		typed, _, err := decoder.Decode([]byte(document), nil, nil)
		switch {
		case runtime.IsNotRegisteredError(err):
			typed = &o
		case err != nil:
			t.Fatalf("%s: %v in:\n%s", name, err, document)
		}
		found[name] = typed
	}
	return found
}

// render returns what the chart renders for a release named logs in a namespace of that name.
func render(t *testing.T, values ...string) objects {
	t.Helper()
	out, err := template(t, values...)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, out)
}

func template(t *testing.T, values ...string) (string, error) {
	t.Helper()
	return helm(t, merged(t, values...), "template", "logs", "millrace", "--namespace", "logs", "--values", "-")
}

// get returns the object of a kind and name, such as Deployment/logs-millrace-api.
func get[T any](t *testing.T, o objects, name string) *T {
	t.Helper()
	of, ok := any(o[name]).(*T)
	if !ok {
		t.Fatalf("%s is a %T", name, o[name])
	}
	return of
}

// pods returns the pods' templates, by kind and name of what makes them.
func pods(o objects) map[string]corev1.PodSpec {
	found := make(map[string]corev1.PodSpec)
	for name, object := range o {
		switch x := object.(type) {
		case *appsv1.Deployment:
			found[name] = x.Spec.Template.Spec
		case *appsv1.StatefulSet:
			found[name] = x.Spec.Template.Spec
		case *batchv1.Job:
			found[name] = x.Spec.Template.Spec
		case *corev1.Pod:
			found[name] = x.Spec
		}
	}
	return found
}

// environment returns the variables of a container that have values.
func environment(c corev1.Container) map[string]string {
	values := make(map[string]string)
	for _, e := range c.Env {
		values[e.Name] = e.Value
	}
	return values
}
