package scheduler

import (
	"k8s.io/apimachinery/pkg/labels"
)

// tallies count, for each selector that is in use, the matching pods on every node. A
// tally is made by one walk over all pods when a selector is first met, and from then on
// costs one match for each pod that comes or goes. The least recently used goes
// when there are too many.
type tallies struct {
	all   map[string]*tally
	clock uint64
}

// maxTallies bounds what is kept: each costs one selector match for every pod event.
const maxTallies = 256

type tally struct {
	match  func(p *pod) bool
	counts map[*node]int
	used   uint64
}

// get returns the tally of a selector; key must say all that match depends on.
func (t *tallies) get(key string, each func(func(*pod)), match func(p *pod) bool) *tally {
	t.clock++
	if found := t.all[key]; found != nil {
		found.used = t.clock
		return found
	}
	if t.all == nil {
		t.all = map[string]*tally{}
	}
	if len(t.all) >= maxTallies {
		t.evict()
	}
	fresh := &tally{match: match, counts: map[*node]int{}, used: t.clock}
	each(func(p *pod) {
		if match(p) {
			fresh.counts[p.node]++
		}
	})
	t.all[key] = fresh
	return fresh
}

func (t *tallies) evict() {
	oldest, key := t.clock+1, ""
	for k, tally := range t.all {
		if tally.used < oldest {
			oldest, key = tally.used, k
		}
	}
	delete(t.all, key)
}

// count counts a placed pod in or out of every tally.
func (t *tallies) count(p *pod, sign int) {
	for _, tally := range t.all {
		if tally.match(p) {
			if tally.counts[p.node] += sign; tally.counts[p.node] == 0 {
				delete(tally.counts, p.node)
			}
		}
	}
}

func (t *tallies) dropNode(n *node) {
	for _, tally := range t.all {
		delete(tally.counts, n)
	}
}

func (t *tallies) reset() { t.all = nil }

// tally returns the counts of the pods in the given namespaces that a selector matches. Pods
// that are being deleted count unless living is set.
func (c *Cluster) tally(spaces *namespaceSet, selector labels.Selector, living bool) *tally {
	key := spaces.key + "|" + selector.String()
	if living {
		key += "|living"
	}
	match := func(p *pod) bool {
		return (!living || p.object.DeletionTimestamp == nil) && spaces.has(c, p.object.Namespace) &&
			selector.Matches(labels.Set(p.object.Labels))
	}
	return c.tallies.get(key, func(visit func(*pod)) {
		for _, p := range c.pods {
			visit(p)
		}
	}, match)
}
