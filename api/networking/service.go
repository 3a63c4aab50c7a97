package networking

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func ipAddressKind() *api.Kind {
	type address = *networkingv1.IPAddress
	return &api.Kind{
		Group: group, Kind: "IPAddress", Resource: "ipaddresses", Singular: "ipaddress",
		ShortNames: []string{"ip"},
		Versions:   declare.V1[networkingv1.IPAddress, networkingv1.IPAddressList](),
		// The name is the address, in canonical form.
		ValidateName: func(name string, _ bool) []string {
			var messages []string
			for _, err := range validate.StrictIP(name, nil) {
				messages = append(messages, err.Detail)
			}
			return messages
		},
		Strategy: api.Strategy{
			Validate: api.Checks(func(a address) field.ErrorList { return parentReference(a.Spec.ParentRef) }),
			ValidateUpdate: api.ChecksUpdate(func(a, old address) field.ErrorList {
				return validate.Immutable(a.Spec.ParentRef, old.Spec.ParentRef, field.NewPath("spec", "parentRef"))
			}),
		},
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("ParentRef", networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"], func(a address) any { return parentText(a.Spec.ParentRef) }),
			declare.Age(),
		},
		Indexes: map[string]func(api.Object) []string{
			// By the object that has the address: "services/ns/name".
			"parent": api.Values(func(a address) []string {
				p := a.Spec.ParentRef
				if p == nil {
					return nil
				}
				return []string{p.Resource + "/" + p.Namespace + "/" + p.Name}
			}),
		},
	}
}

func parentReference(p *networkingv1.ParentReference) field.ErrorList {
	path := field.NewPath("spec", "parentRef")
	if p == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if p.Group != "" {
		errs = append(errs, validate.DNSSubdomainField(p.Group, path.Child("group"))...)
	}
	errs = append(errs, segment(p.Resource, path.Child("resource"))...)
	errs = append(errs, segment(p.Name, path.Child("name"))...)
	if p.Namespace != "" {
		errs = append(errs, validate.Invalids(path.Child("namespace"), p.Namespace, pathvalidation.IsValidPathSegmentName(p.Namespace))...)
	}
	return errs
}

// parentText is "resource.group/namespace/name" without what is empty.
func parentText(p *networkingv1.ParentReference) string {
	if p == nil {
		return declare.None
	}
	text := p.Resource
	if p.Group != "" {
		text += "." + p.Group
	}
	if p.Namespace != "" {
		text += "/" + p.Namespace
	}
	return text + "/" + p.Name
}

func serviceCIDRKind() *api.Kind {
	type cidr = *networkingv1.ServiceCIDR
	return &api.Kind{
		Group: group, Kind: "ServiceCIDR", Resource: "servicecidrs", Singular: "servicecidr",
		Versions: declare.V1[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](),
		Strategy: api.Strategy{
			// The status is not taken away from those who write the object: upstream keeps it so.
			Validate:       api.Checks(func(c cidr) field.ErrorList { return serviceCIDRs(c.Spec.CIDRs) }),
			ValidateUpdate: api.ChecksUpdate(serviceCIDRUpdate),
		},
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("CIDRs", networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"], func(c cidr) any { return strings.Join(c.Spec.CIDRs, ",") }),
			declare.Age(),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(c, old cidr) {
				c.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&c.ObjectMeta, &old.ObjectMeta)
			}),
		})},
	}
}

func serviceCIDRs(cidrs []string) field.ErrorList {
	path := field.NewPath("spec", "cidrs")
	switch n := len(cidrs); {
	case n == 0:
		return field.ErrorList{field.Required(path, "at least one CIDR required")}
	case n > 2:
		return field.ErrorList{field.Invalid(path, networkingv1.ServiceCIDRSpec{CIDRs: cidrs}, "may only hold up to 2 values")}
	}
	var errs field.ErrorList
	for i, c := range cidrs {
		errs = append(errs, validate.StrictCIDR(c, path.Index(i))...)
	}
	if len(cidrs) == 2 {
		a, errA := netip.ParsePrefix(cidrs[0])
		b, errB := netip.ParsePrefix(cidrs[1])
		if errA == nil && errB == nil && a.Addr().Is4() == b.Addr().Is4() {
			errs = append(errs, field.Invalid(path, cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
		}
	}
	return errs
}

// serviceCIDRUpdate lets a range become dual-stack, and nothing else change.
func serviceCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	path := field.NewPath("spec", "cidrs")
	now, was := c.Spec.CIDRs, old.Spec.CIDRs
	if len(now) != len(was) && (len(was) != 1 || len(now) != 2) {
		return field.ErrorList{field.Invalid(path, now, validate.ImmutableMessage)}
	}
	var errs field.ErrorList
	for i := range was {
		if now[i] != was[i] {
			errs = append(errs, field.Invalid(path.Index(i), now[i], validate.ImmutableMessage))
		}
	}
	if len(now) > len(was) {
		errs = append(errs, serviceCIDRs(now)...)
	}
	return errs
}
