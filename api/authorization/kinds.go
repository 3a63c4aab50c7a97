// Package authorization holds the Kinds of the API group authorization.k8s.io, all of which the
// server answers without storing them: may somebody, or the caller, do something?
package authorization

import (
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

const group = authorizationv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		subjectAccessReviewKind(),
		selfSubjectAccessReviewKind(),
		selfSubjectRulesReviewKind(),
		localSubjectAccessReviewKind(),
	}
}

func subjectAccessReviewKind() *api.Kind {
	type review = *authorizationv1.SubjectAccessReview
	return &api.Kind{
		Group: group, Kind: "SubjectAccessReview", Resource: "subjectaccessreviews", Singular: "subjectaccessreview",
		Versions: declare.Review[authorizationv1.SubjectAccessReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r review) { r.Status = authorizationv1.SubjectAccessReviewStatus{} }),
			Validate: api.Checks(func(r review) field.ErrorList {
				return append(subject(&r.Spec), noMeta(r.ObjectMeta, false)...)
			}),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

func selfSubjectAccessReviewKind() *api.Kind {
	type review = *authorizationv1.SelfSubjectAccessReview
	return &api.Kind{
		Group: group, Kind: "SelfSubjectAccessReview", Resource: "selfsubjectaccessreviews", Singular: "selfsubjectaccessreview",
		Versions: declare.Review[authorizationv1.SelfSubjectAccessReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r review) { r.Status = authorizationv1.SubjectAccessReviewStatus{} }),
			Validate: api.Checks(func(r review) field.ErrorList {
				return append(attributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes), noMeta(r.ObjectMeta, false)...)
			}),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

func selfSubjectRulesReviewKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "SelfSubjectRulesReview", Resource: "selfsubjectrulesreviews", Singular: "selfsubjectrulesreview",
		Versions: declare.Review[authorizationv1.SelfSubjectRulesReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r *authorizationv1.SelfSubjectRulesReview) { r.Status = authorizationv1.SubjectRulesReviewStatus{} }),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

func localSubjectAccessReviewKind() *api.Kind {
	type review = *authorizationv1.LocalSubjectAccessReview
	return &api.Kind{
		Group: group, Kind: "LocalSubjectAccessReview", Resource: "localsubjectaccessreviews", Singular: "localsubjectaccessreview",
		Namespaced: true,
		Versions:   declare.Review[authorizationv1.LocalSubjectAccessReview](),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(r review) { r.Status = authorizationv1.SubjectAccessReviewStatus{} }),
			Validate:      api.Checks(localReview),
		},
		Verbs:   declare.ReviewVerbs,
		Virtual: true,
	}
}

func localReview(r *authorizationv1.LocalSubjectAccessReview) field.ErrorList {
	path := field.NewPath("spec")
	errs := subject(&r.Spec)
	errs = append(errs, noMeta(r.ObjectMeta, true)...)
	if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
		errs = append(errs, field.Invalid(path.Child("resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
	}
	if a := r.Spec.NonResourceAttributes; a != nil {
		errs = append(errs, field.Invalid(path.Child("nonResourceAttributes"), a, "disallowed on this kind of request"))
	}
	return errs
}

func subject(s *authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := attributes(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func attributes(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) field.ErrorList {
	path := field.NewPath("spec")
	switch {
	case r != nil && n != nil:
		return field.ErrorList{field.Invalid(path.Child("nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes")}
	case r == nil && n == nil:
		return field.ErrorList{field.Invalid(path.Child("resourceAttributes"), n, "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	case r != nil:
		return selectors(r, path.Child("resourceAttributes"))
	}
	return nil
}

// selectors checks the selectors of a list or watch that is asked about. Operators that nobody
// knows are let through: authorizers ignore them, which can only narrow the answer.
func selectors(r *authorizationv1.ResourceAttributes, path *field.Path) field.ErrorList {
	const both = "may not specified at the same time as requirements"
	var errs field.ErrorList
	form := func(p *field.Path, raw string, count int) {
		switch {
		case raw != "" && count > 0:
			errs = append(errs, field.Invalid(p.Child("rawSelector"), raw, both))
		case raw == "" && count == 0:
			errs = append(errs, field.Required(p.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", p)))
		}
	}
	if s := r.FieldSelector; s != nil {
		p := path.Child("fieldSelector")
		form(p, s.RawSelector, len(s.Requirements))
		for i, q := range s.Requirements {
			errs = append(errs, v1validation.ValidateFieldSelectorRequirement(q,
				v1validation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	if s := r.LabelSelector; s != nil {
		p := path.Child("labelSelector")
		form(p, s.RawSelector, len(s.Requirements))
		for i, q := range s.Requirements {
			errs = append(errs, v1validation.ValidateLabelSelectorRequirement(q,
				v1validation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("requirements").Index(i))...)
		}
	}
	return errs
}

// noMeta refuses metadata: a review is no object that is kept. What a server may have
// filled in before it asks does not count.
func noMeta(m metav1.ObjectMeta, namespaced bool) field.ErrorList {
	m.ManagedFields, m.UID, m.CreationTimestamp = nil, "", metav1.Time{}
	message := "must be empty"
	if namespaced {
		m.Namespace = ""
		message = "must be empty except for namespace"
	}
	if equality.Semantic.DeepEqual(metav1.ObjectMeta{}, m) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, message)}
}
