package apiserver

import (
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

// issueToken answers POST to serviceaccounts/x/token.
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
	if err := c.completeTokenRequest(req); err != nil {
		return err
	}
	e, err := c.current()
	if err != nil {
		return err
	}
	grant, err := c.grant(e.Object.(*corev1.ServiceAccount), &req.Spec)
	if err != nil {
		return err
	}
	requested := time.Duration(*req.Spec.ExpirationSeconds) * time.Second
	token, _, err := c.tokens.Issue(grant)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to generate token: %v", err))
	}
	req.Status = authenticationv1.TokenRequestStatus{
		Token: token, ExpirationTimestamp: metav1.NewTime(c.cfg.Now().Add(requested).Truncate(time.Second)),
	}
	return c.answerObject(http.StatusCreated, req, gvk)
}

// completeTokenRequest defaults and validates.
func (c *call) completeTokenRequest(req *authenticationv1.TokenRequest) error {
	if req.Name != "" && req.Name != c.info.Name {
		return apierrors.NewBadRequest(fmt.Sprintf("metadata.name must match the service account name (%q)", c.info.Name))
	}
	if req.Namespace != "" && req.Namespace != c.info.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	req.Name, req.Namespace = c.info.Name, c.info.Namespace
	req.CreationTimestamp = c.now()
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
		return apierrors.NewInvalid(schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}, "", errs)
	}
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = slices.Clone(c.cfg.Audiences)
	}
	return nil
}

// grant says what the token is for.
func (c *call) grant(sa *corev1.ServiceAccount, spec *authenticationv1.TokenRequestSpec) (authn.Grant, error) {
	g := authn.Grant{ServiceAccount: sa, Audiences: spec.Audiences, Expiry: time.Duration(*spec.ExpirationSeconds) * time.Second}
	forServer := len(spec.Audiences) == len(c.cfg.Audiences)
	for _, a := range spec.Audiences {
		forServer = forServer && slices.Contains(c.cfg.Audiences, a)
	}
	if *spec.ExpirationSeconds == projectedTokenSeconds && forServer {
		g.WarnAfter, g.Expiry = g.Expiry, extendedToken
	}
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
	return g, nil
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
			return "", apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with serviceaccount %q", c.info.Name, pod.Spec.ServiceAccountName))
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
