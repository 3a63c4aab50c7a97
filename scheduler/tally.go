package scheduler

import (
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// tallies count, for each selector that is in use, the matching pods on every node. A
// tally is made by one walk over all pods when a selector is first met. From then on
// a pod that comes or goes is matched only with the tallies that are filed under one of its labels,
// or under none. The least recently used goes when there are too many.
type tallies struct {
	all   map[string]*tally
	files map[file][]*tally
	clock uint64
}

// maxTallies bounds what is kept: four bytes a node each.
const maxTallies = 512

// file is where a tally is looked for: by the one namespace that it is about, if it is about one, and by a label
// that its selector demands, if there is one.
type file struct{ namespace, key, value string }

type tally struct {
	file   file
	match  func(p *pod) bool
	counts []int32 // by slot of the node
	used   uint64
	// selects is set if the labels of namespaces matter.
	selects bool
}

// peers are the pods that a selector matches in some namespaces.
type peers struct {
	spaces   *namespaceSet
	selector labels.Selector
	living   bool // those being deleted do not count
	key      string
}

func newPeers(spaces *namespaceSet, selector labels.Selector, living bool) peers {
	p := peers{spaces: spaces, selector: selector, living: living, key: spaces.key + "|" + selector.String()}
	if living {
		p.key += "|living"
	}
	return p
}

func (s *peers) matches(c *Cluster, p *pod) bool {
	return (!s.living || p.object.DeletionTimestamp == nil) && s.spaces.has(c, p.object.Namespace) &&
		s.selector.Matches(labels.Set(p.object.Labels))
}

func (s *peers) file() file {
	var f file
	if len(s.spaces.names) == 1 && s.spaces.selector == nil {
		f.namespace = s.spaces.names[0]
	}
	requirements, _ := s.selector.Requirements()
	for i := range requirements {
		switch requirements[i].Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if values := requirements[i].ValuesUnsorted(); len(values) == 1 {
				f.key, f.value = requirements[i].Key(), values[0]
				return f
			}
		}
	}
	return f
}

// tally returns the counts of some pods.
func (c *Cluster) tally(of *peers) *tally {
	if t := c.tallies.find(of.key); t != nil {
		return t
	}
	return c.newTally(of.key, of, of.spaces.selector != nil, func(p *pod) bool { return of.matches(c, p) })
}

// newTally counts all pods. first is what every matching pod is matched by.
func (c *Cluster) newTally(key string, first *peers, selects bool, match func(*pod) bool) *tally {
	t := &tally{file: first.file(), match: match, counts: make([]int32, len(c.slots)), selects: selects}
	for _, p := range c.pods {
		if match(p) {
			t.counts[p.node.slot]++
		}
	}
	c.tallies.put(key, t)
	return t
}

func (t *tallies) find(key string) *tally {
	found := t.all[key]
	if found != nil {
		t.clock++
		found.used = t.clock
	}
	return found
}

func (t *tallies) put(key string, fresh *tally) {
	if t.all == nil {
		t.all, t.files = map[string]*tally{}, map[file][]*tally{}
	}
	if len(t.all) >= maxTallies {
		oldest, victim := t.clock+1, ""
		for k, tally := range t.all {
			if tally.used < oldest {
				oldest, victim = tally.used, k
			}
		}
		t.drop(victim)
	}
	t.clock++
	fresh.used = t.clock
	t.all[key] = fresh
	t.files[fresh.file] = append(t.files[fresh.file], fresh)
}

func (t *tallies) drop(key string) {
	gone := t.all[key]
	delete(t.all, key)
	var kept []*tally
	for _, other := range t.files[gone.file] {
		if other != gone {
			kept = append(kept, other)
		}
	}
	if len(kept) == 0 {
		delete(t.files, gone.file)
	} else {
		t.files[gone.file] = kept
	}
}

// count counts a placed pod in or out of every tally.
func (t *tallies) count(p *pod, sign int) {
	if len(t.all) == 0 {
		return
	}
	for _, namespace := range [...]string{p.object.Namespace, ""} {
		t.countFile(file{namespace: namespace}, p, sign)
		for k, v := range p.object.Labels {
			t.countFile(file{namespace, k, v}, p, sign)
		}
	}
}

func (t *tallies) countFile(f file, p *pod, sign int) {
	for _, tally := range t.files[f] {
		if tally.match(p) {
			tally.counts[p.node.slot] += int32(sign)
		}
	}
}

// addSlot makes room for one more node.
func (t *tallies) addSlot() {
	for _, tally := range t.all {
		tally.counts = append(tally.counts, 0)
	}
}

// namespacesChanged forgets the tallies that ask for labels of namespaces.
func (t *tallies) namespacesChanged() {
	for key, tally := range t.all {
		if tally.selects {
			t.drop(key)
		}
	}
}
