// Package api is the registry of Kinds: everything that the rest of the program
// knows of a resource stands in one Kind descriptor, whether it was compiled in
// or declared by a CustomResourceDefinition at run time.
//
// It owns names and versions, defaulting, validation, what a client may set,
// table columns, selectable fields and indexes. It is pure: no I/O, no clock,
// no store. The packages below it hold one API group each.
package api

import (
	"context"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is any API object with metadata.
type Object interface {
	metav1.Object
	runtime.Object
}

// Kind describes one resource completely. It is immutable once registered.
//
// The hub version is the Go type in which objects are decoded, stored and shared; all
// functions below take the hub version. A nil function means that there is
// nothing to do.
type Kind struct {
	Group      string // "" for core
	Kind       string // "Deployment"
	Resource   string // plural, "deployments"
	Singular   string // "deployment"
	ShortNames []string
	Categories []string
	Namespaced bool

	// Definition is the UID of the CustomResourceDefinition that declares the kind, "" for built-in kinds: one of the same
	// name that takes its place declares another kind.
	Definition types.UID

	// Versions in order of preference; exactly one has Hub set.
	Versions []Version

	// Default fills what the client left out (after decoding, before admission). It is
	// idempotent.
	Default func(obj Object)
	// Strategy rules create and update of the main resource.
	Strategy
	// Desired tells whether an update changes the desired state, so that
	// metadata.generation grows. Nil: the kind keeps no generation.
	Desired func(obj, old Object) bool
	// Grace is the number of seconds that a deletion waits for the owner of the
	// running thing (the node of a pod), 0 for at once. requested is
	// DeleteOptions.gracePeriodSeconds. Nil: always at once.
	Grace func(obj Object, requested *int64) int64

	// CreateOnUpdate lets PUT create an absent object.
	CreateOnUpdate bool
	// UnconditionalUpdate lets PUT replace an object without naming its resourceVersion.
	UnconditionalUpdate bool
	// ValidateName gives what is wrong with a name; prefix is set for the
	// generateName part. Nil: RFC 1123 subdomain.
	ValidateName func(name string, prefix bool) []string
	// AnyFinalizer lets finalizers do without a domain, as upstream does outside of its own older groups.
	AnyFinalizer bool
	// Verbs of the main resource as discovery names them; nil means all eight:
	// create delete deletecollection get list patch update watch.
	Verbs []string
	// Virtual kinds are answered by the server and never stored
	// (SubjectAccessReview, TokenReview, ComponentStatus).
	Virtual bool
	// StoredAs is the canonical name of the resource in whose place objects are stored, for
	// a resource that shows another's objects under a second group
	// (events.k8s.io shows core events). Empty: its own.
	StoredAs string
	// Relaxed objects are committed without waiting for the disk (Event, Lease).
	Relaxed bool

	Columns []Column
	// Fields are the selectable fields beside metadata.name and metadata.namespace, by
	// the name that a field selector uses.
	Fields map[string]func(obj Object) string
	// FieldValues gives, for each of objs as they are stored, what all Fields say of it, where they cannot be read off the
	// stored object (a webhook converts it into the version of the request). It converts all of them at once, and fails where that
	// fails. Nil: Fields read the stored object.
	FieldValues func(ctx context.Context, objs []Object) ([]map[string]string, error)
	// Indexes file objects under values for in-process readers (store.Snapshot.Index).
	// The indexes "owner" (by controller and other owner UIDs) and "label" are not
	// listed here: every kind has "owner".
	Indexes map[string]func(obj Object) []string

	Subresources []Subresource

	// PerVersion is for kinds whose rules differ from version to version (custom resources): by the name of a
	// version, the Kind as its requests see it, of which that version is the hub. Requests in a version go through
	// that Kind from decoding to validation. Nil: one rule for all.
	PerVersion map[string]*Kind
	// Save brings an object of the hub version into the one in which it is stored, where that is another. It does not
	// change its argument. Nil: it is stored as it is.
	Save func(ctx context.Context, obj Object) (Object, error)
	// BeginDelete changes an object that is about to be deleted for the first time (a finalizer that holds it until
	// what belongs to it is gone).
	BeginDelete func(obj Object, now time.Time)
}

// Version is one served version of a Kind.
type Version struct {
	Name string // "v1"
	// New and NewList make empty objects of this version.
	New     func() runtime.Object
	NewList func() runtime.Object
	// Hub marks the version in which the object lives.
	Hub bool
	// NotServed versions can be stored but not requested.
	NotServed bool
	// Deprecated is the warning that each request in this version is given.
	Deprecated string
	// ToHub and FromHub convert an object between this version and the hub. They do
	// not change their argument. Nil for the hub itself.
	ToHub   func(runtime.Object) (Object, error)
	FromHub func(Object) (runtime.Object, error)
	// Convert brings stored objects, or those of any version of the kind, into this version, all at once, for kinds
	// whose objects are not converted by a plain function (custom resources, whose conversion may be a webhook).
	// It does not change its arguments; what comes back is shared where nothing had to change. Where it is set, on
	// the hub too, ToHub and FromHub are nil. Use wire.FromHub and wire.ToHub, which know both.
	Convert func(ctx context.Context, objs []Object) ([]Object, error)
	// Settle makes of a decoded body (or the outcome of a patch) an object of this version: unknown fields are taken out and,
	// if strict is set, named; malformed metadata is an error. It may change obj. Nil: decoding did all.
	Settle func(obj runtime.Object, strict bool) (strictErrs []error, err error)
	// Schema is the schema of this version of a custom resource, shared and not to be changed; nil for built-in kinds.
	// It never returns nil.
	Schema func() *apiextensionsv1.JSONSchemaProps
}

// Strategy is what happens to an object on its way in.
type Strategy struct {
	// PrepareCreate resets what a client may not set when it creates.
	PrepareCreate func(obj Object)
	// PrepareUpdate takes from old what this endpoint may not change. obj may be
	// changed, old not.
	PrepareUpdate func(obj, old Object)
	// Validate and ValidateUpdate return field errors in upstream's words. Metadata
	// has been validated already; ValidateUpdate includes what Validate would say
	// where upstream does so.
	Validate       func(obj Object) field.ErrorList
	ValidateUpdate func(obj, old Object) field.ErrorList
	// Warnings are sent to the client beside a successful answer. old is nil on create.
	Warnings func(obj, old Object) []string
}

// Subresource is an endpoint below an object.
type Subresource struct {
	Name string // "status"
	// Type is the kind that goes over the wire, zero for that of the resource itself.
	Type schema.GroupVersionKind
	// Verbs as discovery names them ("get", "patch", "update", "create").
	Verbs []string
	// Strategy, if not nil, makes this a further view of the same stored object: GET
	// returns it, PUT and PATCH go through the strategy. Otherwise the server has a
	// handler of its own for the name.
	Strategy *Strategy
	// Versions to which it is limited, nil for all.
	Versions []string
	// Scale and Rescale are for the subresource "scale" of custom resources: Scale shows obj; missing is the path of
	// the number of replicas if obj has none there. Rescale sets that number in an object that the caller owns.
	Scale   func(obj Object) (scale *autoscalingv1.Scale, missing string, err error)
	Rescale func(obj Object, replicas int32) error
	// ReplicasPath is where that number stands (".spec.replicas", also if empty).
	ReplicasPath string
}

// Column is one column of `kubectl get`.
type Column struct {
	Name string // "Ready"
	// Type is "string" (the default if empty), "integer", "number", "boolean" or "date".
	Type        string
	Format      string // "name" for the first column
	Description string
	// Priority 0 is always shown, 1 only with -o wide.
	Priority int32
	// Cell gives a string, int64, float64 or bool; now is for ages.
	Cell func(obj Object, now time.Time) any
}

// GroupResource names the resource: its String is store.Key's Resource.
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Resource}
}

// Name is the canonical resource name, "deployments.apps" or "pods".
func (k *Kind) Name() string { return k.GroupResource().String() }

// Hub returns the version in which objects live.
func (k *Kind) Hub() *Version {
	for i := range k.Versions {
		if k.Versions[i].Hub {
			return &k.Versions[i]
		}
	}
	return nil
}

// Version returns the version of that name, or nil.
func (k *Kind) Version(name string) *Version {
	for i := range k.Versions {
		if k.Versions[i].Name == name {
			return &k.Versions[i]
		}
	}
	return nil
}

// In is the Kind whose rules hold for requests in a version.
func (k *Kind) In(version string) *Kind {
	if p := k.PerVersion[version]; p != nil {
		return p
	}
	return k
}

// Loaded is a stored object in the hub version with the defaults of today. It is shared, and obj itself for nearly all
// kinds and objects.
func (k *Kind) Loaded(ctx context.Context, obj Object) (Object, error) {
	v := k.Hub()
	if v.Convert == nil {
		return obj, nil
	}
	out, err := v.Convert(ctx, []Object{obj})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Subresource returns the subresource of that name, or nil.
func (k *Kind) Subresource(name string) *Subresource {
	for i := range k.Subresources {
		if k.Subresources[i].Name == name {
			return &k.Subresources[i]
		}
	}
	return nil
}

// On adapts a function of a concrete type to the form that a Kind takes, so
// that group packages write their rules on the types they concern.
func On[T Object](f func(T)) func(Object) {
	return func(o Object) { f(o.(T)) }
}

// OnUpdate is On for functions of the new and the old object.
func OnUpdate[T Object](f func(obj, old T)) func(Object, Object) {
	return func(o, p Object) { f(o.(T), p.(T)) }
}

// Checks is On for validation of one object.
func Checks[T Object](f func(T) field.ErrorList) func(Object) field.ErrorList {
	return func(o Object) field.ErrorList { return f(o.(T)) }
}

// ChecksUpdate is On for validation of a change.
func ChecksUpdate[T Object](f func(obj, old T) field.ErrorList) func(Object, Object) field.ErrorList {
	return func(o, p Object) field.ErrorList { return f(o.(T), p.(T)) }
}

// Cell is On for a table cell that needs no clock.
func Cell[T Object](f func(T) any) func(Object, time.Time) any {
	return func(o Object, _ time.Time) any { return f(o.(T)) }
}

// Field is On for a selectable field.
func Field[T Object](f func(T) string) func(Object) string {
	return func(o Object) string { return f(o.(T)) }
}

// Values is On for an index.
func Values[T Object](f func(T) []string) func(Object) []string {
	return func(o Object) []string { return f(o.(T)) }
}
