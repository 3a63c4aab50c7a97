package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// explainer finds every rule that refuses a node, where a pass stops at the first.
type explainer struct {
	cluster *Cluster
	cand    *candidate
	about   *Circumstances
	pending bool
}

// findings are what all the rules say against a node. Pods that are nominated to it and are not less important count as
// if they ran.
func (e *explainer) findings(n *node) []Finding {
	var counted []*pod
	for uid, p := range n.nominated {
		if uid != e.cand.object.UID && p.priority >= e.cand.priority {
			counted = append(counted, p)
		}
	}
	for _, p := range counted {
		e.cluster.try(e.cand, p, 1)
	}
	all := e.rules(n)
	for _, p := range counted {
		e.cluster.try(e.cand, p, -1)
	}
	if len(all) == 0 && len(counted) > 0 { // it may depend on a nominated pod that never comes
		all = e.rules(n)
	}
	return all
}

func (e *explainer) rules(n *node) []Finding {
	var all []Finding
	for _, rule := range []func(*node) []Finding{e.unschedulable, e.taints, e.selection, e.ports, e.room, e.volumes, e.storage, e.spread, e.affinity, e.devices, e.features} {
		all = append(all, rule(n)...)
	}
	return all
}

func (e *explainer) unschedulable(n *node) []Finding {
	if !n.object.Spec.Unschedulable || tolerates(e.cand.object.Spec.Tolerations, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return nil
	}
	return []Finding{{"NodeUnschedulable", reasonUnschedulable.text, "the node is cordoned", "kubectl uncordon " + n.name}}
}

func (e *explainer) taints(n *node) []Finding {
	var all []Finding
	for i := range n.object.Spec.Taints {
		t := &n.object.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || tolerates(e.cand.object.Spec.Tolerations, t) {
			continue
		}
		if t.Key == corev1.TaintNodeUnschedulable && n.object.Spec.Unschedulable {
			continue // said already
		}
		toleration := fmt.Sprintf("{key: %s, operator: Exists, effect: %s}", t.Key, t.Effect)
		if t.Value != "" {
			toleration = fmt.Sprintf("{key: %s, operator: Equal, value: %q, effect: %s}", t.Key, t.Value, t.Effect)
		}
		change := fmt.Sprintf("add the toleration %s to the pod", toleration)
		if why := systemTaints[t.Key]; why != "" {
			change = why + ", or " + change
		} else {
			change += fmt.Sprintf(", or: kubectl taint node %s %s:%s-", n.name, t.Key, t.Effect)
		}
		all = append(all, Finding{"TaintToleration", reasonTaint.text, "the node has the taint " + t.ToString() + ", which the pod does not tolerate", change})
	}
	return all
}

// systemTaints are those that controllers set, and what makes them go.
var systemTaints = map[string]string{
	corev1.TaintNodeNotReady:           "the node has to become Ready (kubectl describe node)",
	corev1.TaintNodeUnreachable:        "the node has to report again",
	corev1.TaintNodeMemoryPressure:     "the node has to have memory free",
	corev1.TaintNodeDiskPressure:       "the node has to have disk space free",
	corev1.TaintNodePIDPressure:        "the node has to have process numbers free",
	corev1.TaintNodeNetworkUnavailable: "the node's network has to be set up",
}

func (e *explainer) selection(n *node) []Finding {
	var all []Finding
	spec := &e.cand.object.Spec
	for _, key := range slices.Sorted(maps.Keys(spec.NodeSelector)) {
		want := spec.NodeSelector[key]
		have, ok := n.labels[key]
		if ok && have == want {
			continue
		}
		why, overwrite := fmt.Sprintf("nodeSelector %s=%s: the node has no label %s", key, want, key), ""
		if ok {
			why, overwrite = fmt.Sprintf("nodeSelector %s=%s: the node has %s=%s", key, want, key, have), " --overwrite"
		}
		all = append(all, Finding{"NodeAffinity", reasonNodeAffinity.text, why, fmt.Sprintf("kubectl label node %s %s=%s%s", n.name, key, want, overwrite)})
	}
	if e.cand.wanted == nil || len(all) > 0 || e.cand.matches(n) {
		return all
	}
	terms := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	var misses []string
	for i := range terms {
		misses = append(misses, missed(&terms[i], n))
	}
	why := "required node affinity: " + strings.Join(misses, "; or ")
	return append(all, Finding{"NodeAffinity", reasonNodeAffinity.text, why, "label the node so that one term matches, or change the pod's affinity"})
}

// missed lists the requirements of a term that a node does not meet.
func missed(term *corev1.NodeSelectorTerm, n *node) string {
	var all []string
	for _, r := range term.MatchExpressions {
		one := &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{r}}}}
		if s, err := nodeaffinity.NewNodeSelector(one); err == nil && s.Match(n.object) {
			continue
		}
		have := "it has no such label"
		if v, ok := n.labels[r.Key]; ok {
			have = "it has " + v
		}
		all = append(all, fmt.Sprintf("%s (%s)", requirement(r), have))
	}
	for _, r := range term.MatchFields {
		one := &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{r}}}}
		if s, err := nodeaffinity.NewNodeSelector(one); err != nil || !s.Match(n.object) {
			all = append(all, requirement(r))
		}
	}
	if len(all) == 0 {
		return "an empty term matches nothing"
	}
	return "wants " + strings.Join(all, " and ")
}

func requirement(r corev1.NodeSelectorRequirement) string {
	if len(r.Values) == 0 {
		return fmt.Sprintf("%s %s", r.Key, r.Operator)
	}
	return fmt.Sprintf("%s %s [%s]", r.Key, r.Operator, strings.Join(r.Values, " "))
}

func (e *explainer) ports(n *node) []Finding {
	var all []Finding
	for _, want := range e.cand.ports {
		if !portsTaken([]hostPort{want}, n.ports) {
			continue
		}
		var by []string
		for _, p := range n.pods {
			for _, have := range p.ports {
				if portsTaken([]hostPort{want}, map[hostPort]int{have: 1}) {
					by = append(by, nameOf(p))
				}
			}
		}
		slices.Sort(by)
		all = append(all, Finding{"NodePorts", reasonPorts.text, fmt.Sprintf("host port %d/%s is taken by %s", want.port, want.protocol, strings.Join(slices.Compact(by), ", ")),
			"free the port, or do without a hostPort"})
	}
	return all
}

func (e *explainer) room(n *node) []Finding {
	var all []Finding
	asks, have, used := &e.cand.asks, &n.allocatable, &n.used
	if used.pods+1 > have.pods {
		all = append(all, Finding{"NodeResourcesFit", reasonPods.text, fmt.Sprintf("it has %d pods and takes %d", used.pods, have.pods), "one pod has to leave the node"})
	}
	short := func(name corev1.ResourceName, ask, have, used int64, of func(*pod) int64) {
		if ask <= 0 || ask <= have-used {
			return
		}
		show := func(v int64) string { return amount(name, v) }
		f := Finding{"NodeResourcesFit", "Insufficient " + string(name), fmt.Sprintf("asks for %s %s, and %s of %s are free", show(ask), name, show(max(have-used, 0)), show(have)), ""}
		if ask > have {
			f.Change = fmt.Sprintf("the node is too small even when it is empty, by %s: ask for less, or add a larger node", show(ask-have))
			if have == 0 {
				f.Change = fmt.Sprintf("the node has no %s: it takes another node, or a device plugin that offers it", name)
			}
		} else {
			f.Change = fmt.Sprintf("needs %s more %s", show(ask-(have-used)), name)
			if top := largest(n, show, of); top != "" {
				f.Change += "; the most is asked for by " + top
			}
		}
		all = append(all, f)
	}
	short(corev1.ResourceCPU, asks.cpu, have.cpu, used.cpu, func(p *pod) int64 { return p.asks.cpu })
	short(corev1.ResourceMemory, asks.memory, have.memory, used.memory, func(p *pod) int64 { return p.asks.memory })
	short(corev1.ResourceEphemeralStorage, asks.storage, have.storage, used.storage, func(p *pod) int64 { return p.asks.storage })
	for _, name := range slices.Sorted(maps.Keys(asks.extended)) {
		if e.cluster.byDevices(n, name) {
			continue // see devices
		}
		short(name, asks.extended[name], have.extended[name], used.extended[name], func(p *pod) int64 { return p.asks.extended[name] })
	}
	return all
}

// amount shows a number as users write it: 1500m, 2Gi, 3.
func amount(name corev1.ResourceName, v int64) string {
	switch {
	case name == corev1.ResourceCPU && v%1000 == 0:
		return fmt.Sprint(v / 1000)
	case name == corev1.ResourceCPU:
		return fmt.Sprintf("%dm", v)
	case name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage, strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
		return resource.NewQuantity(v, resource.BinarySI).String()
	}
	return resource.NewQuantity(v, resource.DecimalSI).String()
}

// largest names the pods of a node that ask for most.
func largest(n *node, show func(int64) string, of func(*pod) int64) string {
	pods := slices.SortedFunc(maps.Values(n.pods), func(a, b *pod) int {
		return cmp.Or(cmp.Compare(of(b), of(a)), cmp.Compare(nameOf(a), nameOf(b)))
	})
	var all []string
	for _, p := range pods[:min(len(pods), 3)] {
		if of(p) > 0 {
			all = append(all, fmt.Sprintf("%s (%s)", nameOf(p), show(of(p))))
		}
	}
	return strings.Join(all, ", ")
}

func (e *explainer) volumes(n *node) []Finding {
	var all []Finding
	if len(e.cand.disks) > 0 && n.diskTaken(e.cand.disks) {
		all = append(all, Finding{"VolumeRestrictions", reasonDisk.text, "a pod there uses one of the pod's disks, which cannot be shared", "that pod has to go first"})
	}
	if e.cand.contended > 0 {
		all = append(all, Finding{"VolumeRestrictions", reasonExclusive.text,
			fmt.Sprintf("another pod uses claim %s, whose mode is ReadWriteOncePod", strings.Join(e.cand.exclusive, ", ")), "that pod has to go first"})
	}
	if e.cand.noVolume {
		all = append(all, Finding{"VolumeBinding", reasonNoVolume.text, "a claim of the pod is bound to a PersistentVolume that does not exist", "make the volume or the claim anew"})
	}
	for i, v := range e.cand.volumes {
		if v.Match(n.object) {
			continue
		}
		var misses []string
		if i < len(e.about.Volumes) {
			for k := range e.about.Volumes[i].Required.NodeSelectorTerms {
				misses = append(misses, missed(&e.about.Volumes[i].Required.NodeSelectorTerms[k], n))
			}
		}
		all = append(all, Finding{"VolumeBinding", reasonPVAffinity.text, "a volume of the pod cannot be reached from here: it " + strings.Join(misses, "; or "),
			"the pod has to go where its volume is: make room there"})
	}
	return all
}

// storage explains what would become of claims that have no volume yet, and of what a node can attach.
func (e *explainer) storage(n *node) []Finding {
	var all []Finding
	if a := e.cand.attach; a != nil {
		if driver := a.missing(n.name); driver != "" {
			all = append(all, Finding{"NodeVolumeLimits", e.cluster.noDriver(driver).text, "the CSI driver " + driver + " does not run on the node", "run the driver's pod there"})
		} else if !a.allows(n) {
			var limits []string
			for driver, limit := range a.limits(n.name) {
				limits = append(limits, fmt.Sprintf("%s %d", driver, limit))
			}
			slices.Sort(limits)
			all = append(all, Finding{"NodeVolumeLimits", reasonLimit.text, "the node has as many volumes attached as its drivers take: " + strings.Join(limits, ", "), "a pod with volumes has to leave the node"})
		}
	}
	if _, why := e.cand.plan(n); why != nil {
		all = append(all, e.unplanned(n, why))
	}
	for i := range e.cand.zones {
		if z := &e.cand.zones[i]; !z.allows(n) {
			all = append(all, Finding{"VolumeZone", reasonZone.text, fmt.Sprintf("volume %s is in %s=%s, the node is not", z.volume, z.key, strings.Join(z.values, " or ")),
				"the pod has to go where its volume is: make room there"})
		}
	}
	return all
}

// unplanned names the first claim for which there is no volume on a node.
func (e *explainer) unplanned(n *node, why *reason) Finding {
	f := Finding{Rule: "VolumeBinding", Reason: why.text, Why: "there are not enough volumes for all claims of the pod"}
	taken := map[string]bool{}
	for _, d := range e.cand.delayed {
		name := d.claim.Name
		if d.selected != "" && d.selected != n.name {
			f.Why, f.Change = fmt.Sprintf("a volume for claim %s is being made for node %s", name, d.selected), "the provisioner has to finish or give up"
			return f
		}
		if v := d.choose(n, taken); v != nil && d.selected == "" {
			taken[v.Name] = true
			continue
		}
		_, enough := d.room(n)
		switch size := d.claim.Spec.Resources.Requests[corev1.ResourceStorage]; {
		case d.class.Provisioner == "" || d.class.Provisioner == noProvisioner:
			f.Why = fmt.Sprintf("claim %s (%s, class %s): none of %s that would do can be reached from here, and the class makes none", name, size.String(), d.class.Name, plural(len(d.choices), "volume"))
			f.Change = fmt.Sprintf("create a PersistentVolume of class %s with %s or more whose node affinity allows %s", d.class.Name, size.String(), n.name)
		case !allowed(d.class.AllowedTopologies, n):
			f.Why, f.Change = fmt.Sprintf("claim %s: class %s makes volumes only for other nodes (allowedTopologies)", name, d.class.Name), "make room on a node that the class allows"
		case !enough:
			f.Why, f.Change = fmt.Sprintf("claim %s: %s has no %s free for this node", name, d.class.Provisioner, size.String()), "add storage there, or ask for less"
		default:
			continue
		}
		return f
	}
	return f
}

func (e *explainer) spread(n *node) []Finding {
	s := e.cand.spread
	if s == nil {
		return nil
	}
	var all []Finding
	for i := range s.rules {
		r := &s.rules[i]
		key := r.spreadConstraint.topology
		count, in := r.at(n)
		if !in {
			all = append(all, Finding{"PodTopologySpread", reasonSpreadLabel.text, fmt.Sprintf("the node lacks the label %s, by which the pod is to be spread", key),
				fmt.Sprintf("kubectl label node %s %s=...", n.name, key)})
			continue
		}
		if skew := max(count, 0) + r.self - r.minimum; skew > r.maxSkew {
			all = append(all, Finding{"PodTopologySpread", reasonSpread.text,
				fmt.Sprintf("%s=%s has %s that match %s and the least is %d: with this one the skew is %d, maxSkew is %d", key, n.labels[key],
					plural(int(max(count, 0)), "pod"), r.peers.selector, r.minimum, skew, r.maxSkew), e.spreadAdvice(r)})
		}
	}
	return all
}

// spreadAdvice names the domains that a pod would have to go to.
func (e *explainer) spreadAdvice(r *spreadRule) string {
	found := 0
	var least []string
	for value, id := range r.ids {
		if int(id) < len(r.count) && r.count[id] != none {
			found++
			if r.count[id]+r.self-r.minimum <= r.maxSkew {
				least = append(least, value)
			}
		}
	}
	slices.Sort(least)
	key := r.spreadConstraint.topology
	switch {
	case found < r.minDomains:
		return fmt.Sprintf("there are %d domains and minDomains is %d: nodes with other values of %s are needed", found, r.minDomains, key)
	case len(least) > 5:
		return fmt.Sprintf("make room on a node with %s one of %s and %d others, raise maxSkew, or use ScheduleAnyway", key, strings.Join(least[:5], ", "), len(least)-5)
	case len(least) > 0:
		return fmt.Sprintf("make room on a node with %s=%s, raise maxSkew, or use ScheduleAnyway", key, strings.Join(least, " or "))
	}
	return "raise maxSkew, or use ScheduleAnyway"
}

func (e *explainer) affinity(n *node) []Finding {
	s := e.cand.affinity
	if s == nil {
		return nil
	}
	var all []Finding
	for i := range s.with {
		t := &s.terms.with[i]
		count, in := s.with[i].at(n)
		switch {
		case !in:
			all = append(all, Finding{"InterPodAffinity", reasonAffinity.text, fmt.Sprintf("the node lacks the label %s, which the pod's affinity names", t.topology),
				fmt.Sprintf("kubectl label node %s %s=...", n.name, t.topology)})
		case count <= 0 && !(s.self && s.matched <= 0):
			all = append(all, Finding{"InterPodAffinity", reasonAffinity.text, fmt.Sprintf("affinity: no pod that matches %s%s is on a node with %s=%s", t.selector, t.where(), t.topology, n.labels[t.topology]),
				"start such a pod there first, or make room where there is one"})
		}
	}
	for i := range s.anti {
		t := &s.terms.anti[i]
		if count, _ := s.anti[i].at(n); count > 0 {
			all = append(all, Finding{"InterPodAffinity", reasonAntiAffinity.text, fmt.Sprintf("anti-affinity: %s on nodes with %s=%s (%s) match %s%s", plural(int(count), "pod"), t.topology, n.labels[t.topology],
				e.peersIn(n, t), t.selector, t.where()), fmt.Sprintf("a node with another %s is needed", t.topology)})
		}
	}
	for i := range s.guarded {
		if count, _ := s.guarded[i].at(n); count > 0 {
			key := s.guarded[i].key
			all = append(all, Finding{"InterPodAffinity", reasonGuarded.text, fmt.Sprintf("the anti-affinity of %s keeps the pod off nodes with %s=%s", e.guardsIn(n, key), key, n.labels[key]),
				fmt.Sprintf("a node with another %s is needed, or labels that those pods do not avoid", key)})
		}
	}
	return all
}

// where says in which namespaces a term looks, if it is not only the pod's own.
func (t *affinityTerm) where() string {
	switch {
	case t.spaces.selector != nil && t.spaces.selector.Empty():
		return " in any namespace"
	case t.spaces.selector != nil:
		return fmt.Sprintf(" in namespaces %s", strings.Join(append(slices.Clone(t.spaces.names), "with labels "+t.spaces.selector.String()), ", "))
	}
	return fmt.Sprintf(" in namespace %s", strings.Join(t.spaces.names, ", "))
}

// shown is how many pods are named at most.
const shown = 3

// peersIn names pods in a node's domain that a term is about.
func (e *explainer) peersIn(n *node, t *affinityTerm) string {
	return e.named(n, t.topology, func(p *pod) bool { return t.matches(e.cluster, p) })
}

// guardsIn names pods in a node's domain whose anti-affinity is about the pod.
func (e *explainer) guardsIn(n *node, key string) string {
	return e.named(n, key, func(p *pod) bool {
		return slices.ContainsFunc(p.require.anti, func(t affinityTerm) bool { return t.topology == key && t.matches(e.cluster, e.cand.pod) })
	})
}

func (e *explainer) named(n *node, key string, match func(*pod) bool) string {
	top := e.cluster.topology(key)
	var names []string
	more := 0
	for _, other := range e.cluster.order {
		if top.of[other.slot] != top.of[n.slot] {
			continue
		}
		for _, p := range other.pods {
			switch {
			case !match(p):
			case len(names) < shown:
				names = append(names, nameOf(p))
			default:
				more++
			}
		}
	}
	slices.Sort(names)
	if more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

func (e *explainer) features(n *node) []Finding {
	if e.cand.featuresOn(n) {
		return nil
	}
	return []Finding{{"NodeDeclaredFeatures", reasonFeatures.text, "the pod needs what the node does not declare: " + strings.Join(e.cand.pod.features, ", "),
		"a node with these features is needed (status.declaredFeatures)"}}
}
