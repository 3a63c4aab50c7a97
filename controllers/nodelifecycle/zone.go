package nodelifecycle

import (
	"cmp"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// excludeLabel takes a node out of the counting of how many of its zone are ready.
const excludeLabel = "node.kubernetes.io/exclude-disruption"

// zone is the failure zone of a node: nodes of one are not emptied all at once.
type zone struct{ region, zone string }

func zoneOf(node *corev1.Node) zone {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v, ok := node.Labels[k]; ok {
				return v
			}
		}
		return ""
	}
	return zone{
		first(corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyRegion),
		first(corev1.LabelFailureDomainBetaZone, corev1.LabelTopologyZone),
	}
}

// turn is how long a node that is not ready has to wait until it is its turn to be emptied, 0 for not at all. Of a zone one node at
// a time is: each so long after the last one as the rate for the state of the zone says, first the one that
// has not been ready for longest. false: the rate is zero, and a change of the zone is to be waited for.
//
// When the last one was is what the taints say, so that a restart changes nothing, and since only the first in
// line may go, neither do passes for several nodes at a time.
func turn(s store.Snapshot, node *corev1.Node, cfg Config, now time.Time) (time.Duration, bool) {
	var size, down, ahead int
	var last time.Time
	here := zoneOf(node)
	for other := range client.Nodes.List(s, "") {
		if zoneOf(other) != here {
			continue
		}
		ready := readiness(other) == corev1.ConditionTrue && now.Before(deadline(s, other, cfg))
		if _, excluded := other.Labels[excludeLabel]; !excluded {
			size++
			if !ready {
				down++
			}
		}
		if at, emptied := emptiedAt(other); emptied {
			last = later(last, at)
		} else if other.DeletionTimestamp == nil && before(other, node) {
			ahead++
		}
	}
	rate := cfg.EvictionRate
	if down < size && down > 2 && float64(down)/float64(size) >= cfg.UnhealthyZone { // partial disruption
		if rate = cfg.SecondaryEvictionRate; size <= cfg.LargeZone {
			return 0, false
		}
	}
	if rate <= 0 {
		return 0, false
	}
	interval := time.Duration(float64(time.Second) / rate)
	return max(last.Add(interval).Sub(now), 0) + time.Duration(ahead)*interval, true
}

// emptiedAt is when the node got the taint that evicts its pods because it is not ready.
func emptiedAt(node *corev1.Node) (at time.Time, ok bool) {
	for i := range node.Spec.Taints {
		if t := &node.Spec.Taints[i]; t.Effect == corev1.TaintEffectNoExecute && ours(t) {
			ok = true
			if t.TimeAdded != nil {
				at = later(at, t.TimeAdded.Time)
			}
		}
	}
	return at, ok
}

// before tells whether a node that is not ready comes before another one.
func before(a, b *corev1.Node) bool {
	ca, cb := condition(a, corev1.NodeReady), condition(b, corev1.NodeReady)
	if ca == nil || ca.Status == corev1.ConditionTrue || cb == nil {
		return false
	}
	return cmp.Or(ca.LastTransitionTime.Compare(cb.LastTransitionTime.Time), cmp.Compare(a.Name, b.Name)) < 0
}
