package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// impersonated reads whom a request wants to act as
// (https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/).
func impersonated(h http.Header) (client.User, bool) {
	groups := h[authenticationv1.ImpersonateGroupHeader]
	u := client.User{
		Name: h.Get(authenticationv1.ImpersonateUserHeader), UID: h.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: slices.Clone(groups),
	}
	found := u.Name != "" || u.UID != "" || len(groups) > 0
	for name, values := range h {
		key, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		found = true
		key = strings.ToLower(key)
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[key] = append(u.Extra[key], values...)
	}
	return u, found
}

// impersonate checks that user may act as wanted for this request, and completes wanted. Constrained impersonation (KEP-5284) is tried
// first: it asks for the right to act as somebody and for the right to do this request so. The older
// verb "impersonate", good for all requests, comes last. The first refusal is told.
func (s *Server) impersonate(r *http.Request, user, wanted client.User) (client.User, error) {
	if wanted.Name == "" {
		return user, apierrors.NewBadRequest(fmt.Sprintf(
			"requested &user.DefaultInfo{Name:%q, UID:%q, Groups:%#v, Extra:%#v} without impersonating a user name", wanted.Name, wanted.UID, wanted.Groups, wanted.Extra))
	}
	// What is behind us (a node, a proxied pod) shall see nothing of this.
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			r.Header.Del(name)
		}
	}
	info := route.Parse(r.Method, r.URL)
	asked := requested(&info, &user, r.URL.RawQuery)
	var first error
	for _, mode := range impersonations {
		if !mode.applies(&user, &wanted) {
			continue
		}
		i := impersonation{mode: mode, authorizer: s.authz, user: user, wanted: wanted}
		out, err := i.check(r.Context(), *asked)
		if err == nil {
			return out, nil
		}
		if first == nil {
			first = err
		}
	}
	return user, first
}

// impersonateMode is one way to act as another.
type impersonateMode struct {
	name string // "" for the older way
	// applies tells whether the way leads from one user to the other at all.
	applies func(user, wanted *client.User) bool
	// anyNode asks for the right to act as every node in place of the one.
	anyNode bool
}

var impersonations = []impersonateMode{
	{name: "associated-node", anyNode: true, applies: func(user, wanted *client.User) bool {
		node, ok := nodeUser(wanted.Name)
		_, _, account := serviceAccount(user.Name)
		own := user.Extra["authentication.kubernetes.io/node-name"]
		return ok && account && onlyName(wanted) && len(own) == 1 && own[0] == node
	}},
	{name: "arbitrary-node", applies: func(_, wanted *client.User) bool {
		_, ok := nodeUser(wanted.Name)
		return ok && onlyName(wanted)
	}},
	{name: "serviceaccount", applies: func(_, wanted *client.User) bool {
		_, _, ok := serviceAccount(wanted.Name)
		return ok && onlyName(wanted)
	}},
	{name: "user-info", applies: func(_, wanted *client.User) bool {
		_, node := nodeUser(wanted.Name)
		_, _, account := serviceAccount(wanted.Name)
		return !node && !account
	}},
	{applies: func(_, _ *client.User) bool { return true }},
}

// onlyName tells that nothing but a name is wanted.
func onlyName(u *client.User) bool { return u.UID == "" && len(u.Groups) == 0 && len(u.Extra) == 0 }

// nodeUser gives the node that a user name means.
func nodeUser(user string) (string, bool) {
	name, ok := strings.CutPrefix(user, "system:node:")
	return name, ok && len(validation.NameIsDNSSubdomain(name, false)) == 0
}

// serviceAccount takes apart the user name of a service account.
func serviceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, name, _ = strings.Cut(rest, ":")
	return namespace, name, len(validation.NameIsDNSLabel(namespace, false)) == 0 && len(validation.NameIsDNSSubdomain(name, false)) == 0
}

// impersonation is one try to act as another.
type impersonation struct {
	mode         impersonateMode
	authorizer   authz.Authorizer
	user, wanted client.User
}

func (i *impersonation) constrained() bool { return i.mode.name != "" }

// check asks for every right that the try needs, and gives the user that it leads to.
func (i *impersonation) check(ctx context.Context, request authz.Attributes) (client.User, error) {
	if i.constrained() {
		request.Verb = "impersonate-on:" + i.mode.name + ":" + request.Verb
		if err := i.ask(ctx, request); err != nil {
			return i.user, err
		}
	}
	out := i.wanted
	for _, step := range []func(context.Context, *client.User) error{i.name, i.uid, i.groups, i.extra} {
		if err := step(ctx, &out); err != nil {
			return i.user, err
		}
	}
	base := client.GroupAuthenticated
	switch {
	case out.Name == client.UserAnonymous:
		base = client.GroupUnauthenticated
	case out.In(client.GroupUnauthenticated):
		return out, nil
	}
	if !out.In(base) {
		out.Groups = append(slices.Clone(out.Groups), base)
	}
	return out, nil
}

// ask is nil if the authorizer allows.
func (i *impersonation) ask(ctx context.Context, a authz.Attributes) error {
	a.User = i.user
	if i.mode.anyNode {
		// What is allowed holds for the account on every node, so that no node's name or token may matter.
		a.User.Extra = map[string][]string{"authentication.kubernetes.io/associated-node-keys": slices.Sorted(maps.Keys(i.user.Extra))}
	}
	d, reason, err := i.authorizer.Authorize(ctx, &a)
	switch {
	case d == authz.Allowed:
		return nil
	case err != nil && reason != "":
		reason = fmt.Sprintf("%v: %s", err, reason)
	case err != nil:
		reason = err.Error()
	}
	return authz.Forbidden(&a, reason)
}

// attributes are those of the right to act as something. Users and groups were in the core group when there was one way only.
func (i *impersonation) attributes(resource, name string) authz.Attributes {
	a := authz.Attributes{Verb: "impersonate", IsResource: true, Group: authenticationv1.GroupName, Version: "v1", Resource: resource, Name: name, User: i.user}
	if i.constrained() {
		a.Verb += ":" + i.mode.name
	} else if resource == "users" || resource == "groups" {
		a.Group = ""
	}
	return a
}

func (i *impersonation) name(ctx context.Context, out *client.User) error {
	a := i.attributes("users", i.wanted.Name)
	if node, ok := nodeUser(i.wanted.Name); ok && i.constrained() {
		a.Resource, a.Name = "nodes", node
		if i.mode.anyNode {
			a.Name = "*"
		}
		out.Groups = []string{client.GroupNodes}
	}
	if namespace, account, ok := serviceAccount(i.wanted.Name); ok {
		a.Resource, a.Namespace, a.Name = "serviceaccounts", namespace, account
		if len(i.wanted.Groups) == 0 {
			out.Groups = client.ServiceAccountUser(namespace, account, "").Groups[:2:2]
		}
	}
	return i.ask(ctx, a)
}

func (i *impersonation) uid(ctx context.Context, _ *client.User) error {
	if i.wanted.UID == "" {
		return nil
	}
	return i.ask(ctx, i.attributes("uids", i.wanted.UID))
}

// many is from how many questions on the right to all of them is asked for first.
const many = 4

func (i *impersonation) groups(ctx context.Context, _ *client.User) error {
	groups := i.wanted.Groups
	if i.constrained() {
		a := i.attributes("groups", "")
		switch {
		case slices.Contains(groups, ""):
			return authz.Forbidden(&a, "impersonating the empty string group is not allowed")
		case slices.Contains(groups, client.GroupMasters):
			a.Name = client.GroupMasters
			return authz.Forbidden(&a, "impersonating the system:masters group is not allowed")
		case len(groups) >= many && i.ask(ctx, i.attributes("groups", "*")) == nil:
			return nil
		}
	}
	for _, g := range groups {
		if err := i.ask(ctx, i.attributes("groups", g)); err != nil {
			return err
		}
	}
	return nil
}

func (i *impersonation) extra(ctx context.Context, _ *client.User) error {
	extra := i.wanted.Extra
	if i.constrained() {
		a := i.attributes("userextras", "")
		if err := checkExtra(extra); err != nil {
			return authz.Forbidden(&a, err.Error())
		}
		count := 0
		for _, values := range extra {
			count += len(values)
		}
		if a.Subresource, a.Name = "*", "*"; count >= many && i.ask(ctx, a) == nil {
			return nil
		}
	}
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		for _, v := range extra[key] {
			a := i.attributes("userextras", v)
			a.Subresource = key
			if err := i.ask(ctx, a); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkExtra says what is wrong with extra information, which the older way lets pass.
func checkExtra(extra map[string][]string) error {
	for _, key := range slices.Sorted(maps.Keys(extra)) {
		values := extra[key]
		if key == "" {
			return errors.New("impersonating the empty string key in extra is not allowed")
		}
		if err := utilvalidation.IsDomainPrefixedPath(field.NewPath("extra", "key"), key).ToAggregate(); err != nil {
			return fmt.Errorf("impersonating an invalid key in extra is not allowed: %w", err)
		}
		switch {
		case key != strings.ToLower(key):
			return fmt.Errorf("impersonating a non-lowercase key in extra is not allowed: %q", key)
		case len(values) == 0:
			return errors.New("impersonating empty values in extra is not allowed")
		case slices.Contains(values, ""):
			return errors.New("impersonating the empty string value in extra is not allowed")
		}
	}
	return nil
}
