package managed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
)

// maxAppliers is of how many kinds types are kept. Those of the kind that was not written for the longest go first; they are made
// again, in about a millisecond, when they are needed.
const maxAppliers = 64

// appliers are the types of kinds as apimachinery's field managers know them, made at the first need. Those of a pod take about
// half a megabyte and a millisecond.
type appliers struct {
	mu   sync.Mutex // guards all below, not the making
	made map[*api.Kind]*applier
	tick int64
}

// applier holds the types of a kind.
type applier struct {
	used  int64 // guarded by appliers.mu
	once  sync.Once
	types managedfields.TypeConverter
}

// Forget lets go of what was made for kinds that are not kept, as those of definitions that are gone. It is made again at need.
func (t *Tracker) Forget(keep func(*api.Kind) bool) {
	t.appliers.mu.Lock()
	defer t.appliers.mu.Unlock()
	maps.DeleteFunc(t.made, func(k *api.Kind, _ *applier) bool { return !keep(k) })
}

// types gives the types of a kind. Nobody waits for those of another.
func (t *Tracker) types(k *api.Kind) managedfields.TypeConverter {
	a := t.applier(k)
	a.once.Do(func() {
		if loose(k) {
			a.types = newLooseTypes(k)
		} else {
			a.types = &structTypes{tracker: t, kind: k}
		}
	})
	return a.types
}

func (t *Tracker) applier(k *api.Kind) *applier {
	t.appliers.mu.Lock()
	defer t.appliers.mu.Unlock()
	t.tick++
	if have := t.made[k]; have != nil {
		have.used = t.tick
		return have
	}
	if t.made == nil {
		t.made = map[*api.Kind]*applier{}
	}
	for len(t.made) >= maxAppliers {
		var oldest *api.Kind
		for other, a := range t.made {
			if oldest == nil || a.used < t.made[oldest].used {
				oldest = other
			}
		}
		delete(t.made, oldest)
	}
	a := &applier{used: t.tick}
	t.made[k] = a
	return a
}

// manager gives apimachinery's field manager for a write, bound to its context.
func (t *Tracker) manager(w *Write) (*managedfields.FieldManager, error) {
	c := w.converter()
	gvk := schema.GroupVersionKind{Group: w.Kind.Group, Version: w.version().Name, Kind: w.Kind.Kind}
	rule := resetOf(w.Kind, w.Subresource)
	filters := map[fieldpath.APIVersion]fieldpath.Filter{}
	if rule != resetNothing {
		for _, version := range versionsOf(w.Kind) {
			filters[fieldpath.APIVersion(version)] = filterOf(rule)
		}
	}
	make := managedfields.NewDefaultFieldManager
	if c.loose {
		make = managedfields.NewDefaultCRDFieldManager
	}
	return make(t.types(w.Kind), c, c, c, gvk, c.hub().GroupVersion(), w.Subresource, filters)
}

// Apply merges an applied configuration into an object (KEP-555), with the managedFields that come of it. old is the stored
// object, nil for none, and is not changed; applied is in the version of the write and is used up. The result is a hub object
// of the caller's, without defaults. Fields that others own and have otherwise are refused with upstream's conflict
// error unless force takes them.
func (t *Tracker) Apply(w *Write, old api.Object, applied *unstructured.Unstructured, force bool) (api.Object, error) {
	m, err := t.manager(w)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	c := w.converter()
	var live runtime.Object
	if old == nil {
		if live, err = c.New(c.hub()); err != nil {
			return nil, err
		}
	} else {
		live = wire.Shallow[runtime.Object](old)
		live.GetObjectKind().SetGroupVersionKind(c.hub())
	}
	out, err := m.Apply(live, applied, w.manager(), force)
	if err != nil {
		return nil, err
	}
	obj, ok := out.(api.Object)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("%T has no metadata", out))
	}
	if c.loose {
		obj = obj.DeepCopyObject().(api.Object)
	}
	t.settle(obj, w)
	return obj, nil
}

// settle brings the managedFields that apimachinery made into the form of ours: times in whole seconds, sets shared.
func (t *Tracker) settle(obj api.Object, w *Write) {
	entries := slices.Clone(obj.GetManagedFields())
	for i := range entries {
		e := &entries[i]
		if e.Time != nil && e.Time.Nanosecond() != 0 {
			e.Time = seconds(w.Now)
		}
		if e.FieldsV1 == nil {
			continue
		}
		if one, err := t.sets.of(e.FieldsV1.GetRawBytes(), true); err == nil {
			e.FieldsV1 = one.bytes
		}
	}
	slices.SortStableFunc(entries, func(a, b metav1.ManagedFieldsEntry) int { return compareOwners(&a, &b) })
	if len(entries) == 0 {
		entries = nil
	}
	obj.SetManagedFields(entries)
}

// structTypes gives objects of a built-in kind their types.
type structTypes struct {
	tracker *Tracker
	kind    *api.Kind
	made    sync.Map // version name -> *typed.ParseableType
}

// ObjectToTyped implements managedfields.TypeConverter.
func (s *structTypes) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	v := s.kind.Version(gvk.Version)
	if v == nil || gvk.Group != s.kind.Group {
		return nil, runtime.NewNotRegisteredErrForKind(s.kind.Kind, gvk)
	}
	t, ok := s.made.Load(v.Name)
	if !ok {
		t, _ = s.made.LoadOrStore(v.Name, typeOf(s.tracker.plans.of(structType(v))))
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return t.(*typed.ParseableType).FromUnstructured(u.Object, opts...)
	}
	return t.(*typed.ParseableType).FromStructured(obj, opts...)
}

// TypedToObject implements managedfields.TypeConverter.
func (s *structTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	return managedfields.NewDeducedTypeConverter().TypedToObject(v)
}

// updateLoose is Update for custom resources, which goes through apimachinery's field manager.
func (t *Tracker) updateLoose(w *Write, obj *unstructured.Unstructured, old api.Object) {
	m, err := t.manager(w)
	var live []metav1.ManagedFieldsEntry
	c := w.converter()
	var before runtime.Object = &unstructured.Unstructured{Object: map[string]any{}}
	before.GetObjectKind().SetGroupVersionKind(c.hub())
	if old != nil {
		live, before = old.GetManagedFields(), old
	}
	if err != nil {
		obj.SetManagedFields(live)
		return
	}
	if w.Subresource == "" && sharesAll(obj.GetManagedFields(), live) {
		obj.SetManagedFields(nil)
	}
	given := obj.GetManagedFields()
	if obj.GroupVersionKind().Empty() {
		obj.SetGroupVersionKind(c.hub())
	}
	if _, err := m.Update(before, obj, w.manager()); err != nil {
		obj.SetManagedFields(live)
		return
	}
	if given == nil && slices.EqualFunc(obj.GetManagedFields(), live, func(a, b metav1.ManagedFieldsEntry) bool {
		return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion && a.Subresource == b.Subresource &&
			a.Time.Equal(b.Time) && a.FieldsV1.Equal(*b.FieldsV1)
	}) {
		obj.SetManagedFields(live)
		return
	}
	t.settle(obj, w)
}

// looseTypes gives custom resources their types, as the schemas of their versions say.
type looseTypes struct {
	byVersion map[string]managedfields.TypeConverter
	deduced   managedfields.TypeConverter
}

// newLooseTypes reads the schemas of a kind. A version without one, or with one that cannot be read, has its types deduced
// from the objects.
func newLooseTypes(k *api.Kind) *looseTypes {
	out := &looseTypes{byVersion: map[string]managedfields.TypeConverter{}, deduced: managedfields.NewDeducedTypeConverter()}
	for i := range k.Versions {
		v := &k.Versions[i]
		if v.Schema == nil {
			continue
		}
		gvk := schema.GroupVersionKind{Group: k.Group, Version: v.Name, Kind: k.Kind}
		if c, err := schemaTypes(v, gvk); err == nil {
			out.byVersion[gvk.GroupVersion().String()] = c
		}
	}
	return out
}

// objectMeta is the schema of metadata as far as merging is concerned.
const objectMeta = `{"type":"object","properties":{
"annotations":{"type":"object","additionalProperties":{"type":"string"}},
"creationTimestamp":{"type":"string"},"deletionGracePeriodSeconds":{"type":"integer"},"deletionTimestamp":{"type":"string"},
"finalizers":{"type":"array","items":{"type":"string"},"x-kubernetes-list-type":"set"},
"generateName":{"type":"string"},"generation":{"type":"integer"},
"labels":{"type":"object","additionalProperties":{"type":"string"}},
"managedFields":{"type":"array","items":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"x-kubernetes-list-type":"atomic"},
"name":{"type":"string"},"namespace":{"type":"string"},
"ownerReferences":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["uid"],"items":{"type":"object","x-kubernetes-map-type":"atomic",
"properties":{"apiVersion":{"type":"string"},"blockOwnerDeletion":{"type":"boolean"},"controller":{"type":"boolean"},"kind":{"type":"string"},"name":{"type":"string"},"uid":{"type":"string"}}}},
"resourceVersion":{"type":"string"},"selfLink":{"type":"string"},"uid":{"type":"string"}}}`

// schemaTypes makes a type converter of the schema of a version.
func schemaTypes(v *api.Version, gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	data, err := json.Marshal(v.Schema())
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	doc["x-kubernetes-embedded-resource"] = true
	embed(doc)
	doc["x-kubernetes-group-version-kind"] = []any{map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}}
	if data, err = json.Marshal(doc); err != nil {
		return nil, err
	}
	models := map[string]*spec.Schema{"object": {}, "meta": {}}
	if err := json.Unmarshal(data, models["object"]); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(objectMeta), models["meta"]); err != nil {
		return nil, err
	}
	return managedfields.NewTypeConverter(models, false)
}

// embed gives a schema, and those within, the fields that every object has where one says that it is an object with a type
// of its own.
func embed(doc map[string]any) {
	if is, _ := doc["x-kubernetes-embedded-resource"].(bool); is {
		properties, _ := doc["properties"].(map[string]any)
		if properties == nil {
			properties = map[string]any{}
			doc["properties"] = properties
		}
		properties["apiVersion"] = map[string]any{"type": "string"}
		properties["kind"] = map[string]any{"type": "string"}
		properties["metadata"] = map[string]any{"$ref": "#/definitions/meta"}
	}
	for _, key := range []string{"properties", "items", "additionalProperties"} {
		inner, _ := doc[key].(map[string]any)
		if key != "properties" {
			if inner != nil {
				embed(inner)
			}
			continue
		}
		for _, p := range inner {
			if m, ok := p.(map[string]any); ok && m["$ref"] == nil {
				embed(m)
			}
		}
	}
}

// ObjectToTyped implements managedfields.TypeConverter.
func (l *looseTypes) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	c := l.byVersion[obj.GetObjectKind().GroupVersionKind().GroupVersion().String()]
	if c == nil {
		c = l.deduced
	}
	return c.ObjectToTyped(obj, opts...)
}

// TypedToObject implements managedfields.TypeConverter.
func (l *looseTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	return l.deduced.TypedToObject(v)
}
