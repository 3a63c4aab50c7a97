package endpointslice_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/endpointslice"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func loops(*reconciletest.Cluster) []reconcile.Loop {
	return []reconcile.Loop{endpointslice.Loop(), endpointslice.MirrorLoop()}
}

func TestScenarios(t *testing.T) { reconciletest.Scenarios(t, "testdata/*.txtar", loops) }

// TestRandomPodsAreInExactlyOneSlice adds, removes and changes hundreds of pods, and holds after each step that
// every endpoint stands in one slice, no slice is too large, and few slices are written.
func TestRandomPodsAreInExactlyOneSlice(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			h := reconciletest.New(t, reconciletest.NewCluster(0), endpointslice.Loop())
			defer h.Stop()
			h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
			h.Create("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.9", Selector: map[string]string{"app": "web"},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP}}}})
			pods := map[string]bool{} // name: ready
			for step := range 30 {
				for range rnd.IntN(60) {
					name := fmt.Sprint("p", rnd.IntN(450))
					ready, there := pods[name]
					switch {
					case !there:
						addPod(h, name, rnd.IntN(2))
						pods[name] = true
					case rnd.IntN(3) == 0:
						zero := int64(0)
						_ = h.Cluster.Delete(t.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: name}, client.DeleteOptions{GraceSeconds: &zero})
						delete(pods, name)
					default:
						h.SetReady("default", "name="+name, !ready)
						pods[name] = !ready
					}
				}
				h.Settle()
				check(t, h, pods, fmt.Sprintf("seed %d step %d", seed, step))
			}
		})
	}
}

func addPod(h *reconciletest.Harness, name string, variant int) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web", "name": name}},
		Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(8080 + variant), Protocol: corev1.ProtocolTCP}}}}},
	}
	h.Create("pods", pod)
	h.SetReady("default", "name="+name, true)
}

func check(t *testing.T, h *reconciletest.Harness, pods map[string]bool, when string) {
	t.Helper()
	seen := map[string]bool{}
	slices, endpoints := 0, 0
	for _, s := range reconciletest.All(h, client.EndpointSlices, "default") {
		slices++
		if len(s.Endpoints) > 100 {
			t.Fatalf("%s: %s has %d endpoints", when, s.Name, len(s.Endpoints))
		}
		for _, ep := range s.Endpoints {
			endpoints++
			name := ep.TargetRef.Name
			if seen[name] {
				t.Fatalf("%s: %s is in two slices", when, name)
			}
			seen[name] = true
			if ready, ok := pods[name]; !ok || *ep.Conditions.Ready != ready {
				t.Fatalf("%s: %s is shown as ready=%v, is %v (there: %v)", when, name, *ep.Conditions.Ready, ready, ok)
			}
			pod := reconciletest.Get(h, client.Pods, "default", name)
			if *s.Ports[0].Port != pod.Spec.Containers[0].Ports[0].ContainerPort {
				t.Fatalf("%s: %s is in a slice for port %d", when, name, *s.Ports[0].Port)
			}
		}
	}
	if len(seen) != len(pods) {
		t.Fatalf("%s: %d endpoints for %d pods", when, len(seen), len(pods))
	}
	if most := endpoints/50 + 4; slices > most {
		t.Fatalf("%s: %d slices for %d endpoints", when, slices, endpoints)
	}
}

// TestOneReadinessChangeWritesOneSlice holds updates to a minimum.
func TestOneReadinessChangeWritesOneSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := reconciletest.New(t, reconciletest.NewCluster(0), endpointslice.Loop())
		defer h.Stop()
		h.Create("nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		h.Create("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.9", Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}}})
		for i := range 250 {
			addPod(h, fmt.Sprint("p", i), 0)
		}
		h.Settle()
		before := versions(h)
		h.SetReady("default", "name=p17", false)
		h.Settle()
		changed := 0
		for name, rv := range versions(h) {
			if before[name] != rv {
				changed++
			}
		}
		if changed != 1 || len(before) < 3 {
			t.Errorf("%d of %d slices were written", changed, len(before))
		}
	})
}

func versions(h *reconciletest.Harness) map[string]string {
	v := map[string]string{}
	for _, s := range reconciletest.All[*discoveryv1.EndpointSlice](h, client.EndpointSlices, "default") {
		v[s.Name] = s.ResourceVersion
	}
	return v
}
