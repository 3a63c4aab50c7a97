package webhook

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/client"
)

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func podOf(namespace, app string) *corev1.Pod {
	p := newPod()
	p.Namespace, p.Labels = namespace, map[string]string{"app": app}
	return p
}

func setOf(namespace, app string) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{ObjectMeta: meta(namespace, "rs"), Spec: appsv1.ReplicaSetSpec{
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}}},
	}}
}

// TestNeeded: which writes pass when a webhook for everything, at a service without pods, gives no answer.
func TestNeeded(t *testing.T) {
	system := func(r *admission.Request) { r.Local = true }
	agent := func(r *admission.Request) { r.User.Groups = []string{client.GroupNodes} }
	user := func(*admission.Request) {}
	for name, c := range map[string]struct {
		by             func(*admission.Request)
		op             admission.Operation
		resource, sub  string
		obj, old       api.Object
		passes, dryRun bool
	}{
		"the backend's pod":               {by: system, op: admission.Create, resource: "pods", obj: podOf("prod", "hooks"), passes: true},
		"the backend's pod, by a user":    {by: user, op: admission.Create, resource: "pods", obj: podOf("prod", "hooks")},
		"the backend's pod, on a dry run": {by: system, op: admission.Create, resource: "pods", obj: podOf("prod", "hooks"), dryRun: true},
		"another pod beside it":           {by: system, op: admission.Create, resource: "pods", obj: podOf("prod", "web")},
		"a pod elsewhere like it":         {by: system, op: admission.Create, resource: "pods", obj: podOf("test", "hooks")},
		"the backend's replica set":       {by: system, op: admission.Create, resource: "replicasets.apps", obj: setOf("prod", "hooks"), passes: true},
		"another replica set":             {by: system, op: admission.Create, resource: "replicasets.apps", obj: setOf("prod", "web")},
		"a volume claim beside it":        {by: system, op: admission.Update, resource: "persistentvolumeclaims", obj: &corev1.PersistentVolumeClaim{ObjectMeta: meta("prod", "c")}, passes: true},
		"a volume claim elsewhere":        {by: system, op: admission.Update, resource: "persistentvolumeclaims", obj: &corev1.PersistentVolumeClaim{ObjectMeta: meta("test", "c")}},
		"a binding":                       {by: system, op: admission.Create, resource: "pods", sub: "binding", obj: &corev1.Binding{ObjectMeta: meta("test", "x")}, passes: true},
		"a pod's status":                  {by: agent, op: admission.Update, resource: "pods", sub: "status", obj: podOf("test", "web"), old: podOf("test", "web"), passes: true},
		"a pod's status, by a user":       {by: user, op: admission.Update, resource: "pods", sub: "status", obj: podOf("test", "web"), old: podOf("test", "web")},
		"a pod's end":                     {by: system, op: admission.Delete, resource: "pods", old: podOf("test", "web"), passes: true},
		"a node":                          {by: agent, op: admission.Update, resource: "nodes", obj: &corev1.Node{ObjectMeta: meta("", "n")}, old: &corev1.Node{ObjectMeta: meta("", "n")}, passes: true},
		"a lease":                         {by: agent, op: admission.Update, resource: "leases.coordination.k8s.io", obj: &coordinationv1.Lease{ObjectMeta: meta("kube-node-lease", "n")}, passes: true},
		"a deployment's status":           {by: system, op: admission.Update, resource: "deployments.apps", sub: "status", obj: &appsv1.Deployment{ObjectMeta: meta("test", "d")}, passes: true},
		"a config map elsewhere":          {by: system, op: admission.Create, resource: "configmaps", obj: &corev1.ConfigMap{ObjectMeta: meta("test", "c")}},
		"the namespace":                   {by: system, op: admission.Update, resource: "namespaces", obj: &corev1.Namespace{ObjectMeta: meta("", "prod")}, passes: true},
		"another namespace":               {by: system, op: admission.Update, resource: "namespaces", obj: &corev1.Namespace{ObjectMeta: meta("", "test")}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, state := range []string{"no endpoints", "nobody there"} {
				b := newBed(t)
				b.put("namespaces", &corev1.Namespace{ObjectMeta: meta("", "test")})
				b.service(state == "nobody there")
				b.mutatingBy("c", mutatingHook("h.example.com", serviceClient()))
				b.validatingBy("c", validatingHook("h.example.com", serviceClient()))
				r := b.request(c.op, c.resource, c.sub, c.obj, c.old)
				r.DryRun = c.dryRun
				c.by(r)
				err := b.run(r)
				if told := len(b.warned) > 0; told != c.passes {
					t.Errorf("%s: events %v", state, b.warned)
				}
				if c.passes != (err == nil) {
					t.Errorf("%s: %v", state, err)
				}
				if logged := strings.Count(b.log.text, "selects what its own backend needs"); logged > 2 || c.passes != (logged == 2) {
					t.Errorf("%s: logged %d times:\n%s", state, logged, b.log.text)
				}
				if n := len(b.samples("apiserver_admission_webhook_fail_open_count")); c.passes != (n == 2) {
					t.Errorf("%s: %d fail-open counts", state, n)
				}
			}
		})
	}
}

// TestNeededAnswers: a webhook that answers is not gone, whatever it says; somebody else in its place is not it.
func TestNeededAnswers(t *testing.T) {
	b := newBed(t)
	b.service(true)
	slice := b.request(admission.Update, "endpointslices.discovery.k8s.io", "", &discoveryv1.EndpointSlice{ObjectMeta: meta("prod", "hooks-1")}, nil)
	slice.Local = true
	write := func() error {
		slice.Snapshot = b.store.Snapshot()
		return b.run(slice)
	}

	// The address went to another pod, and the slice that says so is put to it.
	other := serve(t, allowed)
	b.dial = other.Listener.Addr().String()
	b.validatingBy("c", validatingHook("h.example.com", serviceClient()))
	if err := write(); err != nil || other.calls() != 0 {
		t.Errorf("another server in its place: %v, asked %d times", err, other.calls())
	}
	if err := b.run(b.createPod()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another server in its place, for a user: %v", err)
	}

	cert, ca := certificate(t, "hooks.prod.svc")
	for name, f := range map[string]http.HandlerFunc{
		"an error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", http.StatusInternalServerError) },
		"nonsense": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("yes")) },
	} {
		s := (&server{cert: cert}).start(t, f)
		b.cfg.Backends.Close()
		b.dial = s.Listener.Addr().String()
		c := serviceClient()
		c.CABundle = ca
		b.validatingBy("c", validatingHook("h.example.com", c))
		if err := write(); err == nil {
			t.Errorf("%s passes", name)
		}
	}
	s := (&server{cert: cert}).answer(t, allowed)
	b.cfg.Backends.Close()
	b.dial = s.Listener.Addr().String()
	c := serviceClient()
	c.CABundle = ca
	b.validatingBy("c", validatingHook("h.example.com", c))
	if err := write(); err != nil || s.calls() != 1 {
		t.Errorf("the webhook itself: %v, asked %d times", err, s.calls())
	}

	// A webhook outside the cluster does not depend on it.
	out := validatingHook("h.example.com", admissionv1.WebhookClientConfig{URL: new(string)})
	*out.ClientConfig.URL = "https://127.0.0.1:1/"
	b.validatingBy("c", out)
	if err := write(); err == nil {
		t.Error("passed a webhook that is no service")
	}
}

// TestExplained: a user is told that the webhook stands in its own way, and only if it does.
func TestExplained(t *testing.T) {
	b := newBed(t)
	b.service(false)
	h := validatingHook("h.example.com", serviceClient())
	b.validatingBy("c", h)
	cause := `Internal error occurred: failed calling webhook "h.example.com": failed to call webhook: Post "https://hooks.prod.svc:443/?timeout=10s": no endpoints available for service "hooks"`
	err := b.run(b.createPod())
	if want := cause + ` (the webhook selects its own backend: service "hooks" in namespace "prod" cannot be reached, and its pods would have to be admitted by the webhook itself; ` +
		`take the namespace out by the webhook's namespaceSelector, or change or delete configuration "c")`; err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	h.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"hooks"}}}}
	b.validatingBy("c", h)
	if err := b.run(b.createPod()); err == nil || err.Error() != cause {
		t.Errorf("got\n%v\nwant\n%s", err, cause)
	}
}

// BenchmarkCreate is what admission of a new pod costs by webhooks alone.
func BenchmarkCreate(b *testing.B) {
	elsewhere := []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{"CREATE"},
		Rule:       admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
	}}
	for _, n := range []string{"none", "one for others", "one"} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bed := newBed(b)
			s := serve(b, allowed)
			h := validatingHook("h.example.com", s.client())
			if n == "one for others" {
				h.Rules = elsewhere
			}
			if n != "none" {
				bed.validatingBy("c", h)
			}
			r := bed.createPod()
			b.ReportAllocs()
			for b.Loop() {
				if err := bed.run(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestConditionTimes: how long match conditions took is told apart by webhook, in upstream's buckets.
func TestConditionTimes(t *testing.T) {
	w := New(Config{})
	for _, took := range []time.Duration{2 * time.Millisecond, 30 * time.Millisecond, time.Minute} {
		w.metrics.conditionTime("h", "admit", admission.Create, took)
	}
	var b strings.Builder
	w.WriteMetrics(&b)
	const name, labels = "apiserver_admission_match_condition_evaluation_seconds", `{name="h",kind="webhook",type="admit",operation="CREATE"`
	for _, want := range []string{
		"# TYPE " + name + " histogram\n", name + "_bucket" + labels + `,le="0.001"} 0`, name + "_bucket" + labels + `,le="0.005"} 1`,
		name + "_bucket" + labels + `,le="0.25"} 2`, name + "_bucket" + labels + `,le="+Inf"} 3`, name + "_count" + labels + "} 3", name + "_sum" + labels + "} 60.032",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}
