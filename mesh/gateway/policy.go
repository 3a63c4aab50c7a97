package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	gatewayapi "coracle.dev/coracle/api/gateway"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/mesh/table"
)

// policy is the one that says how connections to a port of a service are secured, nil for none: one that names the port
// goes before one that does not, and then the older one.
func (v view) policy(svc *corev1.Service, port string) *gatewayv1.BackendTLSPolicy {
	var named, whole *gatewayv1.BackendTLSPolicy
	for _, p := range v.policies(svc.Namespace, svc.Name) {
		for i := range p.Spec.TargetRefs {
			t := &p.Spec.TargetRefs[i]
			if t.Group != "" || t.Kind != "Service" || string(t.Name) != svc.Name {
				continue
			}
			switch section := string(value(t.SectionName, "")); {
			case section == "" && whole == nil:
				whole = p
			case section != "" && section == port && named == nil:
				named = p
			}
		}
	}
	if named != nil {
		return named
	}
	return whole
}

// policies are those that name a service, the oldest first.
func (v view) policies(namespace, service string) []*gatewayv1.BackendTLSPolicy {
	out := slices.Collect(client.BackendTLSPolicies.Index(v, gatewayapi.ByReference, gatewayapi.Reference("Service", namespace, service)))
	slices.SortFunc(out, func(a, b *gatewayv1.BackendTLSPolicy) int { return older(a, b) })
	return slices.Compact(out)
}

// securing is what became of a policy.
type securing struct {
	tls *table.BackendTLS // nil if it cannot be done
	// content stands for all that tls is made of.
	content            string
	accepted, resolved said
}

// secure works out what a policy asks for.
func (v view) secure(p *gatewayv1.BackendTLSPolicy) securing {
	out := securing{accepted: yes(gatewayv1.PolicyReasonAccepted), resolved: yes(gatewayv1.BackendTLSPolicyReasonResolvedRefs)}
	in := &p.Spec.Validation
	config := &tls.Config{ServerName: string(in.Hostname), MinVersion: tls.VersionTLS12}
	content := []string{specOf(p)}
	if len(in.CACertificateRefs) > 0 {
		pool, good := x509.NewCertPool(), false
		for i := range in.CACertificateRefs {
			r := &in.CACertificateRefs[i]
			wrong := v.authority(pool, reference{"BackendTLSPolicy", p.Namespace},
				&gatewayv1.ObjectReference{Group: r.Group, Kind: r.Kind, Name: r.Name})
			switch {
			case wrong == nil:
				good = true
				c, _ := client.ConfigMaps.Get(v, p.Namespace, string(r.Name))
				content = append(content, string(c.UID), c.ResourceVersion)
			case wrong.reason == string(gatewayv1.ListenerReasonInvalidCACertificateKind):
				out.resolved = no(gatewayv1.BackendTLSPolicyReasonInvalidKind, wrong.message)
			default:
				out.resolved = no(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, wrong.message)
			}
		}
		if !good {
			out.accepted = no(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate, "none of the certificates of authorities can be read")
			return out
		}
		config.RootCAs = pool
	}
	out.tls = &table.BackendTLS{Config: config}
	for _, n := range in.SubjectAltNames {
		if n.Type == gatewayv1.URISubjectAltNameType {
			out.tls.Names = append(out.tls.Names, string(n.URI))
		} else {
			out.tls.Names = append(out.tls.Names, string(n.Hostname))
		}
	}
	out.content = strings.Join(content, " ")
	return out
}

// policyStatus makes the status of a policy: what it means to each gateway that leads to its services. It returns nil if it is
// right as it is.
func (v view) policyStatus(p *gatewayv1.BackendTLSPolicy) *gatewayv1.BackendTLSPolicy {
	const most = 16 // ancestors in a status
	out := p.DeepCopy()
	out.Status.Ancestors = []gatewayv1.PolicyAncestorStatus{}
	for _, a := range p.Status.Ancestors {
		if a.ControllerName != Controller {
			out.Status.Ancestors = append(out.Status.Ancestors, a)
		}
	}
	s := v.secure(p)
	if s.accepted.status && !v.prevails(p) {
		s.accepted = no(gatewayv1.PolicyReasonConflicted, "an older policy has the same targets")
	}
	for _, g := range v.ancestors(p) {
		if len(out.Status.Ancestors) == most {
			break
		}
		namespace := gatewayv1.Namespace(g.Namespace)
		kind, group := gatewayv1.Kind("Gateway"), gatewayv1.Group(group)
		a := gatewayv1.PolicyAncestorStatus{ControllerName: Controller,
			AncestorRef: gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &namespace, Name: gatewayv1.ObjectName(g.Name)}}
		for _, was := range p.Status.Ancestors {
			if was.ControllerName == Controller && equality.Semantic.DeepEqual(was.AncestorRef, a.AncestorRef) {
				a.Conditions = slices.Clone(was.Conditions)
			}
		}
		v.set(&a.Conditions, string(gatewayv1.PolicyConditionAccepted), s.accepted, p.Generation)
		v.set(&a.Conditions, string(gatewayv1.BackendTLSPolicyConditionResolvedRefs), s.resolved, p.Generation)
		out.Status.Ancestors = append(out.Status.Ancestors, a)
	}
	if equality.Semantic.DeepEqual(out.Status, p.Status) {
		return nil
	}
	return out
}

// prevails tells whether a policy decides for at least one of its targets.
func (v view) prevails(p *gatewayv1.BackendTLSPolicy) bool {
	for i := range p.Spec.TargetRefs {
		t := &p.Spec.TargetRefs[i]
		if t.Group != "" || t.Kind != "Service" {
			continue
		}
		first := true
		for _, o := range v.policies(p.Namespace, string(t.Name)) {
			if o.UID == p.UID {
				break
			}
			first = first && !slices.ContainsFunc(o.Spec.TargetRefs, func(u gatewayv1.LocalPolicyTargetReferenceWithSectionName) bool {
				return u.Group == t.Group && u.Kind == t.Kind && u.Name == t.Name && value(u.SectionName, "") == value(t.SectionName, "")
			})
		}
		if first {
			return true
		}
	}
	return false
}

// ancestors are the gateways, of ours, with routes to the services of a policy.
func (v view) ancestors(p *gatewayv1.BackendTLSPolicy) []*gatewayv1.Gateway {
	var out []*gatewayv1.Gateway
	for i := range p.Spec.TargetRefs {
		for _, k := range kinds[:2] {
			for e := range v.Index(resources[k], gatewayapi.ByReference, gatewayapi.Reference("Service", p.Namespace, string(p.Spec.TargetRefs[i].Name))) {
				for _, g := range gatewaysOf(v, e.Object) {
					if !slices.Contains(out, g) {
						out = append(out, g)
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b *gatewayv1.Gateway) int { return older(a, b) })
	return out
}

// specOf names a state of a policy's specification.
func specOf(p *gatewayv1.BackendTLSPolicy) string { return fmt.Sprintf("%s/%d", p.UID, p.Generation) }
