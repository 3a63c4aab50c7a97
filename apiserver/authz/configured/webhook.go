package configured

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	authorizationv1beta1 "k8s.io/api/authorization/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authorizationcel "k8s.io/apiserver/pkg/authorization/cel"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
)

// Bounds on what is remembered of a webhook, as upstream.
const (
	maxAnswers  = 8192
	maxAsked    = 10000 // bytes of what a client may choose of a question whose answer is remembered
	failedToAsk = "failed to ask the authorization webhook"
)

// webhook has requests decided by a server elsewhere, with SubjectAccessReviews.
type webhook struct {
	name              string
	endpoint          *backend.Endpoint
	beta              bool // reviews are of v1beta1
	onError           authz.Decision
	allowFor, denyFor time.Duration // how long answers are good
	conditions        *authorizationcel.CELMatcher
	answers           *cache.LRUExpireCache // of the question as JSON to its status
	chain             *Chain
}

func newWebhook(name string, c *apiserver.WebhookConfiguration, chain *Chain) (*webhook, error) {
	w := &webhook{name: name, beta: c.SubjectAccessReviewVersion == "v1beta1", chain: chain,
		answers: cache.NewLRUExpireCacheWithClock(maxAnswers, chain.parts.Clock)}
	if c.FailurePolicy == apiserver.FailurePolicyDeny {
		w.onError = authz.Denied
	}
	if c.CacheAuthorizedRequests {
		w.allowFor = c.AuthorizedTTL.Duration
	}
	if c.CacheUnauthorizedRequests {
		w.denyFor = c.UnauthorizedTTL.Duration
	}
	if len(c.MatchConditions) > 0 {
		matcher, errs := validation.ValidateAndCompileMatchConditions(authorizationcel.NewDefaultCompiler(), c.MatchConditions)
		if len(errs) > 0 {
			return nil, errs.ToAggregate()
		}
		w.conditions = matcher
		w.conditions.AuthorizerType, w.conditions.AuthorizerName, w.conditions.Metrics = "Webhook", name, &chain.counts
	}
	var err error
	w.endpoint, err = backend.OpenEndpoint(*c.ConnectionInfo.KubeConfigFile, c.Timeout.Duration)
	return w, err
}

// Authorize implements authz.Authorizer.
func (w *webhook) Authorize(ctx context.Context, a *authz.Attributes) (authz.Decision, string, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: question(a)}
	if w.conditions != nil {
		matches, err := w.conditions.Eval(ctx, review)
		if err != nil {
			return w.onError, "", err
		}
		if !matches {
			return authz.NoOpinion, "", nil
		}
	}
	key, err := json.Marshal(&review.Spec)
	if err != nil {
		return w.onError, "", err
	}
	status, ok := w.remembered(string(key))
	if !ok {
		if status, err = w.ask(ctx, review); err != nil {
			return w.onError, "", err
		}
		w.remember(a, string(key), status)
	}
	switch {
	case status.Denied && status.Allowed:
		return authz.Denied, status.Reason, errors.New("webhook subject access review returned both allow and deny response")
	case status.Denied:
		return authz.Denied, status.Reason, nil
	}
	return authz.If(status.Allowed), status.Reason, nil
}

// Rules says that what the server allows is not known beforehand.
func (w *webhook) Rules(client.User, string) ([]authorizationv1.ResourceRule, []authorizationv1.NonResourceRule, bool, error) {
	return nil, nil, true, errNoRules
}

func (w *webhook) remembered(key string) (authorizationv1.SubjectAccessReviewStatus, bool) {
	known, ok := w.answers.Get(key)
	if !ok {
		return authorizationv1.SubjectAccessReviewStatus{}, false
	}
	return known.(authorizationv1.SubjectAccessReviewStatus), true
}

// remember keeps an answer, unless what a client chose of the question is long.
func (w *webhook) remember(a *authz.Attributes, key string, status authorizationv1.SubjectAccessReviewStatus) {
	ttl := w.denyFor
	if status.Allowed {
		ttl = w.allowFor
	}
	chosen := len(a.Namespace) + len(a.Verb) + len(a.Group) + len(a.Version) + len(a.Resource) + len(a.Subresource) + len(a.Name) + len(a.Path)
	if ttl > 0 && chosen < maxAsked {
		w.answers.Add(key, status, ttl)
	}
}

// ask sends the question in the version that the server knows.
func (w *webhook) ask(ctx context.Context, review *authorizationv1.SubjectAccessReview) (authorizationv1.SubjectAccessReviewStatus, error) {
	start := time.Now()
	gv := authorizationv1.SchemeGroupVersion
	var sent any = review
	if w.beta {
		gv = authorizationv1beta1.SchemeGroupVersion
		sent = older(review)
	} else {
		review.TypeMeta = metav1.TypeMeta{Kind: "SubjectAccessReview", APIVersion: gv.String()}
	}
	var answer authorizationv1.SubjectAccessReview // of both versions the status is the same
	err := w.endpoint.Ask(ctx, sent, &answer)
	if err == nil && (answer.Kind != "" && answer.Kind != "SubjectAccessReview" || answer.APIVersion != "" && answer.APIVersion != gv.String()) {
		err = fmt.Errorf("the answer is a %q of %q, not a SubjectAccessReview of %q", answer.Kind, answer.APIVersion, gv)
	}
	outcome := backend.Outcome(ctx, err)
	w.chain.counts.asked(w.name, outcome, time.Since(start))
	if err != nil {
		w.chain.parts.Log.Error(failedToAsk, "authorizer", w.name, "error", err)
		if w.onError == authz.NoOpinion && ctx.Err() == nil {
			w.chain.counts.passed(w.name, outcome)
		}
		return answer.Status, err
	}
	return answer.Status, nil
}

// older is a review of v1beta1.
func older(r *authorizationv1.SubjectAccessReview) *authorizationv1beta1.SubjectAccessReview {
	out := &authorizationv1beta1.SubjectAccessReview{
		TypeMeta: metav1.TypeMeta{Kind: "SubjectAccessReview", APIVersion: authorizationv1beta1.SchemeGroupVersion.String()},
		Spec: authorizationv1beta1.SubjectAccessReviewSpec{User: r.Spec.User, Groups: r.Spec.Groups, UID: r.Spec.UID,
			ResourceAttributes:    (*authorizationv1beta1.ResourceAttributes)(r.Spec.ResourceAttributes),
			NonResourceAttributes: (*authorizationv1beta1.NonResourceAttributes)(r.Spec.NonResourceAttributes)},
	}
	for k, v := range r.Spec.Extra {
		if out.Spec.Extra == nil {
			out.Spec.Extra = map[string]authorizationv1beta1.ExtraValue{}
		}
		out.Spec.Extra[k] = authorizationv1beta1.ExtraValue(v)
	}
	return out
}

// question is what a request wants, as a server elsewhere is asked for it.
func question(a *authz.Attributes) authorizationv1.SubjectAccessReviewSpec {
	spec := authorizationv1.SubjectAccessReviewSpec{User: a.User.Name, UID: a.User.UID, Groups: a.User.Groups}
	for k, v := range a.User.Extra {
		if spec.Extra == nil {
			spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		spec.Extra[k] = v
	}
	if !a.IsResource {
		spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		return spec
	}
	spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
		Namespace: a.Namespace, Verb: a.Verb, Group: a.Group, Version: a.Version, Resource: a.Resource, Subresource: a.Subresource, Name: a.Name,
		FieldSelector: fieldSelector(a), LabelSelector: labelSelector(a),
	}
	return spec
}

// fieldSelector leaves out what cannot be said: all of a selector's parts hold, so that fewer of them ask for more.
func fieldSelector(a *authz.Attributes) *authorizationv1.FieldSelectorAttributes {
	var out []metav1.FieldSelectorRequirement
	for _, r := range a.Fields {
		one := metav1.FieldSelectorRequirement{Key: r.Field, Values: []string{r.Value}}
		switch r.Operator {
		case selection.Equals, selection.DoubleEquals, selection.In:
			one.Operator = metav1.FieldSelectorOpIn
		case selection.NotEquals, selection.NotIn:
			one.Operator = metav1.FieldSelectorOpNotIn
		default:
			continue
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		return nil
	}
	return &authorizationv1.FieldSelectorAttributes{Requirements: out}
}

// labelSelector leaves out what cannot be said, as fieldSelector.
func labelSelector(a *authz.Attributes) *authorizationv1.LabelSelectorAttributes {
	var out []metav1.LabelSelectorRequirement
	for i := range a.Labels {
		r := &a.Labels[i]
		one := metav1.LabelSelectorRequirement{Key: r.Key(), Values: r.ValuesUnsorted()}
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			one.Operator = metav1.LabelSelectorOpIn
		case selection.NotEquals, selection.NotIn:
			one.Operator = metav1.LabelSelectorOpNotIn
		case selection.Exists:
			one.Operator = metav1.LabelSelectorOpExists
		case selection.DoesNotExist:
			one.Operator = metav1.LabelSelectorOpDoesNotExist
		default:
			continue
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		return nil
	}
	return &authorizationv1.LabelSelectorAttributes{Requirements: out}
}
