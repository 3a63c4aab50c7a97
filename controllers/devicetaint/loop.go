// Package devicetaint evicts pods whose devices have a NoExecute taint that their claims do not tolerate, or not any longer
// (KEP-5055, https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#device-taints-and-tolerations).
//
// It owns the end of such pods, and the condition EvictionInProgress of DeviceTaintRules, which tells of that. Taints are set by drivers in
// ResourceSlices and by administrators in DeviceTaintRules.
package devicetaint

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// Loop is the device taint eviction controller. Its keys are claims, and rules.
func Loop() reconcile.Loop {
	t := &tally{evicted: map[types.UID]int{}}
	return reconcile.Loop{
		Name: "device-taint-eviction-controller", Source: "device-taint-eviction", Workers: 2,
		Inputs: []reconcile.Input{
			{Resource: client.ResourceClaims.Name, Keys: ofClaim},
			{Resource: client.ResourceSlices.Name, Keys: ofSlice},
			{Resource: client.DeviceTaintRules.Name, Keys: ofRule},
			{Resource: client.Pods.Name, Keys: ofPod},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Delete}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.DeviceTaintRules.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			if key.Resource == client.DeviceTaintRules.Name {
				return planRule(s, key.Name, t, now), nil
			}
			return plan(s, key, t, now), nil
		},
	}
}

// ofClaim gives a claim in use, and the rules whose status it may concern.
func ofClaim(s store.Snapshot, ev store.Event) []reconcile.Key {
	c := ev.Entry.Object.(*resourcev1.ResourceClaim)
	var rules []reconcile.Key
	if s.Count(client.DeviceTaintRules.Name, "") > 0 {
		rules = evicting(s)
	}
	if ev.Deleted || c.Status.Allocation == nil || len(c.Status.ReservedFor) == 0 {
		return rules
	}
	return append(rules, reconcile.Key{Namespace: c.Namespace, Name: c.Name})
}

// ofSlice gives the claims that have devices of a pool in which one is tainted.
func ofSlice(s store.Snapshot, ev store.Event) []reconcile.Key {
	slice := ev.Entry.Object.(*resourcev1.ResourceSlice)
	for i := range slice.Spec.Devices {
		for k := range slice.Spec.Devices[i].Taints {
			if slice.Spec.Devices[i].Taints[k].Effect == resourcev1.DeviceTaintEffectNoExecute && !ev.Deleted {
				return having(s, &slice.Spec.Driver, &slice.Spec.Pool.Name, nil)
			}
		}
	}
	return nil
}

// ofRule gives a rule, and the claims that have devices which it selects.
func ofRule(s store.Snapshot, ev store.Event) []reconcile.Key {
	rule := ev.Entry.Object.(*resourcev1.DeviceTaintRule)
	sel := rule.Spec.DeviceSelector
	keys := []reconcile.Key{ruleKey(rule.Name)}
	if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(*resourcev1.DeviceTaintRule).Generation == rule.Generation {
		return nil // its status
	}
	if ev.Deleted || sel == nil || rule.Spec.Taint.Effect != resourcev1.DeviceTaintEffectNoExecute {
		return keys
	}
	return append(keys, having(s, sel.Driver, sel.Pool, sel.Device)...)
}

// having are the claims in use with a device that matches; nil matches all.
func having(s store.Snapshot, driver, pool, device *string) []reconcile.Key {
	var keys []reconcile.Key
	for c := range client.ResourceClaims.List(s, "") {
		if c.Status.Allocation == nil || len(c.Status.ReservedFor) == 0 {
			continue
		}
		for i := range c.Status.Allocation.Devices.Results {
			r := &c.Status.Allocation.Devices.Results[i]
			if is(driver, r.Driver) && is(pool, r.Pool) && is(device, r.Device) {
				keys = append(keys, reconcile.Key{Namespace: c.Namespace, Name: c.Name})
				break
			}
		}
	}
	return keys
}

func is(want *string, have string) bool { return want == nil || *want == have }

// plan evicts the pods of a claim once one of its devices may not be used any more. Rules that ask for that say so in their status before.
func plan(s store.Snapshot, key reconcile.Key, t *tally, now time.Time) reconcile.Plan {
	claim, ok := client.ResourceClaims.Get(s, key.Namespace, key.Name)
	if !ok || claim.Status.Allocation == nil {
		return reconcile.Plan{}
	}
	var at time.Time
	var rules []*resourcev1.DeviceTaintRule
	for i := range claim.Status.Allocation.Devices.Results {
		r := &claim.Status.Allocation.Devices.Results[i]
		for _, t := range taints(s, r) {
			end, ends := until(&t.DeviceTaint, r.Tolerations)
			if ends && (at.IsZero() || end.Before(at)) {
				at = end
			}
			if ends && t.rule != nil && !slices.Contains(rules, t.rule) {
				rules = append(rules, t.rule)
			}
		}
	}
	if at.IsZero() {
		return reconcile.Plan{}
	}
	if left := at.Sub(now); left > 0 {
		return reconcile.Plan{After: left}
	}
	var p reconcile.Plan
	var uids []types.UID
	for _, rule := range rules {
		p.Writes = append(p.Writes, planRule(s, rule.Name, t, now).Writes...)
		uids = append(uids, rule.UID)
	}
	for _, r := range claim.Status.ReservedFor {
		if r.APIGroup != "" || r.Resource != "pods" {
			continue
		}
		pod, ok := client.Pods.Get(s, claim.Namespace, r.Name)
		if ok && pod.UID == r.UID && pod.DeletionTimestamp == nil && !podstate.Terminal(pod) {
			p.Writes = append(p.Writes, evict(pod, now, func() { t.add(uids) })...)
		}
	}
	return p
}

// taint is one of a device, with the rule that it comes from, nil if its driver says so.
type taint struct {
	resourcev1.DeviceTaint
	rule *resourcev1.DeviceTaintRule
}

// taints are those of an allocated device, by driver and by rule.
func taints(s store.Snapshot, r *resourcev1.DeviceRequestAllocationResult) []taint {
	var all []taint
	generation := int64(-1)
	for slice := range client.ResourceSlices.List(s, "") {
		if slice.Spec.Driver != r.Driver || slice.Spec.Pool.Name != r.Pool || slice.Spec.Pool.Generation < generation {
			continue
		}
		if slice.Spec.Pool.Generation > generation { // slices of older ones count no more
			generation, all = slice.Spec.Pool.Generation, nil
		}
		for i := range slice.Spec.Devices {
			if slice.Spec.Devices[i].Name == r.Device {
				for _, t := range slice.Spec.Devices[i].Taints {
					all = append(all, taint{DeviceTaint: t})
				}
			}
		}
	}
	for rule := range client.DeviceTaintRules.List(s, "") {
		if selects(rule, r.Driver, r.Pool, r.Device) {
			all = append(all, taint{rule.Spec.Taint, rule})
		}
	}
	return all
}

// until tells when a taint ends the use of a device, if it does.
func until(t *resourcev1.DeviceTaint, tolerations []resourcev1.DeviceToleration) (time.Time, bool) {
	if t.Effect != resourcev1.DeviceTaintEffectNoExecute {
		return time.Time{}, false
	}
	added := time.Time{}
	if t.TimeAdded != nil {
		added = t.TimeAdded.Time
	}
	end, bounded := added, false
	for i := range tolerations {
		tol := &tolerations[i]
		if tol.Effect != resourcev1.DeviceTaintEffectNoExecute || !resourceclaim.ToleratesTaint(*tol, *t) {
			continue
		}
		if tol.TolerationSeconds == nil {
			return time.Time{}, false
		}
		if e := added.Add(time.Duration(max(*tol.TolerationSeconds, 0)) * time.Second); !bounded || e.Before(end) {
			end, bounded = e, true
		}
	}
	if end.IsZero() {
		end = time.Unix(1, 0) // since ever
	}
	return end, true
}

// evict marks a pod as disrupted and deletes it, and then calls done.
func evict(pod *corev1.Pod, now time.Time, done func()) []reconcile.Write {
	remove := reconcile.Write{Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		OnSuccess: func(api.Object) *reconcile.Event {
			done()
			return &reconcile.Event{Type: corev1.EventTypeNormal, Reason: "DeviceTaintManagerEviction", Message: "Marking for deletion",
				Regarding: reconcile.Regarding("v1", "Pod", pod)}
		}}
	if c := podstate.Condition(pod, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		return []reconcile.Write{remove}
	}
	out := pod.DeepCopy()
	cond := corev1.PodCondition{Type: corev1.DisruptionTarget, ObservedGeneration: pod.Generation, Status: corev1.ConditionTrue,
		Reason: "DeletionByDeviceTaintManager", Message: "Device Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
	if c := podstate.Condition(out, corev1.DisruptionTarget); c != nil {
		*c = cond
	} else {
		out.Status.Conditions = append(out.Status.Conditions, cond)
	}
	return []reconcile.Write{{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: out}, remove}
}
