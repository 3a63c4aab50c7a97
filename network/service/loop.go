package service

import (
	"context"
	"errors"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Balancer is what a plan is carried out by; *nft.Balancer is one.
type Balancer interface {
	Apply(changes map[string]*nft.Group) error
	SetVirtual(ranges []netip.Prefix) error
}

// LoopName is the name of Loop; who waits until the node's rules are as of a revision asks the engine by it.
const LoopName = "service-proxy"

// Keys of passes that are not about one Service. No object has such names.
var (
	sweep  = reconcile.Key{Name: "*"}       // all Services
	ranges = reconcile.Key{Name: "ranges*"} // the ServiceCIDRs
)

// Loop keeps a Balancer as the Services want it, and serves their health check ports with h.
func Loop(b Balancer, h *HealthPorts, o Options) reconcile.Loop {
	applied := &applied{balancer: b, health: h, ids: map[reconcile.Key][]string{}}
	return reconcile.Loop{
		Name: LoopName,
		// At the start all is done in a few large transactions; the pass for each Service then finds nothing to change. And
		// a history that was cut may have held deletions: what is left of them goes at each start.
		Always: []reconcile.Key{ranges, sweep},
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name},
			{Resource: client.EndpointSlices.Name, Keys: ofSlice},
			{Resource: client.ServiceCIDRs.Name, Keys: func(store.Snapshot, store.Event) []reconcile.Key { return []reconcile.Key{ranges} }},
			{Resource: client.Nodes.Name, Keys: o.ofNode},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			switch key {
			case sweep:
				return reconcile.Plan{Effect: o.everything(s)}, nil
			case ranges:
				return reconcile.Plan{Effect: virtual(s)}, nil
			}
			return reconcile.Plan{Effect: o.Plan(s, key.Namespace, key.Name)}, nil
		},
		Apply: func(_ context.Context, key reconcile.Key, effect any) error {
			switch e := effect.(type) {
			case []netip.Prefix:
				return b.SetVirtual(e)
			case map[reconcile.Key]Wanted:
				return applied.all(e)
			}
			return applied.apply(map[reconcile.Key]Wanted{key: effect.(Wanted)})
		},
	}
}

// ofSlice gives the Services that a slice belongs to, or did.
func ofSlice(_ store.Snapshot, ev store.Event) []reconcile.Key {
	var keys []reconcile.Key
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e == nil {
			continue
		}
		key := reconcile.Key{Namespace: e.Namespace, Name: e.Object.(*discoveryv1.EndpointSlice).Labels[discoveryv1.LabelServiceName]}
		if key.Name != "" && (len(keys) == 0 || keys[0] != key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// ofNode asks for all Services when the own node comes into another zone.
func (o Options) ofNode(_ store.Snapshot, ev store.Event) []reconcile.Key {
	n := ev.Entry.Object.(*corev1.Node)
	if n.Name != o.NodeName || ev.Deleted {
		return nil
	}
	was := ""
	if ev.Prev != nil {
		was = ev.Prev.Object.(*corev1.Node).Labels[corev1.LabelTopologyZone]
	}
	if was == n.Labels[corev1.LabelTopologyZone] {
		return nil
	}
	return []reconcile.Key{sweep}
}

func (o Options) everything(s store.Snapshot) map[reconcile.Key]Wanted {
	all := map[reconcile.Key]Wanted{}
	for svc := range client.Services.List(s, "") {
		all[reconcile.Key{Namespace: svc.Namespace, Name: svc.Name}] = o.Plan(s, svc.Namespace, svc.Name)
	}
	return all
}

// virtual are the ranges of all ServiceCIDRs, those too that are going: their addresses may be in use.
func virtual(s store.Snapshot) []netip.Prefix {
	all := []netip.Prefix{}
	for c := range client.ServiceCIDRs.List(s, "") {
		for _, text := range c.Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				all = append(all, p.Masked())
			}
		}
	}
	return all
}

// applied remembers which ports each Service has in the balancer. Loop has one worker, so
// that it is used by one goroutine at a time.
type applied struct {
	balancer Balancer
	health   *HealthPorts
	ids      map[reconcile.Key][]string
}

// apply carries out what the Services want.
func (a *applied) apply(services map[reconcile.Key]Wanted) error {
	changes := map[string]*nft.Group{}
	for key := range services {
		for _, id := range a.ids[key] {
			changes[id] = nil
		}
	}
	for key, w := range services {
		ids := make([]string, 0, len(w.Ports))
		for _, p := range w.Ports {
			ids = append(ids, p.ID)
			changes[p.ID] = p.Group
		}
		if len(ids) == 0 {
			delete(a.ids, key)
		} else {
			a.ids[key] = ids
		}
	}
	errs := []error{a.balancer.Apply(changes)}
	if a.health != nil {
		for key, w := range services {
			a.health.set(key, w.UID, w.Health)
		}
	}
	return errors.Join(errs...)
}

// all is apply for every Service there is: what others have goes.
func (a *applied) all(services map[reconcile.Key]Wanted) error {
	for key := range a.ids {
		if _, exists := services[key]; !exists {
			services[key] = Wanted{}
		}
	}
	return a.apply(services)
}
