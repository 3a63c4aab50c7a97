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

	"coracle.dev/coracle/apiserver/authn"
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
		return c.reviewAccess(&o.ObjectMeta, &o.Spec, &o.Status)
	case *authorizationv1.LocalSubjectAccessReview:
		return c.reviewLocalAccess(o)
	case *authorizationv1.SelfSubjectAccessReview:
		return c.reviewOwnAccess(o)
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
