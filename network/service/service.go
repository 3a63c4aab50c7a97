// Package service makes Services reachable: connections to a cluster address, a node port, an external or a load balancer's
// address go to one of the endpoints that upstream's proxy would choose.
//
// It owns the node's balancing table and the health check ports of Services. Its plan is pure: one Service, its EndpointSlices and the
// own Node in, fronts and backends out. It never looks at pods, and allocates nothing.
package service

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/store"
)

// Options say for which node is planned, and how.
type Options struct {
	// NodeName is the own node's.
	NodeName string
	// Served are addresses that the node answers itself (the cluster's DNS); they are left out.
	Served []netip.Addr
	// ExternalIPs has spec.externalIPs followed. They let whoever may write a Service take over traffic to any address
	// (CVE-2020-8554), so that it is off if nobody asked for it.
	ExternalIPs bool
}

// Port is what one port of a Service wants.
type Port struct {
	ID    string // "<namespace>/<name>/<protocol>/<port>"
	Group *nft.Group
}

// Health is the health check port of a Service (spec.healthCheckNodePort).
type Health struct {
	Port uint16
	// Local is how many endpoints of the Service this node has to offer.
	Local int
}

// Wanted is what a Service wants of this node.
type Wanted struct {
	Ports  []Port
	Health Health    // Port 0: none
	UID    types.UID // of the Service, where there is a health check port
}

// The pools of a Port's Group.
const (
	clusterPool = iota // for the traffic policy Cluster
	localPool          // for Local: those on this node
)

// Plan says what a Service wants; nothing for one that has no cluster address.
func (o Options) Plan(s store.Snapshot, namespace, name string) Wanted {
	svc, ok := client.Services.Get(s, namespace, name)
	if !ok || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return Wanted{}
	}
	zone := ""
	if n, ok := client.Nodes.Get(s, "", o.NodeName); ok {
		zone = n.Labels[corev1.LabelTopologyZone]
	}
	var w Wanted
	local := 0
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		all := o.endpoints(s, svc, p)
		chosen := map[corev1.IPFamily]choice{}
		for family, endpoints := range all {
			chosen[family] = choose(endpoints, o.NodeName, zone)
		}
		g := &nft.Group{Sticky: sticky(svc), Pools: [][]nft.Backend{nil, nil}}
		o.routes(g, svc, p, chosen)
		if len(g.Routes) == 0 {
			continue
		}
		here := map[netip.Addr]bool{}
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			c := chosen[family]
			g.Pools[clusterPool] = append(g.Pools[clusterPool], c.cluster...)
			g.Keep = append(g.Keep, c.serving...)
			for _, k := range c.local {
				here[k.Addr.Addr()] = true
			}
			if usesLocal(svc) {
				g.Pools[localPool] = append(g.Pools[localPool], c.local...)
			}
		}
		local = max(local, len(here))
		w.Ports = append(w.Ports, Port{ID: namespace + "/" + name + "/" + string(p.Protocol) + "/" + p.Name, Group: g})
	}
	if svc.Spec.HealthCheckNodePort > 0 && external(svc) && len(w.Ports) > 0 {
		w.Health, w.UID = Health{Port: uint16(svc.Spec.HealthCheckNodePort), Local: local}, svc.UID
	}
	return w
}

// external tells whether traffic from outside stays on the node that it came to.
func external(svc *corev1.Service) bool {
	return svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func internal(svc *corev1.Service) bool {
	return svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
}

func usesLocal(svc *corev1.Service) bool { return external(svc) || internal(svc) }

// routes are the fronts of a Service's port.
func (o Options) routes(g *nft.Group, svc *corev1.Service, p *corev1.ServicePort, chosen map[corev1.IPFamily]choice) {
	number := nft.Protocol(string(p.Protocol))
	if number == 0 {
		return
	}
	for _, text := range svc.Spec.ClusterIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil || slices.Contains(o.Served, ip) {
			continue
		}
		r := nft.Route{Front: nft.Front{Addr: ip, Proto: number, Port: uint16(p.Port)}, Source: nft.HideOutside, Empty: nft.RefuseEmpty}
		if internal(svc) {
			r.Pool, r.Empty = localPool, chosen[familyOf(ip)].empty()
		}
		g.Routes = append(g.Routes, r)
	}
	if len(g.Routes) == 0 {
		return
	}
	outside := func(f nft.Front, family corev1.IPFamily, allowed []netip.Prefix) {
		r := nft.Route{Front: f, Source: nft.HideSource, Empty: nft.RefuseEmpty, Allowed: allowed}
		if external(svc) {
			// What comes from this node and its pods goes where a balancer outside would send it: anywhere.
			near := r
			near.Front.Near, near.Source, near.Allowed = true, nft.HideOutside, nil
			r.Pool, r.Source, r.Empty = localPool, nft.KeepSource, chosen[family].empty()
			g.Routes = append(g.Routes, near)
		}
		g.Routes = append(g.Routes, r)
	}
	if p.NodePort > 0 {
		for _, family := range svc.Spec.IPFamilies {
			f := nft.Front{Proto: number, Port: uint16(p.NodePort), Family: 4}
			if family == corev1.IPv6Protocol {
				f.Family = 6
			}
			outside(f, family, nil)
		}
	}
	if o.ExternalIPs {
		for _, text := range svc.Spec.ExternalIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				outside(nft.Front{Addr: ip, Proto: number, Port: uint16(p.Port)}, familyOf(ip), nil)
			}
		}
	}
	allowed := sourceRanges(svc)
	for _, ip := range Ingress(svc) {
		outside(nft.Front{Addr: ip, Proto: number, Port: uint16(p.Port)}, familyOf(ip), allowed)
		g.Refused = append(g.Refused, ip)
	}
}

// Ingress are the addresses of a Service of type LoadBalancer whose packets arrive with them (ipMode VIP, KEP-1860).
func Ingress(svc *corev1.Service) []netip.Addr {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var all []netip.Addr
	for i := range svc.Status.LoadBalancer.Ingress {
		in := &svc.Status.LoadBalancer.Ingress[i]
		if in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		if ip, err := netip.ParseAddr(in.IP); err == nil && !slices.Contains(all, ip) {
			all = append(all, ip)
		}
	}
	return all
}

// sourceRanges are the clients that may use a load balancer's address, nil for all; the annotation is the older way to say it.
func sourceRanges(svc *corev1.Service) []netip.Prefix {
	texts := svc.Spec.LoadBalancerSourceRanges
	if len(texts) == 0 {
		if a := strings.TrimSpace(svc.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]); a != "" {
			texts = strings.Split(a, ",")
		}
	}
	if len(texts) == 0 {
		return nil
	}
	all := []netip.Prefix{}
	for _, text := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
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

// endpoint is one of a Service's as a slice tells of it.
type endpoint struct {
	at nft.Backend
	// ready ones serve; those that are ending but still serve do where there is no other (KEP-1669).
	ready, serving, ending bool
	hints                  *discoveryv1.EndpointHints
}

// endpoints are those of a Service's port, by family.
func (o Options) endpoints(s store.Snapshot, svc *corev1.Service, p *corev1.ServicePort) map[corev1.IPFamily][]endpoint {
	all := map[corev1.IPFamily][]endpoint{}
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		port := portOf(slice, p)
		if port == 0 || slice.DeletionTimestamp != nil {
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
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			serving := ready
			if e.Conditions.Serving != nil {
				serving = *e.Conditions.Serving
			}
			all[familyOf(ip)] = append(all[familyOf(ip)], endpoint{
				at:    nft.Backend{Addr: netip.AddrPortFrom(ip, port), Local: e.NodeName != nil && *e.NodeName == o.NodeName},
				ready: ready, serving: serving, ending: e.Conditions.Terminating != nil && *e.Conditions.Terminating, hints: e.Hints})
		}
	}
	return all
}

// choice is which endpoints of one family serve on this node.
type choice struct {
	cluster, local []nft.Backend
	// serving are all whose connections go on.
	serving []netip.AddrPort
}

// empty says what becomes of connections that only local endpoints may have, where there is none: they are dropped, so that a balancer
// outside goes on to another node, unless there is nobody anywhere.
func (c choice) empty() nft.Empty {
	if len(c.cluster) > 0 {
		return nft.DropEmpty
	}
	return nft.RefuseEmpty
}

// choose follows KEP-1669 (endpoints that are ending), KEP-2433 and KEP-3015 (hints).
func choose(all []endpoint, node, zone string) choice {
	var c choice
	keep := topology(all, node, zone)
	var ending, localEnding []nft.Backend
	for i := range all {
		e := &all[i]
		if e.serving {
			c.serving = append(c.serving, e.at.Addr)
		}
		switch {
		case e.ready:
			if keep(e) {
				c.cluster = append(c.cluster, e.at)
			}
			if e.at.Local {
				c.local = append(c.local, e.at)
			}
		case e.serving && e.ending:
			ending = append(ending, e.at)
			if e.at.Local {
				localEnding = append(localEnding, e.at)
			}
		}
	}
	if len(c.cluster) == 0 {
		c.cluster = ending
	}
	if len(c.local) == 0 {
		c.local = localEnding
	}
	return c
}

// topology tells which endpoints hints leave to this node: those for the node if every ready endpoint has such a hint and one
// names this node; else those for the zone under the same conditions; else all.
func topology(all []endpoint, node, zone string) func(*endpoint) bool {
	forNode := func(e *endpoint) bool {
		return slices.ContainsFunc(e.hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == node })
	}
	forZone := func(e *endpoint) bool {
		return slices.ContainsFunc(e.hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == zone })
	}
	nodes, zones, here, near := true, true, false, false
	for i := range all {
		e := &all[i]
		if !e.ready {
			continue
		}
		if e.hints == nil {
			return func(*endpoint) bool { return true }
		}
		nodes, zones = nodes && len(e.hints.ForNodes) > 0, zones && len(e.hints.ForZones) > 0
		here, near = here || forNode(e), near || zone != "" && forZone(e)
	}
	switch {
	case nodes && here:
		return forNode
	case zones && near:
		return forZone
	}
	return func(*endpoint) bool { return true }
}

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
