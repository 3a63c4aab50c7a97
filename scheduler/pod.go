package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// pod is what the scheduler needs of a pod, worked out once for each version that matters.
type pod struct {
	object   *corev1.Pod
	profile  *Profile
	priority int32
	asks     resources
	cpu      int64 // with what is assumed for containers that ask for none
	memory   int64
	ports    []hostPort
	claims   []string // "namespace/name"
	disks    []disk
	require  affinityTerms
	spread   []spreadConstraint

	// Where it wants to be: labels for a plain node selector, wanted if there is required node affinity.
	labels [][2]string
	wanted *nodeaffinity.RequiredNodeAffinity
	// features are what a node has to declare (NodeDeclaredFeatures, KEP-5328).
	features []string
	// pinned says that only the nodes in names come into question (DaemonSet pods).
	pinned bool
	names  []string

	node  *node
	bound bool // the store says so, rather than only we
}

type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

// newPod works out what the scheduler needs. Its cost is that of summing requests
// and parsing selectors.
func newPod(object *corev1.Pod) *pod {
	p := &pod{object: object, profile: defaultProfile, priority: priority(object), require: parseAffinity(object), spread: parseSpread(object)}
	p.asks, p.cpu, p.memory = requests(object)
	p.addPorts(object.Spec.Containers, false)
	p.addPorts(object.Spec.InitContainers, true)
	for i := range object.Spec.Volumes {
		if name := claimOf(object, &object.Spec.Volumes[i]); name != "" {
			p.claims = append(p.claims, object.Namespace+"/"+name)
		}
	}
	if len(object.Spec.Volumes) > 0 {
		p.disks = disksOf(object)
	}
	p.features = featuresOf(&object.Spec)
	p.parseSelection()
	return p
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return 0
}

// claimOf is the name of the claim behind a volume, "" if there is none. That of an ephemeral volume is
// made from the names of pod and volume.
func claimOf(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// addPorts takes note of host ports; init containers keep theirs only if they are sidecars.
func (p *pod) addPorts(containers []corev1.Container, init bool) {
	for i := range containers {
		if policy := containers[i].RestartPolicy; init && (policy == nil || *policy != corev1.ContainerRestartPolicyAlways) {
			continue
		}
		for _, port := range containers[i].Ports {
			if port.HostPort > 0 {
				p.ports = append(p.ports, newHostPort(port))
			}
		}
	}
}

func newHostPort(p corev1.ContainerPort) hostPort {
	h := hostPort{ip: p.HostIP, protocol: p.Protocol, port: p.HostPort}
	if h.ip == "" {
		h.ip = "0.0.0.0"
	}
	if h.protocol == "" {
		h.protocol = corev1.ProtocolTCP
	}
	return h
}

func (p *pod) parseSelection() {
	spec := &p.object.Spec
	for k, v := range spec.NodeSelector {
		p.labels = append(p.labels, [2]string{k, v})
	}
	a := spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	wanted := nodeaffinity.GetRequiredNodeAffinity(p.object)
	p.wanted = &wanted
	p.names, p.pinned = pinnedTo(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms)
}

// pinnedTo returns the nodes that are asked for by name, if every alternative asks for some.
func pinnedTo(terms []corev1.NodeSelectorTerm) (names []string, pinned bool) {
	seen := map[string]bool{}
	for i := range terms {
		var of map[string]bool
		for _, r := range terms[i].MatchFields {
			if r.Key != "metadata.name" || r.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			both := map[string]bool{}
			for _, v := range r.Values {
				if of == nil || of[v] {
					both[v] = true
				}
			}
			of = both
		}
		if of == nil {
			return nil, false
		}
		for name := range of {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names, len(terms) > 0
}

// matches applies the node selector and required node affinity.
func (p *pod) matches(n *node) bool {
	if p.wanted != nil {
		ok, _ := p.wanted.Match(n.object) // terms that do not parse match nothing
		return ok
	}
	for _, l := range p.labels {
		if v, ok := n.labels[l[0]]; !ok || v != l[1] {
			return false
		}
	}
	return true
}

// sameForScheduling tells whether a newer version of a pod counts the same:
// nothing that is summed or selected by can have changed.
func sameForScheduling(a, b *corev1.Pod) bool {
	if a == b {
		return true
	}
	return a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		sameLabels(a.Labels, b.Labels) && a.Spec.NodeName == b.Spec.NodeName &&
		len(a.Spec.SchedulingGates) == len(b.Spec.SchedulingGates) && sameResources(&a.Status, &b.Status) &&
		(len(a.Spec.ResourceClaims) == 0 || equality.Semantic.DeepEqual(a.Status.ResourceClaimStatuses, b.Status.ResourceClaimStatuses))
}

// sameResources compares the resources that a status reports, which count while a
// pod is resized in place.
func sameResources(a, b *corev1.PodStatus) bool {
	if a.Resources != nil || b.Resources != nil || len(a.AllocatedResources)+len(b.AllocatedResources) > 0 {
		if !equality.Semantic.DeepEqual(a.Resources, b.Resources) || !sameList(a.AllocatedResources, b.AllocatedResources) {
			return false
		}
	}
	return sameContainers(a.ContainerStatuses, b.ContainerStatuses) && sameContainers(a.InitContainerStatuses, b.InitContainerStatuses)
}

func sameContainers(a, b []corev1.ContainerStatus) bool {
	reports := func(s []corev1.ContainerStatus) bool {
		for i := range s {
			if s[i].Resources != nil || s[i].AllocatedResources != nil {
				return true
			}
		}
		return false
	}
	if !reports(a) && !reports(b) {
		return true
	}
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || !sameList(a[i].AllocatedResources, b[i].AllocatedResources) || !sameList(asked(&a[i]), asked(&b[i])) {
			return false
		}
	}
	return true
}

func asked(s *corev1.ContainerStatus) corev1.ResourceList {
	if s.Resources == nil {
		return nil
	}
	return s.Resources.Requests
}

func sameList(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if other, ok := b[name]; !ok || q.Cmp(other) != 0 {
			return false
		}
	}
	return true
}
