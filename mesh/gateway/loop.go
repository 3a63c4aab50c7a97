package gateway

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api"
	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Config is what the loop needs beside the store.
type Config struct {
	// Pools are where gateways get their addresses from, one of each; none if no node serves any.
	Pools []netip.Prefix
	// Nodes are the node's own addresses, which gateways may ask for and at which Ingresses are served.
	Nodes []netip.Addr
	// Loopback are addresses at which Ingresses are served too, without saying so in their status.
	Loopback []netip.Addr
	// Publisher makes the tables; nil if no node serves any.
	Publisher *Publisher
}

// What keys are about; others are resources of routes.
const (
	aboutGateway = "gateways"
	aboutService = "services"
	aboutPolicy  = "policies"
)

// effect is what a pass wants of the publisher.
type effect struct {
	rev     store.Revision
	owner   string
	part    *part // nil takes the owner out
	service string
	ports   map[portKey][]table.Endpoint
}

// LoopName is the name of Loop, which gives the tables their endpoints, those of Ingresses too: who waits until nobody is sent to one
// asks the engine by it.
const LoopName = "gateway-controller"

// Loop follows gateways, routes and what they refer to: it writes their status and publishes what they make of the table.
func Loop(c Config) reconcile.Loop {
	update := []reconcile.Verb{reconcile.Update}
	l := reconcile.Loop{
		Name: LoopName,
		Plan: c.plan,
		Apply: func(_ context.Context, _ reconcile.Key, e any) error {
			if c.Publisher == nil {
				return nil
			}
			f := e.(*effect)
			if f.service != "" {
				return c.Publisher.endpoints(f.service, f.rev, f.ports)
			}
			return c.Publisher.set(f.rev, owned{f.owner, f.part})
		},
		Failed: func(s store.Snapshot, key reconcile.Key, now time.Time, err error) reconcile.Plan {
			if key.Resource != aboutGateway {
				return reconcile.Plan{}
			}
			plan := c.planGateway(view{s, now}, key, err)
			plan.Effect = nil
			return plan
		},
		Inputs: []reconcile.Input{
			{Resource: client.GatewayClasses.Name, Keys: ofClass},
			{Resource: client.Gateways.Name, Keys: ofGateway},
			{Resource: client.ListenerSets.Name, Keys: ofListenerSet},
			{Resource: client.ReferenceGrants.Name, Keys: ofGrant},
			{Resource: client.BackendTLSPolicies.Name, Keys: ofPolicy},
			{Resource: client.Services.Name, Keys: ofService},
			{Resource: client.EndpointSlices.Name, Keys: ofSlice},
			{Resource: client.Secrets.Name, Keys: ofReferenced("Secret")},
			{Resource: client.ConfigMaps.Name, Keys: ofReferenced("ConfigMap")},
			{Resource: client.Namespaces.Name, Keys: ofNamespace},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Gateways.Name, Subresource: "status", Verbs: update},
			{Resource: client.ListenerSets.Name, Subresource: "status", Verbs: update},
			{Resource: client.BackendTLSPolicies.Name, Subresource: "status", Verbs: update},
		},
	}
	for _, k := range kinds {
		l.Inputs = append(l.Inputs, reconcile.Input{Resource: resources[k], Keys: ofRoute})
		l.Outputs = append(l.Outputs, reconcile.Output{Resource: resources[k], Subresource: "status", Verbs: update})
	}
	return l
}

func (c *Config) plan(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
	v := view{s, now}
	switch key.Resource {
	case aboutGateway:
		return c.planGateway(v, key, nil), nil
	case aboutService:
		return planService(v, key), nil
	case aboutPolicy:
		p, ok := client.BackendTLSPolicies.Get(v, key.Namespace, key.Name)
		if !ok {
			return reconcile.Plan{}, nil
		}
		out := v.policyStatus(p)
		if out == nil {
			return reconcile.Plan{}, nil
		}
		return reconcile.Plan{Writes: []reconcile.Write{status(client.BackendTLSPolicies.Name, out)}}, nil
	}
	e := s.Get(store.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name})
	if e == nil {
		return reconcile.Plan{}, nil
	}
	if out := v.routeStatus(e.Object.(api.Object)); out != nil {
		return reconcile.Plan{Writes: []reconcile.Write{status(key.Resource, out)}}, nil
	}
	return reconcile.Plan{}, nil
}

func status(resource string, o api.Object) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: resource, Subresource: "status", Object: o}
}

// planGateway works out a gateway. failed is why it could not be served as it was worked out before.
func (c *Config) planGateway(v view, key reconcile.Key, failed error) reconcile.Plan {
	out := &effect{rev: v.Revision(), owner: "gateway/" + key.Namespace + "/" + key.Name}
	plan := reconcile.Plan{Effect: out}
	g, ok := v.ours(key.Namespace, key.Name)
	if !ok || g.DeletionTimestamp != nil {
		return plan
	}
	m := v.model(g)
	m.attachAll()
	at := c.place(v, g)
	var bad error
	if len(at.addresses) > 0 {
		out.part, bad = m.tables(at.addresses)
		if out.part != nil {
			out.part.addresses = slices.DeleteFunc(slices.Clone(at.addresses), func(a netip.Addr) bool { return slices.Contains(c.Nodes, a) })
		}
	}
	if bad == nil {
		bad = failed
	}
	if g := m.gatewayStatus(at, bad); g != nil {
		plan.Writes = append(plan.Writes, status(client.Gateways.Name, g))
	}
	for _, s := range m.sets {
		if set := m.setStatus(s); set != nil {
			plan.Writes = append(plan.Writes, status(client.ListenerSets.Name, set))
		}
	}
	return plan
}

// planService gives the backends of a service their endpoints.
func planService(v view, key reconcile.Key) reconcile.Plan {
	out := &effect{rev: v.Revision(), service: key.Namespace + "/" + key.Name, ports: map[portKey][]table.Endpoint{}}
	for slice := range client.EndpointSlices.Index(v, "service", out.service) {
		for _, p := range slice.Ports {
			k := portKey{value(p.Name, ""), value(p.Protocol, corev1.ProtocolTCP)}
			if _, done := out.ports[k]; !done {
				out.ports[k] = endpoints(v, out.service, k.name, k.proto)
			}
		}
	}
	return reconcile.Plan{Effect: out}
}

// keys collects keys, each once.
type keys []reconcile.Key

func (k *keys) add(about, namespace, name string) {
	key := reconcile.Key{Resource: about, Namespace: namespace, Name: name}
	if !slices.Contains(*k, key) {
		*k = append(*k, key)
	}
}

func (k *keys) route(r *route) { k.add(resources[r.kind], r.GetNamespace(), r.GetName()) }

// gateway adds a gateway and the routes that hang on it.
func (k *keys) gateway(v view, namespace, name string) {
	k.add(aboutGateway, namespace, name)
	for _, r := range v.routes("Gateway", namespace, name) {
		k.route(r)
	}
	for s := range client.ListenerSets.Index(v, gatewayapi.ByParent, gatewayapi.Reference("Gateway", namespace, name)) {
		for _, r := range v.routes("ListenerSet", s.Namespace, s.Name) {
			k.route(r)
		}
	}
}

// routed adds a route and the gateways that it hangs on.
func (k *keys) routed(v view, o any) {
	r := routeOf(o)
	k.route(r)
	for _, g := range gatewaysOf(v, o) {
		k.add(aboutGateway, g.Namespace, g.Name)
	}
}

// referring adds what refers to an object.
func (k *keys) referring(v view, kind, namespace, name string) {
	ref := gatewayapi.Reference(kind, namespace, name)
	for g := range client.Gateways.Index(v, gatewayapi.ByReference, ref) {
		k.add(aboutGateway, g.Namespace, g.Name)
	}
	for s := range client.ListenerSets.Index(v, gatewayapi.ByReference, ref) {
		k.listenerSet(s)
	}
	for p := range client.BackendTLSPolicies.Index(v, gatewayapi.ByReference, ref) {
		k.policy(v, p)
	}
	for _, kind := range kinds {
		for e := range v.Index(resources[kind], gatewayapi.ByReference, ref) {
			k.routed(v, e.Object)
		}
	}
}

func (k *keys) listenerSet(s *gatewayv1.ListenerSet) {
	k.add(aboutGateway, string(value(s.Spec.ParentRef.Namespace, gatewayv1.Namespace(s.Namespace))), string(s.Spec.ParentRef.Name))
}

// policy adds a policy and the gateways whose backends it concerns.
func (k *keys) policy(v view, p *gatewayv1.BackendTLSPolicy) {
	k.add(aboutPolicy, p.Namespace, p.Name)
	for _, g := range v.ancestors(p) {
		k.add(aboutGateway, g.Namespace, g.Name)
	}
}

func ofClass(s store.Snapshot, ev store.Event) []reconcile.Key {
	var k keys
	for g := range client.Gateways.Index(s, gatewayapi.ByClass, ev.Entry.Name) {
		k.gateway(view{Snapshot: s}, g.Namespace, g.Name)
	}
	return k
}

func ofGateway(s store.Snapshot, ev store.Event) []reconcile.Key {
	v := view{Snapshot: s}
	var k keys
	now := ev.Entry.Object.(*gatewayv1.Gateway)
	if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(*gatewayv1.Gateway).Generation == now.Generation {
		k.add(aboutGateway, now.Namespace, now.Name) // its status, or its labels
		return k
	}
	k.gateway(v, now.Namespace, now.Name)
	for _, r := range v.routes("Gateway", now.Namespace, now.Name) {
		for _, p := range policiesOf(v, r) {
			k.add(aboutPolicy, p.Namespace, p.Name)
		}
	}
	if ev.Deleted { // its address is free for one that waits
		for g := range client.Gateways.List(s, "") {
			if len(g.Status.Addresses) == 0 {
				k.add(aboutGateway, g.Namespace, g.Name)
			}
		}
	}
	return k
}

// policiesOf are the policies about the backends of a route.
func policiesOf(v view, r *route) []*gatewayv1.BackendTLSPolicy {
	var out []*gatewayv1.BackendTLSPolicy
	for p := range client.BackendTLSPolicies.List(v, "") {
		for _, g := range v.ancestors(p) {
			if slices.Contains(gatewaysOf(v, r.Object), g) {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

func ofListenerSet(s store.Snapshot, ev store.Event) []reconcile.Key {
	var k keys
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e != nil {
			o := e.Object.(*gatewayv1.ListenerSet)
			p := &o.Spec.ParentRef
			k.gateway(view{Snapshot: s}, string(value(p.Namespace, gatewayv1.Namespace(o.Namespace))), string(p.Name))
		}
	}
	return k
}

func ofRoute(s store.Snapshot, ev store.Event) []reconcile.Key {
	v := view{Snapshot: s}
	var k keys
	if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(api.Object).GetGeneration() == ev.Entry.Object.(api.Object).GetGeneration() {
		k.route(routeOf(ev.Entry.Object)) // its status, or its labels
		return k
	}
	k.routed(v, ev.Entry.Object)
	if ev.Prev != nil {
		k.routed(v, ev.Prev.Object)
	}
	if client.BackendTLSPolicies.Name != "" && s.Count(client.BackendTLSPolicies.Name, "") > 0 {
		for p := range client.BackendTLSPolicies.List(s, "") {
			k.add(aboutPolicy, p.Namespace, p.Name)
		}
	}
	return k
}

// ofGrant concerns whoever it lets refer to its namespace.
func ofGrant(s store.Snapshot, ev store.Event) []reconcile.Key {
	v := view{Snapshot: s}
	var k keys
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e == nil {
			continue
		}
		for _, f := range e.Object.(*gatewayv1.ReferenceGrant).Spec.From {
			namespace := string(f.Namespace)
			for g := range client.Gateways.List(s, namespace) {
				k.add(aboutGateway, g.Namespace, g.Name)
			}
			for set := range client.ListenerSets.List(s, namespace) {
				k.listenerSet(set)
			}
			if resource, ok := resources[string(f.Kind)]; ok {
				for o := range s.List(resource, namespace, nil) {
					k.routed(v, o.Object)
				}
			}
		}
	}
	return k
}

func ofPolicy(s store.Snapshot, ev store.Event) []reconcile.Key {
	v := view{Snapshot: s}
	var k keys
	if ev.Prev != nil && !ev.Deleted && ev.Prev.Object.(api.Object).GetGeneration() == ev.Entry.Object.(api.Object).GetGeneration() {
		return k // its status, which the loop wrote
	}
	for _, e := range []*store.Entry{ev.Entry, ev.Prev} {
		if e == nil {
			continue
		}
		p := e.Object.(*gatewayv1.BackendTLSPolicy)
		k.policy(v, p)
		for i := range p.Spec.TargetRefs { // others may be in conflict with it, or no longer
			for _, o := range v.policies(p.Namespace, string(p.Spec.TargetRefs[i].Name)) {
				k.add(aboutPolicy, o.Namespace, o.Name)
			}
		}
	}
	return k
}

func ofService(s store.Snapshot, ev store.Event) []reconcile.Key {
	var k keys
	k.referring(view{Snapshot: s}, "Service", ev.Entry.Namespace, ev.Entry.Name)
	return k
}

func ofReferenced(kind string) func(store.Snapshot, store.Event) []reconcile.Key {
	return func(s store.Snapshot, ev store.Event) []reconcile.Key {
		v := view{Snapshot: s}
		var k keys
		k.referring(v, kind, ev.Entry.Namespace, ev.Entry.Name)
		return k
	}
}

// ofSlice concerns the service of a slice, if a route or an ingress leads there.
func ofSlice(s store.Snapshot, ev store.Event) []reconcile.Key {
	name := ev.Entry.Object.(*discoveryv1.EndpointSlice).Labels[discoveryv1.LabelServiceName]
	if name == "" || !wanted(s, ev.Entry.Namespace, name) {
		return nil
	}
	return []reconcile.Key{{Resource: aboutService, Namespace: ev.Entry.Namespace, Name: name}}
}

// wanted tells whether anything leads to a service.
func wanted(s store.Snapshot, namespace, name string) bool {
	ref := gatewayapi.Reference("Service", namespace, name)
	for _, k := range kinds {
		for range s.Index(resources[k], gatewayapi.ByReference, ref) {
			return true
		}
	}
	for range s.Index(client.Ingresses.Name, gatewayapi.ByReference, ref) {
		return true
	}
	return false
}

// ofNamespace concerns, when the labels change, the gateways that choose namespaces by them and the routes within.
func ofNamespace(s store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Prev == nil || ev.Deleted {
		return nil
	}
	v := view{Snapshot: s}
	var k keys
	for _, kind := range kinds {
		for e := range s.List(resources[kind], ev.Entry.Name, nil) {
			k.routed(v, e.Object)
		}
	}
	for set := range client.ListenerSets.List(s, ev.Entry.Name) {
		k.listenerSet(set)
	}
	return k
}
