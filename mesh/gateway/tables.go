package gateway

import (
	"crypto/tls"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/mesh/table"
)

// part is what one owner adds to the table.
type part struct {
	listeners []*table.Listener
	backends  map[string]*backend
	addresses []netip.Addr // that are its own
}

// tables compiles a gateway, whose routes are attached, for its addresses.
func (m *model) tables(addresses []netip.Addr) (*part, error) {
	out := &part{backends: map[string]*backend{}, addresses: addresses}
	b := &builder{model: m, backends: out.backends, routes: map[*route][]*table.Route{}, names: map[*listener]map[string][]*route{}}
	type place struct {
		port gatewayv1.PortNumber
		udp  bool
	}
	ports := map[place][]*listener{}
	var order []place
	for _, l := range m.listeners {
		if !l.serving() {
			continue
		}
		at := place{l.Port, l.Protocol == gatewayv1.UDPProtocolType}
		if ports[at] == nil {
			order = append(order, at)
		}
		ports[at] = append(ports[at], l)
	}
	for _, at := range order {
		chains, err := b.chains(ports[at])
		if err != nil {
			return nil, err
		}
		network, suffix := table.TCP, "tcp"
		if at.udp {
			network, suffix = table.UDP, "udp"
		}
		if len(chains) == 0 && at.udp {
			continue // there is nobody to take a datagram
		}
		for _, addr := range addresses {
			l, err := table.NewListener(table.Listener{
				ID:      fmt.Sprintf("gateway/%s/%s/%s/%d/%s", m.gateway.Namespace, m.gateway.Name, addr, at.port, suffix),
				Address: netip.AddrPortFrom(addr, uint16(at.port)), Network: network, Chains: chains,
			})
			if err != nil {
				return nil, err
			}
			out.listeners = append(out.listeners, l)
		}
	}
	return out, nil
}

// builder makes the chains of a gateway's listeners.
type builder struct {
	*model
	backends map[string]*backend
	routes   map[*route][]*table.Route // that were compiled
	names    map[*listener]map[string][]*route
}

func (b *builder) compiler(r *route) *compiler {
	return &compiler{view: b.view, from: reference{r.kind, r.GetNamespace()}, client: b.client,
		identity: b.gateway.Namespace + "/" + b.gateway.Name, backends: b.backends}
}

// chains of the listeners at one port, none of which are in conflict.
func (b *builder) chains(all []*listener) ([]*table.Chain, error) {
	switch all[0].Protocol {
	case gatewayv1.HTTPProtocolType:
		hosts, err := b.hosts(all, nil)
		return []*table.Chain{{Name: b.name(all[0]), Hosts: hosts}}, err
	case gatewayv1.TCPProtocolType, gatewayv1.UDPProtocolType:
		for _, a := range all[0].attached { // the oldest has it alone
			if rule := b.compiler(a.route).stream(a.route); rule != nil {
				return []*table.Chain{{Name: b.name(all[0]), Forward: rule}}, nil
			}
		}
		return nil, nil
	}
	var out []*table.Chain
	for _, l := range all {
		chains, err := b.secure(l, all)
		if err != nil {
			return nil, err
		}
		out = append(out, chains...)
	}
	return out, nil
}

func (b *builder) name(l *listener) string {
	return b.gateway.Namespace + "/" + b.gateway.Name + "/" + string(l.Name)
}

// secure are the chains of a listener that reads TLS; all has those at the same port.
func (b *builder) secure(l *listener, all []*listener) ([]*table.Chain, error) {
	var out []*table.Chain
	if l.Protocol == gatewayv1.HTTPSProtocolType {
		end, err := b.end(l, nil)
		if err != nil {
			return nil, err
		}
		hosts, err := b.hosts([]*listener{l}, all)
		return []*table.Chain{{Name: b.name(l), ServerNames: serverNames(l.host()), TLS: end, Hosts: hosts}}, err
	}
	var end *table.TLS
	if l.terminates() {
		var err error
		if end, err = b.end(l, []string{}); err != nil {
			return nil, err
		}
	}
	taken := map[string]bool{}
	for _, a := range l.attached {
		rule := b.compiler(a.route).stream(a.route)
		var names []string
		for _, n := range a.hostnames {
			if !taken[n] && !slices.ContainsFunc(all, func(o *listener) bool { return o != l && o.host() == n }) {
				taken[n] = true
				names = append(names, star(n))
			}
		}
		if rule != nil && len(names) > 0 {
			out = append(out, &table.Chain{Name: b.name(l), ServerNames: names, TLS: end, Forward: rule})
		}
	}
	return out, nil
}

// end is how a listener ends TLS.
func (b *builder) end(l *listener, alpn []string) (*table.TLS, error) {
	return table.MakeTLS(l.certs, alpn, l.auth, func(c *tls.Config) {
		if l.clients == nil {
			return
		}
		c.ClientCAs = l.clients
		if l.auth == table.NoClientCertificate {
			c.ClientAuth = tls.RequestClientCert // asked for, and whatever is shown will do
		}
	})
}

func serverNames(host string) []string {
	if host == "" {
		return nil
	}
	return []string{host}
}

// star is how tables write a name that stands for any.
func star(name string) string {
	if name == "" {
		return "*"
	}
	return name
}

// misdirected answers requests for a name that another listener of the same port is for (RFC 9110, section 15.5.20).
var misdirected = &table.Rule{Name: "misdirected", Direct: &table.Direct{Code: 421, ContentType: "text/plain; charset=utf-8", Body: "Misdirected Request\n"}}

// hosts are the virtual hosts of listeners whose requests come in alike. A request is for the listener whose hostname fits best, and
// only for that one (listener isolation). others, if not nil, have the same port and clients of their own: what is
// for them is misdirected here.
func (b *builder) hosts(all, others []*listener) (*table.Hosts, error) {
	put := map[string]*table.VirtualHost{}
	for _, l := range all {
		names := map[string]bool{l.host(): true}
		for _, a := range l.attached {
			for _, n := range a.hostnames {
				names[n] = true
			}
		}
		for n := range names {
			better := func(o *listener) bool {
				return o != l && o.host() != l.host() && covers(l.host(), o.host()) && covers(o.host(), n)
			}
			if slices.ContainsFunc(all, better) || slices.ContainsFunc(others, better) {
				continue
			}
			h, err := b.virtual(l, n)
			if err != nil {
				return nil, err
			}
			put[star(n)] = h
		}
	}
	if len(others) > 0 {
		if err := b.elsewhere(put, all[0], others); err != nil {
			return nil, err
		}
	}
	return (&table.Hosts{}).With(put, nil), nil
}

// elsewhere adds the names that are misdirected when they come to l.
func (b *builder) elsewhere(put map[string]*table.VirtualHost, l *listener, others []*listener) error {
	route := []*table.Route{{Rule: misdirected}}
	add := func(name string) error {
		if put[name] != nil {
			return nil
		}
		h, err := table.NewVirtualHost("misdirected", []string{name}, route)
		put[name] = h
		return err
	}
	for _, o := range others {
		if o != l && o.host() != "" && !covers(o.host(), l.host()) {
			if err := add(o.host()); err != nil {
				return err
			}
		}
	}
	if l.host() != "" {
		return add("*")
	}
	return nil
}

// virtual is the host of a name: the routes of a listener that have the name, those that mean it most closely first.
func (b *builder) virtual(l *listener, name string) (*table.VirtualHost, error) {
	taken := map[*route]bool{}
	var routes []*table.Route
	for n := range covering(name) {
		var all []*table.Route
		for _, r := range b.named(l)[n] {
			if !taken[r] { // by a name that is closer
				taken[r] = true
				all = append(all, b.compiled(r)...)
			}
		}
		table.Precedence(all)
		routes = append(routes, all...)
	}
	return table.NewVirtualHost(b.name(l)+" "+star(name), []string{star(name)}, routes)
}

// named has the routes of a listener by their hostnames, older ones first.
func (b *builder) named(l *listener) map[string][]*route {
	out, ok := b.names[l]
	if !ok {
		out = map[string][]*route{}
		for _, a := range l.attached {
			for _, n := range a.hostnames {
				out[n] = append(out[n], a.route)
			}
		}
		b.names[l] = out
	}
	return out
}

// covering are the hostnames that stand for a name, the closest first: it alone, then wildcards, longer ones first, then any ("").
func covering(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if name != "" && !yield(name) {
			return
		}
		rest := strings.TrimPrefix(name, "*.")
		for {
			_, after, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if !yield("*." + after) {
				return
			}
			rest = after
		}
		yield("")
	}
}

// compiled are the routes of an HTTP or gRPC route, made once for a gateway.
func (b *builder) compiled(r *route) []*table.Route {
	if out, ok := b.routes[r]; ok {
		return out
	}
	var out []*table.Route
	if unsupported(r.Object) == "" {
		switch o := r.Object.(type) {
		case *gatewayv1.HTTPRoute:
			out = b.compiler(r).http(o)
		case *gatewayv1.GRPCRoute:
			out = b.compiler(r).grpc(o)
		}
	}
	b.routes[r] = out
	return out
}
