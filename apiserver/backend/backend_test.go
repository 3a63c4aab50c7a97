package backend

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

// authority signs certificates.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, key, cert}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue makes a certificate for a name, of a server or a client.
func (a *authority) issue(name string) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// place is a store with a service "svc" in "ns".
func place(t testing.TB, change ...func(*corev1.Service)) store.Store {
	st := memory.New(client.StoreOptions(api.NewRegistry(builtin.Kinds()...), 0))
	t.Cleanup(func() { _ = st.Close() })
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Name: "https", Port: 443}, {Name: "other", Port: 8443}}},
	}
	for _, f := range change {
		f(svc)
	}
	put(t, st, "services", svc)
	return st
}

func put(t testing.TB, st store.Store, resource string, obj api.Object) {
	t.Helper()
	op := store.Op{Key: store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}, Object: obj, Expect: store.ExpectAny}
	if _, _, err := st.Commit(context.Background(), store.Txn{Ops: []store.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

// endpoints puts addresses behind the port "https" of the service.
func endpoints(t testing.TB, st store.Store, ready bool, addresses ...string) {
	t.Helper()
	port, name := int32(6443), "https"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "svc-1", Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	put(t, st, "endpointslices.discovery.k8s.io", s)
}

func TestResolve(t *testing.T) {
	st := place(t)
	check := func(s Service, want string) {
		t.Helper()
		got, err := Resolve(st.Snapshot(), s)
		slices.Sort(got)
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != want {
			t.Errorf("%+v: %s; want %s", s, text, want)
		}
	}
	check(Service{Namespace: "ns", Name: "none"}, `services "none" not found`)
	check(Service{Namespace: "ns", Name: "svc", Port: 1}, `no service port 1 found for service "svc"`)
	check(Service{Namespace: "ns", Name: "svc"}, `no endpoints available for service "svc"`)
	endpoints(t, st, false, "10.244.0.1")
	check(Service{Namespace: "ns", Name: "svc"}, `no endpoints available for service "svc"`)
	endpoints(t, st, true, "10.244.0.1", "10.244.0.2")
	check(Service{Namespace: "ns", Name: "svc"}, "10.244.0.1:6443 10.244.0.2:6443")
	check(Service{Namespace: "ns", Name: "svc", Port: 8443}, `no endpoints available for service "svc"`)
	// What only this machine can reach is nobody's pod.
	endpoints(t, st, true, "127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "10.244.0.3")
	check(Service{Namespace: "ns", Name: "svc"}, "10.244.0.3:6443")

	st = place(t, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "hooks.example.com"
	})
	check(Service{Namespace: "ns", Name: "svc", Port: 9443}, "hooks.example.com:9443")
}

// far leads every dial to one address and keeps those that were asked for.
type far struct {
	to    string
	asked []string
	fail  map[string]error
	hang  map[string]bool
}

func (f *far) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.asked = append(f.asked, address)
	if f.hang[address] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := f.fail[address]; err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, f.to)
}

// server answers with the name of the client's certificate and the host that was asked for.
func server(t testing.TB, config *tls.Config) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "https://example.com/", http.StatusFound)
			return
		}
		who := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s %s %s", who, r.Host, r.URL.Path, r.Proto)
	}))
	s.TLS = config
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func get(t testing.TB, p *Pool, target Target) (string, error) {
	t.Helper()
	c, u, err := p.Client(target)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx(t), http.MethodGet, u.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.Status, err
	}
	return string(data), err
}

// TestService: a service is known by its name in the cluster, and reached at its pods.
func TestService(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	st := place(t)
	endpoints(t, st, true, "10.244.0.1")
	s := server(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("svc.ns.svc")}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.pool()})
	f := &far{to: s.Listener.Addr().String()}
	p := &Pool{Snapshot: st.Snapshot, Dial: f.dial, Certificate: func() (*tls.Certificate, error) { return ca.issue("api-server"), nil }}
	t.Cleanup(p.Close)
	svc := &Service{Namespace: "ns", Name: "svc", Path: "/hook"}

	got, err := get(t, p, Target{Service: svc, CABundle: ca.pem(), HTTP1: true})
	if err != nil || got != "nobody svc.ns.svc:443 /hook HTTP/1.1" {
		t.Errorf("%s, %v", got, err)
	}
	if !slices.Equal(f.asked, []string{"10.244.0.1:6443"}) {
		t.Errorf("dialled %v", f.asked)
	}
	if got, err = get(t, p, Target{Service: svc, CABundle: ca.pem(), Identify: true}); err != nil || got != "api-server svc.ns.svc:443 /hook HTTP/2.0" {
		t.Errorf("with a certificate: %s, %v", got, err)
	}
	var unknown x509.UnknownAuthorityError
	if _, err = get(t, p, Target{Service: svc, CABundle: other.pem()}); !errors.As(err, &unknown) {
		t.Errorf("with another authority: %v", err)
	}
	if _, err = get(t, p, Target{Service: svc}); !errors.As(err, &unknown) {
		t.Errorf("with the machine's authorities: %v", err)
	}
	if got, err = get(t, p, Target{Service: svc, Insecure: true}); err != nil {
		t.Errorf("insecure: %s, %v", got, err)
	}
	if _, err = get(t, p, Target{Service: svc, CABundle: []byte("none")}); err == nil || err.Error() != "unable to load root certificates: unable to parse bytes as PEM block" {
		t.Errorf("without certificates in the bundle: %v", err)
	}
	if got, err = get(t, p, Target{Service: &Service{Namespace: "ns", Name: "svc", Path: "/away"}, CABundle: ca.pem()}); err != nil || got != "302 Found" {
		t.Errorf("a redirect: %s, %v", got, err)
	}
	if _, err = get(t, p, Target{Service: &Service{Namespace: "ns", Name: "none"}, CABundle: ca.pem()}); !hasStatus(err, http.StatusNotFound) ||
		!strings.HasSuffix(err.Error(), `Get "https://none.ns.svc:443": services "none" not found`) {
		t.Errorf("a service that is not there: %v", err)
	}
}

func hasStatus(err error, code int32) bool {
	var s apierrors.APIStatus
	return errors.As(err, &s) && s.Status().Code == code
}

// TestURL: a URL needs no service, and is known by its own name.
func TestURL(t *testing.T) {
	ca := newAuthority(t)
	s := server(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("hooks.example.com")}})
	f := &far{to: s.Listener.Addr().String()}
	p := &Pool{Dial: f.dial}
	t.Cleanup(p.Close)
	got, err := get(t, p, Target{URL: "https://hooks.example.com/a/b", CABundle: ca.pem()})
	if err != nil || got != "nobody hooks.example.com /a/b HTTP/2.0" || !slices.Equal(f.asked, []string{"hooks.example.com:443"}) {
		t.Errorf("%s, %v, dialled %v", got, err, f.asked)
	}
	for _, bad := range []string{"", "hooks.example.com", "ftp://hooks.example.com", "https://", "https://a b"} {
		if _, _, err := p.Client(Target{URL: bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, _, err := p.Client(Target{Service: &Service{Name: "svc"}}); err == nil {
		t.Error("a service without namespace is taken")
	}
}

// TestNextPod: a pod that refuses, or does not answer at all, is passed over for another.
func TestNextPod(t *testing.T) {
	ca := newAuthority(t)
	st := place(t)
	endpoints(t, st, true, "10.244.0.1", "10.244.0.2", "10.244.0.3")
	s := server(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("svc.ns.svc")}})
	f := &far{to: s.Listener.Addr().String(), fail: map[string]error{"10.244.0.1:6443": errors.New("refused")}, hang: map[string]bool{"10.244.0.2:6443": true}}
	p := &Pool{Snapshot: st.Snapshot, Dial: f.dial, Patience: 20 * time.Millisecond}
	t.Cleanup(p.Close)
	if _, err := get(t, p, Target{Service: &Service{Namespace: "ns", Name: "svc"}, CABundle: ca.pem()}); err != nil {
		t.Errorf("%v, dialled %v", err, f.asked)
	}
	f.fail["10.244.0.3:6443"] = errors.New("refused")
	delete(f.hang, "10.244.0.2:6443")
	f.fail["10.244.0.2:6443"] = errors.New("refused")
	p.Close()
	if _, err := get(t, p, Target{Service: &Service{Namespace: "ns", Name: "svc"}, CABundle: ca.pem()}); err == nil || !strings.HasSuffix(err.Error(), "refused") {
		t.Errorf("with no pod that answers: %v", err)
	}
}

// TestFollow: a connection that is kept does not outlive the pod's place behind the service.
func TestFollow(t *testing.T) {
	ca := newAuthority(t)
	st := place(t)
	endpoints(t, st, true, "10.244.0.1")
	s := server(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("svc.ns.svc")}})
	f := &far{to: s.Listener.Addr().String()}
	p := &Pool{Snapshot: st.Snapshot, Dial: f.dial}
	t.Cleanup(p.Close)
	for _, pod := range []string{"10.244.0.1", "10.244.0.1", "10.244.0.2"} {
		endpoints(t, st, true, pod)
		if _, err := get(t, p, Target{Service: &Service{Namespace: "ns", Name: "svc"}, CABundle: ca.pem(), HTTP1: true}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(f.asked, []string{"10.244.0.1:6443", "10.244.0.2:6443"}) {
		t.Errorf("dialled %v", f.asked)
	}
}

// TestKept: connections are used again for the same backend, and only for it; the number of backends is bounded.
func TestKept(t *testing.T) {
	ca := newAuthority(t)
	s := server(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("hooks.example.com")}})
	var dialled atomic.Int32
	p := &Pool{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
	}}
	t.Cleanup(p.Close)
	for _, path := range []string{"/a", "/b", "/c"} {
		if _, err := get(t, p, Target{URL: "https://hooks.example.com" + path, CABundle: ca.pem(), HTTP1: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n := dialled.Load(); n != 1 {
		t.Errorf("dialled %d times", n)
	}
	if _, err := get(t, p, Target{URL: "https://hooks.example.com/", Insecure: true}); err != nil {
		t.Fatal(err)
	}
	if n := dialled.Load(); n != 2 {
		t.Errorf("dialled %d times: another trust shares the connection", n)
	}
	for i := range 2 * maxClients {
		if _, _, err := p.Client(Target{URL: fmt.Sprintf("https://h%d.example.com/", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.clients); n > maxClients {
		t.Errorf("%d clients are kept", n)
	}
}
