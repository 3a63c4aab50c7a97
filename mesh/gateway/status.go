package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
)

// placed is where a gateway is reached.
type placed struct {
	addresses []netip.Addr
	// accepted and programmed are what is wrong, nil if nothing is.
	accepted, programmed *said
}

// place decides on the addresses of a gateway: those it asks for, else the one it has, else the first that is free.
func (c *Config) place(v view, g *gatewayv1.Gateway) placed {
	var out placed
	fault := func(into **said, s said) {
		if *into == nil {
			*into = &s
		}
	}
	if len(c.Pools) == 0 {
		fault(&out.programmed, no(gatewayv1.GatewayReasonNoResources, "no node of this cluster serves gateways"))
		return out
	}
	used := map[netip.Addr]bool{}
	for class := range client.GatewayClasses.List(v, "") {
		if class.Spec.ControllerName != Controller {
			continue
		}
		for o := range client.Gateways.Index(v, gatewayapi.ByClass, class.Name) {
			for _, a := range o.Status.Addresses {
				if ip, err := netip.ParseAddr(a.Value); err == nil && o.UID != g.UID {
					used[ip] = true
				}
			}
		}
	}
	free := func() {
		for _, pool := range c.Pools {
			if ip := freeOf(pool, g, used); ip.IsValid() {
				out.addresses = append(out.addresses, ip)
			} else {
				fault(&out.programmed, no(gatewayv1.GatewayReasonAddressNotAssigned, fmt.Sprintf("every address of %s is taken", pool)))
			}
		}
	}
	pooled := func(ip netip.Addr) bool {
		return !used[ip] && slices.ContainsFunc(c.Pools, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	for _, a := range g.Spec.Addresses {
		ip, err := netip.ParseAddr(a.Value)
		switch {
		case value(a.Type, gatewayv1.IPAddressType) != gatewayv1.IPAddressType:
			fault(&out.accepted, no(gatewayv1.GatewayReasonUnsupportedAddress, fmt.Sprintf("addresses of type %s are not supported", *a.Type)))
		case a.Value == "":
			free()
		case err != nil || !slices.Contains(c.Nodes, ip) && !pooled(ip):
			fault(&out.programmed, no(gatewayv1.GatewayReasonAddressNotUsable, fmt.Sprintf("%s is neither an address of the node nor a free one of %s", a.Value, ranges(c.Pools))))
		default:
			out.addresses = append(out.addresses, ip)
		}
	}
	if len(g.Spec.Addresses) == 0 {
		free()
	}
	if out.accepted != nil || out.programmed != nil {
		out.addresses = nil
	}
	return out
}

// freeOf is the address of a pool that a gateway has, else the first that nobody has, not valid if there is none.
func freeOf(pool netip.Prefix, g *gatewayv1.Gateway, used map[netip.Addr]bool) netip.Addr {
	for _, a := range g.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Value); err == nil && pool.Contains(ip) && !used[ip] {
			return ip
		}
	}
	for ip := pool.Addr().Next(); pool.Contains(ip); ip = ip.Next() {
		if !used[ip] && pool.Contains(ip.Next()) {
			return ip
		}
	}
	return netip.Addr{}
}

func ranges(pools []netip.Prefix) string {
	var all []string
	for _, p := range pools {
		all = append(all, p.String())
	}
	return strings.Join(all, " and ")
}

// gatewayStatus makes the status of a gateway whose routes are attached; nil if it is right as it is.
func (m *model) gatewayStatus(p placed, bad error) *gatewayv1.Gateway {
	old := m.gateway
	g := old.DeepCopy()
	accepted, programmed := yes(gatewayv1.GatewayReasonAccepted), yes(gatewayv1.GatewayReasonProgrammed)
	valid, invalid := 0, 0
	g.Status.Listeners = nil
	for _, l := range m.listeners {
		if l.set != nil {
			continue
		}
		s := gatewayv1.ListenerStatus{Name: l.Name, SupportedKinds: l.kinds, AttachedRoutes: int32(len(l.attached))}
		for _, was := range old.Status.Listeners {
			if was.Name == l.Name {
				s.Conditions = slices.Clone(was.Conditions)
			}
		}
		m.listenerConditions(l, &s.Conditions, g.Generation)
		g.Status.Listeners = append(g.Status.Listeners, s)
		if l.programmed().status {
			valid++
		} else {
			invalid++
		}
	}
	sets := int32(0)
	for _, s := range m.sets {
		if m.some(s.ListenerSet) {
			sets++
			valid++
		}
	}
	if g.Status.AttachedListenerSets = nil; len(m.sets) > 0 {
		g.Status.AttachedListenerSets = &sets
	}
	switch {
	case valid == 0:
		accepted = no(gatewayv1.GatewayReasonListenersNotValid, "no listener is valid")
		programmed = no(gatewayv1.GatewayReasonInvalid, "no listener is valid")
	case invalid > 0:
		accepted = said{true, string(gatewayv1.GatewayReasonListenersNotValid), "some listeners are not valid"}
	}
	if bad != nil {
		programmed = no(gatewayv1.GatewayReasonInvalid, bad.Error())
	}
	if p.programmed != nil {
		programmed = *p.programmed
	}
	if p.accepted != nil {
		accepted, programmed = *p.accepted, no(gatewayv1.GatewayReasonInvalid, p.accepted.message)
	}
	if i := old.Spec.Infrastructure; i != nil && i.ParametersRef != nil {
		accepted = no(gatewayv1.GatewayReasonInvalidParameters, "this class takes no parameters")
	}
	g.Status.Addresses = nil
	kind := gatewayv1.IPAddressType
	for _, a := range p.addresses {
		g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Type: &kind, Value: a.String()})
	}
	c := &g.Status.Conditions
	m.set(c, string(gatewayv1.GatewayConditionAccepted), accepted, g.Generation)
	m.set(c, string(gatewayv1.GatewayConditionProgrammed), programmed, g.Generation)
	if m.resolved != nil {
		m.set(c, string(gatewayv1.GatewayConditionResolvedRefs), *m.resolved, g.Generation)
	} else {
		drop(c, string(gatewayv1.GatewayConditionResolvedRefs))
	}
	if m.insecure() {
		m.set(c, string(gatewayv1.GatewayConditionInsecureFrontendValidationMode), yes(gatewayv1.GatewayReasonConfigurationChanged), g.Generation)
	} else {
		drop(c, string(gatewayv1.GatewayConditionInsecureFrontendValidationMode))
	}
	if equality.Semantic.DeepEqual(g.Status, old.Status) {
		return nil
	}
	return g
}

// insecure tells that clients are let in whose certificates do not verify.
func (m *model) insecure() bool {
	t := m.gateway.Spec.TLS
	if t == nil || t.Frontend == nil {
		return false
	}
	bad := func(v *gatewayv1.FrontendTLSValidation) bool {
		return v != nil && v.Mode == gatewayv1.AllowInsecureFallback
	}
	return bad(t.Frontend.Default.Validation) ||
		slices.ContainsFunc(t.Frontend.PerPort, func(p gatewayv1.TLSPortConfig) bool { return bad(p.TLS.Validation) })
}

func (m *model) listenerConditions(l *listener, into *[]metav1.Condition, generation int64) {
	conflicted := no(gatewayv1.ListenerReasonNoConflicts, "")
	if l.conflict != "" {
		conflicted = said{true, l.conflict, "another listener has this port"}
	}
	m.set(into, string(gatewayv1.ListenerConditionConflicted), conflicted, generation)
	m.set(into, string(gatewayv1.ListenerConditionAccepted), l.accepted, generation)
	m.set(into, string(gatewayv1.ListenerConditionResolvedRefs), l.resolved, generation)
	m.set(into, string(gatewayv1.ListenerConditionProgrammed), l.programmed(), generation)
	if m.overlaps(l) {
		m.set(into, string(gatewayv1.ListenerConditionOverlappingTLSConfig), said{true, string(gatewayv1.ListenerReasonOverlappingHostnames),
			"another listener of the port has a hostname that includes this one's or is included in it"}, generation)
	} else {
		drop(into, string(gatewayv1.ListenerConditionOverlappingTLSConfig))
	}
}

// overlaps tells that a client could reach two HTTPS listeners of one port with one name.
func (m *model) overlaps(l *listener) bool {
	return l.Protocol == gatewayv1.HTTPSProtocolType && slices.ContainsFunc(m.listeners, func(o *listener) bool {
		return o != l && o.Port == l.Port && o.Protocol == l.Protocol && o.conflict == "" && (covers(o.host(), l.host()) || covers(l.host(), o.host()))
	})
}

// some tells whether a listener of a set takes connections.
func (m *model) some(s *gatewayv1.ListenerSet) bool {
	return slices.ContainsFunc(m.listeners, func(l *listener) bool { return l.set == s && l.programmed().status })
}

// setStatus makes the status of a listener set; nil if it is right as it is.
func (m *model) setStatus(in *listenerSet) *gatewayv1.ListenerSet {
	s := in.DeepCopy()
	accepted, programmed := yes(gatewayv1.ListenerSetReasonAccepted), yes(gatewayv1.ListenerSetReasonProgrammed)
	s.Status.Listeners = nil
	for _, l := range m.listeners {
		if l.set != in.ListenerSet {
			continue
		}
		status := gatewayv1.ListenerEntryStatus{Name: l.Name, SupportedKinds: l.kinds, AttachedRoutes: int32(len(l.attached))}
		for _, was := range in.Status.Listeners {
			if was.Name == l.Name {
				status.Conditions = slices.Clone(was.Conditions)
			}
		}
		m.listenerConditions(l, &status.Conditions, s.Generation)
		s.Status.Listeners = append(s.Status.Listeners, status)
		if !l.programmed().status {
			accepted = said{true, string(gatewayv1.ListenerSetReasonListenersNotValid), "some listeners are not valid"}
		}
	}
	switch {
	case !in.allowed:
		accepted = no(gatewayv1.ListenerSetReasonNotAllowed, "the gateway does not allow listener sets of this namespace")
		programmed = accepted
	case !m.some(in.ListenerSet):
		accepted = no(gatewayv1.ListenerSetReasonListenersNotValid, "no listener is valid")
		programmed = accepted
	}
	m.set(&s.Status.Conditions, string(gatewayv1.ListenerSetConditionAccepted), accepted, s.Generation)
	m.set(&s.Status.Conditions, string(gatewayv1.ListenerSetConditionProgrammed), programmed, s.Generation)
	if equality.Semantic.DeepEqual(s.Status, in.Status) {
		return nil
	}
	return s
}
