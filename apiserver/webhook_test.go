package apiserver

import (
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
)

// hooks is a webhook's server that answers by what it is asked about.
type hooks struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []string          // "OPERATION resource/sub name Kind"
	patch  map[string]string // by resource/sub
	denied map[string]bool   // by resource/sub
}

func serveHooks(t *testing.T) *hooks {
	h := &hooks{patch: map[string]string{}, denied: map[string]bool{}}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in := &reviewv1.AdmissionReview{}
		if err := json.NewDecoder(r.Body).Decode(in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		q := in.Request
		what := strings.TrimSuffix(q.Resource.Resource+"/"+q.SubResource, "/")
		h.mu.Lock()
		h.seen = append(h.seen, strings.Join([]string{string(q.Operation), what, q.Name, q.Kind.Kind}, " "))
		out := &reviewv1.AdmissionResponse{UID: q.UID, Allowed: !h.denied[what]}
		if p := h.patch[what]; p != "" && r.URL.Path == "/mutate" {
			kind := reviewv1.PatchTypeJSONPatch
			out.Patch, out.PatchType = []byte(p), &kind
		}
		h.mu.Unlock()
		_ = json.NewEncoder(w).Encode(&reviewv1.AdmissionReview{TypeMeta: in.TypeMeta, Response: out})
	}))
	h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

// set changes how the server answers.
func (h *hooks) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// saw tells how often something was asked since the last call.
func (h *hooks) saw() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]int{}
	for _, s := range h.seen {
		out[s]++
	}
	h.seen = nil
	return out
}

// register makes webhooks of both kinds for resources.
func (h *hooks) register(t *testing.T, e *env, resources ...string) {
	none, url := admissionv1.SideEffectClassNone, h.URL
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	rules := []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{admissionv1.OperationAll},
		Rule:       admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: resources},
	}}
	mutate, validate := url+"/mutate", url+"/validate"
	_, err := e.typed.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx(t), &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Webhooks: []admissionv1.MutatingWebhook{{Name: "m.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &mutate, CABundle: ca},
			Rules: rules, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.typed.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx(t), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Webhooks: []admissionv1.ValidatingWebhook{{Name: "v.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &validate, CABundle: ca},
			Rules: rules, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// expect holds what was asked against what should have been, both kinds of webhook once each.
func (h *hooks) expect(t *testing.T, want ...string) {
	t.Helper()
	got := h.saw()
	for _, w := range want {
		if got[w] != 2 {
			t.Errorf("%q was asked %d times", w, got[w])
		}
		delete(got, w)
	}
	for g, n := range got {
		t.Errorf("%q was asked %d times", g, n)
	}
}

// TestWebhooksOfSubresources: each way to write is put to webhooks as upstream does it, and what they change is kept.
func TestWebhooksOfSubresources(t *testing.T) {
	e, h := start(t, builtin.Kinds()), serveHooks(t)
	c := e.typed
	pod := simplePod("web")
	if _, err := c.CoreV1().Pods("default").Create(ctx(t), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	two := int32(2)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
		Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: simplePod("x").Spec},
	}}
	if _, err := c.AppsV1().Deployments("default").Create(ctx(t), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	h.register(t, e, "*/*")

	h.set(func() { h.patch["deployments/scale"] = `[{"op":"replace","path":"/spec/replicas","value":7}]` })
	s, err := c.AppsV1().Deployments("default").UpdateScale(ctx(t), "d", &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}, Spec: autoscalingv1.ScaleSpec{Replicas: 3}}, metav1.UpdateOptions{})
	if err != nil || s.Spec.Replicas != 7 {
		t.Errorf("scale: %+v, %v", s, err)
	}
	h.expect(t, "UPDATE deployments/scale d Scale")

	h.set(func() { h.patch["pods/binding"] = `[{"op":"replace","path":"/target/name","value":"other"}]` })
	if err := c.CoreV1().Pods("default").Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if p, err := c.CoreV1().Pods("default").Get(ctx(t), "web", metav1.GetOptions{}); err != nil || p.Spec.NodeName != "other" {
		t.Errorf("bound to %q, %v", p.Spec.NodeName, err)
	}
	h.expect(t, "CREATE pods/binding web Binding")
	if _, err := c.CoreV1().Pods("default").Create(ctx(t), simplePod("old"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	h.saw()
	h.set(func() { h.patch["bindings"] = `[{"op":"replace","path":"/target/name","value":"third"}]` })
	older := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
	if err := c.CoreV1().RESTClient().Post().Namespace("default").Resource("bindings").Body(older).Do(ctx(t)).Error(); err != nil {
		t.Fatal(err)
	}
	if p, err := c.CoreV1().Pods("default").Get(ctx(t), "old", metav1.GetOptions{}); err != nil || p.Spec.NodeName != "third" {
		t.Errorf("bound to %q, %v", p.Spec.NodeName, err)
	}
	h.expect(t, "CREATE bindings old Binding")

	h.set(func() {
		h.patch["serviceaccounts/token"] = `[{"op":"replace","path":"/spec/expirationSeconds","value":1200}]`
	})
	seconds := int64(600)
	token, err := c.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil || *token.Spec.ExpirationSeconds != 1200 {
		t.Errorf("token: %+v, %v", token, err)
	}
	h.expect(t, "CREATE serviceaccounts/token default TokenRequest")

	if _, err := c.CoreV1().Pods("default").Patch(ctx(t), "web", "application/merge-patch+json", []byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "UPDATE pods/status web Pod")

	h.set(func() { h.denied["pods/eviction"] = true })
	evict := func() error {
		return c.PolicyV1().Evictions("default").Evict(ctx(t), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}})
	}
	if err := evict(); err == nil || err.Error() != `admission webhook "m.example.com" denied the request without explanation` {
		t.Errorf("eviction: %v", err)
	}
	h.set(func() { h.denied["pods/eviction"] = false; h.seen = nil })
	if err := evict(); err != nil {
		t.Error(err)
	}
	// The eviction is what is asked about, not the changes that it comes to.
	h.expect(t, "CREATE pods/eviction web Eviction")

	h.set(func() { h.denied["pods/exec"] = true })
	err = c.CoreV1().RESTClient().Post().Namespace("default").Resource("pods").Name("web").SubResource("exec").Param("command", "id").Do(ctx(t)).Error()
	if err == nil || !strings.Contains(err.Error(), "denied the request") {
		t.Errorf("exec: %v", err)
	}
	if got := h.saw(); got["CONNECT pods/exec web PodExecOptions"] != 1 {
		t.Errorf("asked %v", got)
	}
}

// TestWebhooksOfCollections: each object of a collection that is deleted is asked about.
func TestWebhooksOfCollections(t *testing.T) {
	e, h := start(t, builtin.Kinds()), serveHooks(t)
	maps := e.typed.CoreV1().ConfigMaps("default")
	for _, name := range []string{"a", "b"} {
		if _, err := maps.Create(ctx(t), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	h.register(t, e, "configmaps")
	if err := maps.DeleteCollection(ctx(t), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "DELETE configmaps a ConfigMap", "DELETE configmaps b ConfigMap")
}

// TestWebhooksOfLoops: the parts of this program are asked about too, and quotas count what webhooks have made.
func TestWebhooksOfLoops(t *testing.T) {
	e, h := start(t, builtin.Kinds()), serveHooks(t)
	h.register(t, e, "configmaps")
	h.set(func() { h.patch["configmaps"] = `[{"op":"add","path":"/data","value":{"k":"v"}}]` })
	out, err := e.Writer().Create(ctx(t), "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}}, client.WriteOptions{})
	if err != nil || out.(*corev1.ConfigMap).Data["k"] != "v" {
		t.Errorf("%v, %v", out, err)
	}
	h.expect(t, "CREATE configmaps c ConfigMap")
	h.set(func() { h.denied["configmaps"] = true })
	if err := e.Writer().Delete(ctx(t), client.Ref{Resource: "configmaps", Namespace: "default", Name: "c"}, client.DeleteOptions{}); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("delete: %v", err)
	}
}

// BenchmarkHandlerCreateWithWebhooks is a create with webhooks that do not match, beside BenchmarkHandlerCreate without any.
func BenchmarkHandlerCreateWithWebhooks(b *testing.B) {
	e, state := bench(b)
	none, url := admissionv1.SideEffectClassNone, "https://127.0.0.1:1/"
	_, err := e.typed.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx(b), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Webhooks: []admissionv1.ValidatingWebhook{{Name: "v.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{"*"}, Rule: admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	body := []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"c-"},"data":{"a":"b"}}`)
	b.ReportAllocs()
	for b.Loop() {
		if w := e.do(b, state, http.MethodPost, "/api/v1/namespaces/default/configmaps", "application/json", body); w.code != http.StatusCreated {
			b.Fatal(w.code)
		}
	}
}
