// Package policy holds the Kind of the API group policy: pod disruption budgets.
//
// Eviction, the group's other type, is a subresource of pods: its Kind is declared
// there, and the server answers it.
package policy

import (
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/percent"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{budgetKind()}
}

func budgetKind() *api.Kind {
	type budget = *policyv1.PodDisruptionBudget
	return &api.Kind{
		Group: policyv1.GroupName, Kind: "PodDisruptionBudget", Resource: "poddisruptionbudgets", Singular: "poddisruptionbudget",
		ShortNames: []string{"pdb"},
		Namespaced: true,
		Versions:   declare.V1[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(b budget) { b.Status = policyv1.PodDisruptionBudgetStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(b, old budget) { b.Status = old.Status }),
			Validate:       api.Checks(func(b budget) field.ErrorList { return spec(&b.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(b, _ budget) field.ErrorList { return spec(&b.Spec) }),
		},
		Desired: func(o, p api.Object) bool {
			return !equality.Semantic.DeepEqual(o.(budget).Spec, p.(budget).Spec)
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Min Available", "The minimum number of pods that must be available.", func(b budget) any { return orNone(b.Spec.MinAvailable) }),
			declare.Text("Max Unavailable", "The maximum number of pods that may be unavailable.", func(b budget) any { return orNone(b.Spec.MaxUnavailable) }),
			declare.Integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time.", func(b budget) int64 { return int64(b.Status.DisruptionsAllowed) }),
			declare.Age(),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate:  api.OnUpdate(func(b, old budget) { b.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(func(b, _ budget) field.ErrorList { return status(&b.Status) }),
		})},
	}
}

func orNone(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}

func spec(s *policyv1.PodDisruptionBudgetSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(path, s, "minAvailable and maxUnavailable cannot be both set"))
	}
	for _, f := range []struct {
		name  string
		value *intstr.IntOrString
	}{{"minAvailable", s.MinAvailable}, {"maxUnavailable", s.MaxUnavailable}} {
		errs = append(errs, percent.Check(f.value, path.Child(f.name))...)
		errs = append(errs, percent.AtMost100(f.value, path.Child(f.name))...)
	}
	errs = append(errs, validate.LabelSelector(s.Selector, path.Child("selector"))...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, validate.OneOf(*p, path.Child("unhealthyPodEvictionPolicy"), policyv1.AlwaysAllow, policyv1.IfHealthyBudget)...)
	}
	return errs
}

func status(s *policyv1.PodDisruptionBudgetStatus) field.ErrorList {
	path := field.NewPath("status")
	errs := validate.Conditions(s.Conditions, path.Child("conditions"))
	errs = append(errs, validate.NonNegative(s.DisruptionsAllowed, path.Child("disruptionsAllowed"))...)
	errs = append(errs, validate.NonNegative(s.CurrentHealthy, path.Child("currentHealthy"))...)
	errs = append(errs, validate.NonNegative(s.DesiredHealthy, path.Child("desiredHealthy"))...)
	return append(errs, validate.NonNegative(s.ExpectedPods, path.Child("expectedPods"))...)
}
