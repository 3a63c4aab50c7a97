package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func replicaSetKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "ReplicaSet", Resource: "replicasets", Singular: "replicaset",
		ShortNames: []string{"rs"},
		Categories: []string{"all"},
		Namespaced: true,
		Indexes:    map[string]func(api.Object) []string{api.OrphanIndex: api.Orphans},
		Versions:   declare.V1[appsv1.ReplicaSet, appsv1.ReplicaSetList](),
		Default: api.On(func(r *appsv1.ReplicaSet) {
			core.DefaultPodTemplate(&r.Spec.Template)
			or(&r.Spec.Replicas, 1)
		}),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(r *appsv1.ReplicaSet) { r.Status = appsv1.ReplicaSetStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(r, old *appsv1.ReplicaSet) { r.Status = old.Status }),
			Validate:       api.Checks(func(r *appsv1.ReplicaSet) field.ErrorList { return replicaSetSpec(&r.Spec) }),
			ValidateUpdate: api.ChecksUpdate(replicaSetUpdate),
			Warnings: func(o, p api.Object) []string {
				r := o.(*appsv1.ReplicaSet)
				if p == nil {
					return append(podNameWarning(r.Name), templateWarnings(&r.Spec.Template)...)
				}
				if old := p.(*appsv1.ReplicaSet); changed(r.Spec, old.Spec) {
					return templateWarnings(&r.Spec.Template)
				}
				return nil
			},
		},
		Desired: func(o, p api.Object) bool {
			return changed(o.(*appsv1.ReplicaSet).Spec, p.(*appsv1.ReplicaSet).Spec)
		},
		UnconditionalUpdate: true,
		Columns:             replicaSetColumns(),
		Fields: map[string]func(api.Object) string{
			"status.replicas": api.Field(func(r *appsv1.ReplicaSet) string { return strconv.Itoa(int(r.Status.Replicas)) }),
		},
		Subresources: []api.Subresource{
			declare.Scale(),
			declare.Status(api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(r, old *appsv1.ReplicaSet) { r.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(replicaSetStatusUpdate),
			}),
		},
	}
}

func replicaSetSpec(s *appsv1.ReplicaSetSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := validate.NonNegative(declare.Replicas(s.Replicas), path.Child("replicas"))
	errs = append(errs, validate.NonNegative(s.MinReadySeconds, path.Child("minReadySeconds"))...)
	// Upstream says "deployment" here too.
	errs = append(errs, selectorOf(s.Selector, path.Child("selector"), "empty selector is invalid for deployment")...)
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		return append(errs, field.Invalid(path.Child("selector"), s.Selector, "invalid label selector"))
	}
	return append(errs, replicatedTemplate(s.Selector, &s.Template, declare.Replicas(s.Replicas), path.Child("template"))...)
}

func replicaSetUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	return append(replicaSetSpec(&r.Spec), validate.Immutable(r.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
}

func replicaSetStatusUpdate(r, _ *appsv1.ReplicaSet) field.ErrorList {
	path := field.NewPath("status")
	s := &r.Status
	errs := nonNegative(path,
		count{"replicas", int64(s.Replicas)},
		count{"fullyLabeledReplicas", int64(s.FullyLabeledReplicas)},
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)},
		count{"observedGeneration", s.ObservedGeneration},
		count{"terminatingReplicas", int64(declare.Replicas(s.TerminatingReplicas))})
	errs = append(errs, notAbove(path, s.Replicas, "cannot be greater than status.replicas",
		count{"fullyLabeledReplicas", int64(s.FullyLabeledReplicas)},
		count{"readyReplicas", int64(s.ReadyReplicas)},
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
	return append(errs, notAbove(path, s.ReadyReplicas, "cannot be greater than readyReplicas",
		count{"availableReplicas", int64(s.AvailableReplicas)})...)
}

func replicaSetColumns() []api.Column {
	spec, status := appsv1.ReplicaSetSpec{}.SwaggerDoc(), appsv1.ReplicaSetStatus{}.SwaggerDoc()
	return append([]api.Column{
		declare.Name(),
		declare.Integer("Desired", spec["replicas"], func(r *appsv1.ReplicaSet) int64 { return int64(declare.Replicas(r.Spec.Replicas)) }),
		declare.Integer("Current", status["replicas"], func(r *appsv1.ReplicaSet) int64 { return int64(r.Status.Replicas) }),
		declare.Integer("Ready", status["readyReplicas"], func(r *appsv1.ReplicaSet) int64 { return int64(r.Status.ReadyReplicas) }),
		declare.Age(),
	}, declare.Containers(
		func(r *appsv1.ReplicaSet) []corev1.Container { return r.Spec.Template.Spec.Containers },
		func(r *appsv1.ReplicaSet) *metav1.LabelSelector { return r.Spec.Selector })...)
}
