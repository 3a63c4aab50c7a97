package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"

	"coracle.dev/coracle/store"
)

// observe takes one event of the history into account.
func (s *Scheduler) observe(ev *store.Event) {
	now := s.Now()
	switch ev.Entry.Object.(type) {
	case *corev1.Node, *corev1.PersistentVolume, *corev1.PersistentVolumeClaim:
		s.moved = true
	}
	switch obj := ev.Entry.Object.(type) {
	case *corev1.Pod:
		var prev *corev1.Pod
		if ev.Prev != nil {
			prev = ev.Prev.Object.(*corev1.Pod)
		}
		s.observePod(obj, prev, ev.Deleted)
	case *corev1.Node:
		s.observeNode(ev, obj)
	case *corev1.Namespace:
		switch {
		case ev.Deleted:
			s.cluster.SetNamespace(obj.Name, nil)
		case ev.Prev == nil || !sameLabels(obj.Labels, ev.Prev.Object.(*corev1.Namespace).Labels):
			s.cluster.SetNamespace(obj.Name, obj)
			s.queue.wake(podPeers, now, nil)
		}
	case *corev1.PersistentVolumeClaim:
		claim := obj.Namespace + "/" + obj.Name
		s.queue.wake(volumes, now, func(it *item, _ change) bool {
			for _, used := range it.pod.claims {
				if used == claim {
					return true
				}
			}
			return false
		})
	case *corev1.PersistentVolume, *storagev1.StorageClass, *storagev1.CSINode, *storagev1.CSIDriver, *storagev1.CSIStorageCapacity:
		if !ev.Deleted {
			s.queue.wake(volumes, now, func(it *item, _ change) bool { return len(it.pod.claims) > 0 })
		}
	case *storagev1.VolumeAttachment:
		if !ev.Deleted {
			return
		}
		s.queue.wake(volumes, now, func(it *item, _ change) bool { return len(it.pod.claims) > 0 })
	case *resourcev1.ResourceClaim, *resourcev1.ResourceSlice, *resourcev1.DeviceClass, *resourcev1.DeviceTaintRule:
		s.observeDevices(ev)
	}
}

func (s *Scheduler) observeNode(ev *store.Event, obj *corev1.Node) {
	now := s.Now()
	if ev.Deleted {
		for _, pod := range s.cluster.RemoveNode(obj.Name) {
			if it := s.queue.items[pod.UID]; it != nil {
				s.queue.wakeOne(it, anyChange, now)
			}
		}
		s.queue.wake(nodeDomains, now, nil)
		return
	}
	var old *corev1.Node
	if ev.Prev != nil {
		old = ev.Prev.Object.(*corev1.Node)
	}
	what := nodeChanges(old, obj)
	s.cluster.SetNode(obj)
	s.wakeForNode(s.cluster.nodes[obj.Name], what, now)
}

func (s *Scheduler) observePod(p, prev *corev1.Pod, deleted bool) {
	now := s.Now()
	was := s.cluster.pods[p.UID]
	switch {
	case deleted || terminal(p):
		if was == nil {
			was = s.cluster.nominated[p.UID]
		}
		s.queue.remove(p.UID)
		delete(s.binding, p.UID)
		s.cluster.Forget(p.UID)
		if was != nil {
			s.wakeForPods(was, nil, now)
		}
	case p.Spec.NodeName != "":
		s.queue.remove(p.UID)
		delete(s.binding, p.UID)
		s.cluster.Assign(p, p.Spec.NodeName, true)
		if fresh := s.cluster.pods[p.UID]; fresh != was || prev == nil || prev.Spec.NodeName == "" {
			s.wakeForPods(was, fresh, now)
		}
	case s.binding[p.UID] != nil:
		// Older than our own decision; the outcome of the binding is to come.
	case s.profiles[p.Spec.SchedulerName] == nil || p.DeletionTimestamp != nil || len(p.Spec.SchedulingGates) > 0:
		s.queue.remove(p.UID)
		s.cluster.Nominate(p, "")
	default:
		s.observeWaiting(p, prev)
	}
}

// observeWaiting takes note of a pod that needs a node. Its status may lag behind a nomination that
// is being written: only a change there says something.
func (s *Scheduler) observeWaiting(p, prev *corev1.Pod) {
	name, before := p.Status.NominatedNodeName, ""
	if prev != nil {
		before = prev.Status.NominatedNodeName
	}
	s.queue.put(p, s.Now())
	switch {
	case name != "" && name != before:
		s.cluster.Nominate(p, name)
	case name == "" && before != "":
		if n := s.cluster.nomination(p); n != nil && n.name == before { // else it was our own doing
			s.cluster.Nominate(p, "")
			s.queue.wakeOne(s.queue.items[p.UID], anyChange, s.Now())
		}
	}
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}
