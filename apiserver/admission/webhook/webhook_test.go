package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/apiserver/admission"
)

// TestMutate: webhooks run in order of configuration and place, each sees what came before, defaults are set anew.
func TestMutate(t *testing.T) {
	b := newBed(t)
	label := func(name string) answer {
		return func(in *reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
			pod := &corev1.Pod{}
			_ = json.Unmarshal(in.Request.Object.Raw, pod)
			if pod.Labels == nil {
				return patch(fmt.Sprintf(`[{"op":"add","path":"/metadata/labels","value":{"trace":%q}}]`, name))(in)
			}
			return patch(fmt.Sprintf(`[{"op":"replace","path":"/metadata/labels/trace","value":%q}]`, pod.Labels["trace"]+name))(in)
		}
	}
	a, c, d := serve(t, label("a")), serve(t, label("c")), serve(t, patch(`[{"op":"add","path":"/spec/containers/-","value":{"name":"side","image":"s"}}]`))
	b.mutatingBy("b-second", mutatingHook("d.example.com", d.client()))
	b.mutatingBy("a-first", mutatingHook("a.example.com", a.client()), mutatingHook("c.example.com", c.client()))
	r := b.createPod()
	if err := b.run(r); err != nil {
		t.Fatal(err)
	}
	pod := r.Object.(*corev1.Pod)
	if pod.Labels["trace"] != "ac" {
		t.Errorf("trace is %q", pod.Labels["trace"])
	}
	if len(pod.Spec.Containers) != 2 || pod.Spec.Containers[1].ImagePullPolicy == "" {
		t.Errorf("containers %+v: the second has no defaults", pod.Spec.Containers)
	}
	if pod.Kind != "" {
		t.Error("the hub object has a TypeMeta")
	}
	want := `{"configuration":"a-first","webhook":"a.example.com","mutated":true}`
	if got := b.annotations["mutation.webhook.admission.k8s.io/round_0_index_0"]; got != want {
		t.Errorf("annotation %s", got)
	}
	want = `{"configuration":"b-second","webhook":"d.example.com","patch":[{"op":"add","path":"/spec/containers/-","value":{"name":"side","image":"s"}}],"patchType":"JSONPatch"}`
	if got := b.annotations["patch.webhook.admission.k8s.io/round_0_index_2"]; got != want {
		t.Errorf("annotation %s", got)
	}
	clear(b.annotations)
	r = b.createPod()
	r.AnnotateBodies = false
	if err := b.run(r); err != nil {
		t.Fatal(err)
	}
	if len(b.annotations) != 3 || strings.Contains(strings.Join(keys(b.annotations), " "), "patch.webhook") {
		t.Errorf("without bodies: annotations %v", keys(b.annotations))
	}
}

// TestReinvocation: who wants to is called again when the object changes after it, by a webhook or by a built-in plug-in, and then
// no more.
func TestReinvocation(t *testing.T) {
	b := newBed(t)
	first, second, third := serve(t, allowed), serve(t, patch(`[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`)), serve(t, allowed)
	again := mutatingHook("again.example.com", first.client())
	again.ReinvocationPolicy = &ifNeeded
	last := mutatingHook("last.example.com", third.client())
	last.ReinvocationPolicy = &ifNeeded
	b.mutatingBy("c", again, mutatingHook("change.example.com", second.client()), last)
	builtin := 0
	b.chain = append(admission.Chain{{Name: "BuiltIn", Mutate: func(context.Context, *admission.Request) error { builtin++; return nil }}}, b.chain...)
	if err := b.run(b.createPod()); err != nil {
		t.Fatal(err)
	}
	if first.calls() != 2 || second.calls() != 1 || third.calls() != 1 || builtin != 2 {
		t.Errorf("called %d, %d, %d times, the built-in %d", first.calls(), second.calls(), third.calls(), builtin)
	}
	if want := []string{
		"mutation.webhook.admission.k8s.io/round_0_index_0", "mutation.webhook.admission.k8s.io/round_0_index_1",
		"mutation.webhook.admission.k8s.io/round_0_index_2", "mutation.webhook.admission.k8s.io/round_1_index_0",
		"patch.webhook.admission.k8s.io/round_0_index_1",
	}; !slices.Equal(keys(b.annotations), want) {
		t.Errorf("annotations %v", keys(b.annotations))
	}

	// In the second round a built-in plug-in changes what the webhooks left: all that want to see it do.
	b.chain[0].Mutate = func(_ context.Context, r *admission.Request) error {
		if r.Round() == 1 {
			r.Object.SetAnnotations(map[string]string{"built": "in"})
		}
		return nil
	}
	if err := b.run(b.createPod()); err != nil {
		t.Fatal(err)
	}
	if first.calls() != 4 || third.calls() != 3 {
		t.Errorf("called %d and %d times", first.calls(), third.calls())
	}
}

// TestNoChange: a patch that changes nothing starts no second round.
func TestNoChange(t *testing.T) {
	b := newBed(t)
	s := serve(t, patch(`[{"op":"replace","path":"/metadata/name","value":"x"}]`))
	h := mutatingHook("h.example.com", s.client())
	h.ReinvocationPolicy = &ifNeeded
	b.mutatingBy("c", h, mutatingHook("i.example.com", s.client()))
	if err := b.run(b.createPod()); err != nil {
		t.Fatal(err)
	}
	if s.calls() != 2 {
		t.Errorf("called %d times", s.calls())
	}
}

// TestDenied: code, reason and message are the webhook's as far as they make sense.
func TestDenied(t *testing.T) {
	for name, c := range map[string]struct {
		said    *metav1.Status
		message string
		code    int32
		reason  metav1.StatusReason
	}{
		"nothing":  {nil, `admission webhook "h.example.com" denied the request without explanation`, 400, ""},
		"message":  {&metav1.Status{Message: "no pods today"}, `admission webhook "h.example.com" denied the request: no pods today`, 400, ""},
		"reason":   {&metav1.Status{Reason: "Busy"}, `admission webhook "h.example.com" denied the request: Busy`, 400, "Busy"},
		"code":     {&metav1.Status{Code: 403, Reason: "Forbidden", Message: "m"}, `admission webhook "h.example.com" denied the request: m`, 403, "Forbidden"},
		"odd code": {&metav1.Status{Code: 200, Status: "Success", Message: "m"}, `admission webhook "h.example.com" denied the request: m`, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range []string{"mutating", "validating"} {
				b := newBed(t)
				s := serve(t, deny(c.said))
				if kind == "mutating" {
					h := mutatingHook("h.example.com", s.client())
					h.FailurePolicy = &ignore // a no is no failure
					b.mutatingBy("c", h)
				} else {
					b.validatingBy("c", validatingHook("h.example.com", s.client()))
				}
				err := b.run(b.createPod())
				status, ok := err.(apierrors.APIStatus)
				if !ok {
					t.Fatalf("%s: %v", kind, err)
				}
				got := status.Status()
				if got.Message != c.message || got.Code != c.code || got.Reason != c.reason || got.Status != "Failure" {
					t.Errorf("%s: %+v", kind, got)
				}
			}
		})
	}
}

// TestFailures: what is no answer, in upstream's words, and what the failure policy makes of it.
func TestFailures(t *testing.T) {
	text := func(code int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	respond := func(change func(*reviewv1.AdmissionReview)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			in := &reviewv1.AdmissionReview{}
			_ = json.NewDecoder(r.Body).Decode(in)
			out := &reviewv1.AdmissionReview{TypeMeta: in.TypeMeta, Response: &reviewv1.AdmissionResponse{UID: in.Request.UID, Allowed: true}}
			change(out)
			_ = json.NewEncoder(w).Encode(out)
		}
	}
	jsonPatch, empty := reviewv1.PatchTypeJSONPatch, reviewv1.PatchType("")
	const intro = `Internal error occurred: failed calling webhook "h.example.com": `
	for name, c := range map[string]struct {
		h                        http.HandlerFunc
		mutating, validating, is string
	}{
		"500": {h: text(500, "text/plain", "broken\n"), is: `failed to call webhook: an error on the server ("broken") has prevented the request from succeeding`},
		"404": {h: text(404, "text/plain", "nope"), is: "failed to call webhook: the server could not find the requested resource"},
		"status": {h: text(503, "application/json", `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"later","code":503}`),
			is: "failed to call webhook: later"},
		"not JSON":     {h: text(200, "text/html", "<html>"), is: "failed to call webhook: couldn't get version/kind; json parse error: "},
		"redirect":     {h: text(302, "text/plain", "elsewhere"), is: `failed to call webhook: the server responded with the status code 302 but did not return more information`},
		"no response":  {h: respond(func(r *reviewv1.AdmissionReview) { r.Response = nil }), is: "received invalid webhook response: webhook response was absent"},
		"other uid":    {h: respond(func(r *reviewv1.AdmissionReview) { r.Response.UID = "other" }), is: `received invalid webhook response: expected response.uid=`},
		"other kind":   {h: respond(func(r *reviewv1.AdmissionReview) { r.Kind = "Pod" }), is: `received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1, Kind=Pod`},
		"no kind":      {h: respond(func(r *reviewv1.AdmissionReview) { r.TypeMeta = metav1.TypeMeta{} }), is: `expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=`},
		"patch":        {h: respond(func(r *reviewv1.AdmissionReview) { r.Response.Patch = []byte("[]") }), mutating: "webhook returned response.patch but not response.patchType", validating: "validating webhook may not return response.patch"},
		"patch type":   {h: respond(func(r *reviewv1.AdmissionReview) { r.Response.PatchType = &jsonPatch }), mutating: "webhook returned response.patchType but not response.patch", validating: "validating webhook may not return response.patchType"},
		"empty type":   {h: respond(func(r *reviewv1.AdmissionReview) { r.Response.Patch, r.Response.PatchType = []byte("[]"), &empty }), mutating: `webhook returned invalid response.patchType of ""`, validating: "validating webhook may not return response.patch"},
		"broken patch": {h: respond(func(r *reviewv1.AdmissionReview) { r.Response.Patch, r.Response.PatchType = []byte("{"), &jsonPatch }), mutating: "received undecodable patch in webhook response: ", validating: "validating webhook may not return response.patch"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range []string{"mutating", "validating"} {
				want := intro + "received invalid webhook response: " + c.mutating
				if kind == "validating" {
					want = intro + "received invalid webhook response: " + c.validating
				}
				if c.is != "" {
					want = intro + c.is
				}
				for _, policy := range []admissionv1.FailurePolicyType{"Fail", "Ignore"} {
					b := newBed(t)
					s := (&server{}).start(t, c.h)
					if kind == "mutating" {
						h := mutatingHook("h.example.com", s.client())
						h.FailurePolicy = &policy
						b.mutatingBy("c", h)
					} else {
						h := validatingHook("h.example.com", s.client())
						h.FailurePolicy = &policy
						b.validatingBy("c", h)
					}
					b.check(kind, policy, want, b.run(b.createPod()))
				}
			}
		})
	}
}

// check compares the outcome of a failed call.
func (b *bed) check(kind string, policy admissionv1.FailurePolicyType, want string, err error) {
	b.t.Helper()
	step, key := "admit", "failed-open.mutation.webhook.admission.k8s.io/round_0_index_0"
	if kind == "validating" {
		step, key = "validating", "failed-open.validating.webhook.admission.k8s.io/round_0_index_0"
	}
	if policy == "Ignore" {
		if err != nil {
			b.t.Errorf("%s: %v", kind, err)
		}
		if b.annotations[key] != "h.example.com" {
			b.t.Errorf("%s: annotations %v", kind, b.annotations)
		}
		if n := b.samples("apiserver_admission_webhook_fail_open_count")[`name="h.example.com",type="`+step+`"`]; n != 1 {
			b.t.Errorf("%s: fail-open count %v", kind, n)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(want, "received invalid webhook response: ")) && !containsParts(err.Error(), want) {
		b.t.Errorf("%s:\n%v\nwant\n%s", kind, err, want)
	}
	if !apierrors.IsInternalError(err) {
		b.t.Errorf("%s: %#v", kind, err)
	}
}

// containsParts tells that a text has the beginning and the end of another, whatever stands between.
func containsParts(text, want string) bool {
	i := strings.LastIndex(want, ": ")
	return i > 0 && strings.HasPrefix(text, want[:strings.Index(want, `": `)+3]) && strings.Contains(text, want[i+2:])
}

// TestTimeout: the webhook is told how long it has, and given no longer; the client's own time ends the request.
func TestTimeout(t *testing.T) {
	stop := make(chan struct{})
	b := newBed(t)
	s := (&server{}).start(t, func(http.ResponseWriter, *http.Request) { <-stop })
	defer close(stop)
	h := validatingHook("slow.example.com", s.client())
	one := int32(1)
	h.TimeoutSeconds, h.FailurePolicy = &one, &ignore
	b.validatingBy("c", h)
	start := time.Now()
	if err := b.run(b.createPod()); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < time.Second || d > 10*time.Second {
		t.Errorf("took %s", d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := b.createPod()
	if err := b.chain.Validate(ctx, r); !apierrors.IsTimeout(err) {
		t.Errorf("with a client that is gone: %v", err)
	}

	quick := serve(t, allowed)
	h = validatingHook("quick.example.com", quick.client())
	h.TimeoutSeconds = &one
	b.validatingBy("c", h)
	if err := b.run(b.createPod()); err != nil {
		t.Fatal(err)
	}
	if got := quick.urls[0]; got != "/hook?timeout=1s" {
		t.Errorf("asked %s", got)
	}
}

// TestUntrusted: a server with another certificate is not the webhook.
func TestUntrusted(t *testing.T) {
	b := newBed(t)
	s := serve(t, allowed)
	c := s.client()
	c.CABundle = nil
	b.validatingBy("c", validatingHook("h.example.com", c))
	err := b.run(b.createPod())
	if err == nil || !strings.Contains(err.Error(), "certificate") || s.calls() > 0 {
		t.Errorf("%v, called %d times", err, s.calls())
	}
}

func TestDryRun(t *testing.T) {
	for effects, want := range map[admissionv1.SideEffectClass]string{
		"None": "", "NoneOnDryRun": "", "Some": `admission webhook "h.example.com" does not support dry run`, "Unknown": `admission webhook "h.example.com" does not support dry run`,
	} {
		b := newBed(t)
		s := serve(t, allowed)
		h := mutatingHook("h.example.com", s.client())
		h.SideEffects, h.FailurePolicy = &effects, &ignore
		b.mutatingBy("c", h)
		v := validatingHook("h.example.com", s.client())
		v.SideEffects = &effects
		b.validatingBy("c", v)
		r := b.createPod()
		r.DryRun = true
		err := b.run(r)
		switch {
		case want == "" && (err != nil || s.calls() != 2 || !*s.last().Request.DryRun):
			t.Errorf("%s: %v, called %d times", effects, err, s.calls())
		case want != "" && (!apierrors.IsBadRequest(err) || err.Error() != want || s.calls() != 0):
			t.Errorf("%s: %v, called %d times", effects, err, s.calls())
		}
	}
}

// TestReview: what webhooks are shown of each operation.
func TestReview(t *testing.T) {
	b := newBed(t)
	s := serve(t, allowed)
	b.validatingBy("c", validatingHook("h.example.com", s.client()))
	ask := func(r *admission.Request) *reviewv1.AdmissionRequest {
		t.Helper()
		if err := b.run(r); err != nil {
			t.Fatal(err)
		}
		return s.last().Request
	}

	r := b.createPod()
	r.Name, r.Version = "", "v1"
	r.Options = &metav1.CreateOptions{FieldManager: "m"}
	got := ask(r)
	if got.Kind != (metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}) || *got.RequestKind != got.Kind || got.Resource.Resource != "pods" || *got.RequestResource != got.Resource ||
		got.Name != "x" || got.Namespace != "prod" || got.Operation != "CREATE" || *got.DryRun {
		t.Errorf("create: %+v", got)
	}
	if got.UserInfo.Username != "ann" || got.UserInfo.UID != "7" || !slices.Equal(got.UserInfo.Groups, []string{"dev", "system:authenticated"}) || got.UserInfo.Extra["k"][0] != "v" {
		t.Errorf("user %+v", got.UserInfo)
	}
	if !strings.HasPrefix(string(got.Object.Raw), `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"`) || string(got.OldObject.Raw) != "null" && got.OldObject.Raw != nil {
		t.Errorf("object %s, old %s", got.Object.Raw, got.OldObject.Raw)
	}
	if want := `{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1","fieldManager":"m"}`; string(got.Options.Raw) != want {
		t.Errorf("options %s", got.Options.Raw)
	}

	r = b.request(admission.Update, "pods", "status", newPod(), newPod())
	r.Options = &metav1.PatchOptions{FieldManager: "p"}
	got = ask(r)
	if got.SubResource != "status" || got.RequestSubResource != "status" || got.OldObject.Raw == nil || !strings.Contains(string(got.Options.Raw), `"kind":"UpdateOptions"`) || !strings.Contains(string(got.Options.Raw), `"p"`) {
		t.Errorf("update: %+v, options %s", got, got.Options.Raw)
	}

	zero := int64(0)
	r = b.request(admission.Delete, "pods", "", nil, newPod())
	r.Options = &metav1.DeleteOptions{GracePeriodSeconds: &zero}
	got = ask(r)
	if string(got.Object.Raw) != "" && string(got.Object.Raw) != "null" || got.OldObject.Raw == nil || !strings.Contains(string(got.Options.Raw), `"gracePeriodSeconds":0`) {
		t.Errorf("delete: %+v", got)
	}

	r = b.request(admission.Connect, "pods", "exec", nil, nil)
	r.Namespace, r.Name, r.Options = "prod", "x", &corev1.PodExecOptions{Command: []string{"id"}, Stdin: true}
	got = ask(r)
	if got.Kind.Kind != "PodExecOptions" || string(got.Object.Raw) != `{"kind":"PodExecOptions","apiVersion":"v1","stdin":true,"command":["id"]}` || string(got.Options.Raw) != "null" && got.Options.Raw != nil {
		t.Errorf("connect: %+v %s, options %s", got, got.Object.Raw, got.Options.Raw)
	}

	scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "prod"}, Spec: autoscalingv1.ScaleSpec{Replicas: 4}}
	got = ask(b.request(admission.Update, "deployments.apps", "scale", scale, scale))
	if got.Kind != (metav1.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}) || got.Resource.Group != "apps" || !strings.Contains(string(got.Object.Raw), `"replicas":4`) {
		t.Errorf("scale: %+v", got)
	}

	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}}
	if got = ask(b.request(admission.Create, "namespaces", "", ns, nil)); got.Namespace != "new" || got.Name != "new" {
		t.Errorf("namespace: %+v", got)
	}
}

// TestVersions: a webhook that asks for another version sees it, and its patch is one of that version.
func TestVersions(t *testing.T) {
	b := newBed(t)
	s := serve(t, patch(`[{"op":"replace","path":"/spec/targetCPUUtilizationPercentage","value":55}]`))
	h := mutatingHook("h.example.com", s.client())
	h.Rules = []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{"CREATE"},
		Rule:       admissionv1.Rule{APIGroups: []string{"autoscaling"}, APIVersions: []string{"v1"}, Resources: []string{"horizontalpodautoscalers"}},
	}}
	b.mutatingBy("c", h)
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "prod"},
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MaxReplicas: 3, ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{Kind: "Deployment", Name: "d"}},
	}
	registry.ByName("horizontalpodautoscalers.autoscaling").Default(hpa)
	r := b.request(admission.Create, "horizontalpodautoscalers.autoscaling", "", hpa, nil)
	r.Version = "v2"
	if err := b.run(r); err != nil {
		t.Fatal(err)
	}
	got := s.last().Request
	if got.Kind.Version != "v1" || got.RequestKind.Version != "v2" || got.Resource.Version != "v1" || got.RequestResource.Version != "v2" {
		t.Errorf("shown %v of %v", got.Kind, got.RequestKind)
	}
	out := r.Object.(*autoscalingv2.HorizontalPodAutoscaler)
	if len(out.Spec.Metrics) != 1 || *out.Spec.Metrics[0].Resource.Target.AverageUtilization != 55 {
		t.Errorf("metrics %+v", out.Spec.Metrics)
	}
}

// TestBeta: v1beta1 is spoken where the webhook prefers it, and its answers are not held to the rules of v1.
func TestBeta(t *testing.T) {
	b := newBed(t)
	s := serve(t, func(in *reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
		return &reviewv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{Kind: "Whatever"},
			Response: &reviewv1.AdmissionResponse{UID: "other", Allowed: true, Patch: []byte(`[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`)},
		}
	})
	h := mutatingHook("h.example.com", s.client())
	h.AdmissionReviewVersions = []string{"v7", "v1beta1", "v1"}
	b.mutatingBy("c", h)
	v := validatingHook("h.example.com", s.client())
	v.AdmissionReviewVersions = []string{"v1beta1"}
	b.validatingBy("c", v)
	r := b.createPod()
	if err := b.run(r); err != nil {
		t.Fatal(err)
	}
	if r.Object.GetLabels()["a"] != "b" || s.last().APIVersion != "admission.k8s.io/v1beta1" || s.last().Kind != "AdmissionReview" {
		t.Errorf("labels %v, spoken %s", r.Object.GetLabels(), s.last().APIVersion)
	}
}

// TestParallel: validating webhooks do not wait for each other, and the first in order is told of.
func TestParallel(t *testing.T) {
	b := newBed(t)
	var both sync.WaitGroup
	both.Add(2)
	meet := func(text string) answer {
		return func(in *reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
			both.Done()
			both.Wait()
			out := deny(&metav1.Status{Message: text})(in)
			out.Response.Warnings = []string{"warned by " + text}
			out.Response.AuditAnnotations = map[string]string{"k": text}
			return out
		}
	}
	one, two := serve(t, meet("one")), serve(t, meet("two"))
	b.validatingBy("c", validatingHook("one.example.com", one.client()), validatingHook("two.example.com", two.client()))
	err := b.run(b.createPod())
	if err == nil || err.Error() != `admission webhook "one.example.com" denied the request: one` {
		t.Error(err)
	}
	if !slices.Equal(b.warnings, []string{"warned by one", "warned by two"}) || b.annotations["two.example.com/k"] != "two" {
		t.Errorf("warnings %q, annotations %v", b.warnings, b.annotations)
	}
	if n := b.samples("apiserver_admission_webhook_rejection_count")[`name="one.example.com",type="validating",operation="CREATE",error_type="no_error",rejection_code="400"`]; n != 1 {
		t.Errorf("rejections %v", b.samples("apiserver_admission_webhook_rejection_count"))
	}
}

// TestMetrics: the text that /metrics shows.
func TestMetrics(t *testing.T) {
	b := newBed(t)
	b.validatingBy("c", validatingHook("h.example.com", serve(t, deny(nil)).client()))
	if err := b.run(b.createPod()); err == nil {
		t.Fatal("allowed")
	}
	var out strings.Builder
	b.WriteMetrics(&out)
	for _, want := range []string{
		"# TYPE apiserver_admission_webhook_admission_duration_seconds histogram\n",
		`apiserver_admission_webhook_admission_duration_seconds_bucket{name="h.example.com",type="validating",operation="CREATE",rejected="true",le="+Inf"} 1` + "\n",
		`apiserver_admission_webhook_admission_duration_seconds_count{name="h.example.com",type="validating",operation="CREATE",rejected="true"} 1` + "\n",
		`apiserver_admission_webhook_request_total{name="h.example.com",type="validating",operation="CREATE",code="400",rejected="true"} 1` + "\n",
		`apiserver_admission_webhook_rejection_count{name="h.example.com",type="validating",operation="CREATE",error_type="no_error",rejection_code="400"} 1` + "\n",
	} {
		if strings.Count(out.String(), want) != 1 {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestExempt(t *testing.T) {
	b := newBed(t)
	s := serve(t, deny(nil))
	b.mutatingBy("c", mutatingHook("h.example.com", s.client()))
	b.validatingBy("c", validatingHook("h.example.com", s.client()))
	for _, resource := range []string{
		"mutatingwebhookconfigurations.admissionregistration.k8s.io", "validatingwebhookconfigurations.admissionregistration.k8s.io",
		"validatingadmissionpolicies.admissionregistration.k8s.io", "subjectaccessreviews.authorization.k8s.io", "tokenreviews.authentication.k8s.io",
	} {
		k := registry.ByName(resource)
		if k == nil {
			t.Fatalf("no %s", resource)
		}
		if err := b.run(&admission.Request{Operation: admission.Create, Kind: k, Snapshot: b.store.Snapshot(), Name: "x"}); err != nil {
			t.Errorf("%s: %v", resource, err)
		}
	}
	if s.calls() > 0 {
		t.Error("asked")
	}
}

// TestConditions: a false condition passes the webhook over, an error is up to the failure policy.
func TestConditions(t *testing.T) {
	for name, c := range map[string]struct {
		expression string
		policy     admissionv1.FailurePolicyType
		calls      int
		err        string
	}{
		"true":          {`object.metadata.name == 'x' && request.userInfo.username == 'ann'`, "Fail", 1, ""},
		"false":         {`request.operation == 'DELETE'`, "Fail", 0, ""},
		"error":         {`object.metadata.labels['no'] == 'x'`, "Fail", 0, `pods "x" is forbidden: `},
		"error, passed": {`object.metadata.labels['no'] == 'x'`, "Ignore", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			s := serve(t, allowed)
			h := validatingHook("h.example.com", s.client())
			h.MatchConditions, h.FailurePolicy = []admissionv1.MatchCondition{{Name: "c", Expression: c.expression}}, &c.policy
			b.validatingBy("c", h)
			err := b.run(b.createPod())
			if s.calls() != c.calls || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("called %d times: %v", s.calls(), err)
			}
		})
	}
}

// TestPatches: patches that cannot be applied are the server's to refuse, whatever the failure policy.
func TestPatches(t *testing.T) {
	for name, c := range map[string]struct {
		patch, want string
		r           func(*bed) *admission.Request
	}{
		"absent path":     {`[{"op":"remove","path":"/metadata/labels/none"}]`, "remove operation does not apply", nil},
		"wrong type":      {`[{"op":"replace","path":"/spec/containers","value":"none"}]`, "cannot unmarshal string", nil},
		"other namespace": {`[{"op":"replace","path":"/metadata/namespace","value":"other"}]`, "the namespace of the provided object does not match the namespace sent on the request", nil},
		"a deletion": {`[{"op":"add","path":"/x","value":1}]`, `admission webhook "h.example.com" attempted to modify the object, which is not supported for this operation`,
			func(b *bed) *admission.Request { return b.request(admission.Delete, "pods", "", nil, newPod()) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			s := serve(t, patch(c.patch))
			h := mutatingHook("h.example.com", s.client())
			h.FailurePolicy = &ignore
			b.mutatingBy("c", h)
			r := b.createPod()
			if c.r != nil {
				r = c.r(b)
			}
			if err := b.run(r); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCompiledOnce: configurations that stay as they are stay compiled.
func TestCompiledOnce(t *testing.T) {
	b := newBed(t)
	s := serve(t, allowed)
	b.mutatingBy("a", mutatingHook("a.example.com", s.client()))
	b.mutatingBy("b", mutatingHook("b.example.com", s.client()))
	one := b.mutating.load(b.store.Snapshot())
	if two := b.mutating.load(b.store.Snapshot()); &one[0] != &two[0] {
		t.Error("compiled anew without a change")
	}
	b.mutatingBy("b", mutatingHook("c.example.com", s.client()))
	three := b.mutating.load(b.store.Snapshot())
	if three[0] != one[0] || three[1] == one[1] || three[1].name != "c.example.com" {
		t.Error("a change of one does not leave the other alone")
	}
}

// TestService: a service's pods are found in the snapshot, and the certificate is that of the service's name.
func TestService(t *testing.T) {
	b := newBed(t)
	b.service(true)
	s := serve(t, allowed)
	b.dial = s.Listener.Addr().String()
	c := serviceClient()
	c.CABundle = s.ca()
	path := "/validate"
	c.Service.Path = &path
	b.validatingBy("c", validatingHook("h.example.com", c))
	err := b.run(b.createPod())
	if err == nil || !strings.Contains(err.Error(), "hooks.prod.svc") || !strings.Contains(err.Error(), "certificate is valid for") {
		t.Errorf("a certificate for another name: %v", err)
	}
	if s.calls() != 0 {
		t.Error("asked nevertheless")
	}
}
