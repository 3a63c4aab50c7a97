package apiserver

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/authentication"
	"coracle.dev/coracle/api/authorization"
	"coracle.dev/coracle/api/rbac"
	"coracle.dev/coracle/client"
)

func authKinds() []*api.Kind {
	kinds := append(smallKinds(), rbac.Kinds()...)
	kinds = append(kinds, authentication.Kinds()...)
	return append(kinds, authorization.Kinds()...)
}

// grant binds rules to a user in a namespace, or everywhere with "".
func (e *env) grant(namespace string, subject rbacv1.Subject, rules ...rbacv1.PolicyRule) {
	e.t.Helper()
	name := "r-" + strings.ToLower(subject.Kind) + "-" + strings.ReplaceAll(subject.Name, ":", "-")
	put := func(resource string, obj api.Object) {
		if _, err := e.Writer().Create(ctx(e.t), resource, obj, client.WriteOptions{}); err != nil {
			e.t.Fatal(err)
		}
	}
	put("clusterroles.rbac.authorization.k8s.io", &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules})
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	if namespace == "" {
		put("clusterrolebindings.rbac.authorization.k8s.io", &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{subject}, RoleRef: ref})
		return
	}
	put("rolebindings.rbac.authorization.k8s.io", &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Subjects: []rbacv1.Subject{subject}, RoleRef: ref})
}

func clientset(t *testing.T, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	out, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnonymous(t *testing.T) {
	e := start(t, authKinds())
	c := e.http.Client()
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200, "/readyz/ping": 200, "/version": 200,
		"/api": 401, "/api/v1/pods": 401, "/metrics": 401, "/healthzz": 401,
	} {
		r, err := c.Get(e.http.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if text := body(t, r); r.StatusCode != want || want == 401 && !strings.Contains(text, `"message":"Unauthorized"`) {
			t.Errorf("%s: %d %s", path, r.StatusCode, text)
		}
	}
	// Bad credentials are not none.
	for _, path := range []string{"/healthz", "/version", "/api"} {
		req, err := http.NewRequestWithContext(ctx(t), http.MethodGet, e.http.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer nonsense")
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if text := body(t, r); r.StatusCode != 401 {
			t.Errorf("%s with a bad token: %d %s", path, r.StatusCode, text)
		}
	}
	// A certificate of another authority is none.
	other := newAuthority(t)
	cert, key := other.issue(t, "admin", client.GroupMasters)
	cfg := *e.config
	cfg.CertData, cfg.KeyData = cert, key
	if _, err := clientset(t, &cfg).CoreV1().Namespaces().List(ctx(t), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("another authority: %v", err)
	}
}

func TestRBAC(t *testing.T) {
	e := start(t, authKinds())
	jane := clientset(t, e.as("jane", "devs"))
	_, err := jane.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{})
	want := `configmaps is forbidden: User "jane" cannot list resource "configmaps" in API group "" in the namespace "default"`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Fatalf("before: %v", err)
	}
	e.grant("default", rbacv1.Subject{Kind: "User", Name: "jane"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}})
	if _, err = jane.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{}); err != nil {
		t.Fatalf("after: %v", err)
	}
	_, err = jane.CoreV1().ConfigMaps("").List(ctx(t), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.HasSuffix(err.Error(), "at the cluster scope") {
		t.Fatalf("everywhere: %v", err)
	}
	_, err = jane.CoreV1().ConfigMaps("default").Get(ctx(t), "a", metav1.GetOptions{})
	if !apierrors.IsForbidden(err) {
		t.Fatalf("another verb: %v", err)
	}
	e.grant("", rbacv1.Subject{Kind: "Group", Name: "devs"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"}, ResourceNames: []string{"p"}})
	for _, test := range []struct {
		resource, sub, verb, name string
		want                      bool
	}{
		{"pods", "log", "get", "p", true}, {"pods", "log", "get", "q", false}, {"pods", "", "get", "p", false},
		{"pods", "log", "delete", "p", false},
	} {
		r, err := e.typed.AuthorizationV1().SubjectAccessReviews().Create(ctx(t), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "someone", Groups: []string{"devs"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "x", Verb: test.verb, Resource: test.resource, Subresource: test.sub, Name: test.name},
		}}, metav1.CreateOptions{})
		if err != nil || r.Status.Allowed != test.want {
			t.Errorf("%+v: %+v, %v", test, r.Status, err)
		}
	}
	// What is taken away is gone with the next request.
	if err := e.typed.RbacV1().RoleBindings("default").Delete(ctx(t), "r-user-jane", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err = jane.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("after the binding went: %v", err)
	}
}

func TestImpersonation(t *testing.T) {
	e := start(t, authKinds())
	cfg := rest.CopyConfig(e.config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "bob", Groups: []string{"g"}, Extra: map[string][]string{"scopes": {"view"}}}
	r, err := clientset(t, cfg).AuthenticationV1().SelfSubjectReviews().Create(ctx(t), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Fatalf("bob may nothing: %+v, %v", r, err)
	}
	e.grant("", rbacv1.Subject{Kind: "Group", Name: "g"}, rbacv1.PolicyRule{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}, Verbs: []string{"create"}})
	r, err = clientset(t, cfg).AuthenticationV1().SelfSubjectReviews().Create(ctx(t), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || r.Status.UserInfo.Username != "bob" || strings.Join(r.Status.UserInfo.Groups, " ") != "g system:authenticated" || r.Status.UserInfo.Extra["scopes"][0] != "view" {
		t.Fatalf("%+v, %v", r, err)
	}
	low := e.as("low", "g")
	low.Impersonate = rest.ImpersonationConfig{UserName: "admin", Groups: []string{client.GroupMasters}}
	_, err = clientset(t, low).CoreV1().Namespaces().List(ctx(t), metav1.ListOptions{})
	if want := `namespaces is forbidden: User "low" cannot impersonate-on:user-info:list resource "namespaces" in API group "" at the cluster scope`; !apierrors.IsForbidden(err) || err.Error() != want {
		t.Fatalf("low as admin: %v", err)
	}
}

func TestServiceAccountTokens(t *testing.T) {
	var offset time.Duration
	e := start(t, authKinds(), func(c *Config) { c.Now = func() time.Time { return time.Now().Add(offset) } })
	if _, err := e.typed.CoreV1().Pods("default").Create(ctx(t), simplePod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e.grant("default", rbacv1.Subject{Kind: "ServiceAccount", Namespace: "default", Name: "default"}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}})
	issue := func(spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		return e.typed.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	}
	use := func(token string) error {
		cfg := &rest.Config{Host: e.http.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: e.config.CAData}}
		_, err := clientset(t, cfg).CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{})
		return err
	}
	plain, err := issue(authenticationv1.TokenRequestSpec{})
	if err != nil || *plain.Spec.ExpirationSeconds != 3600 || len(plain.Spec.Audiences) != 1 {
		t.Fatalf("%+v, %v", plain, err)
	}
	if err := use(plain.Status.Token); err != nil {
		t.Fatal(err)
	}
	bound, err := issue(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	review, err := e.typed.AuthenticationV1().TokenReviews().Create(ctx(t), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: bound.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:default:default" ||
		review.Status.User.Extra["authentication.kubernetes.io/pod-name"][0] != "p" {
		t.Fatalf("%+v, %v", review, err)
	}
	other, err := issue(authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := use(other.Status.Token); !apierrors.IsUnauthorized(err) {
		t.Fatalf("a token for another audience: %v", err)
	}
	flip := []byte(plain.Status.Token)
	flip[len(flip)-10] ^= 1
	if err := use(string(flip)); !apierrors.IsUnauthorized(err) {
		t.Fatalf("a forged token: %v", err)
	}
	if err := e.typed.CoreV1().Pods("default").Delete(ctx(t), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := use(bound.Status.Token); !apierrors.IsUnauthorized(err) {
		t.Fatalf("the token of a pod that is gone: %v", err)
	}
	short := int64(60)
	if _, err := issue(authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not specify a duration less than 10 minutes") {
		t.Fatalf("short token: %v", err)
	}
	offset = 2 * time.Hour
	if err := use(plain.Status.Token); !apierrors.IsUnauthorized(err) {
		t.Fatalf("an expired token: %v", err)
	}
}

func TestOpenID(t *testing.T) {
	e := start(t, authKinds())
	r := e.raw("GET", "/.well-known/openid-configuration", nil)
	var doc map[string]any
	if err := json.Unmarshal([]byte(body(t, r)), &doc); err != nil || doc["issuer"] != "https://kubernetes.default.svc.cluster.local" {
		t.Fatalf("%v, %v", doc, err)
	}
	r = e.raw("GET", "/openid/v1/jwks", nil)
	if text := body(t, r); r.StatusCode != 200 || !strings.Contains(text, `"crv":"P-256"`) || r.Header.Get("Content-Type") != "application/jwk-set+json" {
		t.Fatalf("%d %s", r.StatusCode, text)
	}
}

// kubelet is a node that records what it is asked.
type kubelet struct{ asked chan string }

func (k kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.asked <- r.URL.RequestURI()
	if strings.Contains(r.URL.RawQuery, "previous") {
		http.Error(w, `previous terminated container "main" in pod "p" not found`, http.StatusBadRequest)
		return
	}
	_, _ = w.Write([]byte("hello from " + r.URL.Path))
}

// logSocket reads the log of pod p over a WebSocket.
func (e *env) logSocket(query, protocol string) (string, error) {
	u := strings.Replace(e.http.URL, "http", "ws", 1) + "/api/v1/namespaces/default/pods/p/log?" + query
	config, err := websocket.NewConfig(u, e.http.URL)
	if err != nil {
		return "", err
	}
	config.Protocol = []string{protocol}
	if config.TlsConfig, err = rest.TLSConfigFor(e.config); err != nil {
		return "", err
	}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		return "", err
	}
	defer ws.Close()
	var all, message string
	for {
		if err := websocket.Message.Receive(ws, &message); err == io.EOF {
			return all, nil
		} else if err != nil {
			return all, err
		}
		all += message
	}
}

func TestNodeStreams(t *testing.T) {
	k := kubelet{make(chan string, 1)}
	e := start(t, smallKinds(), func(c *Config) { c.Nodes = func(string) (http.Handler, error) { return k, nil } })
	pods := e.typed.CoreV1().Pods("default")
	p := simplePod("p")
	p.Spec.InitContainers = []corev1.Container{{Name: "init"}}
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side"})
	if _, err := pods.Create(ctx(t), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	logs := func(o *corev1.PodLogOptions) (string, error) {
		r, err := pods.GetLogs("p", o).Stream(ctx(t))
		if err != nil {
			return "", err
		}
		defer r.Close()
		data, err := io.ReadAll(r)
		return string(data), err
	}
	_, err := logs(&corev1.PodLogOptions{})
	if want := "a container name must be specified for pod p, choose one of: [main side] or one of the init containers: [init]"; err == nil || err.Error() != want {
		t.Fatalf("no container: %v", err)
	}
	if _, err = logs(&corev1.PodLogOptions{Container: "x"}); err == nil || err.Error() != "container x is not valid for pod p" {
		t.Fatalf("another container: %v", err)
	}
	if err := pods.Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	tail := int64(5)
	text, err := logs(&corev1.PodLogOptions{Container: "main", TailLines: &tail, Timestamps: true})
	if err != nil || text != "hello from /containerLogs/default/p/main" {
		t.Fatalf("%s, %v", text, err)
	}
	if got := <-k.asked; got != "/containerLogs/default/p/main?tailLines=5&timestamps=true" {
		t.Fatal(got)
	}
	_, err = logs(&corev1.PodLogOptions{Container: "main", Previous: true})
	<-k.asked
	if !apierrors.IsBadRequest(err) || err.Error() != `previous terminated container "main" in pod "p" not found` {
		t.Fatalf("%v", err)
	}
	if text, err := e.logSocket("container=main", "binary.k8s.io"); err != nil || text != "hello from /containerLogs/default/p/main" {
		t.Fatalf("log over a WebSocket: %q, %v", text, err)
	}
	<-k.asked
	if text, err := e.logSocket("container=main", "base64.binary.k8s.io"); err != nil || text != "aGVsbG8gZnJvbSAvY29udGFpbmVyTG9ncy9kZWZhdWx0L3AvbWFpbg==" {
		t.Fatalf("log over a WebSocket: %q, %v", text, err)
	}
	<-k.asked
	if _, err := e.logSocket("container=main&previous=true", "binary.k8s.io"); err == nil {
		t.Fatal("a WebSocket for a log that is not there")
	}
	<-k.asked
	r := e.raw("POST", "/api/v1/namespaces/default/pods/p/exec?container=main&command=ls&command=-l&stdout=1&tty=false", nil)
	if body(t, r); r.StatusCode != 200 {
		t.Fatal(r.Status)
	}
	if got := <-k.asked; got != "/exec/default/p/main?command=ls&command=-l&output=1" {
		t.Fatal(got)
	}
}

func TestReviewAsTable(t *testing.T) {
	e := start(t, authKinds())
	for path, want := range map[string]int{
		"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": http.StatusNotAcceptable,
		"/apis/authentication.k8s.io/v1/selfsubjectreviews":      http.StatusNotAcceptable,
	} {
		r := e.raw("POST", path, map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
		if text := body(t, r); r.StatusCode != want {
			t.Errorf("%s: %s %s", path, r.Status, text)
		}
	}
}
