package claim_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

var owner = &metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "owner-0"}

func pod(name, app string, owner types.UID, controller bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}},
	}
	if owner != "" {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "x", UID: owner, Controller: &controller}}
	}
	return p
}

func put(t testing.TB, s store.Store, pods ...*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		key := store.Key{Resource: "pods", Namespace: p.Namespace, Name: p.Name}
		if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: p, Expect: store.ExpectAny}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestObjects holds which objects are owned, adopted and released.
func TestObjects(t *testing.T) {
	c := reconciletest.NewCluster(0)
	elsewhere := pod("elsewhere", "web", "", false)
	elsewhere.Namespace = "other"
	now := metav1.Now()
	leaving := pod("leaving", "web", "", false)
	leaving.DeletionTimestamp, leaving.Finalizers = &now, []string{"example.com/hold"}
	put(t, c, pod("mine", "web", "owner-0", true), pod("strayed", "other", "owner-0", true), pod("orphan", "web", "", false),
		pod("held", "web", "somebody", false), pod("stranger", "web", "somebody", true), pod("different", "other", "", false), elsewhere, leaving)
	got := claim.Objects(c.Snapshot(), client.Pods, owner, claim.Reference("apps/v1", "ReplicaSet", owner), labels.SelectorFromSet(labels.Set{"app": "web"}), nil)
	var owned, written []string
	for _, p := range got.Owned {
		owned = append(owned, p.Name)
	}
	for _, w := range got.Writes {
		written = append(written, fmt.Sprint(w.Object.GetName(), metav1.IsControlledBy(w.Object, owner)))
	}
	// "held" has an owner, but nobody who controls it.
	if s := fmt.Sprint(owned, written); s != "[mine held orphan] [strayedfalse heldtrue orphantrue]" {
		t.Error(s)
	}
}

// BenchmarkObjects looks for the 100 pods of one owner among 10,000 of the namespace.
func BenchmarkObjects(b *testing.B) {
	c := reconciletest.NewCluster(0)
	for i := range 10_000 {
		put(b, c, pod(fmt.Sprint("pod-", i), "web", types.UID(fmt.Sprint("owner-", i%100)), true))
	}
	snap, sel, ref := c.Snapshot(), labels.SelectorFromSet(labels.Set{"app": "web"}), claim.Reference("apps/v1", "ReplicaSet", owner)
	b.ReportAllocs()
	for b.Loop() {
		if n := len(claim.Objects(snap, client.Pods, owner, ref, sel, nil).Owned); n != 100 {
			b.Fatal(n)
		}
	}
}
