package nodeipam_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/nodeipam"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestNodesGetBlocksThatNobodyElseHas(t *testing.T) {
	ranges := []nodeipam.Range{{Cluster: netip.MustParsePrefix("10.244.0.0/22")}, {Cluster: netip.MustParsePrefix("fd00:10:244::/56")}}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "own"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:10:244:1::/64"}}})
		for i := range 4 {
			h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
			h.Settle()
		}
		want := map[string]string{
			"own": "[10.244.1.0/24 fd00:10:244:1::/64]", "n0": "[10.244.0.0/24 fd00:10:244::/64]",
			"n1": "[10.244.2.0/24 fd00:10:244:2::/64]", "n2": "[10.244.3.0/24 fd00:10:244:3::/64]", "n3": "[]",
		}
		for name, cidrs := range want {
			if got := fmt.Sprint(reconciletest.Get(h, client.Nodes, "", name).Spec.PodCIDRs); got != cidrs {
				t.Errorf("%s has %s, want %s", name, got, cidrs)
			}
		}
		if ev := h.EventsOf("Node"); len(ev) != 1 || ev[0] != "Normal CIDRNotAvailable Node n3 status is now: CIDRNotAvailable" {
			t.Errorf("events: %q", ev)
		}
		h.Delete("nodes", "", "n1", "")
		h.Settle()
		if got := reconciletest.Get(h, client.Nodes, "", "n3").Spec.PodCIDR; got != "10.244.2.0/24" {
			t.Errorf("a freed block went to nobody: n3 has %q", got)
		}
	}, nodeipam.Loop(ranges))
}

func TestBlocksOfAnotherSizeAreNotCutInto(t *testing.T) {
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "big"}, Spec: corev1.NodeSpec{PodCIDR: "10.0.0.0/25", PodCIDRs: []string{"10.0.0.0/25"}}})
		h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "small"}})
		h.Settle()
		if got := reconciletest.Get(h, client.Nodes, "", "small").Spec.PodCIDR; got != "10.0.0.128/26" {
			t.Errorf("got %q", got)
		}
	}, nodeipam.Loop([]nodeipam.Range{{Cluster: netip.MustParsePrefix("10.0.0.0/24"), NodeBits: 26}}))
}

// TestThousandsAtOnce holds that nodes that come together get blocks of their own, in a time that does not grow with their square.
func TestThousandsAtOnce(t *testing.T) {
	const count = 3000
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		for i := range count {
			h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%04d", i)}})
		}
		h.Settle()
		seen := map[string]bool{}
		for node := range client.Nodes.List(h.Cluster.Snapshot(), "") {
			if node.Spec.PodCIDR == "" || seen[node.Spec.PodCIDR] {
				t.Fatalf("%s has the block %q", node.Name, node.Spec.PodCIDR)
			}
			seen[node.Spec.PodCIDR] = true
		}
		if !seen["10.0.0.0/24"] || !seen["10.11.183.0/24"] || len(seen) != count {
			t.Errorf("%d blocks, not the lowest", len(seen))
		}
	}, nodeipam.Loop([]nodeipam.Range{{Cluster: netip.MustParsePrefix("10.0.0.0/8")}}))
}
