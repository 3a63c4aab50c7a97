package policy

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/linux/nft/filter"
)

// TestForgottenPodKeepsVerdicts holds that a pod which is deleted by force, or called ended, is as restricted as before for as long as its
// sandbox is connected, and leaves nothing after that.
func TestForgottenPodKeepsVerdicts(t *testing.T) {
	made := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", Labels: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{NodeName: "n"}}
	key := podKey{"x", "p"}
	deny := readPolicy(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "deny"},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}})
	v4, v6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	p := newPlan("n", nil)
	p.setSpace("x", labels.Set{}, true)
	p.setPolicy(deny.ref, deny)
	p.setPod(key, readPod(made, p.spaces))
	p.admit(p.latest(made), []netip.Addr{v4, v6})
	p.take(true)
	denied := func(when string) {
		t.Helper()
		for _, a := range []netip.Addr{v4, v6} {
			for _, hook := range []filter.Hook{filter.Egress, filter.Ingress} {
				if p.bindings[place{hook, a}] == "" {
					t.Errorf("%s: nothing applies to %s at hook %d", when, a, hook)
				}
			}
		}
	}
	denied("admitted")
	p.setPod(key, nil)
	denied("deleted while connected")
	p.setPod(key, readPod(made, p.spaces))
	p.setPod(key, nil)
	p.release([]netip.Addr{v4, v6})
	if len(p.bindings) != 0 || len(p.pods) != 0 || len(p.held) != 0 || len(p.owners) != 0 {
		t.Errorf("after the release there are bindings %v, pods %v, held %v, owners %v", p.bindings, p.pods, p.held, p.owners)
	}
}

// TestAdmitTakesLatestLabels holds that labels that changed while a sandbox was being made are those that policies select by.
func TestAdmitTakesLatestLabels(t *testing.T) {
	made := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n"}}
	now := made.DeepCopy()
	now.Labels = map[string]string{"a": "b"}
	p := newPlan("n", nil)
	p.setPod(podKey{"x", "p"}, readPod(now, p.spaces))
	if got := p.latest(made); got.labels["a"] != "b" {
		t.Errorf("the pod is admitted with labels %v", got.labels)
	}
}
