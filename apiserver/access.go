package apiserver

import (
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// The access reviews: what may a user do
// (https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access).

var (
	specPath      = field.NewPath("spec")
	resourcePath  = field.NewPath("spec.resourceAttributes")
	oneAttributes = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
)

// reviewAccess answers for the user that the question names.
func (c *call) reviewAccess(meta *metav1.ObjectMeta, spec *authorizationv1.SubjectAccessReviewSpec, status *authorizationv1.SubjectAccessReviewStatus) error {
	errs := checkAccess(spec, true)
	if !isEmpty(*meta) {
		errs = append(errs, field.Invalid(field.NewPath("metadata"), meta, "must be empty"))
	}
	if len(errs) > 0 {
		return c.invalidReview(errs)
	}
	*status = c.access(subjectOf(spec), spec)
	return nil
}

// reviewLocalAccess is reviewAccess for one namespace.
func (c *call) reviewLocalAccess(o *authorizationv1.LocalSubjectAccessReview) error {
	errs := checkAccess(&o.Spec, true)
	meta := o.ObjectMeta
	meta.Namespace = ""
	if !isEmpty(meta) {
		errs = append(errs, field.Invalid(field.NewPath("metadata"), &o.ObjectMeta, "must be empty except for namespace"))
	}
	if o.Namespace == "" {
		o.Namespace = c.info.Namespace
	}
	if r := o.Spec.ResourceAttributes; r != nil && r.Namespace != o.Namespace {
		errs = append(errs, field.Invalid(resourcePath.Child("namespace"), r.Namespace, "must match metadata.namespace"))
	}
	if o.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(specPath.Child("nonResourceAttributes"), o.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	switch {
	case len(errs) > 0:
		return c.invalidReview(errs)
	case o.Namespace != c.info.Namespace:
		return apierrors.NewBadRequest(fmt.Sprintf("spec.resourceAttributes.namespace must match namespace: %v", c.info.Namespace))
	}
	o.Status = c.access(subjectOf(&o.Spec), &o.Spec)
	return nil
}

// reviewOwnAccess answers for the user who asks.
func (c *call) reviewOwnAccess(o *authorizationv1.SelfSubjectAccessReview) error {
	spec := authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: o.Spec.ResourceAttributes, NonResourceAttributes: o.Spec.NonResourceAttributes}
	errs := checkAccess(&spec, false)
	if !isEmpty(o.ObjectMeta) {
		errs = append(errs, field.Invalid(field.NewPath("metadata"), &o.ObjectMeta, "must be empty"))
	}
	if len(errs) > 0 {
		return c.invalidReview(errs)
	}
	o.Status = c.access(c.user, &spec)
	return nil
}

func (c *call) invalidReview(errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: c.kind.Group, Kind: c.kind.Kind}, "", errs)
}

// isEmpty tells whether nothing but bookkeeping stands in the metadata.
func isEmpty(meta metav1.ObjectMeta) bool {
	meta.ManagedFields = nil
	return equality.Semantic.DeepEqual(metav1.ObjectMeta{}, meta)
}

// checkAccess validates a question.
func checkAccess(spec *authorizationv1.SubjectAccessReviewSpec, needsUser bool) field.ErrorList {
	var errs field.ErrorList
	if (spec.ResourceAttributes == nil) == (spec.NonResourceAttributes == nil) {
		errs = append(errs, field.Invalid(specPath, spec.NonResourceAttributes, oneAttributes))
	}
	if needsUser && spec.User == "" && len(spec.Groups) == 0 {
		errs = append(errs, field.Invalid(specPath.Child("user"), spec.User, "at least one of user or group must be specified"))
	}
	r := spec.ResourceAttributes
	if r == nil {
		return errs
	}
	// Clients that are newer than the server may use operators that it does not know: those say nothing, and that is told.
	if s := r.FieldSelector; s != nil {
		path := resourcePath.Child("fieldSelector")
		errs = append(errs, checkSelector(s.RawSelector, len(s.Requirements), path)...)
		for i, req := range s.Requirements {
			errs = append(errs, metavalidation.ValidateFieldSelectorRequirement(req,
				metavalidation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, path.Child("requirements").Index(i))...)
		}
	}
	if s := r.LabelSelector; s != nil {
		path := resourcePath.Child("labelSelector")
		errs = append(errs, checkSelector(s.RawSelector, len(s.Requirements), path)...)
		for i, req := range s.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(req,
				metavalidation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, path.Child("requirements").Index(i))...)
		}
	}
	return errs
}

func checkSelector(raw string, requirements int, path *field.Path) field.ErrorList {
	switch {
	case raw != "" && requirements > 0:
		return field.ErrorList{field.Invalid(path.Child("rawSelector"), raw, "may not specified at the same time as requirements")}
	case raw == "" && requirements == 0:
		return field.ErrorList{field.Required(path.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", path))}
	}
	return nil
}

// subjectOf is the user that a question is about.
func subjectOf(spec *authorizationv1.SubjectAccessReviewSpec) client.User {
	user := client.User{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	for k, v := range spec.Extra {
		if user.Extra == nil {
			user.Extra = map[string][]string{}
		}
		user.Extra[k] = v
	}
	return user
}

// access asks the authorizer.
func (c *call) access(user client.User, spec *authorizationv1.SubjectAccessReviewSpec) authorizationv1.SubjectAccessReviewStatus {
	a := &authz.Attributes{User: user}
	var doubts []string
	if r := spec.ResourceAttributes; r != nil {
		a.IsResource, a.Verb = true, r.Verb
		a.Group, a.Version, a.Resource, a.Subresource = r.Group, r.Version, r.Resource, r.Subresource
		a.Namespace, a.Name = r.Namespace, r.Name
		if a.Version == "" {
			a.Version = "*"
		}
		doubts = selectors(a, r)
	} else {
		a.Verb, a.Path = spec.NonResourceAttributes.Verb, spec.NonResourceAttributes.Path
	}
	d, reason, err := c.authz.Authorize(c.r.Context(), a)
	if err != nil {
		doubts = slices.Insert(doubts, 0, err.Error())
	}
	return authorizationv1.SubjectAccessReviewStatus{
		Allowed: d == authz.Allowed, Denied: d == authz.Denied, Reason: reason, EvaluationError: strings.Join(doubts, "; "),
	}
}

// selectors gives the attributes the selectors of a question, and says what of them could not be read. Leaving out a requirement asks
// for more, so that nothing is allowed by it.
func selectors(a *authz.Attributes, r *authorizationv1.ResourceAttributes) (doubts []string) {
	doubt := func(what string, whole bool) {
		part := "partially "
		if whole {
			part = ""
		}
		doubts = append(doubts, fmt.Sprintf("spec.resourceAttributes.%s %signored due to parse error", what, part))
	}
	if s := r.FieldSelector; s != nil {
		ok := true
		if s.RawSelector != "" {
			parsed, err := fields.ParseSelector(s.RawSelector)
			if ok = err == nil; ok {
				a.Fields = parsed.Requirements()
			}
		}
		for _, req := range s.Requirements {
			op := map[metav1.FieldSelectorOperator]selection.Operator{metav1.FieldSelectorOpIn: selection.Equals, metav1.FieldSelectorOpNotIn: selection.NotEquals}[req.Operator]
			if op == "" || len(req.Values) != 1 {
				ok = false
				continue
			}
			a.Fields = append(a.Fields, fields.Requirement{Field: req.Key, Operator: op, Value: req.Values[0]})
		}
		if !ok {
			doubt("fieldSelector", len(a.Fields) == 0)
		}
	}
	if s := r.LabelSelector; s != nil {
		ok := true
		if s.RawSelector != "" {
			parsed, err := labels.Parse(s.RawSelector)
			if ok = err == nil; ok {
				a.Labels, _ = parsed.Requirements()
			}
		}
		for _, req := range s.Requirements {
			one, err := labels.NewRequirement(req.Key, labelOperators[req.Operator], req.Values)
			if err != nil {
				ok = false
				continue
			}
			a.Labels = append(a.Labels, *one)
		}
		if !ok {
			doubt("labelSelector", len(a.Labels) == 0)
		}
	}
	return doubts
}

var labelOperators = map[metav1.LabelSelectorOperator]selection.Operator{
	metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
	metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
}

// reviewRules lists what the caller may do in a namespace.
func (c *call) reviewRules(o *authorizationv1.SelfSubjectRulesReview) error {
	if o.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	o.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	var doubts []string
	if c.user.In(client.GroupMasters) {
		all := []string{"*"}
		o.Status.ResourceRules = append(o.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: all, APIGroups: all, Resources: all})
		o.Status.NonResourceRules = append(o.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: all, NonResourceURLs: all})
		return nil
	}
	if _, node := authz.NodeOf(&c.user); node {
		o.Status.Incomplete = true
		doubts = append(doubts, "node authorizer does not support user rule resolution")
	}
	lister, ok := c.rules.(interface {
		Rules(user client.User, namespace string) (resources []authorizationv1.ResourceRule, paths []authorizationv1.NonResourceRule, incomplete bool, err error)
	})
	if !ok {
		o.Status.Incomplete = true
		doubts = append(doubts, "the authorizer does not support user rule resolution")
	} else {
		resources, paths, incomplete, err := lister.Rules(c.user, o.Spec.Namespace)
		o.Status.Incomplete = o.Status.Incomplete || incomplete
		if err != nil {
			doubts = append(doubts, err.Error())
		}
		o.Status.ResourceRules = append(o.Status.ResourceRules, resources...)
		o.Status.NonResourceRules = append(o.Status.NonResourceRules, paths...)
	}
	o.Status.EvaluationError = strings.Join(doubts, ", ")
	return nil
}
