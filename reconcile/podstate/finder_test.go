package podstate_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// TestFinder: whatever changes in between, it finds what a walk finds.
func TestFinder(t *testing.T) {
	c := reconciletest.NewCluster(0)
	ctx := t.Context()
	r := rand.New(rand.NewPCG(1, 1))
	for _, ns := range []string{"a", "b"} {
		if _, err := c.Create(ctx, "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var f podstate.Finder
	for i := range 400 {
		ns := []string{"a", "b"}[r.IntN(2)]
		switch name := fmt.Sprint("p", r.IntN(20)); r.IntN(6) {
		case 0:
			_, _ = c.Create(ctx, "pods", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": fmt.Sprint(r.IntN(3)), "x": fmt.Sprint(r.IntN(2))}},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, client.WriteOptions{})
		case 1:
			_ = c.Delete(ctx, client.Ref{Resource: "pods", Namespace: ns, Name: name}, client.DeleteOptions{})
		case 2:
			f.Forget()
		}
		sel, err := labels.Parse([]string{"app=1", "app=0,x=1", "x!=1", "", "app in (1,2)", "app=9"}[r.IntN(6)])
		if err != nil {
			t.Fatal(err)
		}
		s := c.Snapshot()
		var want []string
		for pod := range client.Pods.List(s, ns) {
			if sel.Matches(labels.Set(pod.Labels)) {
				want = append(want, pod.Name)
			}
		}
		for range 1 + r.IntN(3) {
			var got []string
			for _, pod := range f.Find(s, ns, sel) {
				got = append(got, pod.Name)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("turn %d: %q in %s finds %v, want %v", i, sel, ns, got, want)
			}
		}
	}
}
