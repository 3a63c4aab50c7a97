package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// BenchmarkSchedule places pods of one controller on 1,000 and 5,000 nodes.
func BenchmarkSchedule(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			c := NewCluster()
			for i := range nodes {
				n := &corev1.Node{}
				n.Name = fmt.Sprintf("node-%05d", i)
				n.Labels = map[string]string{corev1.LabelHostname: n.Name}
				n.Status.Allocatable = quantities(map[corev1.ResourceName]string{"cpu": "32", "memory": "256Gi", "pods": "100000"})
				c.SetNode(n)
			}
			yes := true
			siblings := make([]*Siblings, b.N/1000+1)
			for i := range siblings {
				siblings[i] = NewSiblings("default", labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(i)}))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				p := &corev1.Pod{}
				p.Name, p.Namespace, p.UID = fmt.Sprint("pod-", i), "default", types.UID(fmt.Sprint(i))
				p.Labels = map[string]string{"app": fmt.Sprint(i / 1000)}
				p.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(fmt.Sprint(i / 1000)), Controller: &yes}}
				p.Spec.Containers = []corev1.Container{{Name: "x", Resources: corev1.ResourceRequirements{
					Requests: quantities(map[corev1.ResourceName]string{"cpu": "1m", "memory": "1Mi"})}}}
				d := c.Schedule(p, Circumstances{Siblings: siblings[i/1000]})
				if d.Node == "" {
					b.Fatal(d.Message)
				}
				c.Assign(p, d.Node, false)
			}
		})
	}
}

// BenchmarkWhy explains one pod on 5,000 nodes with 10,000 pods.
func BenchmarkWhy(b *testing.B) {
	s := &State{}
	pod := func(i int) *corev1.Pod {
		p := &corev1.Pod{}
		p.Name, p.Namespace, p.UID = fmt.Sprint("pod-", i), "default", types.UID(fmt.Sprint(i))
		p.Labels = map[string]string{"app": "x"}
		p.Spec.NodeName = fmt.Sprintf("node-%05d", i%5000)
		p.Spec.Containers = []corev1.Container{{Name: "x"}}
		return p
	}
	for i := range 5000 {
		n := &corev1.Node{}
		n.Name = fmt.Sprintf("node-%05d", i)
		n.Labels = map[string]string{corev1.LabelHostname: n.Name}
		n.Status.Allocatable = quantities(map[corev1.ResourceName]string{"cpu": "32", "memory": "256Gi", "pods": "110"})
		s.Add("nodes", n)
	}
	for i := range 10000 {
		s.Add("pods", pod(i))
	}
	for b.Loop() {
		if r, err := s.Why(pod(0)); err != nil || len(r.Nodes) != 5000 {
			b.Fatal(err)
		}
	}
}
