package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

const (
	labelManagedBy = "endpoints.kubernetes.io/managed-by"
	manager        = "endpoint-controller"
	// capacity is how many addresses an object holds; the rest is cut off and that is annotated.
	capacity       = 1000
	overCapacity   = corev1.EndpointsOverCapacity
	truncated      = "truncated"
	leaderElection = "control-plane.alpha.kubernetes.io/leader"
)

// plan is one pass over a service.
func plan(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	svc, ok := client.Services.Get(s, key.Namespace, key.Name)
	had, there := client.Endpoints.Get(s, key.Namespace, key.Name)
	if !ok {
		if !there || had.Annotations[leaderElection] != "" {
			return reconcile.Plan{}
		}
		return reconcile.Plan{Writes: []reconcile.Write{{Verb: reconcile.Delete, Resource: client.Endpoints.Name,
			Namespace: key.Namespace, Name: key.Name, UID: had.UID}}}
	}
	if svc.Spec.Selector == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return reconcile.Plan{}
	}
	w := reconcile.Write{Verb: reconcile.Create, Resource: client.Endpoints.Name}
	obj := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name}} //nolint:staticcheck // still served
	if there {
		w.Verb = reconcile.Update
		obj = had.DeepCopy()
	}
	var cut bool
	obj.Subsets, cut = truncate(pack(s, svc))
	obj.Labels = labelsOf(svc)
	switch {
	case cut:
		metav1.SetMetaDataAnnotation(&obj.ObjectMeta, overCapacity, truncated)
	default:
		delete(obj.Annotations, overCapacity)
	}
	if there && equality.Semantic.DeepEqual(obj, had) {
		return reconcile.Plan{}
	}
	w.Object = obj
	return reconcile.Plan{Writes: []reconcile.Write{w}}
}

func labelsOf(svc *corev1.Service) map[string]string {
	l := maps.Clone(svc.Labels)
	if l == nil {
		l = map[string]string{}
	}
	delete(l, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		l[corev1.IsHeadlessService] = ""
	}
	l[labelManagedBy] = manager
	return l
}

// pack finds the endpoints of a service, in the form in which addresses with the same ports share a subset.
func pack(s store.Snapshot, svc *corev1.Service) []corev1.EndpointSubset {
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	family := podstate.Families(svc)[0]
	subsets := map[string]*corev1.EndpointSubset{}
	for pod := range client.Pods.List(s, svc.Namespace) {
		if !selector.Matches(labels.Set(pod.Labels)) || !podstate.InEndpoints(pod, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		ports, found := portsOf(pod, svc)
		addresses := podstate.Addresses(pod, family)
		if !found || len(addresses) == 0 {
			continue
		}
		key := fmt.Sprint(ports)
		sub := subsets[key]
		if sub == nil {
			sub = &corev1.EndpointSubset{Ports: plain(ports)}
			subsets[key] = sub
		}
		a := address(pod, svc, addresses[0])
		if svc.Spec.PublishNotReadyAddresses || podstate.Ready(pod) {
			sub.Addresses = append(sub.Addresses, a)
		} else {
			sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
		}
	}
	var packed []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(subsets)) {
		sub := subsets[key]
		slices.SortFunc(sub.Addresses, compareAddresses)
		slices.SortFunc(sub.NotReadyAddresses, compareAddresses)
		packed = append(packed, *sub)
	}
	return packed
}

func compareAddresses(a, b corev1.EndpointAddress) int {
	return cmp.Or(strings.Compare(a.IP, b.IP), strings.Compare(string(a.TargetRef.UID), string(b.TargetRef.UID)))
}

func address(pod *corev1.Pod, svc *corev1.Service, ip string) corev1.EndpointAddress {
	a := corev1.EndpointAddress{
		IP: ip, Hostname: podstate.Hostname(pod, svc),
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		node := pod.Spec.NodeName
		a.NodeName = &node
	}
	return a
}

// port is an EndpointPort that can be compared.
type port struct {
	name     string
	number   int32
	protocol corev1.Protocol
	app      string
	hasApp   bool
}

// portsOf are the service's ports as the pod has them, in order. A pod that has none of the ports
// is no endpoint, unless the service is headless and has none either.
func portsOf(pod *corev1.Pod, svc *corev1.Service) ([]port, bool) {
	var ports []port
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		n, ok := podstate.Port(pod, sp)
		if !ok {
			continue
		}
		p := port{name: sp.Name, number: n, protocol: sp.Protocol}
		if sp.AppProtocol != nil {
			p.app, p.hasApp = *sp.AppProtocol, true
		}
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol))
	})
	return ports, len(ports) > 0 || len(svc.Spec.Ports) == 0 && svc.Spec.ClusterIP == corev1.ClusterIPNone
}

func plain(ports []port) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for _, p := range ports {
		ep := corev1.EndpointPort{Name: p.name, Port: p.number, Protocol: p.protocol}
		if p.hasApp {
			app := p.app
			ep.AppProtocol = &app
		}
		out = append(out, ep)
	}
	return out
}

// truncate cuts off what is beyond the capacity, addresses that are not ready first.
func truncate(subsets []corev1.EndpointSubset) ([]corev1.EndpointSubset, bool) {
	total := 0
	for _, sub := range subsets {
		total += len(sub.Addresses) + len(sub.NotReadyAddresses)
	}
	if total <= capacity {
		return subsets, false
	}
	ready, rest := capacity, 0
	for i := range subsets {
		n := min(ready, len(subsets[i].Addresses))
		subsets[i].Addresses, ready = subsets[i].Addresses[:n], ready-n
	}
	rest = ready
	for i := range subsets {
		n := min(rest, len(subsets[i].NotReadyAddresses))
		subsets[i].NotReadyAddresses, rest = subsets[i].NotReadyAddresses[:n], rest-n
	}
	return slices.DeleteFunc(subsets, func(s corev1.EndpointSubset) bool {
		return len(s.Addresses)+len(s.NotReadyAddresses) == 0
	}), true
}
