package core

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/api"
)

func podColumns() []api.Column {
	spec, status := corev1.PodSpec{}.SwaggerDoc(), corev1.PodStatus{}.SwaggerDoc()
	return []api.Column{
		nameColumn(),
		column("Ready", "string", "The aggregate readiness state of this pod for accepting traffic.", 0,
			func(p *corev1.Pod) any {
				s := summarize(p)
				return strconv.Itoa(s.ready) + "/" + strconv.Itoa(s.total)
			}),
		column("Status", "string", "The aggregate status of the containers in this pod.", 0,
			func(p *corev1.Pod) any { return summarize(p).reason }),
		{
			Name: "Restarts", Type: "string",
			Description: "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
			Cell:        func(o api.Object, now time.Time) any { return summarize(o.(*corev1.Pod)).restartCell(now) },
		},
		ageColumn(),
		column("IP", "string", status["podIP"], 1, func(p *corev1.Pod) any {
			if len(p.Status.PodIPs) > 0 {
				return or(p.Status.PodIPs[0].IP, none)
			}
			return none
		}),
		column("Node", "string", spec["nodeName"], 1, func(p *corev1.Pod) any { return or(p.Spec.NodeName, none) }),
		column("Nominated Node", "string", status["nominatedNodeName"], 1,
			func(p *corev1.Pod) any { return or(p.Status.NominatedNodeName, none) }),
		column("Readiness Gates", "string", spec["readinessGates"], 1, readinessGatesCell),
	}
}

func readinessGatesCell(p *corev1.Pod) any {
	if len(p.Spec.ReadinessGates) == 0 {
		return none
	}
	met := 0
	for _, g := range p.Spec.ReadinessGates {
		if c := PodCondition(p, g.ConditionType); c != nil && c.Status == corev1.ConditionTrue {
			met++
		}
	}
	return fmt.Sprintf("%d/%d", met, len(p.Spec.ReadinessGates))
}

// summary is what `kubectl get pods` says of a pod's containers.
type summary struct {
	ready, total int    // containers and sidecars
	reason       string // the column STATUS
	restarts     restarts
}

// restarts are how often containers ended, and when one last did.
type restarts struct {
	count int
	last  time.Time
}

func (r *restarts) add(s *corev1.ContainerStatus) {
	r.count += int(s.RestartCount)
	if t := s.LastTerminationState.Terminated; t != nil && r.last.Before(t.FinishedAt.Time) {
		r.last = t.FinishedAt.Time
	}
}

func (s summary) restartCell(now time.Time) string {
	if s.restarts.count != 0 && !s.restarts.last.IsZero() {
		return fmt.Sprintf("%d (%s ago)", s.restarts.count, Since(s.restarts.last, now))
	}
	return strconv.Itoa(s.restarts.count)
}

// summarize reads the status of a pod in the order in which things can go wrong:
// phase, scheduling gates, init containers, containers, deletion.
func summarize(p *corev1.Pod) summary {
	s := summary{total: len(p.Spec.Containers), reason: or(p.Status.Reason, string(p.Status.Phase))}
	if c := PodCondition(p, corev1.PodScheduled); c != nil && c.Reason == corev1.PodReasonSchedulingGated {
		s.reason = corev1.PodReasonSchedulingGated
	}
	initializing, sidecars := s.initContainers(p)
	if c := PodCondition(p, corev1.PodInitialized); !initializing || c != nil && c.Status == corev1.ConditionTrue {
		s.restarts = sidecars
		s.containers(p)
	}
	if p.DeletionTimestamp != nil {
		if p.Status.Reason == "NodeLost" {
			s.reason = string(corev1.PodUnknown)
		} else if !PodTerminal(p) {
			s.reason = "Terminating"
		}
	}
	return s
}

// initContainers tells whether an init container is still due, and the restarts of the sidecars
// up to it.
func (s *summary) initContainers(p *corev1.Pod) (initializing bool, sidecars restarts) {
	for i := range p.Spec.InitContainers {
		if Restartable(&p.Spec.InitContainers[i]) {
			s.total++
		}
	}
	for i := range p.Status.InitContainerStatuses {
		st := &p.Status.InitContainerStatuses[i]
		sidecar := isSidecar(p, st.Name)
		s.restarts.add(st)
		if sidecar {
			sidecars.add(st)
		}
		t := st.State.Terminated
		switch {
		case t != nil && t.ExitCode == 0:
			continue
		case sidecar && st.Started != nil && *st.Started:
			if st.Ready {
				s.ready++
			}
			continue
		case t != nil:
			s.reason = "Init:" + terminatedReason(t)
		case st.State.Waiting != nil && st.State.Waiting.Reason != "" && st.State.Waiting.Reason != "PodInitializing":
			s.reason = "Init:" + st.State.Waiting.Reason
		default:
			s.reason = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		return true, sidecars
	}
	return false, sidecars
}

func isSidecar(p *corev1.Pod, name string) bool {
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.Name == name {
			return Restartable(c)
		}
	}
	return false
}

// containers takes the reason of the first container that has one.
func (s *summary) containers(p *corev1.Pod) {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		st := &p.Status.ContainerStatuses[i]
		s.restarts.add(st)
		switch {
		case st.State.Waiting != nil && st.State.Waiting.Reason != "":
			s.reason = st.State.Waiting.Reason
		case st.State.Terminated != nil:
			s.reason = terminatedReason(st.State.Terminated)
		case st.Ready && st.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.reason == "Completed" && running {
		if PodReady(p) {
			s.reason = "Running"
		} else {
			s.reason = "NotReady"
		}
	}
}

func terminatedReason(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}
