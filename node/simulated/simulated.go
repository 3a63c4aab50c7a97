// Package simulated plays the part of many nodes at once: it registers them, keeps
// their leases alive and reports every pod that is bound to one of them as running.
//
// What happens to pods and nodes beyond that is said by Stages.
//
// It owns the Node objects, leases and pod status of the nodes that it made up and
// nothing else. It never starts a process and never touches the kernel: it is
// for benchmarks, for tests of schedulers and controllers, and for machines where
// real containers are not to be had. One goroutine decides for all nodes; writers
// come into being when there is something to write, and end when there has been nothing for a while.
package simulated

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// CompletesAfter is a pod annotation: a Go duration after which a simulated node
// reports that every container of the pod has exited with code 0. Without it a pod
// runs until it is deleted.
const CompletesAfter = "simulated.coracle.dev/completes-after"

// Config says which nodes to play. Zero values mean the default that is named.
type Config struct {
	// Client reads and writes the cluster's objects.
	Client client.Client
	// Count is how many nodes there are. They are named Prefix followed by a number from 0.
	Count int
	// Prefix is the beginning of every node's name, "simulated-" if empty.
	Prefix string
	// Capacity of each node; 32 CPUs, 256 GiB of memory and 110 pods if nil.
	Capacity corev1.ResourceList
	// Labels are added to those that every node has.
	Labels map[string]string
	// Taints of every node.
	Taints []corev1.Taint
	// Version is the kubelet version that nodes report, "v1.37.2" if empty.
	Version string
	// PodCIDR is where the nodes' ranges of made-up pod addresses come from, 100.64.0.0/10 if zero. It takes none of
	// what the nodes of real machines are given.
	PodCIDR netip.Prefix
	// LeaseEvery is how often each node's lease is renewed, 20 s if zero.
	LeaseEvery time.Duration
	// Writers bounds how many writes are under way at once, 64 if zero.
	Writers int
	// Stages is what happens to pods and nodes beside the default, nil for nothing.
	Stages *Stages
	Log    *slog.Logger
	// Now tells the time, time.Now if nil.
	Now func() time.Time
}

// Agent plays the nodes of one Config.
type Agent struct {
	cfg   Config
	nodes map[string]*simNode

	mu       sync.Mutex // guards what follows
	queue    []types.NamespacedName
	pods     map[types.NamespacedName]*work
	failures map[types.NamespacedName]int // in a row, of pods that could not be written
	writers  int
	idle     int // of the writers, those that wait for a token in kick
	alarms   alarms
	lives    map[types.NamespacedName]*life // of pods that wait or that stages are for

	recovered []string // nodes whose pods are to be looked at again; guarded by mu

	wake chan struct{} // has room for one hint that deadlines changed, or that a node recovered
	kick chan struct{} // has room for a token for each writer: there is something to write
	done sync.WaitGroup
}

// simNode is one node of the agent's.
type simNode struct {
	name string
	uid  types.UID
	gone bool // the Node object was deleted: play dead
	pool pool // guarded by Agent.mu
	down bool // Fail was called; guarded by Agent.mu
	// silent tells that a stage has the node do nothing at present.
	silent atomic.Bool
	life   nodeLife  // used by the one writer that has the node
	booted time.Time // guarded by Agent.mu
}

// work is what the agent knows of a pod that something has to be done for.
type work struct {
	running bool // a writer has it
	dirty   bool // it changed since the writer looked
}

// New prepares an agent. Nothing happens before Run.
func New(cfg Config) *Agent {
	if cfg.Prefix == "" {
		cfg.Prefix = "simulated-"
	}
	if cfg.Capacity == nil {
		cfg.Capacity = corev1.ResourceList{
			corev1.ResourceCPU:              resource.MustParse("32"),
			corev1.ResourceMemory:           resource.MustParse("256Gi"),
			corev1.ResourcePods:             resource.MustParse("110"),
			corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		}
	}
	if cfg.Version == "" {
		cfg.Version = "v1.37.2"
	}
	if !cfg.PodCIDR.IsValid() {
		cfg.PodCIDR = netip.MustParsePrefix("100.64.0.0/10")
	}
	if cfg.LeaseEvery == 0 {
		cfg.LeaseEvery = 20 * time.Second
	}
	if cfg.Writers == 0 {
		cfg.Writers = 64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		cfg:   cfg,
		nodes: make(map[string]*simNode, cfg.Count),
		pods:  map[types.NamespacedName]*work{},

		failures: map[types.NamespacedName]int{},
		alarms:   alarms{at: map[types.NamespacedName]time.Time{}},
		lives:    map[types.NamespacedName]*life{},

		wake: make(chan struct{}, 1),
		kick: make(chan struct{}, cfg.Writers),
	}
	for i := range cfg.Count {
		name := fmt.Sprintf("%s%d", cfg.Prefix, i)
		a.nodes[name] = &simNode{name: name, pool: newPool(blockOf(cfg.PodCIDR, i, cfg.Count))}
	}
	return a
}

// Run registers the nodes and plays them until ctx is done; it then returns nil
// when the last writer has stopped. The nodes stay registered.
func (a *Agent) Run(ctx context.Context) error {
	defer a.done.Wait()
	if err := a.register(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("register simulated nodes: %w", err)
	}
	leases := time.NewTimer(a.leaseSlot())
	defer leases.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var cursor store.Cursor
	slot := 0
	for {
		if cursor == nil {
			c, err := a.relist(ctx)
			if err != nil {
				return err
			}
			cursor = c
		}
		events, err := cursor.Poll()
		switch {
		case errors.Is(err, store.ErrCompacted):
			cursor = nil
			continue
		case err != nil:
			return err
		}
		for _, ev := range events {
			a.event(ctx, ev)
		}
		if len(events) > 0 {
			continue
		}
		a.resume(ctx)
		timer.Reset(a.due(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-cursor.Ready():
		case <-a.wake:
		case <-timer.C:
		case <-leases.C:
			leases.Reset(a.leaseSlot())
			a.renew(ctx, slot)
			slot++
		}
	}
}

// relist takes up every pod of the agent's nodes and returns the history behind that.
func (a *Agent) relist(ctx context.Context) (store.Cursor, error) {
	snap := a.cfg.Client.Snapshot()
	cursor, err := a.cfg.Client.Cursor(snap.Revision(), client.Pods.Name)
	if err != nil {
		return nil, fmt.Errorf("follow pods: %w", err)
	}
	for name := range a.nodes {
		for pod := range client.Pods.Index(snap, "node", name) {
			a.reserve(pod)
			a.touch(ctx, pod)
		}
		a.play(ctx, name)
	}
	return cursor, nil
}

// event takes notice of one change of a pod.
func (a *Agent) event(ctx context.Context, ev store.Event) {
	pod := ev.Entry.Object.(*corev1.Pod)
	if a.nodes[pod.Spec.NodeName] == nil {
		return
	}
	if ev.Deleted {
		a.mu.Lock()
		delete(a.alarms.at, keyOf(pod))
		delete(a.lives, keyOf(pod))
		a.mu.Unlock()
		return
	}
	a.touch(ctx, pod)
}

// touch queues a pod if there is something to do for it now, and remembers when there will be.
func (a *Agent) touch(ctx context.Context, pod *corev1.Pod) {
	if a.mute(pod.Spec.NodeName) {
		return // it is looked at when the node is back
	}
	now := a.cfg.Now()
	_, at, ok := a.look(pod, now)
	switch {
	case !ok:
	case at.After(now):
		a.later(keyOf(pod), at)
	default:
		a.enqueue(ctx, keyOf(pod))
	}
}

// later notes when to look at a pod again.
func (a *Agent) later(key types.NamespacedName, at time.Time) {
	a.mu.Lock()
	a.alarms.set(key, at)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// due queues the pods whose time has come and returns how long to sleep for the next.
func (a *Agent) due(ctx context.Context) time.Duration {
	a.mu.Lock()
	ripe, sleep := a.alarms.ring(a.cfg.Now())
	a.mu.Unlock()
	for _, key := range ripe {
		a.enqueue(ctx, key)
	}
	return sleep
}

// enqueue hands a pod to a writer, and makes one if fewer than allowed are at work.
func (a *Agent) enqueue(ctx context.Context, key types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.pods[key]; w != nil {
		w.dirty = true
		return
	}
	a.pods[key] = &work{}
	a.queue = append(a.queue, key)
	switch {
	case a.idle > 0:
		a.idle--
		a.kick <- struct{}{}
	case a.writers < a.cfg.Writers:
		a.writers++
		a.done.Go(func() { a.write(ctx) })
	}
}

// linger is how long a writer without work stays: one whose stack has grown once is worth keeping.
const linger = 5 * time.Second

// rest waits for work. It returns false when the writer is to end.
func (a *Agent) rest(ctx context.Context) bool {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	select {
	case <-a.kick:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.idle > 0 {
		a.idle--
		a.writers--
		return false
	}
	<-a.kick // it was sent meanwhile
	return true
}

// write works the queue off, and ends when it has been empty for a while.
func (a *Agent) write(ctx context.Context) {
	for {
		a.mu.Lock()
		if ctx.Err() != nil {
			a.writers--
			a.mu.Unlock()
			return
		}
		if len(a.queue) == 0 {
			a.idle++
			a.mu.Unlock()
			if !a.rest(ctx) {
				return
			}
			continue
		}
		key := a.queue[0]
		a.queue = a.queue[1:]
		w := a.pods[key]
		w.running, w.dirty = true, false
		a.mu.Unlock()

		err := a.pass(ctx, key)

		var retry time.Time
		a.mu.Lock()
		w.running = false
		switch {
		case err != nil && ctx.Err() == nil:
			a.failures[key]++
			delete(a.pods, key)
			retry = a.cfg.Now().Add(backoff(a.failures[key]))
			a.cfg.Log.Warn("simulated pod", "pod", key.String(), "err", err)
		case w.dirty:
			a.queue = append(a.queue, key)
		default:
			delete(a.pods, key)
			delete(a.failures, key)
		}
		a.mu.Unlock()
		if !retry.IsZero() {
			a.later(key, retry)
		}
	}
}

func backoff(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 5), 30*time.Second)
}

// pass does what there is to do for one pod or node now.
func (a *Agent) pass(ctx context.Context, key types.NamespacedName) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if key.Namespace == "" {
		return a.passNode(ctx, a.nodes[key.Name])
	}
	for {
		snap := a.cfg.Client.Snapshot()
		pod, ok := client.Pods.Get(snap, key.Namespace, key.Name)
		if !ok || a.nodes[pod.Spec.NodeName] == nil || a.mute(pod.Spec.NodeName) {
			return nil
		}
		now := a.cfg.Now()
		x, at, ok := a.look(pod, now)
		switch {
		case !ok:
			return nil
		case at.After(now):
			a.later(key, at)
			return nil
		}
		again, err := a.act(ctx, snap, x, now)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil || !again {
			return err
		}
	}
}

// act writes what is due for a pod. again asks for another look.
func (a *Agent) act(ctx context.Context, snap store.Snapshot, x *subject, now time.Time) (again bool, err error) {
	pod, key := x.pod, keyOf(x.pod)
	if x.state == Terminating && (len(pod.Finalizers) == 0 || ended(pod)) {
		var zero int64
		err := a.cfg.Client.Delete(ctx, client.Ref{Resource: client.Pods.Name, Namespace: key.Namespace, Name: key.Name},
			client.DeleteOptions{UID: pod.UID, GraceSeconds: &zero})
		if apierrors.IsConflict(err) {
			err = nil // another pod of this name: its events come
		}
		return false, err
	}
	out, staged := x.advance(now, func() string { return a.address(snap, pod.Spec.NodeName) })
	undo := func() {}
	if staged {
		undo = a.happened(key, x.stage)
	}
	_, err = a.cfg.Client.Update(ctx, client.Pods.Name, out, client.WriteOptions{Subresource: "status", FieldManager: fieldManager})
	if err != nil {
		undo()
	}
	if apierrors.IsConflict(err) {
		err = nil
	}
	return true, err
}

// fieldManager is as whom the agent writes, the one that real nodes have.
const fieldManager = "kubelet"

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
