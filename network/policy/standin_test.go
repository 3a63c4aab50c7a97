package policy

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/linux/link"
)

// TestGatewayIsNotTheNode connects to a pod from the address of the node's gateways: policies hold it off, which they do not the node, and
// let it in by its namespace and labels. What was open is cut.
func TestGatewayIsNotTheNode(t *testing.T) {
	l := standardLab(t, "701g", "10.255.86.0/28")
	l.namespace(StandInNamespace, map[string]string{"kubernetes.io/metadata.name": StandInNamespace})
	host, err := link.HostAddr()
	if err != nil {
		t.Fatal(err)
	}
	l.put("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: labNode}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.255.86.0/28"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host.String()}}}})
	source := GatewayAddress(netip.MustParsePrefix("10.255.86.0/28"))
	if err := link.AddAddress(source); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.RemoveAddress(source) })
	to := l.members["x/a"].addrs[0]
	connect := func(from netip.Addr, wait time.Duration) (int, bool) {
		fd, err := open(to, protoTCP)
		if err == nil && from.IsValid() {
			err = unix.Bind(fd, sockaddr(from, 0))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		ok, err := ask(fd, to, protoTCP, 80, time.Now().Add(wait))
		if err != nil {
			t.Fatal(err)
		}
		return fd, ok
	}
	decided := func(want bool) {
		t.Helper()
		v, err := Read(l.store.Snapshot()).Evaluate(Flow{From: Peer{Namespace: StandInNamespace, Pod: GatewayStandIn}, To: Peer{Namespace: "x", Pod: "a"}, Port: 80})
		if err != nil || v.Allowed != want {
			t.Errorf("decided %v, %v; want %v", v.Allowed, err, want)
		}
	}
	l.settled()
	decided(true)
	fd, ok := connect(source, patience)
	if !ok || !exchange(fd, patience) {
		t.Fatal("without a policy the gateway does not get through")
	}
	l.policy(denyAll("x", "deny"))
	l.settled()
	decided(false)
	if exchange(fd, impatience) {
		t.Error("an open connection of the gateway goes on")
	}
	if _, ok := connect(source, impatience); ok {
		t.Error("the gateway gets through a policy that denies all")
	}
	if _, ok := connect(netip.Addr{}, patience); !ok {
		t.Error("the node does not reach its pod")
	}
	np := denyAll("x", "allow")
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": StandInNamespace}},
		PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/name": GatewayStandIn}}}}}}
	l.policy(np)
	l.settled()
	decided(true)
	if _, ok := connect(source, patience); !ok {
		t.Error("the gateway does not get through a policy that lets it in")
	}
}
