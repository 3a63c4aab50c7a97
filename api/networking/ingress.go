package networking

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// classAnnotation named the class before spec.ingressClassName did.
const classAnnotation = "kubernetes.io/ingress.class"

func ingressKind() *api.Kind {
	type ingress = *networkingv1.Ingress
	return &api.Kind{
		Group: group, Kind: "Ingress", Resource: "ingresses", Singular: "ingress",
		ShortNames: []string{"ing"},
		Namespaced: true,
		Versions:   declare.V1[networkingv1.Ingress, networkingv1.IngressList](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(i ingress) { i.Status = networkingv1.IngressStatus{} }),
			PrepareUpdate: api.OnUpdate(func(i, old ingress) { i.Status = old.Status }),
			Validate:      api.Checks(ingressCreate),
			ValidateUpdate: api.ChecksUpdate(func(i, old ingress) field.ErrorList {
				return ingressSpec(&i.Spec, leniencyOf(&old.Spec))
			}),
			Warnings: func(o, p api.Object) []string {
				if _, ok := o.GetAnnotations()[classAnnotation]; ok && p == nil {
					return []string{`annotation "kubernetes.io/ingress.class" is deprecated, please use 'spec.ingressClassName' instead`}
				}
				return nil
			},
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(ingress).Spec, p.(ingress).Spec) },
		UnconditionalUpdate: true,
		Columns:             ingressColumns(),
		Indexes: map[string]func(api.Object) []string{
			// By the services and secrets that it names: "Service/ns/name".
			"reference": api.Values(ingressReferences),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate:  api.OnUpdate(func(i, old ingress) { i.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(ingressStatus),
		})},
	}
}

// ingressReferences are the services and secrets that an ingress names.
func ingressReferences(i *networkingv1.Ingress) []string {
	var out []string
	service := func(b *networkingv1.IngressBackend) {
		if b != nil && b.Service != nil {
			out = append(out, "Service/"+i.Namespace+"/"+b.Service.Name)
		}
	}
	service(i.Spec.DefaultBackend)
	for r := range i.Spec.Rules {
		if i.Spec.Rules[r].HTTP == nil {
			continue
		}
		for p := range i.Spec.Rules[r].HTTP.Paths {
			service(&i.Spec.Rules[r].HTTP.Paths[p].Backend)
		}
	}
	for t := range i.Spec.TLS {
		out = append(out, "Secret/"+i.Namespace+"/"+i.Spec.TLS[t].SecretName)
	}
	return out
}

// leniency is what an update may keep because the old object had it, from a
// time when it was not checked.
type leniency struct {
	secretNames   bool // spec.tls[*].secretName
	wildcardRules bool // rules of hosts with a wildcard
}

func leniencyOf(old *networkingv1.IngressSpec) leniency {
	var l leniency
	for i := range old.TLS {
		if name := old.TLS[i].SecretName; name != "" && len(validate.DNSSubdomain(name)) > 0 {
			l.secretNames = true
		}
	}
	for i := range old.Rules {
		if r := &old.Rules[i]; strings.Contains(r.Host, "*") && r.HTTP != nil && len(httpRule(r.HTTP, nil)) > 0 {
			l.wildcardRules = true
		}
	}
	return l
}

func ingressCreate(i *networkingv1.Ingress) field.ErrorList {
	errs := ingressSpec(&i.Spec, leniency{})
	class, ok := i.Annotations[classAnnotation]
	if ok && i.Spec.IngressClassName != nil && class != *i.Spec.IngressClassName {
		errs = append(errs, field.Invalid(field.NewPath("annotations").Child(classAnnotation), class, "must match `ingressClassName` when both are specified"))
	}
	return errs
}

func ingressSpec(s *networkingv1.IngressSpec, l leniency) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		errs = append(errs, field.Invalid(path, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if s.DefaultBackend != nil {
		errs = append(errs, backend(s.DefaultBackend, path.Child("defaultBackend"))...)
	}
	for i := range s.Rules {
		errs = append(errs, ingressRule(&s.Rules[i], path.Child("rules").Index(i), l)...)
	}
	for i := range s.TLS {
		errs = append(errs, tls(&s.TLS[i], path.Child("tls").Index(i), l)...)
	}
	return append(errs, subdomain(s.IngressClassName, path.Child("ingressClassName"))...)
}

func tls(t *networkingv1.IngressTLS, path *field.Path, l leniency) field.ErrorList {
	var errs field.ErrorList
	for i, host := range t.Hosts {
		errs = append(errs, hostName(host, path.Child("hosts").Index(i))...)
	}
	if t.SecretName != "" && !l.secretNames {
		errs = append(errs, validate.DNSSubdomainField(t.SecretName, path.Child("secretName"))...)
	}
	return errs
}

// hostName checks a DNS name whose first part may be a wildcard.
func hostName(host string, path *field.Path) field.ErrorList {
	if strings.Contains(host, "*") {
		return validate.Invalids(path, host, content.IsWildcardDNS1123Subdomain(host))
	}
	return validate.DNSSubdomainField(host, path)
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func ingressRule(r *networkingv1.IngressRule, path *field.Path, l leniency) field.ErrorList {
	var errs field.ErrorList
	if r.Host != "" {
		if isAddress(r.Host) {
			errs = append(errs, field.Invalid(path.Child("host"), r.Host, "must be a DNS name, not an IP address"))
		}
		errs = append(errs, hostName(r.Host, path.Child("host"))...)
	}
	if r.HTTP == nil || strings.Contains(r.Host, "*") && l.wildcardRules {
		return errs
	}
	return append(errs, httpRule(r.HTTP, path.Child("http"))...)
}

func httpRule(r *networkingv1.HTTPIngressRuleValue, path *field.Path) field.ErrorList {
	if len(r.Paths) == 0 {
		return field.ErrorList{field.Required(path.Child("paths"), "")}
	}
	var errs field.ErrorList
	for i := range r.Paths {
		errs = append(errs, httpPath(&r.Paths[i], path.Child("paths").Index(i))...)
	}
	return errs
}

func httpPath(p *networkingv1.HTTPIngressPath, path *field.Path) field.ErrorList {
	if p.PathType == nil {
		return field.ErrorList{field.Required(path.Child("pathType"), "pathType must be specified")}
	}
	var errs field.ErrorList
	invalid := func(format string, args ...any) {
		errs = append(errs, field.Invalid(path.Child("path"), p.Path, fmt.Sprintf(format, args...)))
	}
	switch *p.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !strings.HasPrefix(p.Path, "/") {
			invalid("must be an absolute path")
		}
		for _, part := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, part) {
				invalid("must not contain '%s'", part)
			}
		}
		for _, end := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, end) {
				invalid("cannot end with '%s'", end)
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if p.Path != "" && !strings.HasPrefix(p.Path, "/") {
			invalid("must be an absolute path")
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("pathType"), *p.PathType, []networkingv1.PathType{
			networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix,
		}))
	}
	return append(errs, backend(&p.Backend, path.Child("backend"))...)
}

func backend(b *networkingv1.IngressBackend, path *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(path, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		return localReference(b.Resource, path.Child("resource"))
	case b.Service == nil:
		return field.ErrorList{field.Invalid(path, "", "resource or service backend is required")}
	}
	var errs field.ErrorList
	if name := b.Service.Name; name == "" {
		errs = append(errs, field.Required(path.Child("service", "name"), ""))
	} else {
		errs = append(errs, validate.DNSLabelField(name, path.Child("service", "name"))...)
	}
	port := path.Child("service", "port")
	switch p := b.Service.Port; {
	case p.Name != "" && p.Number != 0:
		errs = append(errs, field.Invalid(path, "", "cannot set both port name & port number"))
	case p.Name != "":
		errs = append(errs, validate.Invalids(port.Child("name"), p.Name, validate.PortName(p.Name))...)
	case p.Number != 0:
		errs = append(errs, validate.Port(p.Number, port.Child("number"))...)
	default:
		errs = append(errs, field.Required(path, "port name or number is required"))
	}
	return errs
}

func localReference(r *corev1.TypedLocalObjectReference, path *field.Path) field.ErrorList {
	errs := subdomain(r.APIGroup, path.Child("apiGroup"))
	errs = append(errs, segment(r.Kind, path.Child("kind"))...)
	return append(errs, segment(r.Name, path.Child("name"))...)
}

func ingressStatus(i, old *networkingv1.Ingress) field.ErrorList {
	var known []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		known = append(known, in.IP)
	}
	var errs field.ErrorList
	path := field.NewPath("status", "loadBalancer", "ingress")
	for k, in := range i.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			errs = append(errs, validate.IP(in.IP, path.Index(k).Child("ip"), known...)...)
		}
		if in.Hostname != "" {
			p := path.Index(k).Child("hostname")
			errs = append(errs, validate.DNSSubdomainField(in.Hostname, p)...)
			if isAddress(in.Hostname) {
				errs = append(errs, field.Invalid(p, in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}

func ingressColumns() []api.Column {
	type ingress = *networkingv1.Ingress
	return []api.Column{
		declare.Name(),
		declare.Text("Class", "The name of the IngressClass resource that should be used for additional configuration", func(i ingress) any {
			if i.Spec.IngressClassName == nil {
				return declare.None
			}
			return *i.Spec.IngressClassName
		}),
		declare.Text("Hosts", "Hosts that incoming requests are matched against before the ingress rule", func(i ingress) any { return hosts(i.Spec.Rules) }),
		declare.Text("Address", "Address is a list containing ingress points for the load-balancer", func(i ingress) any {
			return addresses(&i.Status.LoadBalancer)
		}),
		declare.Text("Ports", "Ports of TLS configurations that open", func(i ingress) any {
			if len(i.Spec.TLS) > 0 {
				return "80, 443"
			}
			return "80"
		}),
		declare.Age(),
	}
}

func hosts(rules []networkingv1.IngressRule) string {
	var named []string
	for i := range rules {
		if h := rules[i].Host; h != "" {
			named = append(named, h)
		}
	}
	if len(named) == 0 {
		return "*"
	}
	return declare.Some(named, 3)
}

func addresses(s *networkingv1.IngressLoadBalancerStatus) string {
	var all []string
	for _, in := range s.Ingress {
		at := in.IP
		if at == "" {
			at = in.Hostname
		}
		if at != "" && !slices.Contains(all, at) {
			all = append(all, at)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
