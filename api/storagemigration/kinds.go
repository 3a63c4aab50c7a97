// Package storagemigration holds the Kind of the API group storagemigration.k8s.io: orders to
// rewrite the stored objects of a resource.
package storagemigration

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{migrationKind()}
}

func migrationKind() *api.Kind {
	type migration = *storagemigrationv1.StorageVersionMigration
	return &api.Kind{
		Group: storagemigrationv1.GroupName, Kind: "StorageVersionMigration", Resource: "storageversionmigrations", Singular: "storageversionmigration",
		Versions: declare.V1[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(m migration) { m.Status = storagemigrationv1.StorageVersionMigrationStatus{} }),
			PrepareUpdate: api.OnUpdate(func(m, old migration) { m.Status = old.Status }),
			Validate: api.Checks(func(m migration) field.ErrorList {
				if m.Spec.Resource.Resource == "" {
					return field.ErrorList{field.Required(field.NewPath("spec", "resource", "resource"), "resource is required")}
				}
				return nil
			}),
			ValidateUpdate: api.ChecksUpdate(func(m, old migration) field.ErrorList {
				return validate.Immutable(m.Spec, old.Spec, field.NewPath("spec"))
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("GVR", "The resource that is being migrated", func(m migration) any {
				return schemaText(m.Spec.Resource)
			}),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(m, old migration) {
				m.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&m.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(m, old migration) field.ErrorList { return status(&m.Status, &old.Status) }),
		})},
	}
}

func schemaText(r metav1.GroupResource) string {
	if r.Group == "" {
		return r.Resource
	}
	return r.Resource + "." + r.Group
}

// status checks that a migration ends in one way, and stays so.
func status(s, old *storagemigrationv1.StorageVersionMigrationStatus) field.ErrorList {
	path := field.NewPath("status", "conditions")
	errs := validate.Conditions(s.Conditions, path)
	is := func(list []metav1.Condition, t storagemigrationv1.MigrationConditionType) bool {
		for _, c := range list {
			if c.Type == string(t) {
				return c.Status == metav1.ConditionTrue
			}
		}
		return false
	}
	if is(s.Conditions, storagemigrationv1.MigrationSucceeded) && is(s.Conditions, storagemigrationv1.MigrationFailed) {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "Both success and failed conditions cannot be true at the same time"))
	}
	if is(s.Conditions, storagemigrationv1.MigrationRunning) &&
		(is(s.Conditions, storagemigrationv1.MigrationSucceeded) || is(s.Conditions, storagemigrationv1.MigrationFailed)) {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "Running condition cannot be true when success or failed conditions are true"))
	}
	for _, t := range []storagemigrationv1.MigrationConditionType{storagemigrationv1.MigrationSucceeded, storagemigrationv1.MigrationFailed} {
		if is(old.Conditions, t) && !is(s.Conditions, t) {
			errs = append(errs, field.Invalid(path, field.OmitValueType{}, string(t)+" condition cannot be set to false once it is true"))
		}
	}
	return errs
}
