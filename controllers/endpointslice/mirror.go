package endpointslice

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

const (
	mirrorManager = "endpointslicemirroring-controller.k8s.io"
	// mirrored is how many addresses of a subset are mirrored at most.
	mirrored       = 1000
	leaderElection = "control-plane.alpha.kubernetes.io/leader"
)

// MirrorLoop is the loop that shows Endpoints which somebody wrote for a service without a selector as slices.
// Its keys are Endpoints.
func MirrorLoop() reconcile.Loop {
	return reconcile.Loop{
		Name:    "endpointslicemirroring-controller",
		Workers: 5,
		Inputs: []reconcile.Input{
			{Resource: client.Endpoints.Name},
			{Resource: client.Services.Name},
			{Resource: client.EndpointSlices.Name, Keys: ofMirror},
		},
		Outputs: []reconcile.Output{{Resource: client.EndpointSlices.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return mirror(s, key), nil
		},
	}
}

// ofMirror gives the Endpoints that a slice of ours mirrors.
func ofMirror(_ store.Snapshot, ev store.Event) []reconcile.Key {
	slice := ev.Entry.Object.(*discoveryv1.EndpointSlice)
	if slice.Labels[discoveryv1.LabelManagedBy] != mirrorManager {
		return nil
	}
	return []reconcile.Key{{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}}
}

// mirror is one pass over Endpoints.
func mirror(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	byFamily := map[discoveryv1.AddressType][]*discoveryv1.EndpointSlice{}
	for slice := range client.EndpointSlices.Index(s, "service", key.Namespace+"/"+key.Name) {
		if slice.Labels[discoveryv1.LabelManagedBy] == mirrorManager && slice.DeletionTimestamp == nil {
			byFamily[slice.AddressType] = append(byFamily[slice.AddressType], slice)
		}
	}
	p := &pass{snap: s, namespace: key.Namespace, name: key.Name}
	ep, ok := client.Endpoints.Get(s, key.Namespace, key.Name)
	if ok && mirrors(s, ep) {
		p.owner = claim.Reference("v1", "Endpoints", ep)
		p.labels = maps.Clone(ep.Labels)
		if p.labels == nil {
			p.labels = map[string]string{}
		}
		p.labels[discoveryv1.LabelServiceName], p.labels[discoveryv1.LabelManagedBy] = ep.Name, mirrorManager
		p.annotations = maps.Clone(ep.Annotations)
		if p.annotations == nil {
			p.annotations = map[string]string{}
		}
		delete(p.annotations, corev1.LastAppliedConfigAnnotation)
		found := subsets(ep)
		for _, family := range slices.Sorted(maps.Keys(found)) {
			p.family(family, found[family], byFamily[family])
			delete(byFamily, family)
		}
	}
	for _, family := range slices.Sorted(maps.Keys(byFamily)) {
		for _, slice := range byFamily[family] {
			p.remove(slice)
		}
	}
	return reconcile.Plan{Writes: append(append(p.creates, p.updates...), p.deletes...)}
}

// mirrors tells whether Endpoints are to be mirrored: they belong to a service without a selector, and nobody asked
// to leave them alone.
func mirrors(s store.Snapshot, ep *corev1.Endpoints) bool { //nolint:staticcheck // still served
	if ep.Labels[discoveryv1.LabelSkipMirror] == "true" || ep.Annotations[leaderElection] != "" || ep.DeletionTimestamp != nil {
		return false
	}
	svc, ok := client.Services.Get(s, ep.Namespace, ep.Name)
	return ok && svc.Spec.Selector == nil && svc.DeletionTimestamp == nil
}

// subsets are the addresses of Endpoints by family and ports.
func subsets(ep *corev1.Endpoints) map[discoveryv1.AddressType]map[string]*group { //nolint:staticcheck // still served
	out := map[discoveryv1.AddressType]map[string]*group{}
	for i := range ep.Subsets {
		sub := &ep.Subsets[i]
		var ports []discoveryv1.EndpointPort
		for k := range sub.Ports {
			port := &sub.Ports[k]
			ports = append(ports, discoveryv1.EndpointPort{Name: &port.Name, Port: &port.Port, Protocol: &port.Protocol, AppProtocol: port.AppProtocol})
		}
		left := mirrored
		add := func(addresses []corev1.EndpointAddress, ready bool) {
			for _, a := range addresses[:min(len(addresses), left)] {
				left--
				family := discoveryv1.AddressType(podstate.Family(a.IP))
				if out[family] == nil {
					out[family] = map[string]*group{}
				}
				g := out[family][portsKey(ports)]
				if g == nil {
					g = &group{ports: ports, want: map[identity]discoveryv1.Endpoint{}}
					out[family][portsKey(ports)] = g
				}
				g.add(mirroredEndpoint(&a, ready))
			}
		}
		add(sub.Addresses, true)
		add(sub.NotReadyAddresses, false)
	}
	return out
}

func mirroredEndpoint(a *corev1.EndpointAddress, ready bool) discoveryv1.Endpoint {
	ep := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
	if a.Hostname != "" {
		hostname := a.Hostname
		ep.Hostname = &hostname
	}
	return ep
}
