// Package storagemigration holds the Kind of the API group storagemigration.k8s.io: orders to
// rewrite the stored objects of a resource.
package storagemigration

import (
	"strings"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
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
			Validate:      api.Checks(func(m migration) field.ErrorList { return resource(m.Spec.Resource) }),
			ValidateUpdate: api.ChecksUpdate(func(m, old migration) field.ErrorList {
				return append(resource(m.Spec.Resource), validate.Immutable(m.Spec, old.Spec, field.NewPath("spec"))...)
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

func resource(r metav1.GroupResource) field.ErrorList {
	path := field.NewPath("spec", "resource")
	var errs field.ErrorList
	if p := path.Child("resource"); r.Resource == "" {
		errs = append(errs, field.Required(p, "resource is required to be set"))
	} else if messages := validate.Label1035(r.Resource, false); len(messages) > 0 {
		errs = append(errs, field.Invalid(p, r.Resource, strings.Join(messages, ",")))
	}
	if messages := validate.DNSSubdomain(r.Group); r.Group != "" && len(messages) > 0 {
		errs = append(errs, field.Invalid(path.Child("group"), r.Group, strings.Join(messages, ",")))
	}
	return errs
}

// status checks that a migration ends in one way, and stays so.
func status(s, old *storagemigrationv1.StorageVersionMigrationStatus) field.ErrorList {
	path := field.NewPath("status", "conditions")
	at := field.NewPath("status", "resourceVersion")
	var errs field.ErrorList
	if s.ResourceVersion != "" { // else the migration has not begun
		if _, err := resourceversion.CompareResourceVersion(s.ResourceVersion, s.ResourceVersion); err != nil {
			errs = append(errs, field.Invalid(at, s.ResourceVersion, err.Error()))
		}
	}
	errs = append(errs, validate.Conditions(s.Conditions, path)...)
	if old.ResourceVersion != "" && old.ResourceVersion != s.ResourceVersion {
		errs = append(errs, field.Invalid(at, s.ResourceVersion, validate.ImmutableMessage))
	}
	refuse := func(when bool, message string) {
		if when {
			errs = append(errs, field.Invalid(path, s.Conditions, message))
		}
	}
	is := func(s *storagemigrationv1.StorageVersionMigrationStatus, t storagemigrationv1.MigrationConditionType) bool {
		return meta.IsStatusConditionTrue(s.Conditions, string(t))
	}
	running := is(s, storagemigrationv1.MigrationRunning)
	succeeded, failed := is(s, storagemigrationv1.MigrationSucceeded), is(s, storagemigrationv1.MigrationFailed)
	refuse(succeeded && failed, "Both success and failed conditions cannot be true at the same time")
	refuse(succeeded && running, "Running condition cannot be true when success condition is true")
	refuse(failed && running, "Running condition cannot be true when failed condition is true")
	refuse(is(old, storagemigrationv1.MigrationSucceeded) && !succeeded, "Success condition cannot be set to false once it is true")
	refuse(is(old, storagemigrationv1.MigrationFailed) && !failed, "Failed condition cannot be set to false once it is true")
	return errs
}
