// Package authz decides what a user may do: system:masters everything, a node what belongs to it, all others
// what RBAC gives them.
//
// It reads roles and bindings, and what pods on a node refer to, from the store and writes nothing. Parts of this program
// that write in-process are not asked.
package authz

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

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
	// Fields and Labels are the selectors of a list, watch or deletecollection (KEP-4601): all of them hold for what the
	// request may see. An authorizer may use them to allow more, never to allow less. Nil where there are none or they could not be read.
	Fields fields.Requirements
	Labels labels.Requirements
}

// Decision is what an authorizer says of a request.
type Decision int8

// The decisions. What nobody has an opinion of is not allowed.
const (
	NoOpinion Decision = iota // others may allow it
	Allowed                   // whatever others say after this
	Denied                    // whatever others say after this
)

// If is Allowed where something holds, else NoOpinion.
func If(allowed bool) Decision {
	if allowed {
		return Allowed
	}
	return NoOpinion
}

// Authorizer decides on requests; nothing is allowed that none allows.
type Authorizer interface {
	// Authorize decides and, where there is something to say, tells why. An error means that it could not be decided, or
	// not as it should be; with NoOpinion others may still allow the request.
	Authorize(ctx context.Context, a *Attributes) (d Decision, reason string, err error)
}

// Func adapts a function to Authorizer.
type Func func(ctx context.Context, a *Attributes) (Decision, string, error)

// Authorize calls f.
func (f Func) Authorize(ctx context.Context, a *Attributes) (Decision, string, error) {
	return f(ctx, a)
}

// Masters allows the group system:masters everything.
var Masters = Func(func(_ context.Context, a *Attributes) (Decision, string, error) {
	return If(a.User.In(client.GroupMasters)), "", nil
})

// Any decides as the first of several that has an opinion.
type Any []Authorizer

// Authorize asks them in order.
func (u Any) Authorize(ctx context.Context, a *Attributes) (Decision, string, error) {
	var reasons []string
	var errs []error
	for _, one := range u {
		d, reason, err := one.Authorize(ctx, a)
		if d != NoOpinion {
			return d, reason, err
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return NoOpinion, strings.Join(reasons, "\n"), nil
	}
	return NoOpinion, strings.Join(reasons, "\n"), utilerrors.NewAggregate(errs)
}

// Select reads the selectors of a list, watch or deletecollection out of its query. A field selector that asks for one name
// makes a list or watch one of that object (resourceNames of a role then apply).
func (a *Attributes) Select(query string) {
	if !strings.Contains(query, "Selector") {
		return
	}
	values, _ := url.ParseQuery(query) // what can be read counts
	if text := values.Get("fieldSelector"); text != "" {
		if s, err := fields.ParseSelector(text); err == nil {
			a.Fields = s.Requirements()
			if name, ok := s.RequiresExactMatch("metadata.name"); ok && a.Name == "" && a.Verb != "deletecollection" && isSegment(name) {
				a.Name = name
			}
		}
	}
	if text := values.Get("labelSelector"); text != "" {
		if s, err := labels.Parse(text); err == nil {
			a.Labels, _ = s.Requirements()
		}
	}
}

// isSegment tells whether a name can stand in a path.
func isSegment(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/%")
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
