// Package helm tests the chart in the folder millrace: what it renders, what it refuses, and that the examples install. It
// renders with Helm's own packages, and reads what comes out strictly into Kubernetes' own types.
package helm

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"

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
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

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

// template returns the chart's manifests as YAML documents, as helm template would print them, or why the values are refused.
func template(t *testing.T, values ...string) (string, error) {
	t.Helper()
	chart, err := loader.LoadDir("millrace")
	if err != nil {
		t.Fatal(err)
	}
	var given map[string]any
	if err := yaml.Unmarshal([]byte(merged(t, values...)), &given); err != nil {
		t.Fatal(err)
	}
	release := common.ReleaseOptions{Name: "logs", Namespace: "logs", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, given, release, common.DefaultCapabilities)
	if err != nil {
		return "", err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if filepath.Ext(name) == ".yaml" {
			fmt.Fprintf(&out, "\n---\n# %s\n%s", name, files[name])
		}
	}
	return out.String(), nil
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
