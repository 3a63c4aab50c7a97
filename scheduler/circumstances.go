package scheduler

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// circumstances looks up what a pod names.
func (s *Scheduler) circumstances(snap store.Snapshot, p *pod) Circumstances {
	pod := p.object
	var about Circumstances
	var claims []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if name := claimOf(pod, v); name != "" {
			if about.Problem = s.claim(&about, snap, pod, name, v.Ephemeral != nil); about.Problem != "" {
				return about
			}
			claims = append(claims, pod.Namespace+"/"+name)
		}
	}
	if len(claims) > 0 {
		about.finishClaims(snap, claims)
	}
	if len(pod.Spec.ResourceClaims)+len(p.asks.extended) > 0 {
		about.needs, about.Problem, about.waits = s.needsOf(snap, p)
		if about.claimProblem = about.Problem != ""; about.claimProblem {
			return about
		}
	}
	if len(pod.Spec.TopologySpreadConstraints) == 0 {
		about.spreadDefaults(pod, s.profiles[pod.Spec.SchedulerName], s.siblingsOf(snap, pod))
	}
	return about
}

// spreadDefaults spreads a pod without constraints from its siblings as its profile says, nil for the default one.
func (about *Circumstances) spreadDefaults(pod *corev1.Pod, profile *Profile, siblings *Siblings) {
	if profile == nil || !profile.plain {
		about.Siblings = siblings
		return
	}
	about.spread = []spreadConstraint{}
	if siblings == nil {
		return
	}
	with := pod.DeepCopy()
	with.Spec.TopologySpreadConstraints = profile.defaults
	for _, c := range parseSpread(with) {
		c.peers, c.counts = siblings.peers, true
		about.spread = append(about.spread, c)
	}
}

// maxSiblings bounds how many parsed selectors are kept.
const maxSiblings = 1000

// siblingsOf are the pods that the services and the controller of a pod select.
func (s *Scheduler) siblingsOf(snap store.Snapshot, pod *corev1.Pod) *Siblings {
	key := pod.Namespace
	var services []*corev1.Service
	if len(pod.Labels) > 0 {
		for service := range client.Services.List(snap, pod.Namespace) {
			if len(service.Spec.Selector) > 0 && labels.Set(service.Spec.Selector).AsSelectorPreValidated().Matches(labels.Set(pod.Labels)) {
				services = append(services, service)
				key += "|" + string(service.UID) + "@" + service.ResourceVersion
			}
		}
	}
	controller, version := controllerOf(snap, pod)
	if len(services) == 0 && controller == nil {
		return nil
	}
	key += "|" + version
	if known, ok := s.siblings[key]; ok {
		return known
	}
	if len(s.siblings) >= maxSiblings {
		clear(s.siblings)
	}
	together := labels.Set{}
	for _, service := range services {
		maps.Copy(together, service.Spec.Selector)
	}
	selector := together.AsSelector()
	if controller != nil {
		if requirements, ok := controller().Requirements(); ok {
			selector = selector.Add(requirements...)
		}
	}
	siblings := NewSiblings(pod.Namespace, selector)
	s.siblings[key] = siblings
	return siblings
}

// controllerOf returns the selector of the pod's controller, if it is of a kind that replicates
// pods, and what identifies this version of it.
func controllerOf(snap store.Snapshot, pod *corev1.Pod) (selector func() labels.Selector, version string) {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return nil, ""
	}
	switch ref.APIVersion + "/" + ref.Kind {
	case "v1/ReplicationController":
		if rc, ok := client.ReplicationControllers.Get(snap, pod.Namespace, ref.Name); ok {
			return func() labels.Selector { return labels.Set(rc.Spec.Selector).AsSelector() }, string(rc.UID) + "@" + rc.ResourceVersion
		}
	case "apps/v1/ReplicaSet":
		if rs, ok := client.ReplicaSets.Get(snap, pod.Namespace, ref.Name); ok {
			return func() labels.Selector { return parseSelector(rs.Spec.Selector) }, selectorVersion(&rs.ObjectMeta)
		}
	case "apps/v1/StatefulSet":
		if set, ok := client.StatefulSets.Get(snap, pod.Namespace, ref.Name); ok {
			return func() labels.Selector { return parseSelector(set.Spec.Selector) }, selectorVersion(&set.ObjectMeta)
		}
	}
	return nil, ""
}

// selectorVersion identifies the selector of a controller, which cannot be changed.
func selectorVersion(m *metav1.ObjectMeta) string { return string(m.UID) }
