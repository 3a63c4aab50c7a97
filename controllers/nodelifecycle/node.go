package nodelifecycle

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Config are the times that the loops go by. Zero values mean upstream's defaults.
type Config struct {
	// Started is when this program began: silence is counted from then on at the earliest, since leases could
	// not be renewed while it did not run.
	Started time.Time
	// Grace is how long a node may be silent (50 s), StartupGrace how long one that has never reported (60 s).
	Grace, StartupGrace time.Duration
	// EvictionRate is how many nodes of a zone are emptied in a second (0.1), SecondaryEvictionRate how many when most of the
	// zone is not ready (0.01) and the zone has more than LargeZone nodes (50); one that has no more is then let be.
	EvictionRate, SecondaryEvictionRate float64
	LargeZone                           int
	// UnhealthyZone is the share of nodes, three at least, that are not ready in a zone that counts as unhealthy (0.55).
	UnhealthyZone float64
}

func (c Config) withDefaults() Config {
	if c.Grace == 0 {
		c.Grace = 50 * time.Second
	}
	if c.StartupGrace == 0 {
		c.StartupGrace = time.Minute
	}
	c.EvictionRate = cmp.Or(c.EvictionRate, 0.1)
	c.SecondaryEvictionRate = cmp.Or(c.SecondaryEvictionRate, 0.01)
	c.LargeZone = cmp.Or(c.LargeZone, 50)
	c.UnhealthyZone = cmp.Or(c.UnhealthyZone, 0.55)
	return c
}

// reported are the conditions that a node's agent reports, and that nobody knows when it is silent.
var reported = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

func condition(node *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == t {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// readiness is the status of the condition Ready, Unknown if there is none.
func readiness(node *corev1.Node) corev1.ConditionStatus {
	if c := condition(node, corev1.NodeReady); c != nil {
		return c.Status
	}
	return corev1.ConditionUnknown
}

// planNode is one pass over a node: its conditions, its taints, its pods, in this order.
func planNode(s store.Snapshot, node *corev1.Node, cfg Config, now time.Time) reconcile.Plan {
	due := deadline(s, node, cfg)
	if silent := !now.Before(due); silent {
		if out, changed := unknown(node, now); changed {
			return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Nodes.Name, Subresource: "status", Object: out}}}
		}
	}
	plan := reconcile.Plan{}
	if now.Before(due) {
		plan.After = due.Sub(now)
	}
	w, changed, wait := taint(s, node, cfg, now)
	if changed {
		plan.Writes = append(plan.Writes, w)
	}
	if wait > 0 && (plan.After == 0 || wait < plan.After) {
		plan.After = wait
	}
	plan.Writes = append(plan.Writes, podsNotReady(s, node, now)...)
	return plan
}

// deadline is when the silence of a node becomes too long.
func deadline(s store.Snapshot, node *corev1.Node, cfg Config) time.Time {
	last, grace := node.CreationTimestamp.Time, cfg.StartupGrace
	if c := condition(node, corev1.NodeReady); c != nil {
		grace = cfg.Grace
		last = later(last, c.LastHeartbeatTime.Time)
	}
	if lease, ok := client.Leases.Get(s, corev1.NamespaceNodeLease, node.Name); ok && lease.Spec.RenewTime != nil {
		last = later(last, lease.Spec.RenewTime.Time)
	}
	return later(last, cfg.Started).Add(grace)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// unknown is the node with what its agent reports made unknown.
func unknown(node *corev1.Node, now time.Time) (*corev1.Node, bool) {
	out := node.DeepCopy()
	at := metav1.NewTime(now).Rfc3339Copy()
	for _, t := range reported {
		c := condition(out, t)
		switch {
		case c == nil:
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: at,
			})
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status.", at
		}
	}
	return out, !equality.Semantic.DeepEqual(out.Status, node.Status)
}

// conditionTaint is the key of a taint that stands for a condition in one status.
type conditionTaint struct {
	condition corev1.NodeConditionType
	status    corev1.ConditionStatus
	key       string
}

var conditionTaints = []conditionTaint{
	{corev1.NodeReady, corev1.ConditionFalse, corev1.TaintNodeNotReady},
	{corev1.NodeReady, corev1.ConditionUnknown, corev1.TaintNodeUnreachable},
	{corev1.NodeMemoryPressure, corev1.ConditionTrue, corev1.TaintNodeMemoryPressure},
	{corev1.NodeDiskPressure, corev1.ConditionTrue, corev1.TaintNodeDiskPressure},
	{corev1.NodeNetworkUnavailable, corev1.ConditionTrue, corev1.TaintNodeNetworkUnavailable},
	{corev1.NodePIDPressure, corev1.ConditionTrue, corev1.TaintNodePIDPressure},
}

// ours tells the taints that this loop sets and removes.
func ours(t *corev1.Taint) bool {
	switch t.Effect {
	case corev1.TaintEffectNoExecute:
		return t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable
	case corev1.TaintEffectNoSchedule:
		return t.Key == corev1.TaintNodeUnschedulable || slices.ContainsFunc(conditionTaints, func(ct conditionTaint) bool { return ct.key == t.Key })
	}
	return false
}

// wantedTaints are the taints of ours that the node is to have, and how long it is to wait for one that it has not
// got its turn for (0: for nothing).
func wantedTaints(s store.Snapshot, node *corev1.Node, cfg Config, now time.Time) (want []corev1.Taint, wait time.Duration) {
	for _, ct := range conditionTaints {
		c := condition(node, ct.condition)
		if c == nil && ct.condition == corev1.NodeReady && ct.status == corev1.ConditionFalse {
			// A node that has never reported is not ready; its silence makes it unreachable in time.
			want = append(want, corev1.Taint{Key: ct.key, Effect: corev1.TaintEffectNoSchedule})
		}
		if c == nil || c.Status != ct.status {
			continue
		}
		want = append(want, corev1.Taint{Key: ct.key, Effect: corev1.TaintEffectNoSchedule})
		if ct.condition != corev1.NodeReady || !anyReady(s, cfg, now) {
			continue
		}
		if _, had := emptiedAt(node); !had {
			left, may := turn(s, node, cfg, now)
			if left > 0 || !may {
				wait = left
				continue
			}
		}
		want = append(want, corev1.Taint{Key: ct.key, Effect: corev1.TaintEffectNoExecute})
	}
	if node.Spec.Unschedulable {
		want = append(want, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	return want, wait
}

// anyReady tells whether a node is ready, and not only because its silence has not been noted yet. If none
// is, the fault is more likely here than with all of them, and nothing is evicted (upstream calls it
// full disruption).
func anyReady(s store.Snapshot, cfg Config, now time.Time) bool {
	for node := range client.Nodes.List(s, "") {
		if readiness(node) == corev1.ConditionTrue && now.Before(deadline(s, node, cfg)) {
			return true
		}
	}
	return false
}

// taint brings the taints in line with the conditions; wait is for the next look.
func taint(s store.Snapshot, node *corev1.Node, cfg Config, now time.Time) (w reconcile.Write, changed bool, wait time.Duration) {
	want, wait := wantedTaints(s, node, cfg, now)
	at := metav1.NewTime(now).Rfc3339Copy()
	var taints []corev1.Taint
	wasReady := true
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable {
			wasReady = false
		}
		if !ours(t) || slices.ContainsFunc(want, func(w corev1.Taint) bool { return w.MatchTaint(t) }) {
			taints = append(taints, *t)
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.MatchTaint(&w) }) {
			w.TimeAdded = &at
			taints = append(taints, w)
		}
	}
	if equality.Semantic.DeepEqual(taints, node.Spec.Taints) {
		return reconcile.Write{}, false, wait
	}
	out := node.DeepCopy()
	out.Spec.Taints = taints
	w = reconcile.Write{Verb: reconcile.Update, Resource: client.Nodes.Name, Object: out}
	if wasReady && condition(node, corev1.NodeReady) != nil && readiness(node) != corev1.ConditionTrue {
		w.OnSuccess = func(api.Object) *reconcile.Event {
			return &reconcile.Event{Regarding: reconcile.Regarding("v1", "Node", node), Type: "Normal", Reason: "NodeNotReady",
				Message: fmt.Sprintf("Node %s status is now: NodeNotReady", node.Name)}
		}
	}
	return w, true, wait
}

// podsNotReady makes the pods of a node that stopped being ready not ready either. Pods whose readiness
// is newer than that are left alone: the agent knows better.
func podsNotReady(s store.Snapshot, node *corev1.Node, now time.Time) []reconcile.Write {
	c := condition(node, corev1.NodeReady)
	if c == nil || c.Status == corev1.ConditionTrue {
		return nil
	}
	var writes []reconcile.Write
	for pod := range client.Pods.Index(s, "node", node.Name) {
		ready := podstate.Condition(pod, corev1.PodReady)
		if ready == nil || ready.Status != corev1.ConditionTrue || ready.LastTransitionTime.After(c.LastTransitionTime.Time) {
			continue
		}
		out := pod.DeepCopy()
		cond := podstate.Condition(out, corev1.PodReady)
		cond.Status, cond.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now).Rfc3339Copy()
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: out,
			OnSuccess: func(api.Object) *reconcile.Event {
				return &reconcile.Event{Regarding: reconcile.Regarding("v1", "Pod", pod), Type: "Warning", Reason: "NodeNotReady", Message: "Node is not ready"}
			}})
	}
	return writes
}
