// Package policynetworking holds the Kind of the API group policy.networking.k8s.io: the ClusterNetworkPolicy of
// sigs.k8s.io/network-policy-api, v1alpha2, which orders what network policies say by tiers and priorities.
//
// It owns what may be said in one, in the words of upstream's CustomResourceDefinition (the experimental channel, whose fields the
// standard one lacks). It never decides about a packet.
package policynetworking

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{clusterNetworkPolicyKind()}
}

type policy = *v1alpha2.ClusterNetworkPolicy

func clusterNetworkPolicyKind() *api.Kind {
	return &api.Kind{
		Group: v1alpha2.GroupName, Kind: "ClusterNetworkPolicy", Resource: "clusternetworkpolicies", Singular: "clusternetworkpolicy",
		ShortNames: []string{"cnp"},
		Versions:   []api.Version{version()},
		Default: api.On(func(p policy) {
			if p.Status.Conditions == nil { // a required list: null is none
				p.Status.Conditions = []metav1.Condition{}
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(p policy) { p.Status.Conditions = []metav1.Condition{} }),
			PrepareUpdate:  api.OnUpdate(func(p, old policy) { p.Status = old.Status }),
			Validate:       api.Checks(func(p policy) field.ErrorList { return spec(&p.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(p, _ policy) field.ErrorList { return spec(&p.Spec) }),
		},
		Desired:      func(o, p api.Object) bool { return !equality.Semantic.DeepEqual(o.(policy).Spec, p.(policy).Spec) },
		AnyFinalizer: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Tier", "", func(p policy) any { return string(p.Spec.Tier) }),
			declare.Text("Priority", "", func(p policy) any { return fmt.Sprint(p.Spec.Priority) }),
			declare.Age(),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(p, old policy) {
				p.Spec = old.Spec
				fields := p.ManagedFields
				p.ObjectMeta = old.ObjectMeta
				p.ManagedFields = fields
			}),
			ValidateUpdate: api.ChecksUpdate(func(p, _ policy) field.ErrorList {
				return validate.Conditions(p.Status.Conditions, field.NewPath("status", "conditions"))
			}),
		})},
	}
}

// unset is the priority of an object before anything is decoded into it. 0 is a priority like others, and what is required must be
// there.
const unset = math.MinInt32

func version() api.Version {
	v := declare.Hub[v1alpha2.ClusterNetworkPolicy, v1alpha2.ClusterNetworkPolicyList]("v1alpha2")
	v.New = func() runtime.Object {
		return &v1alpha2.ClusterNetworkPolicy{Spec: v1alpha2.ClusterNetworkPolicySpec{Priority: unset}}
	}
	return v
}

// Limits of upstream's definition.
const (
	maxPriority = 1000
	maxItems    = 25  // rules in a direction, and peers, protocols, networks and names in a rule
	maxRuleName = 100 // characters
	maxCIDR     = 43  // characters
)

func spec(s *v1alpha2.ClusterNetworkPolicySpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := validate.RequiredOneOf(s.Tier, path.Child("tier"), v1alpha2.AdminTier, v1alpha2.BaselineTier)
	if s.Priority == unset {
		errs = append(errs, field.Required(path.Child("priority"), ""))
	} else {
		errs = append(errs, between(s.Priority, 0, maxPriority, path.Child("priority"))...)
	}
	errs = append(errs, subject(&s.Subject, path.Child("subject"))...)
	errs = append(errs, items(len(s.Ingress), 0, path.Child("ingress"))...)
	for i := range s.Ingress {
		errs = append(errs, ingress(&s.Ingress[i], path.Child("ingress").Index(i))...)
	}
	errs = append(errs, items(len(s.Egress), 0, path.Child("egress"))...)
	for i := range s.Egress {
		errs = append(errs, egress(&s.Egress[i], path.Child("egress").Index(i))...)
	}
	return errs
}

// between and the two below say what is wrong as the validator of CustomResourceDefinitions does.
func between(value, low, high int32, path *field.Path) field.ErrorList {
	switch {
	case value < low:
		return field.ErrorList{field.Invalid(path, value, fmt.Sprintf("%s in body should be greater than or equal to %d", path, low))}
	case value > high:
		return field.ErrorList{field.Invalid(path, value, fmt.Sprintf("%s in body should be less than or equal to %d", path, high))}
	}
	return nil
}

// items refuses lists of fewer than low or more than maxItems.
func items(n, low int, path *field.Path) field.ErrorList {
	switch {
	case n > maxItems:
		return field.ErrorList{field.TooMany(path, n, maxItems)}
	case n < low:
		return field.ErrorList{field.Invalid(path, n, fmt.Sprintf("%s in body should have at least %d items", path, low))}
	}
	return nil
}

// one refuses an object that has not exactly one of its fields.
func one(path *field.Path, set ...bool) field.ErrorList {
	n := 0
	for _, is := range set {
		if is {
			n++
		}
	}
	switch {
	case n == 0:
		return few(path)
	case n > 1:
		return field.ErrorList{field.TooMany(path, n, 1)}
	}
	return nil
}

func few(path *field.Path) field.ErrorList {
	return field.ErrorList{field.Invalid(path, 0, fmt.Sprintf("%s in body should have at least 1 properties", path))}
}

func pods(p *v1alpha2.NamespacedPod, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := validate.LabelSelector(&p.NamespaceSelector, path.Child("namespaceSelector"))
	return append(errs, validate.LabelSelector(&p.PodSelector, path.Child("podSelector"))...)
}

// selected checks the two forms in which pods are chosen.
func selected(namespaces *metav1.LabelSelector, p *v1alpha2.NamespacedPod, path *field.Path) field.ErrorList {
	return append(validate.LabelSelector(namespaces, path.Child("namespaces")), pods(p, path.Child("pods"))...)
}

func subject(s *v1alpha2.ClusterNetworkPolicySubject, path *field.Path) field.ErrorList {
	errs := one(path, s.Namespaces != nil, s.Pods != nil)
	return append(errs, selected(s.Namespaces, s.Pods, path)...)
}

// rule checks what rules of both directions have.
func rule(name string, action v1alpha2.ClusterNetworkPolicyRuleAction, protocols []v1alpha2.ClusterNetworkPolicyProtocol, path *field.Path) field.ErrorList {
	errs := validate.RequiredOneOf(action, path.Child("action"), v1alpha2.ClusterNetworkPolicyRuleActionAccept,
		v1alpha2.ClusterNetworkPolicyRuleActionDeny, v1alpha2.ClusterNetworkPolicyRuleActionPass)
	if utf8.RuneCountInString(name) > maxRuleName {
		errs = append(errs, field.TooLong(path.Child("name"), "", maxRuleName))
	}
	if protocols == nil {
		return errs
	}
	errs = append(errs, items(len(protocols), 1, path.Child("protocols"))...)
	for i := range protocols {
		errs = append(errs, protocol(&protocols[i], path.Child("protocols").Index(i))...)
	}
	return errs
}

func protocol(p *v1alpha2.ClusterNetworkPolicyProtocol, path *field.Path) field.ErrorList {
	errs := one(path, p.TCP != nil, p.UDP != nil, p.SCTP != nil, p.DestinationNamedPort != "")
	if p.TCP != nil {
		errs = append(errs, port(p.TCP.DestinationPort, path.Child("tcp"))...)
	}
	if p.UDP != nil {
		errs = append(errs, port(p.UDP.DestinationPort, path.Child("udp"))...)
	}
	if p.SCTP != nil {
		errs = append(errs, port(p.SCTP.DestinationPort, path.Child("sctp"))...)
	}
	return errs
}

// port checks a protocol's only field; path is that of the protocol.
func port(p *v1alpha2.Port, path *field.Path) field.ErrorList {
	if p == nil {
		return few(path)
	}
	path = path.Child("destinationPort")
	errs := one(path, p.Number != 0, p.Range != nil)
	if p.Number != 0 {
		errs = append(errs, between(p.Number, 1, 65535, path.Child("number"))...)
	}
	if r := p.Range; r != nil {
		path = path.Child("range")
		errs = append(errs, between(r.End, 1, 65535, path.Child("end"))...)
		errs = append(errs, between(r.Start, 1, 65535, path.Child("start"))...)
		if r.Start >= r.End {
			errs = append(errs, field.Invalid(path, "object", "Start port must be less than End port"))
		}
	}
	return errs
}

func ingress(r *v1alpha2.ClusterNetworkPolicyIngressRule, path *field.Path) field.ErrorList {
	errs := rule(r.Name, r.Action, r.Protocols, path)
	errs = append(errs, items(len(r.From), 1, path.Child("from"))...)
	for i := range r.From {
		p, at := &r.From[i], path.Child("from").Index(i)
		errs = append(errs, one(at, p.Namespaces != nil, p.Pods != nil)...)
		errs = append(errs, selected(p.Namespaces, p.Pods, at)...)
	}
	return errs
}

func egress(r *v1alpha2.ClusterNetworkPolicyEgressRule, path *field.Path) field.ErrorList {
	errs := rule(r.Name, r.Action, r.Protocols, path)
	errs = append(errs, items(len(r.To), 1, path.Child("to"))...)
	outside := false
	for i := range r.To {
		p := &r.To[i]
		errs = append(errs, egressPeer(p, path.Child("to").Index(i))...)
		outside = outside || p.Networks != nil || p.Nodes != nil || p.DomainNames != nil
	}
	if outside && slices.ContainsFunc(r.Protocols, func(p v1alpha2.ClusterNetworkPolicyProtocol) bool { return p.DestinationNamedPort != "" }) {
		errs = append(errs, field.Invalid(path, "object", "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts for networks/nodes/domainNames"))
	}
	return errs
}

func egressPeer(p *v1alpha2.ClusterNetworkPolicyEgressPeer, path *field.Path) field.ErrorList {
	errs := one(path, p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil)
	errs = append(errs, selected(p.Namespaces, p.Pods, path)...)
	errs = append(errs, validate.LabelSelector(p.Nodes, path.Child("nodes"))...)
	if p.Networks != nil {
		errs = append(errs, set(p.Networks, path.Child("networks"), cidr)...)
	}
	if p.DomainNames != nil {
		errs = append(errs, set(p.DomainNames, path.Child("domainNames"), domainName)...)
	}
	return errs
}

// set checks a list of different values.
func set[T ~string](list []T, path *field.Path, check func(string, *field.Path) field.ErrorList) field.ErrorList {
	errs := items(len(list), 1, path)
	for i, value := range list {
		if slices.Contains(list[:i], value) {
			errs = append(errs, field.Duplicate(path.Index(i), value))
		}
		errs = append(errs, check(string(value), path.Index(i))...)
	}
	return errs
}

func cidr(text string, path *field.Path) field.ErrorList {
	if len(text) > maxCIDR {
		return field.ErrorList{field.TooLong(path, "", maxCIDR)}
	}
	if _, err := netip.ParsePrefix(text); err != nil {
		return field.ErrorList{field.Invalid(path, "string", "Invalid CIDR format provided")}
	}
	return nil
}

// names is upstream's pattern of a domain name, as it stands.
const names = `^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`

func domainName(text string, path *field.Path) field.ErrorList {
	// Compiled when it is needed, which is hardly ever.
	if ok, err := regexp.MatchString(names, text); err != nil || !ok {
		return field.ErrorList{field.Invalid(path, text, fmt.Sprintf("%s in body should match '%s'", path, names))}
	}
	return nil
}
