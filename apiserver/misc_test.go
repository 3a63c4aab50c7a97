package apiserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/api/flowcontrol"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// TestUpgrade passes an upgraded connection through to the node and back.
func TestUpgrade(t *testing.T) {
	node := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		line, _ := buf.ReadString('\n')
		fmt.Fprintf(conn, "echo %s", line)
	})
	e := start(t, smallKinds(), func(c *Config) { c.Nodes = func(string) (http.Handler, error) { return node, nil } })
	pods := e.typed.CoreV1().Pods("default")
	if _, err := pods.Create(ctx(t), simplePod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Bind(ctx(t), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg, err := rest.TLSConfigFor(e.config)
	if err != nil {
		t.Fatal(err)
	}
	cfg.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(e.http.URL, "https://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/namespaces/default/pods/p/exec?command=sh&stdin=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%+v, %v", resp, err)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := r.ReadString('\n'); err != nil || line != "echo hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

func TestProxies(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<a href="/rewriteme">test</a>`)
			return
		}
		fmt.Fprintf(w, "%s %s auth=%s", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"))
	}))
	defer back.Close()
	var dialed string
	e := start(t, builtin.Kinds(), func(c *Config) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialed = address
			return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(back.URL, "http://"))
		}
	})
	p := simplePod("p")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	if _, err := e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		r := e.raw("GET", path, nil)
		return r.StatusCode, body(t, r)
	}
	if code, text := get("/api/v1/namespaces/default/pods/p/proxy/x"); code != 400 || !strings.Contains(text, "address not allowed") {
		t.Fatalf("a pod without address: %d %s", code, text)
	}
	if _, err := e.typed.CoreV1().Pods("default").Patch(ctx(t), "p", types.StrategicMergePatchType, []byte(`{"status":{"podIP":"10.1.2.3","podIPs":[{"ip":"10.1.2.3"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if code, text := get("/api/v1/namespaces/default/pods/p/proxy/x/y?z=1"); code != 200 || text != "GET /x/y?z=1 auth=" || dialed != "10.1.2.3:8080" {
		t.Fatalf("%d %s (dialed %s)", code, text, dialed)
	}
	if code, text := get("/api/v1/namespaces/default/pods/p:99/proxy/page"); code != 200 || !strings.Contains(text, `href="/api/v1/namespaces/default/pods/p:99/proxy/rewriteme"`) || dialed != "10.1.2.3:99" {
		t.Fatalf("%d %s (dialed %s)", code, text, dialed)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromInt32(8080)}}}}
	if _, err := e.typed.CoreV1().Services("default").Create(ctx(t), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if code, text := get("/api/v1/namespaces/default/services/s:web/proxy/"); code != 503 || !strings.Contains(text, `no endpoints available for service \"s:web\"`) {
		t.Fatalf("no endpoints: %d %s", code, text)
	}
	name, port, ready := "web", int32(8080), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.9.9.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	if _, err := e.typed.DiscoveryV1().EndpointSlices("default").Create(ctx(t), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"s:web", "s:80", "http:s:web"} {
		if code, text := get("/api/v1/namespaces/default/services/" + id + "/proxy/a"); code != 200 || text != "GET /a auth=" || dialed != "10.9.9.9:8080" {
			t.Fatalf("%s: %d %s (dialed %s)", id, code, text, dialed)
		}
	}
}

func TestPanicAndOverload(t *testing.T) {
	inside, leave := make(chan struct{}, 2), make(chan struct{})
	e := start(t, smallKinds(), func(c *Config) {
		c.MaxReads, c.MaxWrites = 1, 1
		c.Admission = []admission.Plugin{{Name: "trouble", Validate: func(_ context.Context, r *admission.Request) error {
			switch r.Name {
			case "panic":
				panic("on purpose")
			case "slow-1", "slow-2":
				inside <- struct{}{}
				<-leave
			}
			return nil
		}}}
		c.Authorizer = allowAll{}
	})
	// Without the suggested objects everybody but the masters shares the level catch-all, which has no queues.
	e.Fairness().Update(flowcontrol.MandatorySchemas(), flowcontrol.MandatoryLevels())
	_, err := e.typed.CoreV1().ConfigMaps("default").Create(ctx(t), configMap("panic", nil), metav1.CreateOptions{})
	if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "this request caused apiserver to panic") {
		t.Fatalf("panic: %v", err)
	}
	user := clientset(t, e.as("user"))
	done := make(chan error, 2)
	for _, name := range []string{"slow-1", "slow-2"} {
		go func() {
			_, err := user.CoreV1().ConfigMaps("default").Create(context.Background(), configMap(name, nil), metav1.CreateOptions{})
			done <- err
		}()
		<-inside
	}
	r := user.CoreV1().RESTClient().Post().Namespace("default").Resource("configmaps").MaxRetries(0).Body(configMap("x", nil)).Do(ctx(t))
	if err := r.Error(); !apierrors.IsTooManyRequests(err) {
		t.Fatalf("overload: %v", err)
	}
	if _, err := e.typed.CoreV1().ConfigMaps("default").List(ctx(t), metav1.ListOptions{}); err != nil {
		t.Fatalf("an administrator gets through: %v", err)
	}
	close(leave)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// allowAll is an authorizer without rules.
type allowAll struct{}

func (allowAll) Authorize(context.Context, *authz.Attributes) (authz.Decision, string, error) {
	return authz.Allowed, "", nil
}

// sick is a store whose disk fails.
type sick struct{ store.Store }

func (sick) Health() error { return store.ErrFailed }

func TestHealthOfTheStore(t *testing.T) {
	e := start(t, smallKinds(), func(c *Config) { c.Store = sick{c.Store} })
	for path, want := range map[string]string{
		"/livez?verbose": "[-]etcd failed: reason withheld\n", "/readyz?verbose": "[-]etcd failed: reason withheld\n[-]etcd-readiness failed: reason withheld\n",
	} {
		r := e.raw("GET", path, nil)
		if text := body(t, r); r.StatusCode != 500 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, r.StatusCode, text)
		}
	}
}

func TestHealthAndPaths(t *testing.T) {
	broken := errors.New("out of order")
	e := start(t, smallKinds(), func(c *Config) {
		c.Checks = []Check{{Name: "store", Live: true, Err: func() error { return nil }}, {Name: "loops", Err: func() error { return broken }}}
	})
	for _, test := range []struct {
		path string
		code int
		want string
	}{
		{"/livez", 200, "ok"}, {"/livez?verbose", 200, "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]store ok\nlivez check passed\n"},
		{"/readyz", 500, "[+]informer-sync ok\n[+]store ok\n[-]loops failed: reason withheld\n[+]shutdown ok\nreadyz check failed\n"},
		{"/readyz?exclude=loops", 200, "ok"}, {"/readyz/store", 200, "ok"}, {"/readyz/loops", 500, "check failed"}, {"/readyz/none", 404, "404"},
		{"/version", 200, `"gitVersion": "v1.37.2"`}, {"/metrics", 200, "coracle_store_revision"},
		{"/", 200, `"/api/v1"`}, {"/nothing", 404, "404 page not found"},
		{"/api/v1/nothing", 404, "404 page not found"}, {"/api/v2/pods", 404, "404"}, {"/apis/v1/pods", 404, "404"},
		{"/api/v1/pods/a", 404, "404"}, {"/api/v1/namespaces/default/pods/a/nothing", 404, "404"},
		{"/api/v1/namespaces/default/namespaces", 404, "404"},
		{"/api/v1/watch/namespaces/default/pods?timeoutSeconds=1", 200, ""},
	} {
		r := e.raw("GET", test.path, nil)
		if text := body(t, r); r.StatusCode != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s: %d %s", test.path, r.StatusCode, text)
		}
	}
	r := e.raw("POST", "/api/v1/pods", nil)
	if text := body(t, r); r.StatusCode != 405 || !strings.Contains(text, `"reason":"MethodNotAllowed"`) {
		t.Errorf("POST to all namespaces: %d %s", r.StatusCode, text)
	}
	r = e.raw("HEAD", "/api/v1/namespaces", nil)
	if r.StatusCode != 200 || r.Header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %d %v", r.StatusCode, r.Header)
	}
}

func TestDiscovery(t *testing.T) {
	e := start(t, builtin.Kinds())
	const accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	r := e.raw("GET", "/apis", map[string]string{"Accept": accept})
	text := body(t, r)
	etag := r.Header.Get("ETag")
	if r.Header.Get("Content-Type") != accept || len(etag) != 130 || !strings.Contains(text, `"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2"`) {
		t.Fatalf("%v %.200s", r.Header, text)
	}
	if r = e.raw("GET", "/apis", map[string]string{"Accept": accept, "If-None-Match": etag}); r.StatusCode != http.StatusNotModified {
		t.Fatalf("with the hash: %d", r.StatusCode)
	}
	e.cfg.Registry.Remove("deployments.apps")
	if r = e.raw("GET", "/apis", map[string]string{"Accept": accept, "If-None-Match": etag}); r.StatusCode != 200 {
		t.Fatalf("after a change: %d", r.StatusCode)
	}
	list, err := e.typed.Discovery().ServerResourcesForGroupVersion("v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, res := range list.APIResources {
		switch res.Name {
		case "pods":
			if res.StorageVersionHash != "xPOwRZ+Yhw8=" || strings.Join(res.ShortNames, ",") != "po" || len(res.Verbs) != 8 || res.Categories[0] != "all" {
				t.Errorf("pods: %+v", res)
			}
		case "pods/eviction":
			if res.Group != "policy" || res.Version != "v1" || res.Kind != "Eviction" {
				t.Errorf("eviction: %+v", res)
			}
		}
	}
}

func TestServices(t *testing.T) {
	e := start(t, builtin.Kinds())
	svcs := e.typed.CoreV1().Services("default")
	s, err := svcs.Create(ctx(t), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil || !strings.HasPrefix(s.Spec.ClusterIP, "10.96.") || s.Spec.Ports[0].NodePort < 30000 || s.Spec.Ports[0].TargetPort.IntValue() != 80 {
		t.Fatalf("%+v, %v", s, err)
	}
	_, err = svcs.Create(ctx(t), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: corev1.ServiceSpec{
		ClusterIP: s.Spec.ClusterIP, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Fatalf("taken: %v", err)
	}
	// Many at once, each with an address of its own.
	const n = 40
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := e.Writer().Create(context.Background(), "services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("m", i)},
				Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}, client.WriteOptions{})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	ips, ports := map[string]bool{}, map[int32]bool{}
	for s := range client.Services.List(e.store.Snapshot(), "") {
		if ips[s.Spec.ClusterIP] || ports[s.Spec.Ports[0].NodePort] {
			t.Fatalf("%s twice", s.Spec.ClusterIP)
		}
		ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = true, true
	}
}

func TestAdmission(t *testing.T) {
	e := start(t, builtin.Kinds())
	create := func(resource string, obj api.Object) {
		t.Helper()
		if _, err := e.Writer().Create(ctx(t), resource, obj, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("priorityclasses.scheduling.k8s.io", &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000})
	create("limitranges", &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
		Type: corev1.LimitTypeContainer, DefaultRequest: corev1.ResourceList{"cpu": resource.MustParse("100m")}, Default: corev1.ResourceList{"cpu": resource.MustParse("1")},
		Max: corev1.ResourceList{"cpu": resource.MustParse("2")},
	}}}})
	p := simplePod("p")
	p.Spec.PriorityClassName = "high"
	got, err := e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := &got.Spec
	if *spec.Priority != 1000 || *spec.PreemptionPolicy != corev1.PreemptLowerPriority || spec.ServiceAccountName != "default" ||
		len(spec.Tolerations) != 2 || spec.Containers[0].Resources.Requests.Cpu().MilliValue() != 100 ||
		got.Annotations["kubernetes.io/limit-ranger"] != "LimitRanger plugin set: cpu request for container main; cpu limit for container main" ||
		len(spec.Volumes) != 1 || spec.Containers[0].VolumeMounts[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
		t.Fatalf("%+v", got)
	}
	p = simplePod("greedy")
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("3")}
	_, err = e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{})
	if want := `pods "greedy" is forbidden: maximum cpu usage per Container is 2, but limit is 3`; !apierrors.IsForbidden(err) || err.Error() != want {
		t.Fatalf("greedy: %v", err)
	}
	p = simplePod("low")
	p.Spec.PriorityClassName = "none"
	_, err = e.typed.CoreV1().Pods("default").Create(ctx(t), p, metav1.CreateOptions{})
	if want := `pods "low" is forbidden: no PriorityClass with name none was found`; !apierrors.IsForbidden(err) || err.Error() != want {
		t.Fatalf("low: %v", err)
	}
	// The default account of a new namespace is waited for.
	if _, err := e.Writer().Create(ctx(t), "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fresh"}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := e.typed.CoreV1().Pods("fresh").Create(context.Background(), simplePod("early"), metav1.CreateOptions{})
		done <- err
	}()
	create("serviceaccounts", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "fresh", Name: "default"}})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWriterBind(t *testing.T) {
	e := start(t, builtin.Kinds())
	created, err := e.Writer().Create(ctx(t), "pods", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: simplePod("p").Spec}, client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Writer().Bind(ctx(t), "default", "p", "another", "n1"); !apierrors.IsConflict(err) {
		t.Fatalf("another UID: %v", err)
	}
	if err := e.Writer().Bind(ctx(t), "default", "p", created.GetUID(), "n1"); err != nil {
		t.Fatal(err)
	}
	pod, _ := client.Pods.Get(e.store.Snapshot(), "default", "p")
	if pod.Spec.NodeName != "n1" || pod.Status.Conditions[0].Type != corev1.PodScheduled {
		t.Fatalf("%+v", pod)
	}
	if created.(*corev1.Pod).Spec.NodeName != "" {
		t.Fatal("binding changed the version that others read")
	}
	if err := e.Writer().Bind(ctx(t), "default", "gone", "", "n1"); !apierrors.IsNotFound(err) {
		t.Fatalf("absent: %v", err)
	}
}
