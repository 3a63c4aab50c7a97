package gateway

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/store"
)

// backend is one of a table, with the port of a service that its endpoints are of.
type backend struct {
	*table.Backend
	service string // "namespace/name"
	port    string // of the service, by its name
	proto   corev1.Protocol
	// secured stands for what its TLS is made of, so that what is the same can be told.
	secured string
	// rev is the revision of the store that its endpoints are from, once it is published.
	rev store.Revision
}

// compiler makes rules of routes.
type compiler struct {
	view
	from reference
	// client is what is shown to backends that ask for a certificate, and identity says whose it is.
	client   *tls.Certificate
	identity string
	// backends are those that were met, by id; nil if only references are checked.
	backends map[string]*backend
	// bare leaves policies out of account, which are for gateways.
	bare bool
	// wrong is the first reference that cannot be used.
	wrong *said
}

func (c *compiler) refuse(reason gatewayv1.RouteConditionReason, format string, args ...any) string {
	if c.wrong == nil {
		s := no(reason, fmt.Sprintf(format, args...))
		c.wrong = &s
	}
	return ""
}

// backend finds what a reference means and returns its id, "" for one that does not resolve.
func (c *compiler) backend(r *gatewayv1.BackendObjectReference, speaks table.Protocol, proto corev1.Protocol) string {
	namespace, name := string(value(r.Namespace, gatewayv1.Namespace(c.from.namespace))), string(r.Name)
	if value(r.Group, "") != "" || value(r.Kind, "Service") != "Service" {
		return c.refuse(gatewayv1.RouteReasonInvalidKind, "backends of kind %s are not supported", value(r.Kind, ""))
	}
	if !c.granted(c.from, "", "Service", namespace, name) {
		return c.refuse(gatewayv1.RouteReasonRefNotPermitted, "no ReferenceGrant allows the reference to Service %s/%s", namespace, name)
	}
	svc, ok := client.Services.Get(c, namespace, name)
	if !ok {
		return c.refuse(gatewayv1.RouteReasonBackendNotFound, "Service %s/%s does not exist", namespace, name)
	}
	if r.Port == nil {
		return c.refuse(gatewayv1.RouteReasonUnsupportedProtocol, "the reference to Service %s/%s names no port", namespace, name)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return c.refuse(gatewayv1.RouteReasonUnsupportedProtocol, "Service %s/%s is of type ExternalName", namespace, name)
	}
	for i := range svc.Spec.Ports {
		if p := &svc.Spec.Ports[i]; p.Port == *r.Port && value(&p.Protocol, corev1.ProtocolTCP) == proto {
			return c.use(svc, p, speaks)
		}
	}
	return c.refuse(gatewayv1.RouteReasonBackendNotFound, "Service %s/%s has no port %d", namespace, name, *r.Port)
}

// use adds the port of a service to the backends. Its endpoints come when it is published.
func (c *compiler) use(svc *corev1.Service, p *corev1.ServicePort, speaks table.Protocol) string {
	if speaks == table.HTTP1 && value(p.AppProtocol, "") == "kubernetes.io/h2c" {
		speaks = table.HTTP2
	}
	id := fmt.Sprintf("%s/%s:%d", svc.Namespace, svc.Name, p.Port)
	switch {
	case speaks == table.HTTP2:
		id += "/h2"
	case p.Protocol == corev1.ProtocolUDP:
		id += "/udp"
	case speaks == table.Stream:
		id += "/stream"
	}
	var secure *table.BackendTLS
	secured := ""
	if speaks != table.Stream && !c.bare {
		policy := c.policy(svc, p.Name)
		if policy != nil {
			out := c.secure(policy)
			if out.tls == nil {
				return "" // it answers with an error, and the policy says why
			}
			secure, secured = out.tls, out.content
			id += "/tls"
			if c.client != nil {
				secure.Config.Certificates = []tls.Certificate{*c.client}
				id, secured = id+"@"+c.identity, secured+c.identity
			}
		}
	}
	if c.backends == nil || c.backends[id] != nil {
		return id
	}
	c.backends[id] = &backend{
		Backend: &table.Backend{ID: id, Protocol: speaks, TLS: secure},
		service: svc.Namespace + "/" + svc.Name, port: p.Name, proto: p.Protocol, secured: secured,
	}
	return id
}

// endpoints are those of a port of a service: ready ones, and those that are terminating and still serve (KEP-1669). Of a service of both
// IP families they are those of the first: each pod once.
func endpoints(v view, service, port string, proto corev1.Protocol) []table.Endpoint {
	var out []table.Endpoint
	seen := map[netip.AddrPort]bool{}
	family := familyOf(v, service)
	for slice := range client.EndpointSlices.Index(v, "service", service) {
		if family != "" && slice.AddressType != family {
			continue
		}
		number := portOf(slice, port, proto)
		if number == 0 {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(e.Addresses) == 0 {
				continue
			}
			ip, err := netip.ParseAddr(e.Addresses[0])
			at := netip.AddrPortFrom(ip, number)
			if err != nil || seen[at] {
				continue
			}
			end := table.Endpoint{Address: at, Zone: value(e.Zone, "")}
			switch {
			case value(e.Conditions.Ready, true):
			case value(e.Conditions.Serving, false) && value(e.Conditions.Terminating, false):
				end.State = table.Terminating
			default:
				continue
			}
			seen[at] = true
			out = append(out, end)
		}
	}
	return out
}

// familyOf is the family of a service that has both, else "".
func familyOf(v view, service string) discoveryv1.AddressType {
	namespace, name, _ := strings.Cut(service, "/")
	svc, ok := client.Services.Get(v, namespace, name)
	if !ok || len(svc.Spec.IPFamilies) < 2 {
		return ""
	}
	return discoveryv1.AddressType(svc.Spec.IPFamilies[0])
}

func portOf(slice *discoveryv1.EndpointSlice, name string, proto corev1.Protocol) uint16 {
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if p.Port != nil && value(p.Name, "") == name && value(p.Protocol, corev1.ProtocolTCP) == value(&proto, corev1.ProtocolTCP) {
			return uint16(*p.Port)
		}
	}
	return 0
}

// visit compiles a route for its references alone.
func (c *compiler) visit(r *route) {
	switch o := r.Object.(type) {
	case *gatewayv1.HTTPRoute:
		c.http(o)
	case *gatewayv1.GRPCRoute:
		c.grpc(o)
	default:
		c.stream(r)
	}
}

// stream is the rule of a route that forwards connections or datagrams, nil if it has none. Only the first of several rules counts.
func (c *compiler) stream(r *route) *table.Rule {
	if len(r.backends) == 0 {
		return nil
	}
	proto := corev1.ProtocolTCP
	if r.kind == "UDPRoute" {
		proto = corev1.ProtocolUDP
	}
	out := &table.Rule{Name: r.GetNamespace() + "/" + r.GetName()}
	for _, rule := range r.backends {
		for i := range rule {
			out.Backends = append(out.Backends, table.Weighted{
				Backend: c.backend(&rule[i].BackendObjectReference, table.Stream, proto), Weight: uint32(value(rule[i].Weight, 1))})
		}
	}
	return out
}

// http are the routes of an HTTPRoute, in its order.
func (c *compiler) http(r *gatewayv1.HTTPRoute) []*table.Route {
	var out []*table.Route
	for i := range r.Spec.Rules {
		in := &r.Spec.Rules[i]
		rule := &table.Rule{Name: fmt.Sprintf("%s/%s/%d", r.Namespace, r.Name, i)}
		rule.Request, rule.Response = &table.HeaderEdit{}, &table.HeaderEdit{}
		for k := range in.Filters {
			c.filter(rule, &in.Filters[k])
		}
		rule.Request, rule.Response = some(rule.Request), some(rule.Response)
		for k := range in.BackendRefs {
			b := &in.BackendRefs[k]
			w := table.Weighted{Backend: c.backend(&b.BackendObjectReference, table.HTTP1, corev1.ProtocolTCP), Weight: uint32(value(b.Weight, 1))}
			var own table.Rule
			own.Request, own.Response = &table.HeaderEdit{}, &table.HeaderEdit{}
			for f := range b.Filters {
				c.filter(&own, &b.Filters[f])
			}
			w.Request, w.Response, w.Rewrite = some(own.Request), some(own.Response), own.Rewrite
			rule.Mirrors = append(rule.Mirrors, own.Mirrors...)
			rule.Backends = append(rule.Backends, w)
		}
		if t := in.Timeouts; t != nil {
			rule.Timeouts = table.Timeouts{Request: duration(t.Request), Backend: duration(t.BackendRequest)}
		}
		if t := in.Retry; t != nil {
			rule.Retry = &table.Retry{Attempts: value(t.Attempts, 1), Backoff: duration(t.Backoff), Reset: true}
			for _, code := range t.Codes {
				rule.Retry.Codes = append(rule.Retry.Codes, int(code))
			}
		}
		rule.Session = session(in.SessionPersistence, rule.Name)
		for k := range in.Matches {
			out = append(out, &table.Route{Match: httpMatch(&in.Matches[k]), Rule: rule})
		}
	}
	return out
}

// some is an edit that edits, else nil.
func some(e *table.HeaderEdit) *table.HeaderEdit {
	if len(e.Set)+len(e.Add)+len(e.Remove) == 0 {
		return nil
	}
	return e
}

func duration(d *gatewayv1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	out, err := time.ParseDuration(string(*d))
	if err != nil {
		return 0 // its pattern was checked when it was written
	}
	return out
}

func session(p *gatewayv1.SessionPersistence, rule string) *table.Session {
	if p == nil {
		return nil
	}
	out := &table.Session{}
	name := value(p.SessionName, "coracle-"+strings.NewReplacer("/", "-", ".", "-").Replace(rule))
	if value(p.Type, gatewayv1.CookieBasedSessionPersistence) == gatewayv1.HeaderBasedSessionPersistence {
		out.Header = name
		return out
	}
	out.Cookie = name
	if p.CookieConfig != nil && value(p.CookieConfig.LifetimeType, gatewayv1.SessionCookieLifetimeType) == gatewayv1.PermanentCookieLifetimeType {
		out.Lifetime = duration(p.AbsoluteTimeout)
	}
	return out
}

// httpMatches are all conditions of a route.
func httpMatches(r *gatewayv1.HTTPRoute) []table.Match {
	var out []table.Match
	for i := range r.Spec.Rules {
		for k := range r.Spec.Rules[i].Matches {
			out = append(out, httpMatch(&r.Spec.Rules[i].Matches[k]))
		}
	}
	return out
}

func httpMatch(in *gatewayv1.HTTPRouteMatch) table.Match {
	out := table.Match{Method: string(value(in.Method, ""))}
	if p := in.Path; p != nil {
		out.Path.Value = value(p.Value, "/")
		switch value(p.Type, gatewayv1.PathMatchPathPrefix) {
		case gatewayv1.PathMatchExact:
			out.Path.Kind = table.PathExact
		case gatewayv1.PathMatchRegularExpression:
			out.Path.Kind = table.PathRegex
		}
	}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, valueMatch(string(h.Name), h.Value, value(h.Type, "") == gatewayv1.HeaderMatchRegularExpression))
	}
	for _, q := range in.QueryParams {
		out.Query = append(out.Query, valueMatch(string(q.Name), q.Value, value(q.Type, "") == gatewayv1.QueryParamMatchRegularExpression))
	}
	return out
}

func valueMatch(name, text string, expression bool) table.ValueMatch {
	m := table.ValueMatch{Name: name, Value: text}
	if expression {
		m.Kind = table.ValueRegex
	}
	return m
}

// filter adds what a filter does to a rule.
func (c *compiler) filter(rule *table.Rule, f *gatewayv1.HTTPRouteFilter) {
	switch {
	case f.RequestHeaderModifier != nil:
		edit(rule.Request, f.RequestHeaderModifier)
	case f.ResponseHeaderModifier != nil:
		edit(rule.Response, f.ResponseHeaderModifier)
	case f.RequestMirror != nil:
		c.mirror(rule, f.RequestMirror, table.HTTP1)
	case f.RequestRedirect != nil:
		r := f.RequestRedirect
		rule.Redirect = &table.Redirect{Scheme: value(r.Scheme, ""), Host: string(value(r.Hostname, "")), Path: path(r.Path),
			Port: uint16(value(r.Port, 0)), Code: value(r.StatusCode, 0)}
	case f.URLRewrite != nil:
		rule.Rewrite = &table.Rewrite{Host: string(value(f.URLRewrite.Hostname, "")), Path: path(f.URLRewrite.Path)}
	case f.CORS != nil:
		rule.CORS = cors(f.CORS)
	}
}

func path(p *gatewayv1.HTTPPathModifier) *table.PathRewrite {
	if p == nil {
		return nil
	}
	if p.Type == gatewayv1.FullPathHTTPPathModifier {
		full := value(p.ReplaceFullPath, "/")
		if full == "" {
			full = "/"
		}
		return &table.PathRewrite{Full: full}
	}
	return &table.PathRewrite{Prefix: value(p.ReplacePrefixMatch, "")}
}

func edit(e *table.HeaderEdit, f *gatewayv1.HTTPHeaderFilter) {
	for _, h := range f.Set {
		e.Set = append(e.Set, table.Header{Name: string(h.Name), Value: h.Value})
	}
	for _, h := range f.Add {
		e.Add = append(e.Add, table.Header{Name: string(h.Name), Value: h.Value})
	}
	e.Remove = append(e.Remove, f.Remove...)
}

func (c *compiler) mirror(rule *table.Rule, f *gatewayv1.HTTPRequestMirrorFilter, speaks table.Protocol) {
	m := table.Mirror{Backend: c.backend(&f.BackendRef, speaks, corev1.ProtocolTCP), Numerator: 1, Denominator: 1}
	if f.Percent != nil {
		m.Numerator, m.Denominator = uint32(*f.Percent), 100
	}
	if f.Fraction != nil {
		m.Numerator, m.Denominator = uint32(f.Fraction.Numerator), uint32(value(f.Fraction.Denominator, 100))
	}
	if m.Backend != "" && m.Numerator > 0 {
		rule.Mirrors = append(rule.Mirrors, m)
	}
}

func cors(f *gatewayv1.HTTPCORSFilter) *table.CORS {
	out := &table.CORS{Credentials: value(f.AllowCredentials, false), MaxAge: time.Duration(f.MaxAge) * time.Second}
	for _, o := range f.AllowOrigins {
		out.Origins = append(out.Origins, string(o))
	}
	for _, m := range f.AllowMethods {
		out.Methods = append(out.Methods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.Headers = append(out.Headers, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.Expose = append(out.Expose, string(h))
	}
	return out
}

// grpc are the routes of a GRPCRoute, in its order.
func (c *compiler) grpc(r *gatewayv1.GRPCRoute) []*table.Route {
	var out []*table.Route
	for i := range r.Spec.Rules {
		in := &r.Spec.Rules[i]
		rule := &table.Rule{Name: fmt.Sprintf("%s/%s/%d", r.Namespace, r.Name, i), Request: &table.HeaderEdit{}, Response: &table.HeaderEdit{}}
		for k := range in.Filters {
			c.grpcFilter(rule, &in.Filters[k])
		}
		rule.Request, rule.Response = some(rule.Request), some(rule.Response)
		for k := range in.BackendRefs {
			b := &in.BackendRefs[k]
			own := table.Rule{Request: &table.HeaderEdit{}, Response: &table.HeaderEdit{}}
			for f := range b.Filters {
				c.grpcFilter(&own, &b.Filters[f])
			}
			rule.Mirrors = append(rule.Mirrors, own.Mirrors...)
			rule.Backends = append(rule.Backends, table.Weighted{Backend: c.backend(&b.BackendObjectReference, table.HTTP2, corev1.ProtocolTCP),
				Weight: uint32(value(b.Weight, 1)), Request: some(own.Request), Response: some(own.Response)})
		}
		rule.Session = session(in.SessionPersistence, rule.Name)
		if len(in.Matches) == 0 {
			out = append(out, &table.Route{Match: table.Match{Path: table.PathMatch{Kind: table.PathGRPC}}, Rule: rule})
		}
		for k := range in.Matches {
			out = append(out, &table.Route{Match: grpcMatch(&in.Matches[k]), Rule: rule})
		}
	}
	return out
}

func grpcMatch(in *gatewayv1.GRPCRouteMatch) table.Match {
	out := table.Match{Path: table.PathMatch{Kind: table.PathGRPC}}
	if m := in.Method; m != nil {
		out.Path.Service, out.Path.Method = value(m.Service, ""), value(m.Method, "")
		if value(m.Type, "") == gatewayv1.GRPCMethodMatchRegularExpression {
			out.Path.Kind = table.PathGRPCRegex
		}
	}
	for _, h := range in.Headers {
		out.Headers = append(out.Headers, valueMatch(string(h.Name), h.Value, value(h.Type, "") == gatewayv1.GRPCHeaderMatchRegularExpression))
	}
	return out
}

func (c *compiler) grpcFilter(rule *table.Rule, f *gatewayv1.GRPCRouteFilter) {
	switch {
	case f.RequestHeaderModifier != nil:
		edit(rule.Request, f.RequestHeaderModifier)
	case f.ResponseHeaderModifier != nil:
		edit(rule.Response, f.ResponseHeaderModifier)
	case f.RequestMirror != nil:
		c.mirror(rule, f.RequestMirror, table.HTTP2)
	}
}
