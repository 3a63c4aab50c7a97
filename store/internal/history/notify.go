package history

import (
	"sync"
	"sync/atomic"
)

// inlineWakes is how many waiters a commit wakes itself. More are left to a
// goroutine of their own, so that a commit costs the same with 1,000 watchers.
const inlineWakes = 16

// notifier wakes those who wait for certain resources. Who waits for the same
// set shares one channel, which is closed by the first commit that touches the set
// and then forgotten: there is nothing to unsubscribe.
type notifier struct {
	waiting atomic.Int64 // number of groups, read without mu by commits

	mu         sync.Mutex // guards all below
	groups     map[string]*group
	byResource map[string]map[*group]struct{} // "" holds those that wait for anything
	closed     bool
}

// group is all who wait for the same set of resources since its last change.
type group struct {
	set       string
	resources []string
	ready     chan struct{}
	waiters   int // calls that were given ready, at least those who wait
}

// wait returns the channel of a set. set names it; resources lists it, nil for all.
func (n *notifier) wait(set string, resources []string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return closedChannel
	}
	g := n.groups[set]
	if g == nil {
		if resources == nil {
			resources = anyResource
		}
		g = &group{set: set, resources: resources, ready: make(chan struct{})}
		n.add(g)
	}
	g.waiters++
	return g.ready
}

func (n *notifier) add(g *group) {
	if n.groups == nil {
		n.groups = make(map[string]*group)
		n.byResource = make(map[string]map[*group]struct{})
	}
	n.groups[g.set] = g
	for _, r := range g.resources {
		if n.byResource[r] == nil {
			n.byResource[r] = make(map[*group]struct{}, 1)
		}
		n.byResource[r][g] = struct{}{}
	}
	n.waiting.Add(1)
}

func (n *notifier) take(g *group) {
	delete(n.groups, g.set)
	for _, r := range g.resources {
		delete(n.byResource[r], g)
		if len(n.byResource[r]) == 0 {
			delete(n.byResource, r)
		}
	}
	n.waiting.Add(-1)
}

// wake closes the channels of all sets that hold one of the resources.
func (n *notifier) wake(resources []string) {
	if n.waiting.Load() == 0 || len(resources) == 0 {
		return
	}
	var taken []*group
	waiters := 0
	n.mu.Lock()
	for _, r := range append(resources, "") {
		for g := range n.byResource[r] {
			n.take(g)
			taken = append(taken, g)
			waiters += g.waiters
		}
	}
	n.mu.Unlock()
	if waiters > inlineWakes {
		go closeAll(taken)
		return
	}
	closeAll(taken)
}

// close wakes everybody, for good.
func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	var taken []*group
	for _, g := range n.groups {
		taken = append(taken, g)
		n.take(g)
	}
	n.mu.Unlock()
	closeAll(taken)
}

func closeAll(groups []*group) {
	for _, g := range groups {
		close(g.ready)
	}
}

var (
	anyResource   = []string{""}
	closedChannel = func() chan struct{} {
		c := make(chan struct{})
		close(c)
		return c
	}()
)
