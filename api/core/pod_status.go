package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// PodTerminal tells whether all containers of a pod have ended for good.
func PodTerminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodReady tells whether a pod can serve: its condition Ready is True.
func PodReady(p *corev1.Pod) bool {
	c := PodCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// PodCondition returns the condition of a type, nil if the pod has none. It points
// into p.
func PodCondition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// Restartable tells whether an init container is a sidecar: it starts in its turn and
// runs on beside the containers (KEP-753).
func Restartable(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// PodRequests is what the scheduler must find room for: containers, init containers and sidecars
// as they run beside each other, pod-level resources, overhead and a resize under way.
func PodRequests(p *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{
		UseStatusResources: true,
		InPlacePodLevelResourcesVerticalScalingEnabled: true,
	})
}

// QOSClass is the quality of service that a pod's resources earn it: Guaranteed if every
// container has equal requests and limits of CPU and memory, BestEffort if none has any.
func QOSClass(p *corev1.Pod) corev1.PodQOSClass {
	q := qos{guaranteed: true}
	if resourcehelper.IsPodLevelResourcesSet(p) {
		q.pod(p.Spec.Resources)
	} else {
		for i := range p.Spec.Containers {
			q.container(&p.Spec.Containers[i].Resources)
		}
		for i := range p.Spec.InitContainers {
			q.container(&p.Spec.InitContainers[i].Resources)
		}
	}
	return q.class()
}

// qos sums what containers request of CPU and memory, and what they are limited to.
type qos struct {
	cpu, memory total
	guaranteed  bool // no container lacks a limit
}

type total struct {
	request, limit       resource.Quantity
	requested, isLimited bool
}

func (q *qos) pod(r *corev1.ResourceRequirements) {
	q.add(r.Requests, false)
	if len(r.Limits) > 0 && q.add(r.Limits, true) < 2 {
		q.guaranteed = false
	}
}

func (q *qos) container(r *corev1.ResourceRequirements) {
	q.add(r.Requests, false)
	if q.add(r.Limits, true) < 2 {
		q.guaranteed = false
	}
}

// add adds the positive amounts of a list and returns of how many resources there were any.
func (q *qos) add(l corev1.ResourceList, limit bool) int {
	return q.cpu.add(l, corev1.ResourceCPU, limit) + q.memory.add(l, corev1.ResourceMemory, limit)
}

func (t *total) add(l corev1.ResourceList, name corev1.ResourceName, limit bool) int {
	amount, ok := l[name]
	if !ok || amount.Sign() <= 0 {
		return 0
	}
	if limit {
		t.limit.Add(amount)
		t.isLimited = true
	} else {
		t.request.Add(amount)
		t.requested = true
	}
	return 1
}

func (q *qos) class() corev1.PodQOSClass {
	if !q.cpu.requested && !q.cpu.isLimited && !q.memory.requested && !q.memory.isLimited {
		return corev1.PodQOSBestEffort
	}
	if q.guaranteed && q.cpu.equal() && q.memory.equal() {
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// equal tells whether request and limit are both absent or both there and the same.
func (t *total) equal() bool {
	if t.requested != t.isLimited {
		return false
	}
	return !t.requested || t.request.Cmp(t.limit) == 0
}
