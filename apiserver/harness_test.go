package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// env is a server with a store of its own and clients that may do everything.
type env struct {
	*Server
	t       testing.TB
	store   store.Store
	http    *httptest.Server
	ca      *authority
	config  *rest.Config // JSON, as admin
	typed   *kubernetes.Clientset
	dynamic *dynamic.DynamicClient
}

// authority signs client certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

// issue makes a client certificate and its key, as PEM.
func (a *authority) issue(t testing.TB, name string, groups ...string) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})
}

// start brings a server up; change may edit its configuration.
func start(t testing.TB, kinds []*api.Kind, change ...func(*Config)) *env {
	t.Helper()
	reg := api.NewRegistry(kinds...)
	st := memory.New(client.StoreOptions(reg, 0))
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Store: st, Registry: reg, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
		ClientCA: pool, ServiceAccountKey: key,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		Version:      version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2"},
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(s.Handler())
	hs.EnableHTTP2 = true
	hs.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	hs.StartTLS()
	e := &env{Server: s, t: t, store: st, http: hs, ca: ca}
	t.Cleanup(func() {
		s.Close()
		hs.CloseClientConnections()
		hs.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	e.config = e.as("admin", client.GroupMasters)
	if e.typed, err = kubernetes.NewForConfig(e.config); err != nil {
		t.Fatal(err)
	}
	if e.dynamic, err = dynamic.NewForConfig(e.config); err != nil {
		t.Fatal(err)
	}
	if reg.ByName("namespaces") != nil {
		e.namespace("default")
	}
	return e
}

// as is a client configuration for a user.
func (e *env) as(name string, groups ...string) *rest.Config {
	cert, key := e.ca.issue(e.t, name, groups...)
	return &rest.Config{
		Host: e.http.URL, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CertData: cert, KeyData: key, CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.http.Certificate().Raw})},
	}
}

func (e *env) namespace(name string) {
	e.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := e.Writer().Create(context.Background(), "namespaces", ns, client.WriteOptions{}); err != nil {
		e.t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}
	if _, err := e.Writer().Create(context.Background(), "serviceaccounts", sa, client.WriteOptions{}); err != nil {
		e.t.Fatal(err)
	}
}

// testLog sends log lines to the test.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(p))
	return len(p), nil
}

// ctx is a context that ends before the test would hang.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// smallKinds are few kinds with simple rules, for tests of the machinery.
func smallKinds() []*api.Kind {
	v1 := func(name string, n, l func() runtime.Object) []api.Version {
		return []api.Version{{Name: name, Hub: true, New: n, NewList: l}}
	}
	return []*api.Kind{
		{Kind: "Namespace", Resource: "namespaces", Singular: "namespace", ShortNames: []string{"ns"},
			Versions: v1("v1", func() runtime.Object { return &corev1.Namespace{} }, func() runtime.Object { return &corev1.NamespaceList{} }),
			Strategy: api.Strategy{PrepareCreate: api.On(func(n *corev1.Namespace) {
				n.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
				n.Status.Phase = corev1.NamespaceActive
			})},
			Subresources: []api.Subresource{{Name: "finalize", Verbs: []string{"update"}, Strategy: &api.Strategy{}}},
		},
		{Kind: "ServiceAccount", Resource: "serviceaccounts", Singular: "serviceaccount", Namespaced: true,
			Versions:     v1("v1", func() runtime.Object { return &corev1.ServiceAccount{} }, func() runtime.Object { return &corev1.ServiceAccountList{} }),
			Subresources: []api.Subresource{{Name: "token", Verbs: []string{"create"}}},
		},
		{Kind: "ConfigMap", Resource: "configmaps", Singular: "configmap", ShortNames: []string{"cm"}, Namespaced: true, UnconditionalUpdate: true,
			Versions: v1("v1", func() runtime.Object { return &corev1.ConfigMap{} }, func() runtime.Object { return &corev1.ConfigMapList{} }),
			Columns: []api.Column{
				{Name: "Name", Cell: func(o api.Object, _ time.Time) any { return o.GetName() }},
				{Name: "Data", Type: "integer", Cell: func(o api.Object, _ time.Time) any { return int64(len(o.(*corev1.ConfigMap).Data)) }},
			},
			Fields: map[string]func(api.Object) string{"data.color": func(o api.Object) string { return o.(*corev1.ConfigMap).Data["color"] }},
		},
		{Kind: "Pod", Resource: "pods", Singular: "pod", ShortNames: []string{"po"}, Namespaced: true, UnconditionalUpdate: true,
			Versions: v1("v1", func() runtime.Object { return &corev1.Pod{} }, func() runtime.Object { return &corev1.PodList{} }),
			Default: api.On(func(p *corev1.Pod) {
				if p.Spec.RestartPolicy == "" {
					p.Spec.RestartPolicy = corev1.RestartPolicyAlways
				}
			}),
			Strategy: api.Strategy{
				PrepareCreate: api.On(func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }),
				PrepareUpdate: api.OnUpdate(func(p, old *corev1.Pod) { p.Status = old.Status }),
			},
			Grace: func(o api.Object, requested *int64) int64 {
				p := o.(*corev1.Pod)
				switch {
				case p.Spec.NodeName == "":
					return 0
				case requested != nil:
					return *requested
				}
				return 30
			},
			Desired: func(o, old api.Object) bool {
				return o.(*corev1.Pod).Spec.RestartPolicy != old.(*corev1.Pod).Spec.RestartPolicy
			},
			Fields: map[string]func(api.Object) string{
				"spec.nodeName": func(o api.Object) string { return o.(*corev1.Pod).Spec.NodeName },
				"status.phase":  func(o api.Object) string { return string(o.(*corev1.Pod).Status.Phase) },
			},
			Indexes: map[string]func(api.Object) []string{"node": func(o api.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }},
			Subresources: []api.Subresource{
				{Name: "binding", Verbs: []string{"create"}},
				{Name: "log", Verbs: []string{"get"}},
				{Name: "exec", Verbs: []string{"create", "get"}},
				{Name: "proxy", Verbs: []string{"get"}},
				{Name: "status", Verbs: []string{"get", "patch", "update"}, Strategy: &api.Strategy{
					PrepareUpdate: api.OnUpdate(func(p, old *corev1.Pod) { p.Spec = old.Spec }),
				}},
			},
		},
	}
}

func rawURL(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
