package core

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func nodeKind() *api.Kind {
	return &api.Kind{
		Kind: "Node", Resource: "nodes", Singular: "node", ShortNames: []string{"no"},
		Versions: v1[corev1.Node, corev1.NodeList](),
		Default:  api.On(defaultNode),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(n *corev1.Node) {
				n.Spec.ConfigSource, n.Status.Config = nil, nil // dynamic kubelet configuration is gone
				n.Spec.PodPreemptionPolicy = nil                // an alpha feature, off
			}),
			PrepareUpdate: api.OnUpdate(func(n, old *corev1.Node) {
				n.Status = old.Status
				if old.Spec.ConfigSource == nil {
					n.Spec.ConfigSource = nil
				}
				n.Spec.PodPreemptionPolicy = nil
			}),
			Validate:       api.Checks(validateNode),
			ValidateUpdate: api.ChecksUpdate(nodeUpdate),
			Warnings:       func(obj, _ api.Object) []string { return nodeWarnings(obj.(*corev1.Node)) },
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns:             nodeColumns(),
		Fields: map[string]func(api.Object) string{
			"spec.unschedulable": api.Field(func(n *corev1.Node) string { return strconv.FormatBool(n.Spec.Unschedulable) }),
		},
		Subresources: []api.Subresource{
			connect("proxy", "NodeProxyOptions", proxyVerbs...),
			view("status", api.Strategy{
				PrepareUpdate: api.OnUpdate(func(n, old *corev1.Node) {
					n.Spec = old.Spec
					if old.Status.Config == nil {
						n.Status.Config = nil
					}
				}),
				ValidateUpdate: api.ChecksUpdate(nodeUpdate),
			}),
		},
	}
}

// defaultNode makes allocatable what capacity is, and keeps podCIDR the first of podCIDRs.
func defaultNode(n *corev1.Node) {
	s := &n.Spec
	switch {
	case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
		s.PodCIDR = s.PodCIDRs[0]
	case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
		s.PodCIDRs = []string{s.PodCIDR}
	}
	defaultResourceList(n.Status.Capacity)
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = n.Status.Capacity.DeepCopy()
	}
	defaultResourceList(n.Status.Allocatable)
}

func validateNode(n *corev1.Node) field.ErrorList {
	r := &report{}
	nodeRules(r, n)
	podCIDRs(r, n.Spec.PodCIDRs)
	return r.errs
}

// nodeRules are what holds of a node at any time.
func nodeRules(r *report, n *corev1.Node) {
	nodeAnnotations(r, n.Annotations)
	taints(r, n.Spec.Taints, metadataPath.Child("taints")) // upstream's path
	for name, q := range inOrder(n.Status.Capacity) {
		r.add(validate.ResourceQuantity(name, q, statusPath.Child("capacity", string(name))))
	}
	for name, q := range inOrder(n.Status.Allocatable) {
		r.add(validate.ResourceQuantity(name, q, statusPath.Child("allocatable", string(name))))
	}
	if s := n.Status.NodeInfo.Swap; s != nil && s.Capacity != nil {
		r.add(validate.Positive(*s.Capacity, metadataPath.Child("nodeSwapStatus", "capacity")))
	}
	declaredFeatures(r, n.Status.DeclaredFeatures)
}

// nodeAnnotations checks the annotations that held taints and preferences before there were fields.
func nodeAnnotations(r *report, annotations map[string]string) {
	if value := annotations[corev1.TaintsAnnotationKey]; value != "" {
		var list []corev1.Taint
		if err := json.Unmarshal([]byte(value), &list); err != nil {
			r.invalid(annotationsPath, corev1.TaintsAnnotationKey, err.Error())
		}
		taints(r, list, annotationsPath.Child(corev1.TaintsAnnotationKey))
	}
	value := annotations[corev1.PreferAvoidPodsAnnotationKey]
	if value == "" {
		return
	}
	var avoid corev1.AvoidPods
	if err := json.Unmarshal([]byte(value), &avoid); err != nil {
		r.invalid(annotationsPath.Child("AvoidPods"), corev1.PreferAvoidPodsAnnotationKey, err.Error())
	}
	for i, e := range avoid.PreferAvoidPods {
		p := annotationsPath.Child(corev1.PreferAvoidPodsAnnotationKey).Index(i).Child("PodSignature")
		switch c := e.PodSignature.PodController; {
		case c == nil:
			r.required(p, "")
		case c.Controller == nil || !*c.Controller:
			r.invalid(p.Child("PodController", "Controller"), false, "must point to a controller")
		}
	}
}

func taints(r *report, list []corev1.Taint, p *field.Path) {
	var seen names
	for i := range list {
		t, at := &list[i], p.Index(i)
		r.add(validate.LabelKey(t.Key, at.Child("key")))
		if m := validate.LabelValue(t.Value); m != nil {
			r.invalid(at.Child("value"), t.Value, strings.Join(m, ";"))
		}
		taintEffect(r, t.Effect, at)
		if seen.add(string(t.Effect) + "\x00" + t.Key) {
			err := field.Duplicate(at, *t)
			err.Detail = "taints must be unique by key and effect pair"
			r.addOne(err)
		}
	}
}

var declaredFeature = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(\/[a-zA-Z][a-zA-Z0-9]*)*$`)

// declaredFeatures follows KEP-5328: names of features, sorted.
func declaredFeatures(r *report, list []string) {
	p := statusPath.Child("declaredFeatures")
	for i, f := range list {
		if len(f) > content.DNS1123SubdomainMaxLength {
			r.invalid(p.Index(i), f, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", f, content.DNS1123SubdomainMaxLength))
		} else if !declaredFeature.MatchString(f) {
			r.invalid(p.Index(i), f, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", f))
		}
		if i == 0 {
			continue
		}
		if f == list[i-1] {
			r.duplicate(p.Index(i), f)
		} else if f < list[i-1] {
			r.invalid(p.Index(i), f, "list must be sorted alphabetically")
		}
	}
}

func podCIDRs(r *report, list []string) {
	p := specPath.Child("podCIDRs")
	v4, v6 := false, false
	for i, s := range list {
		r.add(validate.CIDR(s, p.Index(i)))
		if c, err := netip.ParsePrefix(s); err == nil {
			v4, v6 = v4 || c.Addr().Is4(), v6 || !c.Addr().Is4()
		}
	}
	if len(list) > 2 || len(list) == 2 && !(v4 && v6) {
		r.invalid(p, list, "may specify no more than one CIDR for each IP family")
	}
}

func nodeUpdate(n, old *corev1.Node) field.ErrorList {
	r := &report{}
	nodeRules(r, n)
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range n.Status.Addresses {
		if seen[a] {
			r.duplicate(statusPath.Child("addresses").Index(i), a)
		}
		seen[a] = true
	}
	if len(old.Spec.PodCIDRs) == 0 {
		podCIDRs(r, n.Spec.PodCIDRs)
	} else if !slices.Equal(old.Spec.PodCIDRs, n.Spec.PodCIDRs) {
		r.forbidden(specPath.Child("podCIDRs"), `node updates may not change podCIDR except from "" to valid`)
	}
	if old.Spec.ProviderID != "" && old.Spec.ProviderID != n.Spec.ProviderID {
		r.forbidden(specPath.Child("providerID"), `node updates may not change providerID except from "" to valid`)
	}
	if n.Spec.ConfigSource != nil {
		configSource(r, n.Spec.ConfigSource, specPath.Child("configSource"), false)
	}
	if c := n.Status.Config; c != nil {
		for _, s := range []struct {
			source *corev1.NodeConfigSource
			name   string
		}{{c.Assigned, "assigned"}, {c.Active, "active"}, {c.LastKnownGood, "lastKnownGood"}} {
			if s.source != nil {
				configSource(r, s.source, statusPath.Child("config", s.name), true)
			}
		}
	}
	if n.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		r.forbidden(specPath.Child("externalID"), "may not be updated")
	}
	return r.errs
}

// configSource checks what is left of dynamic kubelet configuration. resolved is set for
// sources in the status, which name the object exactly.
func configSource(r *report, s *corev1.NodeConfigSource, p *field.Path, resolved bool) {
	c := s.ConfigMap
	if c == nil {
		r.invalid(p, s, "exactly one reference subfield must be non-nil")
		return
	}
	p = p.Child("configMap")
	if resolved {
		r.need(string(c.UID), p, "uid")
		r.need(c.ResourceVersion, p, "resourceVersion")
	} else {
		if c.UID != "" {
			r.forbidden(p.Child("uid"), "uid must not be set in spec")
		}
		if c.ResourceVersion != "" {
			r.forbidden(p.Child("resourceVersion"), "resourceVersion must not be set in spec")
		}
	}
	r.needLabel(c.Namespace, p, "namespace")
	r.needSubdomain(c.Name, p, "name")
	if c.KubeletConfigKey == "" {
		r.required(p.Child("kubeletConfigKey"), "")
	} else {
		r.invalids(p.Child("kubeletConfigKey"), c.KubeletConfigKey, validate.ConfigKey(c.KubeletConfigKey))
	}
}

func nodeWarnings(n *corev1.Node) []string {
	w := &warner{}
	if n.Spec.ConfigSource != nil {
		w.say("%s", "spec.configSource: the feature is removed")
	}
	if n.Spec.DoNotUseExternalID != "" {
		w.say("%s", "spec.externalID: this field is deprecated, and is unused by Kubernetes")
	}
	for i, c := range n.Spec.PodCIDRs {
		w.cidr(specPath.Child("podCIDRs").Index(i), c)
	}
	return w.said
}

func nodeColumns() []api.Column {
	status, info := corev1.NodeStatus{}.SwaggerDoc(), corev1.NodeSystemInfo{}.SwaggerDoc()
	type T = *corev1.Node
	address := func(t corev1.NodeAddressType) func(T) any {
		return func(n T) any {
			for _, a := range n.Status.Addresses {
				if a.Type == t {
					return a.Address
				}
			}
			return none
		}
	}
	return []api.Column{
		nameColumn(),
		column("Status", "string", "The status of the node", 0, func(n T) any { return nodeStatus(n) }),
		column("Roles", "string", "The roles of the node", 0, func(n T) any { return or(strings.Join(nodeRoles(n), ","), none) }),
		ageColumn(),
		column("Version", "string", info["kubeletVersion"], 0, func(n T) any { return n.Status.NodeInfo.KubeletVersion }),
		column("Internal-IP", "string", status["addresses"], 1, address(corev1.NodeInternalIP)),
		column("External-IP", "string", status["addresses"], 1, address(corev1.NodeExternalIP)),
		column("OS-Image", "string", info["osImage"], 1, func(n T) any { return or(n.Status.NodeInfo.OSImage, unknown) }),
		column("Kernel-Version", "string", info["kernelVersion"], 1, func(n T) any { return or(n.Status.NodeInfo.KernelVersion, unknown) }),
		column("Container-Runtime", "string", info["containerRuntimeVersion"], 1, func(n T) any {
			return or(n.Status.NodeInfo.ContainerRuntimeVersion, unknown)
		}),
	}
}

func nodeStatus(n *corev1.Node) string {
	s := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			s = "NotReady"
			if c.Status == corev1.ConditionTrue {
				s = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		s += ",SchedulingDisabled"
	}
	return s
}

func nodeRoles(n *corev1.Node) []string {
	var roles []string
	for key, value := range inOrder(n.Labels) {
		if role, ok := strings.CutPrefix(key, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if key == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}
