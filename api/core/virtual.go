package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// bindingKind describes bindings, which are never stored: creating one puts a pod on a node.
func bindingKind() *api.Kind {
	return &api.Kind{
		Kind: "Binding", Resource: "bindings", Singular: "binding", Namespaced: true,
		Versions: []api.Version{{
			Name: "v1", Hub: true,
			New:     func() runtime.Object { return &corev1.Binding{} },
			NewList: func() runtime.Object { return nil },
		}},
		Strategy:     api.Strategy{Validate: api.Checks(ValidatePodBinding)},
		ValidateName: validate.Subdomain,
		Verbs:        []string{"create"},
		Virtual:      true,
	}
}

// ValidatePodBinding checks what a scheduler asks for.
func ValidatePodBinding(b *corev1.Binding) field.ErrorList {
	r := &report{}
	p := field.NewPath("target")
	if k := b.Target.Kind; k != "" && k != "Node" {
		r.addOne(field.NotSupported(p.Child("kind"), k, []string{"Node", "<empty>"}))
	}
	r.need(b.Target.Name, p, "name")
	return r.errs
}

// componentStatusKind describes the (deprecated) health of the control plane's parts, which the
// server makes up when asked.
func componentStatusKind() *api.Kind {
	healthy := func(pick func(*corev1.ComponentCondition) string) func(*corev1.ComponentStatus) any {
		return func(c *corev1.ComponentStatus) any {
			for i := range c.Conditions {
				if c.Conditions[i].Type == corev1.ComponentHealthy {
					return pick(&c.Conditions[i])
				}
			}
			return pick(&corev1.ComponentCondition{Status: corev1.ConditionUnknown})
		}
	}
	versions := v1[corev1.ComponentStatus, corev1.ComponentStatusList]()
	versions[0].Deprecated = "v1 ComponentStatus is deprecated in v1.19+"
	return &api.Kind{
		Kind: "ComponentStatus", Resource: "componentstatuses", Singular: "componentstatus", ShortNames: []string{"cs"},
		Versions: versions,
		Verbs:    []string{"get", "list"},
		Virtual:  true,
		Columns: []api.Column{
			nameColumn(),
			column("Status", "string", "Status of the component conditions", 0, healthy(func(c *corev1.ComponentCondition) string {
				switch c.Status {
				case corev1.ConditionTrue:
					return "Healthy"
				case corev1.ConditionFalse:
					return "Unhealthy"
				}
				return "Unknown"
			})),
			column("Message", "string", "Message of the component conditions", 0, healthy(func(c *corev1.ComponentCondition) string { return c.Message })),
			column("Error", "string", "Error of the component conditions", 0, healthy(func(c *corev1.ComponentCondition) string { return c.Error })),
		},
		Fields: map[string]func(api.Object) string{"name": objectName},
	}
}

// ValidatePodLogOptions checks how much of a log is asked for.
func ValidatePodLogOptions(o *corev1.PodLogOptions) field.ErrorList {
	r := &report{}
	if o.TailLines != nil && *o.TailLines < 0 {
		r.invalid(field.NewPath("tailLines"), *o.TailLines, validate.NegativeMessage)
	}
	if o.LimitBytes != nil && *o.LimitBytes < 1 {
		r.invalid(field.NewPath("limitBytes"), *o.LimitBytes, "must be greater than 0")
	}
	switch {
	case o.SinceSeconds != nil && o.SinceTime != nil:
		r.forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified")
	case o.SinceSeconds != nil && *o.SinceSeconds < 1:
		r.invalid(field.NewPath("sinceSeconds"), *o.SinceSeconds, "must be greater than 0")
	}
	if o.Stream != nil {
		r.forbidden(field.NewPath("stream"), "may not be specified")
	}
	return r.errs
}
