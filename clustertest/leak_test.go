package clustertest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
)

// goroutines are the stacks of all goroutines.
func goroutines() []string {
	buf := make([]byte, 8<<20)
	return strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
}

// left waits until no more goroutines than before are there: those that a Close has ended may still be on their
// last steps. It returns the stacks that are too many.
func left(before int) []string {
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return nil
		}
		runtime.Gosched()
	}
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) && runtime.NumGoroutine() > before {
		runtime.Gosched()
	}
	if runtime.NumGoroutine() <= before {
		return nil
	}
	return goroutines()
}

// TestNothingIsLeft closes a cluster in the middle of its work, with watches open, and looks for goroutines.
func TestNothingIsLeft(t *testing.T) {
	warm := Start(t) // what lives as long as the process begins now
	if err := warm.Close(); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	c, err := New(t.Context(), Nodes(3))
	if err != nil {
		t.Fatal(err)
	}
	idle := runtime.NumGoroutine()
	if _, err := c.Client().AppsV1().Deployments("default").Create(t.Context(), deployment("web", 50), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory := informers.NewSharedInformerFactory(c.Client(), 0)
	factory.Core().V1().Pods().Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	w, err := c.Client().CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range w.ResultChan() { // ends by itself: the cluster is gone
	}
	cancel()
	factory.Shutdown()
	if stacks := left(before); stacks != nil {
		t.Errorf("%d goroutines before, %d after:\n%s", before, len(stacks), strings.Join(stacks, "\n\n"))
	}
	t.Logf("%d goroutines in an idle cluster of three nodes", idle-before)
}

// TestManySideBySide runs clusters that know nothing of each other.
func TestManySideBySide(t *testing.T) {
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c := Start(t)
			name := fmt.Sprintf("of-%d", i)
			if _, err := c.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			all, err := c.Client().CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all.Items {
				if strings.HasPrefix(m.Name, "of-") && m.Name != name {
					t.Errorf("%s is in the cluster of %s", m.Name, name)
				}
			}
		})
	}
}

// TestAHundred has a hundred clusters at work at the same time, in bounded memory.
func TestAHundred(t *testing.T) {
	if testing.Short() {
		t.Skip("some seconds of work for all processors")
	}
	const most = 1 << 30
	before := inUse()
	clusters := make([]*Cluster, 100)
	for i := range clusters {
		clusters[i] = Start(t)
	}
	var group sync.WaitGroup
	for _, c := range clusters {
		group.Go(func() {
			deployments := c.Client().AppsV1().Deployments("default")
			if _, err := deployments.Create(t.Context(), deployment("web", 5), metav1.CreateOptions{}); err != nil {
				t.Error(err)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := c.until(ctx, func() error {
				d, err := deployments.Get(ctx, "web", metav1.GetOptions{})
				if err == nil && d.Status.AvailableReplicas != 5 {
					err = fmt.Errorf("%d are available", d.Status.AvailableReplicas)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if used := inUse() - before; used > most {
		t.Errorf("they use %d MiB", used>>20)
	} else {
		t.Logf("they use %d MiB", used>>20)
	}
}
