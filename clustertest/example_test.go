package clustertest_test

import (
	"context"
	"fmt"
	"log"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/clustertest"
)

// A program that is no test makes a cluster with New; a test calls Start(t), and needs no Close.
func Example() {
	ctx := context.Background()
	c, err := clustertest.New(ctx, clustertest.Manifests(`
apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  containers:
  - {name: hello, image: example.com/hello}
`))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	w, err := c.Client().CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		pod := event.Object.(*corev1.Pod)
		if pod.Status.Phase == corev1.PodRunning {
			fmt.Println(pod.Name, "runs on", pod.Spec.NodeName)
			break
		}
	}
	// Output: hello runs on node-0
}
