package serverlease_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/serverlease"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestLease(t *testing.T) {
	c := reconciletest.NewCluster(0)
	loop := serverlease.Loop("host", "1")
	at := time.Unix(1e9, 0)
	pass := func() reconcile.Plan {
		t.Helper()
		p, err := loop.Plan(c.Snapshot(), loop.Always[0], at)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range p.Writes {
			if w.Verb == reconcile.Create {
				_, err = c.Create(t.Context(), w.Resource, w.Object, client.WriteOptions{})
			} else {
				_, err = c.Update(t.Context(), w.Resource, w.Object, client.WriteOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	if p := pass(); len(p.Writes) != 0 {
		t.Fatal("a lease is made without its namespace")
	}
	if _, err := c.Create(t.Context(), client.Namespaces.Name, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if p := pass(); len(p.Writes) != 1 || p.After != serverlease.Every {
		t.Fatalf("%+v", p)
	}
	l, ok := client.Leases.Get(c.Snapshot(), "kube-system", serverlease.Name("host"))
	if !ok || l.Labels["apiserver.kubernetes.io/identity"] != "kube-apiserver" || *l.Spec.LeaseDurationSeconds != 3600 {
		t.Fatalf("%+v", l)
	}
	at = at.Add(4 * time.Second)
	if p := pass(); len(p.Writes) != 0 || p.After != 6*time.Second {
		t.Fatalf("renewed too early, or not in time: %+v", p)
	}
	at = at.Add(6 * time.Second)
	if p := pass(); len(p.Writes) != 1 {
		t.Fatal("the lease was not renewed")
	}
	loop = serverlease.Loop("host", "2")
	if p := pass(); len(p.Writes) != 1 {
		t.Fatal("another process did not take the lease over")
	}
}
