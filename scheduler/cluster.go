package scheduler

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Cluster is what the scheduler knows of nodes and of the pods on them, as running
// totals. It belongs to one goroutine.
type Cluster struct {
	nodes map[string]*node
	// order is the nodes that exist, by name. A pass starts behind the place where the one before
	// ended, so that all nodes are considered equally often.
	order []*node
	start int
	// turn counts the pods that were given a node; among equal nodes the one that was chosen
	// longest ago wins.
	turn uint64
	// slots gives each node a small number, by which tallies and topologies file it. Free ones are nil.
	slots []*node
	free  []int

	pods map[types.UID]*pod
	// guards are the required anti-affinity terms of placed pods, which can keep others off nodes.
	guards termGroups
	// likes are the terms of placed pods that score others.
	likes termGroups
	// claims counts, by namespace and name, the placed pods that use a claim.
	claims map[string]int
	// tallies count, by node, the pods that a selector matches.
	tallies tallies
	// topologies number the values of the node labels that rules name.
	topologies map[string]*topology
	// namespaces by name, for namespace selectors.
	namespaces map[string]labels.Set
	// nominated are pods that wait for room on a node which was made for them.
	nominated map[types.UID]*pod
	// images by normalised name: size and on how many nodes, for ImageLocality.
	images map[string]*imageState
	// scarce are the reasons for resources other than cpu, memory and storage.
	scarce map[corev1.ResourceName]*scarcity
	// extenders have their say after the rules.
	extenders []*Extender
	// hasClass tells whether a device class stands for an extended resource; nil for never.
	hasClass func(corev1.ResourceName) bool
	// drivers are the reasons that a driver is not on a node.
	drivers map[string]*reason
	// budgets gives what preemption should keep; it is asked only when a pass preempts.
	budgets func() Budgets

	scratch scratch
}

// scratch is room that every pass uses anew.
type scratch struct {
	feasible    []*node
	scores, raw []int64
	reasons     [8]*reason
}

type imageState struct {
	size  int64
	nodes int
}

// node is one node's totals. A node that pods name but that does not exist (yet) has
// a nil object and is in no order.
type node struct {
	name string
	slot int

	// What passes look at first stands together.
	closed      bool // it has a taint with NoSchedule or NoExecute, or is cordoned
	discouraged bool // it has a taint with PreferNoSchedule
	named       bool // it has the label kubernetes.io/hostname
	allocatable resources
	used        resources
	// scoredCPU and scoredMemory count assumed requests.
	scoredCPU, scoredMemory int64
	chosen                  uint64
	ports                   map[hostPort]int
	nominated               map[types.UID]*pod

	object *corev1.Node
	labels labels.Set
	pods   map[types.UID]*pod
	images map[string]int64
}

// NewCluster returns an empty Cluster.
func NewCluster() *Cluster {
	return &Cluster{
		nodes: map[string]*node{}, pods: map[types.UID]*pod{}, guards: termGroups{}, likes: termGroups{},
		claims: map[string]int{}, topologies: map[string]*topology{}, namespaces: map[string]labels.Set{},
		nominated: map[types.UID]*pod{}, images: map[string]*imageState{}, scarce: map[corev1.ResourceName]*scarcity{},
	}
}

func (c *Cluster) node(name string) *node {
	if n := c.nodes[name]; n != nil {
		return n
	}
	n := &node{name: name, pods: map[types.UID]*pod{}, ports: map[hostPort]int{}}
	if last := len(c.free) - 1; last >= 0 {
		n.slot, c.free = c.free[last], c.free[:last]
		c.slots[n.slot] = n
	} else {
		n.slot = len(c.slots)
		c.slots = append(c.slots, n)
		c.tallies.addSlot()
		for _, t := range c.topologies {
			t.of = append(t.of, missing)
		}
	}
	c.nodes[name] = n
	return n
}

// SetNode adds or replaces a node. O(log nodes) and what changed of its images and labels.
func (c *Cluster) SetNode(object *corev1.Node) {
	n := c.node(object.Name)
	relabelled := n.object == nil || !sameLabels(n.labels, object.Labels)
	if n.object == nil {
		i, _ := slices.BinarySearchFunc(c.order, n.name, func(n *node, name string) int { return strings.Compare(n.name, name) })
		c.order = slices.Insert(c.order, i, n)
	}
	n.object, n.labels = object, object.Labels
	n.allocatable = fromList(object.Status.Allocatable)
	_, n.named = n.labels[corev1.LabelHostname]
	n.closed, n.discouraged = object.Spec.Unschedulable, false
	for i := range object.Spec.Taints {
		switch object.Spec.Taints[i].Effect {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute:
			n.closed = true
		case corev1.TaintEffectPreferNoSchedule:
			n.discouraged = true
		}
	}
	if relabelled {
		c.fileTopologies(n)
	}
	c.setImages(n, object.Status.Images)
}

// RemoveNode takes a node out. Its pods stay known until they go. Who was nominated to it is
// so no longer, and is returned.
func (c *Cluster) RemoveNode(name string) []*corev1.Pod {
	n := c.nodes[name]
	if n == nil || n.object == nil {
		return nil
	}
	var homeless []*corev1.Pod
	for _, p := range n.nominated {
		homeless = append(homeless, p.object)
	}
	c.setImages(n, nil)
	n.object, n.labels, n.allocatable = nil, nil, resources{}
	n.closed, n.discouraged, n.named = false, false, false
	c.fileTopologies(n)
	c.order = slices.DeleteFunc(c.order, func(o *node) bool { return o == n })
	for _, p := range homeless {
		c.Nominate(p, "")
	}
	c.dropIfEmpty(n)
	return homeless
}

func (c *Cluster) dropIfEmpty(n *node) {
	if n.object == nil && len(n.pods) == 0 && len(n.nominated) == 0 && c.nodes[n.name] == n {
		delete(c.nodes, n.name)
		c.slots[n.slot] = nil
		c.free = append(c.free, n.slot)
	}
}

func (c *Cluster) setImages(n *node, images []corev1.ContainerImage) {
	if len(images)+len(n.images) == 0 {
		return
	}
	fresh := make(map[string]int64, len(images))
	for _, image := range images {
		for _, name := range image.Names {
			fresh[name] = image.SizeBytes
		}
	}
	for name := range n.images {
		if _, still := fresh[name]; !still {
			if s := c.images[name]; s.nodes > 1 {
				s.nodes--
			} else {
				delete(c.images, name)
			}
		}
	}
	for name, size := range fresh {
		if _, had := n.images[name]; had {
			c.images[name].size = size
		} else if s := c.images[name]; s != nil {
			s.nodes, s.size = s.nodes+1, size
		} else {
			c.images[name] = &imageState{size: size, nodes: 1}
		}
	}
	n.images = fresh
}

// SetNamespace records the labels of a namespace; nil removes it.
func (c *Cluster) SetNamespace(name string, ns *corev1.Namespace) {
	if ns == nil {
		delete(c.namespaces, name)
	} else {
		c.namespaces[name] = ns.Labels
	}
	c.tallies.namespacesChanged()
}

// Assign puts a pod on the node that its spec names, or moves or refreshes it. bound says
// that the store knows, rather than that a binding is under way.
func (c *Cluster) Assign(object *corev1.Pod, nodeName string, bound bool) {
	old := c.pods[object.UID]
	if old != nil && old.node.name == nodeName && sameForScheduling(old.object, object) {
		old.object, old.bound = object, old.bound || bound
		return
	}
	p := newPod(object)
	p.bound = bound
	c.assign(p, nodeName)
}

func (c *Cluster) assign(p *pod, nodeName string) {
	if old := c.pods[p.object.UID]; old != nil {
		c.remove(old)
	}
	c.place(p, c.node(nodeName))
}

// Forget takes a pod out, wherever it is: it was deleted, has finished, or its binding failed.
func (c *Cluster) Forget(uid types.UID) {
	c.unnominate(uid)
	if p := c.pods[uid]; p != nil {
		c.remove(p)
	}
}

// Nominate reserves room on a node for a pod, against pods of lower priority. An empty
// node takes the reservation back.
func (c *Cluster) Nominate(object *corev1.Pod, nodeName string) {
	if old := c.nominated[object.UID]; old != nil && old.object == object && old.node.name == nodeName {
		return
	}
	c.unnominate(object.UID)
	if n := c.nodes[nodeName]; nodeName == "" || n == nil || n.object == nil {
		return // a node that does not exist keeps no room
	}
	p := newPod(object)
	p.node = c.node(nodeName)
	c.nominated[object.UID] = p
	if p.node.nominated == nil {
		p.node.nominated = map[types.UID]*pod{}
	}
	p.node.nominated[object.UID] = p
}

func (c *Cluster) unnominate(uid types.UID) {
	if p := c.nominated[uid]; p != nil {
		delete(c.nominated, uid)
		delete(p.node.nominated, uid)
		c.dropIfEmpty(p.node)
	}
}

// nomination is the node that a pod is nominated to, nil for none.
func (c *Cluster) nomination(object *corev1.Pod) *node {
	if p := c.nominated[object.UID]; p != nil {
		return p.node
	}
	return nil
}

func (c *Cluster) place(p *pod, n *node) {
	uid := p.object.UID
	c.unnominate(uid)
	p.node = n
	c.pods[uid] = p
	n.add(p, 1)
	c.count(p, 1)
}

func (c *Cluster) remove(p *pod) {
	delete(c.pods, p.object.UID)
	c.count(p, -1)
	p.node.add(p, -1)
	c.dropIfEmpty(p.node)
}

// count counts a pod in (sign 1) or out (-1) of what is known about the whole cluster.
func (c *Cluster) count(p *pod, sign int) {
	for i := range p.require.anti {
		c.guards.count(&p.require.anti[i], p.node, sign)
	}
	for _, terms := range [][]affinityTerm{p.require.with, p.require.prefersWith, p.require.prefersNo} {
		for i := range terms {
			c.likes.count(&terms[i], p.node, sign)
		}
	}
	for _, claim := range p.claims {
		if c.claims[claim] += sign; c.claims[claim] == 0 {
			delete(c.claims, claim)
		}
	}
	c.tallies.count(p, sign)
}

// add counts a pod in (sign 1) or out (-1).
func (n *node) add(p *pod, sign int) {
	n.used.add(&p.asks, int64(sign))
	n.scoredCPU += int64(sign) * p.cpu
	n.scoredMemory += int64(sign) * p.memory
	for _, port := range p.ports {
		if n.ports[port] += sign; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	if sign > 0 {
		n.pods[p.object.UID] = p
	} else {
		delete(n.pods, p.object.UID)
	}
}

// Nodes is how many nodes exist.
func (c *Cluster) Nodes() int { return len(c.order) }

func sameLabels(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}
