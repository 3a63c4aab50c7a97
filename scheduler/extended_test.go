package scheduler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

// TestVariants checks which requests for devices the containers of a pod become, and which of them serve which container.
func TestVariants(t *testing.T) {
	class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}}
	of := func(corev1.ResourceName) *resourcev1.DeviceClass { return class }
	for _, test := range []struct{ name, init, main, requests, mappings string }{
		{"one", "", "a=2", "container-0-request-0=2", "a:container-0-request-0"},
		{"two beside each other", "", "a=2 b=1", "container-0-request-0=2 container-1-request-0=1", "a:container-0-request-0 b:container-1-request-0"},
		{"an init container uses what comes later", "i=1", "a=2", "container-1-request-0=2", "a:container-1-request-0 i:container-1-request-0"},
		{"and lacks some", "i=5", "a=2 b=1", "container-0-request-0=2 container-1-request-0=2 container-2-request-0=1",
			"a:container-1-request-0 b:container-2-request-0 i:container-1-request-0 i:container-2-request-0 i:container-0-request-0"},
		{"init containers share what they lack", "i=3 j=5", "a=2", "container-1-request-0=3 container-2-request-0=2",
			"a:container-2-request-0 i:container-2-request-0 i:container-1-request-0 j:container-2-request-0 j:container-1-request-0"},
		{"a sidecar keeps its own, and serves those before it", "i=1 s*=1 j=2", "a=1", "container-1-request-0=1 container-2-request-0=1 container-3-request-0=1",
			"s:container-1-request-0 a:container-3-request-0 i:container-1-request-0 j:container-3-request-0 j:container-2-request-0"},
		{"nothing", "i=0", "a=0 b", "", ""},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}}
		pod.Spec.InitContainers, pod.Spec.Containers = asking(test.init), asking(test.main)
		v := newVariant(pod, "u", []corev1.ResourceName{"example.com/x"}, of)
		var requests, mappings []string
		for _, r := range v.claim.Spec.Devices.Requests {
			requests = append(requests, fmt.Sprintf("%s=%d", r.Name, r.Exactly.Count))
		}
		for _, m := range v.mappings {
			mappings = append(mappings, m.ContainerName+":"+m.RequestName)
		}
		if got := strings.Join(requests, " "); got != test.requests {
			t.Errorf("%s: requests %q, want %q", test.name, got, test.requests)
		}
		if got := strings.Join(mappings, " "); got != test.mappings {
			t.Errorf("%s: mappings %q, want %q", test.name, got, test.mappings)
		}
	}
}

// asking makes containers of "name=count name*=count"; a star is a sidecar.
func asking(text string) []corev1.Container {
	var all []corev1.Container
	for _, one := range strings.Fields(text) {
		name, count, ok := strings.Cut(one, "=")
		c := corev1.Container{Name: strings.TrimSuffix(name, "*")}
		if strings.HasSuffix(name, "*") {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		if ok {
			c.Resources.Requests = corev1.ResourceList{"example.com/x": resource.MustParse(count)}
		}
		all = append(all, c)
	}
	return all
}

func TestClassesByResource(t *testing.T) {
	x, at := "example.com/x", time.Unix(1000, 0)
	class := func(name string, age time.Duration) *resourcev1.DeviceClass {
		return &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(at.Add(-age))},
			Spec: resourcev1.DeviceClassSpec{ExtendedResourceName: &x}}
	}
	plain := class("plain", 0)
	plain.Spec.ExtendedResourceName = nil
	by := classesByResource(map[string]*resourcev1.DeviceClass{"old": class("old", time.Hour), "b": class("b", 0), "a": class("a", 0), "plain": plain})
	for name, want := range map[corev1.ResourceName]string{"example.com/x": "a", "deviceclass.resource.kubernetes.io/old": "old",
		"deviceclass.resource.kubernetes.io/plain": "plain"} {
		if c := by[name]; c == nil || c.Name != want {
			t.Errorf("%s: %v, want %s", name, c, want)
		}
	}
}

func wanting(name string, count string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		r := &p.Spec.Containers[0].Resources
		r.Requests[corev1.ResourceName(name)] = resource.MustParse(count)
		r.Limits = corev1.ResourceList{corev1.ResourceName(name): resource.MustParse(count)}
	}
}

func (w *world) devices(node string, names ...string) {
	w.t.Helper()
	slice := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: resourcev1.ResourceSliceSpec{
		Driver: "example.com", NodeName: &node, Pool: resourcev1.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1}}}
	for _, name := range names {
		slice.Spec.Devices = append(slice.Spec.Devices, resourcev1.Device{Name: name})
	}
	w.create(client.ResourceSlices.Name, slice)
	synctest.Wait()
}

func (w *world) special() []*resourcev1.ResourceClaim {
	var all []*resourcev1.ResourceClaim
	for c := range client.ResourceClaims.List(w.Snapshot(), "default") {
		all = append(all, c)
	}
	return all
}

// TestExtendedResources follows pods that ask for a resource which one node has and on another is made of devices.
func TestExtendedResources(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.pod("a", "1", wanting("example.com/x", "1"))
		w.says("a", "Unschedulable", "0/1 nodes are available: 1 Insufficient example.com/x. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
		x := "example.com/x"
		w.devices("n1", "one", "two")
		w.create(client.DeviceClasses.Name, &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: resourcev1.DeviceClassSpec{ExtendedResourceName: &x}})
		synctest.Wait()
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("a", "n1")
		claims := w.special()
		if len(claims) != 1 || !isSpecial(claims[0]) || !strings.HasPrefix(claims[0].Name, "a-extended-resources-") || !metav1.IsControlledBy(claims[0], w.get("a")) {
			t.Fatalf("claims: %+v", claims)
		}
		c := claims[0]
		if c.Status.Allocation == nil || c.Status.Allocation.Devices.Results[0].Request != "container-0-request-1" || len(c.Status.ReservedFor) != 1 {
			t.Errorf("status: %+v", c.Status)
		}
		st := w.get("a").Status.ExtendedResourceClaimStatus
		if st == nil || st.ResourceClaimName != c.Name || len(st.RequestMappings) != 1 || st.RequestMappings[0].ContainerName != "x" || st.RequestMappings[0].ResourceName != x {
			t.Errorf("pod status: %+v", st)
		}
		// The second device is the last.
		w.pod("b", "1", wanting("deviceclass.resource.kubernetes.io/c", "1"))
		w.on("b", "n1")
		w.pod("d", "1", wanting("example.com/x", "1"))
		w.says("d", "Unschedulable", "0/1 nodes are available: 1 cannot allocate all claims. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
		// A node that has the resource itself takes it without a claim.
		w.node("n2", "4", func(n *corev1.Node) { n.Status.Allocatable["example.com/x"] = resource.MustParse("1") })
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("d", "n2")
		if n := len(w.special()); n != 2 || w.get("d").Status.ExtendedResourceClaimStatus != nil {
			t.Errorf("%d claims, status %+v", n, w.get("d").Status.ExtendedResourceClaimStatus)
		}
		if r := Why(w.Snapshot(), w.get("a")); len(r.Nodes) == 0 || !r.Nodes[0].Fits {
			t.Errorf("why: %+v", r)
		}
	})
}

// TestExtendedResourcesAfterFailure checks that the claim of an attempt that failed is removed, and its devices are free again.
func TestExtendedResourcesAfterFailure(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.devices("n1", "one")
		w.create(client.DeviceClasses.Name, &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
		fails := 1
		w.onBind(func(string) error {
			if fails--; fails >= 0 {
				return errors.New("no")
			}
			return nil
		})
		w.pod("a", "1", wanting("deviceclass.resource.kubernetes.io/c", "1"))
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("a", "n1")
		claims := w.special()
		if len(claims) != 1 || w.get("a").Status.ExtendedResourceClaimStatus.ResourceClaimName != claims[0].Name {
			t.Fatalf("claims: %+v", claims)
		}
		if s := w.scheduler.devices; len(s.taken) != 1 || len(s.state.AllocatedDevices) != 1 {
			t.Errorf("taken: %v, %v", s.taken, s.state.AllocatedDevices)
		}
	})
}

// TestStaleExtendedClaim checks that what an earlier scheduler left is removed before the pod is tried.
func TestStaleExtendedClaim(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.devices("n1", "one")
		w.create(client.DeviceClasses.Name, &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
		w.pod("a", "1", wanting("deviceclass.resource.kubernetes.io/c", "1"), func(p *corev1.Pod) {
			p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}}
		})
		left := newVariant(w.get("a"), "", []corev1.ResourceName{"deviceclass.resource.kubernetes.io/c"},
			func(corev1.ResourceName) *resourcev1.DeviceClass {
				return &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}}
			}).claim
		left.Name, left.GenerateName, left.Finalizers = "left", "", []string{resourcev1.Finalizer}
		w.create(client.ResourceClaims.Name, left)
		mutate(w, client.Pods, "default", "a", "", func(p *corev1.Pod) { p.Spec.SchedulingGates = nil })
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("a", "n1")
		if claims := w.special(); len(claims) != 1 || claims[0].Name == "left" {
			t.Errorf("claims: %+v", claims)
		}
	})
}

// TestExtendedClaimCannotBeMade checks that devices are free again if the claim could not be written.
func TestExtendedClaimCannotBeMade(t *testing.T) {
	simulate(t, func(w *world) {
		w.node("n1", "4")
		w.devices("n1", "one")
		w.create(client.DeviceClasses.Name, &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
		w.onCreate(func(res string) error {
			if res == client.ResourceClaims.Name {
				return apierrors.NewForbidden(resourcev1.Resource("resourceclaims"), "x", errors.New("not now"))
			}
			return nil
		})
		w.pod("a", "1", wanting("deviceclass.resource.kubernetes.io/c", "1"))
		w.says("a", "SchedulerError", `running PreBind plugin "DynamicResources": create claim for extended resources default/: resourceclaims.resource.k8s.io "x" is forbidden: not now`)
		w.onCreate(nil)
		time.Sleep(mostBackoff)
		synctest.Wait()
		w.on("a", "n1")
	})
}
