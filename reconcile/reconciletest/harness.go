package reconciletest

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Harness is a cluster with loops running on it, inside a synctest bubble.
type Harness struct {
	*Cluster
	T       testing.TB
	Engine  *reconcile.Engine
	ordered bool
	stop    func()
}

// Run calls f in a synctest bubble with a new cluster on which the loops run, and
// stops them when f returns. The namespaces "default" and "kube-system" exist.
func Run(t *testing.T, f func(h *Harness), loops ...reconcile.Loop) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := New(t, NewCluster(0), loops...)
		defer h.Stop()
		f(h)
	})
}

// New starts loops on a cluster. The caller is in a synctest bubble and calls Stop.
func New(t testing.TB, c *Cluster, loops ...reconcile.Loop) *Harness {
	t.Helper()
	return newHarness(t, c, false, loops)
}

func newHarness(t testing.TB, c *Cluster, ordered bool, loops []reconcile.Loop) *Harness {
	t.Helper()
	h := &Harness{Cluster: c, T: t, ordered: ordered}
	for _, name := range []string{"default", "kube-system"} {
		if _, ok := client.Namespaces.Get(c.Snapshot(), "", name); !ok {
			h.Create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	h.Start(loops...)
	return h
}

// Start starts an engine with the given loops; after Stop, again.
func (h *Harness) Start(loops ...reconcile.Loop) {
	loops = slices.Clone(loops)
	for i := range loops {
		loops[i].Spacing = 0 // Settle does not wait for the clock
	}
	h.Engine = reconcile.NewEngine(h.Cluster, slog.New(slog.NewTextHandler(testWriter{h.T}, nil)), nil).Strict()
	if h.ordered {
		h.Engine.Ordered()
	}
	h.Engine.Add(loops...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Engine.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			h.T.Errorf("engine: %v", err)
		}
	}
	synctest.Wait()
}

// Stop stops the loops.
func (h *Harness) Stop() { h.stop() }

// Settle waits until nothing happens any more without the clock moving on.
func (h *Harness) Settle() { synctest.Wait() }

// Advance lets time pass, and then waits as Settle does.
func (h *Harness) Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Create adds an object, with its status.
func (h *Harness) Create(resource string, obj api.Object) api.Object {
	h.T.Helper()
	want := obj.DeepCopyObject().(api.Object)
	out, err := h.Cluster.Create(context.Background(), resource, obj, client.WriteOptions{})
	if err != nil {
		h.T.Fatalf("create %s %s: %v", resource, want.GetName(), err)
	}
	if !copyStatus(out.DeepCopyObject().(api.Object), want, nil) {
		return out
	}
	var changed api.Object
	if !copyStatus(out.DeepCopyObject().(api.Object), want, &changed) {
		return out
	}
	out, err = h.Cluster.Update(context.Background(), resource, changed, client.WriteOptions{Subresource: "status"})
	if err != nil {
		h.T.Fatalf("status of %s %s: %v", resource, want.GetName(), err)
	}
	return out
}

// Delete deletes an object with the given propagation.
func (h *Harness) Delete(resource, namespace, name string, propagation metav1.DeletionPropagation) {
	h.T.Helper()
	err := h.Cluster.Delete(context.Background(), client.Ref{Resource: resource, Namespace: namespace, Name: name}, client.DeleteOptions{Propagation: propagation})
	if err != nil && !apierrors.IsNotFound(err) {
		h.T.Fatalf("delete %s %s/%s: %v", resource, namespace, name, err)
	}
}

// Change edits an object through its main resource, or a subresource if one is named.
func Change[T api.Object](h *Harness, r client.Resource[T], namespace, name, subresource string, change func(T)) T {
	h.T.Helper()
	out, err := client.Mutate(context.Background(), h.Cluster, r, namespace, name, subresource, func(obj T) bool {
		change(obj)
		return true
	})
	if err != nil {
		h.T.Fatalf("change %s %s/%s: %v", r.Name, namespace, name, err)
	}
	return out
}

// Get returns an object that has to be there.
func Get[T api.Object](h *Harness, r client.Resource[T], namespace, name string) T {
	h.T.Helper()
	obj, ok := r.Get(h.Snapshot(), namespace, name)
	if !ok {
		h.T.Fatalf("%s %s/%s is not there", r.Name, namespace, name)
	}
	return obj
}

// All returns the objects of a namespace, or of all with "".
func All[T api.Object](h *Harness, r client.Resource[T], namespace string) []T {
	var all []T
	for obj := range r.List(h.Snapshot(), namespace) {
		all = append(all, obj)
	}
	return all
}

// EventsOf returns "Type Reason Message (xN)" of each event about objects of
// that kind, in the order of their making.
func (h *Harness) EventsOf(kind string) []string {
	return eventLines(h.Snapshot(), func(ev *corev1.Event) bool { return ev.InvolvedObject.Kind == kind })
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p))
	return len(p), nil
}

var _ store.Store = (*Cluster)(nil)
