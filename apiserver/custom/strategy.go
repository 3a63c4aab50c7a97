package custom

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"

	"coracle.dev/coracle/api"
)

// strategy is that of whole objects.
func (r *rules) strategy() api.Strategy {
	s := api.Strategy{
		Validate:       func(o api.Object) field.ErrorList { return r.validate(o.(*unstructured.Unstructured)) },
		ValidateUpdate: r.update(r.validateUpdate),
		Warnings:       finalizerWarnings,
	}
	if r.version.Subresources != nil && r.version.Subresources.Status != nil {
		s.PrepareCreate = func(o api.Object) { delete(o.(*unstructured.Unstructured).Object, "status") }
		s.PrepareUpdate = func(o, p api.Object) {
			keepStatus(o.(*unstructured.Unstructured).Object, p.(*unstructured.Unstructured).Object)
		}
	}
	return s
}

// statusStrategy is that of the status subresource: it takes the status, and nothing else, from what was sent.
func (r *rules) statusStrategy() *api.Strategy {
	return &api.Strategy{
		PrepareUpdate: func(o, p api.Object) {
			obj, old := o.(*unstructured.Unstructured), p.(*unstructured.Unstructured)
			status, has := obj.Object["status"]
			before, _ := obj.Object["metadata"].(map[string]any)
			obj.Object = shallow(old.Object)
			if meta, ok := obj.Object["metadata"].(map[string]any); ok {
				// Who owns which fields changes with the status too.
				delete(meta, "managedFields")
				if managed, ok := before["managedFields"]; ok {
					meta["managedFields"] = managed
				}
			}
			if has {
				obj.Object["status"] = status
			} else {
				delete(obj.Object, "status")
			}
		},
		ValidateUpdate: r.update(r.validateStatus),
	}
}

// shallow copies an object so far that its own fields and those of its metadata can be set.
func shallow(obj map[string]any) map[string]any {
	out := make(map[string]any, len(obj))
	for k, v := range obj {
		out[k] = v
	}
	if meta, ok := out["metadata"].(map[string]any); ok {
		c := make(map[string]any, len(meta))
		for k, v := range meta {
			c[k] = v
		}
		out["metadata"] = c
	}
	return out
}

func keepStatus(obj, old map[string]any) {
	if status, ok := old["status"]; ok {
		obj["status"] = status
	} else {
		delete(obj, "status")
	}
}

// changed tells whether anything but metadata differs.
func changed(o, p api.Object) bool {
	obj, old := o.(*unstructured.Unstructured).Object, p.(*unstructured.Unstructured).Object
	count := 0
	for k, v := range obj {
		if k == "metadata" {
			continue
		}
		count++
		if w, ok := old[k]; !ok || !equality.Semantic.DeepEqual(v, w) {
			return true
		}
	}
	for k := range old {
		if k != "metadata" {
			count--
		}
	}
	return count != 0
}

func (r *rules) update(f func(obj, old *unstructured.Unstructured) field.ErrorList) func(api.Object, api.Object) field.ErrorList {
	return func(o, p api.Object) field.ErrorList {
		return f(o.(*unstructured.Unstructured), p.(*unstructured.Unstructured))
	}
}

// typeErrors says that an object is of another type than its endpoint.
func (r *rules) typeErrors(u *unstructured.Unstructured) field.ErrorList {
	var errs field.ErrorList
	if have := u.GetKind(); have != r.kind.Kind {
		errs = append(errs, field.Invalid(field.NewPath("kind"), have, "must be "+r.kind.Kind))
	}
	if have, want := u.GetAPIVersion(), r.kind.GroupVersion().String(); have != want {
		errs = append(errs, field.Invalid(field.NewPath("apiVersion"), have, "must be "+want))
	}
	return errs
}

// broken is what every object of a version is told whose schema cannot be used.
func broken(err error) field.ErrorList {
	return field.ErrorList{field.InternalError(nil, err)}
}

func (r *rules) validate(u *unstructured.Unstructured) field.ErrorList {
	s, err := r.structure()
	if err != nil {
		return broken(err)
	}
	all, _, err := r.validators()
	if err != nil {
		return broken(err)
	}
	ctx := context.Background()
	errs := r.typeErrors(u)
	if len(errs) == 0 {
		errs = validation.ValidateCustomResource(nil, u.Object, all)
		errs = append(errs, r.scaleErrors(u, true)...)
	}
	errs = append(errs, objectmeta.Validate(ctx, nil, u.Object, s, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s, u.Object)...)
	return append(errs, r.expressionErrors(ctx, errs, s, u.Object, nil)...)
}

func (r *rules) validateUpdate(obj, old *unstructured.Unstructured) field.ErrorList {
	s, err := r.structure()
	if err != nil {
		return broken(err)
	}
	all, _, err := r.validators()
	if err != nil {
		return broken(err)
	}
	ctx := context.Background()
	pair := common.NewCorrelatedObject(obj.Object, old.Object, &model.Structural{Structural: s})
	errs := r.typeErrors(obj)
	if len(errs) == 0 {
		errs = validation.ValidateCustomResourceUpdate(nil, obj.Object, old.Object, all, validation.WithRatcheting(pair))
		errs = append(errs, r.scaleErrors(obj, true)...)
	}
	errs = append(errs, objectmeta.Validate(ctx, nil, obj.Object, s, false)...)
	errs = append(errs, listErrors(s, obj.Object, old.Object)...)
	return append(errs, r.expressionErrors(ctx, errs, s, obj.Object, old.Object, cel.WithRatcheting(pair))...)
}

func (r *rules) validateStatus(obj, old *unstructured.Unstructured) field.ErrorList {
	s, err := r.structure()
	if err != nil {
		return broken(err)
	}
	_, check, err := r.validators()
	if err != nil {
		return broken(err)
	}
	ctx := context.Background()
	pair := common.NewCorrelatedObject(obj.Object, old.Object, &model.Structural{Structural: s})
	errs := r.typeErrors(obj)
	if len(errs) == 0 {
		if status, ok := obj.Object["status"]; ok && check != nil {
			var ratchet []validation.ValidationOption
			if s != nil {
				ratchet = append(ratchet, validation.WithRatcheting(pair.Key("status")))
			}
			errs = append(errs, validation.ValidateCustomResourceUpdate(field.NewPath("status"), status, old.Object["status"], check, ratchet...)...)
		}
		errs = append(errs, r.scaleErrors(obj, false)...)
	}
	errs = append(errs, listErrors(s, obj.Object, old.Object)...)
	return append(errs, r.expressionErrors(ctx, errs, s, obj.Object, old.Object, cel.WithRatcheting(pair))...)
}

// listErrors holds lists to what they declare to be, sets and maps; an object that was wrong before may stay so.
func listErrors(s *structural.Structural, obj, old map[string]any) field.ErrorList {
	errs := listtype.ValidateListSetsAndMaps(nil, s, obj)
	if len(errs) > 0 && len(listtype.ValidateListSetsAndMaps(nil, s, old)) > 0 {
		return nil
	}
	return errs
}

// expressionErrors evaluates the CEL rules, unless the object is so wrong that they would stumble. old is nil on create.
func (r *rules) expressionErrors(ctx context.Context, before field.ErrorList, s *structural.Structural, obj, old map[string]any, opts ...cel.Option) field.ErrorList {
	v := r.expressions()
	if v == nil {
		return nil
	}
	for _, err := range before {
		switch err.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return field.ErrorList{field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")}
		}
	}
	var previous any
	if old != nil {
		previous = old
	}
	errs, _ := v.Validate(ctx, nil, s, obj, previous, celconfig.RuntimeCELCostBudget, opts...)
	return errs
}

// scaleErrors checks what the scale subresource reads; spec is left out for changes of the status.
func (r *rules) scaleErrors(u *unstructured.Unstructured, spec bool) field.ErrorList {
	if r.version.Subresources == nil || r.version.Subresources.Scale == nil {
		return nil
	}
	s := r.version.Subresources.Scale
	var errs field.ErrorList
	if spec {
		errs = replicaErrors(u, s.SpecReplicasPath)
	}
	errs = append(errs, replicaErrors(u, s.StatusReplicasPath)...)
	return append(errs, selectorErrors(u, s)...)
}

func replicaErrors(u *unstructured.Unstructured, path string) field.ErrorList {
	n, _, err := unstructured.NestedInt64(u.Object, steps(path)...)
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case n < 0:
		why = "should be a non-negative integer"
	case n > math.MaxInt32:
		why = fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)
	default:
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath(path), n, why)}
}

func selectorErrors(u *unstructured.Unstructured, s *apiextensionsv1.CustomResourceSubresourceScale) field.ErrorList {
	if s.LabelSelectorPath == nil {
		return nil
	}
	text, _, err := unstructured.NestedString(u.Object, steps(*s.LabelSelectorPath)...)
	if err == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath(*s.LabelSelectorPath), text, err.Error())}
}

// steps splits a simple JSON path.
func steps(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

// finalizerWarnings tells of new finalizers whose names may clash with others'.
func finalizerWarnings(obj, old api.Object) []string {
	var before []string
	if old != nil {
		before = old.GetFinalizers()
	}
	var added []string
	for _, f := range obj.GetFinalizers() {
		if !slices.Contains(before, f) && !slices.Contains(added, f) {
			added = append(added, f)
		}
	}
	slices.Sort(added)
	var out []string
	for _, f := range added {
		out = append(out, finalizerWarning(f)...)
	}
	return out
}

func finalizerWarning(name string) []string {
	const where = "metadata.finalizers"
	var out []string
	for _, why := range content.IsQualifiedName(name) {
		out = append(out, fmt.Sprintf("%s: %q: %s", where, name, why))
	}
	standard := name == metav1.FinalizerOrphanDependents || name == metav1.FinalizerDeleteDependents || name == string(corev1.FinalizerKubernetes)
	switch {
	case strings.Contains(name, "/") || standard:
	case strings.Contains(name, "."):
		out = append(out, fmt.Sprintf("%s: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", where, name))
	default:
		out = append(out, fmt.Sprintf("%s: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", where, name))
	}
	return out
}
