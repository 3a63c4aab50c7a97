package gateway

import (
	"fmt"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"coracle.dev/coracle/api"
	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/store"
)

// route is a route of any kind.
type route struct {
	api.Object
	kind      string
	parents   []gatewayv1.ParentReference
	hostnames []gatewayv1.Hostname
	// status is the object's own: that of a copy may be changed.
	status *gatewayv1.RouteStatus
	// backends are the rules of those kinds that have nothing but backends.
	backends [][]gatewayv1.BackendRef
}

// resources are those of routes, by kind.
var resources = map[string]string{
	"HTTPRoute": client.HTTPRoutes.Name, "GRPCRoute": client.GRPCRoutes.Name, "TLSRoute": client.TLSRoutes.Name,
	"TCPRoute": client.TCPRoutes.Name, "UDPRoute": client.UDPRoutes.Name,
}

// kinds are the kinds of routes, in the order in which they are looked at.
var kinds = []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"}

// routeOf shows an object as a route.
func routeOf(o any) *route {
	switch r := o.(type) {
	case *gatewayv1.HTTPRoute:
		return &route{Object: r, kind: "HTTPRoute", parents: r.Spec.ParentRefs, hostnames: r.Spec.Hostnames, status: &r.Status.RouteStatus}
	case *gatewayv1.GRPCRoute:
		return &route{Object: r, kind: "GRPCRoute", parents: r.Spec.ParentRefs, hostnames: r.Spec.Hostnames, status: &r.Status.RouteStatus}
	case *gatewayv1.TLSRoute:
		out := &route{Object: r, kind: "TLSRoute", parents: r.Spec.ParentRefs, hostnames: r.Spec.Hostnames, status: &r.Status.RouteStatus}
		for i := range r.Spec.Rules {
			out.backends = append(out.backends, r.Spec.Rules[i].BackendRefs)
		}
		return out
	case *gatewayv1.TCPRoute:
		out := &route{Object: r, kind: "TCPRoute", parents: r.Spec.ParentRefs, status: &r.Status.RouteStatus}
		for i := range r.Spec.Rules {
			out.backends = append(out.backends, r.Spec.Rules[i].BackendRefs)
		}
		return out
	case *gatewayv1.UDPRoute:
		out := &route{Object: r, kind: "UDPRoute", parents: r.Spec.ParentRefs, status: &r.Status.RouteStatus}
		for i := range r.Spec.Rules {
			out.backends = append(out.backends, r.Spec.Rules[i].BackendRefs)
		}
		return out
	}
	return nil
}

// routes are those that name an object as their parent, in order of age.
func (v view) routes(kind, namespace, name string) []*route {
	var out []*route
	for _, k := range kinds {
		for e := range v.Index(resources[k], gatewayapi.ByParent, gatewayapi.Reference(kind, namespace, name)) {
			out = append(out, routeOf(e.Object))
		}
	}
	return out
}

// attachAll attaches every route that wants to.
func (m *model) attachAll() {
	all := m.routes("Gateway", m.gateway.Namespace, m.gateway.Name)
	for _, s := range m.sets {
		if s.allowed {
			all = append(all, m.routes("ListenerSet", s.Namespace, s.Name)...)
		}
	}
	slices.SortStableFunc(all, func(a, b *route) int { return older(a.Object, b.Object) })
	seen := map[string]bool{}
	for _, r := range all {
		id := r.kind + "/" + r.GetNamespace() + "/" + r.GetName()
		if seen[id] {
			continue // it names several of the gateway's listener sets
		}
		seen[id] = true
		for i := range r.parents {
			m.attach(r, &r.parents[i], true)
		}
	}
}

// concerns tells whether a parent is the gateway or one of its listener sets.
func (m *model) concerns(r *route, p *gatewayv1.ParentReference) bool {
	if value(p.Group, group) != group {
		return false
	}
	namespace := string(value(p.Namespace, gatewayv1.Namespace(r.GetNamespace())))
	switch value(p.Kind, "Gateway") {
	case "Gateway":
		return namespace == m.gateway.Namespace && string(p.Name) == m.gateway.Name
	case "ListenerSet":
		return slices.ContainsFunc(m.sets, func(s *listenerSet) bool { return s.Namespace == namespace && s.Name == string(p.Name) })
	}
	return false
}

// attach finds the listeners to which a route attaches by one of its parents, and says so; keep has them remember it.
func (m *model) attach(r *route, p *gatewayv1.ParentReference, keep bool) said {
	if !m.concerns(r, p) {
		return said{}
	}
	namespace := string(value(p.Namespace, gatewayv1.Namespace(r.GetNamespace())))
	found, allowed, attached := false, false, false
	for _, l := range m.listeners {
		if value(p.Kind, "Gateway") == "ListenerSet" {
			if l.set == nil || l.set.Namespace != namespace || l.set.Name != string(p.Name) {
				continue
			}
		} else if l.set != nil {
			continue
		}
		if p.SectionName != nil && *p.SectionName != l.Name || p.Port != nil && *p.Port != l.Port {
			continue
		}
		found = true
		if !m.allowed(l, r) {
			continue
		}
		allowed = true
		names, ok := shared(l.host(), r.hostnames)
		if !ok || l.conflict != "" {
			continue
		}
		attached = true
		if keep && !slices.ContainsFunc(l.attached, func(a attachment) bool { return a.route == r }) {
			l.attached = append(l.attached, attachment{r, names})
		}
	}
	switch {
	case attached:
		if wrong := unsupported(r.Object); wrong != "" {
			return no(gatewayv1.RouteReasonUnsupportedValue, wrong)
		}
		return yes(gatewayv1.RouteReasonAccepted)
	case allowed:
		return no(gatewayv1.RouteReasonNoMatchingListenerHostname, "no listener has a hostname in common with the route")
	case found:
		return no(gatewayv1.RouteReasonNotAllowedByListeners, "no listener allows the route")
	}
	return no(gatewayv1.RouteReasonNoMatchingParent, "no listener has that name and port")
}

// allowed tells whether a listener lets a route of that kind and namespace attach.
func (m *model) allowed(l *listener, r *route) bool {
	if !slices.ContainsFunc(l.kinds, func(k gatewayv1.RouteGroupKind) bool { return string(k.Kind) == r.kind }) {
		return false
	}
	from, home := gatewayv1.NamespacesFromSame, l.owner.namespace
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		return m.selects(value(a.Namespaces.From, from), a.Namespaces.Selector, home, r.GetNamespace())
	}
	return home == r.GetNamespace()
}

// parent finds the gateway, of ours, behind a parent of a route.
func (v view) parent(r *route, p *gatewayv1.ParentReference) *gatewayv1.Gateway {
	if value(p.Group, group) != group {
		return nil
	}
	namespace, name := string(value(p.Namespace, gatewayv1.Namespace(r.GetNamespace()))), string(p.Name)
	if value(p.Kind, "Gateway") == "ListenerSet" {
		s, ok := client.ListenerSets.Get(v, namespace, name)
		if !ok {
			return nil
		}
		namespace, name = string(value(s.Spec.ParentRef.Namespace, gatewayv1.Namespace(s.Namespace))), string(s.Spec.ParentRef.Name)
	} else if value(p.Kind, "Gateway") != "Gateway" {
		return nil
	}
	g, _ := v.ours(namespace, name)
	return g
}

// routeStatus makes the status of a route; other controllers' parts of it stay. It returns nil if it is right as it is.
func (v view) routeStatus(o api.Object) api.Object {
	r := routeOf(o.DeepCopyObject())
	before := routeOf(o).status.Parents
	var parents []gatewayv1.RouteParentStatus
	for _, p := range before {
		if p.ControllerName != Controller {
			parents = append(parents, p)
		}
	}
	models := map[*gatewayv1.Gateway]*model{}
	for i := range r.parents {
		g := v.parent(r, &r.parents[i])
		if g == nil {
			continue
		}
		m := models[g]
		if m == nil {
			m = v.model(g)
			models[g] = m
		}
		status := gatewayv1.RouteParentStatus{ParentRef: r.parents[i], ControllerName: Controller}
		for _, p := range before {
			if p.ControllerName == Controller && equality.Semantic.DeepEqual(p.ParentRef, r.parents[i]) {
				status.Conditions = append(status.Conditions, p.Conditions...)
			}
		}
		v.set(&status.Conditions, string(gatewayv1.RouteConditionAccepted), m.attach(r, &r.parents[i], false), r.GetGeneration())
		v.set(&status.Conditions, string(gatewayv1.RouteConditionResolvedRefs), v.resolve(r), r.GetGeneration())
		parents = append(parents, status)
	}
	if equality.Semantic.DeepEqual(parents, before) {
		return nil
	}
	r.status.Parents = parents
	return r.Object
}

// resolve says whether all that a route refers to can be used.
func (v view) resolve(r *route) said {
	c := &compiler{view: v, from: reference{r.kind, r.GetNamespace()}}
	c.visit(r)
	if c.wrong != nil {
		return *c.wrong
	}
	return yes(gatewayv1.RouteReasonResolvedRefs)
}

// unsupported names what a route asks for that is not done, "" for nothing.
func unsupported(o api.Object) string {
	expression := func(text string) string {
		if _, err := regexp.Compile(text); err != nil {
			return err.Error()
		}
		return ""
	}
	switch r := o.(type) {
	case *gatewayv1.HTTPRoute:
		for i := range r.Spec.Rules {
			if wrong := sessionProblem(r.Spec.Rules[i].SessionPersistence); wrong != "" {
				return fmt.Sprintf("rule %d: %s", i, wrong)
			}
			for _, f := range r.Spec.Rules[i].Filters {
				if f.Type == gatewayv1.HTTPRouteFilterExternalAuth || f.Type == gatewayv1.HTTPRouteFilterExtensionRef {
					return fmt.Sprintf("rule %d: filters of type %s are not supported", i, f.Type)
				}
			}
		}
		for _, m := range httpMatches(r) {
			if wrong := matchProblem(&m, expression); wrong != "" {
				return wrong
			}
		}
	case *gatewayv1.GRPCRoute:
		for i := range r.Spec.Rules {
			if wrong := sessionProblem(r.Spec.Rules[i].SessionPersistence); wrong != "" {
				return fmt.Sprintf("rule %d: %s", i, wrong)
			}
			for k := range r.Spec.Rules[i].Matches {
				m := grpcMatch(&r.Spec.Rules[i].Matches[k])
				if wrong := matchProblem(&m, expression); wrong != "" {
					return wrong
				}
			}
		}
	}
	return ""
}

// sessionProblem is what of a session is not done: its end is the browser's to keep, by the lifetime of a permanent cookie, and nobody keeps it for
// other sessions.
func sessionProblem(p *gatewayv1.SessionPersistence) string {
	if p == nil || p.AbsoluteTimeout == nil || duration(p.AbsoluteTimeout) == 0 {
		return ""
	}
	if s := session(p, ""); s.Cookie != "" && s.Lifetime > 0 {
		return ""
	}
	return "sessionPersistence.absoluteTimeout is only supported for permanent cookies"
}

// matchProblem is what is wrong with the expressions of a match.
func matchProblem(m *table.Match, check func(string) string) string {
	var texts []string
	switch m.Path.Kind {
	case table.PathRegex:
		texts = append(texts, m.Path.Value)
	case table.PathGRPCRegex:
		texts = append(texts, m.Path.Service, m.Path.Method)
	}
	for _, all := range [][]table.ValueMatch{m.Headers, m.Query} {
		for _, v := range all {
			if v.Kind == table.ValueRegex {
				texts = append(texts, v.Value)
			}
		}
	}
	for _, t := range texts {
		if wrong := check(t); wrong != "" {
			return wrong
		}
	}
	return ""
}

// gatewaysOf are the gateways, of ours, that an object's change concerns by its parents.
func gatewaysOf(s store.Snapshot, o any) []*gatewayv1.Gateway {
	r := routeOf(o)
	if r == nil {
		return nil
	}
	v := view{Snapshot: s}
	var out []*gatewayv1.Gateway
	for i := range r.parents {
		if g := v.parent(r, &r.parents[i]); g != nil && !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}
