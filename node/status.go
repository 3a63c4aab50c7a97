package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
)

// IDScheme is how container IDs in statuses begin, as "containerd://" elsewhere.
const IDScheme = "coracle://"

// Reasons of conditions and states, in upstream's words.
const (
	reasonContainersNotReady       = "ContainersNotReady"
	reasonContainersNotInit        = "ContainersNotInitialized"
	reasonGatesNotReady            = "ReadinessGatesNotReady"
	reasonPodCompleted             = "PodCompleted"
	reasonPodFailed                = "PodFailed"
	reasonContainerCreating        = "ContainerCreating"
	reasonPodInitializing          = "PodInitializing"
	reasonCrashLoop                = "CrashLoopBackOff"
	reasonStatusUnknown            = "ContainerStatusUnknown"
	messageNotLocated              = "The container could not be located when the pod was terminated"
	exitCodeUnknown          int32 = 137
)

// stamp is a time as it is kept in objects: whole seconds.
func stamp(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

// makeStatus gives the whole status of a pod. It is pure. What others write (conditions of
// other types, nominatedNodeName, resource claims) is taken over from the pod.
func makeStatus(v *view, hostIPs []string, now time.Time) corev1.PodStatus {
	st := *v.pod.Status.DeepCopy()
	st.ObservedGeneration = v.pod.Generation
	if st.QOSClass == "" {
		st.QOSClass = qosClass(v.pod)
	}
	if v.rejected {
		return corev1.PodStatus{
			ObservedGeneration: v.pod.Generation, QOSClass: st.QOSClass, Phase: corev1.PodFailed,
			Reason: v.stop.reason, Message: v.stop.message, StartTime: st.StartTime,
			Conditions: st.Conditions, ResourceClaimStatuses: st.ResourceClaimStatuses, ExtendedResourceClaimStatus: st.ExtendedResourceClaimStatus,
		}
	}
	if st.StartTime == nil {
		t := stamp(v.startTime)
		st.StartTime = &t
	}
	if len(hostIPs) > 0 {
		st.HostIP, st.HostIPs = hostIPs[0], make([]corev1.HostIP, len(hostIPs))
		for i, ip := range hostIPs {
			st.HostIPs[i].IP = ip
		}
	}
	if len(v.podIPs) > 0 {
		st.PodIP, st.PodIPs = v.podIPs[0], make([]corev1.PodIP, len(v.podIPs))
		for i, ip := range v.podIPs {
			st.PodIPs[i].IP = ip
		}
	}
	spec := &v.pod.Spec
	st.Resources, st.AllocatedResources = nil, nil
	if v.resources != nil {
		st.Resources, st.AllocatedResources = v.resources.DeepCopy(), v.resources.Requests.DeepCopy()
	}
	st.InitContainerStatuses = nil
	for i := range spec.InitContainers {
		st.InitContainerStatuses = append(st.InitContainerStatuses, containerStatus(v, &spec.InitContainers[i], v.pod.Status.InitContainerStatuses, now))
	}
	st.ContainerStatuses = nil
	for i := range spec.Containers {
		c := containerStatus(v, &spec.Containers[i], v.pod.Status.ContainerStatuses, now)
		c.AllocatedResourcesStatus = v.health[c.Name]
		st.ContainerStatuses = append(st.ContainerStatuses, c)
	}
	st.EphemeralContainerStatuses = nil
	for i := range spec.EphemeralContainers {
		c := corev1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses, containerStatus(v, &c, v.pod.Status.EphemeralContainerStatuses, now))
	}
	st.Phase = phase(v, &st)
	if v.stop != nil && v.stop.reason != "" && st.Phase == corev1.PodFailed {
		st.Reason, st.Message = v.stop.reason, v.stop.message // not sooner than the phase
	}
	setConditions(v, &st, now)
	return st
}

// containerStatus gives the status of one container.
func containerStatus(v *view, s *corev1.Container, old []corev1.ContainerStatus, now time.Time) corev1.ContainerStatus {
	c := v.containers[s.Name]
	inst := c.current
	out := corev1.ContainerStatus{Name: s.Name, Image: s.Image}
	for i := range old {
		if old[i].Name == s.Name {
			out.RestartCount = old[i].RestartCount
		}
	}
	shown := inst
	if shown == nil {
		shown = c.previous
	}
	if shown != nil {
		out.RestartCount = int32(shown.attempt)
	}
	if inst != nil {
		out.ContainerID = IDScheme + inst.id
		if inst.id == "" {
			out.ContainerID = ""
		}
		if inst.image != "" {
			out.Image = inst.image
		}
		out.ImageID = inst.imageID
		out.VolumeMounts = mountStatuses(s)
		if inst.user != nil {
			u := &corev1.LinuxContainerUser{UID: int64(inst.user.UID), GID: int64(inst.user.GID)}
			for _, g := range inst.user.Groups {
				u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
			}
			out.User = &corev1.ContainerUser{Linux: u}
		}
	}
	up := inst.running() && c.current.complete
	started := up && (c.started() || c.role == record.RoleInit)
	out.Started = &started
	switch c.role {
	case record.RoleMain, record.RoleSidecar:
		out.Ready = started && c.ready == good
	case record.RoleInit:
		out.Ready = inst.exited() && inst.exitCode == 0
	}
	if up && c.resources != nil {
		out.Resources = c.resources.DeepCopy()
		out.AllocatedResources = out.Resources.Requests
	}
	out.State, out.LastTerminationState = containerState(v, s, c, now)
	return out
}

// containerState gives the state of a container and the one before.
func containerState(v *view, s *corev1.Container, c *containerView, now time.Time) (state, last corev1.ContainerState) {
	inst := c.current
	last.Terminated = terminated(c.previous)
	waiting := func(reason, message string) *corev1.ContainerStateWaiting {
		return &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	}
	switch {
	case inst.running() && inst.complete:
		state.Running = &corev1.ContainerStateRunning{StartedAt: stamp(inst.started)}
	case inst.exited():
		again := v.stop == nil && (restarts(v.pod, s, inst.exitCode) && (c.role != record.RoleInit || inst.exitCode != 0))
		reason, message := shownFailure(c, now)
		if again && reason == "" && c.crash.until(inst.finished).After(now) {
			reason, message = reasonCrashLoop, crashMessage(v.pod, s.Name, c.crash.delay)
		}
		if again && reason != "" && c.role != record.RoleEphemeral {
			state.Waiting = waiting(reason, message)
			last.Terminated = terminated(inst)
		} else {
			state.Terminated = terminated(inst)
		}
	case v.over() && (c.previous != nil || passedInit(v)):
		state.Terminated = &corev1.ContainerStateTerminated{
			Reason: reasonStatusUnknown, Message: messageNotLocated, ExitCode: exitCodeUnknown,
		}
	default:
		reason, message := shownFailure(c, now)
		if reason == "" {
			reason = reasonContainerCreating
			if len(v.pod.Spec.InitContainers) > 0 {
				reason = reasonPodInitializing
			}
		}
		state.Waiting = waiting(reason, message)
	}
	return state, last
}

func shownFailure(c *containerView, now time.Time) (reason, message string) {
	f := c.fail
	switch {
	case f == nil:
		return "", ""
	case f.then != "" && !now.Before(f.at.Add(failThen)):
		return f.then, f.thenMessage
	}
	return f.reason, f.message
}

func crashMessage(pod *corev1.Pod, name string, delay time.Duration) string {
	return fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, name, podFullName(pod))
}

// podFullName names a pod as upstream's messages do.
func podFullName(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

func terminated(i *instance) *corev1.ContainerStateTerminated {
	if !i.exited() {
		return nil
	}
	t := &corev1.ContainerStateTerminated{
		ExitCode: i.exitCode, Signal: i.signal, Reason: i.reason, Message: i.message,
		FinishedAt: stamp(i.finished),
	}
	if i.id != "" {
		t.ContainerID = IDScheme + i.id
	}
	if !i.started.IsZero() {
		t.StartedAt = stamp(i.started)
	}
	if t.Reason == "" {
		t.Reason = container.ReasonError
		if t.ExitCode == 0 {
			t.Reason = container.ReasonCompleted
		}
	}
	return t
}

func mountStatuses(s *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for i := range s.VolumeMounts {
		m := &s.VolumeMounts[i]
		ms := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if r := m.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			ms.RecursiveReadOnly = &mode
		}
		out = append(out, ms)
	}
	return out
}

// passedInit tells whether all init containers have done their part, at some time.
func passedInit(v *view) bool {
	if initialized(v) {
		return true
	}
	for i := range v.pod.Spec.InitContainers {
		c := v.containers[v.pod.Spec.InitContainers[i].Name]
		switch {
		case c.role == record.RoleInit && !(c.current.exited() && c.current.exitCode == 0):
			return false
		case c.role == record.RoleSidecar && !c.started():
			return false
		}
	}
	return true
}

// phase sums the containers up. A pod shows that it has ended only when nothing of it runs.
func phase(v *view, st *corev1.PodStatus) corev1.PodPhase {
	if v.stop != nil && ended(v.pod) {
		return v.pod.Status.Phase // it is final
	}
	p := spelled(v, st)
	if v.stop == nil {
		if p == corev1.PodSucceeded || p == corev1.PodFailed {
			// Not decided yet: decide runs before the next status.
			return unended(v)
		}
		return p
	}
	for _, c := range v.containers {
		if c.op != idle || c.current.running() {
			return unended(v)
		}
	}
	if v.stop.reason != "" {
		return corev1.PodFailed
	}
	if p != corev1.PodSucceeded && (p == corev1.PodFailed || v.over()) {
		return corev1.PodFailed
	}
	return p
}

// unended is the phase of a pod whose end is not reported yet.
func unended(v *view) corev1.PodPhase {
	if initialized(v) || v.pod.Status.Phase == corev1.PodRunning {
		return corev1.PodRunning
	}
	return corev1.PodPending
}

// spelled is the phase that the container statuses spell by upstream's rules.
func spelled(v *view, st *corev1.PodStatus) corev1.PodPhase {
	spec := &v.pod.Spec
	pending, initFailed := false, false
	for i := range st.InitContainerStatuses {
		s := &st.InitContainerStatuses[i]
		if isSidecar(&spec.InitContainers[i]) {
			pending = pending || (!*s.Started && !initialized(v))
			continue
		}
		t := s.State.Terminated
		if t == nil {
			t = s.LastTerminationState.Terminated
		}
		if initialized(v) {
			continue // they are not asked any more
		}
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
		case t != nil && t.ExitCode != 0 && s.State.Running == nil:
			initFailed = initFailed || !restarts(v.pod, &spec.InitContainers[i], t.ExitCode)
			pending = pending || !initFailed
		default:
			pending = true
		}
	}
	if initFailed {
		return corev1.PodFailed
	}
	running, waiting, stopped, succeeded, again := 0, 0, 0, 0, false
	for i := range st.ContainerStatuses {
		s := &st.ContainerStatuses[i]
		switch {
		case s.State.Running != nil:
			running++
		case s.State.Terminated != nil:
			stopped++
			if s.State.Terminated.ExitCode == 0 {
				succeeded++
			}
			again = again || restarts(v.pod, &spec.Containers[i], s.State.Terminated.ExitCode)
		case s.LastTerminationState.Terminated != nil:
			stopped++
			again = true
		default:
			waiting++
		}
	}
	switch {
	case pending || waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case again && v.stop == nil:
		return corev1.PodRunning
	case stopped > 0 && stopped == succeeded:
		return corev1.PodSucceeded
	case stopped > 0:
		return corev1.PodFailed
	}
	return corev1.PodPending
}

// setConditions sets the conditions that are the node agent's.
func setConditions(v *view, st *corev1.PodStatus, now time.Time) {
	pod := v.pod
	ended := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	sandbox := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	if v.sandbox.state == done && !v.lost && v.torn.state != done {
		sandbox.Status = corev1.ConditionTrue
	}
	init := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if names := incomplete(v, st); len(names) > 0 && !initialized(v) {
		init.Status, init.Reason = corev1.ConditionFalse, reasonContainersNotInit
		init.Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(names, " "))
	} else if st.Phase == corev1.PodSucceeded {
		init.Reason = reasonPodCompleted
	}
	containers := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}
	names := unready(pod, st)
	switch {
	case st.Phase == corev1.PodFailed:
		containers.Status, containers.Reason = corev1.ConditionFalse, reasonPodFailed
	case ended:
		containers.Status, containers.Reason = corev1.ConditionFalse, reasonPodCompleted
	case len(names) > 0:
		containers.Status, containers.Reason = corev1.ConditionFalse, reasonContainersNotReady
		containers.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(names, " "))
	}
	ready := containers
	ready.Type = corev1.PodReady
	if ready.Status == corev1.ConditionTrue {
		if m := closedGates(pod, st); m != "" {
			ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, reasonGatesNotReady, m
		}
	}
	for _, c := range []corev1.PodCondition{sandbox, init, ready, containers} {
		setCondition(st, c, pod.Generation, now)
	}
	st.Conditions = slices.DeleteFunc(st.Conditions, func(c corev1.PodCondition) bool {
		return (c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress) &&
			(v.resizeCondition == nil || v.resizeCondition.Type != c.Type)
	})
	if v.resizeCondition != nil {
		setCondition(st, *v.resizeCondition, pod.Generation, now)
	}
	if v.stop != nil && (v.stop.reason == reasonEvicted || v.stop.reason == reasonTerminated) {
		setCondition(st, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
			Reason: corev1.PodReasonTerminationByKubelet, Message: v.stop.message}, pod.Generation, now)
	}
	if findCondition(st, corev1.PodScheduled) == nil {
		setCondition(st, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, pod.Generation, now)
	}
}

// incomplete names the init containers that have not done their part.
func incomplete(v *view, st *corev1.PodStatus) []string {
	var names []string
	for i := range st.InitContainerStatuses {
		s := &st.InitContainerStatuses[i]
		if isSidecar(&v.pod.Spec.InitContainers[i]) {
			if !*s.Started {
				names = append(names, s.Name)
			}
		} else if !s.Ready {
			names = append(names, s.Name)
		}
	}
	return names
}

// unready names the containers that are to be ready and are not.
func unready(pod *corev1.Pod, st *corev1.PodStatus) []string {
	var names []string
	for i := range st.InitContainerStatuses {
		if isSidecar(&pod.Spec.InitContainers[i]) && !st.InitContainerStatuses[i].Ready {
			names = append(names, st.InitContainerStatuses[i].Name)
		}
	}
	for i := range st.ContainerStatuses {
		if !st.ContainerStatuses[i].Ready {
			names = append(names, st.ContainerStatuses[i].Name)
		}
	}
	return names
}

// closedGates says which readiness gates are not open, "" if all are (KEP-580).
func closedGates(pod *corev1.Pod, st *corev1.PodStatus) string {
	var out []string
	for _, g := range pod.Spec.ReadinessGates {
		c := findCondition(st, g.ConditionType)
		if c == nil {
			out = append(out, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		} else if c.Status != corev1.ConditionTrue {
			out = append(out, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status))
		}
	}
	return strings.Join(out, ", ")
}

func findCondition(st *corev1.PodStatus, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range st.Conditions {
		if st.Conditions[i].Type == t {
			return &st.Conditions[i]
		}
	}
	return nil
}

// setCondition writes a condition; its transition time moves only with its status.
func setCondition(st *corev1.PodStatus, c corev1.PodCondition, generation int64, now time.Time) {
	c.ObservedGeneration, c.LastTransitionTime = generation, stamp(now)
	if old := findCondition(st, c.Type); old != nil {
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	st.Conditions = append(st.Conditions, c)
}

// sameStatus tells whether two statuses say the same.
func sameStatus(a, b *corev1.PodStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// onlySeen tells whether a status says nothing new but that a generation was seen.
func onlySeen(from, to *corev1.PodStatus) bool {
	if from.ObservedGeneration == to.ObservedGeneration {
		return false
	}
	a, b := from.DeepCopy(), to.DeepCopy()
	for _, st := range []*corev1.PodStatus{a, b} {
		st.ObservedGeneration = 0
		for i := range st.Conditions {
			st.Conditions[i].ObservedGeneration = 0
		}
	}
	return sameStatus(a, b)
}

// pressing tells whether a change of status should be written at once: what others
// wait for. The rest may wait a moment, so that a quick start is one write.
func pressing(from, to *corev1.PodStatus) bool {
	if onlySeen(from, to) {
		return false
	}
	if from.Phase != to.Phase && to.Phase != corev1.PodPending {
		return true
	}
	if ready := findCondition(to, corev1.PodReady); ready != nil {
		old := findCondition(from, corev1.PodReady)
		if (old != nil && old.Status == corev1.ConditionTrue) != (ready.Status == corev1.ConditionTrue) {
			return true
		}
	}
	return len(from.ContainerStatuses) > 0 && from.Phase != corev1.PodPending
}
