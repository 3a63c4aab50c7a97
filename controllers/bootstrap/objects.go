package bootstrap

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// object is one that has to be there.
type object struct {
	make func() api.Object
	// fix brings what is there into line and tells whether it had to; nil leaves it alone.
	fix func(api.Object) bool
	// ready does the same for the status.
	ready func(api.Object, metav1.Time) bool
}

func (o object) plan(s store.Snapshot, key reconcile.Key, now time.Time) reconcile.Plan {
	entry := s.Get(store.Key{Resource: key.Resource, Namespace: key.Namespace, Name: key.Name})
	if entry == nil {
		return one(reconcile.Write{Verb: reconcile.Create, Resource: key.Resource, Object: o.make()})
	}
	had := entry.Object.(api.Object)
	if had.GetDeletionTimestamp() != nil {
		return reconcile.Plan{}
	}
	if obj := had.DeepCopyObject().(api.Object); o.fix != nil && o.fix(obj) {
		return one(reconcile.Write{Verb: reconcile.Update, Resource: key.Resource, Object: obj})
	}
	if obj := had.DeepCopyObject().(api.Object); o.ready != nil && o.ready(obj, metav1.NewTime(now).Rfc3339Copy()) {
		return one(reconcile.Write{Verb: reconcile.Update, Resource: key.Resource, Subresource: "status", Object: obj})
	}
	return reconcile.Plan{}
}

func one(w reconcile.Write) reconcile.Plan { return reconcile.Plan{Writes: []reconcile.Write{w}} }

// order is the keys of the objects, those first that others need.
func (c Config) order() []reconcile.Key {
	var keys []reconcile.Key
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		keys = append(keys, reconcile.Key{Resource: client.Namespaces.Name, Name: name})
	}
	keys = append(keys,
		reconcile.Key{Resource: client.PriorityClasses.Name, Name: "system-node-critical"},
		reconcile.Key{Resource: client.PriorityClasses.Name, Name: "system-cluster-critical"})
	if len(c.ServiceCIDRs) > 0 {
		keys = append(keys,
			reconcile.Key{Resource: serviceCIDRs, Name: service},
			reconcile.Key{Resource: client.Services.Name, Namespace: namespace, Name: service})
	}
	if c.DNS.IsValid() {
		keys = append(keys, reconcile.Key{Resource: client.Services.Name, Namespace: metav1.NamespaceSystem, Name: dnsService})
	}
	if len(c.Endpoints) > 0 {
		keys = append(keys,
			reconcile.Key{Resource: client.EndpointSlices.Name, Namespace: namespace, Name: service},
			reconcile.Key{Resource: client.Endpoints.Name, Namespace: namespace, Name: service})
	}
	if c.Authentication != nil {
		keys = append(keys, reconcile.Key{Resource: client.ConfigMaps.Name, Namespace: metav1.NamespaceSystem, Name: authentication})
	}
	return keys
}

func (c Config) objects() map[reconcile.Key]object {
	all := map[reconcile.Key]object{}
	for _, key := range c.order() {
		switch key.Resource {
		case client.Namespaces.Name:
			all[key] = namespaceNamed(key.Name)
		case client.PriorityClasses.Name:
			all[key] = priorityClass(key.Name)
		case serviceCIDRs:
			all[key] = c.serviceCIDR()
		case client.Services.Name:
			all[key] = c.service()
			if key.Name == dnsService {
				all[key] = c.dns()
			}
		case client.EndpointSlices.Name:
			all[key] = c.slice()
		case client.Endpoints.Name:
			all[key] = c.endpoints()
		case client.ConfigMaps.Name:
			all[key] = c.authentication()
		}
	}
	return all
}

// authentication is the config map's name.
const authentication = "extension-apiserver-authentication"

// authentication keeps what is known in the config map, and leaves what others added.
func (c Config) authentication() object {
	return object{
		make: func() api.Object {
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: authentication}, Data: maps.Clone(c.Authentication)}
		},
		fix: func(obj api.Object) bool {
			cm, changed := obj.(*corev1.ConfigMap), false
			for k, v := range c.Authentication {
				if cm.Data[k] != v {
					if cm.Data == nil {
						cm.Data = map[string]string{}
					}
					cm.Data[k], changed = v, true
				}
			}
			return changed
		},
	}
}

func namespaceNamed(name string) object {
	return object{make: func() api.Object { return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}} }}
}

// priorityClasses are the values and descriptions of the system's classes.
var priorityClasses = map[string]struct {
	value       int32
	description string
}{
	"system-node-critical":    {2000001000, "Used for system critical pods that must not be moved from their current node."},
	"system-cluster-critical": {2000000000, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."},
}

func priorityClass(name string) object {
	class := priorityClasses[name]
	return object{make: func() api.Object {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: class.value, Description: class.description}
	}}
}

func (c Config) serviceCIDR() object {
	var cidrs []string
	for _, p := range c.ServiceCIDRs {
		cidrs = append(cidrs, p.Masked().String())
	}
	return object{
		make: func() api.Object {
			return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: service}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
		},
		ready: func(obj api.Object, now metav1.Time) bool {
			status := &obj.(*networkingv1.ServiceCIDR).Status
			if len(status.Conditions) > 0 {
				return false
			}
			status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
				LastTransitionTime: now, Message: "Kubernetes default Service CIDR is ready"}}
			return true
		},
	}
}

// dnsService is the name that cluster add-ons expect of the service in front of the cluster's DNS.
const dnsService = "kube-dns"

// dns is a service without a selector: its address is answered by every node itself.
func (c Config) dns() object {
	return object{make: func() api.Object {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: dnsService, Labels: map[string]string{
				"k8s-app": dnsService, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "Coracle"}},
			Spec: corev1.ServiceSpec{ClusterIP: c.DNS.String(), Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}}},
		}
	}}
}

func (c Config) port() int32 {
	if len(c.Endpoints) > 0 {
		return int32(c.Endpoints[0].Port())
	}
	return 6443
}

// service is default/kubernetes, at the first address of the first range.
func (c Config) service() object {
	ip := c.ServiceCIDRs[0].Masked().Addr().Next()
	family := corev1.IPv4Protocol
	if ip.Is6() {
		family = corev1.IPv6Protocol
	}
	single := corev1.IPFamilyPolicySingleStack
	ports := []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(c.port())}}
	return object{
		make: func() api.Object {
			return &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: service, Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
				Spec: corev1.ServiceSpec{
					Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()},
					IPFamilies: []corev1.IPFamily{family}, IPFamilyPolicy: &single,
					SessionAffinity: corev1.ServiceAffinityNone, Ports: slices.Clone(ports),
				},
			}
		},
		fix: func(obj api.Object) bool {
			spec := &obj.(*corev1.Service).Spec
			if equality.Semantic.DeepEqual(spec.Ports, ports) {
				return false
			}
			spec.Ports = slices.Clone(ports)
			return true
		},
	}
}

func (c Config) addresses() (addrs []string, family discoveryv1.AddressType) {
	family = discoveryv1.AddressTypeIPv4
	if c.Endpoints[0].Addr().Unmap().Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	for _, ep := range c.Endpoints {
		if a := ep.Addr().Unmap(); a.Is6() == (family == discoveryv1.AddressTypeIPv6) {
			addrs = append(addrs, a.String())
		}
	}
	slices.SortFunc(addrs, func(a, b string) int { return netip.MustParseAddr(a).Compare(netip.MustParseAddr(b)) })
	return slices.Compact(addrs), family
}

func (c Config) slice() object {
	addrs, family := c.addresses()
	yes, name, proto, port := true, "https", corev1.ProtocolTCP, c.port()
	ports := []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}}
	var eps []discoveryv1.Endpoint
	for _, a := range addrs {
		eps = append(eps, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	set := func(es *discoveryv1.EndpointSlice) {
		metav1.SetMetaDataLabel(&es.ObjectMeta, discoveryv1.LabelServiceName, service)
		es.Endpoints, es.Ports = eps, ports
	}
	return object{
		make: func() api.Object {
			es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: service}, AddressType: family}
			set(es)
			return es.DeepCopy()
		},
		fix: func(obj api.Object) bool {
			es := obj.(*discoveryv1.EndpointSlice)
			was := es.DeepCopy()
			set(es)
			return !equality.Semantic.DeepEqual(was, es)
		},
	}
}

//nolint:staticcheck // Endpoints are still served
func (c Config) endpoints() object {
	addrs, _ := c.addresses()
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: c.port(), Protocol: corev1.ProtocolTCP}}}
	for _, a := range addrs {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: a})
	}
	set := func(ep *corev1.Endpoints) {
		metav1.SetMetaDataLabel(&ep.ObjectMeta, discoveryv1.LabelSkipMirror, "true")
		ep.Subsets = []corev1.EndpointSubset{*subset.DeepCopy()}
	}
	return object{
		make: func() api.Object {
			ep := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: service}}
			set(ep)
			return ep
		},
		fix: func(obj api.Object) bool {
			ep := obj.(*corev1.Endpoints)
			was := ep.DeepCopy()
			set(ep)
			return !equality.Semantic.DeepEqual(was, ep)
		},
	}
}
