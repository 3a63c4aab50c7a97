// Package discovery holds the Kind of the API group discovery.k8s.io: endpoint slices.
//
// It owns what a slice may say. Which endpoints a service has is decided by its controller.
package discovery

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Limits of one slice.
const (
	maxEndpoints = 1000
	maxAddresses = 100
	maxPorts     = 20000
	maxHints     = 8
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{endpointSliceKind()}
}

func endpointSliceKind() *api.Kind {
	type slice = *discoveryv1.EndpointSlice
	return &api.Kind{
		Group: discoveryv1.GroupName, Kind: "EndpointSlice", Resource: "endpointslices", Singular: "endpointslice",
		Namespaced: true,
		Versions:   declare.V1[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](),
		Default:    api.On(defaultEndpointSlice),
		Strategy: api.Strategy{
			PrepareCreate: api.On(dropTopology),
			PrepareUpdate: api.OnUpdate(func(s, old slice) {
				if !equality.Semantic.DeepEqual(s.Endpoints, old.Endpoints) {
					dropTopology(s)
				}
			}),
			Validate: api.Checks(func(s slice) field.ErrorList { return endpointSlice(s, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(s, old slice) field.ErrorList {
				return append(endpointSlice(s, old), validate.Immutable(s.AddressType, old.AddressType, field.NewPath("addressType"))...)
			}),
			Warnings: func(o, _ api.Object) []string { return warnings(o.(slice)) },
		},
		Desired: func(o, p api.Object) bool {
			s, old := o.(slice), p.(slice)
			return s.AddressType != old.AddressType ||
				!equality.Semantic.DeepEqual(s.Labels, old.Labels) ||
				!equality.Semantic.DeepEqual(s.Endpoints, old.Endpoints) ||
				!equality.Semantic.DeepEqual(s.Ports, old.Ports)
		},
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("AddressType", discoveryv1.EndpointSlice{}.SwaggerDoc()["addressType"], func(s slice) any { return string(s.AddressType) }),
			declare.Text("Ports", discoveryv1.EndpointSlice{}.SwaggerDoc()["ports"], func(s slice) any { return ports(s.Ports) }),
			declare.Text("Endpoints", discoveryv1.EndpointSlice{}.SwaggerDoc()["endpoints"], func(s slice) any { return endpoints(s.Endpoints) }),
			declare.Age(),
		},
		Indexes: map[string]func(api.Object) []string{
			// By the service that the slice belongs to: "ns/name".
			"service": api.Values(func(s slice) []string {
				if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
					return []string{s.Namespace + "/" + name}
				}
				return nil
			}),
			// By the addresses of its endpoints, for reverse names.
			"address": api.Values(func(s slice) []string {
				var all []string
				for i := range s.Endpoints {
					all = append(all, s.Endpoints[i].Addresses...)
				}
				return all
			}),
		},
	}
}

func defaultEndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil {
			p.Name = new(string)
		}
		if p.Protocol == nil {
			tcp := corev1.ProtocolTCP
			p.Protocol = &tcp
		}
	}
}

// dropTopology ignores what a client writes into the field that v1 only shows.
func dropTopology(s *discoveryv1.EndpointSlice) {
	for i := range s.Endpoints {
		s.Endpoints[i].DeprecatedTopology = nil
	}
}

func warnings(s *discoveryv1.EndpointSlice) []string {
	switch s.AddressType {
	case discoveryv1.AddressTypeFQDN:
		return []string{"addressType: FQDN endpoints are deprecated"}
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		var all []string
		for i := range s.Endpoints {
			for k, a := range s.Endpoints[i].Addresses {
				if _, err := netip.ParseAddr(a); err != nil || canonical(a) {
					continue
				}
				all = append(all, content.GetWarningsForIP(field.NewPath("endpoints").Index(i).Child("addresses").Index(k), a)...)
			}
		}
		return all
	}
	return nil
}

func canonical(text string) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.String() == text && !a.Is4In6()
}

func endpointSlice(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := addressType(s.AddressType)
	errs = append(errs, endpointList(s, old)...)
	return append(errs, portList(s.Ports)...)
}

func addressType(t discoveryv1.AddressType) field.ErrorList {
	allowed := []discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	return validate.RequiredOneOf(t, field.NewPath("addressType"), allowed...)
}

func endpointList(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	path := field.NewPath("endpoints")
	if n := len(s.Endpoints); n > maxEndpoints {
		return field.ErrorList{field.TooMany(path, n, maxEndpoints)}
	}
	var known []string
	if old != nil {
		for i := range old.Endpoints {
			known = append(known, old.Endpoints[i].Addresses...)
		}
	}
	var errs field.ErrorList
	for i := range s.Endpoints {
		errs = append(errs, endpoint(&s.Endpoints[i], s.AddressType, path, i, known)...)
	}
	return errs
}

func endpoint(e *discoveryv1.Endpoint, t discoveryv1.AddressType, list *field.Path, index int, known []string) field.ErrorList {
	var errs field.ErrorList
	path := list.Index(index)
	at := path.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(at, "must contain at least 1 address"))
	case n > maxAddresses:
		errs = append(errs, field.TooMany(at, n, maxAddresses))
	}
	for i, a := range e.Addresses {
		errs = append(errs, address(a, t, at.Index(i), known)...)
	}
	if e.NodeName != nil {
		errs = append(errs, validate.DNSSubdomainField(*e.NodeName, path.Child("nodeName"))...)
	}
	if e.Hostname != nil {
		errs = append(errs, validate.DNSLabelField(*e.Hostname, path.Child("hostname"))...)
	}
	if e.Hints != nil {
		errs = append(errs, hints(e.Hints, path.Child("hints"))...)
	}
	return errs
}

func address(a string, t discoveryv1.AddressType, path *field.Path, known []string) field.ErrorList {
	switch t {
	case discoveryv1.AddressTypeFQDN:
		return content.IsFullyQualifiedDomainName(path, a)
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		return nil
	}
	if errs := validate.IP(a, path, known...); len(errs) > 0 {
		return errs
	}
	ip, err := netip.ParseAddr(a)
	if err != nil {
		return nil // of a form that was accepted long ago
	}
	if (t == discoveryv1.AddressTypeIPv4) != ip.Is4() {
		return field.ErrorList{field.Invalid(path, a, fmt.Sprintf("must be an %s address", t))}
	}
	return special(ip, a, path)
}

// special refuses addresses that name no host of the network.
func special(ip netip.Addr, text string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, rule := range []struct {
		bad     bool
		message string
	}{
		{ip.IsUnspecified(), fmt.Sprintf("may not be unspecified (%v)", ip)},
		{ip.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{ip.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{ip.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if rule.bad {
			errs = append(errs, field.Invalid(path, text, rule.message))
		}
	}
	return errs
}

func hints(h *discoveryv1.EndpointHints, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	zones, nodes := path.Child("forZones"), path.Child("forNodes")
	if n := len(h.ForZones); n > maxHints {
		errs = append(errs, field.TooMany(zones, n, maxHints))
	} else {
		seen := map[string]bool{}
		for i, z := range h.ForZones {
			p := zones.Index(i).Child("name")
			if seen[z.Name] {
				errs = append(errs, field.Duplicate(p, z.Name))
			}
			seen[z.Name] = true
			errs = append(errs, validate.Invalids(p, z.Name, validate.LabelValue(z.Name))...)
		}
	}
	if n := len(h.ForNodes); n > maxHints {
		return append(errs, field.TooMany(nodes, n, maxHints))
	}
	seen := map[string]bool{}
	for i, n := range h.ForNodes {
		p := nodes.Index(i).Child("name")
		if seen[n.Name] {
			errs = append(errs, field.Duplicate(p, n.Name))
		}
		seen[n.Name] = true
		errs = append(errs, validate.DNSSubdomainField(n.Name, p)...)
	}
	return errs
}

func portList(list []discoveryv1.EndpointPort) field.ErrorList {
	path := field.NewPath("ports")
	if n := len(list); n > maxPorts {
		return field.ErrorList{field.TooMany(path, n, maxPorts)}
	}
	var errs field.ErrorList
	seen := map[string]bool{}
	for i := range list {
		p := &list[i]
		at := path.Index(i)
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name != "" {
			errs = append(errs, validate.DNSLabelField(name, at.Child("name"))...)
		}
		if seen[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), name))
		}
		seen[name] = true
		if p.Protocol == nil {
			errs = append(errs, field.Required(at.Child("protocol"), ""))
		} else {
			errs = append(errs, validate.OneOf(*p.Protocol, at.Child("protocol"), corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
		}
		if p.Port != nil {
			errs = append(errs, validate.Port(*p.Port, at.Child("port"))...)
		}
		if p.AppProtocol != nil {
			errs = append(errs, validate.QualifiedNameField(*p.AppProtocol, at.Child("appProtocol"))...)
		}
	}
	return errs
}

// shown is how many ports or endpoints a cell lists.
const shown = 3

func ports(list []discoveryv1.EndpointPort) string {
	if len(list) == 0 {
		return declare.Unset
	}
	var texts []string
	for i := range list {
		switch p := &list[i]; {
		case p.Port != nil:
			texts = append(texts, fmt.Sprint(*p.Port))
		case p.Name != nil && *p.Name != "":
			texts = append(texts, *p.Name)
		default:
			texts = append(texts, "*")
		}
	}
	return declare.Some(texts, shown)
}

func endpoints(list []discoveryv1.Endpoint) string {
	if len(list) == 0 {
		return declare.Unset
	}
	var texts []string
	for i := range list {
		texts = append(texts, list[i].Addresses...)
	}
	if len(texts) == 0 {
		return declare.Unset
	}
	return declare.Some(texts, shown)
}
