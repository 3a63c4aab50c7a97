package overlay

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestGatewayBlock(t *testing.T) {
	for r, want := range map[string]string{
		"10.42.0.0/16": "10.42.255.0/24", "10.0.0.0/8": "10.255.255.0/24", "10.42.0.0/25": "invalid Prefix", "10.42.0.0/24": "invalid Prefix",
		"fd42::/56": "fd42::ff:ffff:ffff:ffff:ff00/120", "fd42:1::/64": "fd42:1::ffff:ffff:ffff:ff00/120", "fd42::/120": "invalid Prefix",
	} {
		if got := GatewayBlock(netip.MustParsePrefix(r)).String(); got != want {
			t.Errorf("the block of %s is %s, want %s", r, got, want)
		}
	}
}

// TestWaysToGateways holds that gateways are reached by way of the node with the first ranges, and that nobody else draws their packets.
func TestWaysToGateways(t *testing.T) {
	inside := prefixes("10.42.0.0/16", "fd42::/56")
	nodes := []*corev1.Node{
		machine(9, "server", []string{"192.168.0.1", "fd77::1"}, "10.42.0.0/24", "fd42::/64"),
		machine(8, "self", []string{"192.168.0.2", "fd77::2"}, "10.42.1.0/24", "fd42:0:0:1::/64"),
		machine(7, "thief", []string{"192.168.0.3"}, "10.42.0.0/24"),
		machine(6, "last", []string{"192.168.0.4"}, "10.42.254.0/24"),
	}
	peers, _ := Peers(nodes, "self", inside, true)
	for _, direct := range []bool{false, true} {
		h := Host{Addr: netip.MustParseAddr("192.168.0.2"), Subnets: prefixes("192.168.0.0/24"), MTU: 1500}
		st := Decide("self", prefixes("10.42.1.0/24", "fd42:0:0:1::/64"), peers, h, Settings{Direct: direct}.complete(inside))
		got := map[string]string{}
		for _, r := range st.Direct {
			got[r.To.String()] = r.Via.String()
		}
		for _, r := range st.Tunnel.Routes {
			got[r.To.String()] = r.Via.String()
		}
		want := map[string]string{"10.42.0.0/24": "10.42.0.1", "10.42.255.0/24": "10.42.0.1", "10.42.254.0/24": "10.42.254.1"}
		if direct {
			want = map[string]string{"10.42.0.0/24": "192.168.0.1", "10.42.255.0/24": "192.168.0.1", "10.42.254.0/24": "192.168.0.4"}
		}
		six := nextHop("server", prefixes("fd42::/64")[0]).String()
		want["fd42::/64"], want["fd42::ff:ffff:ffff:ffff:ff00/120"] = six, six
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("direct %v: %v\nwant %v", direct, got, want)
		}
	}
}
