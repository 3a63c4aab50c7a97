package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/reconcile"
)

// served is the rule that takes a request, "" for none, and "nobody" where there is no listener.
func (w *town) served(host, path string) string {
	w.Helper()
	l := w.now.Listener("ingress/192.0.2.1:80")
	if l == nil {
		return "nobody"
	}
	r := l.Chain(netip.AddrPort{}, false, "").Hosts.Match(host).Match(&table.Request{Method: "GET", Authority: host, Path: path})
	if r == nil {
		return ""
	}
	return r.Rule.Name
}

// shows is the name in the certificate for clients that ask for a name.
func (w *town) shows(name string) string {
	w.Helper()
	l := w.now.Listener("ingress/192.0.2.1:443")
	if l == nil {
		return "nobody"
	}
	config := l.Chain(netip.AddrPort{}, true, name).TLS.Config
	cert, err := config.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		w.Fatal(err)
	}
	if cert == nil || name == "" {
		cert = &config.Certificates[0]
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		w.Fatal(err)
	}
	return leaf.Subject.CommonName
}

const ingressesOf, servicesOf, secretsOf, slicesOf = "ingresses.networking.k8s.io", "services", "secrets", "endpointslices.discovery.k8s.io"

// TestSite holds whom the requests of several ingresses are for: the host, the longest path, the oldest, and the default last.
func TestSite(t *testing.T) {
	w := newTown(t)
	w.put(servicesOf, service("s"))
	w.put(ingressesOf, ingress("young", 9, "s", [2]string{"a.example", "/"}, [2]string{"a.example", "/same"}))
	w.put(ingressesOf, ingress("old", 1, "s", [2]string{"a.example", "/same"}, [2]string{"a.example", "/long/path"}))
	w.put(ingressesOf, ingress("wild", 2, "s", [2]string{"*.wild.example", "/"}))
	want := func(all map[string]string) {
		t.Helper()
		for at, rule := range all {
			host, path, _ := cut(at)
			if got := w.served(host, path); got != rule {
				t.Errorf("%s is for %q, want %q", at, got, rule)
			}
		}
	}
	want(map[string]string{"a.example/": "shop/young/0/0", "a.example/same/x": "shop/old/0/0", "a.example/long/path": "shop/old/1/0",
		"b.example/": "", "x.wild.example/": "shop/wild/0/0", "x.wild.example:80/": "shop/wild/0/0", "X.Wild.example/": "shop/wild/0/0",
		"x.y.wild.example/": "", "wild.example/": ""})
	any := ingress("any", 5, "s", [2]string{"", "/any"})
	backend := toService("s")
	any.Spec.DefaultBackend = &backend
	w.put(ingressesOf, any)
	want(map[string]string{"a.example/": "shop/young/0/0", "a.example/any": "shop/young/0/0", "b.example/any": "shop/any/0/0", "b.example/": "shop/any",
		"x.y.wild.example/": "shop/any", "x.y.wild.example/any": "shop/any/0/0", "x.wild.example/": "shop/wild/0/0"})
	w.remove(ingressesOf, ingress("young", 9, "s"))
	want(map[string]string{"a.example/": "shop/any", "a.example/any": "shop/any/0/0", "a.example/same": "shop/old/0/0"})
	w.remove(ingressesOf, any)
	want(map[string]string{"a.example/": "", "b.example/": "", "x.wild.example/": "shop/wild/0/0"})
	w.remove(ingressesOf, ingress("old", 1, "s"))
	w.remove(ingressesOf, ingress("wild", 2, "s"))
	want(map[string]string{"a.example/": "nobody"})
	if n := w.now.Backends().Len(); n != 0 {
		t.Errorf("%d backends are left", n)
	}
}

func cut(at string) (host, path string, ok bool) {
	for i := range at {
		if at[i] == '/' {
			return at[:i], at[i:], true
		}
	}
	return at, "", false
}

// TestSiteCertificates holds which certificate a name gets, and that nothing is negotiated anew where none changed.
func TestSiteCertificates(t *testing.T) {
	w := newTown(t)
	w.put(servicesOf, service("s"))
	for _, n := range []string{"one", "two", "wild"} {
		w.put(secretsOf, keyPair(t, n, n))
	}
	w.put(ingressesOf, secured(ingress("two", 2, "s", [2]string{"a.example", "/"}), "two", "a.example", "b.example"))
	if w.shows("a.example") != "two" || w.shows("") != "two" || w.shows("c.example") != "two" {
		t.Error("the only certificate is not for all names")
	}
	w.put(ingressesOf, secured(ingress("one", 1, "s"), "one", "A.example"))
	w.put(ingressesOf, secured(ingress("wild", 3, "s"), "wild", "*.wild.example"))
	for name, want := range map[string]string{"a.example": "one", "A.example": "one", "b.example": "two", "": "one", "c.example": "one",
		"x.wild.example": "wild", "x.y.wild.example": "one"} {
		if got := w.shows(name); got != want {
			t.Errorf("%q is shown %s, want %s", name, got, want)
		}
	}
	end := func() *table.TLS {
		return w.now.Listener("ingress/192.0.2.1:443").Chain(netip.AddrPort{}, true, "").TLS
	}
	before := end()
	w.put(ingressesOf, secured(ingress("two", 2, "s", [2]string{"a.example", "/other"}), "two", "a.example", "b.example"))
	if end() != before {
		t.Error("a change of a path ends the sessions of TLS")
	}
	w.put(secretsOf, keyPair(t, "two", "new"))
	if got := w.shows("b.example"); got != "new" || end() == before {
		t.Errorf("a new certificate is not shown, but %s", got)
	}
	w.remove(secretsOf, keyPair(t, "one", "one"))
	if got := w.shows("a.example"); got != "new" {
		t.Errorf("when its secret is gone, a.example is shown %s", got)
	}
	for _, n := range []string{"one", "two", "wild"} {
		w.remove(ingressesOf, ingress(n, 1, "s"))
	}
	if got := w.shows("a.example"); got != "nobody" {
		t.Errorf("without ingresses, a.example is shown %s", got)
	}
}

// TestSiteAnew holds what came of many changes against what comes of all the ingresses at once.
func TestSiteAnew(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	w := newTown(t)
	var hosts = []string{"", "a.example", "b.example", "*.example", "*.a.example"}
	paths := []string{"/", "/x", "/x/y", "/z"}
	for i := range 3 {
		w.put(servicesOf, service(fmt.Sprint("s", i)))
		w.put(slicesOf, ends(fmt.Sprint("s", i), fmt.Sprintf("10.42.0.%d", i+1)))
		w.put(secretsOf, keyPair(t, fmt.Sprint("c", i), fmt.Sprint("c", i)))
	}
	for step := range 300 {
		name := fmt.Sprint("i", r.IntN(6))
		switch r.IntN(8) {
		case 0:
			if _, ok := client.Ingresses.Get(w.Snapshot(), "shop", name); ok {
				w.remove(ingressesOf, ingress(name, 0, ""))
			}
		case 1:
			s := service(fmt.Sprint("s", r.IntN(3)))
			if r.IntN(2) == 0 {
				s.Spec.Ports[0].Port = 81
			}
			w.put(servicesOf, s)
		case 2:
			n := fmt.Sprint("c", r.IntN(3))
			w.put(secretsOf, keyPair(t, n, fmt.Sprint(n, "-", step)))
		default:
			var rules [][2]string
			for range r.IntN(4) {
				rules = append(rules, [2]string{hosts[r.IntN(len(hosts))], paths[r.IntN(len(paths))]})
			}
			in := ingress(name, int64(r.IntN(3)), fmt.Sprint("s", r.IntN(3)), rules...)
			if r.IntN(4) == 0 {
				b := toService("s0")
				in.Spec.DefaultBackend = &b
			}
			if r.IntN(2) == 0 {
				secured(in, fmt.Sprint("c", r.IntN(4)), hosts[1+r.IntN(4)])
			}
			if r.IntN(8) == 0 {
				in.Spec.IngressClassName = nil
			}
			w.put(ingressesOf, in)
		}
		anew := &town{TB: t, Store: w.Store, now: &table.Table{}}
		anew.publisher = &Publisher{Client: w.Store, Serve: func(t *table.Table) map[string]error { anew.now = t; return nil }}
		anew.loop = IngressLoop(Config{Nodes: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Publisher: anew.publisher})
		all := slices.Collect(client.Ingresses.List(w.Snapshot(), ""))
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, i := range all {
			anew.pass(reconcile.Key{Namespace: i.Namespace, Name: i.Name})
		}
		if w.now == nil {
			w.now = &table.Table{}
		}
		for _, host := range []string{"a.example", "b.example", "c.example", "x.a.example", "x.y.a.example", "other"} {
			for _, path := range append(paths, "/x/y/z", "/zz") {
				if a, b := w.served(host, path), anew.served(host, path); a != b {
					t.Fatalf("seed %d, step %d: %s%s is for %q, and anew for %q", seed, step, host, path, a, b)
				}
			}
			if a, b := w.shows(host), anew.shows(host); a != b {
				t.Fatalf("seed %d, step %d: %s is shown %s, and anew %s", seed, step, host, a, b)
			}
		}
		if a, b := w.now.Backends().Len(), anew.now.Backends().Len(); a != b {
			t.Fatalf("seed %d, step %d: %d backends, and anew %d", seed, step, a, b)
		}
	}
}

// TestNoSocket holds that one ingress alone goes on trying to open what cannot be opened, and is told why.
func TestNoSocket(t *testing.T) {
	w := newTown(t)
	w.put(servicesOf, service("s"))
	w.refuse = errors.New("address in use")
	for i := range 3 {
		w.put(ingressesOf, ingress(fmt.Sprint("i", i), 1, "s", [2]string{"", "/"}))
	}
	key := reconcile.Key{Namespace: "shop", Name: "i0"}
	if len(w.wrong) != 1 || w.wrong[key] == nil {
		t.Fatalf("failed: %v", w.wrong)
	}
	if p := w.loop.Failed(w.Snapshot(), key, time.Now(), w.wrong[key]); len(p.Events) != 1 || p.Events[0].Message != "192.0.2.1:80: address in use" || len(p.Writes) != 1 {
		t.Errorf("it is told %+v", p.Events)
	}
	w.remove(ingressesOf, ingress("i0", 1, "s"))
	w.pass(key)
	if w.wrong[key] == nil {
		t.Error("nobody tries again")
	}
	w.refuse = nil
	if w.pass(key); len(w.wrong) != 0 {
		t.Errorf("failed: %v", w.wrong)
	}
}

// TestOlderEndpoints holds that passes that come in another order than what they saw bring back no endpoints that are gone.
func TestOlderEndpoints(t *testing.T) {
	w := newTown(t)
	w.put(servicesOf, service("s"))
	w.put(slicesOf, ends("s", "10.42.0.1"))
	plan, err := w.loop.Plan(w.Snapshot(), reconcile.Key{Namespace: "shop", Name: "none"}, time.Now())
	if err != nil || plan.Effect == nil {
		t.Fatal(plan, err)
	}
	in := ingress("i", 1, "s", [2]string{"", "/"})
	key := reconcile.Key{Namespace: "shop", Name: "i"}
	loop := w.loop
	w.loop.Inputs = nil // passes by hand
	w.put(ingressesOf, in)
	w.loop = loop
	early, err := w.loop.Plan(w.Snapshot(), key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	service := reconcile.Key{Resource: aboutService, Namespace: "shop", Name: "s"}
	first := planService(view{Snapshot: w.Snapshot()}, service).Effect.(*effect)
	w.put(slicesOf, ends("s", "10.42.0.2"))
	second := planService(view{Snapshot: w.Snapshot()}, service).Effect.(*effect)
	apply := func(e *effect) {
		if err := w.publisher.endpoints(e.service, e.rev, e.ports); err != nil {
			t.Fatal(err)
		}
	}
	apply(second) // nothing leads there yet
	if err := w.loop.Apply(context.Background(), key, early.Effect); err != nil {
		t.Fatal(err)
	}
	want := func() {
		t.Helper()
		b := w.now.Backend("shop/s:80")
		if b == nil || len(b.Endpoints) != 1 || b.Endpoints[0].Address.String() != "10.42.0.2:8080" {
			t.Errorf("requests go to %+v", b)
		}
	}
	want()
	apply(first)
	want()
}

// TestIngressEffects holds that an ingress of another's class, or none's, is nothing here.
func TestIngressEffects(t *testing.T) {
	w := newTown(t)
	w.put("ingressclasses.networking.k8s.io", &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: networkingv1.IngressClassSpec{Controller: "example.com/other"}})
	w.put(servicesOf, service("s"))
	in := ingress("i", 1, "s", [2]string{"", "/"})
	other := "other"
	in.Spec.IngressClassName = &other
	w.put(ingressesOf, in)
	if w.now != nil {
		t.Error("an ingress of another class is served")
	}
	in = ingress("i", 1, "s", [2]string{"", "/"})
	w.put(ingressesOf, in)
	if got := w.served("a", "/"); got != "shop/i/0/0" {
		t.Errorf("served by %q", got)
	}
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "coracle"}}
	w.remove("ingressclasses.networking.k8s.io", class)
	if got := w.served("a", "/"); got != "nobody" {
		t.Errorf("without its class served by %q", got)
	}
}
