package node

import (
	"path"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/linux/cgroup"
)

// classes keeps the CPU weights of the cgroups that hold the pods of one quality-of-service class: best
// effort gets next to nothing beside the others, burstable as much as its pods request together.
type classes struct {
	mu     sync.Mutex // one setting at a time
	shares map[string]uint64
}

// weigh sets the weight of the class that a pod's cgroup is in. podGroup is the pod's whole path;
// others are the pods that run. Where there are no cgroups it does nothing.
func (c *classes) weigh(podGroup string, pod *corev1.Pod, others []*corev1.Pod) error {
	class := qosClass(pod)
	if podGroup == "" || class == corev1.PodQOSGuaranteed {
		return nil // guaranteed pods have their own requests as weight
	}
	group := path.Dir(podGroup)
	shares := uint64(minShares)
	if class == corev1.PodQOSBurstable {
		shares = burstableShares(pod, others)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shares[group] == shares {
		return nil
	}
	system, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if err := system.Group(group).Set(cgroup.Resources{CPUShares: shares}); err != nil {
		return err
	}
	if c.shares == nil {
		c.shares = map[string]uint64{}
	}
	c.shares[group] = shares
	return nil
}

// burstableShares is the weight of all burstable pods together, pod among them.
func burstableShares(pod *corev1.Pod, others []*corev1.Pod) uint64 {
	milli := int64(0)
	add := func(p *corev1.Pod) {
		q := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})[corev1.ResourceCPU]
		milli += q.MilliValue()
	}
	add(pod)
	for _, o := range others {
		if o.UID != pod.UID && qosClass(o) == corev1.PodQOSBurstable {
			add(o)
		}
	}
	return uint64(min(max(milli*sharesPerCPU/1000, minShares), maxShares))
}
