package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
)

const (
	defaultTokenSeconds = 3600
	minTokenSeconds     = 600
	maxTokenSeconds     = 1 << 32
	// projectedTokenSeconds is what the admission plug-in asks for pods that name no lifetime of
	// their own. Such tokens work for a year and warn after the hour
	// (kube-apiserver --service-account-extend-token-expiration).
	projectedTokenSeconds = 3607
	extendedToken         = 365 * 24 * time.Hour
)

// issueToken answers POST to serviceaccounts/x/token
// (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/).
func (c *call) issueToken() error {
	o, err := c.options("CreateOptions")
	if err != nil {
		return err
	}
	gvk := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	req := &authenticationv1.TokenRequest{}
	if err := c.decode(req, gvk, &o); err != nil {
		return err
	}
	if c.tokens == nil {
		return apierrors.NewInternalError(errNoTokens)
	}
	asked := c.tokenAdmission(req, &o)
	if err := c.chain.Admission.Mutate(c.r.Context(), asked); err != nil {
		return err
	}
	req = asked.Object.(*authenticationv1.TokenRequest)
	if err := c.matchesAccount(req); err != nil {
		return err
	}
	e, err := c.current()
	if err != nil {
		return err
	}
	sa := e.Object.(*corev1.ServiceAccount)
	now := c.cfg.Now()
	if err := c.completeTokenRequest(req, sa, now); err != nil {
		return err
	}
	if err := c.chain.Admission.Validate(c.r.Context(), c.tokenAdmission(req.DeepCopy(), &o)); err != nil {
		return err
	}
	grant, err := c.grant(sa, &req.Spec)
	if err != nil {
		return err
	}
	token, _, err := c.tokens.Issue(grant)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to generate token: %v", err))
	}
	expires := now.Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second)
	req.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires.Truncate(time.Second))}
	return c.answerObject(http.StatusCreated, req, gvk)
}

// matchesAccount checks that a request names the account of its URL or none.
func (c *call) matchesAccount(req *authenticationv1.TokenRequest) error {
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	switch {
	case req.Name != "" && req.Name != c.info.Name:
		errs = append(errs, field.Invalid(meta.Child("name"), req.Name, "must match the service account name if specified"))
	case req.Namespace != "" && req.Namespace != c.info.Namespace:
		errs = append(errs, field.Invalid(meta.Child("namespace"), req.Namespace, "must match the service account namespace if specified"))
	default:
		return nil
	}
	return apierrors.NewInvalid(tokenRequestKind, c.info.Name, errs)
}

var tokenRequestKind = schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}

// completeTokenRequest defaults and validates.
func (c *call) completeTokenRequest(req *authenticationv1.TokenRequest, sa *corev1.ServiceAccount, now time.Time) error {
	if req.UID != "" && req.UID != sa.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: tokenRequestKind.Group, Resource: tokenRequestKind.Kind}, c.info.Name, fmt.Errorf(
			"the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, sa.UID))
	}
	req.Name, req.Namespace, req.UID = sa.Name, sa.Namespace, sa.UID
	req.CreationTimestamp = metav1.NewTime(now.UTC().Truncate(time.Second))
	req.Status = authenticationv1.TokenRequestStatus{}
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = slices.Clone(c.cfg.Audiences)
	}
	if req.Spec.ExpirationSeconds == nil {
		seconds := int64(defaultTokenSeconds)
		req.Spec.ExpirationSeconds = &seconds
	}
	path, seconds := field.NewPath("spec", "expirationSeconds"), *req.Spec.ExpirationSeconds
	var errs field.ErrorList
	if seconds < minTokenSeconds {
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	}
	if seconds > maxTokenSeconds {
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(tokenRequestKind, "", errs)
	}
	return nil
}

// tokenAdmission is the request as plug-ins see it: those that change see what the client sent, those that only refuse a copy of
// what it has become.
func (c *call) tokenAdmission(req *authenticationv1.TokenRequest, o *writeOptions) *admission.Request {
	return &admission.Request{
		Operation: admission.Create, Kind: c.kind, Version: c.version.Name, Subresource: c.info.Subresource,
		Namespace: c.info.Namespace, Name: c.info.Name, Object: req, User: c.user, DryRun: o.dryRun,
		Snapshot: c.cfg.Store.Snapshot(), Now: c.cfg.Now(), Warn: c.warn, Annotate: c.target().Annotate, AnnotateBodies: c.target().AnnotateBodies, Options: c.createOptions(),
	}
}

// grant says what the token is for.
func (c *call) grant(sa *corev1.ServiceAccount, spec *authenticationv1.TokenRequestSpec) (authn.Grant, error) {
	g := authn.Grant{ServiceAccount: sa, Audiences: spec.Audiences, Expiry: time.Duration(*spec.ExpirationSeconds) * time.Second}
	ref := spec.BoundObjectRef
	if ref == nil {
		return g, nil
	}
	uid, err := c.bindToken(&g, ref)
	if err != nil {
		return g, err
	}
	if ref.UID != "" && ref.UID != uid {
		gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
		return g, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, ref.Name, fmt.Errorf(
			"the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	if g.Pod != nil && *spec.ExpirationSeconds == projectedTokenSeconds && c.forServer(spec.Audiences) {
		g.WarnAfter, g.Expiry = g.Expiry, extendedToken
	}
	return g, nil
}

// forServer tells whether audiences are exactly those of this server.
func (c *call) forServer(audiences []string) bool {
	if len(audiences) != len(c.cfg.Audiences) {
		return false
	}
	return !slices.ContainsFunc(audiences, func(a string) bool { return !slices.Contains(c.cfg.Audiences, a) })
}

// bindToken binds a token to the object that a reference names, and returns its UID.
func (c *call) bindToken(g *authn.Grant, ref *authenticationv1.BoundObjectReference) (types.UID, error) {
	snap, ns := c.cfg.Store.Snapshot(), c.info.Namespace
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	switch {
	case gvk.Group == "" && gvk.Kind == "Pod":
		pod, ok := client.Pods.Get(snap, ns, ref.Name)
		if !ok {
			return "", apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, ref.Name)
		}
		if pod.Spec.ServiceAccountName != c.info.Name {
			return "", apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", c.info.Name))
		}
		g.Pod = &authn.Ref{Name: pod.Name, UID: pod.UID}
		if pod.Spec.NodeName != "" {
			g.Node = &authn.Ref{Name: pod.Spec.NodeName}
			if node, ok := client.Nodes.Get(snap, "", pod.Spec.NodeName); ok {
				g.Node.UID = node.UID
			}
		}
		return pod.UID, nil
	case gvk.Group == "" && gvk.Kind == "Secret":
		secret, ok := client.Secrets.Get(snap, ns, ref.Name)
		if !ok {
			return "", apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, ref.Name)
		}
		g.Secret = &authn.Ref{Name: secret.Name, UID: secret.UID}
		return secret.UID, nil
	case gvk.Group == "" && gvk.Kind == "Node":
		node, ok := client.Nodes.Get(snap, "", ref.Name)
		if !ok {
			return "", apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, ref.Name)
		}
		g.Node = &authn.Ref{Name: node.Name, UID: node.UID}
		return node.UID, nil
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
}

// labelUsed writes down on which day the token of a secret was last used. It is a convenience for those who clean up: failing
// to do it is no reason to refuse the request.
func (s *Server) labelUsed(ctx context.Context, secret *corev1.Secret, day string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := s.Writer().Update(ctx, client.Secrets.Name, authn.LastUsed(secret, day), client.WriteOptions{})
	if err != nil && !apierrors.IsConflict(err) {
		s.cfg.Log.Warn("the day on which a token was last used could not be written down", "namespace", secret.Namespace, "secret", secret.Name, "error", err)
	}
}
