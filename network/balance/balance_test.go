package balance

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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/discovery"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

type rig struct {
	t    *testing.T
	s    store.Store
	loop reconcile.Loop
}

func newRig(t *testing.T, c Config) *rig {
	kinds := slices.Concat(core.Kinds(), discovery.Kinds())
	return &rig{t, memory.New(client.StoreOptions(api.NewRegistry(kinds...), 0)), Loop(c)}
}

func (r *rig) put(resource string, obj api.Object) {
	r.t.Helper()
	key := store.Key{Resource: resource, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if _, _, err := r.s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: obj, Expect: store.ExpectAny}}}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) service(name string, change func(*corev1.Service)) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	if change != nil {
		change(svc)
	}
	r.put("services", svc)
}

func (r *rig) node(name, ip string, ready bool, labels map[string]string) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	r.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}},
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}}})
}

// settle runs passes for a Service until one wants nothing, and gives the reasons of their events.
func (r *rig) settle(name string) (events []string) {
	r.t.Helper()
	for range 10 {
		p, err := r.loop.Plan(r.s.Snapshot(), reconcile.Key{Namespace: "shop", Name: name}, time.Time{})
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range p.Events {
			events = append(events, e.Reason+": "+e.Message)
		}
		if len(p.Writes) == 0 {
			return events
		}
		for _, w := range p.Writes {
			svc := w.Object.(*corev1.Service)
			if now, _ := client.Services.Get(r.s.Snapshot(), "shop", name); w.Subresource == "status" {
				svc.Finalizers = now.Finalizers
			} else {
				svc.Status = now.Status
			}
			r.put("services", svc)
		}
	}
	r.t.Fatalf("%s does not settle", name)
	return nil
}

func (r *rig) addresses(name string) string {
	svc, ok := client.Services.Get(r.s.Snapshot(), "shop", name)
	if !ok {
		return "gone"
	}
	var all []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP {
			r.t.Errorf("%s: mode %v", in.IP, in.IPMode)
		}
		all = append(all, in.IP)
	}
	return strings.Join(append(all, svc.Finalizers...), " ")
}

func (r *rig) want(name, want string, events ...string) {
	r.t.Helper()
	if got := r.settle(name); !slices.Equal(got, events) {
		r.t.Errorf("%s: events %q, want %q", name, got, events)
	}
	if got := r.addresses(name); got != want {
		r.t.Errorf("%s has %q, want %q", name, got, want)
	}
}

const (
	ensuring = "EnsuringLoadBalancer: Ensuring load balancer"
	ensured  = "EnsuredLoadBalancer: Ensured load balancer"
	failed   = "SyncLoadBalancerFailed: Error syncing load balancer: failed to ensure load balancer: "
)

func TestPool(t *testing.T) {
	pool, err := ParsePool("192.0.2.0/31, 2001:db8::7")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Config{Pool: pool})
	r.service("a", nil)
	r.want("a", "192.0.2.0 "+finalizer, ensuring, ensured)
	r.service("b", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.0" })
	r.want("b", finalizer, ensuring, failed+"192.0.2.0 belongs to service shop/a")
	r.service("c", func(s *corev1.Service) {
		s.Annotations = map[string]string{AddressesAnnotation: "2001:db8::7"}
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	})
	r.want("c", "2001:db8::7 192.0.2.1 "+finalizer, ensuring, ensured)
	r.service("d", nil)
	r.want("d", finalizer, ensuring, failed+"no address of the pool is free")
	r.service("e", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "198.51.100.1" })
	r.want("e", finalizer, ensuring, failed+"198.51.100.1 is not in the pool")
	r.service("other", func(s *corev1.Service) { class := "example.com/lb"; s.Spec.LoadBalancerClass = &class })
	r.want("other", "")
	r.service("ours", func(s *corev1.Service) {
		class := Class
		s.Spec.LoadBalancerClass = &class
		s.Spec.LoadBalancerIP = "192.0.2.9"
	})
	r.want("ours", finalizer, ensuring, failed+"192.0.2.9 is not in the pool")

	// One that is no load balancer any more gives back what it had; the next one gets it.
	now, _ := client.Services.Get(r.s.Snapshot(), "shop", "a")
	plain := now.DeepCopy()
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	r.put("services", plain)
	r.want("a", "", "DeletingLoadBalancer: Deleting load balancer", "DeletedLoadBalancer: Deleted load balancer")
	r.want("d", "192.0.2.0 "+finalizer, ensured)
}

func TestNodes(t *testing.T) {
	r := newRig(t, Config{Bears: func(n *corev1.Node) bool { return n.Labels["simulated"] == "" }})
	r.node("n1", "203.0.113.1", true, nil)
	r.node("n2", "203.0.113.2", true, nil)
	r.node("n3", "203.0.113.3", false, nil)
	r.node("n4", "203.0.113.4", true, map[string]string{excluded: ""})
	r.node("n5", "203.0.113.5", true, map[string]string{"simulated": "true"})
	r.service("a", nil)
	r.want("a", "203.0.113.1 203.0.113.2 "+finalizer, ensuring, ensured)
	r.service("b", nil)
	r.want("b", finalizer, ensuring, failed+"port 80/TCP of the nodes belongs to service shop/a")
	r.service("c", func(s *corev1.Service) {
		s.Spec.Ports[0].Port, s.Spec.ExternalTrafficPolicy = 81, corev1.ServiceExternalTrafficPolicyLocal
	})
	on := "n2"
	r.put("endpointslices.discovery.k8s.io", &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "c-1", Labels: map[string]string{discoveryv1.LabelServiceName: "c"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &on}}})
	r.want("c", "203.0.113.2 "+finalizer, ensuring, ensured)
	r.node("n2", "203.0.113.2", false, nil)
	r.want("a", "203.0.113.1 "+finalizer, ensured)
}

// TestBearerMovesAsLittleAsPossible holds that the failure of a node moves its addresses alone, and that all nodes have a share.
func TestBearerMovesAsLittleAsPossible(t *testing.T) {
	nodes := []string{"n1", "n2", "n3"}
	share := map[string]int{}
	a := netip.MustParseAddr("192.0.2.0")
	for range 256 {
		before := Bearer(a, nodes)
		share[before]++
		after := Bearer(a, []string{"n1", "n3"})
		if before != "n2" && after != before {
			t.Fatalf("%s moved from %s to %s although n2 failed", a, before, after)
		}
		a = a.Next()
	}
	for _, n := range nodes {
		if share[n] < 40 {
			t.Errorf("shares %v", share)
		}
	}
	if Bearer(a, nil) != "" {
		t.Error("nobody bears addresses without nodes")
	}
}

func TestAnnounced(t *testing.T) {
	pool, _ := ParsePool("192.0.2.0/24")
	c := Config{Pool: pool}
	r := newRig(t, c)
	r.node("n1", "203.0.113.1", true, nil)
	r.node("n2", "203.0.113.2", true, nil)
	for i := range 20 {
		r.service(fmt.Sprint("s", i), nil)
		r.settle(fmt.Sprint("s", i))
	}
	one, two := c.Announced(r.s.Snapshot(), "n1"), c.Announced(r.s.Snapshot(), "n2")
	if len(one)+len(two) != 20 || len(one) == 0 || len(two) == 0 {
		t.Errorf("%d and %d addresses of 20", len(one), len(two))
	}
	r.node("n2", "203.0.113.2", false, nil)
	if all := c.Announced(r.s.Snapshot(), "n1"); len(all) != 20 {
		t.Errorf("after the other node failed: %d addresses of 20", len(all))
	}
}

func TestParsePool(t *testing.T) {
	for _, wrong := range []string{"x", "192.0.2.1/24", "10.0.0.0/8", "::ffff:192.0.2.1"} {
		if p, err := ParsePool(wrong); err == nil {
			t.Errorf("%q was read as %v", wrong, p)
		}
	}
	if p, err := ParsePool(""); err != nil || p != nil {
		t.Errorf("none: %v, %v", p, err)
	}
}
