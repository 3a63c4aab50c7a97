package allocate

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/admission"
)

// Allocate completes a service on its way in; every other object passes. What it chose is held
// until release, which is not nil where something was chosen, also beside an error.
func (a *Allocator) Allocate(r *admission.Request) (release func(), err error) {
	if !r.Is("services", "") {
		return nil, nil
	}
	svc := r.Object.(*corev1.Service)
	var old *corev1.Service
	if r.Old != nil {
		old = r.Old.(*corev1.Service)
		keep(svc, old)
	} else if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.refresh(); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	h := &hold{a: a, snap: a.store.Snapshot()}
	if err := a.complete(h, svc, old); err != nil {
		return h.release, err
	}
	return h.release, nil
}

func (a *Allocator) complete(h *hold, svc, old *corev1.Service) error {
	if len(a.ranges) > 0 {
		if err := a.families(svc, old); err != nil {
			return err
		}
		if err := a.clusterIPs(h, svc, old); err != nil {
			return err
		}
	}
	if err := nodePorts(h, svc, old); err != nil {
		return err
	}
	return healthCheckPort(h, svc, old)
}

// keep takes from the old service what an update left out and cannot mean to remove.
func keep(svc, old *corev1.Service) {
	if needsIP(svc) && needsIP(old) {
		if svc.Spec.ClusterIP == "" {
			svc.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName && old.Spec.Type != corev1.ServiceTypeExternalName {
		if svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
			svc.Spec.IPFamilies, svc.Spec.IPFamilyPolicy = nil, nil
		}
	}
	if needsPorts(svc) && needsPorts(old) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if p.NodePort != 0 {
				continue
			}
			for _, q := range old.Spec.Ports {
				if q.Port == p.Port && q.Protocol == p.Protocol && !usesPort(svc, q.NodePort) {
					p.NodePort = q.NodePort
				}
			}
		}
	}
	if needsHealthCheck(svc) && needsHealthCheck(old) && svc.Spec.HealthCheckNodePort == 0 {
		svc.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

func usesPort(svc *corev1.Service, port int32) bool {
	return slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == port && port != 0 })
}

func needsIP(svc *corev1.Service) bool { return svc.Spec.Type != corev1.ServiceTypeExternalName }

func needsPorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func needsHealthCheck(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func headless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == corev1.ClusterIPNone || len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

func invalid(svc *corev1.Service, errs ...*field.Error) error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, svc.Name, errs)
}

var spec = field.NewPath("spec")

// families defaults and checks the IP families and their policy
// (https://kubernetes.io/docs/concepts/services-networking/dual-stack/).
func (a *Allocator) families(svc, old *corev1.Service) error {
	if !needsIP(svc) || old != nil && settledPreference(svc, old) {
		return nil
	}
	s := &svc.Spec
	if s.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		switch {
		case old != nil && old.Spec.IPFamilyPolicy != nil:
			policy = *old.Spec.IPFamilyPolicy
		case s.ClusterIP == corev1.ClusterIPNone && len(s.Selector) == 0:
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		s.IPFamilyPolicy = &policy
	}
	single := *s.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if old != nil {
		if err := shrink(svc, old, single); err != nil {
			return err
		}
	}
	if single {
		if len(s.ClusterIPs) == 2 {
			return invalid(svc, field.Invalid(spec.Child("ipFamilyPolicy"), s.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"))
		}
		if len(s.IPFamilies) == 2 {
			return invalid(svc, field.Invalid(spec.Child("ipFamilyPolicy"), s.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"))
		}
	}
	if err := a.inferFamilies(svc); err != nil {
		return err
	}
	if s.ClusterIP == corev1.ClusterIPNone && len(s.Selector) == 0 {
		// Without selector there may be endpoints of any family, whatever the cluster has.
		if len(s.IPFamilies) == 0 {
			s.IPFamilies = []corev1.IPFamily{a.ranges[0].family}
		}
		if len(s.IPFamilies) == 1 && !single {
			s.IPFamilies = append(s.IPFamilies, other(s.IPFamilies[0]))
		}
		return nil
	}
	if *s.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && len(a.ranges) < 2 {
		return invalid(svc, field.Invalid(spec.Child("ipFamilyPolicy"), s.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range s.IPFamilies {
		if a.rangeOf(f) == nil {
			return invalid(svc, field.Invalid(spec.Child("ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(s.IPFamilies) == 0 {
		s.IPFamilies = []corev1.IPFamily{a.ranges[0].family}
	}
	if !single && len(s.IPFamilies) == 1 && len(a.ranges) == 2 {
		s.IPFamilies = append(s.IPFamilies, other(s.IPFamilies[0]))
	}
	return nil
}

func other(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// settledPreference tells that an update does not touch what a preference for two families once
// came to; it is then not reconsidered.
func settledPreference(svc, old *corev1.Service) bool {
	prefers := func(s *corev1.Service) bool {
		return s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack
	}
	return prefers(svc) && prefers(old) &&
		slices.Equal(svc.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(svc.Spec.IPFamilies, old.Spec.IPFamilies)
}

// shrink drops the second family where the policy says so, and refuses to drop it otherwise.
func shrink(svc, old *corev1.Service, single bool) error {
	s, o := &svc.Spec, &old.Spec
	if single {
		if slices.Equal(s.ClusterIPs, o.ClusterIPs) && len(s.ClusterIPs) > 1 {
			s.ClusterIPs = s.ClusterIPs[:1]
		}
		if slices.Equal(s.IPFamilies, o.IPFamilies) && len(s.IPFamilies) > 1 {
			s.IPFamilies = s.IPFamilies[:1]
		}
		return nil
	}
	var errs field.ErrorList
	if len(s.ClusterIPs) == 1 && len(o.ClusterIPs) == 2 && s.ClusterIPs[0] == o.ClusterIPs[0] {
		errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), s.IPFamilyPolicy, "must be 'SingleStack' to release the secondary cluster IP"))
	}
	if len(s.IPFamilies) == 1 && len(o.IPFamilies) == 2 && s.IPFamilies[0] == o.IPFamilies[0] {
		errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), s.IPFamilyPolicy, "must be 'SingleStack' to release the secondary IP family"))
	}
	if len(errs) > 0 {
		return invalid(svc, errs...)
	}
	return nil
}

// inferFamilies adds the families of the addresses that were asked for.
func (a *Allocator) inferFamilies(svc *corev1.Service) error {
	s := &svc.Spec
	for i, text := range s.ClusterIPs {
		if text == corev1.ClusterIPNone {
			break
		}
		ip, err := netip.ParseAddr(text)
		if err != nil || i < len(s.IPFamilies) {
			continue // validation has the word
		}
		f := corev1.IPv4Protocol
		if ip.Is6() {
			f = corev1.IPv6Protocol
		}
		if a.rangeOf(f) == nil {
			return invalid(svc, field.Invalid(spec.Child("clusterIPs").Index(i), s.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", f)))
		}
		s.IPFamilies = append(s.IPFamilies, f)
	}
	return nil
}

// clusterIPs chooses the addresses that a service lacks.
func (a *Allocator) clusterIPs(h *hold, svc, old *corev1.Service) error {
	s := &svc.Spec
	if !needsIP(svc) || headless(svc) {
		if headless(svc) && len(s.ClusterIPs) == 0 {
			s.ClusterIPs = []string{corev1.ClusterIPNone}
		}
		return nil
	}
	var mine []netip.Addr
	if old != nil {
		mine = addresses(old)
	}
	for i, f := range s.IPFamilies {
		if a.rangeOf(f) == nil {
			continue
		}
		if i >= len(s.ClusterIPs) {
			s.ClusterIPs = append(s.ClusterIPs, "")
		}
		if s.ClusterIPs[i] == "" {
			ip, err := h.nextIP(f)
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: %v", err))
			}
			s.ClusterIPs[i] = ip.String()
		} else if ip, err := netip.ParseAddr(s.ClusterIPs[i]); err != nil || !slices.Contains(mine, ip) {
			if err := h.takeIP(f, s.ClusterIPs[i]); err != nil {
				return invalid(svc, field.Invalid(spec.Child("clusterIPs"), s.ClusterIPs, fmt.Sprintf("failed to allocate IP %v: %v", s.ClusterIPs[i], err)))
			}
		}
	}
	if len(s.ClusterIPs) > 0 {
		s.ClusterIP = s.ClusterIPs[0]
	}
	return nil
}

// allocatesPorts tells whether ports are chosen, or only taken where they are asked for.
func allocatesPorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort ||
		svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts)
}

// nodePorts chooses the node ports that a service lacks. Ports of one number and several protocols share one.
func nodePorts(h *hold, svc, old *corev1.Service) error {
	if !needsPorts(svc) {
		if old != nil && needsPorts(old) {
			dropPorts(svc, old)
		}
		return nil
	}
	mine := map[int]bool{}
	if old != nil {
		mine = portsOf(old)
	}
	chosen := map[int32]int32{} // service port -> node port
	for i := range svc.Spec.Ports {
		if p := &svc.Spec.Ports[i]; p.NodePort != 0 {
			if _, ok := chosen[p.Port]; !ok {
				chosen[p.Port] = p.NodePort
			}
			if mine[int(p.NodePort)] {
				continue
			}
			if err := h.takePort(int(p.NodePort)); err != nil {
				return invalid(svc, field.Invalid(spec.Child("ports").Index(i).Child("nodePort"), p.NodePort, err.Error()))
			}
			mine[int(p.NodePort)] = true
		}
	}
	if !allocatesPorts(svc) {
		return nil
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		if same, ok := chosen[p.Port]; ok && !sharesProtocol(svc, i, same) {
			p.NodePort = same
			continue
		}
		n, err := h.nextPort()
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %v", err))
		}
		p.NodePort = int32(n)
		chosen[p.Port] = p.NodePort
	}
	return nil
}

// sharesProtocol tells that another port of the service has the node port for the same protocol.
func sharesProtocol(svc *corev1.Service, i int, nodePort int32) bool {
	for j := range svc.Spec.Ports {
		if j != i && svc.Spec.Ports[j].NodePort == nodePort && svc.Spec.Ports[j].Protocol == svc.Spec.Ports[i].Protocol {
			return true
		}
	}
	return false
}

// dropPorts removes the node ports that a service of another type had, unless the update asks for new ones.
func dropPorts(svc, old *corev1.Service) {
	had := portsOf(old)
	for i := range svc.Spec.Ports {
		if had[int(svc.Spec.Ports[i].NodePort)] {
			svc.Spec.Ports[i].NodePort = 0
		}
	}
}

// healthCheckPort chooses the port on which load balancers ask nodes for local endpoints.
func healthCheckPort(h *hold, svc, old *corev1.Service) error {
	if !needsHealthCheck(svc) {
		if old != nil && needsHealthCheck(old) && svc.Spec.HealthCheckNodePort == old.Spec.HealthCheckNodePort {
			svc.Spec.HealthCheckNodePort = 0
		}
		return nil
	}
	want := int(svc.Spec.HealthCheckNodePort)
	if want == 0 {
		p, err := h.nextPort()
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a HealthCheck NodePort %v: %v", want, err))
		}
		svc.Spec.HealthCheckNodePort = int32(p)
		return nil
	}
	if old != nil && needsHealthCheck(old) {
		return nil // validation refuses a change
	}
	if err := h.takePort(want); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate requested HealthCheck NodePort %v: %v", want, err))
	}
	return nil
}
