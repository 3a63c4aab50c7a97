// Package ipaddress keeps an IPAddress object for each cluster IP of a Service
// (https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/).
//
// It owns the IPAddresses that carry the allocator's label. It gives out no address: the API server's allocator does, from
// what the Services themselves say; the objects show it. It also owns the readiness of ServiceCIDRs, the ranges that addresses come from,
// and the finalizer that keeps one while its addresses are in use (KEP-1880).
package ipaddress

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Manager is the value of the label networking.k8s.io/managed-by on addresses that the allocator's loop made.
const Manager = "ipallocator.k8s.io"

var addresses = client.Resource[*networkingv1.IPAddress]{Name: "ipaddresses.networking.k8s.io"}

// Loop is the keeper. Its keys are Services, with one of their addresses in Key.Resource.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name: "ipallocator-repair-controller",
		Inputs: []reconcile.Input{
			{Resource: client.Services.Name, Keys: ofService},
			{Resource: addresses.Name, Keys: ofAddress},
		},
		Outputs: []reconcile.Output{{Resource: addresses.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Delete}}},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			return plan(s, key), nil
		},
	}
}

// ofService gives the addresses that a service had or has, unless nothing of them changed.
func ofService(_ store.Snapshot, ev store.Event) []reconcile.Key {
	var now, was []string
	svc := ev.Entry.Object.(*corev1.Service)
	if !ev.Deleted {
		now = clusterIPs(svc)
	}
	if ev.Prev != nil {
		was = clusterIPs(ev.Prev.Object.(*corev1.Service))
	} else if ev.Deleted {
		was = clusterIPs(svc)
	}
	if slices.Equal(now, was) {
		return nil
	}
	var keys []reconcile.Key
	for _, ip := range append(now, was...) {
		if key := (reconcile.Key{Namespace: svc.Namespace, Name: svc.Name, Resource: ip}); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// ofAddress gives the service that an address says it is of.
func ofAddress(_ store.Snapshot, ev store.Event) []reconcile.Key {
	ip := ev.Entry.Object.(*networkingv1.IPAddress)
	if ref := ip.Spec.ParentRef; ref != nil && ref.Group == "" && ref.Resource == "services" {
		return []reconcile.Key{{Namespace: ref.Namespace, Name: ref.Name, Resource: ip.Name}}
	}
	return nil
}

// clusterIPs are the addresses of a service in the form that names their objects.
func clusterIPs(svc *corev1.Service) []string {
	var out []string
	for _, text := range svc.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip.String())
		}
	}
	return out
}

func plan(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	svc, used := client.Services.Get(s, key.Namespace, key.Name)
	used = used && slices.Contains(clusterIPs(svc), key.Resource)
	ip, there := addresses.Get(s, "", key.Resource)
	w := reconcile.Write{Resource: addresses.Name}
	switch {
	case used && !there:
		w.Verb, w.Object = reconcile.Create, addressOf(svc, key.Resource)
	case used && stale(s, ip, key):
		// The service that had it is gone, and this one came before that was put right.
		return reconcile.Plan{Writes: []reconcile.Write{
			{Verb: reconcile.Delete, Resource: addresses.Name, Name: ip.Name, UID: ip.UID},
			{Verb: reconcile.Create, Resource: addresses.Name, Object: addressOf(svc, key.Resource)},
		}}
	case used || !there || !ours(ip, key):
		return reconcile.Plan{}
	default:
		w.Verb, w.Name, w.UID = reconcile.Delete, ip.Name, ip.UID
	}
	return reconcile.Plan{Writes: []reconcile.Write{w}}
}

// ours tells whether this loop made an address for a service; what others reserve is theirs.
func ours(ip *networkingv1.IPAddress, key reconcile.Key) bool {
	ref := ip.Spec.ParentRef
	return ip.Labels[networkingv1.LabelManagedBy] == Manager && ip.DeletionTimestamp == nil && ref != nil &&
		ref.Namespace == key.Namespace && ref.Name == key.Name
}

// stale tells whether an address that this loop made is for another service, which does not use it any more.
func stale(s store.Snapshot, ip *networkingv1.IPAddress, key reconcile.Key) bool {
	ref := ip.Spec.ParentRef
	if ours(ip, key) || ref == nil || !ours(ip, reconcile.Key{Namespace: ref.Namespace, Name: ref.Name}) {
		return false
	}
	svc, ok := client.Services.Get(s, ref.Namespace, ref.Name)
	return !ok || !slices.Contains(clusterIPs(svc), ip.Name)
}

func addressOf(svc *corev1.Service, name string) *networkingv1.IPAddress {
	family := corev1.IPv4Protocol
	if ip, err := netip.ParseAddr(name); err == nil && ip.Is6() {
		family = corev1.IPv6Protocol
	}
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: string(family), networkingv1.LabelManagedBy: Manager}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: svc.Namespace, Name: svc.Name}},
	}
}
