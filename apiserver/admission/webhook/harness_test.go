package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

var registry = api.NewRegistry(builtin.Kinds()...)

// bed is a store with a namespace "prod" and the plug-ins.
type bed struct {
	*Webhooks
	t     testing.TB
	store store.Store
	chain admission.Chain
	// dial is where pods' addresses lead, "" for nowhere.
	dial string
	log  *lines

	mu          sync.Mutex
	warnings    []string
	annotations map[string]string
	warned      []string // events
}

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += string(p)
	return len(p), nil
}

func newBed(t testing.TB) *bed {
	st := memory.New(client.StoreOptions(registry, 0))
	b := &bed{t: t, store: st, annotations: map[string]string{}, log: &lines{}}
	pool := &backend.Pool{Snapshot: st.Snapshot, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, _ := net.SplitHostPort(address); host != "127.0.0.1" {
			if b.dial == "" {
				return nil, &net.OpError{Op: "dial", Net: network, Err: io.ErrUnexpectedEOF}
			}
			address = b.dial
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	t.Cleanup(func() {
		pool.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Webhooks = New(Config{
		Registry: registry, Backends: pool, Snapshot: st.Snapshot, Log: slog.New(slog.NewTextHandler(b.log, nil)), Now: time.Now,
		Warn: func(about corev1.ObjectReference, reason, _ string) {
			b.warned = append(b.warned, about.Kind+" "+about.Name+" "+reason)
		},
	})
	b.chain = admission.Chain{b.Mutating(), b.Validating()}
	b.put("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"env": "prod"}}})
	return b
}

func (b *bed) put(resource string, obj api.Object) {
	b.t.Helper()
	if k := registry.ByName(resource); k.Default != nil {
		k.Default(obj)
	}
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if _, _, err := b.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}}); err != nil {
		b.t.Fatal(err)
	}
}

// request is one on the present state.
func (b *bed) request(op admission.Operation, resource, sub string, obj, old api.Object) *admission.Request {
	r := &admission.Request{
		Operation: op, Kind: registry.ByName(resource), Subresource: sub, Object: obj, Old: old,
		User:     client.User{Name: "ann", UID: "7", Groups: []string{"dev", client.GroupAuthenticated}, Extra: map[string][]string{"k": {"v"}}},
		Snapshot: b.store.Snapshot(), Now: time.Now(),
		AnnotateBodies: true,
		Warn:           func(text string) { b.warnings = append(b.warnings, text) },
		Annotate: func(k, v string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.annotations[k] = v
		},
	}
	for _, o := range []api.Object{obj, old} {
		if o != nil {
			r.Namespace, r.Name = o.GetNamespace(), o.GetName()
		}
	}
	return r
}

// createPod is a request for a new pod.
func (b *bed) createPod() *admission.Request {
	return b.request(admission.Create, "pods", "", newPod(), nil)
}

func newPod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "prod"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	registry.ByName("pods").Default(p)
	return p
}

// run takes a request through both halves.
func (b *bed) run(r *admission.Request) error {
	if err := b.chain.Mutate(context.Background(), r); err != nil {
		return err
	}
	return b.chain.Validate(context.Background(), r)
}

// answer is what a webhook of a test says; the uid and the type are filled in where they are empty.
type answer func(*reviewv1.AdmissionReview) *reviewv1.AdmissionReview

// server is a webhook's server, which counts.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*reviewv1.AdmissionReview
	urls []string
	// cert is shown to clients, one of httptest's if nil.
	cert *tls.Certificate
}

func serve(t testing.TB, f answer) *server { return (&server{}).answer(t, f) }

// certificate makes one for a name, and the bundle that trusts it.
func certificate(t testing.TB, name string) (*tls.Certificate, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (s *server) answer(t testing.TB, f answer) *server {
	return s.start(t, func(w http.ResponseWriter, r *http.Request) {
		in := &reviewv1.AdmissionReview{}
		if err := json.NewDecoder(r.Body).Decode(in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		s.seen, s.urls = append(s.seen, in), append(s.urls, r.URL.String())
		s.mu.Unlock()
		out := f(in)
		if out.Response != nil && out.Response.UID == "" {
			out.Response.UID = in.Request.UID
		}
		if out.Kind == "" {
			out.TypeMeta = in.TypeMeta
		}
		_ = json.NewEncoder(w).Encode(out)
	})
}

func (s *server) start(t testing.TB, h http.HandlerFunc) *server {
	s.Server = httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if s.cert != nil {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{*s.cert}}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

func (s *server) last() *reviewv1.AdmissionReview {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[len(s.seen)-1]
}

func (s *server) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (s *server) client() admissionv1.WebhookClientConfig {
	u := s.URL + "/hook"
	return admissionv1.WebhookClientConfig{URL: &u, CABundle: s.ca()}
}

func allowed(*reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
	return &reviewv1.AdmissionReview{Response: &reviewv1.AdmissionResponse{Allowed: true}}
}

// patch answers with a JSON patch.
func patch(text string) answer {
	return func(*reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
		t := reviewv1.PatchTypeJSONPatch
		return &reviewv1.AdmissionReview{Response: &reviewv1.AdmissionResponse{Allowed: true, Patch: []byte(text), PatchType: &t}}
	}
}

func deny(s *metav1.Status) answer {
	return func(*reviewv1.AdmissionReview) *reviewv1.AdmissionReview {
		return &reviewv1.AdmissionReview{Response: &reviewv1.AdmissionResponse{Result: s}}
	}
}

var (
	none     = admissionv1.SideEffectClassNone
	ignore   = admissionv1.Ignore
	ifNeeded = admissionv1.IfNeededReinvocationPolicy
	every    = []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{"*"},
		Rule:       admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}},
	}}
)

// mutatingHook is a webhook for everything.
func mutatingHook(name string, c admissionv1.WebhookClientConfig) admissionv1.MutatingWebhook {
	return admissionv1.MutatingWebhook{Name: name, ClientConfig: c, Rules: every, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}
}

func validatingHook(name string, c admissionv1.WebhookClientConfig) admissionv1.ValidatingWebhook {
	return admissionv1.ValidatingWebhook{Name: name, ClientConfig: c, Rules: every, SideEffects: &none, AdmissionReviewVersions: []string{"v1"}}
}

func (b *bed) mutatingBy(name string, hooks ...admissionv1.MutatingWebhook) {
	b.t.Helper()
	b.put(client.MutatingWebhooks.Name, &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks})
}

func (b *bed) validatingBy(name string, hooks ...admissionv1.ValidatingWebhook) {
	b.t.Helper()
	b.put(client.ValidatingWebhooks.Name, &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks})
}

// service puts a service "hooks" in the namespace "prod", with a pod behind it or none.
func (b *bed) service(ready bool) {
	b.t.Helper()
	b.put("services", &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "hooks", Namespace: "prod"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "hooks"}, ClusterIP: "10.96.0.9",
			Ports: []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}},
		},
	})
	if !ready {
		return
	}
	port, yes := int32(8443), true
	name := ""
	b.put("endpointslices.discovery.k8s.io", &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "hooks-1", Namespace: "prod", Labels: map[string]string{discoveryv1.LabelServiceName: "hooks"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.7"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}}},
	})
}

func serviceClient() admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "prod", Name: "hooks"}}
}

// samples are the counters of a metric, by labels.
func (b *bed) samples(name string) map[string]float64 {
	out := map[string]float64{}
	b.Collect(func(n, labels string, v float64) {
		if n == name {
			out[labels] = v
		}
	})
	return out
}

func keys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
