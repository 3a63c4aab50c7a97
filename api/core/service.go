package core

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// serviceKind describes services. Index "clusterIP": each of spec.clusterIPs that is an address.
//
// Addresses and node ports are chosen by the server between preparation and
// validation: an object that PrepareCreate or PrepareUpdate returns names all that the client
// asked for, and on update all that the old one had and the client left out.
func serviceKind() *api.Kind {
	return &api.Kind{
		Kind: "Service", Resource: "services", Singular: "service",
		ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true,
		Versions: v1[corev1.Service, corev1.ServiceList](),
		Default:  api.On(defaultService),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(s *corev1.Service) {
				s.Status = corev1.ServiceStatus{}
				if s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) == 0 {
					s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
				}
			}),
			PrepareUpdate:  api.OnUpdate(prepareServiceUpdate),
			Validate:       api.Checks(ValidateService),
			ValidateUpdate: api.ChecksUpdate(ValidateServiceUpdate),
			Warnings:       func(obj, _ api.Object) []string { return serviceWarnings(obj.(*corev1.Service)) },
		},
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		ValidateName:        validate.Label,
		Columns:             serviceColumns(),
		Fields: map[string]func(api.Object) string{
			"spec.clusterIP": api.Field(func(s *corev1.Service) string { return s.Spec.ClusterIP }),
			"spec.type":      api.Field(func(s *corev1.Service) string { return string(s.Spec.Type) }),
		},
		Indexes: map[string]func(api.Object) []string{"clusterIP": api.Values(func(s *corev1.Service) []string {
			if Headless(s) {
				return nil
			}
			return s.Spec.ClusterIPs
		})},
		Subresources: []api.Subresource{
			connect("proxy", "ServiceProxyOptions", proxyVerbs...),
			view("status", api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(s, old *corev1.Service) { s.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(serviceStatusUpdate),
			}),
		},
	}
}

// Headless tells whether a service asks for no cluster IP.
func Headless(s *corev1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// NeedsClusterIP tells whether a service of this type has cluster IPs (or says that it wants none).
func NeedsClusterIP(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		return true
	}
	return false
}

// NeedsNodePort tells whether the ports of a service are also ports of every node.
func NeedsNodePort(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

// NeedsHealthCheckNodePort tells whether nodes answer a load balancer's health checks for a service.
func NeedsHealthCheckNodePort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// externallyAccessible tells whether a service can be reached from outside the cluster, so
// that externalTrafficPolicy means something.
func externallyAccessible(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeClusterIP:
		return len(s.Spec.ExternalIPs) > 0
	}
	return false
}

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	defaultSessionAffinity(spec)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) && spec.ExternalTrafficPolicy == "" {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if NeedsClusterIP(s) && spec.InternalTrafficPolicy == nil {
		spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	if spec.AllocateLoadBalancerNodePorts == nil {
		spec.AllocateLoadBalancerNodePorts = new(true)
	}
	for i := range s.Status.LoadBalancer.Ingress {
		if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" && in.IPMode == nil {
			in.IPMode = new(corev1.LoadBalancerIPModeVIP)
		}
	}
}

func defaultSessionAffinity(s *corev1.ServiceSpec) {
	if s.SessionAffinity == "" {
		s.SessionAffinity = corev1.ServiceAffinityNone
	}
	switch s.SessionAffinity {
	case corev1.ServiceAffinityNone:
		s.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		c := s.SessionAffinityConfig
		if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(corev1.DefaultClientIPServiceAffinitySeconds)}}
		}
	}
}

// prepareServiceUpdate takes from old what the server chose and the client did not name, and
// drops what a change of type leaves without meaning.
func prepareServiceUpdate(s, old *corev1.Service) {
	s.Status = old.Status
	keepAllocated(s, old)
	followClusterIP(s, old)
	dropByType(s, old)
}

func keepAllocated(s, old *corev1.Service) {
	if NeedsClusterIP(s) && NeedsClusterIP(old) {
		if s.Spec.ClusterIP == "" {
			s.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP == old.Spec.ClusterIP {
			s.Spec.ClusterIPs = old.Spec.ClusterIPs
		}
	}
	if NeedsNodePort(s) && NeedsNodePort(old) {
		keepNodePorts(s, old)
	}
	if NeedsHealthCheckNodePort(s) && NeedsHealthCheckNodePort(old) && s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// keepNodePorts matches ports by number and protocol, unless the client gave the node port to another.
func keepNodePorts(s, old *corev1.Service) {
	type number struct {
		port     int32
		protocol corev1.Protocol
	}
	had := make(map[number]int32, len(old.Spec.Ports))
	for _, p := range old.Spec.Ports {
		had[number{p.Port, p.Protocol}] = p.NodePort
	}
	taken := make(map[number]bool, len(s.Spec.Ports))
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			taken[number{p.NodePort, p.Protocol}] = true
		}
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		n := had[number{p.Port, p.Protocol}]
		if p.NodePort == 0 && !taken[number{n, p.Protocol}] {
			p.NodePort = n
		}
	}
}

// followClusterIP lets clients of before dual-stack change clusterIP alone.
func followClusterIP(s, old *corev1.Service) {
	if !slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) {
		return
	}
	switch {
	case s.Spec.ClusterIP == "" && old.Spec.ClusterIP != "":
		s.Spec.ClusterIPs = nil
	case s.Spec.ClusterIP != old.Spec.ClusterIP:
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
}

// dropByType clears what the old type needed and the new one does not, where the client left
// it as it was.
func dropByType(s, old *corev1.Service) {
	n, o := &s.Spec, &old.Spec
	if NeedsClusterIP(old) && !NeedsClusterIP(s) {
		if n.ClusterIP == o.ClusterIP && slices.Equal(n.ClusterIPs, o.ClusterIPs) {
			n.ClusterIP, n.ClusterIPs = "", nil
		}
		if slices.Equal(n.IPFamilies, o.IPFamilies) {
			n.IPFamilies = nil
		}
		if equality.Semantic.DeepEqual(n.IPFamilyPolicy, o.IPFamilyPolicy) {
			n.IPFamilyPolicy = nil
		}
	}
	if NeedsNodePort(old) && !NeedsNodePort(s) && sameNodePorts(n.Ports, o.Ports) {
		for i := range n.Ports {
			n.Ports[i].NodePort = 0
		}
	}
	if NeedsHealthCheckNodePort(old) && !NeedsHealthCheckNodePort(s) && n.HealthCheckNodePort == o.HealthCheckNodePort {
		n.HealthCheckNodePort = 0
	}
	if o.Type == corev1.ServiceTypeLoadBalancer && n.Type != corev1.ServiceTypeLoadBalancer {
		if equality.Semantic.DeepEqual(n.AllocateLoadBalancerNodePorts, o.AllocateLoadBalancerNodePorts) {
			n.AllocateLoadBalancerNodePorts = nil
		}
		if equality.Semantic.DeepEqual(n.LoadBalancerClass, o.LoadBalancerClass) {
			n.LoadBalancerClass = nil
		}
	}
	if externallyAccessible(old) && !externallyAccessible(s) && n.ExternalTrafficPolicy == o.ExternalTrafficPolicy {
		n.ExternalTrafficPolicy = ""
	}
}

func sameNodePorts(ports, old []corev1.ServicePort) bool {
	collect := func(list []corev1.ServicePort) []int32 {
		var out []int32
		for _, p := range list {
			if p.NodePort != 0 {
				out = append(out, p.NodePort)
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return slices.Equal(collect(ports), collect(old))
}

func serviceWarnings(s *corev1.Service) []string {
	w := &warner{}
	if _, ok := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok {
		w.say("annotation %s is deprecated, please use %s instead", corev1.DeprecatedAnnotationTopologyAwareHints, corev1.AnnotationTopologyMode)
	}
	headless := s.Spec.Type == corev1.ServiceTypeClusterIP && s.Spec.ClusterIP == corev1.ClusterIPNone
	if headless {
		if s.Spec.LoadBalancerIP != "" {
			w.say("spec.loadBalancerIP is ignored for headless services")
		}
		if len(s.Spec.ExternalIPs) > 0 {
			w.say("spec.externalIPs is ignored for headless services")
		}
		if s.Spec.SessionAffinity != corev1.ServiceAffinityNone {
			w.say("spec.SessionAffinity is ignored for headless services")
		}
	} else if s.Spec.ClusterIP != "" {
		for i, ip := range s.Spec.ClusterIPs {
			w.ip(specPath.Child("clusterIPs").Index(i), ip)
		}
	}
	for i, ip := range s.Spec.ExternalIPs {
		w.ip(specPath.Child("externalIPs").Index(i), ip)
	}
	if len(s.Spec.ExternalIPs) > 0 && !headless && s.Spec.Type != corev1.ServiceTypeExternalName {
		w.say("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if s.Spec.LoadBalancerIP != "" {
		w.ip(specPath.Child("loadBalancerIP"), s.Spec.LoadBalancerIP)
	}
	for i, cidr := range s.Spec.LoadBalancerSourceRanges {
		w.cidr(specPath.Child("loadBalancerSourceRanges").Index(i), strings.TrimSpace(cidr))
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		if len(s.Spec.ExternalIPs) > 0 {
			w.say("spec.externalIPs is ignored when spec.type is %q", corev1.ServiceTypeExternalName)
		}
	} else if s.Spec.ExternalName != "" {
		w.say("spec.externalName is ignored when spec.type is not %q", corev1.ServiceTypeExternalName)
	}
	if d := s.Spec.TrafficDistribution; d != nil && *d == corev1.ServiceTrafficDistributionPreferClose {
		w.say("spec.trafficDistribution: %q is deprecated; use %q", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone)
	}
	return w.said
}

func serviceColumns() []api.Column {
	spec := corev1.ServiceSpec{}.SwaggerDoc()
	type T = *corev1.Service
	return []api.Column{
		nameColumn(),
		column("Type", "string", spec["type"], 0, func(s T) any { return string(s.Spec.Type) }),
		column("Cluster-IP", "string", spec["clusterIP"], 0, func(s T) any {
			if len(s.Spec.ClusterIPs) == 0 {
				return none
			}
			return s.Spec.ClusterIPs[0]
		}),
		column("External-IP", "string", spec["externalIPs"], 0, func(s T) any { return externalIP(s) }),
		column("Port(s)", "string", spec["ports"], 0, func(s T) any { return or(portList(s.Spec.Ports), none) }),
		ageColumn(),
		column("Selector", "string", spec["selector"], 1, func(s T) any { return formatSet(s.Spec.Selector) }),
	}
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return or(strings.Join(s.Spec.ExternalIPs, ","), none)
	case corev1.ServiceTypeLoadBalancer:
		var ips []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			if ip := or(in.IP, in.Hostname); ip != "" {
				ips = append(ips, ip)
			}
		}
		slices.Sort(ips)
		ips = append(slices.Compact(ips), s.Spec.ExternalIPs...)
		return or(strings.Join(ips, ","), "<pending>")
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	}
	return unknown
}

func portList(ports []corev1.ServicePort) string {
	parts := make([]string, 0, len(ports))
	for _, p := range ports {
		part := strconv.Itoa(int(p.Port))
		if p.NodePort > 0 {
			part += ":" + strconv.Itoa(int(p.NodePort))
		}
		parts = append(parts, part+"/"+string(p.Protocol))
	}
	return strings.Join(parts, ",")
}

// isIPv6 tells the family of an address that is known to be one.
func isIPv6(s string) bool {
	ip, err := netip.ParseAddr(s)
	return err == nil && !ip.Unmap().Is4()
}
