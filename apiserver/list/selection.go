package list

import (
	"context"
	"fmt"
	"iter"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/store"
)

// Selection is which objects of a kind a request is about. It is immutable.
type Selection struct {
	resource  string
	namespace string
	name      string // exact, "" for any
	label     labels.Selector
	terms     []term
	index     string // a store index that narrows the walk, "" for none
	value     string
	// values gives the fields of objects that are not read off the stored ones; then terms without get look there. Nil for
	// nearly all selections.
	values func(ctx context.Context, objs []api.Object) ([]map[string]string, error)
}

// term is one requirement of a field selector.
type term struct {
	get   func(api.Object) string // nil if the value is among Selection.values
	field string
	equal bool
	value string
}

// indexed names the store index that answers a field selector by equality.
var indexed = map[string]map[string]string{"pods": {"spec.nodeName": "node"}}

// Select compiles what a request selects. name is that of the path, "" for a collection.
// A field that the kind does not select by gives 400.
func Select(k *api.Kind, namespace, name string, o Options) (*Selection, error) {
	s := &Selection{resource: k.Name(), namespace: namespace, name: name, label: o.Label}
	if k.StoredAs != "" {
		s.resource = k.StoredAs
	}
	if !k.Namespaced {
		s.namespace = ""
	}
	if o.Field == nil {
		return s, nil
	}
	for _, r := range o.Field.Requirements() {
		if err := s.add(k, r); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Selection) add(k *api.Kind, r fields.Requirement) error {
	equal := r.Operator != selection.NotEquals
	switch r.Field {
	case "metadata.name":
		if equal && s.name == "" {
			s.name = r.Value
		} else if equal && s.name != r.Value {
			return apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
		s.terms = append(s.terms, term{get: api.Object.GetName, equal: equal, value: r.Value})
		return nil
	case "metadata.namespace":
		if equal && s.namespace == "" && k.Namespaced {
			s.namespace = r.Value
		}
		s.terms = append(s.terms, term{get: api.Object.GetNamespace, equal: equal, value: r.Value})
		return nil
	}
	get, ok := k.Fields[r.Field]
	if !ok {
		return unknownField(k, r.Field)
	}
	if index := indexed[s.resource][r.Field]; index != "" && equal && s.index == "" {
		s.index, s.value = index, r.Value
	}
	if k.FieldValues != nil {
		s.values, get = k.FieldValues, nil
	}
	s.terms = append(s.terms, term{get: get, field: r.Field, equal: equal, value: r.Value})
	return nil
}

func unknownField(k *api.Kind, name string) error {
	if len(k.Fields) == 0 {
		return apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", name, "metadata.name", "metadata.namespace"))
	}
	return apierrors.NewBadRequest("field label not supported: " + name)
}

// Converts tells that objects have to be converted to tell whether they are selected.
func (s *Selection) Converts() bool { return s.values != nil }

// Over gives the test whether one of objs is selected, its namespace and name included. Where fields are of the objects in
// another version, those of objs that may be selected are converted together, bounded by ctx; an error is that this failed.
func (s *Selection) Over(ctx context.Context, objs []api.Object) (func(api.Object) bool, error) {
	if s.values == nil {
		return s.matches, nil
	}
	var asked []api.Object
	for _, o := range objs {
		if s.matches(o) {
			asked = append(asked, o)
		}
	}
	if len(asked) == 0 {
		return s.matches, nil
	}
	values, err := s.values(ctx, asked)
	if err != nil {
		return nil, err
	}
	selected := make(map[api.Object]bool, len(asked))
	for i, o := range asked {
		selected[o] = s.matchesValues(values[i])
	}
	return func(o api.Object) bool { return selected[o] }, nil
}

func (s *Selection) matchesValues(values map[string]string) bool {
	for i := range s.terms {
		if t := &s.terms[i]; t.get == nil && (values[t.field] == t.value) != t.equal {
			return false
		}
	}
	return true
}

// matches tells whether an object is selected, as far as can be told of the stored one.
func (s *Selection) matches(obj api.Object) bool {
	if s.namespace != "" && obj.GetNamespace() != s.namespace || s.name != "" && obj.GetName() != s.name {
		return false
	}
	for i := range s.terms {
		t := &s.terms[i]
		if t.get != nil && (t.get(obj) == t.value) != t.equal {
			return false
		}
	}
	return s.label == nil || s.label.Matches(labels.Set(obj.GetLabels()))
}

// All tells that everything in the namespace is selected.
func (s *Selection) All() bool { return s.name == "" && s.label == nil && len(s.terms) == 0 }

// Resource is the resource in the store.
func (s *Selection) Resource() string { return s.resource }

// Walk gives the selected entries of a snapshot behind after, in order, by the shortest way. An error, which ends the walk, is
// that it could not be told whether an object is selected (Over); ctx bounds that.
func (s *Selection) Walk(ctx context.Context, snap store.Snapshot, after *store.Key) iter.Seq2[*store.Entry, error] {
	return func(yield func(*store.Entry, error) bool) {
		if s.values != nil {
			s.walkBatches(ctx, snap, after, yield)
			return
		}
		for e := range s.candidates(snap, after) {
			if s.matches(e.Object.(api.Object)) && !yield(e, nil) {
				return
			}
		}
	}
}

// batch is how many objects are converted together.
const batch = 500

// walkBatches is Walk where fields have to be asked for.
func (s *Selection) walkBatches(ctx context.Context, snap store.Snapshot, after *store.Key, yield func(*store.Entry, error) bool) {
	var entries []*store.Entry
	settle := func() bool {
		objs := make([]api.Object, len(entries))
		for i, e := range entries {
			objs[i] = e.Object.(api.Object)
		}
		selected, err := s.Over(ctx, objs)
		if err != nil {
			yield(nil, err)
			return false
		}
		for i, e := range entries {
			if selected(objs[i]) && !yield(e, nil) {
				return false
			}
		}
		entries = entries[:0]
		return true
	}
	for e := range s.candidates(snap, after) {
		if !s.matches(e.Object.(api.Object)) {
			continue
		}
		if entries = append(entries, e); len(entries) == batch && !settle() {
			return
		}
	}
	settle()
}

func (s *Selection) candidates(snap store.Snapshot, after *store.Key) iter.Seq[*store.Entry] {
	switch {
	case s.index != "" && after == nil:
		return snap.Index(s.resource, s.index, s.value)
	case s.name != "" && after == nil && (s.namespace != "" || s.clusterScoped(snap)):
		return func(yield func(*store.Entry) bool) {
			if e := snap.Get(store.Key{Resource: s.resource, Namespace: s.namespace, Name: s.name}); e != nil {
				yield(e)
			}
		}
	}
	return snap.List(s.resource, s.namespace, after)
}

// clusterScoped tells that the object of that name has no namespace.
func (s *Selection) clusterScoped(snap store.Snapshot) bool {
	return snap.Get(store.Key{Resource: s.resource, Name: s.name}) != nil
}
