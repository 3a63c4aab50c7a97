package garbage_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/garbage"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{garbage.Loop(c.Registry)}
	})
}

// model is what has to be left: for each object the owners that it names and that are there.
type model map[string]map[string]bool

// remove takes an object out, and with it all that nobody else owns. Dependents that stay
// lose the owner; with orphan all of them stay.
func (m model) remove(name string, orphan bool) {
	delete(m, name)
	for _, dep := range slices.Sorted(maps.Keys(m)) {
		if owners, ok := m[dep]; ok && owners[name] {
			delete(owners, name)
			if len(owners) == 0 && !orphan {
				m.remove(dep, false)
			}
		}
	}
}

func (m model) String() string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprint(name, " of ", slices.Sorted(maps.Keys(m[name]))))
	}
	return strings.Join(lines, "\n")
}

// TestRandomForests makes random objects that own each other (never in circles), deletes some of them in
// all three ways while others are still being collected, and compares with the model.
func TestRandomForests(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			c := reconciletest.NewCluster(0)
			h := reconciletest.New(t, c, garbage.Loop(c.Registry))
			defer func() { h.Stop() }()
			m := model{}
			next := 0
			for range 12 {
				for range rnd.IntN(10) {
					add(h, m, fmt.Sprint("cm-", next), rnd)
					next++
				}
				orphans := rnd.IntN(2) == 0 // an orphaning delete has an outcome of its own only when nothing else goes on
				for range 1 + rnd.IntN(3) {
					names := slices.Sorted(maps.Keys(m))
					if len(names) == 0 {
						break
					}
					name := names[rnd.IntN(len(names))]
					policy := []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground}[rnd.IntN(2)]
					if orphans {
						policy = metav1.DeletePropagationOrphan
						h.Settle()
					}
					h.Delete("configmaps", "default", name, policy)
					m.remove(name, orphans)
				}
				if rnd.IntN(4) == 0 { // the program may stop in the middle
					h.Stop()
					h.Start(garbage.Loop(c.Registry))
				}
				h.Settle()
				if got := observe(h); got.String() != m.String() {
					t.Fatalf("seed %d: left\n%v\nwant\n%v", seed, got, m)
				}
			}
		})
	}
}

func add(h *reconciletest.Harness, m model, name string, rnd *rand.Rand) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	owners := map[string]bool{}
	names := slices.Sorted(maps.Keys(m))
	for range min(rnd.IntN(3), len(names)) {
		owner := names[rnd.IntN(len(names))]
		if owners[owner] {
			continue
		}
		owners[owner] = true
		obj := reconciletest.Get(h, client.ConfigMaps, "default", owner)
		block := rnd.IntN(2) == 0
		cm.OwnerReferences = append(cm.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: owner, UID: obj.UID, BlockOwnerDeletion: &block})
	}
	m[name] = owners
	h.Create("configmaps", cm)
}

func observe(h *reconciletest.Harness) model {
	m := model{}
	for _, cm := range reconciletest.All(h, client.ConfigMaps, "default") {
		owners := map[string]bool{}
		for _, ref := range cm.OwnerReferences {
			owners[ref.Name] = true
		}
		name := cm.Name
		if cm.DeletionTimestamp != nil {
			name += " (being deleted)"
		}
		m[name] = owners
	}
	return m
}

// TestCirclesInTheForegroundDoNotWaitForEachOther deletes one of two objects that own and block each other.
func TestCirclesInTheForegroundDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, garbage.Loop(c.Registry))
		defer h.Stop()
		yes := true
		a := h.Create("configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}})
		b := h.Create("configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "a", UID: a.GetUID(), BlockOwnerDeletion: &yes}}}})
		reconciletest.Change(h, client.ConfigMaps, "default", "a", "", func(cm *corev1.ConfigMap) {
			cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "b", UID: b.GetUID(), BlockOwnerDeletion: &yes}}
		})
		h.Delete("configmaps", "default", "a", metav1.DeletePropagationForeground)
		h.Settle()
		if n := h.Snapshot().Count("configmaps", ""); n != 0 {
			t.Errorf("%d of the two are left", n)
		}
	})
}

// TestAKindDeclaredLater collects objects whose owner is of a kind that is not served at first.
func TestAKindDeclaredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, garbage.Loop(c.Registry))
		defer h.Stop()
		h.Create("configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Widget", Name: "w", UID: "gone"}}}})
		h.Settle()
		if c.Snapshot().Count("configmaps", "") != 1 {
			t.Fatal("an object was deleted although nothing is known of its owner's kind")
		}
		if err := c.Registry.Add(&api.Kind{Group: "example.com", Kind: "Widget", Resource: "widgets", Namespaced: true,
			Versions: []api.Version{{Name: "v1", Hub: true}}}); err != nil {
			t.Fatal(err)
		}
		h.Create("customresourcedefinitions.apiextensions.k8s.io", &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: "Widget", Plural: "widgets", Singular: "widget", ListKind: "WidgetList"},
				Scope: apiextensionsv1.NamespaceScoped, Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
					Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}}},
			Status: apiextensionsv1.CustomResourceDefinitionStatus{StoredVersions: []string{"v1"}}})
		h.Settle()
		if c.Snapshot().Count("configmaps", "") != 0 {
			t.Error("the owner is known to be absent now, and its dependent is still there")
		}
	})
}
