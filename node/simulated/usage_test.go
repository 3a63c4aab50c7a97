package simulated

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/node/metricsapi"
)

// runningPod has two containers, of 300m and 64Mi, and of 100m and 64Mi.
func runningPod(started time.Time, annotations map[string]string) *corev1.Pod {
	request := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse("64Mi")}}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1", Annotations: annotations},
		Spec: corev1.PodSpec{NodeName: "simulated-0", Containers: []corev1.Container{{Name: "app", Resources: request("300m")}, {Name: "log", Resources: request("100m")}}}}
	at := metav1.NewTime(started.Truncate(time.Second))
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &at, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: at}}}
	for _, name := range []string{"app", "log"} {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, ContainerID: scheme + "u1/" + name,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}}})
	}
	return pod
}

func TestPodUsage(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name        string
		annotations map[string]string
		peers       int
		want        string // of both containers, in thousandths of a core and Mi
	}{
		{"split as requests are", map[string]string{UsageCPU: "200m", UsageMemory: "100Mi"}, 1, "150m 50Mi, 50m 50Mi"},
		{"a share of the request", map[string]string{UsageCPU: "150%", UsageMemory: "25%"}, 1, "450m 16Mi, 150m 16Mi"},
		{"one container", map[string]string{UsageCPU: "200m", UsageCPU + ".log": "7m", UsageMemory: "0", UsageMemory + ".app": "3Mi"}, 1, "150m 3Mi, 7m 0Mi"},
		{"a load of all", map[string]string{LoadCPU: "4", LoadMemory: "64Mi"}, 2, "1500m 16Mi, 500m 16Mi"},
		{"a load of nobody else", map[string]string{LoadCPU: "400m", UsageMemory: "2Mi"}, 0, "300m 1Mi, 100m 1Mi"},
		{"nothing", map[string]string{UsageCPU: "0", UsageMemory: "0"}, 1, "0m 0Mi, 0m 0Mi"},
		{"what cannot be read is as if it were not there", map[string]string{UsageCPU: "much", LoadCPU: "400m", UsageMemory: "-5%", LoadMemory: "2Mi"}, 1, "300m 1Mi, 100m 1Mi"},
	} {
		asked := false
		got := PodUsage(runningPod(now.Add(-time.Hour), c.annotations), func() int { asked = true; return c.peers }, now)
		text := ""
		for i, r := range got.Rates {
			if i > 0 {
				text += ", "
			}
			text += fmt.Sprintf("%dm %dMi", r.NanoCores/1e6, r.WorkingSetBytes>>20)
			if r.Window != longestWindow || !r.Time.Equal(now) || got.Containers[i].Name != []string{"app", "log"}[i] {
				t.Errorf("%s: %+v", c.name, r)
			}
		}
		if text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
		if asked != Shares(runningPod(now, c.annotations)) {
			t.Errorf("%s: peers asked for: %v", c.name, asked)
		}
	}
}

func TestPodUsageWithoutWord(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	pod := runningPod(now.Add(-4500*time.Millisecond), nil)
	one, two := PodUsage(pod, nil, now), PodUsage(pod, nil, now.Add(time.Second))
	for i, r := range one.Rates {
		request := []uint64{300e6, 100e6}[i]
		if r.NanoCores < request/10*8/10-1e6 || r.NanoCores > request/10*12/10 || r.WorkingSetBytes < 25<<20 || r.WorkingSetBytes > 39<<20 {
			t.Errorf("not plausible: %+v", r)
		}
		if r.NanoCores != two.Rates[i].NanoCores {
			t.Error("not the same again")
		}
		// The rate is of time in which the pod ran, also where times are told in whole seconds.
		if ready := pod.Status.Conditions[0].LastTransitionTime; now.Truncate(time.Second).Before(ready.Add(r.Window)) || r.Window < 4*time.Second {
			t.Errorf("window %s", r.Window)
		}
	}
	pod.Spec.Containers[0].Resources, pod.Spec.Containers[1].Resources = corev1.ResourceRequirements{}, corev1.ResourceRequirements{}
	if r := PodUsage(pod, nil, now).Rates[0]; r.NanoCores == 0 || r.WorkingSetBytes == 0 {
		t.Errorf("a pod without requests uses nothing: %+v", r)
	}
	for name, change := range map[string]func(*corev1.Pod){
		"ended":   func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"pending": func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} },
		"of a real node": func(p *corev1.Pod) {
			for i := range p.Status.ContainerStatuses {
				p.Status.ContainerStatuses[i].ContainerID = "coracle://x"
			}
		},
	} {
		pod := runningPod(now.Add(-time.Hour), nil)
		if change(pod); len(PodUsage(pod, nil, now).Rates) != 0 || Runs(pod) {
			t.Errorf("a pod that is %s has figures", name)
		}
	}
}

func TestNodeUsage(t *testing.T) {
	a := New(Config{Count: 1})
	node := a.node(a.nodes["simulated-0"], metav1.Now())
	if !IsNode(node) || IsNode(&corev1.Node{}) {
		t.Error("nodes are not told apart")
	}
	alone := NodeUsage(node, nil, time.Now())
	pod := PodUsage(runningPod(time.Now().Add(-time.Hour), map[string]string{UsageCPU: "2", UsageMemory: "1Gi"}), nil, time.Now())
	busy := NodeUsage(node, []metricsapi.PodRate{pod, pod}, time.Now())
	if alone.NanoCores == 0 || alone.NanoCores > 1e9 || alone.WorkingSetBytes == 0 || busy.NanoCores-alone.NanoCores != 4e9 || busy.WorkingSetBytes-alone.WorkingSetBytes != 2<<30 {
		t.Errorf("%+v, with two pods %+v", alone.Rate, busy.Rate)
	}
}
