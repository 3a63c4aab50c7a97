package networking

import (
	networkingv1 "k8s.io/api/networking/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const maxController = 250 // bytes of spec.controller

func ingressClassKind() *api.Kind {
	type class = *networkingv1.IngressClass
	return &api.Kind{
		Group: group, Kind: "IngressClass", Resource: "ingressclasses", Singular: "ingressclass",
		Versions: declare.V1[networkingv1.IngressClass, networkingv1.IngressClassList](),
		Default: api.On(func(c class) {
			if p := c.Spec.Parameters; p != nil && p.Scope == nil {
				scope := networkingv1.IngressClassParametersReferenceScopeCluster
				p.Scope = &scope
			}
		}),
		Strategy: api.Strategy{
			Validate: api.Checks(func(c class) field.ErrorList { return classSpec(&c.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(c, old class) field.ErrorList {
				errs := validate.Immutable(c.Spec.Controller, old.Spec.Controller, field.NewPath("spec", "controller"))
				return append(errs, classSpec(&c.Spec)...)
			}),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(class).Spec, p.(class).Spec) },
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Controller", "Controller that is responsible for handling this class", func(c class) any { return c.Spec.Controller }),
			declare.Text("Parameters", "A reference to a resource with additional parameters", func(c class) any {
				p := c.Spec.Parameters
				if p == nil {
					return declare.None
				}
				kind := p.Kind
				if p.APIGroup != nil {
					kind += "." + *p.APIGroup
				}
				return kind + "/" + p.Name
			}),
			declare.Age(),
		},
	}
}

func classSpec(s *networkingv1.IngressClassSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if s.Controller == "" {
		errs = append(errs, field.Required(path.Child("controller"), ""))
	} else {
		if len(s.Controller) > maxController {
			errs = append(errs, field.TooLong(path.Child("controller"), "", maxController))
		}
		errs = append(errs, content.IsDomainPrefixedPath(path.Child("controller"), s.Controller)...)
	}
	if s.Parameters != nil {
		errs = append(errs, classParameters(s.Parameters, path.Child("parameters"))...)
	}
	return errs
}

func classParameters(p *networkingv1.IngressClassParametersReference, path *field.Path) field.ErrorList {
	errs := subdomain(p.APIGroup, path.Child("apiGroup"))
	errs = append(errs, segment(p.Kind, path.Child("kind"))...)
	errs = append(errs, segment(p.Name, path.Child("name"))...)
	if p.Scope == nil {
		return append(errs, field.Required(path.Child("scope"), ""))
	}
	switch *p.Scope {
	case networkingv1.IngressClassParametersReferenceScopeNamespace:
		if p.Namespace == nil {
			errs = append(errs, field.Required(path.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
		} else {
			errs = append(errs, validate.DNSLabelField(*p.Namespace, path.Child("namespace"))...)
		}
	case networkingv1.IngressClassParametersReferenceScopeCluster:
		if p.Namespace != nil {
			errs = append(errs, field.Forbidden(path.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("scope"), *p.Scope, []string{
			networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace,
		}))
	}
	return errs
}
