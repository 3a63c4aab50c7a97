package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// resources is an amount of what nodes have. CPU is in thousandths of a core, the rest
// in bytes or pieces.
type resources struct {
	cpu, memory, storage int64
	pods                 int64
	// extended holds everything else (hugepages-*, example.com/gpu); nil if there is none.
	extended map[corev1.ResourceName]int64
}

// Requests that scoring assumes for containers that name none, so that they still
// spread (upstream's schedutil defaults).
const (
	assumedCPU    = 100
	assumedMemory = 200 << 20
)

func fromList(list corev1.ResourceList) resources {
	var r resources
	for name, q := range list {
		r.set(name, q)
	}
	return r
}

func (r *resources) set(name corev1.ResourceName, q resource.Quantity) {
	switch name {
	case corev1.ResourceCPU:
		r.cpu = q.MilliValue()
	case corev1.ResourceMemory:
		r.memory = q.Value()
	case corev1.ResourceEphemeralStorage:
		r.storage = q.Value()
	case corev1.ResourcePods:
		r.pods = q.Value()
	default:
		if r.extended == nil {
			r.extended = map[corev1.ResourceName]int64{}
		}
		r.extended[name] = q.Value()
	}
}

// add adds o times sign, which is 1 or -1.
func (r *resources) add(o *resources, sign int64) {
	r.cpu += sign * o.cpu
	r.memory += sign * o.memory
	r.storage += sign * o.storage
	r.pods += sign * o.pods
	for name, v := range o.extended {
		if r.extended == nil {
			r.extended = map[corev1.ResourceName]int64{}
		}
		if r.extended[name] += sign * v; r.extended[name] == 0 {
			delete(r.extended, name)
		}
	}
}

// requests sums what a pod asks for: containers, sidecars, the largest init container,
// pod-level resources and overhead, and a place on the node.
func requests(pod *corev1.Pod) resources {
	r := fromList(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true}))
	r.pods = 1
	return r
}

// assumed is what scoring counts for a pod (NodeResourcesFit's non-zero requests).
func assumed(pod *corev1.Pod, asked *resources) (cpu, memory int64) {
	cpu, memory = asked.cpu, asked.memory
	for i := range pod.Spec.Containers {
		requests := pod.Spec.Containers[i].Resources.Requests
		if _, ok := requests[corev1.ResourceCPU]; !ok {
			cpu += assumedCPU
		}
		if _, ok := requests[corev1.ResourceMemory]; !ok {
			memory += assumedMemory
		}
	}
	return cpu, memory
}
