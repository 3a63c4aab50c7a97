package balance

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// retry is how soon a Service is looked at again that got no address. Addresses that become free are not told of one by one.
const retry = 5 * time.Second

// Loop is the controller of load balancers. It has one worker, so that no address is given twice.
func Loop(c Config) reconcile.Loop {
	return reconcile.Loop{
		Name: "service-lb-controller", ServiceAccount: "service-controller", Source: "service-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name},
			{Resource: client.Nodes.Name, Keys: c.ofNode},
			{Resource: client.EndpointSlices.Name, Keys: c.ofSlice},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Services.Name, Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.Services.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return c.plan(s, key), nil
		},
	}
}

// balancers gives all Services of type LoadBalancer.
func balancers(s store.Snapshot) []reconcile.Key {
	var keys []reconcile.Key
	for svc := range client.Services.List(s, "") {
		if ours(svc) {
			keys = append(keys, reconcile.Key{Namespace: svc.Namespace, Name: svc.Name})
		}
	}
	return keys
}

// ofNode gives all balancers when a node comes to bear addresses or ceases to, where nodes' addresses are used.
func (c Config) ofNode(s store.Snapshot, ev store.Event) []reconcile.Key {
	if len(c.Pool) > 0 || !bearingChanged(ev) {
		return nil
	}
	return balancers(s)
}

// bearingChanged tells whether a change of a node matters to load balancers.
func bearingChanged(ev store.Event) bool {
	if ev.Deleted || ev.Prev == nil {
		return true
	}
	was, is := ev.Prev.Object.(*corev1.Node), ev.Entry.Object.(*corev1.Node)
	_, outBefore := was.Labels[excluded]
	_, out := is.Labels[excluded]
	return ready(was) != ready(is) || out != outBefore || !equality.Semantic.DeepEqual(was.Status.Addresses, is.Status.Addresses)
}

// ofSlice gives a balancer whose traffic stays where its endpoints are, when those move.
func (c Config) ofSlice(s store.Snapshot, ev store.Event) []reconcile.Key {
	slice := ev.Entry.Object.(*discoveryv1.EndpointSlice)
	svc, ok := client.Services.Get(s, slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])
	if len(c.Pool) > 0 || !ok || !ours(svc) || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return nil
	}
	return []reconcile.Key{{Namespace: svc.Namespace, Name: svc.Name}}
}

// Announcing is who answers for addresses; *Announcer is one.
type Announcing interface {
	// Set replaces the addresses that are answered for.
	Set(addrs []netip.Addr) error
}

// AnnounceLoop has a node answer for the addresses that it is the bearer of.
func AnnounceLoop(c Config, node string, a Announcing) reconcile.Loop {
	all := reconcile.Key{Name: "*"}
	one := func(store.Snapshot, store.Event) []reconcile.Key { return []reconcile.Key{all} }
	return reconcile.Loop{
		Name:   "load-balancer-announcer",
		Always: []reconcile.Key{all},
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				svc := ev.Entry.Object.(*corev1.Service)
				if ours(svc) || ev.Prev != nil && ours(ev.Prev.Object.(*corev1.Service)) {
					return []reconcile.Key{all}
				}
				return nil
			}},
			{Resource: client.Nodes.Name, Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
				if !bearingChanged(ev) {
					return nil
				}
				return one(s, ev)
			}},
			{Resource: client.EndpointSlices.Name, Keys: func(s store.Snapshot, ev store.Event) []reconcile.Key {
				slice := ev.Entry.Object.(*discoveryv1.EndpointSlice)
				svc, ok := client.Services.Get(s, slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])
				if !ok || !ours(svc) || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
					return nil
				}
				return []reconcile.Key{all}
			}},
		},
		Plan: func(s store.Snapshot, _ reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			var addrs []netip.Addr
			for a := range c.Announced(s, node) {
				addrs = append(addrs, a)
			}
			slices.SortFunc(addrs, netip.Addr.Compare)
			return reconcile.Plan{Effect: addrs}, nil
		},
		Apply: func(_ context.Context, _ reconcile.Key, effect any) error { return a.Set(effect.([]netip.Addr)) },
	}
}
