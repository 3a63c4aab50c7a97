package apiserver

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"coracle.dev/coracle/client"
)

// together runs f n times at once and returns the errors.
func together(n int, f func(i int) error) (errs []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := f(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	all.Wait()
	return errs
}

// TestPatchesAtOnce: patches that touch different fields all go in, whoever comes first.
func TestPatchesAtOnce(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	if _, err := cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const n = 40
	kinds := []types.PatchType{types.MergePatchType, types.StrategicMergePatchType}
	errs := together(n, func(i int) error {
		_, err := cms.Patch(context.Background(), "a", kinds[i%2], fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i), metav1.PatchOptions{})
		return err
	})
	got, err := cms.Get(ctx(t), "a", metav1.GetOptions{})
	if len(errs) > 0 || err != nil || len(got.Data) != n {
		t.Fatalf("%d of %d patches are there; %v, %v", len(got.Data), n, errs, err)
	}
}

// TestUpdatesAtOnce: of updates made from the same version one goes in, the others hear of a conflict.
func TestUpdatesAtOnce(t *testing.T) {
	e := start(t, smallKinds())
	cms := e.typed.CoreV1().ConfigMaps("default")
	base, err := cms.Create(ctx(t), configMap("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 20
	errs := together(n, func(i int) error {
		cm := base.DeepCopy()
		cm.Data = map[string]string{"by": strconv.Itoa(i)}
		_, err := cms.Update(context.Background(), cm, metav1.UpdateOptions{})
		return err
	})
	if len(errs) != n-1 {
		t.Fatalf("%d of %d updates failed", len(errs), n)
	}
	for _, err := range errs {
		if !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
}

// TestEveryEventOnce: watchers see every change of a busy time once and in order, wherever they began.
func TestEveryEventOnce(t *testing.T) {
	e := start(t, smallKinds())
	const writers, each, watchers = 8, 50, 6
	rv := strconv.FormatInt(int64(e.store.Snapshot().Revision()), 10)
	var seen sync.WaitGroup
	for i := range watchers {
		opts := metav1.ListOptions{ResourceVersion: rv}
		if i%2 == 1 {
			opts = metav1.ListOptions{} // the present, then what follows
		}
		w, err := e.typed.CoreV1().ConfigMaps("default").Watch(ctx(t), opts)
		if err != nil {
			t.Fatal(err)
		}
		seen.Go(func() {
			defer w.Stop()
			last, count := map[string]int64{}, 0
			for ev := range w.ResultChan() {
				cm := ev.Object.(*corev1.ConfigMap)
				at, _ := strconv.ParseInt(cm.ResourceVersion, 10, 64)
				if at <= last[cm.Name] {
					t.Errorf("%s at %d after %d", cm.Name, at, last[cm.Name])
					return
				}
				last[cm.Name] = at
				if ev.Type == watch.Deleted {
					if count++; count == writers {
						return
					}
				}
			}
			t.Errorf("the watch ended after %d of %d objects", count, writers)
		})
	}
	w := e.Writer()
	errs := together(writers, func(i int) error {
		name := fmt.Sprint("c", i)
		cm := configMap(name, nil)
		cm.Namespace = "default"
		if _, err := w.Create(context.Background(), "configmaps", cm, client.WriteOptions{}); err != nil {
			return err
		}
		for n := range each {
			_, err := client.Mutate(context.Background(), local{e.store, w}, client.ConfigMaps, "default", name, "", func(cm *corev1.ConfigMap) bool {
				cm.Data = map[string]string{"n": strconv.Itoa(n)}
				return true
			})
			if err != nil {
				return err
			}
		}
		return w.Delete(context.Background(), client.Ref{Resource: "configmaps", Namespace: "default", Name: name}, client.DeleteOptions{})
	})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	seen.Wait()
}

// local is a client in the process.
type local struct {
	client.Reader
	client.Writer
}

// TestNamespaceRace: no object is left in a namespace that was found empty after it began to terminate.
func TestNamespaceRace(t *testing.T) {
	e := start(t, smallKinds())
	for round := range 20 {
		ns := fmt.Sprint("ns", round)
		e.namespace(ns)
		errs := together(4, func(i int) error {
			if i == 0 {
				return e.Writer().Delete(context.Background(), client.Ref{Resource: "namespaces", Name: ns}, client.DeleteOptions{})
			}
			cm := configMap(fmt.Sprint("c", i), nil)
			cm.Namespace = ns
			_, err := e.Writer().Create(context.Background(), "configmaps", cm, client.WriteOptions{})
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			return err
		})
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		s := e.store.Snapshot()
		terminating, ok := client.Namespaces.Get(s, "", ns)
		if !ok || terminating.DeletionTimestamp == nil {
			t.Fatalf("%+v", terminating)
		}
		marked, _ := strconv.ParseInt(terminating.ResourceVersion, 10, 64)
		for cm := range client.ConfigMaps.List(s, ns) {
			if at, _ := strconv.ParseInt(cm.ResourceVersion, 10, 64); at > marked {
				t.Fatalf("%s was created at %d in a namespace that terminates since %d", cm.Name, at, marked)
			}
		}
	}
}
