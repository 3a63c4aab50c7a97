package scheduler

// topology numbers the values that one label has on the nodes: the domains of rules that name it.
type topology struct {
	key string
	ids map[string]int32
	// of is the number of each node's value, by the node's slot; missing for a node that does not
	// have the label or does not exist.
	of []int32
}

const missing = -1

// maxTopologies bounds how many labels are kept; pods can name any.
const maxTopologies = 64

// topology returns the domains of a label. The first time costs a walk over all nodes.
func (c *Cluster) topology(key string) *topology {
	if t := c.topologies[key]; t != nil {
		return t
	}
	if len(c.topologies) >= maxTopologies {
		clear(c.topologies)
	}
	t := &topology{key: key, ids: map[string]int32{}, of: make([]int32, len(c.slots))}
	for slot, n := range c.slots {
		t.of[slot] = missing
		if n != nil {
			t.file(n)
		}
	}
	c.topologies[key] = t
	return t
}

// file notes the value of one node.
func (t *topology) file(n *node) {
	value, ok := n.labels[t.key]
	if n.object == nil || !ok {
		t.of[n.slot] = missing
		return
	}
	id, known := t.ids[value]
	if !known {
		id = int32(len(t.ids))
		t.ids[value] = id
	}
	t.of[n.slot] = id
}

// fileTopologies notes the labels of a node everywhere. Numberings most of whose values are
// gone are dropped, and made again when they are asked for.
func (c *Cluster) fileTopologies(n *node) {
	for key, t := range c.topologies {
		t.file(n)
		if len(t.ids) > 2*len(c.order)+1000 {
			delete(c.topologies, key)
		}
	}
}

// domains counts by domain.
type domains struct {
	*topology
	count []int32
}

func newDomains(t *topology) domains { return domains{t, make([]int32, len(t.ids))} }

// sum is the tally by domain of a label.
func (c *Cluster) sum(t *tally, key string) domains {
	d := newDomains(c.topology(key))
	for slot, count := range t.counts {
		if count != 0 {
			if id := d.of[slot]; id >= 0 {
				d.count[id] += count
			}
		}
	}
	return d
}

// at is the count of a node's domain, and whether it is in one.
func (d *domains) at(n *node) (count int32, in bool) {
	id := d.of[n.slot]
	if id < 0 {
		return 0, false
	}
	return d.count[id], true
}

// change adds to the count of a node's domain; it tells whether the node is in one.
func (d *domains) change(n *node, by int32) bool {
	id := d.of[n.slot]
	if id < 0 {
		return false
	}
	d.count[id] += by
	return true
}
