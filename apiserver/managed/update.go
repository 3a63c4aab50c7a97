package managed

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/apiserver/wire"
)

// Tracker keeps managedFields. The zero value is ready; it is safe for concurrent use and must not be copied.
type Tracker struct {
	plans   plans
	sets    cache
	walkers sync.Pool
	appliers
}

// New returns a Tracker that has learned nothing yet.
func New() *Tracker {
	return &Tracker{walkers: sync.Pool{New: func() any { return &walker{} }}}
}

// Write is what is said of a write.
type Write struct {
	// Ctx bounds conversions of which others are asked (a webhook); nil for none.
	Ctx  context.Context
	Kind *api.Kind
	// Version is the version of the request, "" for the hub.
	Version     string
	Subresource string
	// Manager is who writes, "" for unknown.
	Manager string
	Now     time.Time
}

func (w *Write) version() *api.Version {
	if v := w.Kind.Version(w.Version); v != nil && w.Version != "" {
		return v
	}
	return w.Kind.Hub()
}

func (w *Write) context() context.Context {
	if w.Ctx == nil {
		return context.Background()
	}
	return w.Ctx
}

func (w *Write) manager() string {
	if w.Manager == "" {
		return unknown
	}
	return w.Manager
}

// subject is the object of a write in the versions that owners speak of.
type subject struct {
	apiVersion string // of the write
	reset      *reset
	// of gives old and new as structs of a version; ok is false for versions that there are not.
	of func(apiVersion string) (p *plan, old, obj reflect.Value, ok bool)
}

// loose tells that the objects of a kind are not Go structs.
func loose(k *api.Kind) bool {
	h := k.Hub()
	if h == nil {
		return false
	}
	_, is := h.New().(runtime.Unstructured)
	return is
}

// APIVersion is what managers of a version of a kind are entered under.
func APIVersion(k *api.Kind, v *api.Version) string {
	return schema.GroupVersion{Group: k.Group, Version: v.Name}.String()
}

// Update brings metadata.managedFields of obj, a hub object about to take the place of old, up to date: what obj
// changes belongs to the manager of the write, what it removes to nobody. old is nil for a create. A client may hand in
// managedFields with obj on the main endpoint, to edit or to empty them. An object that had none stays without, until
// it is applied. Nothing but managedFields is changed in obj.
//
// It costs about a comparison of both objects: some ten microseconds for a pod. An object that cannot be compared (a list with a key missing)
// keeps the managedFields of old.
func (t *Tracker) Update(w *Write, obj, old api.Object) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		t.updateLoose(w, u, old)
		return
	}
	given := obj.GetManagedFields()
	obj.SetManagedFields(nil)
	var live []metav1.ManagedFieldsEntry
	if old != nil {
		live = old.GetManagedFields()
	}
	before, changed := t.before(w.Subresource, given, live)
	if len(before) == 0 && old != nil {
		return
	}
	s := subject{apiVersion: APIVersion(w.Kind, w.version()), reset: resetOf(w.Kind, w.Subresource), of: t.versions(w, obj, old)}
	after, same, err := t.take(before, &s, w)
	switch {
	case err != nil, same && !changed:
		obj.SetManagedFields(live)
	default:
		obj.SetManagedFields(t.write(after))
	}
}

// before picks the entries that a write begins with: those of the client, if it may give some and they are sound, else the live ones.
// changed tells that they are not simply the live ones.
func (t *Tracker) before(subresource string, given, live []metav1.ManagedFieldsEntry) (out []owner, changed bool) {
	if subresource == "" && !sharesAll(given, live) {
		if resets(given) {
			return nil, len(live) > 0
		}
		if out, err := t.owners(given, false); err == nil && len(out) > 0 {
			return out, true
		}
	}
	out, err := t.owners(live, true)
	if err != nil {
		return nil, true
	}
	return out, false
}

// sharesAll tells that entries are the same by what they point to, or copies of them.
func sharesAll(a, b []metav1.ManagedFieldsEntry) bool {
	if len(a) != len(b) || len(a) == 0 {
		return false
	}
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion || x.Subresource != y.Subresource ||
			x.FieldsType != y.FieldsType || !x.Time.Equal(y.Time) || (x.FieldsV1 == nil) != (y.FieldsV1 == nil) ||
			x.FieldsV1 != y.FieldsV1 && !x.FieldsV1.Equal(*y.FieldsV1) {
			return false
		}
	}
	return true
}

// versions gives a kind's objects in its versions, each converted at most once.
func (t *Tracker) versions(w *Write, obj, old api.Object) func(string) (*plan, reflect.Value, reflect.Value, bool) {
	return func(apiVersion string) (p *plan, before, after reflect.Value, ok bool) {
		k := w.Kind
		group, version, cut := strings.Cut(apiVersion, "/")
		if !cut {
			group, version = "", apiVersion
		}
		v := k.Version(version)
		if v == nil || group != k.Group {
			return nil, before, after, false
		}
		o, err := wire.FromHub(w.context(), v, obj)
		if err != nil {
			return nil, before, after, false
		}
		after = reflect.ValueOf(o).Elem()
		before = reflect.Zero(after.Type())
		if old != nil {
			if o, err = wire.FromHub(w.context(), v, old); err != nil {
				return nil, before, after, false
			}
			before = reflect.ValueOf(o).Elem()
		}
		return t.plans.of(after.Type()), before, after, true
	}
}

// take gives what a write changed to its manager and takes it, and what was removed, from all others. same is true if nobody
// gained or lost.
func (t *Tracker) take(all []owner, s *subject, by *Write) (out []owner, same bool, err error) {
	w := t.walkers.Get().(*walker)
	defer t.walkers.Put(w)
	own, ok, err := s.compare(w, s.apiVersion)
	if err != nil || !ok {
		return nil, false, err
	}
	same = true
	others := map[string]difference(nil)
	out = all[:0]
	for i := range all {
		o := all[i]
		d := own
		if o.APIVersion != s.apiVersion {
			var ok bool
			if d, ok = others[o.APIVersion]; !ok {
				if d, ok, err = s.compare(w, o.APIVersion); err != nil {
					return nil, false, err
				} else if !ok {
					same = false
					continue
				}
				if others == nil {
					others = map[string]difference{}
				}
				others[o.APIVersion] = d
			}
		}
		left, less := o.fields.minus(d.changed)
		left, fewer := left.minus(d.removed)
		if less || fewer {
			o.fields, o.kept, same = left, false, false
		}
		if len(o.fields) > 0 {
			out = append(out, o)
		} else {
			same = false
		}
	}
	if len(own.changed) == 0 {
		return limit(out), same && len(out) <= maxUpdaters, nil
	}
	return limit(credit(out, s.apiVersion, own.changed, by)), false, nil
}

// credit adds fields to those of an updater.
func credit(all []owner, apiVersion string, changed set, by *Write) []owner {
	me := metav1.ManagedFieldsEntry{Manager: by.manager(), Operation: operationSet, APIVersion: apiVersion, Subresource: by.Subresource}
	at := slices.IndexFunc(all, func(o owner) bool { return o.sameAs(&me) })
	if at < 0 {
		all = append(all, owner{ManagedFieldsEntry: me})
		at = len(all) - 1
	}
	o := &all[at]
	o.fields, o.kept, o.Time = o.fields.union(changed), false, seconds(by.Now)
	return all
}

// compare gives the filtered difference in a version.
func (s *subject) compare(w *walker, apiVersion string) (d difference, ok bool, err error) {
	p, old, obj, ok := s.of(apiVersion)
	if !ok {
		return d, false, nil
	}
	skip := s.reset.fields
	if d, err = w.compare(p, old, obj, skip); err != nil {
		return d, true, err
	}
	d.changed, d.removed = s.reset.filter(d.changed), s.reset.filter(d.removed)
	return d, true, nil
}

// SettleTimes takes the times of old's entries back into obj if obj says nothing new but times, so that a write without effect
// stays without one. unchanged compares both as they would be then.
func SettleTimes(obj, old api.Object, unchanged func() bool) {
	a, b := obj.GetManagedFields(), old.GetManagedFields()
	if len(a) != len(b) || len(a) == 0 {
		return
	}
	differ := false
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion || x.Subresource != y.Subresource ||
			x.FieldsV1 != y.FieldsV1 && (x.FieldsV1 == nil || y.FieldsV1 == nil || !x.FieldsV1.Equal(*y.FieldsV1)) {
			return
		}
		differ = differ || !x.Time.Equal(y.Time)
	}
	if !differ {
		return
	}
	obj.SetManagedFields(b)
	if !unchanged() {
		obj.SetManagedFields(a)
	}
}

// Validate tells what is wrong with managedFields, in upstream's words.
func (t *Tracker) Validate(entries []metav1.ManagedFieldsEntry) error {
	_, err := t.owners(entries, false)
	return err
}
