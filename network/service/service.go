// Package service makes Services reachable: connections to a cluster address or a node port
// go to one of the ready endpoints.
//
// It owns the node's balancing table. Its plan is pure: one Service and its EndpointSlices in,
// fronts and backends out. It never looks at pods, and allocates nothing.
package service

import (
	"context"
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
	Set(id string, fronts []nft.Front, backends []netip.AddrPort, sticky time.Duration) error
	Remove(id string) error
}

// Port is what one port of a Service wants.
type Port struct {
	ID       string // "<namespace>/<name>/<port>"
	Fronts   []nft.Front
	Backends []netip.AddrPort
	Sticky   time.Duration // how long a client keeps its backend, 0 for each connection anew
}

// Plan says what the ports of a Service want; nothing for one that has no cluster
// address. Addresses in served are answered by the node itself (the cluster's DNS) and left out.
// Ready endpoints serve; if there is none, those that are terminating but still serve do
// (KEP-1669).
func Plan(s store.Snapshot, namespace, name string, served map[netip.Addr]bool) []Port {
	svc, ok := client.Services.Get(s, namespace, name)
	if !ok || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var ports []Port
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		want := Port{ID: namespace + "/" + name + "/" + string(p.Protocol) + "/" + p.Name, Sticky: sticky(svc)}
		number := nft.Protocol(string(p.Protocol))
		for _, text := range append(append([]string{}, svc.Spec.ClusterIPs...), svc.Spec.ExternalIPs...) {
			if ip, err := netip.ParseAddr(text); err == nil && !served[ip] {
				want.Fronts = append(want.Fronts, nft.Front{Addr: ip, Proto: number, Port: uint16(p.Port)})
			}
		}
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			if ip, err := netip.ParseAddr(ingress.IP); err == nil {
				want.Fronts = append(want.Fronts, nft.Front{Addr: ip, Proto: number, Port: uint16(p.Port)})
			}
		}
		if len(want.Fronts) == 0 {
			continue
		}
		if p.NodePort > 0 {
			want.Fronts = append(want.Fronts, nft.Front{Proto: number, Port: uint16(p.NodePort)})
		}
		want.Backends = backends(s, svc, p)
		ports = append(ports, want)
	}
	return ports
}

// sticky is how long a client keeps its backend.
func sticky(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := int32(corev1.DefaultClientIPServiceAffinitySeconds)
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

func backends(s store.Snapshot, svc *corev1.Service, p *corev1.ServicePort) []netip.AddrPort {
	var ready, serving []netip.AddrPort
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		port := portOf(slice, p)
		if port == 0 {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(e.Addresses) == 0 {
				continue
			}
			ip, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			at := netip.AddrPortFrom(ip, port)
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready = append(ready, at)
			} else if is(e.Conditions.Serving) && is(e.Conditions.Terminating) {
				serving = append(serving, at)
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return serving
}

func is(b *bool) bool { return b != nil && *b }

// portOf finds the slice's port that has the name and protocol of a Service's.
func portOf(slice *discoveryv1.EndpointSlice, p *corev1.ServicePort) uint16 {
	for i := range slice.Ports {
		e := &slice.Ports[i]
		name, proto := "", corev1.ProtocolTCP
		if e.Name != nil {
			name = *e.Name
		}
		if e.Protocol != nil {
			proto = *e.Protocol
		}
		if name == p.Name && proto == p.Protocol && e.Port != nil {
			return uint16(*e.Port)
		}
	}
	return 0
}

// Loop keeps a Balancer as the Services want it. served are addresses that the node
// answers itself.
func Loop(b Balancer, served ...netip.Addr) reconcile.Loop {
	skip := map[netip.Addr]bool{}
	for _, ip := range served {
		skip[ip] = true
	}
	applied := newApplied(b)
	return reconcile.Loop{
		Name: "service-proxy",
		// A history that was cut may have held deletions: what is left of them goes at each start.
		Always: []reconcile.Key{sweep},
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name},
			{Resource: client.EndpointSlices.Name, Keys: func(_ store.Snapshot, ev store.Event) []reconcile.Key {
				labels := ev.Entry.Object.(*discoveryv1.EndpointSlice).Labels
				return []reconcile.Key{{Namespace: ev.Entry.Namespace, Name: labels[discoveryv1.LabelServiceName]}}
			}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			if key == sweep {
				return reconcile.Plan{Effect: existing(s)}, nil
			}
			return reconcile.Plan{Effect: Plan(s, key.Namespace, key.Name, skip)}, nil
		},
		Apply: func(_ context.Context, key reconcile.Key, effect any) error {
			if exists, ok := effect.(map[reconcile.Key]bool); ok {
				return applied.keep(exists)
			}
			return applied.apply(key, effect.([]Port))
		},
	}
}

// sweep is the key of a pass over all Services. No object has such a name.
var sweep = reconcile.Key{Name: "*"}

func existing(s store.Snapshot) map[reconcile.Key]bool {
	all := map[reconcile.Key]bool{}
	for svc := range client.Services.List(s, "") {
		all[reconcile.Key{Namespace: svc.Namespace, Name: svc.Name}] = true
	}
	return all
}

// applied remembers which ports each Service has in the balancer. Loop has one worker, so
// that it is used by one goroutine at a time.
type applied struct {
	balancer Balancer
	ids      map[reconcile.Key][]string
}

func newApplied(b Balancer) *applied {
	return &applied{balancer: b, ids: map[reconcile.Key][]string{}}
}

func (a *applied) apply(key reconcile.Key, ports []Port) error {
	wanted := map[string]bool{}
	for _, p := range ports {
		wanted[p.ID] = true
	}
	// What goes makes room first: a port may have changed its name.
	for _, id := range a.ids[key] {
		if !wanted[id] {
			if err := a.balancer.Remove(id); err != nil {
				return err
			}
		}
	}
	ids := make([]string, 0, len(ports))
	for _, p := range ports {
		ids = append(ids, p.ID)
	}
	if len(ids) == 0 {
		delete(a.ids, key)
	} else {
		a.ids[key] = ids
	}
	for _, p := range ports {
		if err := a.balancer.Set(p.ID, p.Fronts, p.Backends, p.Sticky); err != nil {
			return err
		}
	}
	return nil
}

// keep removes the ports of Services that do not exist.
func (a *applied) keep(exists map[reconcile.Key]bool) error {
	for key := range a.ids {
		if !exists[key] {
			if err := a.apply(key, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
