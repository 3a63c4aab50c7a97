package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/wire"
	"coracle.dev/coracle/client"
)

// virtual answers the kinds that are not stored.
func (c *call) virtual() error {
	switch c.kind.Name() {
	case "bindings":
		return c.createBinding()
	case "componentstatuses":
		return c.componentStatus()
	}
	// A review has no metadata and no columns: it is answered as itself or not at all.
	if _, err := wire.Negotiate(c.r, wire.Offer{}); err != nil {
		return err
	}
	o, err := c.options("CreateOptions")
	if err != nil {
		return err
	}
	obj := c.version.New()
	if err := c.decode(obj, c.gvk(), &o); err != nil {
		return err
	}
	if err := c.review(obj); err != nil {
		return err
	}
	return c.answerObject(http.StatusCreated, obj, c.gvk())
}

// review fills the status of a review.
func (c *call) review(obj runtime.Object) error {
	switch o := obj.(type) {
	case *authenticationv1.TokenReview:
		return c.reviewToken(o)
	case *authenticationv1.SelfSubjectReview:
		o.CreationTimestamp = c.now()
		o.Status.UserInfo = userInfo(c.user)
	case *authorizationv1.SubjectAccessReview:
		return c.reviewAccess(o)
	case *authorizationv1.LocalSubjectAccessReview:
		if o.Spec.ResourceAttributes == nil || o.Spec.ResourceAttributes.Namespace != c.info.Namespace {
			return c.invalidReview(field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), "", "must match metadata.namespace"))
		}
		return c.reviewAccess(&authorizationv1.SubjectAccessReview{Spec: o.Spec}, &o.Status)
	case *authorizationv1.SelfSubjectAccessReview:
		full := authorizationv1.SubjectAccessReviewSpec{
			ResourceAttributes: o.Spec.ResourceAttributes, NonResourceAttributes: o.Spec.NonResourceAttributes, User: c.user.Name,
		}
		if err := c.checkAccess(&full); err != nil {
			return err
		}
		o.Status = c.access(c.user, &full)
	case *authorizationv1.SelfSubjectRulesReview:
		return c.reviewRules(o)
	default:
		return apierrors.NewMethodNotSupported(c.kind.GroupResource(), c.info.Verb)
	}
	return nil
}

func userInfo(u client.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = v
	}
	return info
}

// reviewToken tells whose a token is.
func (c *call) reviewToken(o *authenticationv1.TokenReview) error {
	if o.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	o.Status = authenticationv1.TokenReviewStatus{}
	want := o.Spec.Audiences
	if len(want) == 0 {
		want = nil
	}
	user, matched, err := c.authn.Token(c.r.Context(), o.Spec.Token, want)
	switch {
	case errors.Is(err, authn.ErrUnauthorized):
		o.Status.Error = err.Error()
	case err != nil:
		o.Status.Error = fmt.Sprintf("[%v, %v]", authn.ErrUnauthorized, err)
	default:
		o.Status.Authenticated, o.Status.User, o.Status.Audiences = true, userInfo(user), matched
	}
	return nil
}

func (c *call) invalidReview(errs ...*field.Error) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: c.kind.Group, Kind: c.kind.Kind}, "", errs)
}

// checkAccess validates the question of an access review.
func (c *call) checkAccess(spec *authorizationv1.SubjectAccessReviewSpec) error {
	path := field.NewPath("spec")
	switch {
	case spec.ResourceAttributes != nil && spec.NonResourceAttributes != nil:
		return c.invalidReview(field.Invalid(path.Child("nonResourceAttributes"), spec.NonResourceAttributes, "cannot be specified in combination with resourceAttributes"))
	case spec.ResourceAttributes == nil && spec.NonResourceAttributes == nil:
		return c.invalidReview(field.Invalid(path.Child("resourceAttributes"), spec.ResourceAttributes, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	case spec.User == "" && len(spec.Groups) == 0:
		return c.invalidReview(field.Invalid(path.Child("user"), spec.User, "at least one of user or group must be specified"))
	}
	return nil
}

// reviewAccess tells what a user may do. The status goes into the review, or where it is told to.
func (c *call) reviewAccess(o *authorizationv1.SubjectAccessReview, into ...*authorizationv1.SubjectAccessReviewStatus) error {
	if err := c.checkAccess(&o.Spec); err != nil {
		return err
	}
	user := client.User{Name: o.Spec.User, UID: o.Spec.UID, Groups: o.Spec.Groups}
	for k, v := range o.Spec.Extra {
		if user.Extra == nil {
			user.Extra = map[string][]string{}
		}
		user.Extra[k] = v
	}
	o.Status = c.access(user, &o.Spec)
	for _, s := range into {
		*s = o.Status
	}
	return nil
}

func (c *call) access(user client.User, spec *authorizationv1.SubjectAccessReviewSpec) authorizationv1.SubjectAccessReviewStatus {
	a := &authz.Attributes{User: user}
	if r := spec.ResourceAttributes; r != nil {
		a.IsResource, a.Verb = true, r.Verb
		a.Group, a.Version, a.Resource, a.Subresource = r.Group, r.Version, r.Resource, r.Subresource
		a.Namespace, a.Name = r.Namespace, r.Name
	} else {
		a.Verb, a.Path = spec.NonResourceAttributes.Verb, spec.NonResourceAttributes.Path
	}
	ok, reason, err := c.authz.Authorize(c.r.Context(), a)
	status := authorizationv1.SubjectAccessReviewStatus{Allowed: ok, Reason: reason}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

// reviewRules lists what the caller may do in a namespace.
func (c *call) reviewRules(o *authorizationv1.SelfSubjectRulesReview) error {
	if o.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	o.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{},
	}
	if c.user.In(client.GroupMasters) {
		all := []string{"*"}
		o.Status.ResourceRules = append(o.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: all, APIGroups: all, Resources: all})
		o.Status.NonResourceRules = append(o.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: all, NonResourceURLs: all})
		return nil
	}
	lister, ok := c.cfg.Authorizer.(interface {
		Rules(user client.User, namespace string) ([]authorizationv1.ResourceRule, []authorizationv1.NonResourceRule, error)
	})
	if !ok {
		o.Status.Incomplete = true
		o.Status.EvaluationError = "the authorizer does not support listing rules"
		return nil
	}
	resources, paths, err := lister.Rules(c.user, o.Spec.Namespace)
	if err != nil {
		o.Status.Incomplete, o.Status.EvaluationError = true, err.Error()
	}
	o.Status.ResourceRules = append(o.Status.ResourceRules, resources...)
	o.Status.NonResourceRules = append(o.Status.NonResourceRules, paths...)
	return nil
}

// componentStatus answers the deprecated list of components: the scheduler, the controllers and
// the store are parts of this process, and it answers.
func (c *call) componentStatus() error {
	c.warn("v1 ComponentStatus is deprecated in v1.19+")
	names := []string{"controller-manager", "etcd-0", "scheduler"}
	one := func(name string) corev1.ComponentStatus {
		return corev1.ComponentStatus{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Conditions: []corev1.ComponentCondition{{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}},
		}
	}
	switch c.info.Verb {
	case "get":
		if !slices.Contains(names, c.info.Name) {
			return apierrors.NewNotFound(c.kind.GroupResource(), c.info.Name)
		}
		s := one(c.info.Name)
		return c.answerObject(http.StatusOK, &s, c.gvk())
	case "list":
		list := &corev1.ComponentStatusList{}
		for _, name := range names {
			list.Items = append(list.Items, one(name))
		}
		return c.answerObject(http.StatusOK, list, c.gvk().GroupVersion().WithKind("ComponentStatusList"))
	}
	return apierrors.NewMethodNotSupported(c.kind.GroupResource(), c.info.Verb)
}

var errNoNode = errors.New("this server reaches no nodes")
