package match

import (
	"context"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

var registry = api.NewRegistry(builtin.Kinds()...)

// snapshot holds the namespace "prod", labelled env=prod.
func snapshot(t testing.TB) store.Snapshot {
	st := memory.New(client.StoreOptions(registry, 0))
	t.Cleanup(func() { _ = st.Close() })
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"env": "prod"}}}
	if _, _, err := st.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "namespaces", Name: "prod"}, Object: ns}}}); err != nil {
		t.Fatal(err)
	}
	return st.Snapshot()
}

func rules(ops, groups, versions, resources []string, scope admissionv1.ScopeType) []admissionv1.NamedRuleWithOperations {
	r := admissionv1.NamedRuleWithOperations{}
	for _, op := range ops {
		r.Operations = append(r.Operations, admissionv1.OperationType(op))
	}
	r.APIGroups, r.APIVersions, r.Resources = groups, versions, resources
	if scope != "" {
		r.Scope = &scope
	}
	return []admissionv1.NamedRuleWithOperations{r}
}

func all(resources ...string) []admissionv1.NamedRuleWithOperations {
	return rules([]string{"*"}, []string{"*"}, []string{"*"}, resources, "")
}

func labelled(kv ...string) *metav1.LabelSelector {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return &metav1.LabelSelector{MatchLabels: m}
}

func request(op admission.Operation, resource, version, sub, namespace string, obj, old api.Object) *admission.Request {
	return &admission.Request{
		Operation: op, Kind: registry.ByName(resource), Version: version, Subresource: sub, Namespace: namespace, Name: "x", Object: obj, Old: old,
	}
}

func pod(kv ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "prod", Labels: map[string]string{}}}
	for i := 0; i < len(kv); i += 2 {
		p.Labels[kv[i]] = kv[i+1]
	}
	return p
}

func TestMatch(t *testing.T) {
	snap := snapshot(t)
	create := request(admission.Create, "pods", "v1", "", "prod", pod("app", "web"), nil)
	node := request(admission.Create, "nodes", "v1", "", "", &corev1.Node{}, nil)
	space := func(op admission.Operation, obj api.Object) *admission.Request {
		r := request(op, "namespaces", "v1", "", "", obj, nil)
		r.Name = "prod"
		return r
	}
	other := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"env": "test"}}}
	for name, c := range map[string]struct {
		criteria Criteria
		r        *admission.Request
		want     bool
	}{
		"nothing asked":               {Criteria{}, create, true},
		"every resource":              {Criteria{Rules: all("*")}, create, true},
		"every resource, not subs":    {Criteria{Rules: all("*")}, request(admission.Update, "pods", "v1", "status", "prod", pod(), pod()), false},
		"everything":                  {Criteria{Rules: all("*/*")}, request(admission.Update, "pods", "v1", "status", "prod", pod(), pod()), true},
		"subs of one":                 {Criteria{Rules: all("pods/*")}, request(admission.Connect, "pods", "v1", "exec", "prod", nil, nil), true},
		"subs of another":             {Criteria{Rules: all("services/*")}, request(admission.Connect, "pods", "v1", "exec", "prod", nil, nil), false},
		"one sub of all":              {Criteria{Rules: all("*/scale")}, request(admission.Update, "deployments.apps", "v1", "scale", "prod", &autoscalingv1.Scale{}, &autoscalingv1.Scale{}), true},
		"one sub":                     {Criteria{Rules: all("deployments/scale")}, request(admission.Update, "deployments.apps", "v1", "", "prod", &appsv1.Deployment{}, &appsv1.Deployment{}), false},
		"operation":                   {Criteria{Rules: rules([]string{"CREATE", "DELETE"}, []string{""}, []string{"v1"}, []string{"pods"}, "")}, create, true},
		"other operation":             {Criteria{Rules: rules([]string{"UPDATE"}, []string{""}, []string{"v1"}, []string{"pods"}, "")}, create, false},
		"other group":                 {Criteria{Rules: rules([]string{"*"}, []string{"apps"}, []string{"v1"}, []string{"pods"}, "")}, create, false},
		"other version":               {Criteria{Rules: rules([]string{"*"}, []string{""}, []string{"v2"}, []string{"pods"}, "")}, create, false},
		"no versions":                 {Criteria{Rules: rules([]string{"*"}, []string{""}, nil, []string{"pods"}, "")}, create, false},
		"namespaced, is":              {Criteria{Rules: rules([]string{"*"}, []string{"*"}, []string{"*"}, []string{"*"}, "Namespaced")}, create, true},
		"namespaced, is not":          {Criteria{Rules: rules([]string{"*"}, []string{"*"}, []string{"*"}, []string{"*"}, "Namespaced")}, node, false},
		"cluster, is":                 {Criteria{Rules: rules([]string{"*"}, []string{"*"}, []string{"*"}, []string{"*"}, "Cluster")}, node, true},
		"cluster, a namespace is":     {Criteria{Rules: rules([]string{"*"}, []string{"*"}, []string{"*"}, []string{"*"}, "Cluster")}, space(admission.Create, other), true},
		"cluster, is not":             {Criteria{Rules: rules([]string{"*"}, []string{"*"}, []string{"*"}, []string{"*"}, "Cluster")}, create, false},
		"namespace selected":          {Criteria{NamespaceSelector: labelled("env", "prod")}, create, true},
		"namespace not selected":      {Criteria{NamespaceSelector: labelled("env", "test")}, create, false},
		"cluster passes selector":     {Criteria{NamespaceSelector: labelled("env", "test")}, node, true},
		"new namespace by itself":     {Criteria{NamespaceSelector: labelled("env", "test")}, space(admission.Create, other), true},
		"deleted namespace as it was": {Criteria{NamespaceSelector: labelled("env", "test")}, space(admission.Delete, nil), false},
		"empty selector":              {Criteria{NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}}, create, true},
		"object selected":             {Criteria{ObjectSelector: labelled("app", "web")}, create, true},
		"object not selected":         {Criteria{ObjectSelector: labelled("app", "db")}, create, false},
		"old object selected":         {Criteria{ObjectSelector: labelled("app", "db")}, request(admission.Update, "pods", "v1", "", "prod", pod(), pod("app", "db")), true},
		"no object to select":         {Criteria{ObjectSelector: labelled("app", "db")}, request(admission.Connect, "pods", "v1", "exec", "prod", nil, nil), false},
		"excluded":                    {Criteria{Rules: all("*"), Exclude: all("pods")}, create, false},
		"another excluded":            {Criteria{Rules: all("*"), Exclude: all("services")}, create, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Compile(c.criteria)
			if err != nil {
				t.Fatal(err)
			}
			c.r.Snapshot = snap
			if _, got, err := m.Match(registry, c.r); got != c.want || err != nil {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	c := Criteria{Rules: all("pods")}
	c.Rules[0].ResourceNames = []string{"x"}
	m, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	r := request(admission.Create, "pods", "v1", "", "prod", pod(), nil)
	r.Name = "" // a POST names the object in its body
	if _, ok, _ := m.Match(registry, r); !ok {
		t.Error("the name in the body does not count")
	}
	r.Object.SetName("y")
	if _, ok, _ := m.Match(registry, r); ok {
		t.Error("another name matches")
	}
}

// TestMissingNamespace: only a request that would match fails.
func TestMissingNamespace(t *testing.T) {
	m, err := Compile(Criteria{Rules: all("pods"), NamespaceSelector: labelled("a", "b")})
	if err != nil {
		t.Fatal(err)
	}
	r := request(admission.Create, "pods", "v1", "", "gone", pod(), nil)
	r.Snapshot = snapshot(t)
	if _, ok, err := m.Match(registry, r); ok || !apierrors.IsNotFound(err) {
		t.Errorf("got %v, %v", ok, err)
	}
	r = request(admission.Create, "configmaps", "v1", "", "gone", &corev1.ConfigMap{}, nil)
	r.Snapshot = snapshot(t)
	if _, ok, err := m.Match(registry, r); ok || err != nil {
		t.Errorf("got %v, %v", ok, err)
	}
}

// TestEquivalent: a request in another version is shown in the one that was asked for.
func TestEquivalent(t *testing.T) {
	two := int32(2)
	hpa := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "prod"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &two}}
	const resource = "horizontalpodautoscalers.autoscaling"
	v1 := rules([]string{"CREATE"}, []string{"autoscaling"}, []string{"v1"}, []string{"horizontalpodautoscalers"}, "")
	r := request(admission.Create, resource, "v2", "", "prod", hpa, nil)
	exact, err := Compile(Criteria{Rules: v1, Policy: admissionv1.Exact})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := exact.Match(registry, r); ok {
		t.Error("Exact takes another version")
	}
	m, err := Compile(Criteria{Rules: v1, Policy: admissionv1.Equivalent})
	if err != nil {
		t.Fatal(err)
	}
	got, ok, err := m.Match(registry, r)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got.Resource.Version != "v1" || got.Kind != autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler") || Own(r).Resource.Version != "v2" {
		t.Errorf("shown as %+v, own %+v", got, Own(r))
	}
	shown, err := got.Convert(t.Context(), r.Object)
	if err != nil {
		t.Fatal(err)
	}
	old, ok := shown.(*autoscalingv1.HorizontalPodAutoscaler)
	if !ok || *old.Spec.MinReplicas != 2 {
		t.Fatalf("shown %#v", shown)
	}
	old = old.DeepCopy()
	*old.Spec.MinReplicas = 3
	back, err := got.Restore(context.Background(), r, old)
	if err != nil {
		t.Fatal(err)
	}
	hub, ok := back.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok || *hub.Spec.MinReplicas != 3 || len(hub.Spec.Metrics) == 0 {
		t.Errorf("restored %#v: want the change, and the defaults of v2", back)
	}
	// The request's own version comes first, whatever the order of the rules.
	both, err := Compile(Criteria{Rules: append(v1, rules([]string{"*"}, []string{"*"}, []string{"v2"}, []string{"*"}, "")...), Policy: admissionv1.Equivalent})
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := both.Match(registry, r); got.Resource.Version != "v2" {
		t.Errorf("shown in %s", got.Resource.Version)
	}
}

// TestSharedObjects: events are the same objects in two groups.
func TestSharedObjects(t *testing.T) {
	m, err := Compile(Criteria{Rules: rules([]string{"*"}, []string{""}, []string{"v1"}, []string{"events"}, ""), Policy: admissionv1.Equivalent})
	if err != nil {
		t.Fatal(err)
	}
	r := request(admission.Create, "events.events.k8s.io", "v1", "", "prod", &corev1.Event{}, nil)
	got, ok, err := m.Match(registry, r)
	if !ok || err != nil || got.Kind.Group != "" || got.Resource.Group != "" || got.Kind.Kind != "Event" {
		t.Errorf("got %+v, %v, %v", got, ok, err)
	}
}

// TestSubresourceTypes: what a subresource takes is shown as it is.
func TestSubresourceTypes(t *testing.T) {
	m, err := Compile(Criteria{Rules: all("*/*")})
	if err != nil {
		t.Fatal(err)
	}
	scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 3}}
	r := request(admission.Update, "deployments.apps", "v1", "scale", "prod", scale, scale)
	got, _, err := m.Match(registry, r)
	if err != nil || got.Kind != autoscalingv1.SchemeGroupVersion.WithKind("Scale") || got.Resource.Resource != "deployments" || got.Subresource != "scale" {
		t.Errorf("got %+v, %v", got, err)
	}
	if shown, err := got.Convert(t.Context(), scale); err != nil || shown != scale {
		t.Errorf("shown %v, %v", shown, err)
	}
	r = request(admission.Connect, "pods", "v1", "exec", "prod", nil, nil)
	r.Options = &corev1.PodExecOptions{Command: []string{"id"}}
	got, _, err = m.Match(registry, r)
	if err != nil || got.Kind != corev1.SchemeGroupVersion.WithKind("PodExecOptions") || Object(r) != r.Options {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestCheap: a request that does not match allocates nothing.
func TestCheap(t *testing.T) {
	m, err := Compile(Criteria{Rules: rules([]string{"CREATE"}, []string{"apps"}, []string{"v1"}, []string{"deployments"}, ""), Policy: admissionv1.Equivalent})
	if err != nil {
		t.Fatal(err)
	}
	r := request(admission.Create, "pods", "v1", "", "prod", pod(), nil)
	m.Match(registry, r)
	if n := testing.AllocsPerRun(100, func() { m.Match(registry, r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNoMatch(b *testing.B) {
	m, err := Compile(Criteria{Rules: rules([]string{"CREATE"}, []string{"apps"}, []string{"v1"}, []string{"deployments"}, ""), Policy: admissionv1.Equivalent})
	if err != nil {
		b.Fatal(err)
	}
	r := request(admission.Create, "pods", "v1", "", "prod", pod(), nil)
	b.ReportAllocs()
	for b.Loop() {
		m.Match(registry, r)
	}
}
