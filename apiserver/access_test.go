package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
)

// bearer is a client configuration with a token.
func (e *env) bearer(token string) *rest.Config {
	return &rest.Config{Host: e.http.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: e.config.CAData}}
}

// whoami asks the server whom it takes the client for.
func whoami(t *testing.T, c *rest.Config) (authenticationv1.UserInfo, error) {
	t.Helper()
	r, err := clientset(t, c).AuthenticationV1().SelfSubjectReviews().Create(ctx(t), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return r.Status.UserInfo, nil
}

// everyone lets all that are authenticated ask who they are, as the default roles do.
func (e *env) everyone() {
	e.grant("", rbacv1.Subject{Kind: "Group", Name: client.GroupAuthenticated}, rbacv1.PolicyRule{
		APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}, Verbs: []string{"create"}})
}

func TestConstrainedImpersonation(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.everyone()
	list := func(user string, groups []string, as rest.ImpersonationConfig) error {
		cfg := e.as(user, groups...)
		cfg.Impersonate = as
		_, err := clientset(t, cfg).CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{})
		return err
	}
	e.grant("", rbacv1.Subject{Kind: "User", Name: "ann"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}})
	as := rest.ImpersonationConfig{UserName: "ann"}
	e.grant("", rbacv1.Subject{Kind: "Group", Name: "may-act"}, rbacv1.PolicyRule{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"users"}, Verbs: []string{"impersonate:user-info"}})
	if err := list("low", []string{"may-act"}, as); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `cannot impersonate-on:user-info:list resource "configmaps"`) {
		t.Errorf("without the right to this request: %v", err)
	}
	e.grant("default", rbacv1.Subject{Kind: "Group", Name: "may-on"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"impersonate-on:user-info:list"}})
	if err := list("low", []string{"may-on"}, as); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `users.authentication.k8s.io "ann" is forbidden: User "low" cannot impersonate:user-info resource "users" in API group "authentication.k8s.io"`) {
		t.Errorf("without the right to act: %v", err)
	}
	if err := list("low", []string{"may-act", "may-on"}, as); err != nil {
		t.Errorf("with both: %v", err)
	}
	as.Groups = []string{client.GroupMasters}
	if err := list("low", []string{"may-act", "may-on"}, as); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "impersonating the system:masters group is not allowed") {
		t.Errorf("masters: %v", err)
	}
	// The older verb is good for everything.
	e.grant("", rbacv1.Subject{Kind: "User", Name: "old"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"users", "serviceaccounts"}, Verbs: []string{"impersonate"}})
	if err := list("old", nil, rest.ImpersonationConfig{UserName: "ann"}); err != nil {
		t.Errorf("the older way: %v", err)
	}
	cfg := e.as("old")
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:default:robot"}
	if u, err := whoami(t, cfg); err != nil || strings.Join(u.Groups, " ") != "system:serviceaccounts system:serviceaccounts:default system:authenticated" {
		t.Errorf("as a service account: %+v, %v", u, err)
	}
	// Nodes have the groups of nodes.
	e.grant("", rbacv1.Subject{Kind: "User", Name: "agent"},
		rbacv1.PolicyRule{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"nodes"}, Verbs: []string{"impersonate:arbitrary-node"}},
		rbacv1.PolicyRule{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}, Verbs: []string{"impersonate-on:arbitrary-node:create"}})
	cfg = e.as("agent")
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "system:node:n1"}
	if u, err := whoami(t, cfg); err != nil || strings.Join(u.Groups, " ") != "system:nodes system:authenticated" {
		t.Errorf("as a node: %+v, %v", u, err)
	}
	r := e.raw("GET", "/api/v1/namespaces", map[string]string{"Impersonate-Group": "g"})
	if text := body(t, r); r.StatusCode != http.StatusBadRequest || !strings.Contains(text, "without impersonating a user name") {
		t.Errorf("groups alone: %s %s", r.Status, text)
	}
}

func FuzzImpersonationHeaders(f *testing.F) {
	f.Add("Impersonate-User", "ann", "Impersonate-Extra-Acme.com%2Fx", "y")
	f.Fuzz(func(t *testing.T, a, av, b, bv string) {
		h := http.Header{}
		h.Add(a, av)
		h.Add(b, bv)
		u, ok := impersonated(h)
		if !ok && (u.Name != "" || u.UID != "" || len(u.Groups) > 0 || len(u.Extra) > 0) {
			t.Errorf("%+v from %v", u, h)
		}
		_ = checkExtra(u.Extra)
	})
}

func TestExecNeedsCreate(t *testing.T) {
	asked := kubelet{make(chan string, 1)}
	e := start(t, builtin.Kinds(), func(c *Config) { c.Nodes = func(string) (http.Handler, error) { return asked, nil } })
	p := simplePod("p")
	p.Spec.NodeName = "n"
	must(t)(e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{}))
	e.grant("", rbacv1.Subject{Kind: "Group", Name: "readers"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/exec", "pods/attach", "pods/portforward"}, Verbs: []string{"get"}})
	e.grant("", rbacv1.Subject{Kind: "Group", Name: "writers"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"get", "create"}})
	get := func(sub string, groups ...string) error {
		return clientset(t, e.as("ann", groups...)).RESTClient().Get().RequestURI("/api/v1/namespaces/default/pods/p/" + sub + "?command=ls").Do(ctx(t)).Error()
	}
	for _, sub := range []string{"exec", "attach", "portforward"} {
		if err := get(sub, "readers"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `cannot create resource "pods/`+sub+`"`) {
			t.Errorf("GET of %s without create: %v", sub, err)
		}
	}
	if err := get("exec", "writers"); err != nil {
		t.Errorf("GET of exec with create: %v", err)
	}
	<-asked.asked
}

func TestBootstrapTokens(t *testing.T) {
	var offset time.Duration
	e := start(t, builtin.Kinds(), func(c *Config) { c.Now = func() time.Time { return time.Now().Add(offset) } })
	e.everyone()
	e.namespace("kube-system")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-abc123"}, Type: "bootstrap.kubernetes.io/token", StringData: map[string]string{
		"token-id": "abc123", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
		"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token", "expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}}
	must(t)(e.typed.CoreV1().Secrets("kube-system").Create(ctx(t), secret, metav1.CreateOptions{}))
	u, err := whoami(t, e.bearer("abc123.0123456789abcdef"))
	if err != nil || u.Username != "system:bootstrap:abc123" || strings.Join(u.Groups, " ") != "system:bootstrappers system:bootstrappers:kubeadm:default-node-token system:authenticated" {
		t.Fatalf("%+v, %v", u, err)
	}
	for _, token := range []string{"abc123.0123456789abcdeX", "abc123.0123456789abcdee", "abc124.0123456789abcdef", "abc123.", "."} {
		if _, err := whoami(t, e.bearer(token)); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v", token, err)
		}
	}
	offset = 2 * time.Hour
	if _, err := whoami(t, e.bearer("abc123.0123456789abcdef")); !apierrors.IsUnauthorized(err) {
		t.Errorf("after its end: %v", err)
	}
	offset = 0
	for what, change := range map[string]func(map[string][]byte){
		"without use": func(d map[string][]byte) { delete(d, "usage-bootstrap-authentication") },
		"bad group":   func(d map[string][]byte) { d["auth-extra-groups"] = []byte("system:masters") },
		"bad end":     func(d map[string][]byte) { d["expiration"] = []byte("tomorrow") },
		"another ID":  func(d map[string][]byte) { d["token-id"] = []byte("abc124") },
	} {
		s, err := e.typed.CoreV1().Secrets("kube-system").Get(ctx(t), secret.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		good := s.DeepCopy()
		change(s.Data)
		s, err = e.typed.CoreV1().Secrets("kube-system").Update(ctx(t), s, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := whoami(t, e.bearer("abc123.0123456789abcdef")); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v", what, err)
		}
		good.ResourceVersion = s.ResourceVersion
		must(t)(e.typed.CoreV1().Secrets("kube-system").Update(ctx(t), good, metav1.UpdateOptions{}))
	}
}

// TestSecretTokens uses tokens that live in secrets.
func TestSecretTokens(t *testing.T) {
	e := start(t, builtin.Kinds())
	e.everyone()
	sa, err := e.typed.CoreV1().ServiceAccounts("default").Get(ctx(t), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := e.typed.CoreV1().Secrets("default").Create(ctx(t), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s",
		Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: corev1.SecretTypeServiceAccountToken}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := e.tokens.IssueLegacy(sa, secret)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := e.tokens.IssueLegacy(sa, secret); again != token {
		t.Error("the same secret was given another token")
	}
	if _, err := whoami(t, e.bearer(token)); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token that the secret does not hold: %v", err)
	}
	secret.Data = map[string][]byte{"token": []byte(token)}
	must(t)(e.typed.CoreV1().Secrets("default").Update(ctx(t), secret, metav1.UpdateOptions{}))
	u, err := whoami(t, e.bearer(token))
	if err != nil || u.Username != "system:serviceaccount:default:default" {
		t.Fatalf("%+v, %v", u, err)
	}
	if secret, err = e.typed.CoreV1().Secrets("default").Get(ctx(t), "s", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if day := secret.Labels["kubernetes.io/legacy-token-last-used"]; day != time.Now().UTC().Format(time.DateOnly) {
		t.Errorf("last used %q", day)
	}
	secret.Labels["kubernetes.io/legacy-token-invalid-since"] = "2026-01-01"
	must(t)(e.typed.CoreV1().Secrets("default").Update(ctx(t), secret, metav1.UpdateOptions{}))
	review, err := e.typed.AuthenticationV1().TokenReviews().Create(ctx(t), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil || review.Status.Authenticated || !strings.Contains(review.Status.Error, "has been marked invalid. Use tokens from the TokenRequest API") {
		t.Errorf("%+v, %v", review.Status, err)
	}
}

func TestTokenReviewStatuses(t *testing.T) {
	e := start(t, builtin.Kinds())
	review := func(token string, audiences ...string) authenticationv1.TokenReviewStatus {
		t.Helper()
		r, err := e.typed.AuthenticationV1().TokenReviews().Create(ctx(t), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	issue := func(account string, spec authenticationv1.TokenRequestSpec) string {
		t.Helper()
		r, err := e.typed.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	must(t)(e.typed.CoreV1().Nodes().Create(ctx(t), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}))
	must(t)(e.typed.CoreV1().Secrets("default").Create(ctx(t), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{}))
	p := simplePod("p")
	p.Spec.NodeName = "n"
	must(t)(e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{}))
	ref := func(kind, name string) authenticationv1.TokenRequestSpec {
		return authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: kind, APIVersion: "v1", Name: name}}
	}
	onPod, onNode, onSecret := issue("default", ref("Pod", "p")), issue("default", ref("Node", "n")), issue("default", ref("Secret", "s"))
	vault := issue("default", authenticationv1.TokenRequestSpec{Audiences: []string{"vault", "other"}})
	if s := review(onPod); !s.Authenticated || s.User.Extra["authentication.kubernetes.io/node-name"][0] != "n" ||
		!strings.HasPrefix(s.User.Extra["authentication.kubernetes.io/credential-id"][0], "JTI=") || len(s.Audiences) != 1 {
		t.Errorf("%+v", s)
	}
	if s := review(vault); s.Authenticated || !strings.Contains(s.Error, `token audiences ["vault" "other"] is invalid for the target audiences`) {
		t.Errorf("%+v", s)
	}
	if s := review(vault, "vault"); !s.Authenticated || strings.Join(s.Audiences, " ") != "vault" {
		t.Errorf("%+v", s)
	}
	if s := review("a.b.c"); s.Authenticated || s.Error != "invalid bearer token" {
		t.Errorf("%+v", s)
	}
	if err := e.typed.CoreV1().Secrets("default").Delete(ctx(t), "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := review(onSecret); s.Error != "[invalid bearer token, service account token has been invalidated]" {
		t.Errorf("%+v", s)
	}
	if s := review(onNode); !s.Authenticated {
		t.Errorf("%+v", s)
	}
	if err := e.typed.CoreV1().Nodes().Delete(ctx(t), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := review(onNode); s.Error != "[invalid bearer token, service account token has been invalidated]" {
		t.Errorf("%+v", s)
	}
	if s := review(onPod); !s.Authenticated {
		t.Errorf("the node of a pod-bound token is told, not asked for: %+v", s)
	}
	if err := e.typed.CoreV1().ServiceAccounts("default").Delete(ctx(t), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := review(onPod); s.Error != `[invalid bearer token, serviceaccounts "default" not found]` {
		t.Errorf("%+v", s)
	}
	_, err := e.typed.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), "none", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("a token of no account: %v", err)
	}
}

// TestProjectedToken checks that the token that pods are given by default works for a year, and says that it should not.
func TestProjectedToken(t *testing.T) {
	e := start(t, builtin.Kinds())
	must(t)(e.typed.CoreV1().Pods("default").Create(ctx(t), simplePod("p"), metav1.CreateOptions{}))
	seconds := int64(3607)
	spec := authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}
	lives := func() (time.Duration, bool) {
		r, err := e.typed.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(r.Status.ExpirationTimestamp.Time); left > time.Hour+10*time.Second {
			t.Errorf("the status says %v", left)
		}
		var c struct {
			Exp, Iat   int64
			Kubernetes struct {
				WarnAfter int64 `json:"warnafter"`
			} `json:"kubernetes.io"`
		}
		if err := json.Unmarshal(payload(t, r.Status.Token), &c); err != nil {
			t.Fatal(err)
		}
		return time.Duration(c.Exp-c.Iat) * time.Second, c.Kubernetes.WarnAfter != 0
	}
	if life, warns := lives(); life != 3607*time.Second || warns {
		t.Errorf("not bound to a pod: %v, %v", life, warns)
	}
	spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"}
	if life, warns := lives(); life != 365*24*time.Hour || !warns {
		t.Errorf("bound to a pod: %v, %v", life, warns)
	}
}

func TestAccessReviews(t *testing.T) {
	e := start(t, builtin.Kinds())
	authz := e.typed.AuthorizationV1()
	e.grant("default", rbacv1.Subject{Kind: "User", Name: "ann"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}})
	local := func(ns string) (*authorizationv1.LocalSubjectAccessReview, error) {
		return authz.LocalSubjectAccessReviews("default").Create(ctx(t), &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "default"},
			Spec: authorizationv1.SubjectAccessReviewSpec{User: "ann", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: ns, Verb: "list", Resource: "pods"}}}, metav1.CreateOptions{})
	}
	r, err := local("default")
	if want := `RBAC: allowed by RoleBinding "r-user-ann/default" of ClusterRole "r-user-ann" to User "ann"`; err != nil || !r.Status.Allowed || r.Status.Reason != want {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := local("other"); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `spec.resourceAttributes.namespace: Invalid value: "other": must match metadata.namespace`) {
		t.Errorf("another namespace: %v", err)
	}
	for want, spec := range map[string]authorizationv1.SubjectAccessReviewSpec{
		"spec: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified":                                             {User: "u"},
		"spec.user: Invalid value: \"\": at least one of user or group must be specified":                                                                     {ResourceAttributes: &authorizationv1.ResourceAttributes{}},
		"spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: \"a=b\": may not specified at the same time as requirements":                       {User: "u", ResourceAttributes: &authorizationv1.ResourceAttributes{FieldSelector: &authorizationv1.FieldSelectorAttributes{RawSelector: "a=b", Requirements: []metav1.FieldSelectorRequirement{{Key: "a", Operator: "In", Values: []string{"b"}}}}}},
		"spec.resourceAttributes.labelSelector.requirements: Required value: when spec.resourceAttributes.labelSelector is specified, requirements or rawSel": {User: "u", ResourceAttributes: &authorizationv1.ResourceAttributes{LabelSelector: &authorizationv1.LabelSelectorAttributes{}}},
	} {
		_, err := authz.SubjectAccessReviews().Create(ctx(t), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// A node may list the pods that are its own: selectors count.
	node := func(s *authorizationv1.FieldSelectorAttributes) authorizationv1.SubjectAccessReviewStatus {
		r, err := authz.SubjectAccessReviews().Create(ctx(t), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:node:n1", Groups: []string{client.GroupNodes}, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", FieldSelector: s}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if s := node(nil); s.Allowed || s.Reason != "can only list/watch pods with spec.nodeName field selector" {
		t.Errorf("%+v", s)
	}
	if s := node(&authorizationv1.FieldSelectorAttributes{RawSelector: "spec.nodeName=n1"}); !s.Allowed {
		t.Errorf("%+v", s)
	}
	if s := node(&authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: "In", Values: []string{"n1"}}, {Key: "a", Operator: "Newer"}}}); !s.Allowed ||
		s.EvaluationError != "spec.resourceAttributes.fieldSelector partially ignored due to parse error" {
		t.Errorf("%+v", s)
	}
	rules, err := clientset(t, e.as("system:node:n1", client.GroupNodes)).AuthorizationV1().SelfSubjectRulesReviews().Create(ctx(t),
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("a node without the default roles may not ask: %+v, %v", rules, err)
	}
}

// verifier knows one token.
type verifier struct{}

func (verifier) Verify(_ context.Context, token string) (client.User, bool, error) {
	switch token {
	case "ann":
		return client.User{Name: "ann", Groups: []string{"devs"}}, true, nil
	case "old":
		return client.User{}, false, errors.New("oidc: verify token: too old")
	}
	return client.User{}, false, nil
}

func TestVerifiersAndAnonymous(t *testing.T) {
	e := start(t, builtin.Kinds(), func(c *Config) {
		c.Verifiers = []authn.Verifier{verifier{}}
		c.Anonymous = func(path string) bool { return path == "/livez" || strings.HasPrefix(path, "/api/v1/") }
	})
	e.everyone()
	if u, err := whoami(t, e.bearer("ann")); err != nil || u.Username != "ann" || strings.Join(u.Groups, " ") != "devs system:authenticated" {
		t.Errorf("%+v, %v", u, err)
	}
	for token, want := range map[string]string{"old": "[invalid bearer token, oidc: verify token: too old]", "none": "invalid bearer token"} {
		r, err := e.typed.AuthenticationV1().TokenReviews().Create(ctx(t), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil || r.Status.Authenticated || r.Status.Error != want {
			t.Errorf("%s: %+v, %v", token, r.Status, err)
		}
	}
	// A token that says nothing of audiences is for the API server, and for nobody else.
	r, err := e.typed.AuthenticationV1().TokenReviews().Create(ctx(t), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "ann", Audiences: []string{"vault"}}}, metav1.CreateOptions{})
	if err != nil || r.Status.Authenticated {
		t.Errorf("for another audience: %+v, %v", r.Status, err)
	}
	for path, want := range map[string]int{"/livez": 200, "/healthz": 401, "/api/v1/pods": 403, "/apis": 401} {
		r, err := e.http.Client().Get(e.http.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if text := body(t, r); r.StatusCode != want || want == 403 && !strings.Contains(text, `User \"system:anonymous\" cannot list resource`) {
			t.Errorf("%s: %d %s", path, r.StatusCode, text)
		}
	}
}

// BenchmarkTokenRequestUser is what it costs to find out who a service account's token stands for.
func BenchmarkTokenRequestUser(b *testing.B) {
	e := start(b, builtin.Kinds())
	r, err := e.typed.CoreV1().ServiceAccounts("default").CreateToken(context.Background(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := e.authn.Token(context.Background(), r.Status.Token, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// payload is what a token says.
func payload(t *testing.T, token string) []byte {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return data
}
