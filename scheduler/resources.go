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

var assumedRequests = corev1.ResourceList{
	corev1.ResourceCPU:    *resource.NewMilliQuantity(assumedCPU, resource.DecimalSI),
	corev1.ResourceMemory: *resource.NewQuantity(assumedMemory, resource.BinarySI),
}

func fromList(list corev1.ResourceList) resources {
	var r resources
	r.addList(list)
	return r
}

func (r *resources) addList(list corev1.ResourceList) {
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.cpu += q.MilliValue()
		case corev1.ResourceMemory:
			r.memory += q.Value()
		case corev1.ResourceEphemeralStorage:
			r.storage += q.Value()
		case corev1.ResourcePods:
			r.pods += q.Value()
		default:
			if r.extended == nil {
				r.extended = map[corev1.ResourceName]int64{}
			}
			r.extended[name] += q.Value()
		}
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

// less tells whether any of what o counts is less in r.
func (r *resources) less(o *resources) bool {
	if r.cpu < o.cpu || r.memory < o.memory || r.storage < o.storage {
		return true
	}
	for name, v := range o.extended {
		if r.extended[name] < v {
			return true
		}
	}
	return false
}

// requests sums what a pod asks for (containers, sidecars, the largest init container,
// pod-level resources and overhead, and a place on the node), and what scoring counts of CPU and memory, where
// containers that ask for none count with what is assumed (NodeResourcesFit's non-zero requests).
func requests(pod *corev1.Pod) (asks resources, cpu, memory int64) {
	if plain(pod) {
		return plainRequests(pod)
	}
	options := resourcehelper.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	asks = fromList(resourcehelper.PodRequests(pod, options))
	asks.pods = 1
	options.NonMissingContainerRequests = assumedRequests
	scored := fromList(resourcehelper.PodRequests(pod, options))
	return asks, scored.cpu, scored.memory
}

// plain tells whether the sum of the containers' requests is all that a pod asks for.
func plain(pod *corev1.Pod) bool {
	if len(pod.Spec.InitContainers) > 0 || pod.Spec.Resources != nil || pod.Status.Resources != nil || len(pod.Status.AllocatedResources) > 0 {
		return false
	}
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Resources != nil || s.AllocatedResources != nil {
			return false
		}
	}
	return true
}

func plainRequests(pod *corev1.Pod) (asks resources, cpu, memory int64) {
	for i := range pod.Spec.Containers {
		requests := pod.Spec.Containers[i].Resources.Requests
		asks.addList(requests)
		if _, ok := requests[corev1.ResourceCPU]; !ok {
			cpu += assumedCPU
		}
		if _, ok := requests[corev1.ResourceMemory]; !ok {
			memory += assumedMemory
		}
	}
	asks.addList(pod.Spec.Overhead)
	asks.pods = 1
	return asks, cpu + asks.cpu, memory + asks.memory
}
