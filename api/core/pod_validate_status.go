package core

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// ValidatePodStatusUpdate checks a change through the status endpoint of pods.
func ValidatePodStatusUpdate(p, old *corev1.Pod) field.ErrorList {
	r := &report{}
	podAnnotationsUpdate(r, p, old)
	s, o := &p.Status, &old.Status
	podConditions(r, s.Conditions)
	if p.Spec.NodeName != old.Spec.NodeName {
		r.forbidden(statusPath.Child("nodeName"), "may not be changed directly")
	}
	if s.NominatedNodeName != "" && s.NominatedNodeName != o.NominatedNodeName {
		r.objectName(s.NominatedNodeName, statusPath, "nominatedNodeName", false)
		if old.Spec.NodeName != "" {
			r.forbidden(statusPath.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node")
		}
	}
	if s.ObservedGeneration < 0 {
		r.invalid(statusPath.Child("observedGeneration"), s.ObservedGeneration, "must be a non-negative integer")
	}
	r.add(validate.Immutable(s.QOSClass, o.QOSClass, statusPath.Child("qosClass")))
	containerTransitions(r, p, old)
	claimStatuses(r, s.ResourceClaimStatuses, p.Spec.ResourceClaims)
	extendedClaimStatus(r, s.ExtendedResourceClaimStatus, &p.Spec)
	podAddresses(r, s, o)
	for _, l := range statusLists(s) {
		containerUsers(r, l.list, statusPath.Child(l.name), p.Spec.OS)
	}
	resourceHealth(r, s.ContainerStatuses, p.Spec.Containers, "containerStatuses")
	resourceHealth(r, s.InitContainerStatuses, p.Spec.InitContainers, "initContainerStatuses")
	for i := range s.EphemeralContainerStatuses {
		if len(s.EphemeralContainerStatuses[i].AllocatedResourcesStatus) > 0 {
			r.forbidden(statusPath.Child("ephemeralContainerStatuses").Index(i).Child("allocatedResourcesStatus"),
				"must not be specified in container status")
		}
	}
	return r.errs
}

type statusList struct {
	name string
	list []corev1.ContainerStatus
}

func statusLists(s *corev1.PodStatus) []statusList {
	return []statusList{
		{"containerStatuses", s.ContainerStatuses},
		{"initContainerStatuses", s.InitContainerStatuses},
		{"ephemeralContainerStatuses", s.EphemeralContainerStatuses},
	}
}

func podConditions(r *report, list []corev1.PodCondition) {
	p := statusPath.Child("conditions")
	for i := range list {
		c := &list[i]
		if c.ObservedGeneration < 0 {
			r.invalid(p.Index(i).Child("observedGeneration"), c.ObservedGeneration, "must be a non-negative integer")
		}
		switch c.Type {
		case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized:
			continue
		}
		if m := validate.QualifiedName(string(c.Type)); m != nil {
			r.invalids(p.Index(i).Child("Type"), string(c.Type), m)
		}
	}
}

// containerTransitions holds that a container that ended stays so unless its policy restarts it.
func containerTransitions(r *report, p, old *corev1.Pod) {
	s := &old.Spec
	if !restartsAll(s) {
		transitions(r, p.Status.ContainerStatuses, old.Status.ContainerStatuses, "containerStatuses", s, s.Containers)
		transitions(r, p.Status.InitContainerStatuses, old.Status.InitContainerStatuses, "initContainerStatuses", s, s.InitContainers)
	}
	transitions(r, p.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, "ephemeralContainerStatuses", s, nil)
}

// restartsAll tells whether a rule of a container may restart all of them (KEP-5532).
func restartsAll(s *corev1.PodSpec) bool {
	all := false
	eachContainer(s, func(c *corev1.Container) {
		for _, rule := range c.RestartPolicyRules {
			all = all || rule.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		}
	})
	return all
}

func transitions(r *report, list, old []corev1.ContainerStatus, name string, s *corev1.PodSpec, containers []corev1.Container) {
	for i := range old {
		t := old[i].State.Terminated
		if t == nil {
			continue
		}
		n := slices.IndexFunc(list, func(c corev1.ContainerStatus) bool { return c.Name == old[i].Name })
		if n < 0 || list[n].State.Terminated != nil {
			continue
		}
		c := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == old[i].Name })
		if c < 0 || !Restarts(&containers[c], s, t.ExitCode) {
			r.forbidden(statusPath.Child(name).Index(i).Child("state"), "may not be transitioned to non-terminated state")
		}
	}
}

// Restarts tells whether a container that ended with an exit code is to be started again: by
// its rules (KEP-5307), its own policy or that of the pod.
func Restarts(c *corev1.Container, s *corev1.PodSpec, exitCode int32) bool {
	if c.RestartPolicy != nil {
		for _, rule := range c.RestartPolicyRules {
			if rule.Action == corev1.ContainerRestartRuleActionRestart && rule.ExitCodes != nil && ruleMatches(rule.ExitCodes, exitCode) {
				return true
			}
		}
		switch *c.RestartPolicy {
		case corev1.ContainerRestartPolicyAlways:
			return true
		case corev1.ContainerRestartPolicyOnFailure:
			return exitCode != 0
		case corev1.ContainerRestartPolicyNever:
			return false
		}
	}
	switch s.RestartPolicy {
	case corev1.RestartPolicyAlways:
		return true
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	return false
}

func ruleMatches(codes *corev1.ContainerRestartRuleOnExitCodes, exitCode int32) bool {
	in := slices.Contains(codes.Values, exitCode)
	switch codes.Operator {
	case corev1.ContainerRestartRuleOnExitCodesOpIn:
		return in
	case corev1.ContainerRestartRuleOnExitCodesOpNotIn:
		return !in
	}
	return false
}

func claimStatuses(r *report, list []corev1.PodResourceClaimStatus, claims []corev1.PodResourceClaim) {
	for i, s := range list {
		p := statusPath.Child("resourceClaimStatuses").Index(i)
		if !slices.ContainsFunc(claims, func(c corev1.PodResourceClaim) bool { return c.Name == s.Name }) {
			r.invalid(p.Child("name"), s.Name, "must match the name of an entry in `spec.resourceClaims`")
		}
		if slices.ContainsFunc(list[:i], func(o corev1.PodResourceClaimStatus) bool { return o.Name == s.Name }) {
			r.duplicate(p.Child("name"), s.Name)
		}
		if s.ResourceClaimName != nil {
			r.objectName(*s.ResourceClaimName, p, "resourceClaimName", false)
		}
	}
}

// extendedClaimStatus follows KEP-5004.
func extendedClaimStatus(r *report, s *corev1.PodExtendedResourceClaimStatus, spec *corev1.PodSpec) {
	if s == nil {
		return
	}
	p := statusPath.Child("extendedResourceClaimStatus")
	mappings := p.Child("requestMappings")
	if len(s.RequestMappings) == 0 {
		r.required(mappings, "at least one request mapping is required")
	}
	for i, m := range s.RequestMappings {
		at := mappings.Index(i)
		c := containerNamed(spec, m.ContainerName)
		if c == nil {
			r.invalid(at.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name")
		} else if _, ok := c.Resources.Requests[corev1.ResourceName(m.ResourceName)]; !ok {
			r.invalid(at.Child("resourceName"), m.ResourceName,
				"must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests")
		}
		r.label(m.RequestName, p, "requestName")
		if slices.Contains(s.RequestMappings[:i], m) {
			r.duplicate(at.Child("containerName"), m.ContainerName)
			r.duplicate(at.Child("resourceName"), m.ResourceName)
			r.duplicate(at.Child("requestName"), m.RequestName)
		}
	}
	if s.ResourceClaimName == "" {
		r.required(p.Child("resourceClaimName"), "")
	} else {
		r.objectName(s.ResourceClaimName, p, "resourceClaimName", false)
	}
}

func containerNamed(s *corev1.PodSpec, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func podAddresses(r *report, s, old *corev1.PodStatus) {
	var ips, before []string
	for _, ip := range s.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range old.PodIPs {
		before = append(before, ip.IP)
	}
	oneOfEachFamily(r, ips, before, s.PodIPs, statusPath.Child("podIPs"))
	if len(s.HostIPs) == 0 {
		return
	}
	p := statusPath.Child("hostIPs")
	if s.HostIP != s.HostIPs[0].IP {
		r.invalid(p.Index(0).Child("ip"), s.HostIPs[0].IP, "must be equal to `hostIP`")
	}
	ips, before = nil, nil
	for _, ip := range s.HostIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range old.HostIPs {
		before = append(before, ip.IP)
	}
	oneOfEachFamily(r, ips, before, s.HostIPs, p)
}

// oneOfEachFamily holds that addresses are good, and no more than one of each family.
func oneOfEachFamily(r *report, ips, old []string, said any, p *field.Path) {
	for i, ip := range ips {
		r.add(validate.IP(ip, p.Index(i), old...))
	}
	if len(ips) < 2 {
		return
	}
	dual, err := dualStack(ips)
	if err != nil {
		r.addOne(field.InternalError(p, fmt.Errorf("failed to check for dual stack with error:%v", err)))
	}
	if !dual || len(ips) > 2 {
		r.invalid(p, said, "may specify no more than one IP for each IP family")
	}
}

// dualStack tells whether both families are among the addresses.
func dualStack(ips []string) (bool, error) {
	v4, v6 := false, false
	for i, s := range ips {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return false, fmt.Errorf("invalid IP[%v]: %v", i, s)
		}
		v4, v6 = v4 || ip.Unmap().Is4(), v6 || !ip.Unmap().Is4()
	}
	return v4 && v6, nil
}

func containerUsers(r *report, list []corev1.ContainerStatus, p *field.Path, os *corev1.PodOS) {
	for i := range list {
		u := list[i].User
		if u == nil || u.Linux == nil {
			continue
		}
		at := p.Index(i).Child("user", "linux")
		if os != nil && os.Name == corev1.Windows {
			r.forbidden(at, "cannot be set for a windows pod")
			continue
		}
		inRange(r, u.Linux.UID, 0, math.MaxInt32, at, "uid")
		inRange(r, u.Linux.GID, 0, math.MaxInt32, at, "gid")
		for j, gid := range u.Linux.SupplementalGroups {
			r.invalids(at.Child("supplementalGroups").Index(j), gid, content.IsValidGroupID(gid))
		}
	}
}

// resourceHealth follows KEP-4680.
func resourceHealth(r *report, list []corev1.ContainerStatus, containers []corev1.Container, name string) {
	for i := range list {
		for j := range list[i].AllocatedResourcesStatus {
			s := &list[i].AllocatedResourcesStatus[j]
			at := statusPath.Child(name).Index(i).Child("allocatedResourcesStatus").Index(j)
			c := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == list[i].Name })
			if c >= 0 {
				healthOf(r, s.Name, &containers[c], at)
			}
			for k, h := range s.Resources {
				health(r, &h, s.Resources[:k], at.Child("resources").Index(k))
			}
		}
	}
}

func healthOf(r *report, name corev1.ResourceName, c *corev1.Container, p *field.Path) {
	if !strings.HasPrefix(string(name), "claim:") {
		if _, ok := c.Resources.Requests[name]; !ok {
			r.invalid(p.Child("name"), name, "must match one of the container's resource requests")
		}
		return
	}
	for _, claim := range c.Resources.Claims {
		full := "claim:" + claim.Name
		if claim.Request != "" {
			full += "/" + claim.Request
		}
		if full == string(name) {
			return
		}
	}
	r.invalid(p.Child("name"), name,
		"must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty")
}

func health(r *report, h *corev1.ResourceHealth, before []corev1.ResourceHealth, p *field.Path) {
	oneOf(r, h.Health, p, "health", corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)
	if h.Message != nil {
		if *h.Message == "" {
			r.required(p.Child("message"), "must be non-empty if specified")
		} else if len(*h.Message) > corev1.ResourceHealthMessageMaxLength {
			r.addOne(field.TooLong(p.Child("message"), *h.Message, corev1.ResourceHealthMessageMaxLength))
		}
	}
	if slices.ContainsFunc(before, func(o corev1.ResourceHealth) bool { return o.ResourceID == h.ResourceID }) {
		r.duplicate(p.Child("resourceID"), h.ResourceID)
	}
}
