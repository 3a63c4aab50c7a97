package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

func namespaceKind() *api.Kind {
	return &api.Kind{
		Kind: "Namespace", Resource: "namespaces", Singular: "namespace", ShortNames: []string{"ns"},
		Versions: v1[corev1.Namespace, corev1.NamespaceList](),
		Default: api.On(func(n *corev1.Namespace) {
			labelNamespace(n)
			if n.Status.Phase == "" {
				n.Status.Phase = corev1.NamespaceActive
			}
		}),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(n *corev1.Namespace) {
				labelNamespace(n) // the name may have been generated since
				n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
				if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
					n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
				}
			}),
			PrepareUpdate: api.OnUpdate(func(n, old *corev1.Namespace) { n.Spec, n.Status = old.Spec, old.Status }),
			Validate: api.Checks(func(n *corev1.Namespace) field.ErrorList {
				r := &report{}
				for _, f := range n.Spec.Finalizers {
					finalizer(r, f, specPath.Child("finalizers"))
				}
				return r.errs
			}),
		},
		UnconditionalUpdate: true,
		ValidateName:        validate.Label,
		Verbs:               []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		Columns: []api.Column{
			nameColumn(),
			column("Status", "string", "The status of the namespace", 0, func(n *corev1.Namespace) any { return string(n.Status.Phase) }),
			ageColumn(),
		},
		Fields: map[string]func(api.Object) string{
			"name":         objectName,
			"status.phase": api.Field(func(n *corev1.Namespace) string { return string(n.Status.Phase) }),
		},
		Subresources: []api.Subresource{
			{Name: "finalize", Verbs: []string{"update"}, Strategy: &api.Strategy{
				PrepareUpdate: api.OnUpdate(func(n, old *corev1.Namespace) { n.Status = old.Status }),
				ValidateUpdate: api.ChecksUpdate(func(n, _ *corev1.Namespace) field.ErrorList {
					r := &report{}
					for i, f := range n.Spec.Finalizers {
						finalizer(r, f, specPath.Child("finalizers").Index(i))
					}
					return r.errs
				}),
			}},
			view("status", api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(n, old *corev1.Namespace) { n.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(namespaceStatusUpdate),
			}),
		},
	}
}

// labelNamespace gives a namespace its name as a label, for selectors (KEP-2161).
func labelNamespace(n *corev1.Namespace) {
	if n.Name == "" || n.Labels[corev1.LabelMetadataName] == n.Name {
		return
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

func finalizer(r *report, f corev1.FinalizerName, p *field.Path) {
	r.add(validation.ValidateFinalizerName(string(f), p))
	r.add(validate.Finalizer(string(f), p))
}

func namespaceStatusUpdate(n, _ *corev1.Namespace) field.ErrorList {
	p := statusPath.Child("Phase") // upstream's spelling
	switch {
	case n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceActive:
		return field.ErrorList{field.Invalid(p, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")}
	case !n.DeletionTimestamp.IsZero() && n.Status.Phase != corev1.NamespaceTerminating:
		return field.ErrorList{field.Invalid(p, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")}
	}
	return nil
}
