package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// The size of the section scale.
const (
	scaleNodes       = 5_000
	scalePods        = 100_000
	scaleReplicas    = 1_000 // of each Deployment
	scaleDeployments = 50    // the rest of the pods are created by clients
)

// simulatedPod is a pod as many clusters have it, in a namespace of the bench's own.
func simulatedPod(name, app string) *corev1.Pod {
	p := testPod(name)
	p.Labels["app"] = app
	p.Spec.SchedulerName = ""
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	return p
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	p := simulatedPod("", name)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec}},
	}
}

// scale measures 5,000 nodes at rest and 100,000 pods on them.
func (b *bench) scale(idle time.Duration) error {
	i, _, err := b.start(fmt.Sprintf("--nodes=simulated:%d", scaleNodes))
	if err != nil {
		return err
	}
	defer i.remove()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Minute)
	defer cancel()
	c, err := i.client(true)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := i.nodesReady(ctx, c, scaleNodes); err != nil {
		return err
	}
	s, err := i.status()
	if err != nil {
		return err
	}
	b.add("5,000 simulated nodes registered, all Ready", round(time.Since(began)), "")
	b.add("... server CPU until then", round(s.CPU), "")
	if err := b.resting(i, "5,000 nodes, no pods", idle); err != nil {
		return err
	}

	if err := i.namespace(ctx, c, "single"); err != nil {
		return err
	}
	var peak int64
	stopPeak := i.watchMemory(&peak)
	s, err = i.status()
	if err != nil {
		return err
	}
	before := s.CPU
	began = time.Now()
	for k := range scaleDeployments {
		if _, err := c.AppsV1().Deployments("default").Create(ctx, deployment(fmt.Sprintf("scale-%03d", k), scaleReplicas), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	_, _, err = i.each(scalePods-scaleDeployments*scaleReplicas, func(k int) error {
		p := simulatedPod(fmt.Sprintf("single-%06d", k), "single")
		p.Namespace = "single"
		_, err := c.CoreV1().Pods("single").Create(ctx, p, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	b.add("50,000 pods created by 32 clients, while 50 Deployments make 50,000", round(time.Since(began)), "")
	if err := i.running(ctx, scalePods); err != nil {
		return err
	}
	b.add("100,000 pods on 5,000 nodes, all Running", round(time.Since(began)), "< 3 min")
	if s, err = i.status(); err != nil {
		return err
	}
	b.add("... server CPU", round(s.CPU-before), "")
	stopPeak()
	b.add("... resident memory, highest seen", fmt.Sprintf("%.2f GB", float64(max(peak, s.Resident))/1e9), "< 2.5 GB")
	if err := i.heap("scale"); err != nil {
		return err
	}
	if err := b.resting(i, "5,000 nodes, 100,000 pods", idle); err != nil {
		return err
	}
	if s, err = i.status(); err != nil {
		return err
	}
	b.add("... resident memory then", fmt.Sprintf("%.2f GB", float64(s.Resident)/1e9), "< 2.5 GB")
	return nil
}

// namespace makes a namespace that pods can be made in.
func (i *instance) namespace(ctx context.Context, c kubernetes.Interface, name string) error {
	if _, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	return await(ctx, func() (bool, error) {
		_, err := c.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
}

// rollout measures a Deployment of 3,000 that gets a new template.
func (b *bench) rollout() error {
	const replicas = 3000
	i, _, err := b.start("--nodes=simulated:1000")
	if err != nil {
		return err
	}
	defer i.remove()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Minute)
	defer cancel()
	c, err := i.client(true)
	if err != nil {
		return err
	}
	if err := i.nodesReady(ctx, c, 1000); err != nil {
		return err
	}
	began := time.Now()
	if _, err := c.AppsV1().Deployments("default").Create(ctx, deployment("web", replicas), metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := rolledOut(ctx, c, "web", replicas); err != nil {
		return err
	}
	b.add("Deployment of 3,000 created, all available", round(time.Since(began)), "")
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := c.CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	for _, r := range []struct{ name, image string }{{"rolled (behind a Service)", "busybox:next"}, {"rolled again", "busybox:third"}} {
		d, err := c.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		d.Spec.Template.Spec.Containers[0].Image = r.image
		before, err := i.cpu()
		if err != nil {
			return err
		}
		began = time.Now()
		if _, err := c.AppsV1().Deployments("default").Update(ctx, d, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if err := rolledOut(ctx, c, "web", replicas); err != nil {
			return err
		}
		took := time.Since(began)
		after, err := i.cpu()
		if err != nil {
			return err
		}
		b.add("Deployment of 3,000 "+r.name, round(took), "< 30 s")
		b.add("... server CPU", round(after-before), "")
	}
	return nil
}

// rolledOut waits as kubectl rollout status does.
func rolledOut(ctx context.Context, c kubernetes.Interface, name string, replicas int32) error {
	return await(ctx, func() (bool, error) {
		d, err := c.AppsV1().Deployments("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		s := d.Status
		return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == replicas && s.Replicas == replicas && s.AvailableReplicas == replicas, nil
	})
}

// nodesReady waits for n Ready nodes.
func (i *instance) nodesReady(ctx context.Context, c kubernetes.Interface, n int) error {
	return await(ctx, func() (bool, error) {
		time.Sleep(100 * time.Millisecond) // the answer is large
		nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		ready := 0
		for k := range nodes.Items {
			for _, cond := range nodes.Items[k].Status.Conditions {
				if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready >= n, nil
	})
}

// running waits for n running pods.
func (i *instance) running(ctx context.Context, n int) error {
	return await(ctx, func() (bool, error) {
		time.Sleep(500 * time.Millisecond)
		s, err := i.status()
		return s.Running >= n, err
	})
}

// resting measures a cluster that nobody uses.
func (b *bench) resting(i *instance, what string, length time.Duration) error {
	time.Sleep(10 * time.Second) // what is under way comes to rest
	before, err := i.cpu()
	if err != nil {
		return err
	}
	time.Sleep(length)
	after, err := i.cpu()
	if err != nil {
		return err
	}
	b.add(what+": CPU at rest", fmt.Sprintf("%.1f %% of a core", 100*float64(after-before)/float64(length)), "< 10 %")
	return nil
}

// watchMemory notes the highest resident memory until it is stopped.
func (i *instance) watchMemory(peak *int64) (stop func()) {
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Second):
			}
			if s, err := i.status(); err == nil {
				*peak = max(*peak, s.Resident)
				if os.Getenv("BENCH_VERBOSE") != "" {
					fmt.Printf("    %d pods, %d running, %d MB, cpu %s\n", s.Pods, s.Running, s.Resident>>20, s.CPU)
				}
			}
		}
	})
	return sync.OnceFunc(func() { close(done); group.Wait() })
}

// heap keeps profiles of the server where BENCH_PROFILES says.
func (i *instance) heap(name string) error {
	dir := os.Getenv("BENCH_PROFILES")
	if dir == "" {
		return nil
	}
	web := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(i.dir, "run", "control.sock"))
	}}}
	resp, err := web.Get("http://coracle/debug/pprof/heap")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := os.Create(filepath.Join(dir, name+".heap"))
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = out.ReadFrom(resp.Body)
	return err
}
