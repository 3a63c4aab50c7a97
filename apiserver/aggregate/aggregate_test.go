package aggregate

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/discovery"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// extension is another API server, reached through the service ext/api.
type extension struct {
	*httptest.Server
	legacy  atomic.Bool // knows the old form of discovery alone
	broken  atomic.Bool // answers everything with 500
	verbs   string      // of flunders, "get" if empty
	handler http.HandlerFunc
	seen    chan http.Header
}

func newExtension(t *testing.T) *extension {
	e := &extension{seen: make(chan http.Header, 100)}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.Server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	e.StartTLS()
	t.Cleanup(e.Close)
	return e
}

func (e *extension) serve(w http.ResponseWriter, r *http.Request) {
	select {
	case e.seen <- r.Header.Clone():
	default:
	}
	switch {
	case e.broken.Load():
		http.Error(w, "broken", http.StatusInternalServerError)
	case r.URL.Path == "/apis" && !e.legacy.Load():
		w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		fmt.Fprintf(w, `{"items":[{"metadata":{"name":"ext.example.com"},"versions":[{"version":"v1","resources":[{"resource":"flunders","scope":"Namespaced","verbs":[%s]}]}]}]}`,
			cmp.Or(e.verbs, `"get"`))
	case r.URL.Path == "/apis/ext.example.com/v1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"ext.example.com/v1","resources":[{"name":"flunders/status","namespaced":true,"kind":"Flunder","verbs":["get"]},
			{"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","verbs":["get","list"]}]}`)
	case r.URL.Path == "/openapi/v3":
		fmt.Fprint(w, `{"paths":{"apis/ext.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/ext.example.com/v1?hash=ABC"}}}`)
	case r.URL.Path == "/openapi/v2":
		fmt.Fprint(w, `{"swagger":"2.0"}`)
	case e.handler != nil:
		e.handler(w, r)
	default:
		fmt.Fprintf(w, "%s %s?%s", r.Method, r.URL.Path, r.URL.RawQuery)
	}
}

// setup gives an aggregator whose only backend is e, and a function that takes the backend's address away.
func setup(t *testing.T, e *extension) (*Aggregator, func()) {
	t.Helper()
	s := memory.New(store.Options{Stamp: func(obj any, rev store.Revision) { obj.(metav1.Object).SetResourceVersion(fmt.Sprint(rev)) }})
	commit := func(op store.Op) {
		t.Helper()
		op.Expect = store.ExpectAny
		if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	commit(store.Op{Key: store.Key{Resource: "services", Namespace: "ext", Name: "api"}, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ext", Name: "api"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 7443}}}}})
	port, slice := int32(443), store.Key{Resource: client.EndpointSlices.Name, Namespace: "ext", Name: "api-1"}
	commit(store.Op{Key: slice, Object: &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ext", Name: "api-1", Labels: map[string]string{discoveryv1.LabelServiceName: "api"}},
		Ports:      []discoveryv1.EndpointPort{{Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.2.3"}}}}})
	pool := &backend.Pool{Snapshot: s.Snapshot, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "10.1.2.3:443" {
			return nil, fmt.Errorf("dialed %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, e.Listener.Addr().String())
	}, Certificate: func() (*tls.Certificate, error) { return &e.TLS.Certificates[0], nil }}
	t.Cleanup(pool.Close)
	return &Aggregator{Pool: pool, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Default: func(schema.GroupVersion) discovery.Priority {
			return discovery.Priority{Group: 1000, Version: 100}
		}},
		func() { commit(store.Op{Key: slice, Delete: true}) }
}

// apiService is the APIService of e, available or not.
func (e *extension) apiService(available bool) *apiregistrationv1.APIService {
	port := int32(7443)
	a := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.ext.example.com"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "ext.example.com", Version: "v1", GroupPriorityMinimum: 2000, VersionPriority: 200, InsecureSkipTLSVerify: true,
		Service: &apiregistrationv1.ServiceReference{Namespace: "ext", Name: "api", Port: &port}}}
	status := apiregistrationv1.ConditionFalse
	if available {
		status = apiregistrationv1.ConditionTrue
	}
	a.Status.Conditions = []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: status}}
	return a
}

var user = client.User{Name: "ada", UID: "7", Groups: []string{"crew", "system:authenticated"}, Extra: map[string][]string{"scopes/a": {"x", "y"}}}

// TestConnectionHeader: a client cannot have the proxy take away the headers that say who it is, by naming them in Connection.
func TestConnectionHeader(t *testing.T) {
	e := newExtension(t)
	a, _ := setup(t, e)
	a.Set(e.apiService(true))
	f := front(t, a)
	for _, upgrade := range []string{"", "echo"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		also := ""
		if upgrade != "" {
			also = "Connection: Upgrade\r\nUpgrade: " + upgrade + "\r\n"
		}
		fmt.Fprintf(conn, "GET /apis/ext.example.com/v1/namespaces/a/flunders HTTP/1.1\r\nHost: x\r\n"+
			"Connection: X-Remote-User, X-Remote-Group, X-Remote-Uid, X-Remote-Extra-Scopes%%2fa\r\nConnection: Audit-Id\r\n%sX-Remote-User: root\r\n\r\n", also)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1))
		h := <-e.seen
		if h.Get("X-Remote-User") != "ada" || h.Get("X-Remote-Uid") != "7" || strings.Join(h["X-Remote-Group"], " ") != "crew system:authenticated" ||
			strings.Join(h["X-Remote-Extra-Scopes%2fa"], " ") != "x y" || h.Get("Audit-Id") != "1234" {
			t.Errorf("upgrade %q: the user did not arrive: %v", upgrade, h)
		}
		if c := strings.Join(h["Connection"], ","); strings.Contains(c, "X-Remote") {
			t.Errorf("upgrade %q: Connection: %s", upgrade, c)
		}
	}
}

// front serves what the aggregator answers for, as the API server does.
func front(t *testing.T, a *Aggregator) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := a.Delegate("ext.example.com", "v1")
		if h == nil {
			http.Error(w, "ours", http.StatusTeapot)
			return
		}
		w.Header().Set("Audit-Id", "1234")
		h.ServeHTTP(w, r.WithContext(client.WithUser(r.Context(), user)))
	}))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(body))
}

func TestRequestsAreProxied(t *testing.T) {
	e := newExtension(t)
	a, lose := setup(t, e)
	f := front(t, a)
	if code, _ := get(t, f.URL); code != http.StatusTeapot {
		t.Errorf("without an APIService: %d", code)
	}
	a.Set(e.apiService(false))
	if code, text := get(t, f.URL); code != 503 || text != "service unavailable" {
		t.Errorf("unavailable: %d %s", code, text)
	}
	a.Set(e.apiService(true))
	const path = "/apis/ext.example.com/v1/namespaces/a%2Fb/flunders?limit=3&labelSelector=a%3Db"
	code, text := get(t, f.URL+path, "X-Remote-User", "root", "X-Remote-Group", "system:masters", "X-Remote-Extra-Evil", "1",
		"Authorization", "Bearer secret", "Impersonate-User", "root")
	if code != 200 || text != "GET /apis/ext.example.com/v1/namespaces/a/b/flunders?limit=3&labelSelector=a%3Db" {
		t.Errorf("%d %s", code, text)
	}
	h := <-e.seen
	if h.Get("X-Remote-User") != "ada" || h.Get("X-Remote-Uid") != "7" || strings.Join(h["X-Remote-Group"], " ") != "crew system:authenticated" ||
		strings.Join(h["X-Remote-Extra-Scopes%2fa"], " ") != "x y" {
		t.Errorf("the user did not arrive: %v", h)
	}
	for _, name := range []string{"X-Remote-Extra-Evil", "Authorization", "Impersonate-User"} {
		if h.Get(name) != "" {
			t.Errorf("%s came through", name)
		}
	}
	lose()
	if code, text := get(t, f.URL+path); code != 503 || text != "service unavailable" {
		t.Errorf("without an endpoint: %d %s", code, text)
	}
	a.Remove("v1.ext.example.com")
	if code, _ := get(t, f.URL); code != http.StatusTeapot || a.Discovery() != nil || a.Documents() != nil {
		t.Errorf("after the APIService is gone: %d", code)
	}
}

func TestWrongCertificate(t *testing.T) {
	e := newExtension(t)
	a, _ := setup(t, e)
	s := e.apiService(true)
	s.Spec.InsecureSkipTLSVerify = false
	a.Set(s)
	if code, text := get(t, front(t, a).URL); code != 503 || strings.Contains(text, "certificate") || strings.Contains(text, "10.1.2.3") || !strings.Contains(text, `"reason":"ServiceUnavailable"`) {
		t.Errorf("%d %s", code, text)
	}
	if err := a.Probe(t.Context(), s); err == nil || !strings.HasPrefix(err.Error(), "failing or missing response from https://api.ext.svc:7443/apis/ext.example.com/v1: ") {
		t.Errorf("probe: %v", err)
	}
	// The certificate of httptest is for example.com: with its authority known, the name is still wrong.
	s.Spec.CABundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw})
	if err := a.Probe(t.Context(), s); err == nil || !strings.Contains(err.Error(), "api.ext.svc") {
		t.Errorf("a certificate for another name: %v", err)
	}
}

func TestWatchesStream(t *testing.T) {
	e := newExtension(t)
	next := make(chan string)
	e.handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for s := range next {
			fmt.Fprintln(w, s)
			w.(http.Flusher).Flush()
		}
	}
	a, _ := setup(t, e)
	a.Set(e.apiService(true))
	go func() { next <- "one" }()
	response, err := http.Get(front(t, a).URL + "/apis/ext.example.com/v1/flunders?watch=1")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for i, want := range []string{"one", "two", "three"} {
		if i > 0 {
			next <- want
		}
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("%q, want %q", lines.Text(), want)
		}
	}
	close(next)
	if lines.Scan() {
		t.Errorf("more: %q", lines.Text())
	}
}

func TestUpgrade(t *testing.T) {
	e := newExtension(t)
	e.handler = func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(rw, "%s says %s", r.Header.Get("X-Remote-User"), line)
		rw.Flush()
	}
	a, _ := setup(t, e)
	a.Set(e.apiService(true))
	conn, err := net.Dial("tcp", strings.TrimPrefix(front(t, a).URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET /apis/ext.example.com/v1/namespaces/a/flunders/b/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	response, err := http.ReadResponse(r, nil)
	if err != nil || response.StatusCode != 101 {
		t.Fatalf("%v %+v", err, response)
	}
	fmt.Fprintf(conn, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "ada says hello\n" {
		t.Errorf("%q %v", line, err)
	}
}

func (a *Aggregator) version(t *testing.T) *apidiscoveryv2.APIVersionDiscovery {
	t.Helper()
	d := a.Discovery()
	if d == nil {
		t.Fatal("nothing in discovery")
	}
	return d.Remote[schema.GroupVersion{Group: "ext.example.com", Version: "v1"}]
}

func TestDiscovery(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprint("legacy ", legacy), func(t *testing.T) {
			e := newExtension(t)
			e.legacy.Store(legacy)
			if legacy {
				e.handler = http.NotFound
			}
			a, _ := setup(t, e)
			s := e.apiService(true)
			a.Set(s)
			if v := a.version(t); v.Freshness != apidiscoveryv2.DiscoveryFreshnessStale || len(v.Resources) != 0 || len(a.Unavailable()) != 1 {
				t.Errorf("before it was asked: %+v", v)
			}
			if err := a.Look(t.Context(), s); err != nil || !a.Fresh(s.Name) {
				t.Fatal(err)
			}
			v := a.version(t)
			if v.Freshness != apidiscoveryv2.DiscoveryFreshnessCurrent || len(v.Resources) != 1 || v.Resources[0].Resource != "flunders" || v.Resources[0].ResponseKind == nil {
				t.Errorf("%+v", v)
			}
			if legacy && (len(v.Resources[0].Subresources) != 1 || v.Resources[0].ResponseKind.Group != "ext.example.com") {
				t.Errorf("%+v", v.Resources)
			}
			h := <-e.seen
			if h.Get("X-Remote-User") != "system:kube-aggregator" {
				t.Errorf("asked as %v", h)
			}
			before := a.Discovery()
			a.Set(e.apiService(true))
			if a.Discovery() != before {
				t.Error("nothing changed, and yet discovery is made anew")
			}
			docs := a.Documents()
			if len(docs) != 1 || docs[0].Hash != "ABC" {
				t.Fatalf("documents: %+v", docs)
			}
			if data, err := docs[0].V2(); err != nil || string(data) != `{"swagger":"2.0"}` {
				t.Errorf("%s %v", data, err)
			}
			e.broken.Store(true)
			if err := a.Look(t.Context(), s); err == nil {
				t.Error("no error from a broken server")
			}
			if v := a.version(t); v.Freshness != apidiscoveryv2.DiscoveryFreshnessStale || len(v.Resources) != 1 {
				t.Errorf("what was known is gone, or is called current: %+v", v)
			}
			if err := a.Probe(t.Context(), s); err == nil || !strings.Contains(err.Error(), "bad status from https://api.ext.svc:7443/apis/ext.example.com/v1: 500") {
				t.Errorf("probe: %v", err)
			}
		})
	}
}

// TestDocument: everybody may ask for a document, and so nothing but that is asked, in the name of nobody powerful.
func TestDocument(t *testing.T) {
	e := newExtension(t)
	bodies := make(chan string, 10)
	e.handler = func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
		w.Header().Set("ETag", "1")
		fmt.Fprintf(w, "%s %s", r.Method, r.URL)
	}
	a, _ := setup(t, e)
	s := e.apiService(true)
	a.Set(s)
	if err := a.Look(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for len(e.seen) > 0 {
		if h := <-e.seen; h.Get("X-Remote-User") == "system:aggregator" && strings.Contains(fmt.Sprint(h["X-Remote-Group"]), "masters") {
			t.Errorf("documents are asked for as %v", h)
		}
	}
	ask := func(method, url string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, url, strings.NewReader("body"))
		r = r.WithContext(client.WithUser(r.Context(), user))
		r.Header = http.Header{"Accept": {"application/json"}, "If-None-Match": {`"x"`}, "X-Evil": {"1"}, "Cookie": {"a=b"},
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
		w := httptest.NewRecorder()
		a.Documents()[0].Handler.ServeHTTP(w, r)
		return w
	}
	for _, method := range []string{"POST", "DELETE", "PUT", "PATCH", "CONNECT"} {
		if w := ask(method, "/openapi/v3/apis/ext.example.com/v1"); w.Code != http.StatusMethodNotAllowed || len(e.seen) != 0 {
			t.Errorf("%s: %d, and the server was asked %d times", method, w.Code, len(e.seen))
		}
	}
	for url, want := range map[string]string{
		"/openapi/v3/x/../apis/ext.example.com/v1?a=b&hash=OLD": "GET /openapi/v3/apis/ext.example.com/v1",
		"/openapi/v3/apis/ext.example.com/v1?hash=ABC&watch=1":  "GET /openapi/v3/apis/ext.example.com/v1?hash=ABC",
	} {
		if w := ask("GET", url); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %s", url, w.Code, w.Body)
		}
		h := <-e.seen
		if body := <-bodies; body != "" || h.Get("X-Evil") != "" || h.Get("Cookie") != "" || h.Get("Upgrade") != "" || h.Get("If-None-Match") != `"x"` || h.Get("Accept") != "application/json" {
			t.Errorf("%s: %q went on with %v", url, body, h)
		}
		if h.Get("X-Remote-User") != "system:aggregator" || strings.Join(h["X-Remote-Group"], ",") != "system:authenticated" {
			t.Errorf("%s: asked as %v", url, h)
		}
	}
}

func TestPriorities(t *testing.T) {
	e := newExtension(t)
	a, _ := setup(t, e)
	local := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.a"}, Spec: apiregistrationv1.APIServiceSpec{Group: "a", Version: "v1", GroupPriorityMinimum: 1000, VersionPriority: 100}}
	a.Set(local)
	if a.Discovery() != nil || a.Delegate("a", "v1") != nil {
		t.Error("an APIService that says what holds anyway is kept")
	}
	local = local.DeepCopy()
	local.Spec.VersionPriority = 200
	a.Set(local)
	if d := a.Discovery(); d == nil || d.Priorities[schema.GroupVersion{Group: "a", Version: "v1"}].Version != 200 || a.Delegate("a", "v1") != nil {
		t.Errorf("%+v", d)
	}
}

// FuzzDiscovery reads whatever a server may say of its kinds.
func FuzzDiscovery(f *testing.F) {
	f.Add([]byte(`{"items":[{"metadata":{"name":"g"},"versions":[{"version":"v1","resources":[{"resource":"a","subresources":[{}]}]}]}]}`))
	f.Add([]byte(`{"resources":[{"name":"a/b"},{"name":"a"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte, schema.GroupVersion) (*findings, error){parseAggregated, parseLegacy} {
			found, err := parse(data, schema.GroupVersion{Group: "g", Version: "v1"})
			if err != nil {
				continue
			}
			if found.discovery.Version != "v1" {
				t.Fatalf("version %q", found.discovery.Version)
			}
			for _, r := range found.discovery.Resources {
				if r.ResponseKind == nil {
					t.Fatal("a resource without kind")
				}
			}
			if _, err := json.Marshal(found.discovery); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestHandshakeReset: a connection that is reset before it stands costs nobody a request, whatever its method.
func TestHandshakeReset(t *testing.T) {
	e := newExtension(t)
	e.handler = func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }
	a, _ := setup(t, e)
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rude.Close() })
	go func() { // ends with the listener
		for {
			conn, err := rude.Accept()
			if err != nil {
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_, _ = conn.Read(make([]byte, 1))
			conn.Close()
		}
	}()
	polite, dials := a.Pool.Dial, atomic.Int32{}
	a.Pool.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1)%2 == 1 {
			return (&net.Dialer{}).DialContext(ctx, network, rude.Addr().String())
		}
		return polite(ctx, network, address)
	}
	a.Set(e.apiService(true))
	f := front(t, a)
	response, err := http.Post(f.URL+"/apis/ext.example.com/v1/flunders", "text/plain", strings.NewReader("a fish"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK || string(body) != "a fish" {
		t.Errorf("answered %d %s, after %d dials", response.StatusCode, body, dials.Load())
	}
}
