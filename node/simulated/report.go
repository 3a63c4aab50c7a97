package simulated

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const hostIP = "127.0.0.1"

// advance gives the pod with everything in its status that is due at a time. Afterwards next is later than that, or
// never. It returns the pod and whether the stage happened.
func (x *subject) advance(at time.Time, address func() string) (out *corev1.Pod, staged bool) {
	pod := x.pod.DeepCopy()
	now := metav1.NewTime(at.Truncate(time.Second))
	st := &pod.Status
	st.ObservedGeneration = pod.Generation
	if st.StartTime == nil {
		st.StartTime = &now
	}
	staged = x.stage != nil && !x.due.After(at)
	switch {
	case x.state == Terminating: // who holds a finalizer wants to see the end
		code := int32(0)
		if x.stage != nil && !staged {
			code = 137 // it did not stop in time
		}
		stop(pod, func(string) bool { return true }, code, "", "", now, false)
	case staged:
		x.happen(pod, now, address)
	case x.state == Pending && x.stage == nil:
		x.start(pod, now, address, x.init)
	case x.state == initializing:
		x.initialize(pod, now, x.index+1)
	default:
		x.goOn(pod, at, now)
	}
	if len(st.ContainerStatuses) == 0 {
		x.prepare(pod)
	}
	conclude(pod, now)
	return pod, staged
}

// happen does what the stage says.
func (x *subject) happen(pod *corev1.Pod, now metav1.Time, address func() string) {
	s := x.stage
	switch s.Do {
	case Start:
		x.start(pod, now, address, x.init)
	case Wait:
		x.prepare(pod)
		for i := range pod.Status.ContainerStatuses {
			pod.Status.ContainerStatuses[i].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: s.Reason, Message: s.Message}}
		}
	case GetReady, Unready:
		for i := range pod.Status.ContainerStatuses {
			if c := &pod.Status.ContainerStatuses[i]; c.State.Running != nil {
				c.Ready = s.Do == GetReady
				yes := true
				c.Started = &yes
			}
		}
	case Exit:
		stop(pod, func(name string) bool { return len(s.Containers) == 0 || slices.Contains(s.Containers, name) }, s.Code, s.Reason, s.Message, now, true)
		x.readiness(pod, now.Time)
	case Fail:
		stop(pod, func(string) bool { return true }, 137, "", "", now, false)
		pod.Status.Phase, pod.Status.Reason, pod.Status.Message = corev1.PodFailed, s.Reason, s.Message
	}
}

// goOn does what comes by itself: restarts, readiness, and what the spec asks for.
func (x *subject) goOn(pod *corev1.Pod, at time.Time, now metav1.Time) {
	after, completes := completesAfter(pod)
	if completes && pod.Status.StartTime != nil && !pod.Status.StartTime.Add(after).After(at) {
		for i := range pod.Status.ContainerStatuses {
			if c := &pod.Status.ContainerStatuses[i]; c.State.Running != nil {
				terminate(c, 0, "", "", now)
			}
		}
		return
	}
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		switch last := c.LastTerminationState.Terminated; {
		case x.fromBefore(c):
			terminate(c, 255, "Unknown", "", now)
			restart(pod, c, now)
		case c.State.Waiting != nil && last != nil && !last.FinishedAt.Add(backOff(c.RestartCount)).After(at):
			restart(pod, c, now)
		}
	}
	for i := range pod.Status.InitContainerStatuses {
		if c := &pod.Status.InitContainerStatuses[i]; x.fromBefore(c) {
			terminate(c, 255, "Unknown", "", now)
			restart(pod, c, now)
			c.Ready = true
		}
	}
	x.resize(pod, now)
	for i := len(pod.Status.EphemeralContainerStatuses); i < len(pod.Spec.EphemeralContainers); i++ {
		e := &pod.Spec.EphemeralContainers[i]
		c := waitingStatus(e.Name, e.Image, "")
		run(pod, &c, now)
		pod.Status.EphemeralContainerStatuses = append(pod.Status.EphemeralContainerStatuses, c)
	}
	x.readiness(pod, at)
}

// readiness makes containers ready whose probes have succeeded: those restarted in this pass unless a stage takes up what
// follows, and the others where none took up the state that they are in.
func (x *subject) readiness(pod *corev1.Pod, at time.Time) {
	free := x.state == Running && x.stage == nil
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		if c.State.Running == nil || c.Ready {
			continue
		}
		if fresh := c.RestartCount != x.pod.Status.ContainerStatuses[i].RestartCount; fresh {
			c.Ready = probeDelay(pod, c.Name) == 0 && !x.then(Running)
		} else if c.Ready = free && !x.readyAt(c).After(at); c.Ready {
			yes := true
			c.Started = &yes
		}
	}
}

// resize reports the resources of the spec as those that containers have, and a new image as running.
func (x *subject) resize(pod *corev1.Pod, now metav1.Time) {
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		for k := range pod.Spec.Containers {
			if spec := &x.pod.Spec.Containers[k]; spec.Name == c.Name {
				if c.Image != spec.Image {
					c.Image, c.ImageID = spec.Image, scheme+spec.Image
					if c.State.Running != nil {
						terminate(c, 0, "", "", now)
						restart(pod, c, now)
					}
				}
				grant(c, spec)
			}
		}
	}
}

// grant reports the resources of a container's spec as its own. The lists belong to a stored object: nobody changes them.
func grant(c *corev1.ContainerStatus, spec *corev1.Container) {
	r := &spec.Resources
	if len(r.Requests) == 0 && len(r.Limits) == 0 || c.Resources != nil && same(c.Resources.Requests, r.Requests) && same(c.Resources.Limits, r.Limits) {
		return
	}
	c.Resources = &corev1.ResourceRequirements{Requests: r.Requests, Limits: r.Limits}
	c.AllocatedResources = r.Requests
}

// prepare gives each container a status that says that it has not started.
func (x *subject) prepare(pod *corev1.Pod) {
	reason := creating
	if len(pod.Spec.InitContainers) > 0 {
		reason = initWait
	}
	st := &pod.Status
	if len(st.InitContainerStatuses) != len(pod.Spec.InitContainers) {
		st.InitContainerStatuses = make([]corev1.ContainerStatus, 0, len(pod.Spec.InitContainers))
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			st.InitContainerStatuses = append(st.InitContainerStatuses, waitingStatus(c.Name, c.Image, initWait))
		}
	}
	st.ContainerStatuses = make([]corev1.ContainerStatus, 0, len(pod.Spec.Containers))
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		st.ContainerStatuses = append(st.ContainerStatuses, waitingStatus(c.Name, c.Image, reason))
	}
	st.HostIP, st.HostIPs = hostIP, []corev1.HostIP{{IP: hostIP}}
}

// no is the Started of containers that have not.
var no = false

func waitingStatus(name, image, reason string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, Image: image, Started: &no, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
}

// start begins with the first init container, or with all others if there is none that takes time.
func (x *subject) start(pod *corev1.Pod, now metav1.Time, address func() string, init time.Duration) {
	st := &pod.Status
	x.prepare(pod)
	if st.PodIP == "" {
		if st.PodIP = hostIP; !pod.Spec.HostNetwork {
			st.PodIP = address()
		}
		st.PodIPs = []corev1.PodIP{{IP: st.PodIP}}
	}
	x.initialize(pod, now, 0)
}

// initialize lets init containers from an index on run: until one takes time, or else to their end and on to the others.
func (x *subject) initialize(pod *corev1.Pod, now metav1.Time, from int) {
	st := &pod.Status
	for i := range min(from, len(st.InitContainerStatuses)) {
		if c := &st.InitContainerStatuses[i]; c.State.Running != nil && !sidecar(&pod.Spec.InitContainers[i]) {
			terminate(c, 0, "", "", now)
			c.Ready = true
		}
	}
	for i := from; i < len(pod.Spec.InitContainers); i++ {
		c := &st.InitContainerStatuses[i]
		run(pod, c, now)
		switch {
		case sidecar(&pod.Spec.InitContainers[i]):
			c.Ready = true
		case x.init > 0:
			return
		default:
			terminate(c, 0, "", "", now)
			c.Ready = true
		}
	}
	taken := x.then(Running)
	for i := range pod.Spec.Containers {
		c := &st.ContainerStatuses[i]
		run(pod, c, now)
		grant(c, &x.pod.Spec.Containers[i])
		c.Ready = !taken && probeDelay(pod, c.Name) == 0
		if !c.Ready && pod.Spec.Containers[i].StartupProbe != nil {
			c.Started = &no
		}
	}
}

const scheme = "simulated://"

// run starts a container.
func run(pod *corev1.Pod, c *corev1.ContainerStatus, now metav1.Time) {
	yes := true
	c.Started, c.Ready = &yes, false
	c.ImageID = scheme + c.Image
	c.ContainerID = scheme + string(pod.UID) + "/" + c.Name
	if c.RestartCount > 0 {
		c.ContainerID += fmt.Sprintf("/%d", c.RestartCount)
	}
	c.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
}

// restart starts a container that has ended.
func restart(pod *corev1.Pod, c *corev1.ContainerStatus, now metav1.Time) {
	if c.State.Terminated != nil {
		c.LastTerminationState = corev1.ContainerState{Terminated: c.State.Terminated}
	}
	c.RestartCount++
	run(pod, c, now)
}

// terminate ends a running container.
func terminate(c *corev1.ContainerStatus, code int32, reason, message string, now metav1.Time) {
	t := &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message, FinishedAt: now, ContainerID: c.ContainerID}
	if reason == "" {
		if t.Reason = "Completed"; code != 0 {
			t.Reason = "Error"
		}
	}
	if t.StartedAt = now; c.State.Running != nil {
		t.StartedAt = c.State.Running.StartedAt
	}
	c.State, c.Ready, c.Started = corev1.ContainerState{Terminated: t}, false, &no
}

// stop ends the containers that are chosen, and restarts those whose policy says so if that is allowed: the first time at once,
// then after a back-off.
func stop(pod *corev1.Pod, chosen func(string) bool, code int32, reason, message string, now metav1.Time, restarts bool) {
	if len(pod.Status.ContainerStatuses) == 0 {
		return
	}
	for i := range pod.Status.ContainerStatuses {
		c := &pod.Status.ContainerStatuses[i]
		if !chosen(c.Name) || c.State.Terminated != nil {
			continue
		}
		if c.State.Running == nil {
			if !restarts { // it waits for a start that will not come
				last := c.LastTerminationState.Terminated
				if terminate(c, code, reason, message, now); last != nil {
					c.State = corev1.ContainerState{Terminated: last}
				}
			}
			continue
		}
		long := now.Sub(c.State.Running.StartedAt.Time) >= 10*time.Minute // the back-off begins anew
		terminate(c, code, reason, message, now)
		switch {
		case !restarts || !again(pod, c.Name, code):
		case c.RestartCount == 0 || long:
			restart(pod, c, now)
		default:
			c.LastTerminationState = corev1.ContainerState{Terminated: c.State.Terminated}
			c.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: crashLoop, Message: fmt.Sprintf(
				"back-off %s restarting failed container=%s pod=%s_%s(%s)", backOff(c.RestartCount), c.Name, pod.Name, pod.Namespace, pod.UID)}}
		}
	}
}

// again tells whether a container that ended with a code is restarted.
func again(pod *corev1.Pod, name string, code int32) bool {
	policy := pod.Spec.RestartPolicy
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == name && c.RestartPolicy != nil {
			policy = corev1.RestartPolicy(*c.RestartPolicy)
		}
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// conclude derives the phase and the conditions from the states of the containers.
func conclude(pod *corev1.Pod, now metav1.Time) {
	st := &pod.Status
	terminated, failed, started := len(st.ContainerStatuses) > 0, false, false
	var unready []string
	for i := range st.ContainerStatuses {
		c := &st.ContainerStatuses[i]
		terminated = terminated && c.State.Terminated != nil
		failed = failed || c.State.Terminated != nil && c.State.Terminated.ExitCode != 0
		started = started || c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
		if !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	uninitialized := []string{}
	for i := range st.InitContainerStatuses {
		if c := &st.InitContainerStatuses[i]; !c.Ready {
			uninitialized = append(uninitialized, c.Name)
		}
	}
	switch {
	case ended(pod) || terminated:
		if !ended(pod) {
			if st.Phase = corev1.PodSucceeded; failed {
				st.Phase = corev1.PodFailed
			}
		}
		for i := range st.InitContainerStatuses {
			if c := &st.InitContainerStatuses[i]; c.State.Running != nil {
				terminate(c, 0, "", "", now)
			}
		}
	case started:
		st.Phase = corev1.PodRunning
	default:
		st.Phase = corev1.PodPending
	}
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		status := corev1.ConditionFalse
		if ok {
			status = corev1.ConditionTrue
		}
		setCondition(pod, corev1.PodCondition{Type: t, Status: status, Reason: reason, Message: message}, now)
	}
	set(corev1.PodReadyToStartContainers, !ended(pod) && st.PodIP != "", "", "")
	done := "" // the reason that stands where the pod succeeded or failed
	switch st.Phase {
	case corev1.PodSucceeded:
		done = "PodCompleted"
	case corev1.PodFailed:
		done = "PodFailed"
	}
	switch {
	case st.Phase == corev1.PodSucceeded:
		set(corev1.PodInitialized, true, done, "")
	case len(uninitialized) > 0:
		set(corev1.PodInitialized, false, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(uninitialized, " ")))
	default:
		set(corev1.PodInitialized, true, "", "")
	}
	reason, message := "ContainersNotReady", fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	switch {
	case done != "":
		reason, message = done, ""
	case len(unready) == 0:
		reason, message = "", ""
	}
	set(corev1.ContainersReady, reason == "", reason, message)
	if reason == "" && !gatesOpen(pod) {
		reason, message = "ReadinessGatesNotReady", gatesMessage(pod)
	}
	set(corev1.PodReady, reason == "", reason, message)
}

// gatesMessage says which readiness gates are closed.
func gatesMessage(pod *corev1.Pod) string {
	var parts []string
	for _, g := range pod.Spec.ReadinessGates {
		switch c := condition(pod, g.ConditionType); {
		case c == nil:
			parts = append(parts, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		case c.Status != corev1.ConditionTrue:
			parts = append(parts, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status))
		}
	}
	return strings.Join(parts, ", ")
}
