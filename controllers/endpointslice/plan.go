package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

const (
	manager = "endpointslice-controller.k8s.io"
	// capacity is how many endpoints a slice holds.
	capacity = 100
)

// group is the endpoints that have the same ports, and the slices that hold them.
type group struct {
	ports []discoveryv1.EndpointPort
	// want are the endpoints by identity, order their identities in the order of the pods.
	want  map[identity]discoveryv1.Endpoint
	order []identity
	have  []*discoveryv1.EndpointSlice
}

// identity tells endpoints apart across changes of their conditions.
type identity struct{ addresses, hostname, pod string }

func identify(ep *discoveryv1.Endpoint) identity {
	id := identity{addresses: strings.Join(ep.Addresses, ",")}
	if ep.Hostname != nil {
		id.hostname = *ep.Hostname
	}
	if ep.TargetRef != nil {
		id.pod = ep.TargetRef.Namespace + "/" + ep.TargetRef.Name
	}
	return id
}

// plan is one pass over a service.
func plan(s store.Snapshot, svc *corev1.Service) reconcile.Plan {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.Selector == nil || svc.DeletionTimestamp != nil {
		return reconcile.Plan{}
	}
	byFamily := map[discoveryv1.AddressType][]*discoveryv1.EndpointSlice{}
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		if slice.Labels[discoveryv1.LabelManagedBy] == manager && slice.DeletionTimestamp == nil {
			byFamily[slice.AddressType] = append(byFamily[slice.AddressType], slice)
		}
	}
	pods := podsOf(s, svc)
	p := &pass{snap: s, svc: svc, name: svc.Name, namespace: svc.Namespace, owner: claim.Reference("v1", "Service", svc), labels: sliceLabels(svc), placeholder: true}
	for _, family := range podstate.Families(svc) {
		kind := discoveryv1.AddressType(family)
		p.family(kind, p.groups(pods, family), byFamily[kind])
		delete(byFamily, kind)
	}
	for _, kind := range slices.Sorted(maps.Keys(byFamily)) {
		for _, slice := range byFamily[kind] {
			p.remove(slice)
		}
	}
	return reconcile.Plan{Writes: append(append(p.creates, p.updates...), p.deletes...), Parallel: true}
}

func podsOf(s store.Snapshot, svc *corev1.Service) []*corev1.Pod {
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	var pods []*corev1.Pod
	for pod := range client.Pods.List(s, svc.Namespace) {
		if selector.Matches(labels.Set(pod.Labels)) && podstate.InEndpoints(pod, true) {
			pods = append(pods, pod)
		}
	}
	return pods
}

// sliceLabels are the labels that the service's slices have.
func sliceLabels(svc *corev1.Service) map[string]string {
	l := maps.Clone(svc.Labels)
	if l == nil {
		l = map[string]string{}
	}
	delete(l, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" && svc.Spec.Type != corev1.ServiceTypeExternalName {
		l[corev1.IsHeadlessService] = ""
	}
	l[discoveryv1.LabelServiceName] = svc.Name
	l[discoveryv1.LabelManagedBy] = manager
	return l
}

// pass collects the writes of one pass.
type pass struct {
	snap            store.Snapshot
	svc             *corev1.Service // nil when Endpoints are mirrored
	namespace, name string          // of the service
	owner           metav1.OwnerReference
	labels          map[string]string
	annotations     map[string]string // nil: those that are there stay
	placeholder     bool              // an empty slice says that there are no endpoints

	creates, updates, deletes []reconcile.Write
}

// groups sorts the endpoints of one family by their ports.
func (p *pass) groups(pods []*corev1.Pod, family corev1.IPFamily) map[string]*group {
	groups := map[string]*group{}
	for _, pod := range pods {
		addresses := podstate.Addresses(pod, family)
		if len(addresses) == 0 {
			continue
		}
		ep, ok := p.endpoint(pod, addresses)
		if !ok {
			continue
		}
		ports := p.ports(pod)
		key := portsKey(ports)
		g := groups[key]
		if g == nil {
			g = &group{ports: ports, want: map[identity]discoveryv1.Endpoint{}}
			groups[key] = g
		}
		g.add(ep)
	}
	return groups
}

func (g *group) add(ep discoveryv1.Endpoint) {
	id := identify(&ep)
	if _, twice := g.want[id]; !twice {
		g.order = append(g.order, id)
	}
	g.want[id] = ep
}

// endpoint is a pod as an endpoint; false if its node is not there.
func (p *pass) endpoint(pod *corev1.Pod, addresses []string) (discoveryv1.Endpoint, bool) {
	serving, terminating := podstate.Ready(pod), pod.DeletionTimestamp != nil
	ready := p.svc.Spec.PublishNotReadyAddresses || serving && !terminating
	ep := discoveryv1.Endpoint{
		Addresses:  addresses,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		name := pod.Spec.NodeName
		node, ok := client.Nodes.Get(p.snap, "", name)
		if !ok && !p.svc.Spec.PublishNotReadyAddresses {
			return ep, false
		}
		ep.NodeName = &name
		if ok && node.Labels[corev1.LabelTopologyZone] != "" {
			zone := node.Labels[corev1.LabelTopologyZone]
			ep.Zone = &zone
		}
	}
	if h := podstate.Hostname(pod, p.svc); h != "" {
		ep.Hostname = &h
	}
	ep.Hints = p.hints(&ep)
	return ep, true
}

// hints tell proxies which clients an endpoint is meant for, if the service asks for that.
func (p *pass) hints(ep *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if p.svc.Spec.TrafficDistribution == nil || !*ep.Conditions.Ready {
		return nil
	}
	var h discoveryv1.EndpointHints
	if ep.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *ep.Zone}}
	}
	switch *p.svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		if ep.NodeName != nil {
			h.ForNodes = []discoveryv1.ForNode{{Name: *ep.NodeName}}
		}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if h.ForZones == nil && h.ForNodes == nil {
		return nil
	}
	return &h
}

// ports are the service's ports as the pod has them; names that the pod does not have are left out.
func (p *pass) ports(pod *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for i := range p.svc.Spec.Ports {
		sp := &p.svc.Spec.Ports[i]
		if n, ok := podstate.Port(pod, sp); ok {
			name, protocol := sp.Name, sp.Protocol
			ports = append(ports, discoveryv1.EndpointPort{Name: &name, Port: &n, Protocol: &protocol, AppProtocol: sp.AppProtocol})
		}
	}
	return ports
}

// portsKey is the same for the same ports in any order.
func portsKey(ports []discoveryv1.EndpointPort) string {
	var keys []string
	for _, p := range ports {
		keys = append(keys, fmt.Sprintf("%s/%d/%s/%s", value(p.Name), value(p.Port), value(p.Protocol), value(p.AppProtocol)))
	}
	slices.Sort(keys)
	return strings.Join(keys, ",")
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// family brings the slices of one address type in line with the groups.
func (p *pass) family(kind discoveryv1.AddressType, groups map[string]*group, have []*discoveryv1.EndpointSlice) {
	var stale []*discoveryv1.EndpointSlice
	for _, slice := range have {
		if g := groups[portsKey(slice.Ports)]; g != nil {
			g.have = append(g.have, slice)
		} else {
			stale = append(stale, slice)
		}
	}
	if len(groups) == 0 && p.placeholder {
		groups[""] = &group{ports: []discoveryv1.EndpointPort{}}
		for i, slice := range stale {
			if len(slice.Ports) == 0 {
				groups[""].have = []*discoveryv1.EndpointSlice{slice}
				stale = slices.Delete(stale, i, i+1)
				break
			}
		}
	}
	for _, slice := range stale {
		p.remove(slice)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		p.group(kind, groups[key])
	}
}

// edited is a slice with the endpoints that it is to have.
type edited struct {
	was       *discoveryv1.EndpointSlice
	endpoints []discoveryv1.Endpoint
	changed   bool
}

// group distributes endpoints over slices: those that are in a slice already stay there, the others fill slices
// that change anyway, then one that has room for all of them, then new ones.
func (p *pass) group(kind discoveryv1.AddressType, g *group) {
	var kept []*edited
	placed := map[identity]bool{}
	for _, slice := range g.have {
		e := &edited{was: slice, changed: !equality.Semantic.DeepEqual(slice.Labels, p.labels) || p.annotations != nil && !equality.Semantic.DeepEqual(slice.Annotations, p.annotations)}
		for i := range slice.Endpoints {
			id := identify(&slice.Endpoints[i])
			want, ok := g.want[id]
			if !ok || placed[id] || len(e.endpoints) == capacity {
				e.changed = true
				continue
			}
			placed[id] = true
			e.endpoints = append(e.endpoints, want)
			e.changed = e.changed || !equality.Semantic.DeepEqual(want, slice.Endpoints[i])
		}
		kept = append(kept, e)
	}
	var loose []discoveryv1.Endpoint
	for _, id := range g.order {
		if !placed[id] {
			loose = append(loose, g.want[id])
		}
	}
	loose = fill(kept, loose)
	for len(loose) > 0 {
		n := min(len(loose), capacity)
		p.create(kind, g.ports, loose[:n])
		loose = loose[n:]
	}
	p.settle(kind, g, kept)
}

// fill puts loose endpoints into slices that have room, and returns those that need new ones.
func fill(kept []*edited, loose []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	put := func(e *edited) {
		n := min(capacity-len(e.endpoints), len(loose))
		e.endpoints = append(e.endpoints, loose[:n]...)
		loose, e.changed = loose[n:], true
	}
	changing := slices.Clone(kept)
	slices.SortStableFunc(changing, func(a, b *edited) int { return cmp.Compare(len(b.endpoints), len(a.endpoints)) })
	for _, e := range changing {
		if e.changed && len(loose) > 0 && len(e.endpoints) > 0 && len(e.endpoints) < capacity {
			put(e)
		}
	}
	for _, e := range changing {
		if rest := len(loose) % capacity; rest > 0 && len(e.endpoints)+rest <= capacity {
			tail := len(loose) - rest
			e.endpoints = append(e.endpoints, loose[tail:]...)
			loose, e.changed = loose[:tail], true
		}
	}
	return loose
}

// settle writes slices that changed and removes empty ones, but for one if nothing else is left.
func (p *pass) settle(kind discoveryv1.AddressType, g *group, kept []*edited) {
	empty := len(g.order) == 0 && p.placeholder
	if empty && len(kept) == 0 {
		p.create(kind, g.ports, nil)
	}
	for i, e := range kept {
		switch {
		case len(e.endpoints) == 0 && !(empty && i == 0):
			p.remove(e.was)
		case e.changed:
			slice := e.was.DeepCopy()
			slice.Labels, slice.Endpoints = maps.Clone(p.labels), endpoints(e.endpoints)
			if p.annotations != nil {
				slice.Annotations = maps.Clone(p.annotations)
			}
			p.updates = append(p.updates, reconcile.Write{Verb: reconcile.Update, Resource: client.EndpointSlices.Name, Object: slice})
		}
	}
}

// endpoints are never nil: the API asks for a list.
func endpoints(eps []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	return append([]discoveryv1.Endpoint{}, eps...)
}

func (p *pass) create(kind discoveryv1.AddressType, ports []discoveryv1.EndpointPort, eps []discoveryv1.Endpoint) {
	prefix := p.name + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = p.name
	}
	p.creates = append(p.creates, reconcile.Write{Verb: reconcile.Create, Resource: client.EndpointSlices.Name, Object: &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.namespace, GenerateName: prefix, Labels: maps.Clone(p.labels), Annotations: maps.Clone(p.annotations),
			OwnerReferences: []metav1.OwnerReference{p.owner},
		},
		AddressType: kind, Ports: ports, Endpoints: endpoints(eps),
	}})
}

func (p *pass) remove(slice *discoveryv1.EndpointSlice) {
	p.deletes = append(p.deletes, reconcile.Write{Verb: reconcile.Delete, Resource: client.EndpointSlices.Name,
		Namespace: slice.Namespace, Name: slice.Name, UID: slice.UID})
}
