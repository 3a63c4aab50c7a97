package apiserver

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// impersonated reads whom a request wants to act as
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation).
func impersonated(h http.Header) (client.User, bool) {
	u := client.User{
		Name: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: h[authenticationv1.ImpersonateGroupHeader],
	}
	for name, values := range h {
		key, ok := strings.CutPrefix(strings.ToLower(name), strings.ToLower(authenticationv1.ImpersonateUserExtraHeaderPrefix))
		if !ok {
			continue
		}
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[key] = append(u.Extra[key], values...)
	}
	return u, u.Name != "" || u.UID != "" || len(u.Groups) > 0 || len(u.Extra) > 0
}

// impersonate checks that user may act as wanted, and completes wanted.
func (s *Server) impersonate(r *http.Request, user, wanted client.User) (client.User, error) {
	if wanted.Name == "" {
		return user, apierrors.NewBadRequest("requested impersonation of groups, UID or extra without impersonating a user")
	}
	check := func(a authz.Attributes) error {
		a.User, a.Verb, a.IsResource, a.Version = user, "impersonate", true, "v1"
		if ok, reason, _ := s.authz.Authorize(r.Context(), &a); !ok {
			return authz.Forbidden(&a, reason)
		}
		return nil
	}
	namespace, account, isAccount := serviceAccount(wanted.Name)
	asked := authz.Attributes{Resource: "users", Name: wanted.Name}
	if isAccount {
		asked = authz.Attributes{Resource: "serviceaccounts", Namespace: namespace, Name: account}
	}
	if err := check(asked); err != nil {
		return user, err
	}
	for _, g := range wanted.Groups {
		if err := check(authz.Attributes{Resource: "groups", Name: g}); err != nil {
			return user, err
		}
	}
	if wanted.UID != "" {
		if err := check(authz.Attributes{Group: authenticationv1.GroupName, Resource: "uids", Name: wanted.UID}); err != nil {
			return user, err
		}
	}
	for key, values := range wanted.Extra {
		for _, v := range values {
			if err := check(authz.Attributes{Group: authenticationv1.GroupName, Resource: "userextras", Subresource: key, Name: v}); err != nil {
				return user, err
			}
		}
	}
	if isAccount && len(wanted.Groups) == 0 {
		wanted.Groups = client.ServiceAccountUser(namespace, account, "").Groups[:2]
	}
	base := client.GroupAuthenticated
	if wanted.Name == client.UserAnonymous {
		base = client.GroupUnauthenticated
	}
	if !slices.Contains(wanted.Groups, base) {
		wanted.Groups = append(slices.Clone(wanted.Groups), base)
	}
	// What is behind us (a node, a proxied pod) shall see nothing of this.
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			r.Header.Del(name)
		}
	}
	return wanted, nil
}

// serviceAccount takes apart the user name of a service account.
func serviceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	return namespace, name, ok && namespace != "" && name != "" && !strings.Contains(name, ":")
}
