package balance

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

const (
	// Class is the loadBalancerClass of this implementation; Services without a class are its own, too.
	Class = "coracle.dev/node"
	// AddressesAnnotation asks for addresses, one of each family with a comma between, as spec.loadBalancerIP does for one.
	AddressesAnnotation = "coracle.dev/load-balancer-addresses"
	// finalizer keeps a Service until its addresses are free (upstream's service controller has the same).
	finalizer = "service.kubernetes.io/load-balancer-cleanup"
	// excluded is the label of nodes that load balancers leave out.
	excluded = "node.kubernetes.io/exclude-from-external-load-balancers"
)

// Config says which addresses there are.
type Config struct {
	// Pool are the ranges that addresses are taken from. Empty: the nodes' own addresses are used.
	Pool []netip.Prefix
	// Bears tells whether a node may answer for addresses, beside being ready; nil for all.
	Bears func(*corev1.Node) bool
}

// ours tells whether a Service is to have a load balancer of this implementation.
func ours(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == Class)
}

func ref(svc *corev1.Service) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID, ResourceVersion: svc.ResourceVersion}
}

func event(svc *corev1.Service, kind, reason, message string) reconcile.Event {
	return reconcile.Event{Regarding: ref(svc), Type: kind, Reason: reason, Message: message}
}

// plan is one pass over a Service. Events have upstream's words.
func (c Config) plan(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	svc, ok := client.Services.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{}
	}
	has := slices.Contains(svc.Finalizers, finalizer)
	if !ours(svc) || svc.DeletionTimestamp != nil {
		if !has || svc.Spec.Type == corev1.ServiceTypeLoadBalancer && !ours(svc) {
			return reconcile.Plan{}
		}
		return c.release(svc)
	}
	var p reconcile.Plan
	if !has {
		fresh := svc.DeepCopy()
		fresh.Finalizers = append(fresh.Finalizers, finalizer)
		p.Writes = append(p.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Services.Name, Object: fresh})
		p.Events = append(p.Events, event(svc, corev1.EventTypeNormal, "EnsuringLoadBalancer", "Ensuring load balancer"))
		return p // its own change wakes the loop again
	}
	ingress, err := c.ingress(s, svc)
	if err != nil {
		p.Events = append(p.Events, event(svc, corev1.EventTypeWarning, "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: "+err.Error()))
		p.After = retry
		if len(svc.Status.LoadBalancer.Ingress) == 0 {
			return p
		}
		ingress = nil
	}
	if equality.Semantic.DeepEqual(svc.Status.LoadBalancer.Ingress, ingress) {
		return p
	}
	fresh := svc.DeepCopy()
	fresh.Status.LoadBalancer.Ingress = ingress
	p.Writes = append(p.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Services.Name, Subresource: "status", Object: fresh})
	if err == nil {
		p.Events = append(p.Events, event(svc, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer"))
	}
	return p
}

// release takes the addresses back, and then lets the Service go.
func (c Config) release(svc *corev1.Service) reconcile.Plan {
	fresh := svc.DeepCopy()
	if len(svc.Status.LoadBalancer.Ingress) > 0 {
		fresh.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		return reconcile.Plan{
			Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Services.Name, Subresource: "status", Object: fresh}},
			Events: []reconcile.Event{event(svc, corev1.EventTypeNormal, "DeletingLoadBalancer", "Deleting load balancer")},
		}
	}
	fresh.Finalizers = slices.DeleteFunc(fresh.Finalizers, func(f string) bool { return f == finalizer })
	return reconcile.Plan{
		Writes: []reconcile.Write{{Verb: reconcile.Update, Resource: client.Services.Name, Object: fresh}},
		Events: []reconcile.Event{event(svc, corev1.EventTypeNormal, "DeletedLoadBalancer", "Deleted load balancer")},
	}
}

// ingress are the addresses that a Service has or gets, one of each of its families.
func (c Config) ingress(s store.Snapshot, svc *corev1.Service) ([]corev1.LoadBalancerIngress, error) {
	var addrs []netip.Addr
	var err error
	if len(c.Pool) == 0 {
		addrs, err = c.nodeAddresses(s, svc)
	} else {
		addrs, err = c.poolAddresses(s, svc)
	}
	if err != nil {
		return nil, err
	}
	mode := corev1.LoadBalancerIPModeVIP
	var out []corev1.LoadBalancerIngress
	for _, a := range addrs {
		out = append(out, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	return out, nil
}

// asked are the addresses that a Service asks for.
func asked(svc *corev1.Service) ([]netip.Addr, error) {
	texts := svc.Spec.LoadBalancerIP
	if a := svc.Annotations[AddressesAnnotation]; a != "" {
		texts = a
	}
	if texts == "" {
		return nil, nil
	}
	var all []netip.Addr
	for _, text := range strings.Split(texts, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%q is not an address", text)
		}
		all = append(all, a)
	}
	return all, nil
}

func (c Config) poolAddresses(s store.Snapshot, svc *corev1.Service) ([]netip.Addr, error) {
	wanted, err := asked(svc)
	if err != nil {
		return nil, err
	}
	used := taken(s, svc)
	var out []netip.Addr
	for _, family := range svc.Spec.IPFamilies {
		four := family == corev1.IPv4Protocol
		a, err := c.poolAddress(svc, four, wanted, used)
		if errors.Is(err, errNoRange) && svc.Spec.IPFamilyPolicy != nil && *svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, errNoRange
	}
	return out, nil
}

var errNoRange = errors.New("the pool has no range of the Service's address family")

// poolAddress is what a Service asked for, what it has, or the lowest that is free.
func (c Config) poolAddress(svc *corev1.Service, four bool, wanted []netip.Addr, used map[netip.Addr]string) (netip.Addr, error) {
	inPool := func(a netip.Addr) bool {
		return slices.ContainsFunc(c.Pool, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, a := range wanted {
		if a.Is4() != four {
			continue
		}
		if !inPool(a) {
			return a, fmt.Errorf("%s is not in the pool", a)
		}
		if by := used[a]; by != "" {
			return a, fmt.Errorf("%s belongs to service %s", a, by)
		}
		return a, nil
	}
	for i := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(svc.Status.LoadBalancer.Ingress[i].IP); err == nil && a.Is4() == four && inPool(a) && used[a] == "" {
			return a, nil
		}
	}
	err := errNoRange
	for _, p := range c.Pool {
		if p.Addr().Is4() != four {
			continue
		}
		err = errors.New("no address of the pool is free")
		for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
			if used[a] == "" {
				return a, nil
			}
		}
	}
	return netip.Addr{}, err
}

// taken are the addresses of all other Services' load balancers.
func taken(s store.Snapshot, but *corev1.Service) map[netip.Addr]string {
	used := map[netip.Addr]string{}
	for svc := range client.Services.List(s, "") {
		if svc.UID == but.UID {
			continue
		}
		for i := range svc.Status.LoadBalancer.Ingress {
			if a, err := netip.ParseAddr(svc.Status.LoadBalancer.Ingress[i].IP); err == nil {
				used[a] = svc.Namespace + "/" + svc.Name
			}
		}
	}
	return used
}

// nodeAddresses are those of the nodes that bear load balancers. Two Services cannot have the same port there: the one that has it
// already keeps it.
func (c Config) nodeAddresses(s store.Snapshot, svc *corev1.Service) ([]netip.Addr, error) {
	if len(svc.Status.LoadBalancer.Ingress) == 0 {
		for other := range client.Services.List(s, "") {
			if other.UID == svc.UID || !ours(other) || len(other.Status.LoadBalancer.Ingress) == 0 {
				continue
			}
			for _, p := range svc.Spec.Ports {
				if slices.ContainsFunc(other.Spec.Ports, func(o corev1.ServicePort) bool { return o.Port == p.Port && o.Protocol == p.Protocol }) {
					return nil, fmt.Errorf("port %d/%s of the nodes belongs to service %s/%s", p.Port, p.Protocol, other.Namespace, other.Name)
				}
			}
		}
	}
	var out []netip.Addr
	for _, n := range c.bearers(s, svc) {
		node, _ := client.Nodes.Get(s, "", n)
		for _, family := range svc.Spec.IPFamilies {
			if a, ok := nodeAddress(node, family == corev1.IPv4Protocol); ok {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	if len(out) == 0 {
		return nil, errors.New("no node is ready")
	}
	return out, nil
}

// nodeAddress is a node's address for clients outside.
func nodeAddress(n *corev1.Node, four bool) (netip.Addr, bool) {
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && ip.Is4() == four {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

// bearers are the names of the nodes that may answer for a Service, sorted: those that are ready and not left out, and of them, if
// traffic stays on the node that it comes to, those with a ready endpoint, if there is one.
func (c Config) bearers(s store.Snapshot, svc *corev1.Service) []string {
	var all []string
	for n := range client.Nodes.List(s, "") {
		if _, out := n.Labels[excluded]; !out && ready(n) && n.DeletionTimestamp == nil && (c.Bears == nil || c.Bears(n)) {
			all = append(all, n.Name)
		}
	}
	slices.Sort(all)
	if svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return all
	}
	with := map[string]bool{}
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		for i := range slice.Endpoints {
			if e := &slice.Endpoints[i]; e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				with[*e.NodeName] = true
			}
		}
	}
	local := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return !with[n] })
	if len(local) == 0 {
		return all
	}
	return local
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// Bearer is which of the nodes answers for an address: the one with the highest hash of both (rendezvous hashing), so that the failure of
// a node moves its addresses and no others. Empty if there is no node.
func Bearer(addr netip.Addr, nodes []string) string {
	best, most := "", uint64(0)
	for _, n := range nodes {
		h := fnv.New64a()
		h.Write(addr.AsSlice())
		h.Write([]byte(n))
		if sum := mix(h.Sum64()); best == "" || sum > most || sum == most && n < best {
			best, most = n, sum
		}
	}
	return best
}

// mix spreads a hash whose inputs differ in their last bytes only over all bits.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Announced are the addresses that a node answers for, of all Services: those of which it is the bearer, and that no node has by itself.
func (c Config) Announced(s store.Snapshot, node string) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	var all []string
	for svc := range client.Services.List(s, "") {
		if !ours(svc) || len(svc.Status.LoadBalancer.Ingress) == 0 {
			continue
		}
		local := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		nodes := all
		if local || nodes == nil {
			nodes = c.bearers(s, svc)
		}
		if !local {
			all = nodes
		}
		for i := range svc.Status.LoadBalancer.Ingress {
			if a, err := netip.ParseAddr(svc.Status.LoadBalancer.Ingress[i].IP); err == nil && Bearer(a, nodes) == node {
				out[a] = true
			}
		}
	}
	if len(out) == 0 {
		return out
	}
	for n := range client.Nodes.List(s, "") {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil {
				delete(out, ip)
			}
		}
	}
	return out
}

// ParsePool reads ranges and single addresses with commas between.
func ParsePool(text string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			a, single := netip.ParseAddr(part)
			if single != nil {
				return nil, fmt.Errorf("%q is not a range such as 192.0.2.0/28", part)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Masked() != p || p.Addr().Is4In6() || p.Addr().BitLen()-p.Bits() > 16 {
			return nil, fmt.Errorf("%q is not a range of at most 65536 addresses that begins with its first", part)
		}
		all = append(all, p)
	}
	return all, nil
}
