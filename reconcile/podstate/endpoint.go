package podstate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// InEndpoints tells whether the pod is an endpoint of services that select it,
// ready or not: it has an address and its containers have not ended. A pod that is being
// deleted counts if terminating is set.
func InEndpoints(pod *corev1.Pod, terminating bool) bool {
	return !Terminal(pod) && (pod.Status.PodIP != "" || len(pod.Status.PodIPs) > 0) &&
		(terminating || pod.DeletionTimestamp == nil)
}

// Addresses are the pod's addresses of one family.
func Addresses(pod *corev1.Pod, family corev1.IPFamily) []string {
	var found []string
	ips := pod.Status.PodIPs
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		if Family(ip.IP) == family {
			found = append(found, ip.IP)
		}
	}
	return found
}

// Family is the family of an address, "" if it is none.
func Family(ip string) corev1.IPFamily {
	addr, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		return ""
	case addr.Is6() && !addr.Is4In6():
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// Families are the families in which a service is to be found.
func Families(svc *corev1.Service) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) > 0 {
		return svc.Spec.IPFamilies
	}
	if f := Family(svc.Spec.ClusterIP); f != "" {
		return []corev1.IPFamily{f}
	}
	return []corev1.IPFamily{corev1.IPv4Protocol}
}

// Port is the number that a port of a service has in the pod: its target port, which may be a
// name that a container, or a sidecar, gives to one of its ports.
func Port(pod *corev1.Pod, p *corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port, true
		}
		return p.TargetPort.IntVal, true
	}
	named := func(c *corev1.Container) (int32, bool) {
		for i := range c.Ports {
			if c.Ports[i].Name == p.TargetPort.StrVal && c.Ports[i].Protocol == p.Protocol {
				return c.Ports[i].ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range pod.Spec.Containers {
		if n, ok := named(&pod.Spec.Containers[i]); ok {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n, ok := named(c); ok {
			return n, true
		}
	}
	return 0, false
}

// Hostname is the name that the pod has below the service, "" for none.
func Hostname(pod *corev1.Pod, svc *corev1.Service) string {
	if pod.Spec.Subdomain == svc.Name && pod.Namespace == svc.Namespace {
		return pod.Spec.Hostname
	}
	return ""
}

// EndpointChanged tells whether two versions of a pod differ as endpoints.
func EndpointChanged(a, b *corev1.Pod) bool {
	return a.UID != b.UID || a.Spec.NodeName != b.Spec.NodeName || Terminal(a) != Terminal(b) || Ready(a) != Ready(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		a.Spec.Hostname != b.Spec.Hostname || a.Spec.Subdomain != b.Spec.Subdomain || a.Status.PodIP != b.Status.PodIP ||
		!equality.Semantic.DeepEqual(a.Labels, b.Labels) || !equality.Semantic.DeepEqual(a.Status.PodIPs, b.Status.PodIPs)
}
