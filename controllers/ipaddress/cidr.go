package ipaddress

import (
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const (
	// Finalizer keeps a ServiceCIDR while there are addresses in it.
	Finalizer = "networking.k8s.io/service-cidr-finalizer"
	// drain is how long a ServiceCIDR stays after its deletion began, for allocations that were under way (upstream's deletionGracePeriod).
	drain = 10 * time.Second
)

var cidrs = client.Resource[*networkingv1.ServiceCIDR]{Name: "servicecidrs.networking.k8s.io"}

// RangeLoop keeps ServiceCIDRs: what is not being deleted is ready, and what is being deleted goes once no address depends on it.
func RangeLoop() reconcile.Loop {
	return reconcile.Loop{
		Name: "service-cidr-controller",
		Inputs: []reconcile.Input{
			{Resource: cidrs.Name, Keys: overlapping},
			{Resource: addresses.Name, Keys: containing},
		},
		Outputs: []reconcile.Output{
			{Resource: cidrs.Name, Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: cidrs.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			c, ok := cidrs.Get(s, "", key.Name)
			if !ok {
				return reconcile.Plan{}, nil
			}
			return planRange(s, c, now), nil
		},
	}
}

// overlapping gives a ServiceCIDR and those that are being deleted, for which it may matter.
func overlapping(s store.Snapshot, ev store.Event) []reconcile.Key {
	keys := []reconcile.Key{{Name: ev.Entry.Name}}
	for c := range cidrs.List(s, "") {
		if c.DeletionTimestamp != nil && c.Name != ev.Entry.Name {
			keys = append(keys, reconcile.Key{Name: c.Name})
		}
	}
	return keys
}

// containing gives the ServiceCIDRs that are being deleted and have an address which came or went.
func containing(s store.Snapshot, ev store.Event) []reconcile.Key {
	ip, err := netip.ParseAddr(ev.Entry.Name)
	if err != nil {
		return nil
	}
	var keys []reconcile.Key
	for c := range cidrs.List(s, "") {
		if c.DeletionTimestamp != nil && has(c, ip) {
			keys = append(keys, reconcile.Key{Name: c.Name})
		}
	}
	return keys
}

func prefixes(c *networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range c.Spec.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// has tells whether an address is one that a ServiceCIDR gives out.
func has(c *networkingv1.ServiceCIDR, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes(c), func(p netip.Prefix) bool {
		return p.Contains(ip) && ip != p.Addr() && (ip.Is6() || p.Bits() > 30 || p.Contains(ip.Next()))
	})
}

func planRange(s store.Snapshot, c *networkingv1.ServiceCIDR, now time.Time) reconcile.Plan {
	if c.DeletionTimestamp != nil {
		return planEnd(s, c, now)
	}
	if !slices.Contains(c.Finalizers, Finalizer) {
		c = c.DeepCopy()
		c.Finalizers = append(c.Finalizers, Finalizer)
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: cidrs.Name, Object: c}}}
	}
	if meta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
		return reconcile.Plan{} // the default one has words of its own
	}
	return condition(c, metav1.Condition{Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready"}, now)
}

func condition(c *networkingv1.ServiceCIDR, cond metav1.Condition, now time.Time) reconcile.Plan {
	cond.Type, cond.LastTransitionTime = networkingv1.ServiceCIDRConditionReady, metav1.NewTime(now).Rfc3339Copy()
	had := meta.FindStatusCondition(c.Status.Conditions, cond.Type)
	if had != nil && had.Status == cond.Status && had.Reason == cond.Reason && had.Message == cond.Message {
		return reconcile.Plan{}
	}
	c = c.DeepCopy()
	meta.SetStatusCondition(&c.Status.Conditions, cond)
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: cidrs.Name, Subresource: "status", Object: c}}}
}

// planEnd lets a ServiceCIDR go that is being deleted, as soon as no address would be without one.
func planEnd(s store.Snapshot, c *networkingv1.ServiceCIDR, now time.Time) reconcile.Plan {
	if !slices.Contains(c.Finalizers, Finalizer) {
		return reconcile.Plan{}
	}
	if !spared(s, c) && used(s, c) {
		return condition(c, metav1.Condition{Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"}, now)
	}
	if wait := drain - now.Sub(c.DeletionTimestamp.Time); wait > 0 {
		return reconcile.Plan{After: wait}
	}
	c = c.DeepCopy()
	c.Finalizers = slices.DeleteFunc(c.Finalizers, func(f string) bool { return f == Finalizer })
	return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: cidrs.Name, Object: c}}}
}

// others walks the ServiceCIDRs that stay when c goes.
func others(s store.Snapshot, c *networkingv1.ServiceCIDR, fits func(o *networkingv1.ServiceCIDR) bool) bool {
	for o := range cidrs.List(s, "") {
		if o.Name != c.Name && o.DeletionTimestamp == nil && fits(o) {
			return true
		}
	}
	return false
}

// spared tells whether others contain all of c.
func spared(s store.Snapshot, c *networkingv1.ServiceCIDR) bool {
	for _, p := range prefixes(c) {
		if !others(s, c, func(o *networkingv1.ServiceCIDR) bool {
			return slices.ContainsFunc(prefixes(o), func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
		}) {
			return false
		}
	}
	return true
}

// used tells whether a service has an address of c that no other ServiceCIDR contains.
func used(s store.Snapshot, c *networkingv1.ServiceCIDR) bool {
	for a := range addresses.List(s, "") {
		ip, err := netip.ParseAddr(a.Name)
		if err != nil || a.Labels[networkingv1.LabelManagedBy] != Manager || !has(c, ip) {
			continue
		}
		if !others(s, c, func(o *networkingv1.ServiceCIDR) bool { return has(o, ip) }) {
			return true
		}
	}
	return false
}
