package scheduler

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// affinityTerms are the pod affinity rules of one pod, parsed.
type affinityTerms struct {
	with, anti             []affinityTerm // required
	prefersWith, prefersNo []affinityTerm // preferred, with their weights
}

// hardAffinityWeight is InterPodAffinityArgs.hardPodAffinityWeight's default.
const hardAffinityWeight = 1

type affinityTerm struct {
	peers
	topology string
	weight   int64  // in the scores of others; negative for those that it avoids
	required bool   // of a pod that it has to be with; profiles say what that weighs
	group    string // equal for terms that mean the same
}

// termGroups count, by what they say, the terms of all placed pods: the pods of one controller have
// the same, so that a pass looks at each once.
type termGroups map[string]*termGroup

type termGroup struct {
	term  *affinityTerm
	nodes map[*node]int
}

func (g termGroups) count(t *affinityTerm, n *node, sign int) {
	group := g[t.group]
	if group == nil {
		group = &termGroup{term: t, nodes: map[*node]int{}}
		g[t.group] = group
	}
	if group.nodes[n] += sign; group.nodes[n] == 0 {
		if delete(group.nodes, n); len(group.nodes) == 0 {
			delete(g, t.group)
		}
	}
}

// namespaceSet is the namespaces that a term is about: those named, and those whose
// labels are selected.
type namespaceSet struct {
	names    []string
	selector labels.Selector // nil for none
	key      string
}

func newNamespaceSet(names []string, selector labels.Selector) *namespaceSet {
	s := &namespaceSet{names: slices.Sorted(slices.Values(names)), selector: selector}
	s.key = strings.Join(s.names, ",")
	if selector != nil {
		s.key += "?" + selector.String()
	}
	return s
}

func (s *namespaceSet) has(c *Cluster, namespace string) bool {
	if slices.Contains(s.names, namespace) {
		return true
	}
	if s.selector == nil {
		return false
	}
	if s.selector.Empty() {
		return true
	}
	set, known := c.namespaces[namespace]
	return known && s.selector.Matches(set)
}

func parseAffinity(pod *corev1.Pod) affinityTerms {
	var t affinityTerms
	a := pod.Spec.Affinity
	if a == nil {
		return t
	}
	if a.PodAffinity != nil {
		t.with = parseTerms(pod, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, hardAffinityWeight)
		t.prefersWith = parseWeighted(pod, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, 1)
	}
	if a.PodAntiAffinity != nil {
		t.anti = parseTerms(pod, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, 0)
		t.prefersNo = parseWeighted(pod, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
	return t
}

func parseTerms(pod *corev1.Pod, terms []corev1.PodAffinityTerm, weight int64) []affinityTerm {
	var parsed []affinityTerm
	for i := range terms {
		t := parseTerm(pod, &terms[i], weight)
		t.required = true
		t.group += "|required"
		parsed = append(parsed, t)
	}
	return parsed
}

func parseWeighted(pod *corev1.Pod, terms []corev1.WeightedPodAffinityTerm, sign int64) []affinityTerm {
	var parsed []affinityTerm
	for i := range terms {
		parsed = append(parsed, parseTerm(pod, &terms[i].PodAffinityTerm, sign*int64(terms[i].Weight)))
	}
	return parsed
}

// parseTerm parses one term. Validation has refused selectors that do not parse; should
// one get here all the same it matches nothing.
func parseTerm(pod *corev1.Pod, term *corev1.PodAffinityTerm, weight int64) affinityTerm {
	selector := parseSelector(term.LabelSelector)
	selector = requireKeys(selector, pod.Labels, term.MatchLabelKeys, false)
	selector = requireKeys(selector, pod.Labels, term.MismatchLabelKeys, true)
	names := term.Namespaces
	if len(names) == 0 && term.NamespaceSelector == nil {
		names = []string{pod.Namespace}
	}
	var spaces labels.Selector
	if term.NamespaceSelector != nil {
		spaces = parseSelector(term.NamespaceSelector)
	}
	t := affinityTerm{peers: newPeers(newNamespaceSet(names, spaces), selector, false), topology: term.TopologyKey, weight: weight}
	t.group = strconv.FormatInt(weight, 10) + "|" + t.topology + "|" + t.key
	return t
}

func parseSelector(s *metav1.LabelSelector) labels.Selector {
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return parsed
}

// requireKeys adds the values that a pod has for some label keys (matchLabelKeys,
// mismatchLabelKeys; KEP-3633, KEP-3243). Keys that the pod lacks are ignored.
func requireKeys(s labels.Selector, have map[string]string, keys []string, not bool) labels.Selector {
	op := selection.In
	if not {
		op = selection.NotIn
	}
	for _, key := range keys {
		if value, ok := have[key]; ok {
			if r, err := labels.NewRequirement(key, op, []string{value}); err == nil {
				s = s.Add(*r)
			}
		}
	}
	return s
}

// affinityState is what the rules between pods mean for one pod in one pass.
type affinityState struct {
	terms      *affinityTerms
	with, anti []domains
	// self is set if the pod matches its own affinity terms: while matched, the number of pods that do, is none, it is
	// the first of a group that attracts itself and may go anywhere.
	self    bool
	matched int32
	// guarded counts the pods whose anti-affinity keeps the pod out of a domain, for each label.
	guarded []domains
}

// affinityFor prepares the required rules between pods. Without any such rule in the
// cluster it costs nothing.
func (c *Cluster) affinityFor(p *pod) *affinityState {
	if len(p.require.with)+len(p.require.anti)+len(c.guards)+len(c.nominated) == 0 {
		return nil
	}
	s := &affinityState{terms: &p.require}
	s.self = len(p.require.with) > 0 && p.matchesAll(c, p.require.with)
	for i := range p.require.with {
		d := c.sum(c.tallyAll(p.require.with), p.require.with[i].topology)
		for _, n := range d.count {
			s.matched += n
		}
		s.with = append(s.with, d)
	}
	for i := range p.require.anti {
		t := &p.require.anti[i]
		s.anti = append(s.anti, c.sum(c.tally(&t.peers), t.topology))
	}
	for _, g := range c.guards {
		if g.term.matches(c, p) {
			guard := s.guard(c, g.term.topology)
			for n, count := range g.nodes {
				guard.change(n, int32(count))
			}
		}
	}
	return s
}

// guard returns the counts for one label in guarded.
func (s *affinityState) guard(c *Cluster, key string) *domains {
	for i := range s.guarded {
		if s.guarded[i].key == key {
			return &s.guarded[i]
		}
	}
	s.guarded = append(s.guarded, newDomains(c.topology(key)))
	return &s.guarded[len(s.guarded)-1]
}

func (p *pod) matchesAll(c *Cluster, terms []affinityTerm) bool {
	for i := range terms {
		if !terms[i].matches(c, p) {
			return false
		}
	}
	return true
}

// tallyAll counts the pods that match every required term: affinity terms must be met by one and the same pod
// (PodAffinity.requiredDuringSchedulingIgnoredDuringExecution).
func (c *Cluster) tallyAll(terms []affinityTerm) *tally {
	if len(terms) == 1 {
		return c.tally(&terms[0].peers)
	}
	key, selects := "", false
	for i := range terms {
		key += terms[i].key + "&"
		selects = selects || terms[i].spaces.selector != nil
	}
	if t := c.tallies.find(key); t != nil {
		return t
	}
	return c.newTally(key, &terms[0].peers, selects, func(p *pod) bool { return p.matchesAll(c, terms) })
}

// allows applies the rules to one node and returns the reason why not.
func (s *affinityState) allows(n *node) *reason {
	if s == nil {
		return nil
	}
	lacks := false
	for i := range s.with {
		count, in := s.with[i].at(n)
		if !in {
			return reasonAffinity
		}
		lacks = lacks || count <= 0
	}
	if lacks && !(s.self && s.matched <= 0) {
		return reasonAffinity
	}
	for i := range s.anti {
		if count, _ := s.anti[i].at(n); count > 0 {
			return reasonAntiAffinity
		}
	}
	for i := range s.guarded {
		if count, _ := s.guarded[i].at(n); count > 0 {
			return reasonGuarded
		}
	}
	return nil
}

// change counts one pod in or out, as preemption and nominations try it.
func (s *affinityState) change(c *Cluster, incoming, p *pod, sign int32) {
	if s == nil {
		return
	}
	if len(s.with) > 0 && p.matchesAll(c, s.terms.with) {
		for i := range s.with {
			if s.with[i].change(p.node, sign) {
				s.matched += sign
			}
		}
	}
	for i := range s.anti {
		if s.terms.anti[i].matches(c, p) {
			s.anti[i].change(p.node, sign)
		}
	}
	for i := range p.require.anti {
		if t := &p.require.anti[i]; t.matches(c, incoming) {
			s.guard(c, t.topology).change(p.node, sign)
		}
	}
}
