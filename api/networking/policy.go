package networking

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func networkPolicyKind() *api.Kind {
	type policy = *networkingv1.NetworkPolicy
	return &api.Kind{
		Group: group, Kind: "NetworkPolicy", Resource: "networkpolicies", Singular: "networkpolicy",
		ShortNames: []string{"netpol"},
		Namespaced: true,
		Versions:   declare.V1[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](),
		Default:    api.On(defaultNetworkPolicy),
		Strategy: api.Strategy{
			Validate: api.Checks(func(p policy) field.ErrorList { return networkPolicy(&p.Spec, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(p, old policy) field.ErrorList {
				return networkPolicy(&p.Spec, blocks(&old.Spec))
			}),
			Warnings: func(o, _ api.Object) []string { return networkPolicyWarnings(&o.(policy).Spec) },
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(policy).Spec, p.(policy).Spec) },
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Pod-Selector", networkingv1.NetworkPolicySpec{}.SwaggerDoc()["podSelector"], func(p policy) any {
				return metav1.FormatLabelSelector(&p.Spec.PodSelector)
			}),
			declare.Age(),
		},
	}
}

func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	tcp := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			if ports[i].Protocol == nil {
				protocol := corev1.ProtocolTCP
				ports[i].Protocol = &protocol
			}
		}
	}
	for i := range p.Spec.Ingress {
		tcp(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		tcp(p.Spec.Egress[i].Ports)
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

// eachBlock walks the address blocks of a policy, with the path of each.
func eachBlock(s *networkingv1.NetworkPolicySpec, visit func(*networkingv1.IPBlock, *field.Path)) {
	peers := func(peers []networkingv1.NetworkPolicyPeer, path *field.Path) {
		for i := range peers {
			if b := peers[i].IPBlock; b != nil {
				visit(b, path.Index(i).Child("ipBlock"))
			}
		}
	}
	path := field.NewPath("spec")
	for i := range s.Ingress {
		peers(s.Ingress[i].From, path.Child("ingress").Index(i).Child("from"))
	}
	for i := range s.Egress {
		peers(s.Egress[i].To, path.Child("egress").Index(i).Child("to"))
	}
}

// blocks are the texts of all blocks, which an update may keep as they are.
func blocks(s *networkingv1.NetworkPolicySpec) []string {
	var all []string
	eachBlock(s, func(b *networkingv1.IPBlock, _ *field.Path) {
		all = append(append(all, b.CIDR), b.Except...)
	})
	return all
}

func networkPolicyWarnings(s *networkingv1.NetworkPolicySpec) []string {
	var warnings []string
	warn := func(cidr string, path *field.Path) {
		if p, err := netip.ParsePrefix(cidr); err == nil && p.Masked().String() != cidr {
			warnings = append(warnings, content.GetWarningsForCIDR(path, cidr)...)
		}
	}
	eachBlock(s, func(b *networkingv1.IPBlock, path *field.Path) {
		warn(b.CIDR, path.Child("cidr"))
		for i, e := range b.Except {
			warn(e, path.Child("except").Index(i))
		}
	})
	return warnings
}

func networkPolicy(s *networkingv1.NetworkPolicySpec, known []string) field.ErrorList {
	path := field.NewPath("spec")
	errs := validate.LabelSelector(&s.PodSelector, path.Child("podSelector"))
	for i := range s.Ingress {
		errs = append(errs, policyRule(s.Ingress[i].Ports, s.Ingress[i].From, "from", path.Child("ingress").Index(i), known)...)
	}
	for i := range s.Egress {
		errs = append(errs, policyRule(s.Egress[i].Ports, s.Egress[i].To, "to", path.Child("egress").Index(i), known)...)
	}
	types := path.Child("policyTypes")
	if len(s.PolicyTypes) > 2 {
		return append(errs, field.Invalid(types, s.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range s.PolicyTypes {
		errs = append(errs, validate.OneOf(t, types.Index(i), networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)...)
	}
	return errs
}

func policyRule(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, side string, path *field.Path, known []string) field.ErrorList {
	var errs field.ErrorList
	for i := range ports {
		errs = append(errs, policyPort(&ports[i], path.Child("ports").Index(i))...)
	}
	for i := range peers {
		errs = append(errs, policyPeer(&peers[i], path.Child(side).Index(i), known)...)
	}
	return errs
}

func policyPort(p *networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.Protocol != nil {
		errs = append(errs, validate.OneOf(*p.Protocol, path.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	end := path.Child("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is not specified"))
		}
	case p.Port.Type == intstr.Int:
		errs = append(errs, validate.Port(p.Port.IntVal, path.Child("port"))...)
		if p.EndPort != nil {
			if *p.EndPort < p.Port.IntVal {
				errs = append(errs, field.Invalid(end, *p.EndPort, "must be greater than or equal to `port`"))
			}
			errs = append(errs, validate.Port(*p.EndPort, end)...)
		}
	default:
		if p.EndPort != nil {
			errs = append(errs, field.Invalid(end, *p.EndPort, "may not be specified when `port` is non-numeric"))
		}
		errs = append(errs, validate.Invalids(path.Child("port"), p.Port.StrVal, validate.PortName(p.Port.StrVal))...)
	}
	return errs
}

func policyPeer(p *networkingv1.NetworkPolicyPeer, path *field.Path, known []string) field.ErrorList {
	errs := validate.LabelSelector(p.PodSelector, path.Child("podSelector"))
	errs = append(errs, validate.LabelSelector(p.NamespaceSelector, path.Child("namespaceSelector"))...)
	if p.IPBlock != nil {
		errs = append(errs, ipBlock(p.IPBlock, path.Child("ipBlock"), known)...)
	}
	switch selects := p.PodSelector != nil || p.NamespaceSelector != nil; {
	case !selects && p.IPBlock == nil:
		errs = append(errs, field.Required(path, "must specify a peer"))
	case selects && p.IPBlock != nil:
		errs = append(errs, field.Forbidden(path, "may not specify both ipBlock and another peer"))
	}
	return errs
}

func ipBlock(b *networkingv1.IPBlock, path *field.Path, known []string) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	errs := validate.CIDR(b.CIDR, path.Child("cidr"), known...)
	outer, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return errs
	}
	for i, text := range b.Except {
		p := path.Child("except").Index(i)
		errs = append(errs, validate.CIDR(text, p, known...)...)
		inner, err := netip.ParsePrefix(text)
		if err == nil && (!outer.Contains(inner.Addr()) || outer.Bits() >= inner.Bits()) {
			errs = append(errs, field.Invalid(p, text, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}
