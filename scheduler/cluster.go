package scheduler

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

	pods map[types.UID]*pod
	// guarded are the pods whose required anti-affinity can keep others off nodes.
	guarded map[types.UID]*pod
	// attracted are the pods whose preferences can score others.
	attracted map[types.UID]*pod
	// tallies count, by node, the pods that a selector matches.
	tallies tallies
	// namespaces by name, for namespace selectors.
	namespaces map[string]labels.Set
	// nominated are pods that wait for room on a node which was made for them.
	nominated map[types.UID]*pod
	// images by normalised name: size and on how many nodes, for ImageLocality.
	images map[string]*imageState
	// budgets gives what preemption should keep; it is asked only when a pass preempts.
	budgets func() Budgets
}

type imageState struct {
	size  int64
	nodes int
}

// node is one node's totals. A node that pods name but that does not exist (yet) has
// a nil object and is in no order.
type node struct {
	name        string
	object      *corev1.Node
	labels      labels.Set
	allocatable resources
	pods        map[types.UID]*pod
	used        resources
	// scoredCPU and scoredMemory count assumed requests.
	scoredCPU, scoredMemory int64
	ports                   map[hostPort]int
	// owners counts pods by their controller, for the default spreading.
	owners map[types.UID]int
	images map[string]int64
}

type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

// pod is what the scheduler needs of a pod, worked out once.
type pod struct {
	object  *corev1.Pod
	asks    resources
	cpu     int64 // assumed
	memory  int64
	ports   []hostPort
	owner   types.UID
	require affinityTerms // of others, and from others
	node    *node
	bound   bool // the store says so, rather than only we
}

// NewCluster returns an empty Cluster.
func NewCluster() *Cluster {
	return &Cluster{
		nodes: map[string]*node{}, pods: map[types.UID]*pod{}, guarded: map[types.UID]*pod{},
		attracted: map[types.UID]*pod{}, namespaces: map[string]labels.Set{},
		nominated: map[types.UID]*pod{}, images: map[string]*imageState{},
	}
}

func (c *Cluster) node(name string) *node {
	n := c.nodes[name]
	if n == nil {
		n = &node{name: name, pods: map[types.UID]*pod{}, ports: map[hostPort]int{}, owners: map[types.UID]int{}}
		c.nodes[name] = n
	}
	return n
}

// SetNode adds or replaces a node. O(log nodes) and what changed of its images.
func (c *Cluster) SetNode(object *corev1.Node) {
	n := c.node(object.Name)
	if n.object == nil {
		i, _ := slices.BinarySearchFunc(c.order, n.name, func(n *node, name string) int { return strings.Compare(n.name, name) })
		c.order = slices.Insert(c.order, i, n)
	}
	n.object, n.labels = object, object.Labels
	n.allocatable = fromList(object.Status.Allocatable)
	c.setImages(n, object.Status.Images)
}

// RemoveNode takes a node out. Its pods stay known until they go.
func (c *Cluster) RemoveNode(name string) {
	n := c.nodes[name]
	if n == nil || n.object == nil {
		return
	}
	c.setImages(n, nil)
	n.object = nil
	c.order = slices.DeleteFunc(c.order, func(o *node) bool { return o == n })
	c.dropIfEmpty(n)
}

func (c *Cluster) dropIfEmpty(n *node) {
	if n.object == nil && len(n.pods) == 0 {
		delete(c.nodes, n.name)
		c.tallies.dropNode(n)
	}
}

func (c *Cluster) setImages(n *node, images []corev1.ContainerImage) {
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
	c.tallies.reset() // those with a namespace selector may differ now
}

// newPod works out what the scheduler needs. Its cost is that of summing requests
// and parsing selectors, once for each version of a pod that matters.
func newPod(object *corev1.Pod) *pod {
	p := &pod{object: object, asks: requests(object), require: parseAffinity(object)}
	p.cpu, p.memory = assumed(object, &p.asks)
	for _, containers := range [][]corev1.Container{object.Spec.Containers, sidecars(object)} {
		for i := range containers {
			for _, port := range containers[i].Ports {
				if port.HostPort > 0 {
					p.ports = append(p.ports, newHostPort(port))
				}
			}
		}
	}
	if ref := metav1.GetControllerOfNoCopy(object); ref != nil {
		p.owner = ref.UID
	}
	return p
}

func sidecars(object *corev1.Pod) []corev1.Container {
	var all []corev1.Container
	for i := range object.Spec.InitContainers {
		if policy := object.Spec.InitContainers[i].RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			all = append(all, object.Spec.InitContainers[i])
		}
	}
	return all
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

// Assign puts a pod on the node that its spec names, or moves or refreshes it. bound says
// that the store knows, rather than that a binding is under way.
func (c *Cluster) Assign(object *corev1.Pod, nodeName string, bound bool) {
	old := c.pods[object.UID]
	if old != nil && old.node.name == nodeName && sameForScheduling(old.object, object) {
		old.object, old.bound = object, old.bound || bound
		return
	}
	if old != nil {
		c.remove(old)
	}
	p := newPod(object)
	p.bound = bound
	c.place(p, c.node(nodeName))
}

// sameForScheduling tells whether a newer version of an assigned pod counts the same:
// nothing that is summed or selected by can have changed.
func sameForScheduling(a, b *corev1.Pod) bool {
	if (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || len(a.Labels) != len(b.Labels) {
		return false
	}
	for k, v := range a.Labels {
		if w, ok := b.Labels[k]; !ok || v != w {
			return false
		}
	}
	return a.Generation == b.Generation && len(a.Status.ContainerStatuses) == len(b.Status.ContainerStatuses) &&
		len(a.OwnerReferences) == len(b.OwnerReferences)
}

// Forget takes a pod out, wherever it is: it was deleted, has finished, or its binding failed.
func (c *Cluster) Forget(uid types.UID) {
	delete(c.nominated, uid)
	if p := c.pods[uid]; p != nil {
		c.remove(p)
	}
}

// Nominate reserves room on a node for a pod, against pods of lower priority. An empty
// node takes the reservation back.
func (c *Cluster) Nominate(object *corev1.Pod, nodeName string) {
	if nodeName == "" {
		delete(c.nominated, object.UID)
		return
	}
	p := newPod(object)
	p.node = c.node(nodeName)
	c.nominated[object.UID] = p
}

func (c *Cluster) place(p *pod, n *node) {
	uid := p.object.UID
	delete(c.nominated, uid)
	p.node = n
	c.pods[uid] = p
	n.add(p, 1)
	if len(p.require.anti) > 0 {
		c.guarded[uid] = p
	}
	if p.require.scores() {
		c.attracted[uid] = p
	}
	c.tallies.count(p, 1)
}

func (c *Cluster) remove(p *pod) {
	uid := p.object.UID
	delete(c.pods, uid)
	delete(c.guarded, uid)
	delete(c.attracted, uid)
	c.tallies.count(p, -1)
	p.node.add(p, -1)
	c.dropIfEmpty(p.node)
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
	if p.owner != "" {
		if n.owners[p.owner] += sign; n.owners[p.owner] == 0 {
			delete(n.owners, p.owner)
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
