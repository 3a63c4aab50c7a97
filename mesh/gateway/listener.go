package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
)

// listener is one listener of a gateway or of a listener set that is attached to it.
type listener struct {
	set *gatewayv1.ListenerSet // nil for the gateway's own
	gatewayv1.ListenerEntry
	// owner is whose references those of the listener are.
	owner reference
	// kinds are those of routes that may attach.
	kinds []gatewayv1.RouteGroupKind

	accepted, resolved said
	// conflict is the reason why it clashes with another, "" if it does not.
	conflict string
	certs    []tls.Certificate
	clients  *x509.CertPool // who may connect, nil for everybody
	auth     table.ClientAuth

	attached []attachment
}

// attachment is a route with the hostnames that it shares with a listener; "" is any.
type attachment struct {
	route     *route
	hostnames []string
}

// model is what a gateway is, worked out.
type model struct {
	view
	gateway   *gatewayv1.Gateway
	listeners []*listener
	sets      []*listenerSet
	// client is the certificate that is shown to backends.
	client   *tls.Certificate
	resolved *said // of the gateway itself, nil if it refers to nothing
}

// listenerSet is one that names the gateway as its parent.
type listenerSet struct {
	*gatewayv1.ListenerSet
	allowed bool
}

// work out the listeners of a gateway.
func (v view) model(g *gatewayv1.Gateway) *model {
	m := &model{view: v, gateway: g}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		m.listeners = append(m.listeners, &listener{owner: reference{"Gateway", g.Namespace}, ListenerEntry: gatewayv1.ListenerEntry{
			Name: l.Name, Hostname: l.Hostname, Port: l.Port, Protocol: l.Protocol, TLS: l.TLS, AllowedRoutes: l.AllowedRoutes}})
	}
	for s := range client.ListenerSets.Index(v, gatewayapi.ByParent, gatewayapi.Reference("Gateway", g.Namespace, g.Name)) {
		m.sets = append(m.sets, &listenerSet{ListenerSet: s, allowed: v.allows(g, s.Namespace)})
	}
	slices.SortFunc(m.sets, func(a, b *listenerSet) int { return older(a.ListenerSet, b.ListenerSet) })
	for _, s := range m.sets {
		if !s.allowed {
			continue
		}
		for i := range s.Spec.Listeners {
			m.listeners = append(m.listeners, &listener{set: s.ListenerSet, owner: reference{"ListenerSet", s.Namespace}, ListenerEntry: s.Spec.Listeners[i]})
		}
	}
	for i, l := range m.listeners {
		l.conflict = m.conflict(m.listeners[:i], l)
		m.check(l)
	}
	m.backendCertificate()
	return m
}

// allows tells whether listener sets of a namespace may attach to a gateway.
func (v view) allows(g *gatewayv1.Gateway, namespace string) bool {
	a := g.Spec.AllowedListeners
	if a == nil || a.Namespaces == nil {
		return false
	}
	return v.selects(value(a.Namespaces.From, gatewayv1.NamespacesFromNone), a.Namespaces.Selector, g.Namespace, namespace)
}

// conflict says why a listener clashes with one that goes before it: the gateway's own come first, then those of older sets.
func (m *model) conflict(before []*listener, l *listener) string {
	for _, o := range before {
		if o.Port != l.Port || o.conflict != "" || (o.Protocol == gatewayv1.UDPProtocolType) != (l.Protocol == gatewayv1.UDPProtocolType) {
			continue
		}
		if layer(o.Protocol) != layer(l.Protocol) {
			return string(gatewayv1.ListenerReasonProtocolConflict)
		}
		if value(o.Hostname, "") == value(l.Hostname, "") {
			return string(gatewayv1.ListenerReasonHostnameConflict)
		}
	}
	return ""
}

// layer groups the protocols that one port can serve side by side.
func layer(p gatewayv1.ProtocolType) gatewayv1.ProtocolType {
	if p == gatewayv1.HTTPSProtocolType {
		return gatewayv1.TLSProtocolType
	}
	return p
}

// protocolKinds are the routes that each protocol carries.
var protocolKinds = map[gatewayv1.ProtocolType][]string{
	gatewayv1.HTTPProtocolType:  {"HTTPRoute", "GRPCRoute"},
	gatewayv1.HTTPSProtocolType: {"HTTPRoute", "GRPCRoute"},
	gatewayv1.TLSProtocolType:   {"TLSRoute"},
	gatewayv1.TCPProtocolType:   {"TCPRoute"},
	gatewayv1.UDPProtocolType:   {"UDPRoute"},
}

// check fills in what a listener may do and what is wrong with it.
func (m *model) check(l *listener) {
	l.accepted, l.resolved = yes(gatewayv1.ListenerReasonAccepted), yes(gatewayv1.ListenerReasonResolvedRefs)
	possible, known := protocolKinds[l.Protocol]
	switch {
	case !known:
		l.accepted = no(gatewayv1.ListenerReasonUnsupportedProtocol, fmt.Sprintf("protocol %q is not supported", l.Protocol))
	case l.conflict != "":
		l.accepted = no(l.conflict, "another listener has this port")
	}
	l.kinds = []gatewayv1.RouteGroupKind{}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		for _, k := range possible {
			l.kinds = append(l.kinds, kindOf(k))
		}
	} else {
		for _, k := range l.AllowedRoutes.Kinds {
			if value(k.Group, group) == group && slices.Contains(possible, string(k.Kind)) {
				l.kinds = append(l.kinds, kindOf(string(k.Kind)))
			} else {
				l.resolved = no(gatewayv1.ListenerReasonInvalidRouteKinds, fmt.Sprintf("routes of kind %q cannot attach to protocol %s", k.Kind, l.Protocol))
			}
		}
	}
	if l.TLS != nil && value(l.TLS.Mode, gatewayv1.TLSModeTerminate) == gatewayv1.TLSModeTerminate {
		m.certificates(l)
	}
	if l.Protocol == gatewayv1.HTTPSProtocolType {
		m.clients(l)
	}
}

func kindOf(kind string) gatewayv1.RouteGroupKind {
	g := gatewayv1.Group(group)
	return gatewayv1.RouteGroupKind{Group: &g, Kind: gatewayv1.Kind(kind)}
}

// certificates reads those that a listener shows.
func (m *model) certificates(l *listener) {
	for i := range l.TLS.CertificateRefs {
		cert, wrong := m.secret(l.owner, &l.TLS.CertificateRefs[i], string(gatewayv1.ListenerReasonInvalidCertificateRef))
		if wrong != nil {
			l.resolved = *wrong
			continue
		}
		l.certs = append(l.certs, *cert)
	}
}

// secret reads a certificate and its key; bad is the reason if that is not possible.
func (v view) secret(from reference, r *gatewayv1.SecretObjectReference, bad string) (*tls.Certificate, *said) {
	refuse := func(reason, message string) (*tls.Certificate, *said) {
		s := no(reason, message)
		return nil, &s
	}
	namespace, name := string(value(r.Namespace, gatewayv1.Namespace(from.namespace))), string(r.Name)
	if value(r.Group, "") != "" || value(r.Kind, "Secret") != "Secret" {
		return refuse(bad, fmt.Sprintf("certificates are read from Secrets, not from %s", value(r.Kind, "")))
	}
	if !v.granted(from, "", "Secret", namespace, name) {
		return refuse(string(gatewayv1.ListenerReasonRefNotPermitted), fmt.Sprintf("no ReferenceGrant allows the reference to Secret %s/%s", namespace, name))
	}
	s, ok := client.Secrets.Get(v, namespace, name)
	if !ok {
		return refuse(bad, fmt.Sprintf("Secret %s/%s does not exist", namespace, name))
	}
	cert, err := certificate(s)
	if err != nil {
		return refuse(bad, fmt.Sprintf("Secret %s/%s holds no usable certificate: %v", namespace, name, err))
	}
	return &cert, nil
}

// clients reads which clients may connect to a listener (spec.tls.frontend).
func (m *model) clients(l *listener) {
	v := m.validation(l.Port)
	if v == nil {
		return
	}
	l.auth = table.RequireClientCertificate
	if v.Mode == gatewayv1.AllowInsecureFallback {
		l.auth = table.NoClientCertificate
	}
	pool, found := x509.NewCertPool(), false
	for i := range v.CACertificateRefs {
		r := &v.CACertificateRefs[i]
		wrong := m.authority(pool, reference{"Gateway", m.gateway.Namespace}, r)
		if wrong != nil {
			l.resolved = *wrong
			continue
		}
		found = true
	}
	l.clients = pool
	if !found && l.conflict == "" {
		l.accepted = no(gatewayv1.ListenerReasonNoValidCACertificate, "none of the authorities of clients can be read")
	}
}

// validation is how clients at a port are checked, nil for not at all.
func (m *model) validation(port gatewayv1.PortNumber) *gatewayv1.FrontendTLSValidation {
	t := m.gateway.Spec.TLS
	if t == nil || t.Frontend == nil {
		return nil
	}
	for i := range t.Frontend.PerPort {
		if p := &t.Frontend.PerPort[i]; p.Port == port {
			return p.TLS.Validation
		}
	}
	return t.Frontend.Default.Validation
}

// authorityKey is where config maps and secrets have certificates of authorities.
const authorityKey = "ca.crt"

// authority adds the certificates of an authority to a pool.
func (v view) authority(pool *x509.CertPool, from reference, r *gatewayv1.ObjectReference) *said {
	refuse := func(reason gatewayv1.ListenerConditionReason, message string) *said {
		s := no(reason, message)
		return &s
	}
	namespace, name := string(value(r.Namespace, gatewayv1.Namespace(from.namespace))), string(r.Name)
	if r.Group != "" || r.Kind != "ConfigMap" {
		return refuse(gatewayv1.ListenerReasonInvalidCACertificateKind, fmt.Sprintf("authorities are read from ConfigMaps, not from %s", r.Kind))
	}
	if !v.granted(from, "", "ConfigMap", namespace, name) {
		return refuse(gatewayv1.ListenerReasonRefNotPermitted, fmt.Sprintf("no ReferenceGrant allows the reference to ConfigMap %s/%s", namespace, name))
	}
	c, ok := client.ConfigMaps.Get(v, namespace, name)
	if !ok || !pool.AppendCertsFromPEM([]byte(c.Data[authorityKey])) {
		return refuse(gatewayv1.ListenerReasonInvalidCACertificateRef, fmt.Sprintf("ConfigMap %s/%s has no certificates in %s", namespace, name, authorityKey))
	}
	return nil
}

// backendCertificate reads what the gateway shows to backends (spec.tls.backend).
func (m *model) backendCertificate() {
	t := m.gateway.Spec.TLS
	if t == nil || t.Backend == nil || t.Backend.ClientCertificateRef == nil {
		return
	}
	cert, wrong := m.secret(reference{"Gateway", m.gateway.Namespace}, t.Backend.ClientCertificateRef, string(gatewayv1.GatewayReasonInvalidClientCertificateRef))
	ok := yes(gatewayv1.GatewayReasonResolvedRefs)
	m.client, m.resolved = cert, &ok
	if wrong != nil {
		m.resolved = wrong
	}
}

// serving tells that a listener takes connections.
func (l *listener) serving() bool {
	if !l.accepted.status {
		return false
	}
	return !l.terminates() || len(l.certs) > 0
}

// terminates tells that a listener ends TLS.
func (l *listener) terminates() bool {
	switch l.Protocol {
	case gatewayv1.HTTPSProtocolType:
		return true
	case gatewayv1.TLSProtocolType:
		return l.TLS == nil || value(l.TLS.Mode, gatewayv1.TLSModeTerminate) == gatewayv1.TLSModeTerminate
	}
	return false
}

// programmed is the condition of that name.
func (l *listener) programmed() said {
	switch {
	case l.conflict != "":
		return no(l.conflict, "another listener has this port")
	case !l.serving():
		return no(gatewayv1.ListenerReasonInvalid, "the listener is not valid")
	}
	return yes(gatewayv1.ListenerReasonProgrammed)
}

// host is the hostname of a listener, "" for any.
func (l *listener) host() string { return strings.ToLower(string(value(l.Hostname, ""))) }

// covers tells whether every name that b stands for is one that a stands for.
func covers(a, b string) bool {
	switch {
	case a == "" || a == b:
		return true
	case !strings.HasPrefix(a, "*."):
		return false
	}
	return strings.HasSuffix(strings.TrimPrefix(b, "*"), a[1:]) && len(b) >= len(a)
}

// shared are the names that a listener and a route have in common: those of the route as far as the listener goes. ok tells that
// there are any; "" among them is any name.
func shared(host string, names []gatewayv1.Hostname) (out []string, ok bool) {
	if len(names) == 0 {
		return []string{host}, true
	}
	for _, n := range names {
		name := strings.ToLower(string(n))
		switch {
		case covers(host, name):
			out = append(out, name)
		case covers(name, host):
			out = append(out, host)
		}
	}
	return out, len(out) > 0
}
