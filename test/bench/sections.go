package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	clients = 32
	objects = 5000
)

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// boot measures starts from nothing and starts on a state that is there.
func (b *bench) boot() error {
	info, err := os.Stat(filepath.Join(b.bin, "coracle"))
	if err != nil {
		return err
	}
	b.add("binary size", fmt.Sprintf("%.1f MB", float64(info.Size())/1e6), "")
	var first, again []time.Duration
	for range 5 {
		i, took, err := b.start()
		if err != nil {
			return err
		}
		first = append(first, took)
		if _, err := i.run("down"); err != nil {
			return err
		}
		took, err = i.up()
		if err != nil {
			return err
		}
		again = append(again, took)
		i.remove()
	}
	b.add("first boot to API, node Ready, DNS (whole command)", round(median(first)), "<= 1 s, aim 200 ms")
	b.add("restart to the same", round(median(again)), "")
	return nil
}

func round(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }

// idle watches a cluster that nobody uses.
func (b *bench) idle(length time.Duration) error {
	i, _, err := b.start()
	if err != nil {
		return err
	}
	defer i.remove()
	time.Sleep(5 * time.Second) // what the start left behind settles
	before, err := i.cpu()
	if err != nil {
		return err
	}
	time.Sleep(length) // the thing measured is time passing
	s, err := i.status()
	if err != nil {
		return err
	}
	b.add("resident memory, idle, everything running", fmt.Sprintf("%.1f MB", float64(s.Resident+s.Shim)/1e6), "<= 100 MB, aim 60")
	b.add("CPU, idle", fmt.Sprintf("%.2f %% of a core", 100*float64(s.CPU-before)/float64(length)), "<= 0.5 %, aim 0.1")
	return nil
}

// testPod is a pod of ordinary size that no scheduler takes.
func testPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "bench", "tier": "web"}},
		Spec: corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{
			Name: "main", Image: "busybox:bench", Command: []string{"sleep", "1000000"},
			Env:   []corev1.EnvVar{{Name: "GREETING", Value: "hello"}},
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
		}}},
	}
}

// each runs f for 0 to n-1 from 32 clients and returns the server's CPU and the time, per call.
func (i *instance) each(n int, f func(k int) error) (cpu, wall time.Duration, err error) {
	before, err := i.cpu()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	var next atomic.Int64
	var failure atomic.Pointer[error]
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for failure.Load() == nil {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				if err := f(k); err != nil {
					failure.Store(&err)
				}
			}
		})
	}
	group.Wait()
	wall = time.Since(began)
	if p := failure.Load(); p != nil {
		return 0, 0, *p
	}
	after, err := i.cpu()
	return (after - before) / time.Duration(n), wall / time.Duration(n), err
}

// filled is a cluster with 5,000 pods that nobody runs.
func (b *bench) filled() (*instance, *kubernetes.Clientset, error) {
	i, _, err := b.start("--nodes=none")
	if err != nil {
		return nil, nil, err
	}
	c, err := i.client(true)
	if err == nil {
		_, _, err = i.each(objects, func(k int) error {
			_, err := c.CoreV1().Pods("default").Create(b.ctx, testPod(fmt.Sprintf("bench-%05d", k)), metav1.CreateOptions{})
			return err
		})
	}
	if err != nil {
		i.remove()
		return nil, nil, err
	}
	return i, c, nil
}

// list measures LIST of 5,000 pods; the answer is read and thrown away.
func (b *bench) list() error {
	i, _, err := b.filled()
	if err != nil {
		return err
	}
	defer i.remove()
	for _, form := range []string{"application/vnd.kubernetes.protobuf", "application/json"} {
		config, err := i.config(true)
		if err != nil {
			return err
		}
		config.DisableCompression = true
		web, err := rest.HTTPClientFor(config)
		if err != nil {
			return err
		}
		get := func() error { return drain(b.ctx, web, config.Host+"/api/v1/pods", form) }
		if err := get(); err != nil { // encodings are made at first demand
			return err
		}
		const times = 40
		before, err := i.cpu()
		if err != nil {
			return err
		}
		began := time.Now()
		for range times {
			if err := get(); err != nil {
				return err
			}
		}
		wall := time.Since(began) / times
		after, err := i.cpu()
		if err != nil {
			return err
		}
		per := float64((after - before).Nanoseconds()) / 1000 / times / objects
		b.add(fmt.Sprintf("list of %d pods, %s: server CPU per object", objects, form), fmt.Sprintf("%.2f us", per), "<= 5.6 us, aim 1.4")
		b.add(fmt.Sprintf("list of %d pods, %s: time", objects, form), round(wall), "")
	}
	return nil
}

func drain(ctx context.Context, web *http.Client, url, accept string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", accept)
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// watch measures the cost of an event for each watcher it is delivered to.
func (b *bench) watch() error {
	for _, watchers := range []int{100, 1000} {
		if err := b.fanOut(watchers, 20_000/watchers+50); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) fanOut(watchers, changes int) error {
	i, _, err := b.start("--nodes=none")
	if err != nil {
		return err
	}
	defer i.remove()
	c, err := i.client(true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	if _, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	maps := c.CoreV1().ConfigMaps("bench")
	m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "bench"}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	var seen atomic.Int64
	var web *http.Client
	for k := range watchers {
		if k%200 == 0 { // a connection takes 250 streams
			config, err := i.config(true)
			if err != nil {
				return err
			}
			// A dialer of its own gives the client a connection of its own.
			config.Dial = newDialer()
			if web, err = rest.HTTPClientFor(config); err != nil {
				return err
			}
		}
		body, err := openWatch(ctx, web, fmt.Sprintf("https://127.0.0.1:%d/api/v1/namespaces/bench/configmaps?watch=1&fieldSelector=metadata.name%%3Dbench", i.port))
		if err != nil {
			return err
		}
		go countFrames(body, &seen)
	}
	// Each watch begins with the one object that there is: then all are under way.
	if err := await(ctx, func() (bool, error) { return seen.Load() == int64(watchers), nil }); err != nil {
		return err
	}
	begin := seen.Load()
	before, err := i.cpu()
	if err != nil {
		return err
	}
	for n := range changes {
		m.Data = map[string]string{"n": fmt.Sprint(n + 1)}
		if m, err = maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	want := begin + int64(watchers*changes)
	for deadline := time.Now().Add(time.Minute); seen.Load() < want; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d watchers got %d events, want %d", watchers, seen.Load()-begin, want-begin)
		}
		time.Sleep(time.Millisecond)
	}
	after, err := i.cpu()
	if err != nil {
		return err
	}
	per := float64((after - before).Nanoseconds()) / 1000 / float64(watchers*changes)
	b.add(fmt.Sprintf("watch, %d watchers: server CPU per event delivered", watchers), fmt.Sprintf("%.2f us", per), "<= 11 us, aim 2.8")
	return nil
}

// pods measures real containers: one alone, and 30 at once.
func (b *bench) pods() error {
	i, _, err := b.start()
	if err != nil {
		return err
	}
	defer i.remove()
	if err := i.importBusybox(b.ctx); err != nil {
		return err
	}
	c, err := i.client(true)
	if err != nil {
		return err
	}
	pod := func(name string) *corev1.Pod {
		p := testPod(name)
		p.Spec.SchedulerName = ""
		zero := int64(0)
		p.Spec.TerminationGracePeriodSeconds = &zero
		return p
	}
	var alone []time.Duration
	for k := range 15 {
		took, err := untilReady(b.ctx, c, []*corev1.Pod{pod(fmt.Sprintf("alone-%d", k))})
		if err != nil {
			return err
		}
		alone = append(alone, took)
	}
	b.add("first pod after boot, create to Ready", round(alone[0]), "")
	b.add("one pod, create to Ready, image present", round(median(alone[1:])), "<= 100 ms, aim 40 ms")
	var many []*corev1.Pod
	for k := range 30 {
		many = append(many, pod(fmt.Sprintf("many-%d", k)))
	}
	took, err := untilReady(b.ctx, c, many)
	if err != nil {
		return err
	}
	b.add("30 pods at once, all Ready", round(took), "<= 2 s, aim 0.7 s")
	s, err := i.status()
	if err != nil {
		return err
	}
	b.add("resident memory with 45 pods running", fmt.Sprintf("%.1f MB", float64(s.Resident+s.Shim)/1e6), "")
	return nil
}

// untilReady creates pods side by side and waits until all are Ready.
func untilReady(ctx context.Context, c *kubernetes.Clientset, pods []*corev1.Pod) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := c.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	waiting := map[string]bool{}
	for _, p := range pods {
		waiting[p.Name] = true
	}
	began := time.Now()
	failed := make(chan error, len(pods))
	for _, p := range pods {
		go func() {
			_, err := c.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
			failed <- err
		}()
	}
	for len(waiting) > 0 {
		select {
		case err := <-failed:
			if err != nil {
				return 0, err
			}
		case ev, ok := <-w.ResultChan():
			if !ok {
				return 0, fmt.Errorf("watch ended; not Ready: %v", waiting)
			}
			if p, is := ev.Object.(*corev1.Pod); is && ready(p) {
				delete(waiting, p.Name)
			}
		}
	}
	return time.Since(began), nil
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// schedule measures 5,000 pods created and bound on 1,000 simulated nodes.
func (b *bench) schedule() error {
	i, _, err := b.start("--nodes=simulated:1000")
	if err != nil {
		return err
	}
	defer i.remove()
	c, err := i.client(true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	if err := await(ctx, func() (bool, error) {
		nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		return len(nodes.Items) == 1000, nil
	}); err != nil {
		return fmt.Errorf("waiting for nodes: %w", err)
	}
	w, err := c.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	before, err := i.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	created := make(chan error, 1)
	go func() {
		_, _, err := i.each(objects, func(k int) error {
			p := testPod(fmt.Sprintf("bench-%05d", k))
			p.Spec.SchedulerName = ""
			_, err := c.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
			return err
		})
		created <- err
	}()
	bound, running := map[string]bool{}, map[string]bool{}
	var allBound time.Duration
	for len(running) < objects {
		select {
		case err := <-created:
			if err != nil {
				return err
			}
		case ev, ok := <-w.ResultChan():
			if !ok {
				return fmt.Errorf("watch ended with %d pods bound", len(bound))
			}
			p, is := ev.Object.(*corev1.Pod)
			if !is {
				continue
			}
			if p.Spec.NodeName != "" {
				bound[p.Name] = true
				if len(bound) == objects && allBound == 0 {
					allBound = time.Since(began)
				}
			}
			if p.Status.Phase == corev1.PodRunning {
				running[p.Name] = true
			}
		}
	}
	all := time.Since(began)
	after, err := i.cpu()
	if err != nil {
		return err
	}
	b.add("5,000 pods created and bound on 1,000 nodes", round(allBound), "<= 6 s, aim 2 s")
	b.add("... and reported Running", round(all), "")
	b.add("... server CPU for each pod, all of its life so far", fmt.Sprintf("%d us", (after-before).Microseconds()/objects), "")
	return nil
}

// await looks again and again until a condition holds.
func await(ctx context.Context, condition func() (bool, error)) error {
	for {
		ok, err := condition()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
