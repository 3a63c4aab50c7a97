package podautoscaler_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/podautoscaler"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func set(name string, replicas int32) *appsv1.ReplicaSet {
	l := map[string]string{"app": name}
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: appsv1.ReplicaSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "web", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}}}}}
}

func scaler(name string, least, most int32) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &least, MaxReplicas: most,
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name}}}
}

// BenchmarkTurn is one turn of one autoscaler of 1,000 in a namespace, with three pods each: both passes and the question, without
// writes.
func BenchmarkTurn(b *testing.B) {
	const scalers, each = 1000, 3
	c := reconciletest.NewCluster(0)
	ctx := b.Context()
	create := func(resource string, obj api.Object) {
		if _, err := c.Create(ctx, resource, obj, client.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	now := time.Now()
	old := metav1.NewTime(now.Add(-time.Hour))
	byName := map[string][]metricsv1beta1.PodMetrics{}
	for i := range scalers {
		name := fmt.Sprint("web-", i)
		rs := set(name, each)
		create("replicasets.apps", rs)
		create("horizontalpodautoscalers.autoscaling", scaler(name, 1, 10))
		for j := range each {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint(name, "-", j), Labels: map[string]string{"app": name}}, Spec: rs.Spec.Template.Spec}
			create("pods", pod.DeepCopy())
			stored, _ := client.Pods.Get(c.Snapshot(), "default", pod.Name)
			pod = stored.DeepCopy()
			pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &old, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: old}}}
			if _, err := c.Update(ctx, "pods", pod, client.WriteOptions{Subresource: "status"}); err != nil {
				b.Fatal(err)
			}
			byName["app="+name] = append(byName["app="+name], metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Timestamp: metav1.NewTime(now),
				Containers: []metricsv1beta1.ContainerMetrics{{Name: "app", Usage: corev1.ResourceList{"cpu": resource.MustParse("800m")}}}})
		}
	}
	loop := podautoscaler.Loop(podautoscaler.Config{Registry: c.Registry, Metrics: podautoscaler.Metrics{
		Pods: func(_ context.Context, _ string, sel labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
			return byName[sel.String()], nil
		}}})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		key := reconcile.Key{Namespace: "default", Name: fmt.Sprint("web-", i%scalers)}
		if i%scalers == 0 {
			now = now.Add(15 * time.Second)
		}
		for range 2 {
			plan, err := loop.Plan(c.Snapshot(), key, now)
			if err != nil {
				b.Fatal(err)
			}
			if err := loop.Apply(ctx, key, plan.Effect); err != nil {
				b.Fatal(err)
			}
		}
	}
}
