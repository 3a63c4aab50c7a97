package podautoscaler

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/internal/selector"
	"coracle.dev/coracle/reconcile"
)

// recommendation is a number of replicas that metrics asked for at a time, before anything held it back.
type recommendation struct {
	replicas int32
	at       time.Time
}

// change is one that this loop made to a target, by how many replicas.
type change struct {
	by int32
	at time.Time
}

// about is what questions were asked about: other questions have other answers.
type about struct {
	generation int64
	selector   string
}

// record is what is remembered of one autoscaler. It is replaced, never changed.
type record struct {
	uid             string
	recommendations []recommendation // oldest first
	ups, downs      []change         // oldest first, by always positive
	about           about
	asked           time.Time
	answers         []answer
}

// memory is safe for concurrent use. Its size is bounded by the number of autoscalers.
type memory struct {
	mu        sync.RWMutex // guards what follows
	records   map[reconcile.Key]record
	selectors map[string]*selectors // by namespace
}

func newMemory() *memory {
	return &memory{records: map[reconcile.Key]record{}, selectors: map[string]*selectors{}}
}

// of is what is remembered of an autoscaler: nothing of another that had the same name.
func (m *memory) of(key reconcile.Key, uid string) record {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.get(key, uid)
}

func (m *memory) get(key reconcile.Key, uid string) record {
	if r := m.records[key]; r.uid == uid {
		return r
	}
	return record{uid: uid}
}

func (m *memory) forget(key reconcile.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, key)
	m.selects(key, nil)
}

func (m *memory) note(key reconcile.Key, n note) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.get(key, n.uid)
	r.recommendations = n.recommendations
	m.records[key] = r
	m.selects(key, n.selector)
}

func (m *memory) answered(key reconcile.Key, a ask, answers []answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.get(key, a.uid)
	r.about, r.asked, r.answers = a.about, a.at, answers
	m.records[key] = r
	m.selects(key, a.selector)
}

// longestPeriod is how long a policy may look back (HPAScalingPolicy.periodSeconds).
const longestPeriod = 1800 * time.Second

// scaled notes a change, and lets go of those that no policy can ask about any more.
func (m *memory) scaled(key reconcile.Key, uid string, c change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.get(key, uid)
	add := func(to []change, c change) []change {
		kept := slices.DeleteFunc(slices.Clone(to), func(o change) bool { return o.at.Before(c.at.Add(-longestPeriod)) })
		return append(kept, c)
	}
	if c.by > 0 {
		r.ups = add(r.ups, c)
	} else {
		r.downs = add(r.downs, change{by: -c.by, at: c.at})
	}
	m.records[key] = r
}

// selectors are those of the autoscalers of one namespace, filed so that the ones that may match a pod are found by its labels.
type selectors struct {
	of map[reconcile.Key]labels.Selector
	// byLabel files selectors that want "key=value" under one such pair, rest are the others.
	byLabel map[string]map[reconcile.Key]labels.Selector
	rest    map[reconcile.Key]labels.Selector
}

// file is a pair that every pod has that the selector matches, "" if it names none.
func file(sel labels.Selector) string {
	key, value, ok := selector.Pair(sel)
	if !ok {
		return ""
	}
	return key + "=" + value
}

// selects notes what an autoscaler selects, nothing if sel is nil. The lock is held.
func (m *memory) selects(key reconcile.Key, sel labels.Selector) {
	in := m.selectors[key.Namespace]
	if in != nil {
		was, had := in.of[key]
		if had && sel != nil && was.String() == sel.String() {
			return
		}
		if had {
			delete(in.of, key)
			delete(in.rest, key)
			if label := file(was); label != "" {
				if delete(in.byLabel[label], key); len(in.byLabel[label]) == 0 {
					delete(in.byLabel, label)
				}
			}
		}
	}
	switch {
	case sel == nil && in != nil && len(in.of) == 0:
		delete(m.selectors, key.Namespace)
		return
	case sel == nil:
		return
	case in == nil:
		in = &selectors{of: map[reconcile.Key]labels.Selector{}, byLabel: map[string]map[reconcile.Key]labels.Selector{}, rest: map[reconcile.Key]labels.Selector{}}
		m.selectors[key.Namespace] = in
	}
	in.of[key] = sel
	label := file(sel)
	if label == "" {
		in.rest[key] = sel
		return
	}
	if in.byLabel[label] == nil {
		in.byLabel[label] = map[reconcile.Key]labels.Selector{}
	}
	in.byLabel[label][key] = sel
}

// rivals are the autoscalers that select any of some pods, in order, if they are more than key alone; two at most.
func (m *memory) rivals(key reconcile.Key, pods []*corev1.Pod) []reconcile.Key {
	m.mu.RLock()
	defer m.mu.RUnlock()
	in := m.selectors[key.Namespace]
	if in == nil || len(in.of) < 2 {
		return nil
	}
	found := map[reconcile.Key]bool{key: true}
	match := func(of map[reconcile.Key]labels.Selector, set labels.Set) {
		for k, sel := range of {
			if !found[k] && sel.Matches(set) {
				found[k] = true
			}
		}
	}
	var last map[string]string
	for _, pod := range pods {
		if last != nil && maps.Equal(last, pod.Labels) {
			continue // pods of one set mostly have the same labels
		}
		last = pod.Labels
		for name, value := range pod.Labels {
			if of := in.byLabel[name+"="+value]; of != nil {
				match(of, pod.Labels)
			}
		}
		match(in.rest, pod.Labels)
	}
	if len(found) < 2 || len(pods) == 0 {
		return nil
	}
	all := slices.SortedFunc(maps.Keys(found), func(a, b reconcile.Key) int { return strings.Compare(a.Name, b.Name) })
	for i, k := range all { // the one that is told is always among those that it is told of
		if k == key && i > 1 {
			all[1] = k
		}
	}
	return all[:2]
}
