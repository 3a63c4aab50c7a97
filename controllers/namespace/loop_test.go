package namespace_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/namespace"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{namespace.Loop(c.Registry, nil), reconciletest.Kubelet(c)}
	})
}

// server is another API server.
type server struct {
	mu      sync.Mutex
	down    bool
	err     error
	objects int
	holds   bool // its objects have a finalizer
	asked   []string
}

func (s *server) elsewhere() *namespace.Elsewhere {
	return &namespace.Elsewhere{
		Any: func() bool { return true },
		Failing: func() []schema.GroupVersion {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.down {
				return []schema.GroupVersion{{Group: "wardle.example.com", Version: "v1"}, {Group: "a.example.com", Version: "v2"}}
			}
			return nil
		},
		Empty: func(_ context.Context, name string) (namespace.Left, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.asked = append(s.asked, name)
			left := namespace.Left{Resources: map[string]int{}, Finalizers: map[string]int{}}
			if s.down || s.err != nil {
				return left, s.err
			}
			if !s.holds {
				s.objects = 0
			}
			if s.objects > 0 {
				left.Resources["flunders.wardle.example.com"], left.Finalizers["x/y"] = s.objects, s.objects
			}
			return left, nil
		},
	}
}

func (s *server) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// TestElsewhere empties a namespace on another server too, and holds it while that cannot be asked.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &server{down: true, objects: 2, holds: true}
		c := reconciletest.NewCluster(0)
		h := reconciletest.New(t, c, namespace.Loop(c.Registry, far.elsewhere()))
		defer h.Stop()
		h.Create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		h.Create("configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}})
		h.Delete("namespaces", "", "shop", metav1.DeletePropagationBackground)
		h.Settle()
		// A server that comes back between the question and the decision has not been emptied.
		far.set(func() { far.down = false })
		h.Advance(time.Nanosecond)
		far.set(func() { far.down = true })
		h.Advance(time.Minute)
		want := func(what corev1.NamespaceConditionType, reason, message string) {
			t.Helper()
			ns, ok := client.Namespaces.Get(h.Snapshot(), "", "shop")
			if !ok {
				t.Fatal("the namespace is gone")
			}
			for _, c := range ns.Status.Conditions {
				if c.Type == what && c.Status == corev1.ConditionTrue && c.Reason == reason && c.Message == message {
					return
				}
			}
			t.Errorf("no %s among %+v", message, ns.Status.Conditions)
		}
		want(corev1.NamespaceDeletionDiscoveryFailure, "DiscoveryFailed", "Discovery failed for some groups, 2 failing: unable to retrieve the complete list of server APIs: "+
			"a.example.com/v2: stale GroupVersion discovery: a.example.com/v2, wardle.example.com/v1: stale GroupVersion discovery: wardle.example.com/v1")
		if n := h.Snapshot().Count("configmaps", "shop"); n != 0 {
			t.Errorf("%d objects of ours are left", n)
		}
		far.set(func() { far.down, far.err = false, errors.Join(errors.New("b"), errors.New("a")) })
		h.Advance(time.Minute)
		want(corev1.NamespaceDeletionContentFailure, "ContentDeletionFailed", "Failed to delete all resource types, 2 remaining: a, b")
		far.set(func() { far.err = nil })
		h.Advance(time.Minute)
		want(corev1.NamespaceContentRemaining, "SomeResourcesRemain", "Some resources are remaining: flunders.wardle.example.com has 2 resource instances")
		want(corev1.NamespaceFinalizersRemaining, "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: x/y in 2 resource instances")
		far.set(func() { far.asked = nil })
		h.Advance(time.Minute)
		far.set(func() {
			if n := len(far.asked); n < 5 || n > 20 {
				t.Errorf("asked %d times a minute", n)
			}
			far.holds = false
		})
		h.Advance(10 * time.Second)
		if _, ok := client.Namespaces.Get(h.Snapshot(), "", "shop"); ok {
			t.Error("the namespace stays although nothing is left")
		}
		far.set(func() {
			if strings.Contains(strings.Join(far.asked, " "), "default") {
				t.Error("a namespace was emptied that is not being deleted")
			}
		})
	})
}
