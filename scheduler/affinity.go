package scheduler

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// affinityTerms are the pod affinity rules of one pod, parsed.
type affinityTerms struct {
	with, anti             []affinityTerm // required
	prefersWith, prefersNo []affinityTerm // preferred, with their weights
}

// scores tells whether the terms can change the score of other pods: preferred terms,
// and required affinity, which counts with a weight of hardAffinityWeight.
func (t *affinityTerms) scores() bool {
	return len(t.with)+len(t.prefersWith)+len(t.prefersNo) > 0
}

// hardAffinityWeight is InterPodAffinityArgs.hardPodAffinityWeight's default.
const hardAffinityWeight = 1

type affinityTerm struct {
	selector labels.Selector
	spaces   *namespaceSet
	topology string
	weight   int64
}

func (t *affinityTerm) matches(c *Cluster, p *corev1.Pod) bool {
	return t.spaces.has(c, p.Namespace) && t.selector.Matches(labels.Set(p.Labels))
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
		t.with = parseTerms(pod, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		t.prefersWith = parseWeighted(pod, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a.PodAntiAffinity != nil {
		t.anti = parseTerms(pod, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		t.prefersNo = parseWeighted(pod, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return t
}

func parseTerms(pod *corev1.Pod, terms []corev1.PodAffinityTerm) []affinityTerm {
	var parsed []affinityTerm
	for i := range terms {
		parsed = append(parsed, parseTerm(pod, &terms[i], 0))
	}
	return parsed
}

func parseWeighted(pod *corev1.Pod, terms []corev1.WeightedPodAffinityTerm) []affinityTerm {
	var parsed []affinityTerm
	for i := range terms {
		parsed = append(parsed, parseTerm(pod, &terms[i].PodAffinityTerm, int64(terms[i].Weight)))
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
	return affinityTerm{selector: selector, spaces: newNamespaceSet(names, spaces), topology: term.TopologyKey, weight: weight}
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
	op := "="
	if not {
		op = "!="
	}
	for _, key := range keys {
		value, ok := have[key]
		if !ok {
			continue
		}
		if more, err := labels.Parse(key + op + value); err == nil {
			if requirements, selectable := more.Requirements(); selectable {
				s = s.Add(requirements...)
			}
		}
	}
	return s
}

// affinityState is what the rules between pods mean for one pod in one pass.
type affinityState struct {
	with, anti []domainCount
	// first is set if no pod matches any required affinity term and the pod would match its
	// own: the first of a group that attracts itself may go anywhere.
	first bool
	// guarded are the domains that existing pods' anti-affinity keeps the pod out of.
	guarded map[domain]int
	terms   *affinityTerms
}

type domain struct{ key, value string }

// domainCount counts, for one term, matching pods by the value of its topology key.
type domainCount struct {
	topology string
	byValue  map[string]int
}

func countDomains(t *tally, topology string) domainCount {
	d := domainCount{topology: topology, byValue: map[string]int{}}
	for n, count := range t.counts {
		if n.object == nil {
			continue
		}
		if value, ok := n.labels[topology]; ok {
			d.byValue[value] += count
		}
	}
	return d
}

// affinityFor prepares the required rules between pods. Without any such rule in the
// cluster it costs nothing.
func (c *Cluster) affinityFor(p *pod) *affinityState {
	if len(p.require.with)+len(p.require.anti)+len(c.guarded) == 0 {
		return nil
	}
	s := &affinityState{terms: &p.require}
	matched := 0
	for i := range p.require.with {
		t := &p.require.with[i]
		d := c.allMatching(p.require.with, t.topology, i)
		for _, n := range d.byValue {
			matched += n
		}
		s.with = append(s.with, d)
	}
	if len(s.with) > 0 && matched == 0 {
		s.first = true
		for i := range p.require.with {
			s.first = s.first && p.require.with[i].matches(c, p.object)
		}
	}
	for i := range p.require.anti {
		t := &p.require.anti[i]
		s.anti = append(s.anti, countDomains(c.tally(t.spaces, t.selector, false), t.topology))
	}
	for _, other := range c.guarded {
		for i := range other.require.anti {
			t := &other.require.anti[i]
			if value, ok := other.node.labels[t.topology]; ok && other.node.object != nil && t.matches(c, p.object) {
				if s.guarded == nil {
					s.guarded = map[domain]int{}
				}
				s.guarded[domain{t.topology, value}]++
			}
		}
	}
	return s
}

// allMatching counts the pods that match every required term, by one topology key:
// affinity terms must be met by one and the same pod
// (PodAffinity.requiredDuringSchedulingIgnoredDuringExecution).
func (c *Cluster) allMatching(terms []affinityTerm, topology string, i int) domainCount {
	if len(terms) == 1 {
		return countDomains(c.tally(terms[0].spaces, terms[0].selector, false), topology)
	}
	var key strings.Builder
	for j := range terms {
		key.WriteString(terms[j].spaces.key + "|" + terms[j].selector.String() + "&")
	}
	t := c.tallies.get(key.String(), func(visit func(*pod)) {
		for _, p := range c.pods {
			visit(p)
		}
	}, func(p *pod) bool {
		for j := range terms {
			if !terms[j].matches(c, p.object) {
				return false
			}
		}
		return true
	})
	return countDomains(t, terms[i].topology)
}

// allows applies the rules to one node and returns the reason why not.
func (s *affinityState) allows(n *node) *reason {
	if s == nil {
		return nil
	}
	for i := range s.with {
		value, ok := n.labels[s.with[i].topology]
		if !ok || (s.with[i].byValue[value] <= 0 && !s.first) {
			return reasonAffinity
		}
	}
	for i := range s.anti {
		if value, ok := n.labels[s.anti[i].topology]; ok && s.anti[i].byValue[value] > 0 {
			return reasonAntiAffinity
		}
	}
	for d := range s.guarded {
		if n.labels[d.key] == d.value && s.guarded[d] > 0 {
			if _, ok := n.labels[d.key]; ok {
				return reasonGuarded
			}
		}
	}
	return nil
}

// change counts one pod in or out, as preemption tries it.
func (s *affinityState) change(c *Cluster, incoming *corev1.Pod, p *pod, sign int) {
	if s == nil {
		return
	}
	all := len(s.terms.with) > 0
	for i := range s.terms.with {
		all = all && s.terms.with[i].matches(c, p.object)
	}
	if all {
		for i := range s.with {
			if value, ok := p.node.labels[s.with[i].topology]; ok {
				s.with[i].byValue[value] += sign
			}
		}
	}
	for i := range s.anti {
		if value, ok := p.node.labels[s.anti[i].topology]; ok && s.terms.anti[i].matches(c, p.object) {
			s.anti[i].byValue[value] += sign
		}
	}
	for i := range p.require.anti {
		t := &p.require.anti[i]
		if value, ok := p.node.labels[t.topology]; ok && t.matches(c, incoming) {
			if s.guarded == nil {
				s.guarded = map[domain]int{}
			}
			s.guarded[domain{t.topology, value}] += sign
		}
	}
}
