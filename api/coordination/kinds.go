// Package coordination holds the Kind of the API group coordination.k8s.io: leases,
// by which nodes and elected leaders tell that they are alive.
package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{leaseKind()}
}

func leaseKind() *api.Kind {
	type lease = *coordinationv1.Lease
	return &api.Kind{
		Group: coordinationv1.GroupName, Kind: "Lease", Resource: "leases", Singular: "lease",
		Namespaced: true,
		Versions:   declare.V1[coordinationv1.Lease, coordinationv1.LeaseList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(l lease) field.ErrorList { return spec(&l.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(l, _ lease) field.ErrorList { return spec(&l.Spec) }),
		},
		CreateOnUpdate: true,
		Relaxed:        true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Holder", coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"], func(l lease) any {
				if l.Spec.HolderIdentity == nil {
					return ""
				}
				return *l.Spec.HolderIdentity
			}),
			declare.Age(),
		},
	}
}

func spec(s *coordinationv1.LeaseSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if n := s.LeaseDurationSeconds; n != nil && *n <= 0 {
		errs = append(errs, field.Invalid(path.Child("leaseDurationSeconds"), *n, "must be greater than 0"))
	}
	if n := s.LeaseTransitions; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(path.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
	}
	if p := s.PreferredHolder; p != nil && *p != "" && (s.Strategy == nil || *s.Strategy == "") {
		errs = append(errs, field.Forbidden(path.Child("preferredHolder"), "may only be specified if `strategy` is defined"))
	}
	return errs
}
