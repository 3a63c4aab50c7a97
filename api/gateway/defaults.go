package gateway

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Version is a version of the group.
func Version(name string) schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: name}
}

// set gives a field its default.
func set[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func defaultGateway(g *gatewayv1.Gateway) {
	waiting(&g.Status.Conditions, "Accepted", "Programmed")
	for i := range g.Spec.Addresses {
		set(&g.Spec.Addresses[i].Type, gatewayv1.IPAddressType)
	}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		l.AllowedRoutes = defaultAllowed(l.AllowedRoutes)
		defaultListenerTLS(l.TLS)
	}
	if a := g.Spec.AllowedListeners; a != nil {
		if a.Namespaces == nil {
			a.Namespaces = &gatewayv1.ListenerNamespaces{}
		}
		set(&a.Namespaces.From, gatewayv1.NamespacesFromNone)
	}
	if t := g.Spec.TLS; t != nil {
		if t.Backend != nil && t.Backend.ClientCertificateRef != nil {
			defaultSecret(t.Backend.ClientCertificateRef)
		}
		if f := t.Frontend; f != nil {
			defaultValidation(f.Default.Validation)
			for i := range f.PerPort {
				defaultValidation(f.PerPort[i].TLS.Validation)
			}
		}
	}
	for i := range g.Status.Addresses {
		set(&g.Status.Addresses[i].Type, gatewayv1.IPAddressType)
	}
	for i := range g.Status.Listeners {
		defaultKinds(g.Status.Listeners[i].SupportedKinds)
	}
}

func defaultValidation(v *gatewayv1.FrontendTLSValidation) {
	if v != nil && v.Mode == "" {
		v.Mode = gatewayv1.AllowValidOnly
	}
}

func defaultListenerSet(s *gatewayv1.ListenerSet) {
	waiting(&s.Status.Conditions, "Accepted", "Programmed")
	set(&s.Spec.ParentRef.Group, gatewayv1.Group(Group))
	set(&s.Spec.ParentRef.Kind, gatewayv1.Kind("Gateway"))
	for i := range s.Spec.Listeners {
		l := &s.Spec.Listeners[i]
		l.AllowedRoutes = defaultAllowed(l.AllowedRoutes)
		defaultListenerTLS(l.TLS)
	}
	for i := range s.Status.Listeners {
		defaultKinds(s.Status.Listeners[i].SupportedKinds)
	}
}

func defaultAllowed(a *gatewayv1.AllowedRoutes) *gatewayv1.AllowedRoutes {
	if a == nil {
		a = &gatewayv1.AllowedRoutes{}
	}
	if a.Namespaces == nil {
		a.Namespaces = &gatewayv1.RouteNamespaces{}
	}
	set(&a.Namespaces.From, gatewayv1.NamespacesFromSame)
	defaultKinds(a.Kinds)
	return a
}

func defaultKinds(kinds []gatewayv1.RouteGroupKind) {
	for i := range kinds {
		set(&kinds[i].Group, gatewayv1.Group(Group))
	}
}

func defaultListenerTLS(t *gatewayv1.ListenerTLSConfig) {
	if t == nil {
		return
	}
	set(&t.Mode, gatewayv1.TLSModeTerminate)
	for i := range t.CertificateRefs {
		defaultSecret(&t.CertificateRefs[i])
	}
}

func defaultSecret(r *gatewayv1.SecretObjectReference) {
	set(&r.Group, "")
	set(&r.Kind, "Secret")
}

func defaultParents(s *gatewayv1.CommonRouteSpec, status []gatewayv1.RouteParentStatus) {
	for i := range s.ParentRefs {
		defaultParent(&s.ParentRefs[i])
	}
	for i := range status {
		defaultParent(&status[i].ParentRef)
	}
}

func defaultParent(r *gatewayv1.ParentReference) {
	set(&r.Group, gatewayv1.Group(Group))
	set(&r.Kind, gatewayv1.Kind("Gateway"))
}

func defaultBackends(refs []gatewayv1.BackendRef) {
	for i := range refs {
		defaultBackend(&refs[i])
	}
}

func defaultBackend(r *gatewayv1.BackendRef) {
	defaultBackendObject(&r.BackendObjectReference)
	set(&r.Weight, 1)
}

func defaultBackendObject(r *gatewayv1.BackendObjectReference) {
	set(&r.Group, "")
	set(&r.Kind, "Service")
}

func defaultMirror(m *gatewayv1.HTTPRequestMirrorFilter) {
	if m == nil {
		return
	}
	defaultBackendObject(&m.BackendRef)
	if m.Fraction != nil {
		set(&m.Fraction.Denominator, 100)
	}
}

func defaultSession(p *gatewayv1.SessionPersistence) {
	if p == nil {
		return
	}
	set(&p.Type, gatewayv1.CookieBasedSessionPersistence)
	if p.CookieConfig != nil {
		set(&p.CookieConfig.LifetimeType, gatewayv1.SessionCookieLifetimeType)
	}
}

func defaultHTTPRoute(r *gatewayv1.HTTPRoute) {
	defaultParents(&r.Spec.CommonRouteSpec, r.Status.Parents)
	if r.Spec.Rules == nil {
		r.Spec.Rules = []gatewayv1.HTTPRouteRule{{}}
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		if rule.Matches == nil {
			rule.Matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for k := range rule.Matches {
			defaultMatch(&rule.Matches[k])
		}
		defaultHTTPFilters(rule.Filters)
		for k := range rule.BackendRefs {
			defaultBackend(&rule.BackendRefs[k].BackendRef)
			defaultHTTPFilters(rule.BackendRefs[k].Filters)
		}
		defaultSession(rule.SessionPersistence)
	}
}

func defaultMatch(m *gatewayv1.HTTPRouteMatch) {
	if m.Path == nil {
		m.Path = &gatewayv1.HTTPPathMatch{}
	}
	set(&m.Path.Type, gatewayv1.PathMatchPathPrefix)
	set(&m.Path.Value, "/")
	for i := range m.Headers {
		set(&m.Headers[i].Type, gatewayv1.HeaderMatchExact)
	}
	for i := range m.QueryParams {
		set(&m.QueryParams[i].Type, gatewayv1.QueryParamMatchExact)
	}
}

func defaultHTTPFilters(filters []gatewayv1.HTTPRouteFilter) {
	const found, maxAge = 302, 5
	for i := range filters {
		f := &filters[i]
		defaultMirror(f.RequestMirror)
		if f.RequestRedirect != nil {
			set(&f.RequestRedirect.StatusCode, found)
		}
		if f.CORS != nil && f.CORS.MaxAge == 0 {
			f.CORS.MaxAge = maxAge
		}
		if f.ExternalAuth != nil {
			defaultBackendObject(&f.ExternalAuth.BackendRef)
		}
	}
}

func defaultGRPCRoute(r *gatewayv1.GRPCRoute) {
	defaultParents(&r.Spec.CommonRouteSpec, r.Status.Parents)
	filters := func(all []gatewayv1.GRPCRouteFilter) {
		for i := range all {
			defaultMirror(all[i].RequestMirror)
		}
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		for k := range rule.Matches {
			m := &rule.Matches[k]
			if m.Method != nil {
				set(&m.Method.Type, gatewayv1.GRPCMethodMatchExact)
			}
			for h := range m.Headers {
				set(&m.Headers[h].Type, gatewayv1.GRPCHeaderMatchExact)
			}
		}
		filters(rule.Filters)
		for k := range rule.BackendRefs {
			defaultBackend(&rule.BackendRefs[k].BackendRef)
			filters(rule.BackendRefs[k].Filters)
		}
		defaultSession(rule.SessionPersistence)
	}
}
