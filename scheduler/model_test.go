package scheduler

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// model is a cluster as plain lists, and the hard rules applied to them in the slowest way.
type model struct {
	nodes      map[string]*corev1.Node
	namespaces map[string]*corev1.Namespace
	pods       map[types.UID]*corev1.Pod // with spec.nodeName
	nominated  map[types.UID]*corev1.Pod // with status.nominatedNodeName
}

// placed are the pods that count for a pod on a node: those that run, and with nominated those that
// are nominated to it and not less important.
func (m *model) placed(p *corev1.Pod, node string, nominated bool) []*corev1.Pod {
	all := slices.Collect(maps.Values(m.pods))
	if nominated {
		for _, other := range m.nominated {
			if other.Status.NominatedNodeName == node && other.UID != p.UID && priority(other) >= priority(p) {
				there := other.DeepCopy()
				there.Spec.NodeName = node
				all = append(all, there)
			}
		}
	}
	return all
}

// fits applies every hard rule.
func (m *model) fits(p *corev1.Pod, node string) bool {
	return m.fitsAmong(p, node, m.placed(p, node, true)) && m.fitsAmong(p, node, m.placed(p, node, false))
}

func (m *model) fitsAmong(p *corev1.Pod, name string, pods []*corev1.Pod) bool {
	n := m.nodes[name]
	return m.tolerated(p, n) && selected(p, n) && roomOn(p, n, pods) && portsFree(p, n, pods) && diskFree(p, n, pods) && declared(p, n) &&
		m.spreadHolds(p, n, pods) && m.affinityHolds(p, n, pods)
}

func (m *model) tolerated(p *corev1.Pod, n *corev1.Node) bool {
	taints := slices.Clone(n.Spec.Taints)
	if n.Spec.Unschedulable {
		taints = append(taints, corev1.Taint{Key: "node.kubernetes.io/unschedulable", Effect: corev1.TaintEffectNoSchedule})
	}
	for _, taint := range taints {
		ok := taint.Effect == corev1.TaintEffectPreferNoSchedule
		for _, t := range p.Spec.Tolerations {
			ok = ok || (t.Operator == corev1.TolerationOpExists && (t.Key == "" || t.Key == taint.Key))
		}
		if !ok {
			return false
		}
	}
	return true
}

func selected(p *corev1.Pod, n *corev1.Node) bool {
	for k, v := range p.Spec.NodeSelector {
		if n.Labels[k] != v {
			return false
		}
	}
	return true
}

func roomOn(p *corev1.Pod, n *corev1.Node, pods []*corev1.Pod) bool {
	left := n.Status.Allocatable.DeepCopy()
	count := int64(1)
	take := func(q *corev1.Pod) {
		for _, c := range q.Spec.Containers {
			for name, v := range c.Resources.Requests {
				have := left[name]
				have.Sub(v)
				left[name] = have
			}
		}
	}
	for _, other := range pods {
		if other.Spec.NodeName == n.Name {
			take(other)
			count++
		}
	}
	take(p)
	for _, c := range p.Spec.Containers {
		for name, asked := range c.Resources.Requests { // who asks for nothing gets it anywhere
			if have := left[name]; asked.Sign() > 0 && have.Sign() < 0 {
				return false
			}
		}
	}
	places := n.Status.Allocatable[corev1.ResourcePods]
	return count <= places.Value()
}

func portsFree(p *corev1.Pod, n *corev1.Node, pods []*corev1.Pod) bool {
	for _, other := range pods {
		if other.Spec.NodeName != n.Name {
			continue
		}
		for _, a := range p.Spec.Containers[0].Ports {
			for _, b := range other.Spec.Containers[0].Ports {
				if a.HostPort == b.HostPort && a.Protocol == b.Protocol && (a.HostIP == b.HostIP || a.HostIP == "" || b.HostIP == "") {
					return false
				}
			}
		}
	}
	return true
}

func diskFree(p *corev1.Pod, n *corev1.Node, pods []*corev1.Pod) bool {
	for _, other := range pods {
		for _, v := range p.Spec.Volumes {
			for _, w := range other.Spec.Volumes {
				a, b := v.GCEPersistentDisk, w.GCEPersistentDisk
				if other.Spec.NodeName == n.Name && a.PDName == b.PDName && (!a.ReadOnly || !b.ReadOnly) {
					return false
				}
			}
		}
	}
	return true
}

func declared(p *corev1.Pod, n *corev1.Node) bool {
	return !p.Spec.HostNetwork || slices.Contains(n.Status.DeclaredFeatures, "UserNamespacesHostNetworkSupport")
}

func matching(s *metav1.LabelSelector, p *corev1.Pod) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(p.Labels))
}

func (m *model) spreadHolds(p *corev1.Pod, n *corev1.Node, pods []*corev1.Pod) bool {
	var hard []corev1.TopologySpreadConstraint
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			hard = append(hard, c)
		}
	}
	for _, c := range hard {
		domain, ok := n.Labels[c.TopologyKey]
		if !ok {
			return false
		}
		counts := map[string]int{}
		for _, other := range m.nodes {
			counted := selected(p, other)
			if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
				bare := other.DeepCopy()
				bare.Spec.Unschedulable = false // the policy is about taints alone
				counted = counted && m.tolerated(p, bare)
			}
			for _, d := range hard {
				_, has := other.Labels[d.TopologyKey]
				counted = counted && has
			}
			if !counted {
				continue
			}
			counts[other.Labels[c.TopologyKey]] += 0
			for _, q := range pods {
				if q.Spec.NodeName == other.Name && q.Namespace == p.Namespace && q.DeletionTimestamp == nil && matching(c.LabelSelector, q) {
					counts[other.Labels[c.TopologyKey]]++
				}
			}
		}
		least := 1 << 30
		for _, count := range counts {
			least = min(least, count)
		}
		if len(counts) == 0 || c.MinDomains != nil && len(counts) < int(*c.MinDomains) {
			least = 0
		}
		self := 0
		if matching(c.LabelSelector, p) {
			self = 1
		}
		if counts[domain]+self-least > int(c.MaxSkew) {
			return false
		}
	}
	return true
}

// about tells whether a term of one pod is about another.
func (m *model) about(term *corev1.PodAffinityTerm, of, other *corev1.Pod) bool {
	space := slices.Contains(term.Namespaces, other.Namespace) ||
		len(term.Namespaces) == 0 && term.NamespaceSelector == nil && of.Namespace == other.Namespace
	if ns := m.namespaces[other.Namespace]; term.NamespaceSelector != nil && ns != nil {
		selector, _ := metav1.LabelSelectorAsSelector(term.NamespaceSelector)
		space = space || selector.Matches(labels.Set(ns.Labels))
	}
	return space && matching(term.LabelSelector, other)
}

func required(p *corev1.Pod) (with, anti []corev1.PodAffinityTerm) {
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			with = a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
		if a.PodAntiAffinity != nil {
			anti = a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
	}
	return with, anti
}

// together tells whether two nodes are in the same domain.
func (m *model) together(key string, n *corev1.Node, other string) bool {
	o := m.nodes[other]
	if o == nil {
		return false
	}
	a, has := n.Labels[key]
	b, hasToo := o.Labels[key]
	return has && hasToo && a == b
}

func (m *model) affinityHolds(p *corev1.Pod, n *corev1.Node, pods []*corev1.Pod) bool {
	with, anti := required(p)
	met, any, self := true, false, true
	for i := range with {
		if _, has := n.Labels[with[i].TopologyKey]; !has {
			return false
		}
		self = self && m.about(&with[i], p, p)
		here := false
		for _, q := range pods {
			all := true
			for j := range with {
				all = all && m.about(&with[j], p, q)
			}
			if !all {
				continue
			}
			here = here || m.together(with[i].TopologyKey, n, q.Spec.NodeName)
			if o := m.nodes[q.Spec.NodeName]; o != nil {
				_, has := o.Labels[with[i].TopologyKey]
				any = any || has
			}
		}
		met = met && here
	}
	if !met && (any || !self) {
		return false
	}
	for _, q := range pods {
		for i := range anti {
			if m.about(&anti[i], p, q) && m.together(anti[i].TopologyKey, n, q.Spec.NodeName) {
				return false
			}
		}
		_, theirs := required(q)
		for i := range theirs {
			if m.about(&theirs[i], q, p) && m.together(theirs[i].TopologyKey, n, q.Spec.NodeName) {
				return false
			}
		}
	}
	return true
}

// maker makes things up.
type maker struct {
	*rand.Rand
	made int
}

func (r *maker) one(of ...string) string { return of[r.IntN(len(of))] }
func (r *maker) rarely() bool            { return r.IntN(5) == 0 }

func (r *maker) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	if !r.rarely() {
		n.Labels["zone"] = r.one("a", "b", "c")
	}
	if r.rarely() {
		n.Labels["disk"] = "ssd"
	}
	if r.rarely() {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: r.one("k", "l"), Effect: corev1.TaintEffect(r.one("NoSchedule", "NoExecute", "PreferNoSchedule"))})
	}
	n.Spec.Unschedulable = r.IntN(10) == 0
	if !r.rarely() {
		n.Status.DeclaredFeatures = []string{"UserNamespacesHostNetworkSupport"}
	}
	n.Status.Allocatable = quantities(map[corev1.ResourceName]string{"cpu": r.one("2", "4", "8"), "memory": "8Gi", "pods": r.one("4", "110"),
		"example.com/gpu": r.one("0", "2")})
	return n
}

func (r *maker) selector() *metav1.LabelSelector {
	if r.rarely() {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpExists}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": r.one("x", "y", "z")}}
}

func (r *maker) terms() []corev1.PodAffinityTerm {
	var all []corev1.PodAffinityTerm
	for range 1 + r.IntN(2) {
		t := corev1.PodAffinityTerm{TopologyKey: r.one("zone", corev1.LabelHostname), LabelSelector: r.selector()}
		switch r.IntN(4) {
		case 0:
			t.Namespaces = []string{"default", "other"}
		case 1:
			t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": r.one("1", "2")}}
		}
		all = append(all, t)
	}
	return all
}

func (r *maker) pod() *corev1.Pod {
	r.made++
	name := fmt.Sprint("p", r.made)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Namespace: r.one("default", "default", "other"),
		CreationTimestamp: metav1.NewTime(time.Unix(int64(r.IntN(1000)), 0))}}
	if !r.rarely() {
		p.Labels = map[string]string{"app": r.one("x", "y", "z")}
	}
	important := int32(r.IntN(3))
	p.Spec.Priority = &important
	c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(r.one("0", "100m", "1", "2"))}}}
	if r.rarely() {
		c.Resources.Requests["example.com/gpu"] = resource.MustParse("1")
	}
	if r.rarely() {
		c.Ports = []corev1.ContainerPort{{HostPort: int32(80 + r.IntN(2)), Protocol: corev1.Protocol(r.one("TCP", "UDP")), HostIP: r.one("", "10.0.0.1", "10.0.0.2")}}
	}
	p.Spec.Containers = []corev1.Container{c}
	if r.rarely() {
		p.Spec.Volumes = []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{
			PDName: r.one("one", "two"), ReadOnly: r.IntN(2) == 0}}}}
	}
	if r.rarely() {
		none := false
		p.Spec.HostNetwork, p.Spec.HostUsers = true, &none
	}
	if r.rarely() {
		p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	}
	if r.rarely() {
		p.Spec.Tolerations = []corev1.Toleration{{Key: r.one("", "k", "l"), Operator: corev1.TolerationOpExists}}
	}
	if r.rarely() {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: r.terms()}}
	} else if r.rarely() {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: r.terms()}}
	}
	for range max(0, r.IntN(8)-5) {
		honor, domains := corev1.NodeInclusionPolicyHonor, int32(1+r.IntN(4))
		s := corev1.TopologySpreadConstraint{MaxSkew: int32(1 + r.IntN(2)), TopologyKey: r.one("zone", corev1.LabelHostname), LabelSelector: r.selector(),
			WhenUnsatisfiable: corev1.UnsatisfiableConstraintAction(r.one("DoNotSchedule", "ScheduleAnyway"))}
		if r.rarely() {
			s.NodeTaintsPolicy = &honor
		}
		if r.rarely() {
			s.MinDomains = &domains
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, s)
	}
	return p
}

// TestModel lets chance act on a cluster, and after each step compares the running totals with those counted anew, and each
// decision with the rules.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, seed, 400) })
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	r := &maker{Rand: rand.New(rand.NewPCG(seed, 1))}
	c := NewCluster()
	m := &model{nodes: map[string]*corev1.Node{}, namespaces: map[string]*corev1.Namespace{}, pods: map[types.UID]*corev1.Pod{}, nominated: map[types.UID]*corev1.Pod{}}
	outcomes := map[string]int{}
	for step := range steps {
		what := r.act(t, c, m)
		outcomes[strings.Fields(what)[0]]++
		if got, want := fingerprint(c), fingerprint(m.counted()); got != want {
			t.Fatalf("seed %d, step %d, after %s: running totals\n got %s\nwant %s", seed, step, what, got, want)
		}
		if t.Failed() {
			t.Fatalf("seed %d, step %d: %s", seed, step, what)
		}
	}
	if outcomes["placed"] < steps/20 || outcomes["refused"] < steps/20 || outcomes["preempts"] == 0 {
		t.Errorf("chance did not see enough: %v", outcomes)
	}
}

// counted is a Cluster made from nothing.
func (m *model) counted() *Cluster {
	c := NewCluster()
	for _, ns := range m.namespaces {
		c.SetNamespace(ns.Name, ns)
	}
	for _, n := range m.nodes {
		c.SetNode(n)
	}
	for _, p := range m.pods {
		c.Assign(p, p.Spec.NodeName, true)
	}
	for _, p := range m.nominated {
		c.Nominate(p, p.Status.NominatedNodeName)
	}
	return c
}

// act does one thing to both and says what.
func (r *maker) act(t *testing.T, c *Cluster, m *model) string {
	switch k := r.IntN(20); {
	case k < 3:
		n := r.node(fmt.Sprint("n", r.IntN(8)))
		m.nodes[n.Name] = n
		c.SetNode(n)
		return "node " + n.Name
	case k == 3:
		name := fmt.Sprint("n", r.IntN(8))
		delete(m.nodes, name)
		c.RemoveNode(name)
		maps.DeleteFunc(m.nominated, func(_ types.UID, p *corev1.Pod) bool { return p.Status.NominatedNodeName == name })
		return "gone " + name
	case k == 4:
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.one("default", "other"), Labels: map[string]string{"team": r.one("1", "2")}}}
		m.namespaces[ns.Name] = ns
		c.SetNamespace(ns.Name, ns)
		return "namespace " + ns.Name
	case k < 9 && len(m.pods) > 0:
		return r.touch(c, m)
	}
	return r.schedule(t, c, m)
}

// touch changes or removes a pod.
func (r *maker) touch(c *Cluster, m *model) string {
	uids := slices.Sorted(maps.Keys(m.pods))
	p := m.pods[uids[r.IntN(len(uids))]]
	if r.IntN(3) > 0 {
		delete(m.pods, p.UID)
		c.Forget(p.UID)
		return "removed " + p.Name
	}
	p = p.DeepCopy()
	if r.IntN(2) == 0 {
		p.Labels = map[string]string{"app": r.one("x", "y", "z")}
	} else {
		now := metav1.NewTime(time.Unix(0, 0))
		p.DeletionTimestamp = &now
	}
	m.pods[p.UID] = p
	c.Assign(p, p.Spec.NodeName, true)
	return "changed " + p.Name
}

// schedule makes a pod, checks what every node says to it and what is decided, and carries that out.
func (r *maker) schedule(t *testing.T, c *Cluster, m *model) string {
	p := r.pod()
	if waiting := slices.Sorted(maps.Keys(m.nominated)); len(waiting) > 0 && r.IntN(4) == 0 {
		p = m.nominated[waiting[r.IntN(len(waiting))]]
	}
	fitting := 0
	for _, e := range c.Explain(p, Circumstances{}) {
		fits := m.fits(p, e.Node)
		if fits {
			fitting++
		}
		if fits != (e.Refused == "") {
			text, _ := json.Marshal(p)
			t.Errorf("%s on %s: %q, by the rules fits is %v:\n%s", p.Name, e.Node, e.Refused, fits, text)
		}
	}
	explained := &explainer{cluster: c, cand: c.candidate(newPod(p), &Circumstances{}), about: &Circumstances{}}
	for _, n := range c.order {
		if found := explained.findings(n); (len(found) == 0) != m.fits(p, n.name) {
			text, _ := json.Marshal(p)
			t.Errorf("%s on %s: the explanation is %v:\n%s", p.Name, n.name, found, text)
		}
	}
	before := fingerprint(c)
	d := c.Schedule(p, Circumstances{})
	if after := fingerprint(c); before != after {
		t.Errorf("a pass changed the totals:\nbefore %s\nafter  %s", before, after)
	}
	switch {
	case d.Node != "":
		if !m.fits(p, d.Node) {
			t.Errorf("%s was put on %s against the rules", p.Name, d.Node)
		}
		p = p.DeepCopy()
		p.Spec.NodeName = d.Node
		c.Assign(p, d.Node, true)
		m.pods[p.UID] = p
		delete(m.nominated, p.UID)
		return "placed " + p.Name
	case fitting > 0:
		t.Errorf("%s has no node, though %d fit: %s", p.Name, fitting, d.Message)
	case len(d.Victims) > 0:
		r.checkVictims(t, m, p, d)
		p = p.DeepCopy()
		p.Status.NominatedNodeName = d.Nominated
		c.Nominate(p, d.Nominated)
		m.nominated[p.UID] = p
		return "preempts " + p.Name
	}
	if d.Unnominate {
		c.Nominate(p, "")
		delete(m.nominated, p.UID)
	}
	return "refused " + p.Name
}

// checkVictims checks that the pod fits without its victims, that all are less important and on the node, and that each is needed.
func (r *maker) checkVictims(t *testing.T, m *model, p *corev1.Pod, d Decision) {
	without := *m
	without.pods = maps.Clone(m.pods)
	for _, v := range d.Victims {
		if priority(v) >= priority(p) || v.Spec.NodeName != d.Nominated {
			t.Errorf("%s preempts %s (priority %d, on %s) on %s", p.Name, v.Name, priority(v), v.Spec.NodeName, d.Nominated)
		}
		delete(without.pods, v.UID)
	}
	if !without.fits(p, d.Nominated) {
		t.Errorf("%s does not fit on %s though its victims are gone", p.Name, d.Nominated)
	}
	for _, v := range d.Victims {
		without.pods[v.UID] = v
		if without.fits(p, d.Nominated) {
			t.Errorf("%s need not go for %s", v.Name, p.Name)
		}
		delete(without.pods, v.UID)
	}
}

// fingerprint is all that a Cluster counts, in a form that does not depend on the order in which it
// came about. Tallies are compared with a count made now.
func fingerprint(c *Cluster) string {
	all := []string{totals(c)}
	for name, n := range c.nodes {
		all = append(all, fmt.Sprint(name, " ", n.closed, n.discouraged, len(n.nominated), slices.Sorted(maps.Keys(n.pods)), n.ports))
	}
	for kind, groups := range map[string]termGroups{"guard": c.guards, "like": c.likes} {
		for key, g := range groups {
			for n, count := range g.nodes {
				all = append(all, fmt.Sprint(kind, " ", key, " ", n.name, " ", count))
			}
		}
	}
	for key, tally := range c.tallies.all {
		for slot, count := range tally.counts {
			var want int32
			for _, p := range c.pods {
				if p.node.slot == slot && tally.match(p) {
					want++
				}
			}
			if count != want {
				all = append(all, fmt.Sprintf("tally %s of slot %d is %d and should be %d", key, slot, count, want))
			}
		}
	}
	for key, top := range c.topologies {
		for slot, n := range c.slots {
			id, has := int32(missing), false
			if n != nil && n.object != nil {
				if _, has = n.labels[key]; has {
					id = top.ids[n.labels[key]]
				}
			}
			if top.of[slot] != id {
				all = append(all, fmt.Sprintf("topology %s of slot %d", key, slot))
			}
		}
	}
	sort.Strings(all)
	return strings.Join(all, "\n")
}
