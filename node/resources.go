package node

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/linux/cgroup"
)

// Limits of the kernel's CPU controller, in upstream's terms.
const (
	cpuPeriod    = 100_000 // microseconds
	minQuota     = 1_000   // microseconds
	minShares    = 2
	maxShares    = 262_144
	sharesPerCPU = 1024
)

// qosClass sorts a pod by what it asks for
// (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/).
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	spec := &pod.Spec
	if spec.Resources != nil && (len(spec.Resources.Requests) > 0 || len(spec.Resources.Limits) > 0) {
		if guaranteed(spec.Resources) {
			return corev1.PodQOSGuaranteed
		}
		return corev1.PodQOSBurstable
	}
	any, all := false, true
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			r := &list[i].Resources
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				any = any || positive(r.Requests, name) || positive(r.Limits, name)
			}
			all = all && guaranteed(r)
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case all:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// guaranteed tells whether CPU and memory are limited to what is requested.
func guaranteed(r *corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit := r.Limits[name]
		if limit.Sign() <= 0 {
			return false
		}
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) != 0 {
			return false
		}
	}
	return true
}

func positive(l corev1.ResourceList, name corev1.ResourceName) bool {
	q := l[name]
	return q.Sign() > 0
}

// podsCgroup is the cgroup below which all pods are.
const podsCgroup = "kubepods"

// podCgroup is a pod's cgroup, relative to the runtime's root.
func podCgroup(pod *corev1.Pod) string {
	leaf := "pod" + string(pod.UID)
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return path.Join(podsCgroup, leaf)
	case corev1.PodQOSBestEffort:
		return path.Join(podsCgroup, "besteffort", leaf)
	}
	return path.Join(podsCgroup, "burstable", leaf)
}

// podResources are the limits of a pod's cgroup: shares by its requests, and limits
// where all containers have one.
func podResources(pod *corev1.Pod) cgroup.Resources {
	opts := resourcehelper.PodResourcesOptions{}
	requests := resourcehelper.PodRequests(pod, opts)
	limits := resourcehelper.PodLimits(pod, opts)
	var out cgroup.Resources
	switch qosClass(pod) {
	case corev1.PodQOSBestEffort:
		out.CPUShares = minShares
		return out
	default:
		out.CPUShares = sharesOf(requests[corev1.ResourceCPU])
	}
	if q, ok := limits[corev1.ResourceCPU]; ok && allLimit(pod, corev1.ResourceCPU) {
		out.CPUQuota, out.CPUPeriod = quotaOf(q), cpuPeriod
	}
	if q, ok := limits[corev1.ResourceMemory]; ok && allLimit(pod, corev1.ResourceMemory) {
		out.Memory = q.Value()
	}
	out.Hugepages = hugepages(limits)
	return out
}

// allLimit tells whether the pod as a whole is limited: at pod level, or in each container.
func allLimit(pod *corev1.Pod, name corev1.ResourceName) bool {
	if r := pod.Spec.Resources; r != nil && positive(r.Limits, name) {
		return true
	}
	for i := range pod.Spec.Containers {
		if !positive(pod.Spec.Containers[i].Resources.Limits, name) {
			return false
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) && !positive(c.Resources.Limits, name) {
			return false
		}
	}
	return true
}

// containerResources are the limits of a container's cgroup. A resource without a limit says so
// (-1), so that taking a limit away takes effect.
func containerResources(pod *corev1.Pod, c *corev1.Container) cgroup.Resources {
	requests, limits := c.Resources.Requests, c.Resources.Limits
	cpu, ok := requests[corev1.ResourceCPU]
	if !ok || cpu.IsZero() {
		cpu = limits[corev1.ResourceCPU]
	}
	out := cgroup.Resources{CPUShares: sharesOf(cpu), CPUQuota: -1, CPUPeriod: cpuPeriod, Memory: -1}
	if q := limitOf(pod, c, corev1.ResourceCPU); q.Sign() > 0 {
		out.CPUQuota = quotaOf(q)
	}
	if q := limitOf(pod, c, corev1.ResourceMemory); q.Sign() > 0 {
		out.Memory = q.Value()
	}
	out.Hugepages = hugepages(limits)
	return out
}

func limitOf(pod *corev1.Pod, c *corev1.Container, name corev1.ResourceName) resource.Quantity {
	if q := c.Resources.Limits[name]; q.Sign() > 0 {
		return q
	}
	if r := pod.Spec.Resources; r != nil {
		return r.Limits[name]
	}
	return resource.Quantity{}
}

func sharesOf(cpu resource.Quantity) uint64 {
	shares := cpu.MilliValue() * sharesPerCPU / 1000
	return uint64(min(max(shares, minShares), maxShares))
}

func quotaOf(cpu resource.Quantity) int64 {
	return max(cpu.MilliValue()*cpuPeriod/1000, minQuota)
}

func hugepages(limits corev1.ResourceList) map[string]uint64 {
	var out map[string]uint64
	for name, q := range limits {
		size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		if out == nil {
			out = map[string]uint64{}
		}
		unit := strings.TrimSuffix(size, "i") + "B" // "2Mi" is the kernel's "2MB"
		out[unit] = uint64(q.Value())
	}
	return out
}

// nodeCritical is the priority from which on pods are spared by the kernel as the node's own.
const nodeCritical = 2_000_001_000

// oomScoreAdj says how early the kernel kills a container for memory, by the pod's
// quality of service and the share of the machine's memory that it asked for.
func oomScoreAdj(pod *corev1.Pod, c *corev1.Container, memory int64) int {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= nodeCritical {
		return -997
	}
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	adj := burstableScore(c, memory)
	if isSidecar(c) { // a sidecar is not killed before what it serves
		for i := range pod.Spec.Containers {
			adj = min(adj, burstableScore(&pod.Spec.Containers[i], memory))
		}
	}
	return adj
}

func burstableScore(c *corev1.Container, memory int64) int {
	request := c.Resources.Requests.Memory().Value()
	if memory <= 0 {
		return 999
	}
	return int(min(max(1000-1000*request/memory, 3), 999))
}
