package devicetaint

import (
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// statusPeriod is the least time between two changes of a rule's status, as upstream has it.
const statusPeriod = 10 * time.Second

// tally counts the pods that were evicted for a rule since the loop began. A rule that is gone is forgotten.
type tally struct {
	mu      sync.Mutex
	evicted map[types.UID]int
}

func (t *tally) add(rules []types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, uid := range rules {
		t.evicted[uid]++
	}
}

func (t *tally) of(rule types.UID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.evicted[rule]
}

// keep forgets all rules but those that there are.
func (t *tally) keep(s store.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.evicted) <= s.Count(client.DeviceTaintRules.Name, "") {
		return
	}
	there := map[types.UID]bool{}
	for rule := range client.DeviceTaintRules.List(s, "") {
		there[rule.UID] = true
	}
	for uid := range t.evicted {
		if !there[uid] {
			delete(t.evicted, uid)
		}
	}
}

func ruleKey(name string) reconcile.Key {
	return reconcile.Key{Resource: client.DeviceTaintRules.Name, Name: name}
}

// evicting gives the rules that evict pods.
func evicting(s store.Snapshot) []reconcile.Key {
	var keys []reconcile.Key
	for rule := range client.DeviceTaintRules.List(s, "") {
		if rule.Spec.Taint.Effect == resourcev1.DeviceTaintEffectNoExecute {
			keys = append(keys, ruleKey(rule.Name))
		}
	}
	return keys
}

// ofPod gives the rules whose status a pod may concern that begins or ceases to use claims.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if len(pod.Spec.ResourceClaims) == 0 && pod.Status.ExtendedResourceClaimStatus == nil || s.Count(client.DeviceTaintRules.Name, "") == 0 {
		return nil
	}
	if ev.Prev != nil && !ev.Deleted {
		old := ev.Prev.Object.(*corev1.Pod)
		if old.UID == pod.UID && old.Spec.NodeName == pod.Spec.NodeName && (old.DeletionTimestamp == nil) == (pod.DeletionTimestamp == nil) {
			return nil
		}
	}
	return evicting(s)
}

// planRule brings a rule's status up to date, if its time has come.
func planRule(s store.Snapshot, name string, t *tally, now time.Time) reconcile.Plan {
	rule, ok := client.DeviceTaintRules.Get(s, "", name)
	if !ok {
		t.keep(s)
		return reconcile.Plan{}
	}
	var old metav1.Condition
	at := -1
	for i, c := range rule.Status.Conditions {
		if c.Type == resourcev1.DeviceTaintConditionEvictionInProgress {
			old, at = c, i
		}
	}
	if at >= 0 && old.ObservedGeneration == rule.Generation {
		if rule.Spec.Taint.Effect == resourcev1.DeviceTaintEffectNone {
			return reconcile.Plan{} // it is said once
		}
		if left := old.LastTransitionTime.Add(statusPeriod).Sub(now); left > 0 {
			return reconcile.Plan{After: left}
		}
	}
	fresh := condition(s, rule, t.of(rule.UID))
	fresh.LastTransitionTime = old.LastTransitionTime
	if fresh == old {
		return reconcile.Plan{}
	}
	fresh.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	out := rule.DeepCopy()
	if at >= 0 {
		out.Status.Conditions[at] = fresh
	} else {
		out.Status.Conditions = append(out.Status.Conditions, fresh)
	}
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.DeviceTaintRules.Name, Subresource: "status", Object: out}}}
}

// condition says how far the eviction is that a rule asks for, or what it would be, in upstream's words.
func condition(s store.Snapshot, rule *resourcev1.DeviceTaintRule, evicted int) metav1.Condition {
	c := metav1.Condition{Type: resourcev1.DeviceTaintConditionEvictionInProgress, Status: metav1.ConditionFalse, ObservedGeneration: rule.Generation}
	switch rule.Spec.Taint.Effect {
	case resourcev1.DeviceTaintEffectNoExecute:
		pods, namespaces := pending(s, rule)
		switch {
		case pods > 0:
			c.Reason, c.Status = "PodsPendingEviction", metav1.ConditionTrue
			c.Message = count(pods, "pod needs to be evicted in ", "pods need to be evicted in ") + count(namespaces, "namespace.", "different namespaces.")
		case evicted > 0:
			c.Reason = "Completed"
		default:
			c.Reason = "NotStarted"
		}
	case resourcev1.DeviceTaintEffectNone:
		pods, namespaces := pending(s, rule)
		published, allocated := selected(s, rule)
		c.Reason = "NoEffect"
		c.Message = count(published, "published device selected. ", "published devices selected. ") +
			count(allocated, "allocated device selected. ", "allocated devices selected. ") +
			count(pods, "pod would be evicted in ", "pods would be evicted in ") + count(namespaces, "namespace ", "different namespaces ") +
			"if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
	default:
		c.Reason, c.Message = "OtherEffect", "Eviction only happens for the NoExecute effect."
	}
	if evicted > 0 {
		if c.Message != "" {
			c.Message += " "
		}
		c.Message += count(evicted, "pod ", "pods ") + "evicted since starting the controller."
	}
	return c
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// pending counts the pods that a rule evicts, now or later, or would with the effect NoExecute.
func pending(s store.Snapshot, rule *resourcev1.DeviceTaintRule) (pods, namespaces int) {
	taint := rule.Spec.Taint
	taint.Effect = resourcev1.DeviceTaintEffectNoExecute
	found, in := map[types.UID]bool{}, map[string]bool{}
	for claim := range client.ResourceClaims.List(s, "") {
		if !hits(claim, rule, &taint) {
			continue
		}
		for _, r := range claim.Status.ReservedFor {
			if r.APIGroup != "" || r.Resource != "pods" {
				continue
			}
			pod, ok := client.Pods.Get(s, claim.Namespace, r.Name)
			if ok && pod.UID == r.UID && pod.DeletionTimestamp == nil && pod.Spec.NodeName != "" && has(pod, claim) {
				found[pod.UID], in[pod.Namespace] = true, true
			}
		}
	}
	return len(found), len(in)
}

// hits tells whether a claim has a device that a rule selects and does not tolerate the taint for ever.
func hits(claim *resourcev1.ResourceClaim, rule *resourcev1.DeviceTaintRule, taint *resourcev1.DeviceTaint) bool {
	if claim.Status.Allocation == nil {
		return false
	}
	for i := range claim.Status.Allocation.Devices.Results {
		r := &claim.Status.Allocation.Devices.Results[i]
		if selects(rule, r.Driver, r.Pool, r.Device) {
			if _, ends := until(taint, r.Tolerations); ends {
				return true
			}
		}
	}
	return false
}

// has tells whether a pod uses a claim that is reserved for it.
func has(pod *corev1.Pod, claim *resourcev1.ResourceClaim) bool {
	for name, own := range resourceclaim.PodClaims(pod) {
		if name == claim.Name && (!own || resourceclaim.IsForPod(pod, claim, false) == nil) {
			return true
		}
	}
	return false
}

// selected counts the devices that a rule selects, of those that are offered and of those that are allocated.
func selected(s store.Snapshot, rule *resourcev1.DeviceTaintRule) (published, allocated int) {
	type pool struct{ driver, name string }
	newest := map[pool]int64{}
	for slice := range client.ResourceSlices.List(s, "") {
		p := pool{slice.Spec.Driver, slice.Spec.Pool.Name}
		newest[p] = max(newest[p], slice.Spec.Pool.Generation)
	}
	for slice := range client.ResourceSlices.List(s, "") {
		p := pool{slice.Spec.Driver, slice.Spec.Pool.Name}
		if slice.Spec.Pool.Generation < newest[p] {
			continue
		}
		for i := range slice.Spec.Devices {
			if selects(rule, p.driver, p.name, slice.Spec.Devices[i].Name) {
				published++
			}
		}
	}
	for claim := range client.ResourceClaims.List(s, "") {
		if claim.Status.Allocation == nil {
			continue
		}
		for i := range claim.Status.Allocation.Devices.Results {
			if r := &claim.Status.Allocation.Devices.Results[i]; selects(rule, r.Driver, r.Pool, r.Device) {
				allocated++
			}
		}
	}
	return published, allocated
}

func selects(rule *resourcev1.DeviceTaintRule, driver, pool, device string) bool {
	sel := rule.Spec.DeviceSelector
	return sel != nil && is(sel.Driver, driver) && is(sel.Pool, pool) && is(sel.Device, device)
}
