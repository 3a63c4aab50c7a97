package simulated

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// subject is a pod as one pass sees it.
type subject struct {
	pod   *corev1.Pod // never changed
	state State
	// index is which init container runs (initializing).
	index int
	// entered is when the pod came into its state.
	entered time.Time
	// stage is what came up for the state, nil for nothing, and due when it happens.
	stage *PodStage
	due   time.Time
	// booted is when the pod's node started anew, zero if it never did.
	booted time.Time
	// init is how long each init container runs.
	init time.Duration
	// then tells whether a stage takes up a state that the pod is about to come into.
	then func(State) bool
}

// place is the state that a pod's status shows, with the init container that runs. unready tells that a stage took the readiness.
func place(pod *corev1.Pod, unready bool) (State, int) {
	switch {
	case pod.DeletionTimestamp != nil && (pod.DeletionGracePeriodSeconds == nil || *pod.DeletionGracePeriodSeconds == 0):
		return over, 0 // it waits for its finalizers
	case pod.DeletionTimestamp != nil:
		return Terminating, 0
	case ended(pod):
		return over, 0
	}
	started, ready := false, len(pod.Status.ContainerStatuses) > 0
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		started = started || c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
		ready = ready && c.Ready
	}
	switch {
	case started && ready:
		return Ready, 0
	case started && unready:
		return NotReady, 0
	case started:
		return Running, 0
	}
	for i := range pod.Status.InitContainerStatuses {
		c := &pod.Status.InitContainerStatuses[i]
		if c.State.Running != nil && i < len(pod.Spec.InitContainers) && !sidecar(&pod.Spec.InitContainers[i]) {
			return initializing, i
		}
	}
	for i := range pod.Status.ContainerStatuses {
		if w := pod.Status.ContainerStatuses[i].State.Waiting; w != nil && w.Reason != creating && w.Reason != initWait {
			return Waiting, 0
		}
	}
	return Pending, 0
}

// The reasons for which kubelet's containers wait by themselves.
const (
	creating  = "ContainerCreating"
	initWait  = "PodInitializing"
	crashLoop = "CrashLoopBackOff"
)

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// restarts counts those of all containers, which tells one stay in a state from the next.
func restarts(pod *corev1.Pod) (n int) {
	for i := range pod.Status.ContainerStatuses {
		n += int(pod.Status.ContainerStatuses[i].RestartCount)
	}
	return n
}

// next tells when something has to be done for the pod; false for never. A time that is past means now.
func (x *subject) next() (at time.Time, ok bool) {
	soonest := func(t time.Time) {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	switch x.state {
	case over:
		return at, false
	case Terminating:
		if x.stage == nil {
			return x.entered, true
		}
		soonest(x.due)
		soonest(x.pod.DeletionTimestamp.Time) // the grace period is over
		return at, ok
	}
	if x.stage != nil {
		soonest(x.due)
	}
	switch x.state {
	case Pending:
		if x.stage == nil || len(x.pod.Status.ContainerStatuses) == 0 {
			soonest(x.entered)
		}
		return at, ok
	case Waiting:
		return at, ok
	case initializing:
		soonest(x.entered.Add(x.init))
		return at, ok
	}
	if x.stale() {
		soonest(x.entered)
	}
	for i := range x.pod.Status.ContainerStatuses {
		c := &x.pod.Status.ContainerStatuses[i]
		switch {
		case c.State.Waiting != nil && c.LastTerminationState.Terminated != nil:
			soonest(c.LastTerminationState.Terminated.FinishedAt.Add(backOff(c.RestartCount)))
		case c.State.Running != nil && !c.Ready && x.state == Running && x.stage == nil:
			soonest(x.readyAt(c))
		}
	}
	if after, ok := completesAfter(x.pod); ok && x.pod.Status.StartTime != nil {
		soonest(x.pod.Status.StartTime.Add(after))
	}
	return at, ok
}

func completesAfter(pod *corev1.Pod) (time.Duration, bool) {
	text, ok := pod.Annotations[CompletesAfter]
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(text)
	return d, err == nil
}

// readyAt is when the probes of a running container have succeeded for the first time.
func (x *subject) readyAt(c *corev1.ContainerStatus) time.Time {
	at := c.State.Running.StartedAt.Time
	if x.entered.After(at) {
		at = x.entered
	}
	return at.Add(probeDelay(x.pod, c.Name))
}

// probeDelay is how long a container's startup and readiness probes take if they succeed at once.
func probeDelay(pod *corev1.Pod, name string) time.Duration {
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == name {
			return max(delayOf(c.StartupProbe), delayOf(c.ReadinessProbe))
		}
	}
	return 0
}

func delayOf(p *corev1.Probe) time.Duration {
	if p == nil {
		return 0
	}
	return time.Duration(p.InitialDelaySeconds+max(p.SuccessThreshold-1, 0)*p.PeriodSeconds) * time.Second
}

// backOff is how long a container that has been restarted so often waits before it is again, as kubelet's.
func backOff(restarted int32) time.Duration {
	if restarted == 0 {
		return 0
	}
	return min(10*time.Second<<min(restarted-1, 5), 5*time.Minute)
}

// stale tells whether the status does not say what the spec, the readiness gates or the node's start ask for.
func (x *subject) stale() bool {
	pod := x.pod
	if len(pod.Status.EphemeralContainerStatuses) != len(pod.Spec.EphemeralContainers) || pod.Status.ObservedGeneration != pod.Generation {
		return true
	}
	for i := range pod.Status.ContainerStatuses {
		if x.fromBefore(&pod.Status.ContainerStatuses[i]) {
			return true
		}
	}
	want := corev1.ConditionTrue
	if x.state != Ready || !gatesOpen(pod) {
		want = corev1.ConditionFalse
	}
	c := condition(pod, corev1.PodReady)
	return c == nil || c.Status != want
}

// fromBefore tells whether a container ran when its node went down.
func (x *subject) fromBefore(c *corev1.ContainerStatus) bool {
	return !x.booted.IsZero() && c.State.Running != nil && c.State.Running.StartedAt.Time.Before(x.booted.Truncate(time.Second))
}

func gatesOpen(pod *corev1.Pod) bool {
	for _, g := range pod.Spec.ReadinessGates {
		if c := condition(pod, g.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
			return false
		}
	}
	return true
}

func condition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// setCondition writes a condition; its transition time moves only with its status.
func setCondition(pod *corev1.Pod, c corev1.PodCondition, now metav1.Time) {
	c.ObservedGeneration, c.LastTransitionTime = pod.Generation, now
	if pod.Status.Conditions == nil {
		pod.Status.Conditions = make([]corev1.PodCondition, 0, 5)
	}
	old := condition(pod, c.Type)
	if old == nil {
		pod.Status.Conditions = append(pod.Status.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	*old = c
}

// same tells whether resources are equal, whatever their form.
func same(a, b corev1.ResourceList) bool { return equality.Semantic.DeepEqual(a, b) }
