package gateway

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api"
)

// Names of indexes, by which those who translate find what a change concerns.
const (
	// ByParent files routes and listener sets under the gateways and listener sets that they want to attach to (Reference).
	ByParent = "parent"
	// ByReference files objects under the services, secrets and config maps that they name (Reference).
	ByReference = "reference"
	// ByClass files gateways under the names of their classes.
	ByClass = "class"
)

// Reference is the value under which an index files what refers to an object.
func Reference(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// parents indexes a route by its parents.
func parents[T api.Object](spec func(T) *gatewayv1.CommonRouteSpec) func(api.Object) []string {
	return api.Values(func(o T) []string {
		refs := spec(o).ParentRefs
		out := make([]string, 0, len(refs))
		for i := range refs {
			out = append(out, Reference(or(refs[i].Kind, "Gateway"), or(refs[i].Namespace, o.GetNamespace()), string(refs[i].Name)))
		}
		return out
	})
}

// or is what a pointer points to, or otherwise.
func or[T ~string](p *T, otherwise string) string {
	if p == nil || *p == "" {
		return otherwise
	}
	return string(*p)
}

func backendReference(namespace string, r *gatewayv1.BackendObjectReference) string {
	return Reference(or(r.Kind, "Service"), or(r.Namespace, namespace), string(r.Name))
}

func secretReference(namespace string, r *gatewayv1.SecretObjectReference) string {
	return Reference(or(r.Kind, "Secret"), or(r.Namespace, namespace), string(r.Name))
}

// backends indexes a route by its backends; each calls visit with every reference.
func backends[T api.Object](each func(T, func(*gatewayv1.BackendObjectReference))) func(api.Object) []string {
	return api.Values(func(o T) []string {
		var out []string
		each(o, func(r *gatewayv1.BackendObjectReference) { out = append(out, backendReference(o.GetNamespace(), r)) })
		return out
	})
}

func httpBackends(r *gatewayv1.HTTPRoute, visit func(*gatewayv1.BackendObjectReference)) {
	filters := func(all []gatewayv1.HTTPRouteFilter) {
		for i := range all {
			if m := all[i].RequestMirror; m != nil {
				visit(&m.BackendRef)
			}
		}
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		filters(rule.Filters)
		for k := range rule.BackendRefs {
			visit(&rule.BackendRefs[k].BackendObjectReference)
			filters(rule.BackendRefs[k].Filters)
		}
	}
}

func grpcBackends(r *gatewayv1.GRPCRoute, visit func(*gatewayv1.BackendObjectReference)) {
	filters := func(all []gatewayv1.GRPCRouteFilter) {
		for i := range all {
			if m := all[i].RequestMirror; m != nil {
				visit(&m.BackendRef)
			}
		}
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		filters(rule.Filters)
		for k := range rule.BackendRefs {
			visit(&rule.BackendRefs[k].BackendObjectReference)
			filters(rule.BackendRefs[k].Filters)
		}
	}
}

// plain visits the backends of a route without filters.
func plain(refs []gatewayv1.BackendRef, visit func(*gatewayv1.BackendObjectReference)) {
	for i := range refs {
		visit(&refs[i].BackendObjectReference)
	}
}

func certificates(namespace string, t *gatewayv1.ListenerTLSConfig, out []string) []string {
	if t == nil {
		return out
	}
	for i := range t.CertificateRefs {
		out = append(out, secretReference(namespace, &t.CertificateRefs[i]))
	}
	return out
}

func gatewayReferences(g *gatewayv1.Gateway) []string {
	var out []string
	for i := range g.Spec.Listeners {
		out = certificates(g.Namespace, g.Spec.Listeners[i].TLS, out)
	}
	t := g.Spec.TLS
	if t == nil {
		return out
	}
	if t.Backend != nil && t.Backend.ClientCertificateRef != nil {
		out = append(out, secretReference(g.Namespace, t.Backend.ClientCertificateRef))
	}
	validation := func(v *gatewayv1.FrontendTLSValidation) {
		if v == nil {
			return
		}
		for i := range v.CACertificateRefs {
			r := &v.CACertificateRefs[i]
			out = append(out, Reference(string(r.Kind), or(r.Namespace, g.Namespace), string(r.Name)))
		}
	}
	if f := t.Frontend; f != nil {
		validation(f.Default.Validation)
		for i := range f.PerPort {
			validation(f.PerPort[i].TLS.Validation)
		}
	}
	return out
}

func listenerSetReferences(s *gatewayv1.ListenerSet) []string {
	var out []string
	for i := range s.Spec.Listeners {
		out = certificates(s.Namespace, s.Spec.Listeners[i].TLS, out)
	}
	return out
}

func policyReferences(p *gatewayv1.BackendTLSPolicy) []string {
	var out []string
	for i := range p.Spec.TargetRefs {
		out = append(out, Reference(string(p.Spec.TargetRefs[i].Kind), p.Namespace, string(p.Spec.TargetRefs[i].Name)))
	}
	for i := range p.Spec.Validation.CACertificateRefs {
		r := &p.Spec.Validation.CACertificateRefs[i]
		out = append(out, Reference(string(r.Kind), p.Namespace, string(r.Name)))
	}
	return out
}

// index adds the indexes of a kind.
func index(k *api.Kind, all map[string]func(api.Object) []string) *api.Kind {
	k.Indexes = all
	return k
}

// routeIndexes are those of a route.
func routeIndexes[T api.Object](spec func(T) *gatewayv1.CommonRouteSpec, each func(T, func(*gatewayv1.BackendObjectReference))) map[string]func(api.Object) []string {
	return map[string]func(api.Object) []string{ByParent: parents(spec), ByReference: backends(each)}
}
