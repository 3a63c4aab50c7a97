package overlay

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/store"
)

// TestHeartbeatsWakeNobody holds that only what ways depend on causes a pass: thousands of nodes report every few seconds.
func TestHeartbeatsWakeNobody(t *testing.T) {
	was := machine(0, "a", []string{"192.168.0.2"}, "10.42.1.0/24")
	event := func(change func(n *corev1.Node)) store.Event {
		now := was.DeepCopy()
		change(now)
		return store.Event{Entry: &store.Entry{Object: now}, Prev: &store.Entry{Object: was}}
	}
	if keys := changed(nil, event(func(n *corev1.Node) { n.Status.Conditions = []corev1.NodeCondition{{Type: "Ready"}} })); keys != nil {
		t.Errorf("a heartbeat wakes %v", keys)
	}
	for name, ev := range map[string]store.Event{
		"address": event(func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.168.0.3" }),
		"range":   event(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.42.2.0/24"} }),
		"new":     {Entry: &store.Entry{Object: was}},
		"gone":    {Entry: &store.Entry{Object: was}, Prev: &store.Entry{Object: was}, Deleted: true},
	} {
		if len(changed(nil, ev)) != 1 {
			t.Errorf("%s: no pass", name)
		}
	}
}
