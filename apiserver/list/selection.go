package list

import (
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
}

// term is one requirement of a field selector.
type term struct {
	get   func(api.Object) string
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
		s.terms = append(s.terms, term{api.Object.GetName, equal, r.Value})
		return nil
	case "metadata.namespace":
		if equal && s.namespace == "" && k.Namespaced {
			s.namespace = r.Value
		}
		s.terms = append(s.terms, term{api.Object.GetNamespace, equal, r.Value})
		return nil
	}
	get, ok := k.Fields[r.Field]
	if !ok {
		return unknownField(k, r.Field)
	}
	if index := indexed[s.resource][r.Field]; index != "" && equal && s.index == "" {
		s.index, s.value = index, r.Value
	}
	s.terms = append(s.terms, term{get, equal, r.Value})
	return nil
}

func unknownField(k *api.Kind, name string) error {
	if len(k.Fields) == 0 {
		return apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", name, "metadata.name", "metadata.namespace"))
	}
	return apierrors.NewBadRequest("field label not supported: " + name)
}

// Matches tells whether an object is selected, its namespace and name included.
func (s *Selection) Matches(obj api.Object) bool {
	if s.namespace != "" && obj.GetNamespace() != s.namespace || s.name != "" && obj.GetName() != s.name {
		return false
	}
	for i := range s.terms {
		t := &s.terms[i]
		if (t.get(obj) == t.value) != t.equal {
			return false
		}
	}
	return s.label == nil || s.label.Matches(labels.Set(obj.GetLabels()))
}

// All tells that everything in the namespace is selected.
func (s *Selection) All() bool { return s.name == "" && s.label == nil && len(s.terms) == 0 }

// Resource is the resource in the store.
func (s *Selection) Resource() string { return s.resource }

// Walk gives the selected entries of a snapshot behind after, in order, by the shortest way.
func (s *Selection) Walk(snap store.Snapshot, after *store.Key) iter.Seq[*store.Entry] {
	return func(yield func(*store.Entry) bool) {
		for e := range s.candidates(snap, after) {
			if s.Matches(e.Object.(api.Object)) && !yield(e) {
				return
			}
		}
	}
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
