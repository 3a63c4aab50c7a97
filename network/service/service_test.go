package service

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	"coracle.dev/coracle/api/networking"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// table is a Balancer that remembers.
type table struct {
	groups  map[string]*nft.Group
	virtual []netip.Prefix
	applied int
}

func (t *table) Apply(changes map[string]*nft.Group) error {
	t.applied++
	for id, g := range changes {
		if g == nil {
			delete(t.groups, id)
		} else {
			t.groups[id] = g
		}
	}
	return nil
}

func (t *table) SetVirtual(all []netip.Prefix) error {
	t.virtual = all
	return nil
}

func put(t *testing.T, s store.Store, resource string, obj api.Object) {
	t.Helper()
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
}

func newStore() store.Store {
	return memory.New(client.StoreOptions(api.NewRegistry(slices.Concat(core.Kinds(), discovery.Kinds(), networking.Kinds())...), 0))
}

func webService(change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.43.0.7", ClusterIPs: []string{"10.43.0.7"}, Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		ExternalIPs: []string{"198.51.100.1"},
		Ports:       []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}}}}
	if change != nil {
		change(svc)
	}
	return svc
}

// webSlice has an endpoint for each word: "ready", "no", or "ending" (serving, but terminating); with "@node" for where it is (n1 is
// the own node), "zZONE" and "nNODE" for hints.
func webSlice(t *testing.T, words ...string) *discoveryv1.EndpointSlice {
	name, tcp, port := "http", corev1.ProtocolTCP, int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}}}
	for i, w := range words {
		parts := strings.Fields(w)
		ready, serving, ending := parts[0] == "ready", parts[0] != "no", parts[0] == "ending"
		e := discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)}).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &ending}}
		for _, p := range parts[1:] {
			value := p[1:]
			switch p[0] {
			case '@':
				e.NodeName = &value
			case 'z':
				e.Hints = hints(e.Hints)
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
			case 'n':
				e.Hints = hints(e.Hints)
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
			default:
				t.Fatalf("endpoint %q", w)
			}
		}
		slice.Endpoints = append(slice.Endpoints, e)
	}
	return slice
}

func hints(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil {
		h = &discoveryv1.EndpointHints{}
	}
	return h
}

// text shows a group as "front > last bytes of backends, source".
func text(g *nft.Group) []string {
	var out []string
	for _, r := range g.Routes {
		front := fmt.Sprintf("%s:%d", r.Front.Addr, r.Front.Port)
		if !r.Front.Addr.IsValid() {
			front = fmt.Sprintf("node%d:%d", r.Front.Family, r.Front.Port)
		}
		if r.Front.Near {
			front = "near " + front
		}
		to := ""
		for _, k := range g.Pools[r.Pool] {
			b := k.Addr.Addr().As4()
			to += fmt.Sprint(" ", b[3])
		}
		if to == "" {
			to = []string{" pass", " refuse", " drop"}[r.Empty]
		}
		line := front + " >" + to + []string{"", ", hide outside", ", hide"}[r.Source]
		if r.Allowed != nil {
			line += fmt.Sprint(", only ", r.Allowed)
		}
		out = append(out, line)
	}
	return out
}

func TestPlan(t *testing.T) {
	local := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	inLocal := func(s *corev1.Service) {
		policy := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy, s.Spec.Type = &policy, corev1.ServiceTypeClusterIP
	}
	plain := func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 0 }
	for name, test := range map[string]struct {
		change func(*corev1.Service)
		words  []string
		want   string
		health Health
	}{
		"all fronts": {nil, []string{"ready", "no", "ready @n1"},
			"10.43.0.7:80 > 2 4, hide outside; node4:30080 > 2 4, hide; 192.0.2.1:80 > 2 4, hide", Health{}},
		"ending ones wait behind ready ones":     {plain, []string{"ready", "ending"}, "10.43.0.7:80 > 2, hide outside", Health{}},
		"ending ones serve if there is no other": {plain, []string{"no", "ending"}, "10.43.0.7:80 > 3, hide outside", Health{}},
		"none is refused":                        {plain, []string{"no"}, "10.43.0.7:80 > refuse, hide outside", Health{}},
		"external policy Local": {func(s *corev1.Service) { local(s); s.Spec.HealthCheckNodePort = 31000 }, []string{"ready @n1", "ready @n2"},
			"10.43.0.7:80 > 2 3, hide outside; near node4:30080 > 2 3, hide outside; node4:30080 > 2; near 192.0.2.1:80 > 2 3, hide outside; 192.0.2.1:80 > 2", Health{31000, 1}},
		"external policy Local without a local one": {func(s *corev1.Service) { local(s); s.Spec.HealthCheckNodePort = 31000 }, []string{"ready @n2"},
			"10.43.0.7:80 > 2, hide outside; near node4:30080 > 2, hide outside; node4:30080 > drop; near 192.0.2.1:80 > 2, hide outside; 192.0.2.1:80 > drop", Health{31000, 0}},
		"external policy Local without any": {local, []string{"no @n1"},
			"10.43.0.7:80 > refuse, hide outside; near node4:30080 > refuse, hide outside; node4:30080 > refuse; near 192.0.2.1:80 > refuse, hide outside; 192.0.2.1:80 > refuse", Health{}},
		"a local ending one serves Local although there is a ready one elsewhere": {inLocal, []string{"ending @n1", "ready @n2"},
			"10.43.0.7:80 > 2, hide outside; node4:30080 > 3, hide", Health{}},
		"internal policy Local": {inLocal, []string{"ready @n2"}, "10.43.0.7:80 > drop, hide outside; node4:30080 > 2, hide", Health{}},
		"source ranges":         {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.0/24"} }, []string{"ready"}, "10.43.0.7:80 > 2, hide outside; node4:30080 > 2, hide; 192.0.2.1:80 > 2, hide, only [203.0.113.0/24]", Health{}},
		"an address that a proxy answers": {func(s *corev1.Service) {
			m := corev1.LoadBalancerIPModeProxy
			s.Status.LoadBalancer.Ingress[0].IPMode = &m
		}, []string{"ready"}, "10.43.0.7:80 > 2, hide outside; node4:30080 > 2, hide", Health{}},
		"zone hints":                               {plain, []string{"ready za", "ready zb", "ready za"}, "10.43.0.7:80 > 2 4, hide outside", Health{}},
		"zone hints, one without":                  {plain, []string{"ready za", "ready"}, "10.43.0.7:80 > 2 3, hide outside", Health{}},
		"zone hints, none for this one":            {plain, []string{"ready zb", "ready zc"}, "10.43.0.7:80 > 2 3, hide outside", Health{}},
		"zone hints of one that is not ready":      {plain, []string{"ready za", "no zb", "ending"}, "10.43.0.7:80 > 2, hide outside", Health{}},
		"node hints go before those of zones":      {plain, []string{"ready za nn1", "ready za nn2"}, "10.43.0.7:80 > 2, hide outside", Health{}},
		"node hints for others leave the zone's":   {plain, []string{"ready za nn3", "ready zb nn2"}, "10.43.0.7:80 > 2, hide outside", Health{}},
		"ending ones do not need hints to step in": {plain, []string{"ending zb", "no za"}, "10.43.0.7:80 > 2, hide outside", Health{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			put(t, s, "nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}})
			put(t, s, "services", webService(test.change))
			put(t, s, "endpointslices.discovery.k8s.io", webSlice(t, test.words...))
			w := Options{NodeName: "n1"}.Plan(s.Snapshot(), "shop", "web")
			if len(w.Ports) != 1 {
				t.Fatalf("%d ports, want 1", len(w.Ports))
			}
			if got := strings.Join(text(w.Ports[0].Group), "; "); got != test.want {
				t.Errorf("\n got %s\nwant %s", got, test.want)
			}
			if w.Health != test.health {
				t.Errorf("health %+v, want %+v", w.Health, test.health)
			}
		})
	}
	s := newStore()
	put(t, s, "services", webService(nil))
	if w := (Options{Served: []netip.Addr{netip.MustParseAddr("10.43.0.7")}}).Plan(s.Snapshot(), "shop", "web"); len(w.Ports) != 0 {
		t.Errorf("an address that the node answers itself is balanced: %v", w.Ports)
	}
	if w := (Options{ExternalIPs: true}).Plan(s.Snapshot(), "shop", "web"); !strings.Contains(strings.Join(text(w.Ports[0].Group), "; "), "198.51.100.1:80 > refuse, hide") {
		t.Errorf("external addresses that were asked for: %v", text(w.Ports[0].Group))
	}
	put(t, s, "services", webService(func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }))
	if w := (Options{}).Plan(s.Snapshot(), "shop", "web"); len(w.Ports) != 0 {
		t.Errorf("a headless service is balanced: %v", w.Ports)
	}
}

// TestSweep loses the deletion of a Service, as a history that was cut does.
func TestSweep(t *testing.T) {
	s, rules := newStore(), &table{groups: map[string]*nft.Group{}}
	loop := Loop(rules, nil, Options{})
	pass := func(key reconcile.Key) {
		t.Helper()
		plan, err := loop.Plan(s.Snapshot(), key, time.Time{})
		if err == nil {
			err = loop.Apply(context.Background(), key, plan.Effect)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "services", webService(nil))
	put(t, s, "servicecidrs.networking.k8s.io", cidr("10.43.0.0/16"))
	for _, key := range loop.Always {
		pass(key)
	}
	if len(rules.groups) != 1 || !slices.Equal(rules.virtual, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}) {
		t.Fatalf("rules %v, ranges %v", rules.groups, rules.virtual)
	}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "services", Namespace: "shop", Name: "web"}, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
	pass(sweep)
	if len(rules.groups) != 0 {
		t.Errorf("rules of a Service that is gone: %v", rules.groups)
	}
}

func cidr(text string) api.Object {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{text}}}
}
