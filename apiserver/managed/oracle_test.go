package managed

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/wire"
)

// oracle is apimachinery's field manager with client-go's schema, for one endpoint of a kind.
type oracle struct {
	*managedfields.FieldManager
	c *converter
}

var clientTypes = applyconfigurations.NewTypeConverter(scheme.Scheme)

func newOracle(t *testing.T, k *api.Kind, version, subresource string) *oracle {
	c := &converter{kind: k}
	filters := map[fieldpath.APIVersion]fieldpath.Filter{}
	for _, v := range versionsOf(k) {
		filters[fieldpath.APIVersion(v)] = filterOf(resetOf(k, subresource))
	}
	gvk := schema.GroupVersionKind{Group: k.Group, Version: version, Kind: k.Kind}
	m, err := managedfields.NewDefaultFieldManager(clientTypes, c, c, c, gvk, c.hub().GroupVersion(), subresource, filters)
	if err != nil {
		t.Fatal(err)
	}
	return &oracle{m, c}
}

// typed gives a hub object its type, in a copy.
func (o *oracle) typed(obj api.Object) runtime.Object {
	if obj == nil {
		empty, _ := o.c.New(o.c.hub())
		return empty
	}
	out := obj.DeepCopyObject()
	out.GetObjectKind().SetGroupVersionKind(o.c.hub())
	return out
}

func filler(seed int64) *randfill.Filler {
	return randfill.NewWithSeed(seed).NilChance(0.4).NumElements(1, 3).MaxDepth(14).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"1", "1000m", "1Gi", "1024Mi", "100m", "0"}[c.Intn(6)])
		},
		func(i *intstr.IntOrString, c randfill.Continue) {
			*i = []intstr.IntOrString{intstr.FromInt32(5), intstr.FromString("5"), intstr.FromString("http")}[c.Intn(3)]
		},
		func(r *runtime.RawExtension, c randfill.Continue) {
			r.Raw = []byte(fmt.Sprintf(`{"a":%d}`, c.Intn(3)))
		},
		func(t *metav1.Time, c randfill.Continue) { t.Time = time.Unix(c.Int63n(3), 0).UTC() },
		func(t *metav1.MicroTime, c randfill.Continue) { t.Time = time.UnixMicro(c.Int63n(3)).UTC() },
		func(m *metav1.TypeMeta, c randfill.Continue) {},
		func(m *metav1.FieldsV1, c randfill.Continue) {},
		func(m *[]metav1.ManagedFieldsEntry, c randfill.Continue) {},
		// Random ones do not survive the way through autoscaling/v1.
		func(m *[]autoscalingv2.MetricSpec, c randfill.Continue) {},
		func(m *[]autoscalingv2.MetricStatus, c randfill.Continue) {},
		// An empty one is lost there: upstream compares what came back from the version of the request, this package what is stored.
		func(b **autoscalingv2.HorizontalPodAutoscalerBehavior, c randfill.Continue) {},
		func(s *string, c randfill.Continue) {
			*s = []string{"", "a", "b", "http", "x/y", "<&>", "ü", "\"q\"", "c", "d\n", "e", "10"}[c.Intn(12)]
		},
	)
}

func random(k *api.Kind, f *randfill.Filler) api.Object {
	obj := k.Hub().New().(api.Object)
	f.Fill(obj)
	obj.SetName("x")
	obj.SetManagedFields(nil)
	return obj
}

// mix takes pieces of b into a.
func mix(a, b reflect.Value, r *rand.Rand) {
	switch {
	case r.Intn(12) == 0 && a.CanSet():
		a.Set(b)
	case a.Kind() == reflect.Struct && a.NumField() > 0 && a.Type().Field(0).IsExported():
		for i := range a.NumField() {
			if a.Field(i).CanSet() && r.Intn(3) > 0 {
				mix(a.Field(i), b.Field(i), r)
			}
		}
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		mix(a.Elem(), b.Elem(), r)
	case a.Kind() == reflect.Slice && a.Type().Elem().Kind() == reflect.Struct:
		switch r.Intn(4) {
		case 0:
			if b.Len() > 0 {
				a.Set(reflect.Append(a, b.Index(0)))
			}
		case 1:
			if a.Len() > 0 {
				a.Set(a.Slice(1, a.Len()))
			}
		default:
			for i := range min(a.Len(), b.Len()) {
				mix(a.Index(i), b.Index(i), r)
			}
		}
	case a.Kind() == reflect.Map && !a.IsNil():
		for _, k := range keys(b) {
			if r.Intn(2) == 0 {
				a.SetMapIndex(k, b.MapIndex(k))
			}
		}
		for _, k := range keys(a) {
			if r.Intn(4) == 0 {
				a.SetMapIndex(k, reflect.Value{})
			}
		}
	}
}

// keys of a map in a fixed order, so that a seed gives one history.
func keys(m reflect.Value) []reflect.Value {
	return slices.SortedFunc(slices.Values(m.MapKeys()), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
}

func mixed(old, other api.Object, r *rand.Rand) api.Object {
	out := old.DeepCopyObject().(api.Object)
	uid := out.GetUID()
	mix(reflect.ValueOf(out).Elem(), reflect.ValueOf(other.DeepCopyObject()).Elem(), r)
	out.SetName("x")
	out.SetUID(uid)
	out.SetManagedFields(old.GetManagedFields())
	return out
}

// sent is an object as it is once it has come over the wire in a version, nil if it has no form there.
func sent(t *testing.T, obj api.Object, k *api.Kind, v *api.Version) api.Object {
	out, err := wire.FromHub(t.Context(), v, obj)
	if err != nil {
		return nil
	}
	read := v.New()
	if err := json.Unmarshal([]byte(text(out)), read); err != nil {
		t.Fatal(err)
	}
	hub, err := wire.ToHub(t.Context(), k, v, read)
	if err != nil {
		return nil
	}
	hub.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return hub
}

var epoch = metav1.NewTime(time.Unix(1e9, 0).UTC())

// show gives managedFields as lines; the time says only whether it was set just now.
func show(entries []metav1.ManagedFieldsEntry) []string {
	var out []string
	for _, e := range entries {
		fresh := "old"
		if e.Time != nil && !e.Time.Equal(&epoch) {
			fresh = "new"
		}
		out = append(out, fmt.Sprintf("%s %s %s %q %s %s %s", e.Manager, e.Operation, e.APIVersion, e.Subresource, e.FieldsType, fresh, e.FieldsV1.GetRawBytes()))
	}
	slices.Sort(out)
	return out
}

// age makes all entries old, in both.
func age(objs ...api.Object) {
	for _, o := range objs {
		entries := slices.Clone(o.GetManagedFields())
		for i := range entries {
			entries[i].Time = &epoch
		}
		o.SetManagedFields(entries)
	}
}

// fields of a configuration to apply: some of an object's.
func configuration(t *testing.T, o *oracle, obj api.Object, v *api.Version, r *rand.Rand) *unstructured.Unstructured {
	out, err := wire.FromHub(t.Context(), v, obj)
	if err != nil {
		t.Skip(err)
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(out)
	if err != nil {
		t.Fatal(err)
	}
	var thin func(m map[string]any, depth int)
	thin = func(m map[string]any, depth int) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			v := m[k]
			if depth > 0 && r.Intn(3) == 0 {
				delete(m, k)
			} else if inner, ok := v.(map[string]any); ok {
				thin(inner, depth+1)
			}
		}
	}
	thin(m, 0)
	u := &unstructured.Unstructured{Object: m}
	u.SetManagedFields(nil)
	u.SetName("x")
	u.SetUID(obj.GetUID())
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: o.c.kind.Group, Version: v.Name, Kind: o.c.kind.Kind})
	return u
}

// TestOracle holds Update and Apply against apimachinery's field manager: random histories of every built-in kind.
func TestOracle(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	tracker := New()
	for _, k := range builtin.Kinds() {
		if k.Virtual || k.StoredAs != "" {
			continue
		}
		if _, err := clientTypes.ObjectToTyped((&oracle{c: &converter{kind: k}}).typed(nil)); err != nil {
			continue // client-go has no schema of it
		}
		t.Run(k.Name(), func(t *testing.T) {
			for seed := range int64(rounds) {
				history(t, tracker, k, seed)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// history makes some writes by several managers and compares the outcome of each.
func history(t *testing.T, tracker *Tracker, k *api.Kind, seed int64) {
	r := rand.New(rand.NewSource(seed))
	f := filler(seed)
	var live api.Object
	for step := range 10 {
		v := &k.Versions[r.Intn(len(k.Versions))]
		if seed%2 == 0 || v.NotServed {
			v = k.Hub()
		}
		w := &Write{Kind: k, Version: v.Name, Manager: []string{"one", "two", "kubectl"}[r.Intn(3)], Now: time.Now()}
		if live != nil && k.Subresource("status") != nil && r.Intn(3) == 0 {
			w.Subresource = "status"
		}
		o := newOracle(t, k, v.Name, w.Subresource)
		next := random(k, f)
		next.SetUID("")
		if live != nil {
			next = mixed(live, next, r)
		}
		if next = sent(t, next, k, v); next == nil {
			return
		}
		at := fmt.Sprintf("seed %d step %d: %s by %q in %s %s", seed, step, "update", w.Manager, v.Name, w.Subresource)
		want, got := runtime.Object(nil), next.DeepCopyObject().(api.Object)
		if live != nil && r.Intn(3) == 0 {
			at = strings.Replace(at, "update", "apply", 1)
			u := configuration(t, o, next, v, r)
			force := r.Intn(3) > 0
			var wantErr, gotErr error
			want, wantErr = o.Apply(o.typed(live), u.DeepCopy(), w.Manager, force)
			got, gotErr = tracker.Apply(w, live, u, force)
			if (wantErr == nil) != (gotErr == nil) || wantErr != nil && message(wantErr) != message(gotErr) {
				t.Fatalf("%s: error %v, want %v", at, gotErr, wantErr)
			}
			if wantErr != nil {
				continue
			}
			a, b := want.DeepCopyObject().(api.Object), got.DeepCopyObject().(api.Object)
			a.SetManagedFields(nil)
			b.SetManagedFields(nil)
			if x, y := text(a), text(b); x != y {
				t.Fatalf("%s:\n got %s\nwant %s", at, y, x)
			}
		} else {
			var err error
			if want, err = o.Update(o.typed(live), o.typed(next), w.Manager); err != nil {
				// Something in it that no schema allows (an item without a key): upstream tracks nothing then.
				return
			}
			tracker.Update(w, got, live)
		}
		x, y := show(want.(api.Object).GetManagedFields()), show(got.GetManagedFields())
		if !slices.Equal(x, y) {
			t.Fatalf("%s:\n got %s\nwant %s\nlive %s\nnext %s", at, strings.Join(y, "\n     "), strings.Join(x, "\n     "), text(live), text(next))
		}
		live = got
		live.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		live.SetUID("u")
		age(live)
	}
}

// message is what an error says, in a fixed order of conflicts.
func message(err error) string {
	if s, ok := err.(apierrors.APIStatus); ok && s.Status().Details != nil {
		var all []string
		for _, c := range s.Status().Details.Causes {
			all = append(all, c.Message+" "+c.Field)
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	text, _, _ := strings.Cut(err.Error(), ":")
	return text
}

func text(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}
