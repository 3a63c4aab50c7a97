package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func machine(age int, name string, addrs []string, ranges ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(1000-age), 0))},
		Spec: corev1.NodeSpec{PodCIDRs: ranges}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestPeers(t *testing.T) {
	nodes := []*corev1.Node{
		machine(9, "self", []string{"192.168.0.1"}, "10.42.0.0/24"),
		machine(8, "b", []string{"fd77::2", "192.168.0.2"}, "10.42.1.0/24", "fd42::/64"),
		machine(7, "thief", []string{"192.168.0.3"}, "10.42.0.128/25"),
		machine(6, "everything", []string{"192.168.0.4"}, "0.0.0.0/0"),
		machine(5, "simulated", []string{"192.168.0.5"}, "100.64.0.0/24"),
		machine(4, "new", []string{"192.168.0.6"}),
		machine(3, "nowhere", nil, "10.42.2.0/24"),
		machine(2, "local", []string{"127.0.0.1"}, "10.42.4.0/24"),
		machine(1, "twin", []string{"192.168.0.2"}, "10.42.3.0/24"),
		machine(0, "a", []string{"192.168.0.7"}, "10.42.5.0/24"),
	}
	peers, passed := Peers(nodes, "self", prefixes("10.42.0.0/16", "fd42::/56"), true)
	got := fmt.Sprint(peers)
	want := "[{a 192.168.0.7 invalid IP [10.42.5.0/24] []} {b 192.168.0.2 fd77::2 [10.42.1.0/24 fd42::/64] [fd42::ff:ffff:ffff:ffff:ff00/120]}]"
	if got != want {
		t.Errorf("peers %s\nwant  %s", got, want)
	}
	wantPassed := []Passed{
		{"thief", "its range 10.42.0.128/25 overlaps with that of an older node"},
		{"nowhere", "it has no InternalIP of the family that this node has"},
		{"local", "it has no InternalIP of the family that this node has"},
		{"twin", "its InternalIP is that of node b"},
	}
	if !slices.Equal(passed, wantPassed) {
		t.Errorf("passed %v\nwant   %v", passed, wantPassed)
	}
}

func TestDecide(t *testing.T) {
	peers := []Peer{
		{Name: "near", Addr: netip.MustParseAddr("192.168.0.2"), Other: netip.MustParseAddr("fd77::2"), Pods: prefixes("10.42.1.0/24", "fd42:0:0:1::/64")},
		{Name: "far", Addr: netip.MustParseAddr("192.168.9.3"), Pods: prefixes("10.42.2.0/24")},
	}
	h := Host{Addr: netip.MustParseAddr("192.168.0.1"), MTU: 1500, Subnets: prefixes("192.168.0.0/24")}
	own := prefixes("10.42.0.0/24", "fd42::/64")
	near := nextHop("near", own[1]).String() // link-local

	if st := Decide("self", own, nil, h, Settings{}); st.Tunnel != nil || st.Direct != nil {
		t.Errorf("alone, a node has %+v", st)
	}
	st := Decide("self", own, peers, h, Settings{VNI: 7, Port: 4789})
	tun := st.Tunnel
	if tun == nil || tun.MTU != 1450 || len(tun.Forward) != 2 || len(tun.Routes) != 3 || len(tun.Neighbours) != 3 || len(st.Direct) != 0 {
		t.Fatalf("tunnel %+v, direct %v", tun, st.Direct)
	}
	if got := fmt.Sprint(tun.Addrs, tun.Routes); got != "[10.42.0.1 fd42::1] [{10.42.1.0/24 10.42.1.1} {fd42:0:0:1::/64 "+near+"} {10.42.2.0/24 10.42.2.1}]" {
		t.Errorf("addresses and routes %s", got)
	}
	// Direct where a subnet is shared, by family.
	st = Decide("self", own, peers, h, Settings{Direct: true})
	if got := fmt.Sprint(st.Direct, st.Tunnel.Routes); got != "[{10.42.1.0/24 192.168.0.2}] [{fd42:0:0:1::/64 "+near+"} {10.42.2.0/24 10.42.2.1}]" {
		t.Errorf("mixed: %s", got)
	}
	h.Subnets = prefixes("192.168.0.0/16", "fd77::/64")
	st = Decide("self", own, peers, h, Settings{Direct: true})
	if got := fmt.Sprint(st.Direct, st.Tunnel); got != "[{10.42.1.0/24 192.168.0.2} {fd42:0:0:1::/64 fd77::2} {10.42.2.0/24 192.168.9.3}] <nil>" {
		t.Errorf("direct: %s", got)
	}
	if PodMTU(h.Addr, 1500, Settings{}) != 1450 || PodMTU(netip.MustParseAddr("fd77::1"), 1500, Settings{}) != 1430 ||
		PodMTU(h.Addr, 9000, Settings{Direct: true}) != 9000 || PodMTU(h.Addr, 1500, Settings{PodMTU: 1400}) != 1400 || PodMTU(h.Addr, 1300, Settings{}) != 1280 {
		t.Error("MTU of pods")
	}
	if linkAddress("a").String() == linkAddress("b").String() || linkAddress("a")[0]&3 != 2 {
		t.Error("link addresses are not local unicast ones of their own")
	}
}

func TestSettings(t *testing.T) {
	a, b := Settings{}.complete(prefixes("10.42.0.0/16")), Settings{}.complete(prefixes("10.44.0.0/16"))
	if a.VNI == b.VNI || a.VNI < 1 || a.VNI >= 1<<24 || a.Port != 4789 {
		t.Errorf("%+v and %+v", a, b)
	}
	if (Settings{VNI: 5, Port: 8472}).complete(nil) != (Settings{VNI: 5, Port: 8472}) {
		t.Error("what was chosen was changed")
	}
	for _, s := range []Settings{{VNI: -1}, {VNI: 1 << 24}, {Port: 70000}, {PodMTU: 100}} {
		if s.Check() == nil {
			t.Errorf("%+v passes", s)
		}
	}
}
