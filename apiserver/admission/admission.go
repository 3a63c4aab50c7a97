// Package admission is the place in the chain of a write where plug-ins may change
// an object (mutating) and then refuse it (validating). It holds the shape of a
// plug-in and those that are built in.
//
// Plug-ins read the snapshot that the request was given and never the store; they write nothing
// but the request's object, and what they add to its transaction (Require, Also).
package admission

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Operation is what a request does.
type Operation string

// The operations.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Request is one write on its way through admission. It is used by one goroutine.
type Request struct {
	Operation Operation
	Kind      *api.Kind
	// Version is the version as requested, empty for writers in this process.
	Version     string
	Subresource string
	Namespace   string
	// Name is empty before a generated name is known.
	Name string
	// Object is the new hub object: mutating plug-ins may change it, nobody keeps it. Nil on
	// Delete and Connect.
	Object api.Object
	// Old is the stored object, never to be changed. Nil on Create and Connect.
	Old api.Object
	// Options are the create, update, delete or connect options, if there are any.
	Options runtime.Object
	User    client.User
	// Local says that a part of this program writes: what its user may do is not asked.
	Local  bool
	DryRun bool
	// Snapshot is the state on which the request is decided.
	Snapshot store.Snapshot
	Now      time.Time
	// Warn sends a warning to the client beside the answer. Never nil.
	Warn func(text string)
	// Annotate records something about the decision for the audit log, under a key of the form "domain/name" (it is not the
	// annotations of the object). Safe for concurrent use. Nil drops it: call AddAnnotation.
	Annotate func(key, value string)
	// AnnotateBodies says that the audit log takes what is in objects, not only what was decided on them.
	AnnotateBodies bool

	require map[store.Key]store.Revision
	also    []store.Op
	round   int
	again   bool
	states  map[string]any
}

// Again asks for the mutating plug-ins to run a second time, because one of them changed what those before it have seen. There is
// no third time (reinvocation, https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#reinvocation-policy).
func (r *Request) Again() { r.again = true }

// Round is 0 in the first run of the mutating plug-ins and 1 in the second.
func (r *Request) Round() int { return r.round }

// State is what a plug-in keeps from one round to the next, under its name; nil if it kept nothing.
func (r *Request) State(plugin string) any { return r.states[plugin] }

// SetState keeps something for the next round.
func (r *Request) SetState(plugin string, state any) {
	if r.states == nil {
		r.states = map[string]any{}
	}
	r.states[plugin] = state
}

// ObjectName is the name of the object as far as it is known: empty before a generated name is.
func (r *Request) ObjectName() string {
	if r.Name == "" && r.Object != nil {
		return r.Object.GetName()
	}
	return r.Name
}

// ObjectNamespace is the namespace as webhooks and policies are shown it: that of a request for a namespace is the namespace itself.
func (r *Request) ObjectNamespace() string {
	if r.Namespace == "" && r.Kind.Group == "" && r.Kind.Resource == "namespaces" {
		return r.ObjectName()
	}
	return r.Namespace
}

// OperationOptions are the options in the type that belongs to the operation, with their type written in them, as webhooks and
// policies are shown them: CreateOptions for a patch that creates, UpdateOptions for one that changes. Nil on Connect.
func (r *Request) OperationOptions() runtime.Object {
	switch r.Operation {
	case Create:
		o := createOptions(r.Options)
		o.TypeMeta = optionsType("CreateOptions")
		return o
	case Update:
		o := updateOptions(r.Options)
		o.TypeMeta = optionsType("UpdateOptions")
		return o
	case Delete:
		o := &metav1.DeleteOptions{}
		if given, ok := r.Options.(*metav1.DeleteOptions); ok {
			o = given.DeepCopy()
		}
		o.TypeMeta = optionsType("DeleteOptions")
		return o
	}
	return nil
}

func optionsType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: kind}
}

func createOptions(given runtime.Object) *metav1.CreateOptions {
	switch o := given.(type) {
	case *metav1.CreateOptions:
		return o.DeepCopy()
	case *metav1.UpdateOptions:
		return &metav1.CreateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation}
	case *metav1.PatchOptions:
		return &metav1.CreateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation}
	}
	return &metav1.CreateOptions{}
}

func updateOptions(given runtime.Object) *metav1.UpdateOptions {
	switch o := given.(type) {
	case *metav1.UpdateOptions:
		return o.DeepCopy()
	case *metav1.PatchOptions:
		return &metav1.UpdateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation}
	}
	return &metav1.UpdateOptions{}
}

// Is tells whether the request is for the main resource (subresource "") or a subresource
// of the kind with that canonical name.
func (r *Request) Is(resource, subresource string) bool {
	return r.Subresource == subresource && r.Kind.Name() == resource
}

// AddAnnotation calls Annotate, if there is one.
func (r *Request) AddAnnotation(key, value string) {
	if r.Annotate != nil {
		r.Annotate(key, value)
	}
}

// Require makes the commit depend on an object standing at a revision
// (store.ExpectAbsent for none). If it does not, the whole request is decided anew.
func (r *Request) Require(key store.Key, at store.Revision) {
	if r.require == nil {
		r.require = map[store.Key]store.Revision{}
	}
	r.require[key] = at
}

// Also adds a change that happens together with the request or not at all. Op.Expect should be
// the revision that was read; if it does not hold, the whole request is decided anew.
func (r *Request) Also(op store.Op) { r.also = append(r.also, op) }

// Effects returns what Require and Also gathered and forgets it.
func (r *Request) Effects() (map[store.Key]store.Revision, []store.Op) {
	require, also := r.require, r.also
	r.require, r.also = nil, nil
	return require, also
}

// Plugin is one admission plug-in. Either function may be nil.
type Plugin struct {
	// Name as upstream calls it ("NamespaceLifecycle").
	Name string
	// Mutate may change Request.Object. It may run more than once for a request.
	Mutate func(context.Context, *Request) error
	// Validate sees the object as it will be stored.
	Validate func(context.Context, *Request) error
}

// Chain is an ordered list of plug-ins. In a server's chain they stand as upstream orders them: those built in, policies, webhooks,
// and last those that charge what the others let through (Last).
type Chain []Plugin

// Mutate runs the mutating parts, twice if one of them asks for it; the first error ends it.
func (c Chain) Mutate(ctx context.Context, r *Request) error {
	r.round = 0
	err := c.mutate(ctx, r)
	if err == nil && r.again {
		r.round = 1
		err = c.mutate(ctx, r)
	}
	return err
}

func (c Chain) mutate(ctx context.Context, r *Request) error {
	for i := range c {
		if c[i].Mutate != nil {
			if err := c[i].Mutate(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// Validate runs the validating parts; the first error ends it.
func (c Chain) Validate(ctx context.Context, r *Request) error {
	for i := range c {
		if c[i].Validate != nil {
			if err := c[i].Validate(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// Resource names the resource of a request in errors.
func (r *Request) Resource() schema.GroupResource { return r.Kind.GroupResource() }

// displayName is how errors call the object.
func (r *Request) displayName() string {
	if r.Name != "" {
		return r.Name
	}
	if r.Object != nil {
		if n := r.Object.GetName(); n != "" {
			return n
		}
		if n := r.Object.GetGenerateName(); n != "" {
			return n
		}
	}
	return "Unknown"
}

// Forbidden is the refusal of a request for a reason, as admission words it.
func Forbidden(r *Request, reason error) error {
	return apierrors.NewForbidden(r.Resource(), r.displayName(), reason)
}
