package custom_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// world is a server that serves custom resources, without sockets: requests are those of an admin.
type world struct {
	t         testing.TB
	store     store.Store
	registry  *api.Registry
	registrar *custom.Registrar
	server    *apiserver.Server
	leaf      *x509.Certificate
	log       *slog.Logger
	changed   chan struct{} // has one after the registry let a kind go
}

func newWorld(t testing.TB) *world {
	t.Helper()
	reg := api.NewRegistry(builtin.Kinds()...)
	return worldOn(t, reg, memory.New(client.StoreOptions(reg, 0)))
}

func worldOn(t testing.TB, reg *api.Registry, st store.Store) *world {
	t.Helper()
	w := &world{t: t, store: st, registry: reg, log: slog.New(slog.DiscardHandler), changed: make(chan struct{}, 1)}
	reg.OnRemove(func() {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	})
	pool := &backend.Pool{Snapshot: st.Snapshot, Dial: (&net.Dialer{}).DialContext}
	w.registrar = &custom.Registrar{Store: st, Registry: reg, Backends: pool, Log: w.log}
	w.registrar.Load()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.registrar.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; pool.Close() })
	root, leaf := certificates(t)
	authorities := x509.NewCertPool()
	authorities.AddCert(root)
	w.leaf = leaf
	var err error
	w.server, err = apiserver.New(apiserver.Config{Store: st, Registry: reg, Log: w.log, ClientCA: authorities,
		Backends: pool, Admission: []admission.Plugin{custom.Plugin(st)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "other"} {
		_, _, _ = st.Commit(ctx, store.Txn{Ops: []store.Op{{
			Key:    store.Key{Resource: "namespaces", Name: name},
			Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}},
		}}})
	}
	return w
}

// certificates are an authority and an admin that it vouches for.
func certificates(t testing.TB) (root, leaf *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c, parent *x509.Certificate) *x509.Certificate {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root = sign(ca, ca)
	return root, sign(&x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, root)
}

// do sends a request; body is YAML.
func (w *world) do(method, path, body string) *httptest.ResponseRecorder {
	w.t.Helper()
	kind := "application/json"
	if method == "PATCH" {
		kind = "application/merge-patch+json"
	}
	data := []byte(body)
	if body != "" && !strings.HasPrefix(body, "{") {
		var err error
		if data, err = yaml.YAMLToJSON([]byte(body)); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.send(method, path, string(data), kind, "application/json")
}

func (w *world) send(method, path, body, contentType, accept string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", accept)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{w.leaf}}
	rec := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(rec, r)
	return rec
}

const definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// define creates a definition and establishes it, as the loops of controllers/customresource do.
func (w *world) define(text string) *apiextensionsv1.CustomResourceDefinition {
	w.t.Helper()
	if rec := w.do("POST", definitions, text); rec.Code != http.StatusCreated {
		w.t.Fatalf("create definition: %d %s", rec.Code, rec.Body)
	}
	var d apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal([]byte(text), &d); err != nil {
		w.t.Fatal(err)
	}
	return w.establish(d.Name)
}

func (w *world) establish(name string) *apiextensionsv1.CustomResourceDefinition {
	w.t.Helper()
	have, ok := custom.Definitions.Get(w.store.Snapshot(), "", name)
	if !ok {
		w.t.Fatalf("no definition %s", name)
	}
	d := have.DeepCopy()
	d.Status.AcceptedNames = d.Spec.Names
	d.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{
		{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue},
		{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue},
	}
	if err := w.registrar.Serve(context.Background(), d.DeepCopy()); err != nil {
		w.t.Fatal(err)
	}
	out, err := w.server.Writer().Update(context.Background(), custom.Definitions.Name, d, client.WriteOptions{Subresource: "status"})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.(*apiextensionsv1.CustomResourceDefinition)
}

// redefine changes a definition and waits until the change is served.
func (w *world) redefine(name string, change func(*apiextensionsv1.CustomResourceDefinition)) {
	w.t.Helper()
	before := w.registry.ByName(name)
	_, err := client.Mutate(context.Background(), both{w.store, w.server.Writer()}, custom.Definitions, "", name, "",
		func(d *apiextensionsv1.CustomResourceDefinition) bool { change(d); return true })
	if err != nil {
		w.t.Fatal(err)
	}
	w.until("the change is served", func() bool { return w.registry.ByName(name) != before })
}

type both struct {
	client.Reader
	client.Writer
}

// until waits for what comes of a change of the registry that takes a kind out or replaces it.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-w.changed:
		case <-late:
			w.t.Fatalf("it did not come that %s", what)
		}
	}
}

// want sends a request and checks what comes back: the code, and that the body has each text and none that begins with "!".
func (w *world) want(code int, method, path, body string, texts ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	rec := w.do(method, path, body)
	if rec.Code != code {
		w.t.Errorf("%s %s: %d, want %d: %s", method, path, rec.Code, code, rec.Body)
	}
	got := rec.Body.String() + "\n" + fmt.Sprint(rec.Header()["Warning"])
	for _, text := range texts {
		not := strings.HasPrefix(text, "!")
		if text = strings.TrimPrefix(text, "!"); strings.Contains(got, text) == not {
			w.t.Errorf("%s %s: contains %q is %t:\n%s", method, path, text, !not == false, got)
		}
	}
	return rec
}
