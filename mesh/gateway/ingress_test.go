package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/api/networking"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// town is a store with a loop that follows its ingresses, a step at a time, and the table that comes of it.
type town struct {
	testing.TB
	store.Store
	publisher *Publisher
	loop      reconcile.Loop
	now       *table.Table
	// refuse is what opening a listener gives.
	refuse error
	wrong  map[reconcile.Key]error
}

func newTown(t testing.TB) *town {
	w := &town{TB: t, wrong: map[reconcile.Key]error{}}
	kinds := append(core.Kinds(), append(discovery.Kinds(), append(networking.Kinds(), gatewayapi.Kinds()...)...)...)
	w.Store = memory.New(client.StoreOptions(api.NewRegistry(kinds...), 0))
	w.publisher = &Publisher{Client: w.Store, Serve: func(t *table.Table) map[string]error {
		w.now = t
		out := map[string]error{}
		for id := range t.Listeners().All() {
			if w.refuse != nil {
				out[id] = w.refuse
			}
		}
		return out
	}}
	w.loop = IngressLoop(Config{Nodes: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Publisher: w.publisher})
	w.put("ingressclasses.networking.k8s.io", &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "coracle"},
		Spec: networkingv1.IngressClassSpec{Controller: IngressController}})
	return w
}

// put writes an object, or takes it away, and gives the loop all passes that follow.
func (w *town) put(resource string, o api.Object) { w.change(resource, o, false) }
func (w *town) remove(resource string, o api.Object) {
	w.change(resource, o, true)
}

func (w *town) change(resource string, o api.Object, gone bool) {
	w.Helper()
	before := w.Snapshot().Revision()
	if !gone {
		o.SetGeneration(int64(before) + 1)
	}
	key := store.Key{Resource: resource, Namespace: o.GetNamespace(), Name: o.GetName()}
	op := store.Op{Key: key, Object: o, Expect: store.ExpectAny}
	if gone {
		op.Object, op.Delete = nil, true
	}
	cursor, err := w.Cursor(before, resource)
	if err != nil {
		w.Fatal(err)
	}
	if _, _, err := w.Commit(context.Background(), store.Txn{Ops: []store.Op{op}}); err != nil {
		w.Fatal(err)
	}
	events, err := cursor.Poll()
	if err != nil || len(events) != 1 {
		w.Fatal(events, err)
	}
	for _, in := range w.loop.Inputs {
		if in.Resource == resource {
			for _, key := range in.Keys(w.Snapshot(), events[0]) {
				w.pass(key)
			}
		}
	}
}

func (w *town) pass(key reconcile.Key) {
	w.Helper()
	p, err := w.loop.Plan(w.Snapshot(), key, time.Unix(1, 0))
	if err != nil {
		w.Fatal(err)
	}
	delete(w.wrong, key)
	if p.Effect != nil {
		if err := w.loop.Apply(context.Background(), key, p.Effect); err != nil {
			w.wrong[key] = err
		}
	}
}

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: "10.43.0.1",
		Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

func ends(name string, ips ...string) *discoveryv1.EndpointSlice {
	port, proto, empty := int32(8080), corev1.ProtocolTCP, ""
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &empty, Port: &port, Protocol: &proto}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

// ingress has one rule for each "host/path", all to one service.
func ingress(name string, age int64, to string, rules ...[2]string) *networkingv1.Ingress {
	class := "coracle"
	i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.Unix(age, 0)},
		Spec: networkingv1.IngressSpec{IngressClassName: &class}}
	for _, r := range rules {
		i.Spec.Rules = append(i.Spec.Rules, networkingv1.IngressRule{Host: r[0], IngressRuleValue: networkingv1.IngressRuleValue{
			HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: r[1], Backend: toService(to)}}}}})
	}
	return i
}

func toService(name string) networkingv1.IngressBackend {
	return networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: name, Port: networkingv1.ServiceBackendPort{Number: 80}}}
}

func secured(i *networkingv1.Ingress, secret string, hosts ...string) *networkingv1.Ingress {
	i.Spec.TLS = append(i.Spec.TLS, networkingv1.IngressTLS{Hosts: hosts, SecretName: secret})
	return i
}

// keyPair is a TLS secret for a name.
func keyPair(t testing.TB, name, host string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var cert, text bytes.Buffer
	if err := pem.Encode(&cert, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: private}); err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: cert.Bytes(), corev1.TLSPrivateKeyKey: text.Bytes()}}
}

// BenchmarkIngress is a change of one ingress beside others, until the next table is there.
func BenchmarkIngress(b *testing.B) {
	for _, n := range []int{10, 1000} {
		for _, kind := range []string{"plain", "tls"} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				w := newTown(b)
				one := func(i, path int) *networkingv1.Ingress {
					name := fmt.Sprintf("s%d", i)
					in := ingress(name, int64(i), name, [2]string{name + ".example", fmt.Sprintf("/%d", path)}, [2]string{name + ".example", "/"})
					if kind == "tls" {
						secured(in, name, name+".example")
					}
					return in
				}
				began := time.Now()
				for i := range n {
					name := fmt.Sprintf("s%d", i)
					w.put("services", service(name))
					w.put("endpointslices.discovery.k8s.io", ends(name, "10.42.0.1", "10.42.0.2"))
					if kind == "tls" {
						w.put("secrets", keyPair(b, name, name+".example"))
					}
					w.put("ingresses.networking.k8s.io", one(i, 0))
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-for-all")
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					w.put("ingresses.networking.k8s.io", one(n/2, i))
				}
			})
		}
	}
}

// gatewayTown is a town with a loop for Gateway API and a gateway "web".
func gatewayTown(t testing.TB) *town {
	w := newTown(t)
	w.loop = Loop(Config{Nodes: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Publisher: w.publisher, Pools: []netip.Prefix{netip.MustParsePrefix("10.42.255.0/24")}})
	w.put("gatewayclasses.gateway.networking.k8s.io", &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: Class}, Spec: gatewayv1.GatewayClassSpec{ControllerName: Controller}})
	w.put("gateways.gateway.networking.k8s.io", &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web"}, Spec: gatewayv1.GatewaySpec{
		GatewayClassName: Class, Listeners: []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}}}})
	return w
}

// httpRoute leads a host and a path to a service.
func httpRoute(name string, age int64, host, path, to string) *gatewayv1.HTTPRoute {
	port, kind := gatewayv1.PortNumber(80), gatewayv1.PathMatchPathPrefix
	return &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.Unix(age, 0)}, Spec: gatewayv1.HTTPRouteSpec{
		CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "web"}}}, Hostnames: []gatewayv1.Hostname{gatewayv1.Hostname(host)},
		Rules: []gatewayv1.HTTPRouteRule{{Matches: []gatewayv1.HTTPRouteMatch{{Path: &gatewayv1.HTTPPathMatch{Type: &kind, Value: &path}}},
			BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{Name: gatewayv1.ObjectName(to), Port: &port}}}}}}}}
}

const routesOf = "httproutes.gateway.networking.k8s.io"

// BenchmarkRoute is a change of one route beside others of its gateway, until the next table is there.
func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := gatewayTown(b)
			inputs := w.loop.Inputs
			w.loop.Inputs = nil
			for i := range n {
				name := fmt.Sprintf("s%d", i)
				w.put("services", service(name))
				w.put("endpointslices.discovery.k8s.io", ends(name, "10.42.0.1", "10.42.0.2"))
				w.put(routesOf, httpRoute(name, int64(i), name+".example", "/", name))
			}
			w.loop.Inputs = inputs
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				name := fmt.Sprintf("s%d", n/2)
				w.put(routesOf, httpRoute(name, int64(n/2), name+".example", fmt.Sprintf("/%d", i), name))
			}
			if got := w.now.Backends().Len(); got != n {
				b.Errorf("%d backends", got)
			}
		})
	}
}
