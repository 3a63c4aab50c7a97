// Package authz decides what a user may do: system:masters everything, all others
// what RBAC gives them.
//
// It reads roles and bindings from the store and writes nothing. Parts of this program
// that write in-process are not asked.
package authz

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/client"
)

// Attributes are what a request wants to do.
type Attributes struct {
	User client.User
	Verb string
	// Resource requests.
	Group, Version, Resource, Subresource, Namespace, Name string
	IsResource                                             bool
	// Path of all other requests.
	Path string
}

// Authorizer allows requests; nothing is allowed that none allows.
type Authorizer interface {
	// Authorize tells whether the request is allowed and, where there is something to say, why or
	// why not. An error means that it could not be decided and counts as no.
	Authorize(ctx context.Context, a *Attributes) (allowed bool, reason string, err error)
}

// Func adapts a function to Authorizer.
type Func func(ctx context.Context, a *Attributes) (bool, string, error)

// Authorize calls f.
func (f Func) Authorize(ctx context.Context, a *Attributes) (bool, string, error) { return f(ctx, a) }

// Masters allows the group system:masters everything.
var Masters = Func(func(_ context.Context, a *Attributes) (bool, string, error) {
	return a.User.In(client.GroupMasters), "", nil
})

// Any allows what one of several allows.
type Any []Authorizer

// Authorize asks them in order.
func (u Any) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	var reasons []string
	var first error
	for _, one := range u {
		ok, reason, err := one.Authorize(ctx, a)
		if ok {
			return true, reason, nil
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
		if first == nil {
			first = err
		}
	}
	return false, strings.Join(reasons, "\n"), first
}

// escape keeps messages from looking like HTML.
var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// Forbidden is the 403 for a request that is not allowed.
func Forbidden(a *Attributes, reason string) error {
	text := escape.Replace(a.describe())
	if reason != "" {
		text += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, fmt.Errorf("%s", text))
}

func (a *Attributes) describe() string {
	if !a.IsResource {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	where := "at the cluster scope"
	if a.Namespace != "" {
		where = fmt.Sprintf("in the namespace %q", a.Namespace)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", a.User.Name, a.Verb, resource, a.Group, where)
}
