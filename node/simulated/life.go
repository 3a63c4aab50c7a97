package simulated

import (
	"container/heap"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// life is what is remembered of a pod that waits for something or that stages may concern. What is lost with the process, such as
// how often a stage happened, begins anew.
type life struct {
	uid types.UID
	// state, index and restarts are the stay that entered, stage and due are about.
	state           State
	index, restarts int
	entered         time.Time
	stage           *PodStage
	due             time.Time
	// visit counts stays.
	visit   int
	fired   map[*PodStage]int
	unready bool // a stage took the readiness
	init    time.Duration
}

// look places a pod, remembers when it came there, and tells when something is to be done.
func (a *Agent) look(pod *corev1.Pod, now time.Time) (x *subject, at time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := keyOf(pod)
	l := a.lives[key]
	if l != nil && l.uid != pod.UID {
		l = nil
	}
	first := l == nil
	if first {
		l = &life{uid: pod.UID}
	}
	a.follow(l, pod, now, first)
	x = &subject{pod: pod, state: l.state, index: l.index, entered: l.entered, stage: l.stage, due: l.due,
		booted: a.nodes[pod.Spec.NodeName].booted, init: l.init}
	visit, fired := l.visit+1, l.count()
	x.then = func(s State) bool {
		st, _ := a.cfg.Stages.pod(pod, s, visit, fired)
		return st != nil
	}
	at, ok = x.next()
	if x.state != over && (a.cfg.Stages != nil && len(a.cfg.Stages.Pods) > 0 || ok && at.After(now)) {
		a.lives[key] = l
	} else {
		delete(a.lives, key)
	}
	return x, at, ok
}

// follow brings a life up to date with the pod, and draws what comes next if the pod came into a state.
func (a *Agent) follow(l *life, pod *corev1.Pod, now time.Time, first bool) {
	state, index := place(pod, l.unready)
	n := restarts(pod)
	if !first && l.state == state && l.index == index && l.restarts == n {
		return
	}
	if n != l.restarts {
		l.unready = false
	}
	l.state, l.index, l.restarts, l.entered = state, index, n, now
	if first {
		if t := since(pod, state); t.Before(now) && !t.IsZero() {
			l.entered = t
		}
	}
	l.visit++
	stage, after := a.cfg.Stages.pod(pod, state, l.visit, l.count())
	l.stage, l.due = stage, l.entered.Add(after)
	if stage != nil && stage.Do == Start {
		l.init = stage.Init.of(a.cfg.Stages.draw(pod.Namespace+"/"+pod.Name, l.visit, "init "+stage.Name))
	}
}

// since is when a pod came into its state as its status tells, which is in whole seconds.
func since(pod *corev1.Pod, state State) time.Time {
	switch state {
	case Ready:
		if c := condition(pod, corev1.ContainersReady); c != nil {
			return c.LastTransitionTime.Time
		}
	case Running:
		var last time.Time
		for i := range pod.Status.ContainerStatuses {
			if r := pod.Status.ContainerStatuses[i].State.Running; r != nil && r.StartedAt.After(last) {
				last = r.StartedAt.Time
			}
		}
		return last
	case Terminating:
		if pod.DeletionGracePeriodSeconds != nil {
			return pod.DeletionTimestamp.Add(-time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second)
		}
	case Pending, Waiting:
		if pod.Status.StartTime != nil {
			return pod.Status.StartTime.Time
		}
	}
	return time.Time{}
}

// count gives how often each stage has happened to a pod.
func (l *life) count() func(*PodStage) int {
	return func(s *PodStage) int { return l.fired[s] }
}

// happened notes that a stage happens to a pod. The function that it returns takes that back.
func (a *Agent) happened(key types.NamespacedName, s *PodStage) (undo func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lives[key]
	if l == nil {
		return func() {}
	}
	was := l.unready
	if l.fired == nil {
		l.fired = map[*PodStage]int{}
	}
	l.fired[s]++
	l.unready = s.Do == Unready
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		l.fired[s]--
		l.unready = was
	}
}

// alarms are the times at which something is to be looked at, one for each key.
type alarms struct {
	at   map[types.NamespacedName]time.Time
	heap alarmHeap
}

type alarm struct {
	at  time.Time
	key types.NamespacedName
}

// set replaces the time of a key.
func (a *alarms) set(key types.NamespacedName, at time.Time) {
	if old, ok := a.at[key]; ok && old.Equal(at) {
		return
	}
	a.at[key] = at
	heap.Push(&a.heap, alarm{at, key})
}

// ring takes out the keys whose time has come, and tells how long it is until the next, an hour at most.
func (a *alarms) ring(now time.Time) (ripe []types.NamespacedName, sleep time.Duration) {
	for len(a.heap) > 0 {
		next := a.heap[0]
		at, ok := a.at[next.key]
		valid := ok && at.Equal(next.at)
		if valid && next.at.After(now) {
			return ripe, min(next.at.Sub(now), time.Hour)
		}
		heap.Pop(&a.heap)
		if valid {
			delete(a.at, next.key)
			ripe = append(ripe, next.key)
		}
	}
	return ripe, time.Hour
}

type alarmHeap []alarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarmHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *alarmHeap) Push(x any) { *h = append(*h, x.(alarm)) }

// Pop implements heap.Interface.
func (h *alarmHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
