package configured

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	clocktesting "k8s.io/utils/clock/testing"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// hook is an authorization webhook on loopback.
type hook struct {
	*httptest.Server
	file string // the kubeconfig that names it

	mu     sync.Mutex // guards all below
	asked  []map[string]any
	answer func(spec map[string]any) authorizationv1.SubjectAccessReviewStatus
	fail   []int // statuses of the next answers
}

func startHook(t *testing.T) *hook {
	h := &hook{answer: func(map[string]any) authorizationv1.SubjectAccessReviewStatus {
		return authorizationv1.SubjectAccessReviewStatus{}
	}}
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		var in map[string]any
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/decide" || r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "bad question", http.StatusBadRequest)
			return
		}
		h.asked = append(h.asked, in)
		if len(h.fail) > 0 {
			status := h.fail[0]
			h.fail = h.fail[1:]
			http.Error(w, "not now", status)
			return
		}
		in["status"] = h.answer(in["spec"].(map[string]any))
		_ = json.NewEncoder(w).Encode(in)
	}))
	t.Cleanup(h.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	h.file = filepath.Join(dir, "hook.yaml")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
clusters: [{name: a, cluster: {server: "%s/decide", certificate-authority: ca.pem}}], users: [{name: a, user: {token: secret}}]}`, h.URL)
	if err := os.WriteFile(h.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hook) says(f func(spec map[string]any) authorizationv1.SubjectAccessReviewStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func (h *hook) fails(statuses ...int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = statuses
}

// questions are how many there were so far.
func (h *hook) questions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.asked)
}

func (h *hook) last() map[string]any {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked[len(h.asked)-1]
}

// config names the hook and then RBAC; more is YAML of the webhook.
func (h *hook) config(more string) string {
	return fmt.Sprintf(`
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Webhook
  name: guard
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: %s}
%s
- {type: RBAC, name: rbac}
`, h.file, more)
}

func allowed(why string) authorizationv1.SubjectAccessReviewStatus {
	return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: why}
}

// rbac allows bob everything.
var rbac = authz.Func(func(_ context.Context, a *authz.Attributes) (authz.Decision, string, error) {
	return authz.If(a.User.Name == "bob"), "rbac", nil
})

func newChain(t *testing.T, text string, now *clocktesting.FakeClock) *Chain {
	t.Helper()
	c, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	parts := Parts{Node: authz.Any{}, RBAC: rbac, Log: slog.New(slog.DiscardHandler)}
	if now != nil {
		parts.Clock = now
	}
	chain, err := New(c, parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range chain.present.Load().hooks {
		w.endpoint.Hurry()
	}
	return chain
}

func decide(t *testing.T, c *Chain, a authz.Attributes) string {
	t.Helper()
	d, reason, err := c.Authorize(context.Background(), &a)
	if err != nil {
		return fmt.Sprintf("%d %s error", d, reason)
	}
	return fmt.Sprintf("%d %s", d, reason)
}

func pods(user, verb string) authz.Attributes {
	return authz.Attributes{User: client.User{Name: user, Groups: []string{"crew"}}, Verb: verb, IsResource: true, Version: "v1", Resource: "pods", Namespace: "shop"}
}

func TestAnswersAndHowLongTheyAreGood(t *testing.T) {
	h := startHook(t)
	now := clocktesting.NewFakeClock(time.Unix(1700000000, 0))
	c := newChain(t, h.config("    authorizedTTL: 1m\n    unauthorizedTTL: 10s\n    failurePolicy: Deny"), now)
	h.says(func(spec map[string]any) authorizationv1.SubjectAccessReviewStatus {
		switch spec["user"] {
		case "ann":
			return allowed("ours")
		case "eve":
			return authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "never"}
		case "odd":
			return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Denied: true, Reason: "both"}
		}
		return authorizationv1.SubjectAccessReviewStatus{Reason: "who?"}
	})
	for user, want := range map[string]string{"ann": "1 ours", "eve": "2 never", "odd": "2 both error", "bob": "1 rbac", "joe": "0 who?\nrbac"} {
		if got := decide(t, c, pods(user, "get")); got != want {
			t.Errorf("%s: %q, want %q", user, got, want)
		}
	}
	for _, step := range []struct {
		wait  time.Duration
		user  string
		asked int
	}{{0, "ann", 0}, {0, "eve", 0}, {11 * time.Second, "ann", 0}, {0, "eve", 1}, {0, "bob", 1}, {50 * time.Second, "ann", 1}} {
		now.Step(step.wait)
		before := h.questions()
		decide(t, c, pods(step.user, "get"))
		if got := h.questions() - before; got != step.asked {
			t.Errorf("%s after %s: %d questions, want %d", step.user, step.wait, got, step.asked)
		}
	}
	long := pods("ann", "get")
	long.Name = strings.Repeat("x", maxAsked)
	before := h.questions()
	decide(t, c, long)
	decide(t, c, long)
	if got := h.questions() - before; got != 2 {
		t.Errorf("a question of %d bytes was asked %d times: nobody may fill the memory with such", maxAsked, got)
	}
}

func TestWhatIsAsked(t *testing.T) {
	h := startHook(t)
	for version, groups := range map[string]string{"v1": "groups", "v1beta1": "group"} {
		c := newChain(t, strings.Replace(h.config("    failurePolicy: Deny"), "subjectAccessReviewVersion: v1", "subjectAccessReviewVersion: "+version, 1), nil)
		a := pods("ann", "list")
		a.User.UID, a.User.Extra = "u", map[string][]string{"team": {"blue"}}
		a.Fields = fields.Requirements{{Field: "spec.nodeName", Operator: "=", Value: "n1"}}
		a.Labels, _ = labels.ParseToRequirements("app in (a),!gone,x>1")
		decide(t, c, a)
		got, _ := json.Marshal(h.last())
		want := fmt.Sprintf(`{"apiVersion":"authorization.k8s.io/%s","kind":"SubjectAccessReview","metadata":{},"spec":{"extra":{"team":["blue"]},"%s":["crew"],"resourceAttributes":{"fieldSelector":{"requirements":[{"key":"spec.nodeName","operator":"In","values":["n1"]}]},"labelSelector":{"requirements":[{"key":"app","operator":"In","values":["a"]},{"key":"gone","operator":"DoesNotExist"}]},"namespace":"shop","resource":"pods","verb":"list","version":"v1"},"uid":"u","user":"ann"},"status":{"allowed":false}}`, version, groups)
		if string(got) != want {
			t.Errorf("asked %s\nwant  %s", got, want)
		}
		decide(t, c, authz.Attributes{User: client.User{Name: "ann"}, Verb: "get", Path: "/x"})
		if got, _ := json.Marshal(h.last()["spec"]); string(got) != `{"nonResourceAttributes":{"path":"/x","verb":"get"},"user":"ann"}` {
			t.Errorf("asked %s", got)
		}
	}
}

func TestFailures(t *testing.T) {
	h := startHook(t)
	h.says(func(map[string]any) authorizationv1.SubjectAccessReviewStatus { return allowed("up") })
	open := newChain(t, h.config("    failurePolicy: NoOpinion"), nil)
	closed := newChain(t, h.config("    failurePolicy: Deny"), nil)
	for i, test := range []struct {
		statuses []int
		open     string
		closed   string
		tries    int
	}{
		{[]int{500, 429, 504}, "1 up", "1 up", 4},
		{[]int{500, 500, 500, 500, 500}, "1 rbac", "2  error", 5},
		{[]int{403}, "1 rbac", "2  error", 1},
		{[]int{503}, "1 rbac", "2  error", 1},
	} {
		for c, want := range map[*Chain]string{open: test.open, closed: test.closed} {
			h.fails(test.statuses...)
			before := h.questions()
			if got := decide(t, c, pods("bob", fmt.Sprint("verb", i))); got != want {
				t.Errorf("%v: %q, want %q", test.statuses, got, want)
			}
			if got := h.questions() - before; got != test.tries {
				t.Errorf("%v: %d tries, want %d", test.statuses, got, test.tries)
			}
		}
	}
	var out strings.Builder
	open.WriteMetrics(&out)
	for _, want := range []string{
		`apiserver_authorization_webhook_evaluations_total{name="guard",result="success"} 1`,
		`apiserver_authorization_webhook_evaluations_fail_open_total{name="guard",result="error"} 3`,
		`apiserver_authorization_webhook_duration_seconds_count{name="guard",result="error"} 3`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
}

func TestConditions(t *testing.T) {
	h := startHook(t)
	h.says(func(map[string]any) authorizationv1.SubjectAccessReviewStatus { return allowed("hook") })
	const conditions = `
    matchConditions:
    - expression: has(request.resourceAttributes)
    - expression: request.resourceAttributes.namespace == 'shop'
    - expression: "!('system:serviceaccounts:kube-system' in request.groups)"
    - expression: request.extra['team'][0] == 'blue'`
	for policy, broken := range map[string]string{"NoOpinion": "1 rbac", "Deny": "2  error"} {
		c := newChain(t, h.config("    failurePolicy: "+policy+conditions), nil)
		blue := pods("bob", "get")
		blue.User.Extra = map[string][]string{"team": {"blue"}}
		red := blue
		red.Namespace = "other"
		before := h.questions()
		for want, a := range map[string]authz.Attributes{"1 hook": blue, "1 rbac": red, broken: pods("bob", "get")} {
			if got := decide(t, c, a); got != want {
				t.Errorf("%s: %q, want %q", policy, got, want)
			}
		}
		if got := h.questions() - before; got != 1 {
			t.Errorf("%d questions", got)
		}
	}
}

func TestTakingAnother(t *testing.T) {
	h := startHook(t)
	h.says(func(map[string]any) authorizationv1.SubjectAccessReviewStatus {
		return authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "hook"}
	})
	c := newChain(t, h.config("    failurePolicy: Deny"), nil)
	take := func(text string) error {
		next, err := Parse([]byte(text))
		if err != nil {
			return err
		}
		return c.Take(next)
	}
	if got := decide(t, c, pods("bob", "get")); got != "2 hook" {
		t.Fatal(got)
	}
	const head = "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: ["
	for text, want := range map[string]string{
		head + "{type: AlwaysAllow, name: alwaysallow}]}":             "missing required types: [RBAC]",
		head + "{type: RBAC, name: rbac}, {type: Node, name: node}]}": "authorizer type Node is not allowed if it was not enabled at initial server startup",
	} {
		if err := take(text); err == nil || err.Error() != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got := decide(t, c, pods("bob", "get")); got != "2 hook" {
		t.Errorf("after configurations that are wrong: %q", got)
	}
	if err := take(head + "{type: RBAC, name: rbac}]}"); err != nil {
		t.Fatal(err)
	}
	if got := decide(t, c, pods("bob", "get")); got != "1 rbac" {
		t.Errorf("after one that is right: %q", got)
	}
}

func TestWhatIsWrong(t *testing.T) {
	h := startHook(t)
	const head = "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: ["
	for text, want := range map[string]string{
		"kind: Other": `kind is "Other", want AuthorizationConfiguration`,
		"{kind: AuthorizationConfiguration, apiVersion: v9}": `apiVersion is "v9"`,
		head + "]}":                                                "authorizers: Required value: at least one authorization mode must be defined",
		head + "{type: RBAC, name: mine}]}":                        "expected name rbac for authorizer RBAC instead of mine",
		head + "{type: ABAC, name: abac}]}":                        `authorizers[0].type: Unsupported value: "ABAC": supported values: "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"`,
		head + "{type: Webhook, name: a}]}":                        "authorizers[0].webhook: Required value: required when type=Webhook",
		head + "{type: RBAC, name: rbac}, {type: RBAC, name: b}]}": `authorizers[1].type: Duplicate value: "RBAC"`,
		h.config(""):                         "failurePolicy: Required value",
		h.config("    failurePolicy: Maybe"): `failurePolicy: Unsupported value: "Maybe": supported values: "NoOpinion", "Deny"`,
		h.config("    failurePolicy: Deny\n    matchConditions: [{expression: '1+1'}]"): "matchConditions[0].expression",
		h.config("    failurePolicy: Deny\n    unknown: true"):                          `unknown field "unknown"`,
		strings.Replace(h.config("    failurePolicy: Deny"), h.file, "relative", 1):     "must be an absolute path",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngives %v, want %s", text, err, want)
		}
	}
	for want, f := range map[string]Flags{
		"authorization-mode Webhook's authorization config file not passed":       {Modes: []string{"Webhook"}},
		"cannot specify --authorization-webhook-config-file without mode Webhook": {WebhookFile: h.file},
		`subjectAccessReviewVersion: Unsupported value: "v2"`:                     {Modes: []string{"Webhook"}, WebhookFile: h.file, WebhookVersion: "v2"},
		`authorizers[0].type: Unsupported value: "Nonsense"`:                      {Modes: []string{"Nonsense"}},
	} {
		if _, err := f.Config(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gives %v, want %s", f, err, want)
		}
	}
	if _, err := (&Flags{Modes: []string{"Node", "Webhook", "RBAC"}, WebhookFile: h.file, WebhookVersion: "v1beta1"}).Config(); err != nil {
		t.Error(err)
	}
}

func TestRules(t *testing.T) {
	h := startHook(t)
	c := newChain(t, h.config("    failurePolicy: Deny"), nil)
	if _, _, incomplete, err := c.Rules(client.User{Name: "ann"}, "shop"); !incomplete || err == nil || err.Error() != "webhook authorizer does not support user rule resolution" {
		t.Errorf("%v %v", incomplete, err)
	}
	c = newChain(t, "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: [{type: AlwaysAllow, name: alwaysallow}]}", nil)
	if r, p, incomplete, err := c.Rules(client.User{Name: "ann"}, "shop"); len(r) != 1 || len(p) != 1 || incomplete || err != nil {
		t.Errorf("%v %v %v %v", r, p, incomplete, err)
	}
}
