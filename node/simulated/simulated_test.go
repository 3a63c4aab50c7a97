package simulated

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// play runs f beside count simulated nodes, in a synctest bubble.
func play(t *testing.T, count int, f func(t *testing.T, c *reconciletest.Cluster, restart func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := reconciletest.NewCluster(0)
		for _, name := range []string{"default", LeaseNamespace} {
			if _, err := c.Create(t.Context(), "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		var stop func()
		start := func() {
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- New(Config{Client: c, Count: count}).Run(ctx) }()
			synctest.Wait()
			stop = func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		}
		start()
		f(t, c, func() { stop(); start() })
		stop()
	})
}

func pod(name, node string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	p.Spec.NodeName = node
	p.Spec.Containers = []corev1.Container{{Name: "a", Image: "img"}}
	return p
}

func create(t *testing.T, c *reconciletest.Cluster, p *corev1.Pod) {
	t.Helper()
	if _, err := c.Create(t.Context(), "pods", p, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestNodesStayAlive(t *testing.T) {
	play(t, 50, func(t *testing.T, c *reconciletest.Cluster, _ func()) {
		nodes := 0
		for n := range client.Nodes.List(c.Snapshot(), "") {
			nodes++
			if n.Status.Conditions[3].Type != corev1.NodeReady || n.Status.Conditions[3].Status != corev1.ConditionTrue {
				t.Errorf("%s is not ready: %+v", n.Name, n.Status.Conditions)
			}
		}
		if nodes != 50 {
			t.Fatalf("%d nodes", nodes)
		}
		for range 30 {
			time.Sleep(7 * time.Second)
			synctest.Wait()
			for l := range client.Leases.List(c.Snapshot(), LeaseNamespace) {
				if age := time.Since(l.Spec.RenewTime.Time); age > 25*time.Second {
					t.Fatalf("lease of %s was not renewed for %v", l.Name, age)
				}
			}
		}
	})
}

func TestPodsRunAndGo(t *testing.T) {
	play(t, 10, func(t *testing.T, c *reconciletest.Cluster, restart func()) {
		create(t, c, pod("early", "simulated-3"))
		create(t, c, pod("elsewhere", "real"))
		for i := range 200 {
			create(t, c, pod(fmt.Sprint("p", i), fmt.Sprintf("simulated-%d", i%10)))
		}
		synctest.Wait()
		addresses := map[string]string{}
		for p := range client.Pods.List(c.Snapshot(), "default") {
			if p.Name == "elsewhere" {
				if p.Status.Phase == corev1.PodRunning {
					t.Error("a pod of another node was touched")
				}
				continue
			}
			if cond := condition(p, corev1.PodReady); p.Status.Phase != corev1.PodRunning || cond == nil || cond.Status != corev1.ConditionTrue {
				t.Errorf("%s: %s %+v", p.Name, p.Status.Phase, cond)
			}
			if other := addresses[p.Status.PodIP]; other != "" {
				t.Errorf("%s and %s both have %s", p.Name, other, p.Status.PodIP)
			}
			addresses[p.Status.PodIP] = p.Name
		}
		restart()
		for p := range client.Pods.List(c.Snapshot(), "default") {
			if p.Name != "elsewhere" && p.Status.PodIP != "" && addresses[p.Status.PodIP] != p.Name {
				t.Errorf("%s changed its address", p.Name)
			}
		}
		create(t, c, pod("late", "simulated-1"))
		synctest.Wait()
		late, _ := client.Pods.Get(c.Snapshot(), "default", "late")
		if addresses[late.Status.PodIP] != "" {
			t.Errorf("address %s is given twice", late.Status.PodIP)
		}
		for i := range 200 {
			if err := c.Delete(t.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: fmt.Sprint("p", i)}, client.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := c.Snapshot().Count("pods", "default"); n != 3 {
			t.Errorf("%d pods are left", n)
		}
	})
}

func TestPodThatCompletes(t *testing.T) {
	play(t, 1, func(t *testing.T, c *reconciletest.Cluster, _ func()) {
		p := pod("job", "simulated-0")
		p.Annotations = map[string]string{CompletesAfter: "5s"}
		create(t, c, p)
		phase := func() corev1.PodPhase {
			synctest.Wait()
			p, _ := client.Pods.Get(c.Snapshot(), "default", "job")
			return p.Status.Phase
		}
		if got := phase(); got != corev1.PodRunning {
			t.Error(got)
		}
		time.Sleep(6 * time.Second)
		if got := phase(); got != corev1.PodSucceeded {
			t.Error(got)
		}
	})
}

func TestFinalizerSeesTheEnd(t *testing.T) {
	play(t, 1, func(t *testing.T, c *reconciletest.Cluster, _ func()) {
		p := pod("held", "simulated-0")
		p.Finalizers = []string{"example.com/hold"}
		create(t, c, p)
		synctest.Wait()
		if err := c.Delete(t.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: "held"}, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got, ok := client.Pods.Get(c.Snapshot(), "default", "held")
		if !ok || got.Status.Phase != corev1.PodSucceeded || *got.DeletionGracePeriodSeconds != 0 {
			t.Errorf("%v %+v", ok, got)
		}
	})
}
