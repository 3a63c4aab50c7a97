// Package gateway holds the Kinds of the API group gateway.networking.k8s.io: the Gateway API of v1.6, of which v1 is stored
// and v1beta1 is served beside it where upstream's definitions serve it.
//
// It owns what may be said in them. What upstream's CustomResourceDefinitions state (limits, patterns, expressions) is
// embedded as data and made ready when the first object of a kind is checked (rules); GatewayClass, of which every cluster has
// one, is checked by hand so that a cluster that has no gateways pays nothing. It never decides what a route does.
//
// https://gateway-api.sigs.k8s.io/reference/spec/
package gateway

import (
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Group is the name of the API group.
const Group = gatewayv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	type (
		common  = gatewayv1.CommonRouteSpec
		visitor = func(*gatewayv1.BackendObjectReference)
	)
	return []*api.Kind{
		gatewayClassKind(),
		index(gatewayKind(), map[string]func(api.Object) []string{
			ByReference: api.Values(gatewayReferences),
			ByClass:     api.Values(func(g *gatewayv1.Gateway) []string { return []string{string(g.Spec.GatewayClassName)} }),
		}),
		index(listenerSetKind(), map[string]func(api.Object) []string{
			ByReference: api.Values(listenerSetReferences),
			ByParent: api.Values(func(s *gatewayv1.ListenerSet) []string {
				r := &s.Spec.ParentRef
				return []string{Reference(or(r.Kind, "Gateway"), or(r.Namespace, s.Namespace), string(r.Name))}
			}),
		}),
		index(httpRouteKind(), routeIndexes(func(r *gatewayv1.HTTPRoute) *common { return &r.Spec.CommonRouteSpec }, httpBackends)),
		index(grpcRouteKind(), routeIndexes(func(r *gatewayv1.GRPCRoute) *common { return &r.Spec.CommonRouteSpec }, grpcBackends)),
		index(tlsRouteKind(), routeIndexes(func(r *gatewayv1.TLSRoute) *common { return &r.Spec.CommonRouteSpec }, func(r *gatewayv1.TLSRoute, visit visitor) {
			for i := range r.Spec.Rules {
				plain(r.Spec.Rules[i].BackendRefs, visit)
			}
		})),
		index(tcpRouteKind(), routeIndexes(func(r *gatewayv1.TCPRoute) *common { return &r.Spec.CommonRouteSpec }, func(r *gatewayv1.TCPRoute, visit visitor) {
			for i := range r.Spec.Rules {
				plain(r.Spec.Rules[i].BackendRefs, visit)
			}
		})),
		index(udpRouteKind(), routeIndexes(func(r *gatewayv1.UDPRoute) *common { return &r.Spec.CommonRouteSpec }, func(r *gatewayv1.UDPRoute, visit visitor) {
			for i := range r.Spec.Rules {
				plain(r.Spec.Rules[i].BackendRefs, visit)
			}
		})),
		index(backendTLSPolicyKind(), map[string]func(api.Object) []string{ByReference: api.Values(policyReferences)}),
		referenceGrantKind(),
	}
}

// kind is what all kinds of the group have in common.
func kind(k api.Kind) *api.Kind {
	k.Group = Group
	k.Categories = []string{"gateway-api"}
	k.AnyFinalizer = true
	k.Columns = append(append([]api.Column{declare.Name()}, k.Columns...), declare.Age())
	return &k
}

// parts are how the halves of a type are reached that are written through different endpoints.
type parts[T api.Object] struct {
	// takeStatus gives obj the status of from; clearStatus gives it that of a new object.
	takeStatus  func(obj, from T)
	clearStatus func(obj T)
	// takeSpec gives obj the specification of from.
	takeSpec func(obj, from T)
	spec     func(obj T) any
}

// endpoints fills in the strategies of a kind with a status, whose objects are checked by rules.
func endpoints[T api.Object](k *api.Kind, p parts[T], r *rules) *api.Kind {
	k.Strategy = api.Strategy{
		PrepareCreate:  api.On(p.clearStatus),
		PrepareUpdate:  api.OnUpdate(p.takeStatus),
		Validate:       r.validate,
		ValidateUpdate: r.validateUpdate,
	}
	k.Desired = func(obj, old api.Object) bool { return changed(p.spec(obj.(T)), p.spec(old.(T))) }
	k.Subresources = []api.Subresource{declare.Status(api.Strategy{
		PrepareUpdate: api.OnUpdate(p.takeSpec), ValidateUpdate: r.validateStatus,
	})}
	return k
}

// changed compares as Kubernetes does: nil and empty are the same.
func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

// beside is a further version of a type that has the same fields as the hub's.
func beside[T, L, H any, PT declare.Struct[T], PL declare.Struct[L]](name string, in func(*T) *H, out func(*H) *T) api.Version {
	return api.Version{
		Name:    name,
		New:     func() runtime.Object { return PT(new(T)) },
		NewList: func() runtime.Object { return PL(new(L)) },
		ToHub: func(o runtime.Object) (api.Object, error) {
			c := *any(o).(*T)
			hub := any(in(&c)).(api.Object)
			hub.GetObjectKind().SetGroupVersionKind(Version("v1").WithKind(hub.GetObjectKind().GroupVersionKind().Kind))
			return hub, nil
		},
		FromHub: func(o api.Object) (runtime.Object, error) {
			c := *any(o).(*H)
			obj := runtime.Object(PT(out(&c)))
			obj.GetObjectKind().SetGroupVersionKind(Version(name).WithKind(obj.GetObjectKind().GroupVersionKind().Kind))
			return obj, nil
		},
	}
}

func gatewayClassKind() *api.Kind {
	type class = *gatewayv1.GatewayClass
	k := kind(api.Kind{
		Kind: "GatewayClass", Resource: "gatewayclasses", Singular: "gatewayclass", ShortNames: []string{"gc"},
		Versions: []api.Version{
			declare.Hub[gatewayv1.GatewayClass, gatewayv1.GatewayClassList]("v1"),
			beside[gatewayv1beta1.GatewayClass, gatewayv1beta1.GatewayClassList]("v1beta1",
				func(c *gatewayv1beta1.GatewayClass) *gatewayv1.GatewayClass { return (*gatewayv1.GatewayClass)(c) },
				func(c *gatewayv1.GatewayClass) *gatewayv1beta1.GatewayClass { return (*gatewayv1beta1.GatewayClass)(c) }),
		},
		Default: api.On(func(c class) { waiting(&c.Status.Conditions, "Accepted") }),
		Columns: []api.Column{
			declare.Text("Controller", "", func(c class) any { return string(c.Spec.ControllerName) }),
			declare.Text("Accepted", "", func(c class) any { return statusOf(c.Status.Conditions, "Accepted") }),
		},
		Desired: func(obj, old api.Object) bool { return changed(obj.(class).Spec, old.(class).Spec) },
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(c class) {
				c.Status = gatewayv1.GatewayClassStatus{}
				waiting(&c.Status.Conditions, "Accepted")
			}),
			PrepareUpdate:  api.OnUpdate(func(c, old class) { c.Status = old.Status }),
			Validate:       api.Checks(checkClass),
			ValidateUpdate: api.ChecksUpdate(checkClassUpdate),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate:  api.OnUpdate(func(c, old class) { c.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(checkClassStatus),
		})},
	})
	description := declare.Text("Description", "", func(c class) any {
		if c.Spec.Description == nil {
			return ""
		}
		return *c.Spec.Description
	})
	k.Columns = append(k.Columns, declare.Wide(description)...)
	return k
}

func gatewayKind() *api.Kind {
	type gateway = *gatewayv1.Gateway
	return endpoints(kind(api.Kind{
		Kind: "Gateway", Resource: "gateways", Singular: "gateway", ShortNames: []string{"gtw"}, Namespaced: true,
		Versions: []api.Version{
			declare.Hub[gatewayv1.Gateway, gatewayv1.GatewayList]("v1"),
			beside[gatewayv1beta1.Gateway, gatewayv1beta1.GatewayList]("v1beta1",
				func(g *gatewayv1beta1.Gateway) *gatewayv1.Gateway { return (*gatewayv1.Gateway)(g) },
				func(g *gatewayv1.Gateway) *gatewayv1beta1.Gateway { return (*gatewayv1beta1.Gateway)(g) }),
		},
		Default: api.On(defaultGateway),
		Columns: []api.Column{
			declare.Text("Class", "", func(g gateway) any { return string(g.Spec.GatewayClassName) }),
			declare.Text("Address", "", func(g gateway) any {
				if len(g.Status.Addresses) == 0 {
					return ""
				}
				return g.Status.Addresses[0].Value
			}),
			declare.Text("Programmed", "", func(g gateway) any { return statusOf(g.Status.Conditions, "Programmed") }),
		},
	}), parts[gateway]{
		takeStatus: func(g, from gateway) { g.Status = from.Status },
		clearStatus: func(g gateway) {
			g.Status = gatewayv1.GatewayStatus{}
			waiting(&g.Status.Conditions, "Accepted", "Programmed")
		},
		takeSpec: func(g, from gateway) { g.Spec = from.Spec },
		spec:     func(g gateway) any { return g.Spec },
	}, rulesOf("gateways", "Gateway"))
}

func listenerSetKind() *api.Kind {
	type set = *gatewayv1.ListenerSet
	return endpoints(kind(api.Kind{
		Kind: "ListenerSet", Resource: "listenersets", Singular: "listenerset", ShortNames: []string{"lset"}, Namespaced: true,
		Versions: declare.V1[gatewayv1.ListenerSet, gatewayv1.ListenerSetList](),
		Default:  api.On(defaultListenerSet),
		Columns: []api.Column{
			declare.Text("Accepted", "", func(s set) any { return statusOf(s.Status.Conditions, "Accepted") }),
			declare.Text("Programmed", "", func(s set) any { return statusOf(s.Status.Conditions, "Programmed") }),
		},
	}), parts[set]{
		takeStatus: func(s, from set) { s.Status = from.Status },
		clearStatus: func(s set) {
			s.Status = gatewayv1.ListenerSetStatus{}
			waiting(&s.Status.Conditions, "Accepted", "Programmed")
		},
		takeSpec: func(s, from set) { s.Spec = from.Spec },
		spec:     func(s set) any { return s.Spec },
	}, rulesOf("listenersets", "ListenerSet"))
}

func httpRouteKind() *api.Kind {
	type route = *gatewayv1.HTTPRoute
	return endpoints(kind(api.Kind{
		Kind: "HTTPRoute", Resource: "httproutes", Singular: "httproute", Namespaced: true,
		Versions: []api.Version{
			declare.Hub[gatewayv1.HTTPRoute, gatewayv1.HTTPRouteList]("v1"),
			beside[gatewayv1beta1.HTTPRoute, gatewayv1beta1.HTTPRouteList]("v1beta1",
				func(r *gatewayv1beta1.HTTPRoute) *gatewayv1.HTTPRoute { return (*gatewayv1.HTTPRoute)(r) },
				func(r *gatewayv1.HTTPRoute) *gatewayv1beta1.HTTPRoute { return (*gatewayv1beta1.HTTPRoute)(r) }),
		},
		Default: api.On(defaultHTTPRoute),
		Columns: []api.Column{declare.Text("Hostnames", "", func(r route) any { return hostnames(r.Spec.Hostnames) })},
	}), parts[route]{
		takeStatus:  func(r, from route) { r.Status = from.Status },
		clearStatus: func(r route) { r.Status = gatewayv1.HTTPRouteStatus{} },
		takeSpec:    func(r, from route) { r.Spec = from.Spec },
		spec:        func(r route) any { return r.Spec },
	}, rulesOf("httproutes", "HTTPRoute"))
}

func grpcRouteKind() *api.Kind {
	type route = *gatewayv1.GRPCRoute
	return endpoints(kind(api.Kind{
		Kind: "GRPCRoute", Resource: "grpcroutes", Singular: "grpcroute", Namespaced: true,
		Versions: declare.V1[gatewayv1.GRPCRoute, gatewayv1.GRPCRouteList](),
		Default:  api.On(defaultGRPCRoute),
		Columns:  []api.Column{declare.Text("Hostnames", "", func(r route) any { return hostnames(r.Spec.Hostnames) })},
	}), parts[route]{
		takeStatus:  func(r, from route) { r.Status = from.Status },
		clearStatus: func(r route) { r.Status = gatewayv1.GRPCRouteStatus{} },
		takeSpec:    func(r, from route) { r.Spec = from.Spec },
		spec:        func(r route) any { return r.Spec },
	}, rulesOf("grpcroutes", "GRPCRoute"))
}

func tlsRouteKind() *api.Kind {
	type route = *gatewayv1.TLSRoute
	return endpoints(kind(api.Kind{
		Kind: "TLSRoute", Resource: "tlsroutes", Singular: "tlsroute", Namespaced: true,
		Versions: declare.V1[gatewayv1.TLSRoute, gatewayv1.TLSRouteList](),
		Default: api.On(func(r route) {
			defaultParents(&r.Spec.CommonRouteSpec, r.Status.Parents)
			for i := range r.Spec.Rules {
				defaultBackends(r.Spec.Rules[i].BackendRefs)
			}
		}),
	}), parts[route]{
		takeStatus:  func(r, from route) { r.Status = from.Status },
		clearStatus: func(r route) { r.Status = gatewayv1.TLSRouteStatus{} },
		takeSpec:    func(r, from route) { r.Spec = from.Spec },
		spec:        func(r route) any { return r.Spec },
	}, rulesOf("tlsroutes", "TLSRoute"))
}

func tcpRouteKind() *api.Kind {
	type route = *gatewayv1.TCPRoute
	return endpoints(kind(api.Kind{
		Kind: "TCPRoute", Resource: "tcproutes", Singular: "tcproute", Namespaced: true,
		Versions: declare.V1[gatewayv1.TCPRoute, gatewayv1.TCPRouteList](),
		Default: api.On(func(r route) {
			defaultParents(&r.Spec.CommonRouteSpec, r.Status.Parents)
			for i := range r.Spec.Rules {
				defaultBackends(r.Spec.Rules[i].BackendRefs)
			}
		}),
	}), parts[route]{
		takeStatus:  func(r, from route) { r.Status = from.Status },
		clearStatus: func(r route) { r.Status = gatewayv1.TCPRouteStatus{} },
		takeSpec:    func(r, from route) { r.Spec = from.Spec },
		spec:        func(r route) any { return r.Spec },
	}, rulesOf("tcproutes", "TCPRoute"))
}

func udpRouteKind() *api.Kind {
	type route = *gatewayv1.UDPRoute
	return endpoints(kind(api.Kind{
		Kind: "UDPRoute", Resource: "udproutes", Singular: "udproute", Namespaced: true,
		Versions: declare.V1[gatewayv1.UDPRoute, gatewayv1.UDPRouteList](),
		Default: api.On(func(r route) {
			defaultParents(&r.Spec.CommonRouteSpec, r.Status.Parents)
			for i := range r.Spec.Rules {
				defaultBackends(r.Spec.Rules[i].BackendRefs)
			}
		}),
	}), parts[route]{
		takeStatus:  func(r, from route) { r.Status = from.Status },
		clearStatus: func(r route) { r.Status = gatewayv1.UDPRouteStatus{} },
		takeSpec:    func(r, from route) { r.Spec = from.Spec },
		spec:        func(r route) any { return r.Spec },
	}, rulesOf("udproutes", "UDPRoute"))
}

func backendTLSPolicyKind() *api.Kind {
	type policy = *gatewayv1.BackendTLSPolicy
	return endpoints(kind(api.Kind{
		Kind: "BackendTLSPolicy", Resource: "backendtlspolicies", Singular: "backendtlspolicy", ShortNames: []string{"btlspolicy"}, Namespaced: true,
		Versions: declare.V1[gatewayv1.BackendTLSPolicy, gatewayv1.BackendTLSPolicyList](),
		Default: api.On(func(p policy) {
			for i := range p.Status.Ancestors {
				defaultParent(&p.Status.Ancestors[i].AncestorRef)
			}
		}),
	}), parts[policy]{
		takeStatus:  func(p, from policy) { p.Status = from.Status },
		clearStatus: func(p policy) { p.Status = gatewayv1.PolicyStatus{} },
		takeSpec:    func(p, from policy) { p.Spec = from.Spec },
		spec:        func(p policy) any { return p.Spec },
	}, rulesOf("backendtlspolicies", "BackendTLSPolicy"))
}

func referenceGrantKind() *api.Kind {
	type grant = *gatewayv1.ReferenceGrant
	r := rulesOf("referencegrants", "ReferenceGrant")
	return kind(api.Kind{
		Kind: "ReferenceGrant", Resource: "referencegrants", Singular: "referencegrant", ShortNames: []string{"refgrant"}, Namespaced: true,
		Versions: []api.Version{
			declare.Hub[gatewayv1.ReferenceGrant, gatewayv1.ReferenceGrantList]("v1"),
			beside[gatewayv1beta1.ReferenceGrant, gatewayv1beta1.ReferenceGrantList]("v1beta1",
				func(g *gatewayv1beta1.ReferenceGrant) *gatewayv1.ReferenceGrant {
					return (*gatewayv1.ReferenceGrant)(g)
				},
				func(g *gatewayv1.ReferenceGrant) *gatewayv1beta1.ReferenceGrant {
					return (*gatewayv1beta1.ReferenceGrant)(g)
				}),
		},
		Strategy: api.Strategy{Validate: r.validate, ValidateUpdate: r.validateUpdate},
		Desired:  func(obj, old api.Object) bool { return changed(obj.(grant).Spec, old.(grant).Spec) },
	})
}

// hostnames is how a table shows them, as a JSON list.
func hostnames(names []gatewayv1.Hostname) string {
	if len(names) == 0 {
		return ""
	}
	out := []byte{'['}
	for i, n := range names {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), n...), '"')
	}
	return string(append(out, ']'))
}

func statusOf(conditions []metav1.Condition, kind string) string {
	for i := range conditions {
		if conditions[i].Type == kind {
			return string(conditions[i].Status)
		}
	}
	return ""
}

// waiting are the conditions that an object has until a controller took it up: upstream's default of the status.
func waiting(conditions *[]metav1.Condition, kinds ...string) {
	if len(*conditions) > 0 {
		return
	}
	for _, k := range kinds {
		*conditions = append(*conditions, metav1.Condition{Type: k, Status: metav1.ConditionUnknown, Reason: "Pending",
			Message: "Waiting for controller", LastTransitionTime: metav1.NewTime(time.Unix(0, 0).UTC())})
	}
}
