package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Name is the scheduler that pods without another name get.
const Name = corev1.DefaultSchedulerName

// Config is what a Scheduler needs.
type Config struct {
	Client client.Client
	// Record takes events; it does not block. May be nil.
	Record func(reconcile.Event)
	Log    *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Scheduler binds pods to nodes. One goroutine owns the Cluster and the queue; what takes
// time (bindings, conditions, removals) is done by a few workers, which report back to it.
type Scheduler struct {
	Config
	cluster *Cluster
	queue   *queue
	// binding are the pods whose binding is under way: what the store says of them
	// is older than what we know.
	binding map[types.UID]*item
	work    chan func(context.Context)
	done    chan func()
}

// The resources whose changes the scheduler follows.
var followed = []string{client.Pods.Name, client.Nodes.Name, client.Namespaces.Name,
	client.PersistentVolumeClaims.Name, client.PersistentVolumes.Name}

const (
	workers     = 16               // side by side they share the store's commits
	workQueue   = 1024             // when it is full, scheduling waits
	workTimeout = 30 * time.Second // of one binding or removal
)

// New returns a Scheduler; Run starts it.
func New(c Config) *Scheduler {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Record == nil {
		c.Record = func(reconcile.Event) {}
	}
	return &Scheduler{Config: c, work: make(chan func(context.Context), workQueue), done: make(chan func(), workQueue)}
}

// Run schedules until ctx is done.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx = client.WithUser(ctx, client.User{Name: "system:kube-scheduler", Groups: []string{client.GroupAuthenticated}})
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case f := <-s.work:
					bounded, cancel := context.WithTimeout(ctx, workTimeout)
					f(bounded)
					cancel()
				}
			}
		}()
	}
	for {
		err := s.follow(ctx)
		if !errors.Is(err, store.ErrCompacted) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.Log.Warn("scheduler fell behind the history that is kept and reads everything again")
	}
}

// follow builds the totals from a snapshot and keeps them up with the history.
func (s *Scheduler) follow(ctx context.Context) error {
	snap := s.Client.Snapshot()
	cursor, err := s.Client.Cursor(snap.Revision(), followed...)
	if err != nil {
		return err
	}
	s.load(snap)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		events, err := cursor.Poll()
		if err != nil {
			return err
		}
		for i := range events {
			s.observe(&events[i])
		}
		s.settleDone()
		worked, err := s.one(ctx)
		if err != nil {
			return err
		}
		if worked || len(events) > 0 {
			continue
		}
		var due <-chan time.Time
		if next, ok := s.queue.next(); ok {
			timer.Reset(max(next.Sub(s.Now()), 0))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cursor.Ready():
		case f := <-s.done:
			f()
		case <-due:
		}
	}
}

func (s *Scheduler) settleDone() {
	for {
		select {
		case f := <-s.done:
			f()
		default:
			return
		}
	}
}

func (s *Scheduler) load(snap store.Snapshot) {
	s.cluster, s.queue, s.binding = NewCluster(), newQueue(), map[types.UID]*item{}
	for ns := range client.Namespaces.List(snap, "") {
		s.cluster.SetNamespace(ns.Name, ns)
	}
	for n := range client.Nodes.List(snap, "") {
		s.cluster.SetNode(n)
	}
	for p := range client.Pods.List(snap, "") {
		s.observePod(p, nil, false)
	}
}

// observe takes one event of the history into account.
func (s *Scheduler) observe(ev *store.Event) {
	now := s.Now()
	switch obj := ev.Entry.Object.(type) {
	case *corev1.Pod:
		var prev *corev1.Pod
		if ev.Prev != nil {
			prev = ev.Prev.Object.(*corev1.Pod)
		}
		s.observePod(obj, prev, ev.Deleted)
	case *corev1.Node:
		switch {
		case ev.Deleted:
			s.cluster.RemoveNode(obj.Name)
		case ev.Prev == nil:
			s.cluster.SetNode(obj)
			s.queue.wake(nodeAdded, now)
		default:
			s.cluster.SetNode(obj)
			s.queue.wake(nodeChange(ev.Prev.Object.(*corev1.Node), obj), now)
		}
	case *corev1.Namespace:
		if ev.Deleted {
			s.cluster.SetNamespace(obj.Name, nil)
		} else if ev.Prev == nil || !sameLabels(obj.Labels, ev.Prev.Object.(*corev1.Namespace).Labels) {
			s.cluster.SetNamespace(obj.Name, obj)
		}
	case *corev1.PersistentVolumeClaim, *corev1.PersistentVolume:
		s.queue.wake(volumes, now)
	}
}

func nodeChange(old, fresh *corev1.Node) change {
	var what change
	if !sameLabels(old.Labels, fresh.Labels) {
		what |= nodeLabels
	}
	if old.Spec.Unschedulable != fresh.Spec.Unschedulable || len(old.Spec.Taints) != len(fresh.Spec.Taints) {
		what |= nodeTaints
	} else {
		for i := range old.Spec.Taints {
			if !old.Spec.Taints[i].MatchTaint(&fresh.Spec.Taints[i]) || old.Spec.Taints[i].Value != fresh.Spec.Taints[i].Value {
				what |= nodeTaints
			}
		}
	}
	for name, q := range fresh.Status.Allocatable {
		if was := old.Status.Allocatable[name]; was.Cmp(q) != 0 {
			what |= nodeAllocatable
			break
		}
	}
	return what
}

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func (s *Scheduler) observePod(p, prev *corev1.Pod, deleted bool) {
	now := s.Now()
	switch {
	case deleted || terminal(p):
		s.queue.remove(p.UID)
		delete(s.binding, p.UID)
		s.cluster.Forget(p.UID)
		s.queue.wake(podGone|podPlaced, now)
	case p.Spec.NodeName != "":
		s.queue.remove(p.UID)
		delete(s.binding, p.UID)
		s.cluster.Assign(p, p.Spec.NodeName, true)
		if prev == nil || prev.Spec.NodeName == "" || !sameLabels(prev.Labels, p.Labels) || p.DeletionTimestamp != nil && prev.DeletionTimestamp == nil {
			s.queue.wake(podPlaced, now)
		}
	case s.binding[p.UID] != nil:
		// Older than our own decision; the outcome of the binding is to come.
	case p.Spec.SchedulerName != Name || p.DeletionTimestamp != nil || len(p.Spec.SchedulingGates) > 0:
		s.queue.remove(p.UID)
		if p.Spec.SchedulerName == Name && len(p.Spec.SchedulingGates) > 0 && p.DeletionTimestamp == nil {
			s.sayGated(p)
		}
	default:
		if p.Status.NominatedNodeName != "" {
			s.cluster.Nominate(p, p.Status.NominatedNodeName)
		}
		s.queue.put(p, now)
	}
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// one makes one pass, for the most important pod that is ready. It returns false if there is none.
func (s *Scheduler) one(ctx context.Context) (bool, error) {
	it := s.queue.take(s.Now())
	if it == nil {
		return false, nil
	}
	pod := it.pod
	snap := s.Client.Snapshot()
	affinities, problem := volumesOf(snap, pod)
	var d Decision
	if problem != "" {
		n := s.cluster.Nodes()
		d = Decision{wakes: volumes | podItself, Message: fmt.Sprintf(
			"0/%d nodes are available: %s. preemption: 0/%d nodes are available: %d Preemption is not helpful for scheduling.", n, problem, n, n)}
	} else {
		s.cluster.budgets = func() Budgets { return slices.Collect(client.PodDisruptionBudgets.List(snap, "")) }
		d = s.cluster.Schedule(pod, affinities)
	}
	if d.Node == "" {
		return true, s.refuse(ctx, it, d)
	}
	s.cluster.Assign(pod, d.Node, false)
	s.binding[pod.UID] = it
	return true, s.do(ctx, func(ctx context.Context) {
		err := s.Client.Bind(ctx, pod.Namespace, pod.Name, pod.UID, d.Node)
		s.report(ctx, func() { s.bound(it, d.Node, err) })
	})
}

// do hands something to a worker. While all are busy it goes on taking their reports, so
// that neither side waits for the other.
func (s *Scheduler) do(ctx context.Context, f func(context.Context)) error {
	for {
		select {
		case s.work <- f:
			return nil
		case g := <-s.done:
			g()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Scheduler) report(ctx context.Context, f func()) {
	select {
	case s.done <- f:
	case <-ctx.Done():
	}
}

// bound takes note of how a binding ended.
func (s *Scheduler) bound(it *item, node string, err error) {
	pod := it.pod
	if err == nil {
		s.Record(event(pod, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)))
		return // the store's event confirms it
	}
	if s.binding[pod.UID] != it {
		return // the store has told already what became of the pod
	}
	delete(s.binding, pod.UID)
	s.cluster.Forget(pod.UID)
	if apierrors.IsNotFound(err) {
		s.queue.remove(pod.UID)
		return
	}
	s.Log.Warn("binding failed", "pod", pod.Namespace+"/"+pod.Name, "node", node, "error", err)
	s.Record(event(pod, corev1.EventTypeWarning, "FailedScheduling", err.Error()))
	it.missed |= anyChange
	s.queue.fail(it, anyChange, s.Now())
}

// refuse records why a pod has no node, makes room if that was decided, and lets it wait.
func (s *Scheduler) refuse(ctx context.Context, it *item, d Decision) error {
	pod := it.pod
	s.Record(event(pod, corev1.EventTypeWarning, "FailedScheduling", d.Message))
	s.queue.fail(it, d.wakes, s.Now())
	if d.Nominated != "" {
		s.cluster.Nominate(pod, d.Nominated)
	}
	for _, victim := range d.Victims {
		if err := s.do(ctx, func(ctx context.Context) { s.preempt(ctx, pod, victim, d.Nominated) }); err != nil {
			return err
		}
	}
	return s.do(ctx, func(ctx context.Context) {
		s.setCondition(ctx, pod, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
			Reason: corev1.PodReasonUnschedulable, Message: d.Message}, d.Nominated)
	})
}

func (s *Scheduler) sayGated(p *corev1.Pod) {
	f := func(ctx context.Context) {
		s.setCondition(ctx, p, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse,
			Reason: corev1.PodReasonSchedulingGated, Message: "Scheduling is blocked due to non-empty scheduling gates"}, "")
	}
	select {
	case s.work <- f:
	default: // the API server has set the condition when the pod was made
	}
}

// setCondition writes PodScheduled and, if not empty, the nominated node, unless the pod has
// both already or has been bound.
func (s *Scheduler) setCondition(ctx context.Context, pod *corev1.Pod, want corev1.PodCondition, nominated string) {
	_, err := client.Mutate(ctx, s.Client, client.Pods, pod.Namespace, pod.Name, "status", func(p *corev1.Pod) bool {
		if p.UID != pod.UID || p.Spec.NodeName != "" {
			return false
		}
		changed := nominated != "" && p.Status.NominatedNodeName != nominated
		if changed {
			p.Status.NominatedNodeName = nominated
		}
		return setCondition(&p.Status, want, metav1.NewTime(s.Now())) || changed
	})
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		s.Log.Warn("writing the PodScheduled condition failed", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	}
}

func setCondition(status *corev1.PodStatus, want corev1.PodCondition, now metav1.Time) bool {
	want.LastTransitionTime = now
	for i := range status.Conditions {
		c := &status.Conditions[i]
		if c.Type != want.Type {
			continue
		}
		if c.Status == want.Status {
			want.LastTransitionTime = c.LastTransitionTime
		}
		want.LastProbeTime, want.ObservedGeneration = c.LastProbeTime, c.ObservedGeneration
		if *c == want {
			return false
		}
		*c = want
		return true
	}
	status.Conditions = append(status.Conditions, want)
	return true
}

// preempt removes one pod in favour of another.
func (s *Scheduler) preempt(ctx context.Context, pod, victim *corev1.Pod, node string) {
	message := fmt.Sprintf("%s: preempting to accommodate a higher priority pod", Name)
	_, err := client.Mutate(ctx, s.Client, client.Pods, victim.Namespace, victim.Name, "status", func(p *corev1.Pod) bool {
		return p.UID == victim.UID && p.DeletionTimestamp == nil && setCondition(&p.Status, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: corev1.PodReasonPreemptionByScheduler, Message: message}, metav1.NewTime(s.Now()))
	})
	if err == nil && victim.DeletionTimestamp == nil {
		err = s.Client.Delete(ctx, client.Ref{Resource: client.Pods.Name, Namespace: victim.Namespace, Name: victim.Name},
			client.DeleteOptions{UID: victim.UID})
	}
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		s.Log.Warn("preemption failed", "victim", victim.Namespace+"/"+victim.Name, "error", err)
	default:
		s.Record(event(victim, corev1.EventTypeNormal, "Preempted", fmt.Sprintf("Preempted by pod %s on node %s", pod.UID, node)))
	}
}

func event(p *corev1.Pod, kind, reason, message string) reconcile.Event {
	return reconcile.Event{Type: kind, Reason: reason, Message: message, Regarding: corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}}
}

// volumesOf returns the node affinities of the persistent volumes that a pod uses, or why it
// cannot be scheduled yet.
func volumesOf(snap store.Snapshot, pod *corev1.Pod) ([]*corev1.VolumeNodeAffinity, string) {
	var all []*corev1.VolumeNodeAffinity
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = pod.Name + "-" + v.Name
		default:
			continue
		}
		claim, ok := client.PersistentVolumeClaims.Get(snap, pod.Namespace, name)
		switch {
		case !ok && v.Ephemeral != nil:
			return nil, fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case !ok:
			return nil, fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case claim.DeletionTimestamp != nil:
			return nil, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		case claim.Status.Phase == corev1.ClaimLost:
			return nil, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		case claim.Spec.VolumeName == "":
			return nil, "pod has unbound immediate PersistentVolumeClaims"
		}
		volume, ok := client.PersistentVolumes.Get(snap, "", claim.Spec.VolumeName)
		if !ok {
			return nil, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
		}
		if a := volume.Spec.NodeAffinity; a != nil && a.Required != nil {
			all = append(all, a)
		}
	}
	return all, ""
}
