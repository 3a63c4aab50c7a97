package service

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// table is a Balancer that remembers.
type table map[string][]netip.AddrPort

func (t table) Set(id string, _ []nft.Front, backends []netip.AddrPort, _ time.Duration) error {
	t[id] = backends
	return nil
}

func (t table) Remove(id string) error {
	delete(t, id)
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
	return memory.New(client.StoreOptions(api.NewRegistry(append(core.Kinds(), discovery.Kinds()...)...), 0))
}

func webService() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIP: "10.43.0.7", ClusterIPs: []string{"10.43.0.7"}, Type: corev1.ServiceTypeNodePort,
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}}
}

// webSlice has one endpoint for each of the given conditions: "ready", "no", or "ending" (serving, but terminating).
func webSlice(conditions ...string) *discoveryv1.EndpointSlice {
	name, tcp, port := "http", corev1.ProtocolTCP, int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}}}
	for i, c := range conditions {
		ready, serving, ending := c == "ready", c != "no", c == "ending"
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 2)}).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &ending}})
	}
	return slice
}

func TestPlan(t *testing.T) {
	for name, test := range map[string]struct {
		conditions []string
		want       []string
	}{
		"ready ones serve":                       {[]string{"ready", "no", "ready"}, []string{"10.42.0.2:8080", "10.42.0.4:8080"}},
		"ending ones wait behind ready ones":     {[]string{"ready", "ending"}, []string{"10.42.0.2:8080"}},
		"ending ones serve if there is no other": {[]string{"no", "ending"}, []string{"10.42.0.3:8080"}},
		"none":                                   {[]string{"no"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore()
			put(t, s, "services", webService())
			put(t, s, "endpointslices.discovery.k8s.io", webSlice(test.conditions...))
			ports := Plan(s.Snapshot(), "shop", "web", nil)
			if len(ports) != 2 {
				t.Fatalf("%d ports, want 2", len(ports))
			}
			var got []string
			for _, b := range ports[0].Backends {
				got = append(got, b.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("backends %v, want %v", got, test.want)
			}
			if fronts := ports[0].Fronts; len(fronts) != 2 || fronts[0].Port != 80 || fronts[1].Port != 30080 || fronts[1].Addr.IsValid() {
				t.Errorf("fronts %v", fronts)
			}
			if len(ports[1].Backends) != 0 {
				t.Errorf("a port that no slice has leads to %v", ports[1].Backends)
			}
		})
	}
	s := newStore()
	put(t, s, "services", webService())
	if ports := Plan(s.Snapshot(), "shop", "web", map[netip.Addr]bool{netip.MustParseAddr("10.43.0.7"): true}); len(ports) != 0 {
		t.Errorf("an address that the node answers itself is balanced: %v", ports)
	}
	headless := webService()
	headless.Spec.ClusterIP, headless.Spec.ClusterIPs = "None", []string{"None"}
	put(t, s, "services", headless)
	if ports := Plan(s.Snapshot(), "shop", "web", nil); len(ports) != 0 {
		t.Errorf("a headless service is balanced: %v", ports)
	}
}

// TestSweep loses the deletion of a Service, as a history that was cut does.
func TestSweep(t *testing.T) {
	s, rules := newStore(), table{}
	loop := Loop(rules)
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
	put(t, s, "services", webService())
	pass(reconcile.Key{Namespace: "shop", Name: "web"})
	pass(loop.Always[0])
	if len(rules) != 2 {
		t.Fatalf("rules %v, want those of two ports", rules)
	}
	if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "services", Namespace: "shop", Name: "web"}, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
	pass(loop.Always[0])
	if len(rules) != 0 {
		t.Errorf("rules of a Service that is gone: %v", rules)
	}
}
