package core

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func endpointsKind() *api.Kind {
	versions := v1[corev1.Endpoints, corev1.EndpointsList]()
	versions[0].Deprecated = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice" // KEP-4974
	return &api.Kind{
		Kind: "Endpoints", Resource: "endpoints", Singular: "endpoints", ShortNames: []string{"ep"}, Namespaced: true,
		Versions: versions,
		Default: api.On(func(e *corev1.Endpoints) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					if p := &e.Subsets[i].Ports[j]; p.Protocol == "" {
						p.Protocol = corev1.ProtocolTCP
					}
				}
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(packEndpoints),
			PrepareUpdate:  api.OnUpdate(func(e, _ *corev1.Endpoints) { packEndpoints(e) }),
			Validate:       api.Checks(ValidateEndpoints),
			ValidateUpdate: api.ChecksUpdate(func(e, _ *corev1.Endpoints) field.ErrorList { return ValidateEndpoints(e) }),
			Warnings:       func(obj, _ api.Object) []string { return endpointsWarnings(obj.(*corev1.Endpoints)) },
		},
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: []api.Column{
			nameColumn(),
			column("Endpoints", "string", corev1.Endpoints{}.SwaggerDoc()["subsets"], 0, func(e *corev1.Endpoints) any { return endpointList(e) }),
			ageColumn(),
		},
	}
}

// ValidateEndpoints checks the addresses of a service.
func ValidateEndpoints(e *corev1.Endpoints) field.ErrorList {
	r := &report{}
	for i := range e.Subsets {
		s, p := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			r.required(p, "must specify `addresses` or `notReadyAddresses`")
		}
		for j := range s.Addresses {
			endpointAddress(r, &s.Addresses[j], p.Child("addresses").Index(j))
		}
		for j := range s.NotReadyAddresses {
			endpointAddress(r, &s.NotReadyAddresses[j], p.Child("notReadyAddresses").Index(j))
		}
		for j := range s.Ports {
			endpointPort(r, &s.Ports[j], len(s.Ports) > 1, p.Child("ports").Index(j))
		}
	}
	return r.errs
}

func endpointAddress(r *report, a *corev1.EndpointAddress, p *field.Path) {
	r.add(validate.IP(a.IP, p.Child("ip")))
	if a.Hostname != "" {
		r.label(a.Hostname, p, "hostname")
	}
	if a.NodeName != nil {
		r.objectName(*a.NodeName, p, "nodeName", false)
	}
	r.add(ValidateNonSpecialIP(a.IP, p.Child("ip")))
}

func endpointPort(r *report, port *corev1.EndpointPort, needName bool, p *field.Path) {
	if port.Name != "" {
		r.label(port.Name, p, "name")
	} else if needName {
		r.required(p.Child("name"), "")
	}
	inRange(r, port.Port, 1, 65535, p, "port")
	needOneOf(r, port.Protocol, p, "protocol", portProtocols...)
	if port.AppProtocol != nil {
		r.add(validate.QualifiedNameField(*port.AppProtocol, p.Child("appProtocol")))
	}
}

func endpointsWarnings(e *corev1.Endpoints) []string {
	w := &warner{}
	for i, s := range e.Subsets {
		for j, a := range s.Addresses {
			w.ip(field.NewPath("subsets").Index(i).Child("addresses").Index(j).Child("ip"), a.IP)
		}
		for j, a := range s.NotReadyAddresses {
			w.ip(field.NewPath("subsets").Index(i).Child("notReadyAddresses").Index(j).Child("ip"), a.IP)
		}
	}
	return w.said
}

// packEndpoints brings good subsets to the form that is stored. Bad ones stay, so that the
// refusal speaks of what the client wrote.
func packEndpoints(e *corev1.Endpoints) {
	if len(e.Subsets) > 0 && len(ValidateEndpoints(e)) == 0 {
		e.Subsets = PackSubsets(e.Subsets)
	}
}

// PackSubsets brings subsets to the one form in which the server stores them: ports with the
// same addresses share a subset, an address is ready or not once for a port, and everything
// is sorted. A controller that packs what it wants can compare it to what is stored. The
// result shares memory with the argument; PackSubsets(PackSubsets(s)) equals PackSubsets(s).
func PackSubsets(subsets []corev1.EndpointSubset) []corev1.EndpointSubset {
	type addressKey struct{ ip, uid string }
	// For every port: the addresses that have it, ready or not.
	byPort := map[corev1.EndpointPort]map[addressKey]bool{}
	addresses := map[addressKey]corev1.EndpointAddress{}
	ports := map[string]corev1.EndpointPort{}
	put := func(port corev1.EndpointPort, a corev1.EndpointAddress, ready bool) {
		k := addressKey{ip: a.IP}
		if a.TargetRef != nil {
			k.uid = string(a.TargetRef.UID)
		}
		name := portKey(port)
		if known, ok := ports[name]; ok {
			port = known
		} else {
			ports[name] = port
		}
		if _, ok := addresses[k]; !ok {
			addresses[k] = a
		}
		if byPort[port] == nil {
			byPort[port] = map[addressKey]bool{}
		}
		was, seen := byPort[port][k]
		byPort[port][k] = ready && (was || !seen)
	}
	for _, s := range subsets {
		list := s.Ports
		if len(list) == 0 {
			list = []corev1.EndpointPort{{Port: -1}}
		}
		for _, port := range list {
			for _, a := range s.Addresses {
				put(port, a, true)
			}
			for _, a := range s.NotReadyAddresses {
				put(port, a, false)
			}
		}
	}
	// Ports with the same addresses make one subset.
	bySet := map[string]*corev1.EndpointSubset{}
	for port, set := range byPort {
		s := &corev1.EndpointSubset{}
		var key strings.Builder
		keys := make([]addressKey, 0, len(set))
		for k := range set {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(a, b addressKey) int {
			return cmp.Or(strings.Compare(a.ip, b.ip), strings.Compare(a.uid, b.uid))
		})
		for _, k := range keys {
			key.WriteString(k.ip + "/" + k.uid + "/" + strconv.FormatBool(set[k]) + ";")
			if set[k] {
				s.Addresses = append(s.Addresses, addresses[k])
			} else {
				s.NotReadyAddresses = append(s.NotReadyAddresses, addresses[k])
			}
		}
		if known := bySet[key.String()]; known != nil {
			s = known
		} else {
			bySet[key.String()] = s
		}
		if port.Port != -1 {
			s.Ports = append(s.Ports, port)
		}
	}
	return sortedSubsets(bySet)
}

// portKey tells ports apart by what they say, not by where appProtocol lies.
func portKey(p corev1.EndpointPort) string {
	return p.Name + "/" + string(p.Protocol) + "/" + strconv.Itoa(int(p.Port)) + "/" + deref(p.AppProtocol, "\x00")
}

func sortedSubsets(bySet map[string]*corev1.EndpointSubset) []corev1.EndpointSubset {
	keys := make([]string, 0, len(bySet))
	for key := range bySet {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	out := make([]corev1.EndpointSubset, 0, len(keys))
	for _, key := range keys {
		s := *bySet[key]
		slices.SortFunc(s.Ports, func(a, b corev1.EndpointPort) int { return strings.Compare(portKey(a), portKey(b)) })
		out = append(out, s)
	}
	return out
}

// maxShownEndpoints is how many endpoints a table shows before it counts.
const maxShownEndpoints = 3

func endpointList(e *corev1.Endpoints) string {
	if len(e.Subsets) == 0 {
		return none
	}
	var shown []string
	n := 0
	add := func(address string) {
		n++
		if len(shown) < maxShownEndpoints {
			shown = append(shown, address)
		}
	}
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				add(a.IP)
			}
		}
		for _, port := range s.Ports {
			for _, a := range s.Addresses {
				add(net.JoinHostPort(a.IP, strconv.Itoa(int(port.Port))))
			}
		}
	}
	list := strings.Join(shown, ",")
	if n > maxShownEndpoints {
		list += " + " + strconv.Itoa(n-maxShownEndpoints) + " more..."
	}
	return list
}
