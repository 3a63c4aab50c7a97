package simulated

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// step is the next thing to do for a pod.
type step int

const (
	nothing   step = iota
	wait           // look again at a time
	run            // report it as running, or its readiness anew
	complete       // report that its containers have ended well
	terminate      // report that its containers were stopped, before it is removed
	remove         // confirm its deletion
)

// plan decides what a pod on a simulated node needs. It is pure. The time is
// given for wait only.
func plan(pod *corev1.Pod, now time.Time) (step, time.Time) {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if pod.DeletionTimestamp != nil {
		switch {
		case pod.DeletionGracePeriodSeconds == nil || *pod.DeletionGracePeriodSeconds == 0:
			return nothing, time.Time{} // it waits for its finalizers
		case len(pod.Finalizers) > 0 && !ended:
			return terminate, time.Time{} // who holds a finalizer wants to see the end
		}
		return remove, time.Time{}
	}
	if ended {
		return nothing, time.Time{}
	}
	if pod.Status.Phase != corev1.PodRunning || !readyAsReported(pod) {
		return run, time.Time{}
	}
	if d, err := time.ParseDuration(pod.Annotations[CompletesAfter]); err == nil && pod.Status.StartTime != nil {
		if at := pod.Status.StartTime.Add(d); at.After(now) {
			return wait, at
		}
		return complete, time.Time{}
	}
	return nothing, time.Time{}
}

// readyAsReported tells whether the Ready condition says what the readiness gates say.
func readyAsReported(pod *corev1.Pod) bool {
	want := corev1.ConditionTrue
	if !gatesOpen(pod) {
		want = corev1.ConditionFalse
	}
	c := condition(pod, corev1.PodReady)
	return c != nil && c.Status == want
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

// report writes into pod the status that belongs to a step.
func report(pod *corev1.Pod, s step, at time.Time, address func() string) {
	now := metav1.NewTime(at.Truncate(time.Second))
	st := &pod.Status
	st.ObservedGeneration = pod.Generation
	if st.StartTime == nil {
		st.StartTime = &now
	}
	if st.PodIP == "" {
		if st.PodIP = hostIP; !pod.Spec.HostNetwork {
			st.PodIP = address()
		}
		st.PodIPs = []corev1.PodIP{{IP: st.PodIP}}
		st.HostIP, st.HostIPs = hostIP, []corev1.HostIP{{IP: hostIP}}
	}
	ready, reason := corev1.ConditionTrue, ""
	switch s {
	case run:
		st.Phase = corev1.PodRunning
	case complete, terminate:
		st.Phase = corev1.PodSucceeded
		ready, reason = corev1.ConditionFalse, "PodCompleted"
	}
	st.InitContainerStatuses = statuses(pod.Spec.InitContainers, st.InitContainerStatuses, func(c *corev1.Container) bool {
		return s == run && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}, pod, now)
	st.ContainerStatuses = statuses(pod.Spec.Containers, st.ContainerStatuses, func(*corev1.Container) bool { return s == run }, pod, now)

	set := func(t corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) {
		setCondition(pod, corev1.PodCondition{Type: t, Status: status, Reason: reason, Message: message}, now)
	}
	sandbox := corev1.ConditionTrue
	if s != run {
		sandbox = corev1.ConditionFalse
	}
	set(corev1.PodReadyToStartContainers, sandbox, "", "")
	initReason := ""
	if s != run {
		initReason = "PodCompleted"
	}
	set(corev1.PodInitialized, corev1.ConditionTrue, initReason, "")
	set(corev1.ContainersReady, ready, reason, "")
	if s == run && !gatesOpen(pod) {
		set(corev1.PodReady, corev1.ConditionFalse, "ReadinessGatesNotReady", "")
	} else {
		set(corev1.PodReady, ready, reason, "")
	}
}

const hostIP = "127.0.0.1"

// statuses gives one container status for each container: running or ended with 0.
func statuses(containers []corev1.Container, old []corev1.ContainerStatus, running func(*corev1.Container) bool, pod *corev1.Pod, now metav1.Time) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, 0, len(containers))
	for i := range containers {
		c := &containers[i]
		started := now
		for j := range old {
			if old[j].Name == c.Name && old[j].State.Running != nil {
				started = old[j].State.Running.StartedAt
			}
		}
		on := running(c)
		st := corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: "simulated://" + c.Image,
			ContainerID: "simulated://" + string(pod.UID) + "/" + c.Name,
			Ready:       on, Started: &on,
		}
		if on {
			st.State.Running = &corev1.ContainerStateRunning{StartedAt: started}
		} else {
			st.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: started, FinishedAt: now, ContainerID: st.ContainerID}
			st.Ready = i < len(pod.Spec.InitContainers) && &pod.Spec.InitContainers[i] == c
		}
		out = append(out, st)
	}
	return out
}
