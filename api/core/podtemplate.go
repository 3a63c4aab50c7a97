package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func podTemplateKind() *api.Kind {
	check := func(t *corev1.PodTemplate) field.ErrorList {
		return ValidatePodTemplateSpec(&t.Template, field.NewPath("template"))
	}
	type T = *corev1.PodTemplate
	columns := append([]api.Column{nameColumn()}, templateColumns(0, func(t T) *corev1.PodSpec { return &t.Template.Spec })...)
	return &api.Kind{
		Kind: "PodTemplate", Resource: "podtemplates", Singular: "podtemplate", Namespaced: true,
		Versions: v1[corev1.PodTemplate, corev1.PodTemplateList](),
		Default:  api.On(func(t T) { DefaultPodTemplate(&t.Template) }),
		Strategy: api.Strategy{
			Validate:       api.Checks(check),
			ValidateUpdate: api.ChecksUpdate(func(t, _ T) field.ErrorList { return check(t) }),
			Warnings: func(obj, old api.Object) []string {
				t := obj.(T)
				if old != nil && equality.Semantic.DeepEqual(&t.Template, &old.(T).Template) {
					return nil
				}
				return PodTemplateWarnings(&t.Template, field.NewPath("template"))
			},
		},
		Desired: func(obj, old api.Object) bool {
			return !equality.Semantic.DeepEqual(&obj.(T).Template, &old.(T).Template)
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Subdomain,
		Columns: append(columns, column("Pod Labels", "string", "The labels for the pod template.", 0,
			func(t T) any { return formatSet(t.Template.Labels) })),
	}
}
