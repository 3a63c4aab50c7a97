package managed

import (
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"coracle.dev/coracle/api"
)

// ScaleKind is the kind of scale subresources, for writes of them.
var ScaleKind = &api.Kind{
	Group: autoscalingv1.GroupName, Kind: "Scale", Resource: "scales", Namespaced: true,
	Versions: []api.Version{{Name: "v1", Hub: true, New: func() runtime.Object { return &autoscalingv1.Scale{} }}},
}

// Scaled shows the managedFields of an object as those of its Scale and takes changes of these back: who owns
// the number of replicas owns it in both.
type Scaled struct {
	handler *managedfields.ScaleHandler
	// Entries are those of the Scale.
	Entries []metav1.ManagedFieldsEntry
}

// NewScaled looks at an object of a kind, for a request in a version. path is where the number of replicas stands
// (".spec.replicas", also if empty).
func NewScaled(k *api.Kind, version, path string, entries []metav1.ManagedFieldsEntry) (*Scaled, error) {
	if path == "" {
		path = ".spec.replicas"
	}
	var parts []any
	for _, p := range strings.Split(strings.TrimPrefix(path, "."), ".") {
		parts = append(parts, p)
	}
	at, err := fieldpath.MakePath(parts...)
	if err != nil {
		return nil, err
	}
	paths := managedfields.ResourcePathMappings{}
	for _, v := range versionsOf(k) {
		paths[v] = at
	}
	s := &Scaled{handler: managedfields.NewScaleHandler(entries, schema.GroupVersion{Group: k.Group, Version: version}, paths)}
	s.Entries, err = s.handler.ToSubresource()
	return s, err
}

// Back gives the entries of the object when those of its Scale have become entries. As upstream, one that is new has no time.
func (s *Scaled) Back(t *Tracker, entries []metav1.ManagedFieldsEntry, w *Write) ([]metav1.ManagedFieldsEntry, error) {
	out, err := s.handler.ToParent(entries)
	if err != nil {
		return nil, err
	}
	o := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ManagedFields: out}}
	t.settle(o, w)
	return o.ManagedFields, nil
}
