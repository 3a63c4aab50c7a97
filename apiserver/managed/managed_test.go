package managed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/api"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

func configMap(data ...string) *corev1.ConfigMap {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "default", UID: "u"}, Data: map[string]string{}}
	for i := 0; i < len(data); i += 2 {
		c.Data[data[i]] = data[i+1]
	}
	return c
}

// TestLimit: beyond ten updaters the oldest become one, as in apimachinery.
func TestLimit(t *testing.T) {
	k := kindOf("configmaps")
	for _, earlier := range []bool{false, true} {
		live := configMap("k", "v")
		for i := range 13 {
			name := fmt.Sprintf("m%02d", i)
			if earlier && i == 0 { // as it is after the first time: the oldest
				name = bucket
			}
			at := metav1.NewTime(time.Unix(int64(1000+i), 0))
			live.ManagedFields = append(live.ManagedFields, metav1.ManagedFieldsEntry{
				Manager: name, Operation: "Update", APIVersion: "v1", Time: &at, FieldsType: "FieldsV1",
				FieldsV1: metav1.NewFieldsV1(fmt.Sprintf(`{"f:data":{"f:k%d":{}}}`, i)),
			})
		}
		next := live.DeepCopy()
		next.Data["k"] = "w"
		o := newOracle(t, k, "v1", "")
		want := o.UpdateNoErrors(o.typed(live), o.typed(next), "new")
		New().Update(&Write{Kind: k, Manager: "new", Now: time.Now()}, next, live)
		got := next
		for i := range got.ManagedFields {
			e := got.ManagedFields[i]
			w := want.(*corev1.ConfigMap).ManagedFields[i]
			if e.Manager != w.Manager || !e.FieldsV1.Equal(*w.FieldsV1) || e.Time.Unix() != w.Time.Unix() && e.Manager != "new" {
				t.Errorf("entry %d: %s %s %v, want %s %s %v", i, e.Manager, e.FieldsV1, e.Time, w.Manager, w.FieldsV1, w.Time)
			}
		}
		if len(got.ManagedFields) != len(want.(*corev1.ConfigMap).ManagedFields) {
			t.Errorf("%d entries, want %d", len(got.ManagedFields), len(want.(*corev1.ConfigMap).ManagedFields))
		}
	}
}

// TestGiven: what a client hands in as managedFields counts if it is sound, on the main endpoint.
func TestGiven(t *testing.T) {
	k, tr := kindOf("configmaps"), New()
	live := configMap("a", "1")
	live.UID = ""
	tr.Update(&Write{Kind: k, Manager: "m", Now: time.Now()}, live, nil)
	live.UID = "u"
	for _, test := range []struct {
		name        string
		given       []metav1.ManagedFieldsEntry
		subresource string
		want        []string // managers
	}{
		{"none", nil, "", []string{"m"}},
		{"empty", []metav1.ManagedFieldsEntry{}, "", nil},
		{"one empty", []metav1.ManagedFieldsEntry{{}}, "", nil},
		{"one empty at a subresource", []metav1.ManagedFieldsEntry{{}}, "status", []string{"m"}},
		{"unsound", []metav1.ManagedFieldsEntry{{Manager: "x", Operation: "Own", APIVersion: "v1", FieldsType: "FieldsV1"}}, "", []string{"m"}},
		{"unsound set", []metav1.ManagedFieldsEntry{{Manager: "x", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:`)}}, "", []string{"m"}},
		{"another", []metav1.ManagedFieldsEntry{{Manager: "x", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{ "f:data": {"f:a": {}} }`)}}, "", []string{"x"}},
		{"a version that is gone", []metav1.ManagedFieldsEntry{{Manager: "x", Operation: "Update", APIVersion: "v0", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:data":{}}`)}}, "", nil},
	} {
		obj := live.DeepCopy()
		obj.ManagedFields = test.given
		tr.Update(&Write{Kind: k, Subresource: test.subresource, Manager: "m", Now: time.Now()}, obj, live)
		var got []string
		for _, e := range obj.ManagedFields {
			got = append(got, e.Manager)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestShared: equal sets are held once, and entries that did not change are those of the old object.
func TestShared(t *testing.T) {
	k, tr := kindOf("pods"), New()
	w := &Write{Kind: k, Version: "v1", Manager: "kubectl", Now: time.Now()}
	a, b := aPod(k, 1), aPod(k, 2)
	tr.Update(w, a, nil)
	tr.Update(w, b, nil)
	if a.ManagedFields[0].FieldsV1 != b.ManagedFields[0].FieldsV1 {
		t.Error("two pods of a template have sets of their own")
	}
	a.UID = "u"
	same := a.DeepCopy()
	tr.Update(w, same, a)
	if &same.ManagedFields[0] != &a.ManagedFields[0] {
		t.Error("an update without effect has entries of its own")
	}
	next := running(a, 1)
	w.Subresource, w.Manager = "status", "kubelet"
	tr.Update(w, next, a)
	if len(next.ManagedFields) != 2 || next.ManagedFields[0].FieldsV1 != a.ManagedFields[0].FieldsV1 {
		t.Errorf("%v", show(next.ManagedFields))
	}
}

// TestSettleTimes: nothing but times is no change.
func TestSettleTimes(t *testing.T) {
	old := configMap("a", "1")
	old.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m", Operation: "Apply", APIVersion: "v1", Time: &epoch, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:data":{}}`)}}
	for _, unchanged := range []bool{true, false} {
		obj := old.DeepCopy()
		now := metav1.Now()
		obj.ManagedFields[0].Time = &now
		SettleTimes(obj, old, func() bool { return unchanged })
		if got := obj.ManagedFields[0].Time.Equal(&epoch); got != unchanged {
			t.Errorf("unchanged %v: time taken back %v", unchanged, got)
		}
	}
}

// FuzzSet: what parses is written as fieldpath writes it, and set operations agree with it.
func FuzzSet(f *testing.F) {
	f.Add(`{"f:a":{".":{},"f:b":{}},"k:{\"n\":\"x\",\"p\":80}":{},"v:1":{},"i:0":{}}`, `{"f:a":{"f:b":{}}}`)
	f.Add(`{"v:10":{},"v:9":{},"v:\"<\"":{},"v:true":{}}`, `{"v:9":{}}`)
	f.Fuzz(func(t *testing.T, x, y string) {
		var sets [2]set
		var paths [2]fieldpath.Set
		for i, text := range []string{x, y} {
			data, err := canonical([]byte(text))
			if err != nil {
				t.Skip()
			}
			again, err := canonical(data)
			if err != nil || !bytes.Equal(again, data) {
				t.Skip() // the library itself does not read what it wrote
			}
			if sets[i], err = parse(data); err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			if err := paths[i].FromJSON(bytes.NewReader(data)); err != nil {
				t.Skip()
			}
			if got := sets[i].appendJSON(nil, false); !bytes.Equal(got, data) {
				t.Fatalf("%s, want %s", got, data)
			}
		}
		less, _ := sets[0].minus(sets[1])
		for name, pair := range map[string][2]any{
			"union":   {sets[0].union(sets[1]), paths[0].Union(&paths[1])},
			"minus":   {less, paths[0].Difference(&paths[1])},
			"without": {sets[0].without(sets[1]), paths[0].RecursiveDifference(&paths[1])},
		} {
			want, err := pair[1].(*fieldpath.Set).ToJSON()
			if got := pair[0].(set).appendJSON(nil, false); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s of %s and %s: %s, want %s", name, x, y, got, want)
			}
		}
	})
}

// FuzzApply: whatever is applied, it is refused or what comes of it has managedFields that can be read, and applying it again
// changes nothing.
func FuzzApply(f *testing.F) {
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}")
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {a: b}, finalizers: [f]}\nspec: {containers: [{name: c}, {name: c}]}")
	f.Add("apiVersion: v1\nkind: Pod\nmetadata: {name: x, managedFields: []}")
	f.Add("apiVersion: v1\nkind: Pod\nspec: {tolerations: [{key: a}], nodeSelector: null, volumes: [{}]}")
	k, tr := kindOf("pods"), New()
	f.Fuzz(func(t *testing.T, text string) {
		applied := func() *unstructured.Unstructured {
			u := &unstructured.Unstructured{Object: map[string]any{}}
			if data, err := yaml.YAMLToJSON([]byte(text)); err != nil || json.Unmarshal(data, &u.Object) != nil || u.Object == nil {
				t.Skip()
			}
			return u
		}
		live := aPod(k, 1)
		tr.Update(&Write{Kind: k, Manager: "creator", Now: time.Unix(1000, 0)}, live, nil)
		live.UID = "u"
		w := &Write{Kind: k, Version: "v1", Manager: "applier", Now: time.Unix(2000, 0)}
		out, err := tr.Apply(w, live, applied(), true)
		if err != nil {
			return
		}
		if err := tr.Validate(out.GetManagedFields()); err != nil {
			t.Fatal(err)
		}
		again, err := tr.Apply(w, out, applied(), false)
		if err != nil {
			t.Fatalf("again: %v", err)
		}
		SettleTimes(again, out, func() bool { return true })
		if a, b := strings.Join(show(out.GetManagedFields()), "\n"), strings.Join(show(again.GetManagedFields()), "\n"); a != b {
			t.Fatalf("again:\n%s\nwas\n%s", b, a)
		}
	})
}

// What is made of kinds is bounded, and those that are gone are forgotten.
func TestTypesAreBounded(t *testing.T) {
	tr := New()
	first := &api.Kind{Group: "example.com", Resource: "first", Versions: kindOf("configmaps").Versions}
	tr.types(first)
	for range 2 * maxAppliers {
		tr.types(&api.Kind{Group: "example.com", Resource: "other", Versions: first.Versions})
		tr.types(first)
	}
	if n := len(tr.made); n != maxAppliers || tr.made[first] == nil {
		t.Errorf("%d are kept, want %d; the one that is used is among them: %t", n, maxAppliers, tr.made[first] != nil)
	}
	tr.Forget(func(k *api.Kind) bool { return k == first })
	if len(tr.made) != 1 {
		t.Errorf("%d are kept, want 1", len(tr.made))
	}
}

// asked remembers the context with which it was asked to convert.
type asked struct{ ctx context.Context }

func (a *asked) convert(ctx context.Context, objs []api.Object) ([]api.Object, error) {
	a.ctx = ctx
	out := objs[0].DeepCopyObject().(*unstructured.Unstructured)
	out.SetAPIVersion("example.com/v1")
	return []api.Object{out}, nil
}

// Conversions end with the request that needs them.
func TestConversionHasTheContextOfTheWrite(t *testing.T) {
	empty := func(v string) func() runtime.Object {
		return func() runtime.Object {
			return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/" + v, "kind": "Thing"}}
		}
	}
	a := &asked{}
	k := &api.Kind{Group: "example.com", Kind: "Thing", Resource: "things", Versions: []api.Version{
		{Name: "v1", Hub: true, New: empty("v1"), Convert: a.convert}, {Name: "v2", New: empty("v2"), Convert: a.convert}}}
	old := empty("v2")().(*unstructured.Unstructured)
	old.SetName("a")
	obj := empty("v1")().(*unstructured.Unstructured)
	obj.SetName("a")
	obj.SetLabels(map[string]string{"a": "b"})
	type key struct{}
	New().Update(&Write{Ctx: context.WithValue(t.Context(), key{}, 1), Kind: k, Manager: "m", Now: time.Now()}, obj, old)
	if a.ctx == nil || a.ctx.Value(key{}) == nil {
		t.Errorf("asked with %v", a.ctx)
	}
}
