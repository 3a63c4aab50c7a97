package custom

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/apiextensions"
	"coracle.dev/coracle/apiserver/backend"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Definitions are all CustomResourceDefinitions.
var Definitions = client.Resource[*apiextensionsv1.CustomResourceDefinition]{Name: "customresourcedefinitions.apiextensions.k8s.io"}

// Registrar keeps a Registry in step with the definitions in a store. Safe for concurrent use; the fields are set before
// the first call.
type Registrar struct {
	Store    client.Reader
	Registry *api.Registry
	// Backends reaches conversion webhooks.
	Backends *backend.Pool
	Log      *slog.Logger

	keep keep       // what was made of schemas
	mu   sync.Mutex // guards served, and orders changes of the registry
	from store.Revision
	// served are the definitions whose Kinds are in the registry, by name.
	served map[string]served
}

// served says of which state of a definition a Kind was made.
type served struct {
	definition *definition

	uid        types.UID
	generation int64
	names      apiextensionsv1.CustomResourceDefinitionNames
}

func (s served) same(o served) bool {
	return s.uid == o.uid && s.generation == o.generation && equality.Semantic.DeepEqual(s.names, o.names)
}

func stateOf(crd *apiextensionsv1.CustomResourceDefinition) served {
	return served{uid: crd.UID, generation: crd.Generation, names: namesOf(crd)}
}

// Load registers the Kinds of all established definitions, in one step. It is called once, before Run.
func (r *Registrar) Load() {
	r.mu.Lock()
	defer r.mu.Unlock()
	snap := r.Store.Snapshot()
	r.from = snap.Revision()
	r.served = map[string]served{}
	var kinds []*api.Kind
	for crd := range Definitions.List(snap, "") {
		if !due(snap, crd) || r.Registry.ByName(crd.Name) != nil {
			continue
		}
		d, err := newDefinition(crd, namesOf(crd), r.Backends, &r.keep)
		if err != nil {
			r.Log.Error("a custom resource is not served", "definition", crd.Name, "error", err)
			continue
		}
		kinds = append(kinds, d.kind())
		state := stateOf(crd)
		state.definition = d
		r.served[crd.Name] = state
	}
	if err := r.Registry.Change(nil, kinds...); err != nil {
		r.Log.Error("custom resources are not served", "error", err)
	}
}

// Run follows the store until ctx ends: what is committed is served at once.
func (r *Registrar) Run(ctx context.Context) error {
	cursor, err := r.Store.Cursor(r.from, Definitions.Name)
	for {
		if err == nil {
			var events []store.Event
			if events, err = cursor.Next(ctx); err == nil {
				for i := range events {
					r.sync(events[i].Entry.Name)
				}
				continue
			}
		}
		if ctx.Err() != nil || !errors.Is(err, store.ErrCompacted) {
			return err
		}
		cursor, err = r.startOver()
	}
}

// startOver looks at everything again, for when the history was forgotten before it was read.
func (r *Registrar) startOver() (store.Cursor, error) {
	snap := r.Store.Snapshot()
	for crd := range Definitions.List(snap, "") {
		r.sync(crd.Name)
	}
	r.mu.Lock()
	names := make([]string, 0, len(r.served))
	for name := range r.served {
		names = append(names, name)
	}
	r.mu.Unlock()
	for _, name := range names {
		r.sync(name)
	}
	return r.Store.Cursor(snap.Revision(), Definitions.Name)
}

// sync brings the registry in step with the present state of one definition.
func (r *Registrar) sync(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	snap := r.Store.Snapshot()
	crd, ok := Definitions.Get(snap, "", name)
	have, is := r.served[name]
	switch {
	case is && (!ok || crd.UID != have.uid):
		r.Registry.Remove(name)
		r.keep.forget(have.definition.schemas)
		delete(r.served, name)
		if !ok {
			return
		}
	case !ok:
		return
	}
	if due(snap, crd) {
		r.serve(crd)
	}
}

// due tells that a definition is to be served as the store has it: one that is established or that goes and has objects, which could
// not be deleted otherwise.
func due(snap store.Snapshot, crd *apiextensionsv1.CustomResourceDefinition) bool {
	return apiextensions.Established(crd) || crd.DeletionTimestamp != nil && snap.Count(crd.Name, "") > 0
}

// namesOf are the names under which a definition is served: the accepted ones. One that goes before it got any is known by those
// that it asked for.
func namesOf(crd *apiextensionsv1.CustomResourceDefinition) apiextensionsv1.CustomResourceDefinitionNames {
	if crd.DeletionTimestamp != nil && crd.Status.AcceptedNames.Plural == "" {
		return crd.Spec.Names
	}
	return crd.Status.AcceptedNames
}

// Serve registers the Kind of a definition that is about to be established: crd has the accepted names in its status.
// It is an error if that definition is gone, or goes, by now. When it returns nil, objects can be created as soon as the
// definition says that it is established.
func (r *Registrar) Serve(_ context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	snap := r.Store.Snapshot()
	have, ok := Definitions.Get(snap, "", crd.Name)
	switch {
	case !ok || have.UID != crd.UID:
		return fmt.Errorf("definition %s (%s) is gone", crd.Name, crd.UID)
	case have.DeletionTimestamp != nil && !due(snap, have):
		return fmt.Errorf("definition %s is being deleted", crd.Name)
	}
	return r.serve(crd)
}

// serve adds or replaces a Kind. mu is held.
func (r *Registrar) serve(crd *apiextensionsv1.CustomResourceDefinition) error {
	state := stateOf(crd)
	have, is := r.served[crd.Name]
	if !is && r.Registry.ByName(crd.Name) != nil {
		return nil // the program serves it by itself: the definition is kept, and that is all
	}
	if is && (have.same(state) || have.uid == state.uid && have.generation > state.generation) {
		return nil
	}
	d, err := newDefinition(r.shared(crd), namesOf(crd), r.Backends, &r.keep)
	if err != nil {
		r.Log.Error("a custom resource is not served", "definition", crd.Name, "error", err)
		return err
	}
	var old []string
	if is {
		old = []string{crd.Name}
	}
	if err := r.Registry.Change(old, d.kind()); err != nil {
		r.Log.Error("a custom resource is not served", "definition", crd.Name, "error", err)
		return err
	}
	if r.served == nil {
		r.served = map[string]served{}
	}
	if is {
		r.keep.forget(have.definition.schemas)
	}
	state.definition = d
	r.served[crd.Name] = state
	return nil
}

// shared is crd with the specification that the store holds, if it is the same, so that there is one copy of it.
func (r *Registrar) shared(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinition {
	have, ok := Definitions.Get(r.Store.Snapshot(), "", crd.Name)
	if !ok || have.UID != crd.UID || have.Generation != crd.Generation {
		return crd
	}
	c := *crd
	c.Spec = have.Spec
	return &c
}

// Is tells whether the Kind of that canonical name is a custom resource.
func Is(k *api.Kind) bool {
	return k != nil && slices.ContainsFunc(k.Versions, func(v api.Version) bool { return v.Settle != nil })
}
