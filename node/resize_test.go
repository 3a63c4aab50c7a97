package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
)

// quotas is a runtime in which, as in the kernel, no container may have more processor time than its sandbox.
type quotas struct {
	container.Runtime
	pod  int64
	each map[string]int64
}

func above(a, b int64) bool { return b > 0 && (a < 0 || a > b) }

func (q *quotas) UpdateSandbox(_ context.Context, _ string, res cgroup.Resources) error {
	for _, c := range q.each {
		if c > 0 && above(c, res.CPUQuota) {
			return errors.New("invalid argument")
		}
	}
	q.pod = res.CPUQuota
	return nil
}

func (q *quotas) UpdateContainer(_ context.Context, id string, res cgroup.Resources) error {
	if res.CPUQuota > 0 && above(res.CPUQuota, q.pod) {
		return errors.New("invalid argument")
	}
	q.each[id] = res.CPUQuota
	return nil
}

func TestResizeOrder(t *testing.T) {
	for _, from := range []map[string]int64{{"a": 100, "b": 400}, {"a": 50, "b": 50}, {"a": -1, "b": 300}, {"a": 900, "b": 10}} {
		for _, to := range []map[string]int64{{"a": 10, "b": 20}, {"a": 500, "b": 500}, {"a": -1, "b": 20}, {"a": 20, "b": 700}} {
			sum := func(m map[string]int64) int64 {
				if m["a"] < 0 || m["b"] < 0 {
					return 0
				}
				return m["a"] + m["b"]
			}
			rt := &quotas{pod: unlimited(cgroup.Resources{CPUQuota: sum(from)}).CPUQuota, each: map[string]int64{"a": from["a"], "b": from["b"]}}
			pod := unlimited(cgroup.Resources{CPUQuota: sum(to)})
			for _, id := range []string{"a", "b"} {
				if err := resizeCgroups(context.Background(), rt, "s", id, pod, cgroup.Resources{CPUQuota: to[id]}, id == "b"); err != nil {
					t.Errorf("%v to %v: %s: %v", from, to, id, err)
				}
			}
			if rt.pod != pod.CPUQuota || rt.each["a"] != to["a"] || rt.each["b"] != to["b"] {
				t.Errorf("%v to %v: %v", from, to, rt)
			}
		}
	}
}

func TestResize(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		r.create(p)
		r.advance(time.Second)
		resize := func(cpu string) {
			_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "resize", func(p *corev1.Pod) bool {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			r.advance(time.Second)
		}
		resize("2")
		if got := fmt.Sprint(r.rt.updates); got != "[container shares=2048 quota=-1 memory=-1 sandbox shares=2048]" {
			t.Error(got)
		}
		st := r.get("web").Status.ContainerStatuses[0]
		if q := st.AllocatedResources[corev1.ResourceCPU]; q.String() != "2" || st.RestartCount != 0 {
			t.Errorf("%+v", st)
		}
		resize("5")
		if got := cond(r.get("web"), corev1.PodResizePending); !strings.HasPrefix(got, "True Infeasible Node didn't have enough resource: cpu, requested: 5000") {
			t.Error(got)
		}
		resize("3")
		if got := cond(r.get("web"), corev1.PodResizePending); got != "none" {
			t.Error(got)
		}
	})
}

// KEP-5419: the resources of the pod as a whole change after those of its containers.
func TestResizePod(t *testing.T) {
	run(t, func(r *rig) {
		list := func(cpu string) corev1.ResourceList {
			return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		}
		p := podOf("web", "a: run")
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("1")}
		p.Spec.Containers[0].Resources.Requests = list("1")
		r.create(p)
		r.advance(time.Second)
		if got := r.get("web").Status; got.Resources == nil || got.Resources.Requests.Cpu().String() != "1" || got.AllocatedResources.Cpu().String() != "1" {
			t.Errorf("%+v", got)
		}
		resize := func(pod, container string) {
			r.rt.updates = nil
			_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "resize", func(p *corev1.Pod) bool {
				p.Spec.Resources.Requests, p.Spec.Containers[0].Resources.Requests = list(pod), list(container)
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			r.advance(time.Second)
		}
		resize("2", "1")
		if got := fmt.Sprint(r.rt.updates); got != "[sandbox shares=2048]" {
			t.Error(got)
		}
		if got := r.get("web").Status.Resources.Requests.Cpu().String(); got != "2" {
			t.Error(got)
		}
		resize("3", "2")
		if got := fmt.Sprint(r.rt.updates); got != "[container shares=2048 quota=-1 memory=-1 sandbox shares=3072 sandbox shares=3072]" {
			t.Error(got)
		}
		resize("5", "2")
		if got := cond(r.get("web"), corev1.PodResizePending); !strings.HasPrefix(got, "True Infeasible") {
			t.Error(got)
		}
		if got := r.get("web").Status; got.Resources.Requests.Cpu().String() != "3" || got.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Init containers take other limits while they run, and before they do (KEP-1287).
func TestResizeInitContainers(t *testing.T) {
	run(t, func(r *rig) {
		p := podOf("web", "a: run")
		p.Spec.InitContainers = []corev1.Container{containerOf("i: run"), containerOf("j: run")}
		for i := range p.Spec.InitContainers {
			p.Spec.InitContainers[i].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		}
		r.create(p)
		r.advance(time.Second)
		_, err := client.Mutate(context.Background(), r.c, client.Pods, "default", "web", "resize", func(p *corev1.Pod) bool {
			for i := range p.Spec.InitContainers {
				p.Spec.InitContainers[i].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		r.advance(time.Second)
		if got := fmt.Sprint(r.rt.updates); got != "[container shares=2048 quota=-1 memory=-1 sandbox shares=2048]" {
			t.Error(got)
		}
		if got := r.get("web").Status.InitContainerStatuses[0].AllocatedResources.Cpu().String(); got != "2" {
			t.Error(got)
		}
		r.rt.exit(r.rt.byName("i").Config.ID, 0, 0)
		r.advance(time.Second)
		if got := r.rt.byName("j").Config.Resources.CPUShares; got != 2048 {
			t.Error(got)
		}
		if got := r.rt.updates[len(r.rt.updates)-1]; len(r.rt.updates) != 3 || got != "sandbox shares=2048" {
			t.Error(r.rt.updates)
		}
	})
}
