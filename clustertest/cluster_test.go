package clustertest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func deployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: template(labels)},
	}
}

func template(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example.com/image:1"}}}}
}

func TestADeploymentBecomesAvailable(t *testing.T) {
	began := time.Now()
	c := Start(t)
	t.Logf("ready after %s", time.Since(began))
	deployments := c.Client().AppsV1().Deployments("default")
	if _, err := deployments.Create(t.Context(), deployment("web", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Eventually(t, func() error {
		d, err := deployments.Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.AvailableReplicas != 3 {
			return fmt.Errorf("available: %d", d.Status.AvailableReplicas)
		}
		return nil
	})
	began = time.Now()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("closed after %s", time.Since(began))
	if _, err := deployments.List(t.Context(), metav1.ListOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a request to a closed cluster: %v", err)
	}
}

func zeroOrOne() (zero, one *intstr.IntOrString) {
	a, b := intstr.FromInt32(0), intstr.FromInt32(1)
	return &a, &b
}
