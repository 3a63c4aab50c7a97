package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// schemaVersion is that of the specification, answered as TXT at dns-version.<domain>.
const schemaVersion = "1.1.0"

// zone answers questions about one cluster domain.
type zone struct {
	domain string // "cluster.local.", lower case
	rules  *kubernetes
	// address is where this server answers, for the name ns.dns of the zone.
	address []string
}

// answer is what a question gets.
type answer struct {
	records []dns.RR
	extra   []dns.RR
	exists  bool // the name exists, if perhaps not with this type
}

// ask answers a question for a name within the domain. It costs a few look-ups in the
// snapshot, and for headless services one walk over their endpoints.
func (z zone) ask(s store.Snapshot, name string, qtype uint16) answer {
	relative := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), z.domain), ".")
	if relative == "" {
		return z.apex(name, qtype)
	}
	labels := strings.Split(relative, ".")
	last := labels[len(labels)-1]
	switch {
	case last == "svc":
		return z.service(s, name, labels[:len(labels)-1], qtype)
	case last == "pod":
		return z.pod(s, name, labels[:len(labels)-1], qtype)
	case relative == "dns" || relative == "ns.dns":
		a := addresses(name, z.address, qtype, z.rules.ttl)
		if relative == "dns" {
			a.records = nil
		}
		return a
	case relative == "dns-version":
		a := answer{exists: true}
		if qtype == dns.TypeTXT {
			a.records = append(a.records, &dns.TXT{Hdr: header(name, dns.TypeTXT, z.rules.ttl), Txt: []string{schemaVersion}})
		}
		return a
	}
	return answer{}
}

// apex answers for the domain itself.
func (z zone) apex(name string, qtype uint16) answer {
	a := answer{exists: true}
	switch qtype {
	case dns.TypeSOA:
		soa := z.soa()
		soa.Hdr.Name = name
		a.records = []dns.RR{soa}
	case dns.TypeNS:
		server := "ns.dns." + z.domain
		a.records = []dns.RR{&dns.NS{Hdr: header(name, dns.TypeNS, z.rules.ttl), Ns: server}}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			a.extra = append(a.extra, addresses(server, z.address, t, z.rules.ttl).records...)
		}
	}
	return a
}

// denialTTL is for how many seconds a denial may be kept: what is not there may be in a moment.
const denialTTL = 5

// soa goes with each denial (RFC 2308).
func (z zone) soa() *dns.SOA {
	return &dns.SOA{Hdr: header(z.domain, dns.TypeSOA, denialTTL), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain, Serial: 1,
		Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: denialTTL}
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func address(name string, ip netip.Addr, qtype uint16, ttl uint32) dns.RR {
	switch {
	case ip.Is4() && qtype == dns.TypeA:
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: ip.AsSlice()}
	case ip.Is6() && qtype == dns.TypeAAAA:
		return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: ip.AsSlice()}
	}
	return nil
}

// service answers <service>.<ns>.svc, <endpoint>.<service>.<ns>.svc and
// _<port>._<protocol>.<service>.<ns>.svc. labels ends before "svc".
func (z zone) service(s store.Snapshot, name string, labels []string, qtype uint16) answer {
	if len(labels) == 0 {
		return answer{exists: true}
	}
	namespace := labels[len(labels)-1]
	if len(labels) == 1 {
		return answer{exists: z.namespace(s, namespace)}
	}
	if !z.exposes(namespace) {
		return answer{}
	}
	svc, ok := client.Services.Get(s, namespace, labels[len(labels)-2])
	if !ok {
		return answer{}
	}
	rest := labels[:len(labels)-2]
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		if len(rest) > 0 {
			return answer{}
		}
		cname := &dns.CNAME{Hdr: header(name, dns.TypeCNAME, z.rules.ttl), Target: dns.Fqdn(svc.Spec.ExternalName)}
		return answer{records: []dns.RR{cname}, exists: true}
	case len(rest) == 0:
		if headless(svc) {
			return z.endpoints(s, svc, name, "", qtype)
		}
		if qtype == dns.TypeSRV {
			return z.ports(s, svc, name, "", "")
		}
		if z.rules.ignoreEmpty && !hasEndpoints(s, svc) {
			return answer{}
		}
		return addresses(name, svc.Spec.ClusterIPs, qtype, z.rules.ttl)
	case len(rest) == 2 && strings.HasPrefix(rest[0], "_") && strings.HasPrefix(rest[1], "_"):
		a := z.ports(s, svc, name, rest[0][1:], rest[1][1:])
		if qtype != dns.TypeSRV {
			a.records, a.extra = nil, nil
		}
		return a
	case len(rest) == 1:
		return z.endpoints(s, svc, name, rest[0], qtype)
	}
	return answer{}
}

func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// exposes says that names of a namespace are answered.
func (z zone) exposes(namespace string) bool { return z.rules.only == nil || z.rules.only[namespace] }

func (z zone) namespace(s store.Snapshot, name string) bool {
	_, ok := client.Namespaces.Get(s, "", name)
	return ok && z.exposes(name)
}

func hasEndpoints(s store.Snapshot, svc *corev1.Service) bool {
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		for i := range slice.Endpoints {
			if ready(&slice.Endpoints[i], svc) {
				return true
			}
		}
	}
	return false
}

// ready says that an endpoint is published: those that end are not ready any more, and a service that publishes all has
// endpoints that say so.
func ready(e *discoveryv1.Endpoint, svc *corev1.Service) bool {
	return svc.Spec.PublishNotReadyAddresses || e.Conditions.Ready == nil || *e.Conditions.Ready
}

func addresses(name string, ips []string, qtype uint16, ttl uint32) answer {
	a := answer{exists: true}
	for _, ip := range ips {
		if parsed, err := netip.ParseAddr(ip); err == nil {
			if rr := address(name, parsed, qtype, ttl); rr != nil {
				a.records = append(a.records, rr)
			}
		}
	}
	return a
}

// endpoint is one address of a headless service.
type endpoint struct {
	name  string // its label below the service
	ip    netip.Addr
	ports []discoveryv1.EndpointPort
}

// eachEndpoint walks the ready endpoints of a service, and all of them if it publishes those
// that are not ready.
func (z zone) eachEndpoint(s store.Snapshot, svc *corev1.Service, visit func(endpoint)) {
	for slice := range client.EndpointSlices.Index(s, "service", svc.Namespace+"/"+svc.Name) {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if !ready(e, svc) {
				continue
			}
			for _, text := range e.Addresses {
				ip, err := netip.ParseAddr(text)
				if err != nil {
					continue
				}
				visit(endpoint{name: z.endpointName(e, ip), ip: ip, ports: slice.Ports})
			}
		}
	}
}

// endpointName is the host name that a pod was given or, without one, a label made from its address, or the pod's name if
// that is wanted.
func (z zone) endpointName(e *discoveryv1.Endpoint, ip netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	if ref := e.TargetRef; z.rules.podNames && ref != nil && ref.Kind == "Pod" && len(ref.Name) < 64 && !strings.Contains(ref.Name, ".") {
		return ref.Name
	}
	if ip.Is4() {
		return strings.ReplaceAll(ip.String(), ".", "-")
	}
	return strings.ReplaceAll(ip.StringExpanded(), ":", "-")
}

// endpoints answers for a headless service: all addresses, or those of one endpoint.
func (z zone) endpoints(s store.Snapshot, svc *corev1.Service, name, only string, qtype uint16) answer {
	if qtype == dns.TypeSRV && only == "" {
		return z.ports(s, svc, name, "", "")
	}
	var a answer
	seen := map[netip.Addr]bool{}
	z.eachEndpoint(s, svc, func(e endpoint) {
		if only != "" && e.name != only {
			return
		}
		a.exists = true
		if rr := address(name, e.ip, qtype, z.rules.ttl); rr != nil && !seen[e.ip] {
			seen[e.ip] = true
			a.records = append(a.records, rr)
		}
	})
	return a
}

// ports answers SRV: for a headless service one record for each endpoint and port, with the
// endpoint's addresses beside; otherwise one for each port that leads to the service.
// Empty port and protocol mean all named ports.
func (z zone) ports(s store.Snapshot, svc *corev1.Service, name, port, protocol string) answer {
	var a answer
	add := func(portName *string, proto *corev1.Protocol, number int32, target string) bool {
		if portName == nil || *portName == "" || proto == nil {
			return false
		}
		if port != "" && (!strings.EqualFold(*portName, port) || !strings.EqualFold(string(*proto), protocol)) {
			return false
		}
		a.exists = true
		a.records = append(a.records, &dns.SRV{Hdr: header(name, dns.TypeSRV, z.rules.ttl), Priority: 0, Weight: 100, Port: uint16(number), Target: target})
		return true
	}
	base := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	if !headless(svc) {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if add(&p.Name, &p.Protocol, p.Port, base) && len(a.extra) == 0 {
				a.extra = append(addresses(base, svc.Spec.ClusterIPs, dns.TypeA, z.rules.ttl).records, addresses(base, svc.Spec.ClusterIPs, dns.TypeAAAA, z.rules.ttl).records...)
			}
		}
		a.exists = a.exists || port == ""
		return a
	}
	z.eachEndpoint(s, svc, func(e endpoint) {
		target, used := e.name+"."+base, false
		for i := range e.ports {
			if p := &e.ports[i]; p.Port != nil {
				used = add(p.Name, p.Protocol, *p.Port, target) || used
			}
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if rr := address(target, e.ip, qtype, z.rules.ttl); rr != nil && used {
				a.extra = append(a.extra, rr)
			}
		}
	})
	a.exists = a.exists || port == ""
	return a
}

// pod answers <a-b-c-d>.<ns>.pod: from the name alone if the namespace exists, or only if there is such a pod.
func (z zone) pod(s store.Snapshot, name string, labels []string, qtype uint16) answer {
	if z.rules.pods == podsDisabled {
		return answer{}
	}
	if len(labels) == 0 {
		return answer{exists: true}
	}
	namespace := labels[len(labels)-1]
	if !z.namespace(s, namespace) || len(labels) > 2 {
		return answer{}
	}
	if len(labels) == 1 {
		return answer{exists: true}
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil || !ip.Is4() {
		if ip, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":")); err != nil {
			return answer{}
		}
	}
	if z.rules.pods == podsVerified {
		found := false
		for p := range client.Pods.Index(s, "ip", ip.String()) {
			found = found || p.Namespace == namespace
		}
		if !found {
			return answer{}
		}
	}
	a := answer{exists: true}
	if rr := address(name, ip, qtype, z.rules.ttl); rr != nil {
		a.records = append(a.records, rr)
	}
	return a
}

// reverse answers PTR for the address of a service, or else of endpoints. ok is false if the address is none of the cluster's.
func (z zone) reverse(s store.Snapshot, name string, qtype uint16) (a answer, ok bool) {
	ip, valid := fromArpa(name)
	if !valid {
		return a, false
	}
	add := func(target string) {
		ok, a.exists = true, true
		if qtype == dns.TypePTR {
			a.records = append(a.records, &dns.PTR{Hdr: header(name, dns.TypePTR, z.rules.ttl), Ptr: target})
		}
	}
	for svc := range client.Services.Index(s, "clusterIP", ip.String()) {
		if z.exposes(svc.Namespace) {
			add(svc.Name + "." + svc.Namespace + ".svc." + z.domain)
			return a, ok
		}
	}
	seen := map[string]bool{}
	for slice := range client.EndpointSlices.Index(s, "address", ip.String()) {
		svc, known := client.Services.Get(s, slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])
		if !known || !z.exposes(svc.Namespace) {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(e.Addresses) == 0 || e.Addresses[0] != ip.String() || !ready(e, svc) {
				continue
			}
			if target := z.endpointName(e, ip) + "." + svc.Name + "." + svc.Namespace + ".svc." + z.domain; !seen[target] {
				seen[target] = true
				add(target)
			}
		}
	}
	return a, ok
}

// fromArpa reads the address in a name such as 4.3.2.1.in-addr.arpa.
func fromArpa(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return ip, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	nibbles := strings.Split(rest, ".")
	if !ok || len(nibbles) != 32 {
		return netip.Addr{}, false
	}
	var raw [16]byte
	for i, n := range nibbles {
		v, err := strconv.ParseUint(n, 16, 4)
		if err != nil || len(n) != 1 {
			return netip.Addr{}, false
		}
		at := 31 - i
		raw[at/2] |= byte(v) << (4 * uint(1-at%2))
	}
	return netip.AddrFrom16(raw), true
}
