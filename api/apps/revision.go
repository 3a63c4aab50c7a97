package apps

import (
	"encoding/json"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

func controllerRevisionKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "ControllerRevision", Resource: "controllerrevisions", Singular: "controllerrevision",
		Namespaced: true,
		Versions:   declare.V1[appsv1.ControllerRevision, appsv1.ControllerRevisionList](),
		Strategy: api.Strategy{
			Validate: api.Checks(controllerRevision),
			ValidateUpdate: api.ChecksUpdate(func(r, old *appsv1.ControllerRevision) field.ErrorList {
				return append(controllerRevision(r), validate.Immutable(r.Data, old.Data, field.NewPath("data"))...)
			}),
		},
		UnconditionalUpdate: true,
		Indexes:             map[string]func(api.Object) []string{api.OrphanIndex: api.Orphans},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Controller", "Controller of the object", func(r *appsv1.ControllerRevision) any { return controllerOf(r) }),
			declare.Text("Revision", appsv1.ControllerRevision{}.SwaggerDoc()["revision"], func(r *appsv1.ControllerRevision) any { return r.Revision }),
			declare.Age(),
		},
	}
}

func controllerRevision(r *appsv1.ControllerRevision) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	switch raw := r.Data.Raw; {
	case r.Data.Object != nil:
	case len(raw) == 0 || string(raw) == "null":
		errs = append(errs, field.Required(data, "data is mandatory"))
	case !json.Valid(raw):
		errs = append(errs, field.Invalid(data, "<value omitted>", "error parsing data as JSON: must be valid JSON"))
	case raw[0] != '{':
		errs = append(errs, field.Invalid(data, "<value omitted>", "must be a valid JSON object"))
	}
	return append(errs, validate.NonNegative(r.Revision, field.NewPath("revision"))...)
}

// controllerOf names the controller of an object as "statefulset.apps/web".
func controllerOf(o metav1.Object) string {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil {
		return declare.None
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return declare.None
	}
	return strings.ToLower(schema.GroupKind{Group: gv.Group, Kind: ref.Kind}.String()) + "/" + ref.Name
}
