// Package reconcile is the one control-loop engine. A Loop declares what it
// reads and what it writes; the engine gives it a keyed queue with back-off,
// merges wake-ups, refuses writes that were not declared, records events, knows when
// the loop has caught up with a revision, and draws the graph of all loops.
package reconcile

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// Key is what a pass of a loop is about, in most loops an object's namespace and name.
type Key struct {
	Namespace, Name string
	// Resource is set by loops whose keys are objects of several resources.
	Resource string
}

// String gives "namespace/name", behind the resource if the key has one.
func (k Key) String() string {
	s := k.Name
	if k.Namespace != "" {
		s = k.Namespace + "/" + s
	}
	if k.Resource != "" {
		s = k.Resource + "/" + s
	}
	return s
}

// AnyResource, as the Resource of an Input or Output, stands for every
// resource, those declared at run time too.
const AnyResource = "*"

// Loop is one controller as data. Plan decides, Apply does.
type Loop struct {
	// Name is the controller's name as events show it ("deployment-controller"). No two
	// loops of an engine have the same.
	Name string
	// ServiceAccount is the account of kube-system as which the loop writes, Name if empty.
	ServiceAccount string
	// Source is the component that the loop's events name, Name if empty.
	Source  string
	Inputs  []Input
	Outputs []Output
	// Always are keys that get a pass at each start, for what has to be there
	// although nothing in the store asks for it.
	Always []Key
	// Workers is how many keys may be worked on at once, 1 if zero. One key is
	// never in two passes at a time.
	Workers int
	// Plan is a pure function of a snapshot, a key and the time. The snapshot includes all
	// that earlier passes for the same key wrote. An error means try again with back-off.
	Plan func(s store.Snapshot, key Key, now time.Time) (Plan, error)
	// Apply carries out Plan.Effect, for loops that touch more than objects. It is
	// idempotent. It runs before Plan.Writes. Nil where there is no effect.
	Apply func(ctx context.Context, key Key, effect any) error
	// Failed, if not nil, is asked what to write when a write of a pass failed with err
	// (neither a conflict nor something that is passed over), for conditions that tell the
	// user. It is as pure as Plan; what it wants written is tried once, before the back-off.
	Failed func(s store.Snapshot, key Key, now time.Time, err error) Plan
	// Timeout bounds one pass, one minute if zero.
	Timeout time.Duration
	// Spacing is the least time between two passes for the same key, 0 for none. The first wake-up is not delayed. It is for passes
	// that cost more the more there is (counting a namespace), where one pass does for many wake-ups.
	Spacing time.Duration
}

// Input is a resource whose changes wake the loop.
type Input struct {
	// Resource is a canonical resource name, or AnyResource.
	Resource string
	// Resources names what AnyResource is at the start, when every existing object is
	// turned into keys. Needed with AnyResource only.
	Resources func() []string
	// Keys gives the keys that a change concerns. It is pure, cheap, and sees the
	// snapshot after the change. At the start each existing object is shown as if it had just
	// been created (Prev nil). Nil: the changed object's own key.
	Keys func(s store.Snapshot, ev store.Event) []Key
}

// Output is a right to write that a loop declares. The engine refuses all others.
type Output struct {
	Resource    string
	Subresource string
	Verbs       []Verb
}

// Verb is a kind of write.
type Verb string

// The verbs of writes.
const (
	Create Verb = "create"
	Update Verb = "update"
	Delete Verb = "delete"
)

// Plan is what a pass wants done.
type Plan struct {
	// Effect is handed to Loop.Apply, if not nil.
	Effect any
	// Writes are carried out in order. A conflict, or AlreadyExists on create, ends the
	// pass and starts another at once; NotFound on delete or update is passed over, and so is a
	// create that is refused because the namespace is going away; any other error
	// ends the pass and starts another after back-off.
	Writes []Write
	// Parallel allows Writes to be carried out side by side (pods of a set). Creates start
	// with one and go on with batches of double size, so that a refusal is not repeated a thousand times.
	Parallel bool
	// Together asks that Writes, which are then creates and no others, happen in one
	// transaction where the client can do that (client.Batcher), and in order where it cannot.
	// OnSuccess and OnFailure are not asked.
	Together bool
	// Events are recorded after the writes succeeded.
	Events []Event
	// After asks for another pass after this long, 0 for none.
	After time.Duration
}

// Write is one change to an object.
type Write struct {
	Verb        Verb
	Resource    string
	Subresource string
	// Object is the new state (create, update); Update is conditioned on its resourceVersion.
	Object api.Object
	// Namespace, Name, UID say what to delete; UID "" is no condition, nor is ResourceVersion "".
	Namespace, Name string
	UID             types.UID
	ResourceVersion string
	Propagation     metav1.DeletionPropagation
	GraceSeconds    *int64
	// OnSuccess and OnFailure, if not nil, give the event to record for this write.
	// created is the object as it was stored (nil for delete).
	OnSuccess func(created api.Object) *Event
	OnFailure func(err error) *Event
}

// Event is an event to record, in the words that upstream uses.
type Event struct {
	Regarding corev1.ObjectReference
	Type      string // "Normal" or "Warning"
	Reason    string
	Message   string
}
