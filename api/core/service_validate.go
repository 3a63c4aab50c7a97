package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"coracle.dev/coracle/api/validate"
)

// ValidateService checks a new service, with the addresses and ports that the server chose.
func ValidateService(s *corev1.Service) field.ErrorList {
	r := &report{}
	serviceRules(r, s, nil)
	return r.errs
}

// ValidateServiceUpdate checks a change of a service: what the server allocated is released only by
// a change of type or of the IP family policy (KEP-563).
func ValidateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	r := &report{}
	if s.Spec.Type != corev1.ServiceTypeExternalName && old.Spec.Type != corev1.ServiceTypeExternalName {
		clusterIPsUpdate(r, s, old)
		ipFamiliesUpdate(r, s, old)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		(deref(s.Spec.LoadBalancerClass, "") != deref(old.Spec.LoadBalancerClass, "") ||
			(s.Spec.LoadBalancerClass == nil) != (old.Spec.LoadBalancerClass == nil)) {
		r.invalid(specPath.Child("loadBalancerClass"), s.Spec.LoadBalancerClass, "may not change once set")
	}
	loadBalancerClass(r, s)
	if NeedsHealthCheckNodePort(s) && NeedsHealthCheckNodePort(old) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		r.forbidden(specPath.Child("healthCheckNodePort"), validate.ImmutableMessage)
	}
	serviceRules(r, s, old)
	return r.errs
}

const changed = "may not change once set"

func clusterIPsUpdate(r *report, s, old *corev1.Service) {
	if Headless(s) && Headless(old) {
		return
	}
	ips, before, p := s.Spec.ClusterIPs, old.Spec.ClusterIPs, specPath.Child("clusterIPs")
	switch {
	case len(ips) == len(before):
		for i := range ips {
			if ips[i] != before[i] {
				r.invalid(p.Index(i), ips, changed)
			}
		}
	case len(ips) == 0:
		r.invalid(p.Index(0), ips, "primary clusterIP can not be unset")
	default:
		if len(before) > 0 && ips[0] != before[0] {
			r.invalid(p.Index(0), ips, changed)
		}
		if len(before) > 1 && len(ips) == 1 {
			singleStack(r, s, "must be set to 'SingleStack' when releasing the secondary clusterIP")
		}
	}
}

func ipFamiliesUpdate(r *report, s, old *corev1.Service) {
	if Headless(s) || Headless(old) {
		return
	}
	families, before, p := s.Spec.IPFamilies, old.Spec.IPFamilies, specPath.Child("ipFamilies").Index(0)
	if len(families) == len(before) {
		for i := range families {
			if families[i] != before[i] {
				r.invalid(p, families, changed)
			}
		}
		return
	}
	if len(families) < len(before) && len(s.Spec.ClusterIPs) == 0 {
		r.invalid(p, families, "primary ipFamily can not be unset")
	}
	if len(families) > 0 && len(before) > 0 && families[0] != before[0] {
		r.invalid(p, s.Spec.ClusterIPs, changed)
	}
	if len(before) > 1 && len(families) == 1 {
		singleStack(r, s, "must be set to 'SingleStack' when releasing the secondary ipFamily")
	}
}

func singleStack(r *report, s *corev1.Service, detail string) {
	if p := s.Spec.IPFamilyPolicy; p == nil || *p != corev1.IPFamilyPolicySingleStack {
		r.invalid(specPath.Child("ipFamilyPolicy"), p, detail)
	}
}

// serviceRules are what holds of a service at any time. old is nil on create.
func serviceRules(r *report, s, old *corev1.Service) {
	mode, ok := s.Annotations[corev1.AnnotationTopologyMode]
	if hints, both := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok && both && mode != hints {
		r.invalid(annotationsPath.Key(corev1.AnnotationTopologyMode), mode,
			fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints))
	}
	if len(s.Spec.Ports) == 0 && !Headless(s) && s.Spec.Type != corev1.ServiceTypeExternalName {
		r.required(specPath.Child("ports"), "")
	}
	serviceType(r, s)
	servicePorts(r, s)
	if s.Spec.Selector != nil {
		r.add(validate.Labels(s.Spec.Selector, specPath.Child("selector")))
	}
	sessionAffinity(r, s)
	if s.Spec.Type != corev1.ServiceTypeExternalName {
		clusterIPs(r, s, old)
	}
	externalIPs(r, s, old)
	needOneOf(r, s.Spec.Type, specPath, "type", corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	uniquePorts(r, s)
	sourceRanges(r, s, old)
	balancer := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	if s.Spec.AllocateLoadBalancerNodePorts != nil && !balancer {
		r.forbidden(specPath.Child("allocateLoadBalancerNodePorts"), balancerOnly)
	}
	if s.Spec.AllocateLoadBalancerNodePorts == nil && balancer {
		r.required(field.NewPath("allocateLoadBalancerNodePorts"), "")
	}
	loadBalancerClass(r, s)
	trafficPolicies(r, s)
}

const balancerOnly = "may only be used when `type` is 'LoadBalancer'"

func serviceType(r *report, s *corev1.Service) {
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if Headless(s) {
			r.invalid(specPath.Child("clusterIPs").Index(0), s.Spec.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", s.Spec.Type))
		}
	case corev1.ServiceTypeExternalName:
		const detail = "may not be set for ExternalName services"
		if len(s.Spec.ClusterIPs) > 0 {
			r.forbidden(specPath.Child("clusterIPs"), detail)
		}
		if len(s.Spec.IPFamilies) > 0 {
			r.forbidden(specPath.Child("ipFamilies"), detail)
		}
		if s.Spec.IPFamilyPolicy != nil {
			r.forbidden(specPath.Child("ipFamilyPolicy"), detail)
		}
		r.needSubdomain(strings.TrimSuffix(s.Spec.ExternalName, "."), specPath, "externalName")
	}
}

func servicePorts(r *report, s *corev1.Service) {
	var seen names
	for i := range s.Spec.Ports {
		port, p := &s.Spec.Ports[i], specPath.Child("ports").Index(i)
		if port.Name == "" {
			if len(s.Spec.Ports) > 1 {
				r.required(p.Child("name"), "")
			}
		} else {
			r.label(port.Name, p, "name")
			if seen.add(port.Name) {
				r.duplicate(p.Child("name"), port.Name)
			}
		}
		inRange(r, port.Port, 1, 65535, p, "port")
		needOneOf(r, port.Protocol, p, "protocol", portProtocols...)
		r.add(validate.PortNumberOrName(port.TargetPort, p.Child("targetPort")))
		if port.AppProtocol != nil {
			r.add(validate.QualifiedNameField(*port.AppProtocol, p.Child("appProtocol")))
		}
	}
}

// uniquePorts holds that no port and no node port is there twice for one protocol, and that
// only the types that have node ports name any.
func uniquePorts(r *report, s *corev1.Service) {
	p := specPath.Child("ports")
	if s.Spec.Type == corev1.ServiceTypeClusterIP {
		for i := range s.Spec.Ports {
			if s.Spec.Ports[i].NodePort != 0 {
				r.forbidden(p.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
			}
		}
	}
	nodePorts := map[corev1.ServicePort]bool{}
	for i, port := range s.Spec.Ports {
		key := corev1.ServicePort{Protocol: port.Protocol, NodePort: port.NodePort}
		if port.NodePort != 0 && nodePorts[key] {
			r.duplicate(p.Index(i).Child("nodePort"), port.NodePort)
		}
		nodePorts[key] = true
	}
	ports := map[corev1.ServicePort]bool{}
	for i, port := range s.Spec.Ports {
		key := corev1.ServicePort{Protocol: port.Protocol, Port: port.Port}
		if ports[key] {
			r.duplicate(p.Index(i), key)
		}
		ports[key] = true
	}
}

// maxAffinitySeconds is a day.
const maxAffinitySeconds = 86400

func sessionAffinity(r *report, s *corev1.Service) {
	needOneOf(r, s.Spec.SessionAffinity, specPath, "sessionAffinity", corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	c, p := s.Spec.SessionAffinityConfig, specPath.Child("sessionAffinityConfig")
	if s.Spec.SessionAffinity == corev1.ServiceAffinityNone && c != nil {
		r.forbidden(p, "must not be set when session affinity is None")
	}
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return
	}
	const detail = "when session affinity type is ClientIP"
	switch {
	case c == nil:
		r.required(p, detail)
	case c.ClientIP == nil:
		r.required(p.Child("clientIP"), detail)
	case c.ClientIP.TimeoutSeconds == nil:
		r.required(p.Child("clientIP", "timeoutSeconds"), detail)
	case *c.ClientIP.TimeoutSeconds <= 0 || *c.ClientIP.TimeoutSeconds > maxAffinitySeconds:
		r.invalid(p.Child("clientIP", "timeoutSeconds"), c.ClientIP.TimeoutSeconds,
			fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds))
	}
}

// clusterIPs checks addresses, families and policy, alone and against each other.
func clusterIPs(r *report, s, old *corev1.Service) {
	ips, p := s.Spec.ClusterIPs, specPath.Child("clusterIPs")
	switch {
	case s.Spec.ClusterIP == "":
		if len(ips) > 0 {
			r.invalid(p, ips, "must be empty when `clusterIP` is not specified")
		}
	case len(ips) == 0:
		r.required(p, "")
	case ips[0] != s.Spec.ClusterIP:
		r.invalid(p, ips, "first value must match `clusterIP`")
	}
	ipFamilies(r, s)
	var before []string
	if old != nil {
		before = old.Spec.ClusterIPs
	}
	bad := false
	for i, ip := range ips {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(ips) > 1 {
				bad = true
				r.invalid(p, ips, "'None' must be the first and only value")
			}
			continue
		}
		if errs := validate.IP(ip, p.Index(i), before...); len(errs) > 0 {
			bad = true
			r.add(errs)
		}
	}
	if len(ips) > 2 {
		r.invalid(p, ips, "may only hold up to 2 values")
	}
	if bad {
		return
	}
	if len(ips) > 1 {
		if dual, err := dualStack(ips); err == nil && !dual {
			r.invalid(p, ips, "may specify no more than one IP for each IP family")
		}
	}
	if Headless(s) {
		return
	}
	for i, ip := range ips {
		if i >= len(s.Spec.IPFamilies) {
			break
		}
		if f := s.Spec.IPFamilies[i]; f == corev1.IPv4Protocol && isIPv6(ip) || f == corev1.IPv6Protocol && !isIPv6(ip) {
			r.invalid(p.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%v]`", f, i))
		}
	}
}

func ipFamilies(r *report, s *corev1.Service) {
	p := specPath.Child("ipFamilies")
	for i, f := range s.Spec.IPFamilies {
		r.add(validate.OneOf(f, p.Index(i), corev1.IPv4Protocol, corev1.IPv6Protocol))
		if slices.Contains(s.Spec.IPFamilies[:min(i, 2)], f) {
			r.duplicate(p.Index(i), f)
		}
	}
	if s.Spec.IPFamilyPolicy != nil {
		oneOf(r, *s.Spec.IPFamilyPolicy, specPath, "ipFamilyPolicy", corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)
	}
}

func externalIPs(r *report, s, old *corev1.Service) {
	var before []string
	if old != nil {
		before = old.Spec.ExternalIPs
	}
	for i, ip := range s.Spec.ExternalIPs {
		p := specPath.Child("externalIPs").Index(i)
		if errs := validate.IP(ip, p, before...); len(errs) > 0 {
			r.add(errs)
			continue
		}
		r.add(ValidateNonSpecialIP(ip, p))
	}
}

// ValidateNonSpecialIP refuses addresses that no endpoint can have: unspecified, loopback and link-local ones.
func ValidateNonSpecialIP(ip string, path *field.Path) field.ErrorList {
	addr := netutils.ParseIPSloppy(ip)
	if addr == nil {
		return field.ErrorList{field.Invalid(path, ip, "must be a valid IP address")}
	}
	r := &report{}
	if addr.IsUnspecified() {
		r.invalid(path, ip, fmt.Sprintf("may not be unspecified (%v)", ip))
	}
	if addr.IsLoopback() {
		r.invalid(path, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	}
	if addr.IsLinkLocalUnicast() {
		r.invalid(path, ip, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	}
	if addr.IsLinkLocalMulticast() {
		r.invalid(path, ip, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
	return r.errs
}

// sourceRanges checks who may use a load balancer, by field or else by the annotation of before it.
func sourceRanges(r *report, s, old *corev1.Service) {
	balancer := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		p := specPath.Child("LoadBalancerSourceRanges")
		if !balancer {
			r.forbidden(p, balancerOnly)
		}
		var before []string
		if old != nil {
			for _, v := range old.Spec.LoadBalancerSourceRanges {
				before = append(before, strings.TrimSpace(v))
			}
		}
		for i, v := range s.Spec.LoadBalancerSourceRanges {
			r.add(validate.CIDR(strings.TrimSpace(v), p.Index(i), before...))
		}
		return
	}
	value, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	if !ok {
		return
	}
	p := annotationsPath.Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	if !balancer {
		r.forbidden(p, balancerOnly)
	}
	if old != nil && old.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] == value {
		return
	}
	if value = strings.TrimSpace(value); value != "" {
		for _, v := range strings.Split(value, ",") {
			r.add(validate.CIDR(strings.TrimSpace(v), p))
		}
	}
}

func loadBalancerClass(r *report, s *corev1.Service) {
	if s.Spec.LoadBalancerClass == nil {
		return
	}
	p := specPath.Child("loadBalancerClass")
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		r.forbidden(p, balancerOnly)
		return
	}
	r.add(validate.QualifiedNameField(*s.Spec.LoadBalancerClass, p))
}

func trafficPolicies(r *report, s *corev1.Service) {
	if !externallyAccessible(s) {
		if s.Spec.ExternalTrafficPolicy != "" {
			r.invalid(specPath.Child("externalTrafficPolicy"), s.Spec.ExternalTrafficPolicy, "may only be set for externally-accessible services")
		}
	} else {
		needOneOf(r, s.Spec.ExternalTrafficPolicy, specPath, "externalTrafficPolicy", corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	p := specPath.Child("healthCheckNodePort")
	switch n := s.Spec.HealthCheckNodePort; {
	case !NeedsHealthCheckNodePort(s):
		if n != 0 {
			r.invalid(p, n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
		}
	case n == 0:
		r.required(p, "")
	default:
		r.add(validate.Port(n, p))
	}
	if i := s.Spec.InternalTrafficPolicy; i != nil {
		oneOf(r, *i, specPath, "internalTrafficPolicy", corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	} else if NeedsClusterIP(s) {
		r.required(specPath.Child("internalTrafficPolicy"), "")
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		oneOf(r, *d, specPath, "trafficDistribution", corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
}

func serviceStatusUpdate(s, old *corev1.Service) field.ErrorList {
	r := &report{}
	p := statusPath.Child("loadBalancer", "ingress")
	list := s.Status.LoadBalancer.Ingress
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(list) > 0 {
		r.forbidden(p, "may only be used when `spec.type` is 'LoadBalancer'")
		return r.errs
	}
	var before []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		before = append(before, in.IP)
	}
	for i := range list {
		loadBalancerIngress(r, &list[i], before, p.Index(i))
	}
	return r.errs
}

func loadBalancerIngress(r *report, in *corev1.LoadBalancerIngress, before []string, p *field.Path) {
	if in.IP != "" {
		r.add(validate.IP(in.IP, p.Child("ip"), before...))
	}
	switch {
	case in.IPMode == nil:
		if in.IP != "" {
			r.required(p.Child("ipMode"), "must be specified when `ip` is set")
		}
	case in.IP == "":
		r.forbidden(p.Child("ipMode"), "may not be specified when `ip` is not set")
	default:
		oneOf(r, *in.IPMode, p, "ipMode", corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)
	}
	if in.Hostname != "" {
		r.invalids(p.Child("hostname"), in.Hostname, content.IsDNS1123Subdomain(in.Hostname))
		if netutils.ParseIPSloppy(in.Hostname) != nil {
			r.invalid(p.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
		}
	}
}
