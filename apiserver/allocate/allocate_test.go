package allocate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

var kind = &api.Kind{Kind: "Service", Resource: "services", Namespaced: true, Versions: []api.Version{{
	Name: "v1", Hub: true, New: func() runtime.Object { return &corev1.Service{} }, NewList: func() runtime.Object { return &corev1.ServiceList{} },
}}}

// bed is an allocator with a store to commit to.
type bed struct {
	*Allocator
	t     *testing.T
	store store.Store
}

func newBed(t *testing.T, ranges ...string) *bed {
	st := memory.New(client.StoreOptions(api.NewRegistry(kind), 0))
	t.Cleanup(func() { st.Close() })
	var prefixes []netip.Prefix
	for _, r := range ranges {
		prefixes = append(prefixes, netip.MustParsePrefix(r))
	}
	a, err := New(st, prefixes, [2]int{30000, 30039})
	if err != nil {
		t.Fatal(err)
	}
	return &bed{a, t, st}
}

// try allocates and, if that went well, commits.
func (b *bed) try(svc *corev1.Service, old *corev1.Service) error {
	r := &admission.Request{Operation: admission.Create, Kind: kind, Object: svc}
	if old != nil {
		r.Operation, r.Old = admission.Update, old
	}
	release, err := b.Allocate(r)
	if release != nil {
		defer release()
	}
	if err != nil {
		return err
	}
	_, _, cerr := b.store.Commit(b.t.Context(), store.Txn{Ops: []store.Op{{
		Key: store.Key{Resource: "services", Namespace: "x", Name: svc.Name}, Object: svc, Expect: store.ExpectAny}}})
	if cerr != nil {
		b.t.Fatal(cerr)
	}
	return nil
}

func service(name string, t corev1.ServiceType, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}, Spec: corev1.ServiceSpec{Type: t, Selector: map[string]string{"a": "b"}}}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: p, Protocol: corev1.ProtocolTCP})
	}
	return s
}

func TestClusterIPs(t *testing.T) {
	b := newBed(t, "10.0.0.0/27")
	seen := map[string]bool{}
	for i := range 30 { // 32 less network and broadcast
		s := service("s"+string(rune('A'+i)), corev1.ServiceTypeClusterIP, 80)
		if err := b.try(s, nil); err != nil {
			t.Fatalf("service %d: %v", i, err)
		}
		if seen[s.Spec.ClusterIP] || s.Spec.ClusterIP == "10.0.0.0" || s.Spec.ClusterIP == "10.0.0.31" || len(s.Spec.ClusterIPs) != 1 || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
			t.Fatalf("service %d: %+v", i, s.Spec)
		}
		seen[s.Spec.ClusterIP] = true
		// The first 16 are given out last.
		if last := netip.MustParseAddr(s.Spec.ClusterIP).As4()[3]; i < 14 && last <= 16 {
			t.Fatalf("service %d got %s from the lower band", i, s.Spec.ClusterIP)
		}
	}
	if err := b.try(service("full", corev1.ServiceTypeClusterIP, 80), nil); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Fatalf("full range: %v", err)
	}
	taken := service("taken", corev1.ServiceTypeClusterIP, 80)
	taken.Spec.ClusterIP = "10.0.0.5"
	want := `Service "taken" is invalid: spec.clusterIPs: Invalid value: ["10.0.0.5"]: failed to allocate IP 10.0.0.5: provided IP is already allocated`
	if err := b.try(taken, nil); err == nil || err.Error() != want {
		t.Fatalf("taken: %v", err)
	}
	// What is deleted is free again.
	if _, _, err := b.store.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "services", Namespace: "x", Name: "sA"}, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Fatal(err)
	}
	if err := b.try(service("again", corev1.ServiceTypeClusterIP, 80), nil); err != nil {
		t.Fatal(err)
	}
}

func TestTwoAtOnce(t *testing.T) {
	b := newBed(t, "10.0.0.0/24")
	first := service("a", corev1.ServiceTypeClusterIP, 80)
	first.Spec.ClusterIP = "10.0.0.9"
	release, err := b.Allocate(&admission.Request{Operation: admission.Create, Kind: kind, Object: first})
	if err != nil {
		t.Fatal(err)
	}
	second := service("b", corev1.ServiceTypeClusterIP, 80)
	second.Spec.ClusterIP = "10.0.0.9"
	if err := b.try(second, nil); err == nil {
		t.Fatal("an address that is held was given out")
	}
	release() // the first was not committed after all
	second.Spec.ClusterIPs, second.Spec.IPFamilies = nil, nil
	if err := b.try(second, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDualStack(t *testing.T) {
	b := newBed(t, "10.0.0.0/24", "fd00::/112")
	s := service("a", corev1.ServiceTypeClusterIP, 80)
	prefer := corev1.IPFamilyPolicyPreferDualStack
	s.Spec.IPFamilyPolicy = &prefer
	if err := b.try(s, nil); err != nil {
		t.Fatal(err)
	}
	if len(s.Spec.ClusterIPs) != 2 || s.Spec.IPFamilies[0] != corev1.IPv4Protocol || !strings.Contains(s.Spec.ClusterIPs[1], ":") {
		t.Fatalf("%+v", s.Spec)
	}
	down := s.DeepCopy()
	single := corev1.IPFamilyPolicySingleStack
	down.Spec.IPFamilyPolicy = &single
	if err := b.try(down, s); err != nil || len(down.Spec.ClusterIPs) != 1 {
		t.Fatalf("%+v, %v", down.Spec, err)
	}
	one := newBed(t, "10.0.0.0/24")
	require := corev1.IPFamilyPolicyRequireDualStack
	s = service("b", corev1.ServiceTypeClusterIP, 80)
	s.Spec.IPFamilyPolicy = &require
	if err := one.try(s, nil); err == nil || !strings.Contains(err.Error(), "this cluster is not configured for dual-stack services") {
		t.Fatalf("dual stack on one family: %v", err)
	}
	headless := service("c", corev1.ServiceTypeClusterIP, 80)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	if err := b.try(headless, nil); err != nil || len(headless.Spec.ClusterIPs) != 1 || headless.Spec.ClusterIPs[0] != "None" {
		t.Fatalf("headless: %+v, %v", headless.Spec, err)
	}
}

// TestReservedAddresses: what others keep by an IPAddress is not given out; what only shows a service's address is no obstacle.
func TestReservedAddresses(t *testing.T) {
	b := newBed(t, "10.0.0.0/28")
	keep := func(name, manager string) {
		ip := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{networkingv1.LabelManagedBy: manager}}}
		if _, _, err := b.store.Commit(t.Context(), store.Txn{Ops: []store.Op{{
			Key: store.Key{Resource: "ipaddresses.networking.k8s.io", Name: name}, Object: ip, Expect: store.ExpectAny}}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= 12; i++ {
		keep(fmt.Sprintf("10.0.0.%d", i), "somebody")
	}
	keep("10.0.0.13", "ipallocator.k8s.io")
	asked := service("asked", corev1.ServiceTypeClusterIP, 80)
	asked.Spec.ClusterIP = "10.0.0.3"
	if err := b.try(asked, nil); err == nil || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("a reserved address was given out: %v", err)
	}
	for i := range 3 {
		s := service(fmt.Sprint("s", i), corev1.ServiceTypeClusterIP, 80)
		err := b.try(s, nil)
		if ip := s.Spec.ClusterIP; i < 2 && (err != nil || ip != "10.0.0.13" && ip != "10.0.0.14") || i == 2 && err == nil {
			t.Errorf("service %d: %q %v", i, ip, err)
		}
	}
}

// TestServiceCIDRs: ranges beside the cluster's own are used while they are ready, for addresses that are asked for, and for others once
// the first is full.
func TestServiceCIDRs(t *testing.T) {
	b := newBed(t, "10.0.0.0/30")
	put := func(name string, status metav1.ConditionStatus, ranges ...string) {
		_, _, err := b.store.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "servicecidrs.networking.k8s.io", Name: name}, Expect: store.ExpectAny,
			Object: &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges},
				Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{Type: "Ready", Status: status}}}}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	ask := func(name, ip string) (string, error) {
		svc := service(name, corev1.ServiceTypeClusterIP, 80)
		svc.Spec.ClusterIP = ip
		err := b.try(svc, nil)
		return svc.Spec.ClusterIP, err
	}
	const none = "the provided network does not match the current range"
	if _, err := ask("early", "203.0.113.2"); err == nil || !strings.Contains(err.Error(), none) {
		t.Error(err)
	}
	put("kubernetes", "True", "192.0.2.0/24") // tells what there is, and makes nothing
	put("more", "False", "203.0.113.0/29", "2001:db8::/64")
	if _, err := ask("early", "203.0.113.2"); err == nil || !strings.Contains(err.Error(), none) {
		t.Error(err)
	}
	put("more", "True", "203.0.113.0/29", "2001:db8::/64")
	for ip, want := range map[string]string{"203.0.113.2": "", "203.0.113.7": none, "203.0.113.0": none, "192.0.2.2": none} {
		if got, err := ask("asked"+ip, ip); want == "" && (err != nil || got != ip) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %s %v", ip, got, err)
		}
	}
	seen := map[string]bool{"203.0.113.2": true}
	for i := range 7 { // two of the cluster's, five more
		got, err := ask(fmt.Sprint("any", i), "")
		if err != nil || seen[got] || i < 2 != strings.HasPrefix(got, "10.0.0.") {
			t.Errorf("%d: %s %v", i, got, err)
		}
		seen[got] = true
	}
	if got, err := ask("full", ""); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("%s %v", got, err)
	}
}

func TestNodePorts(t *testing.T) {
	b := newBed(t, "10.0.0.0/24")
	s := service("a", corev1.ServiceTypeNodePort, 80, 443)
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolUDP})
	if err := b.try(s, nil); err != nil {
		t.Fatal(err)
	}
	p := s.Spec.Ports
	if p[0].NodePort == 0 || p[0].NodePort == p[1].NodePort || p[0].NodePort != p[2].NodePort {
		t.Fatalf("ports %+v", p)
	}
	taken := service("b", corev1.ServiceTypeNodePort, 80)
	taken.Spec.Ports[0].NodePort = p[1].NodePort
	if err := b.try(taken, nil); err == nil || !strings.Contains(err.Error(), "provided port is already allocated") {
		t.Fatalf("taken: %v", err)
	}
	far := service("c", corev1.ServiceTypeNodePort, 80)
	far.Spec.Ports[0].NodePort = 80
	if err := b.try(far, nil); err == nil || !strings.Contains(err.Error(), "provided port is not in the valid range. The range of valid ports is 30000-30039") {
		t.Fatalf("out of range: %v", err)
	}
	// An update that leaves the ports out keeps them; another type drops them.
	again := service("a", corev1.ServiceTypeNodePort, 80, 443)
	if err := b.try(again, s); err != nil || again.Spec.Ports[0].NodePort != p[0].NodePort || again.Spec.ClusterIP != s.Spec.ClusterIP {
		t.Fatalf("update: %+v, %v", again.Spec, err)
	}
	plain := again.DeepCopy()
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	if err := b.try(plain, again); err != nil || plain.Spec.Ports[0].NodePort != 0 {
		t.Fatalf("to ClusterIP: %+v, %v", plain.Spec, err)
	}
	lb := service("lb", corev1.ServiceTypeLoadBalancer, 80)
	lb.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	if err := b.try(lb, nil); err != nil || lb.Spec.HealthCheckNodePort == 0 || lb.Spec.HealthCheckNodePort == lb.Spec.Ports[0].NodePort {
		t.Fatalf("load balancer: %+v, %v", lb.Spec, err)
	}
}
