package managed

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
)

func kindOf(name string) *api.Kind {
	for _, k := range builtin.Kinds() {
		if k.Name() == name {
			return k
		}
	}
	panic(name)
}

// aPod is as deployments make them.
func aPod(k *api.Kind, i int) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%d", i), Namespace: "default", Labels: map[string]string{"app": "web", "pod-template-hash": "abc"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: "nginx", Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
			Ports:     []corev1.ContainerPort{{ContainerPort: 80}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}},
		}}},
	}
	k.Default(p)
	return p
}

func running(p *corev1.Pod, n int32) *corev1.Pod {
	p = p.DeepCopy()
	p.Status.Phase = corev1.PodRunning
	for _, c := range []corev1.PodConditionType{"Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: "True", LastTransitionTime: metav1.NewTime(time.Unix(int64(n), 0))})
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "nginx", RestartCount: n, Ready: true}}
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
	return p
}

func BenchmarkCreate(b *testing.B) {
	k, t := kindOf("pods"), New()
	p := aPod(k, 1)
	w := &Write{Kind: k, Version: "v1", Manager: "kubectl", Now: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		p.ManagedFields = nil
		t.Update(w, p, nil)
	}
	b.ReportMetric(float64(len(p.ManagedFields[0].FieldsV1.GetRawBytes())), "bytes/set")
}

func BenchmarkStatus(b *testing.B) {
	k, t := kindOf("pods"), New()
	p := aPod(k, 1)
	t.Update(&Write{Kind: k, Version: "v1", Manager: "kubectl", Now: time.Now()}, p, nil)
	p.UID = "u"
	w := &Write{Kind: k, Version: "v1", Subresource: "status", Manager: "kubelet", Now: time.Now()}
	old := running(p, 0)
	t.Update(w, old, p)
	next := running(p, 1)
	b.ReportAllocs()
	for b.Loop() {
		t.Update(w, next, old)
	}
}

// BenchmarkUnchanged is an update that changes nothing.
func BenchmarkUnchanged(b *testing.B) {
	k, t := kindOf("pods"), New()
	p := aPod(k, 1)
	w := &Write{Kind: k, Version: "v1", Manager: "kubectl", Now: time.Now()}
	t.Update(w, p, nil)
	p.UID = "u"
	next := p.DeepCopy()
	b.ReportAllocs()
	for b.Loop() {
		t.Update(w, next, p)
	}
}

// BenchmarkFirstApply makes the schema of pods.
func BenchmarkFirstApply(b *testing.B) {
	k := kindOf("pods")
	t := New()
	v := k.Hub()
	p := t.plans.of(structType(v))
	b.ReportAllocs()
	for b.Loop() {
		typeOf(p)
	}
}

func BenchmarkPlan(b *testing.B) {
	v := kindOf("pods").Hub()
	b.ReportAllocs()
	for b.Loop() {
		New().plans.of(structType(v))
	}
}
