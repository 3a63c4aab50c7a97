package scheduler

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Report is all that there is to say about where a pod is, or why it is nowhere.
type Report struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is "Scheduled", "Pending", "Gated", "Terminating" or "Finished".
	State string `json:"state"`
	// Node is where the pod is, Nominated where room is made for it.
	Node      string `json:"node,omitempty"`
	Nominated string `json:"nominatedNode,omitempty"`
	// Decided is when the PodScheduled condition last changed, Said its message: the scheduler's last word.
	Decided *time.Time `json:"decidedAt,omitempty"`
	Said    string     `json:"said,omitempty"`
	// Now is what the scheduler would say to a pod without a node now; "" if there is a node for it.
	Now string `json:"now,omitempty"`
	// Pod is what concerns the pod as a whole: gates, claims, the name of its scheduler.
	Pod []Finding `json:"pod,omitempty"`
	// Domains are the spread constraints, with the matching pods of each domain.
	Domains []Domains `json:"domains,omitempty"`
	// Nodes are those nearest to taking the pod first.
	Nodes []NodeReport `json:"nodes,omitempty"`
	// Kubelet is what the node says of a pod that it has: conditions that are not met, containers that wait.
	Kubelet []string `json:"kubelet,omitempty"`
}

// Finding is what one rule says against a pod, and what would have to change.
type Finding struct {
	// Rule is the name of upstream's plugin.
	Rule string `json:"rule"`
	// Reason is as the scheduler's message counts it.
	Reason string `json:"reason,omitempty"`
	// Why is the same with names and numbers.
	Why string `json:"why"`
	// Change says what would have to change.
	Change string `json:"change,omitempty"`
}

// NodeReport is what one node says to the pod.
type NodeReport struct {
	Node string `json:"node"`
	// Fits is set if no rule refuses the node.
	Fits     bool      `json:"fits"`
	Findings []Finding `json:"findings,omitempty"`
	// Total and Scores are what the node is worth beside the others that fit, weighted as the scheduler adds it up.
	Total  int64   `json:"score,omitempty"`
	Scores []Score `json:"scores,omitempty"`
	// Preemption says what removing less important pods would bring, for a pending pod.
	Preemption string `json:"preemption,omitempty"`
	// Victims are the pods that preemption would remove ("namespace/name").
	Victims []string `json:"victims,omitempty"`
	// Nominated are pods for which room is kept on the node ("namespace/name").
	Nominated []string `json:"nominated,omitempty"`
}

// Score is a plugin's share in the score of a node.
type Score struct {
	Rule  string `json:"rule"`
	Score int64  `json:"score"`
}

// Domains is one spread constraint of the pod.
type Domains struct {
	Topology string `json:"topologyKey"`
	MaxSkew  int32  `json:"maxSkew"`
	Hard     bool   `json:"hard"`
	// Selector is of the pods that are counted.
	Selector string `json:"selector"`
	// Counts are by value of the label. Least is the smallest of them, 0 if there are fewer than minDomains.
	Counts map[string]int `json:"counts"`
	Least  int            `json:"least"`
}

// Why says, node by node and rule by rule, why a pod is where it is or pending, and what would have
// to change. It is a pure function of the snapshot, which needs to hold nodes, pods, namespaces and what the pod names (claims,
// volumes, classes, services, its controller, disruption budgets); what it lacks is taken not to exist. A pod that has a node is looked at
// as if it had none yet.
//
// It costs one look at everything in the snapshot.
func Why(snap store.Snapshot, object *corev1.Pod) *Report {
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	s.load(snap)
	c := s.cluster
	c.budgets = func() Budgets { return slices.Collect(client.PodDisruptionBudgets.List(snap, "")) }
	r := &Report{Namespace: object.Namespace, Name: object.Name, State: state(object), Node: object.Spec.NodeName, Nominated: object.Status.NominatedNodeName}
	if p := condition(object, corev1.PodScheduled); p != nil {
		r.Said = p.Message
		if !p.LastTransitionTime.IsZero() {
			r.Decided = &p.LastTransitionTime.Time
		}
	}
	if r.State == "Finished" {
		r.Kubelet = reported(object)
		return r
	}
	c.Forget(object.UID)
	free := object
	if object.Spec.NodeName != "" {
		free = object.DeepCopy()
		free.Spec.NodeName = ""
		r.Kubelet = reported(object)
	} else if object.Status.NominatedNodeName != "" {
		c.Nominate(object, object.Status.NominatedNodeName)
	}
	p := newPod(free)
	about := s.circumstances(snap, p)
	if n := about.needs; n != nil && n.special != nil && n.special.stale != nil && object.Spec.NodeName != "" {
		own := n.special.stale // which it has, and not what is left of an attempt
		n.special = nil
		s.need(n, own)
	}
	r.Pod = ofPod(snap, p, &about)
	if len(c.order) == 0 {
		r.Pod = append(r.Pod, Finding{Rule: "Nodes", Why: "the cluster has no node", Change: "add one"})
	}
	e := &explainer{cluster: c, cand: c.candidate(p, &about), about: &about, pending: r.State == "Pending"}
	r.Domains = e.domains()
	r.Nodes = e.nodes()
	if r.State == "Pending" {
		r.Now = c.schedule(p, &about).Message
	}
	return r
}

func state(p *corev1.Pod) string {
	switch {
	case terminal(p):
		return "Finished"
	case p.Spec.NodeName != "":
		return "Scheduled"
	case p.DeletionTimestamp != nil:
		return "Terminating"
	case len(p.Spec.SchedulingGates) > 0:
		return "Gated"
	}
	return "Pending"
}

// reported is what the kubelet says of a pod that is not ready.
func reported(p *corev1.Pod) []string {
	var lines []string
	if p.Status.Phase == corev1.PodFailed || p.Status.Reason != "" {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("phase %s: %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)))
	}
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		wanted := c.Type != corev1.DisruptionTarget && c.Type != corev1.PodResizePending && c.Type != corev1.PodResizeInProgress
		if (c.Status == corev1.ConditionTrue) != wanted {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("condition %s is %s: %s %s", c.Type, c.Status, c.Reason, c.Message)))
		}
	}
	for _, all := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range all {
			switch s := &all[i]; {
			case s.State.Waiting != nil:
				lines = append(lines, strings.TrimRight(fmt.Sprintf("container %s waits: %s %s", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message), " "))
			case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
				lines = append(lines, fmt.Sprintf("container %s ended: %s, exit code %d", s.Name, s.State.Terminated.Reason, s.State.Terminated.ExitCode))
			}
		}
	}
	return lines
}

// ofPod finds what keeps the pod off every node, whatever the nodes are like.
func ofPod(snap store.Snapshot, p *pod, about *Circumstances) []Finding {
	var all []Finding
	spec := &p.object.Spec
	for _, gate := range spec.SchedulingGates {
		all = append(all, Finding{"SchedulingGates", "Scheduling is blocked due to non-empty scheduling gates",
			fmt.Sprintf("scheduling gate %q holds the pod back", gate.Name), "whoever set the gate has to take it out of spec.schedulingGates"})
	}
	if spec.SchedulerName != Name && spec.SchedulerName != "" {
		f := Finding{Rule: "SchedulerName", Why: fmt.Sprintf("the pod asks for the scheduler %q, whose rules may differ; what follows is what %q would say", spec.SchedulerName, Name)}
		if condition(p.object, corev1.PodScheduled) == nil && p.object.Spec.NodeName == "" {
			f.Why += "; nobody of that name has looked at the pod yet"
			f.Change = fmt.Sprintf("run such a scheduler or give this one a profile of that name (--scheduler-config), or create the pod with schedulerName %q", Name)
		}
		all = append(all, f)
	}
	if p.pinned && len(p.names) == 0 {
		all = append(all, Finding{"NodeAffinity", "pod affinity terms conflict", "the terms of its node affinity ask for different nodes by name", "make them agree"})
	}
	all = append(all, claimFindings(snap, p.object, about)...)
	if about.Problem != "" && !about.claimProblem {
		f := Finding{Rule: "VolumeBinding", Reason: about.Problem, Why: about.Problem}
		f.Change = claimAdvice(snap, p.object)
		all = append(all, f)
	}
	return all
}

// claimAdvice says what would bring the pod's claims forward.
func claimAdvice(snap store.Snapshot, p *corev1.Pod) string {
	for i := range p.Spec.Volumes {
		name := claimOf(p, &p.Spec.Volumes[i])
		if name == "" {
			continue
		}
		claim, ok := client.PersistentVolumeClaims.Get(snap, p.Namespace, name)
		switch {
		case !ok:
			return fmt.Sprintf("create the PersistentVolumeClaim %s in namespace %s", name, p.Namespace)
		case claim.Status.Phase == corev1.ClaimLost:
			return fmt.Sprintf("the volume %s is gone: restore it, or make claim %s anew", claim.Spec.VolumeName, name)
		case claim.DeletionTimestamp != nil:
			return fmt.Sprintf("claim %s goes away: make it anew and then the pod", name)
		case claim.Spec.VolumeName == "":
			class := "no storage class"
			if claim.Spec.StorageClassName != nil && *claim.Spec.StorageClassName != "" {
				class = "storage class " + *claim.Spec.StorageClassName
			}
			size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
			return fmt.Sprintf("claim %s (%s, %s) has to be bound first: its provisioner or a matching PersistentVolume is missing; see `kubectl describe pvc %s -n %s`",
				name, size.String(), class, name, p.Namespace)
		}
	}
	return ""
}

// domains tells the counts of every spread constraint.
func (e *explainer) domains() []Domains {
	var all []Domains
	for _, hard := range []bool{true, false} {
		s := e.cluster.spreadFor(e.cand.pod, hard)
		if s == nil {
			continue
		}
		for i := range s.rules {
			rule := &s.rules[i]
			rule.findMinimum()
			d := Domains{Topology: rule.spreadConstraint.topology, MaxSkew: rule.maxSkew, Hard: hard, Selector: rule.peers.selector.String(), Counts: map[string]int{}}
			for value, id := range rule.ids {
				if int(id) < len(rule.count) && rule.count[id] != none {
					d.Counts[value] = int(rule.count[id])
				}
			}
			if len(d.Counts) > 0 {
				d.Least = int(rule.minimum)
			}
			all = append(all, d)
		}
	}
	return all
}

// nodes reports of every node: those that fit first, the best before the others, and then those with the fewest
// obstacles.
func (e *explainer) nodes() []NodeReport {
	c := e.cluster
	reports := make([]NodeReport, 0, len(c.order))
	var fit []*node
	budgets := Budgets(nil)
	if c.budgets != nil && e.pending {
		budgets = c.budgets()
	}
	for _, n := range c.order {
		r := NodeReport{Node: n.name, Findings: e.findings(n)}
		for uid, other := range n.nominated {
			if uid != e.cand.object.UID {
				r.Nominated = append(r.Nominated, nameOf(other))
			}
		}
		slices.Sort(r.Nominated)
		r.Fits = len(r.Findings) == 0 && e.about.Problem == ""
		switch {
		case r.Fits:
			fit = append(fit, n)
		case e.pending:
			e.preemption(&r, n, budgets)
		}
		reports = append(reports, r)
	}
	e.score(fit, reports)
	slices.SortStableFunc(reports, func(a, b NodeReport) int {
		return cmp.Or(cmp.Compare(len(a.Findings), len(b.Findings)), cmp.Compare(b.Total, a.Total))
	})
	return reports
}

// score gives the nodes that fit what each plugin thinks they are worth.
func (e *explainer) score(fit []*node, reports []NodeReport) {
	if len(fit) == 0 {
		return
	}
	c := e.cluster
	c.scores(e.cand, fit) // makes room
	shares := make([][]int64, len(scorings))
	for i := range scorings {
		shares[i] = make([]int64, len(fit))
		scorings[i].add(c, e.cand, fit, shares[i], scorings[i].weight)
	}
	next := 0
	for i := range reports {
		if !reports[i].Fits {
			continue
		}
		for k := range scorings {
			if share := shares[k][next]; share != 0 {
				reports[i].Scores = append(reports[i].Scores, Score{scorings[k].name, share})
				reports[i].Total += share
			}
		}
		next++
	}
}

// preemption says what the removal of less important pods would bring.
func (e *explainer) preemption(r *NodeReport, n *node, budgets Budgets) {
	if policy := e.cand.object.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		r.Preemption = "the pod has preemptionPolicy Never"
		return
	}
	reasons := e.cluster.fits(e.cand, n, nil)
	if len(reasons) == 0 {
		return
	}
	for _, why := range reasons {
		if why.final {
			r.Preemption = "removing pods would not help"
			return
		}
	}
	v, why := e.cluster.victimsOn(e.cand, n, budgets)
	if v == nil {
		lower := 0
		for _, p := range n.pods {
			if p.priority < e.cand.priority {
				lower++
			}
		}
		if lower == 0 {
			r.Preemption = fmt.Sprintf("no pod there has a priority below %d", e.cand.priority)
			return
		}
		r.Preemption = fmt.Sprintf("not enough: without all %s of priority below %d it still says %s", plural(lower, "pod"), e.cand.priority, texts(why))
		return
	}
	for _, p := range v.pods {
		r.Victims = append(r.Victims, nameOf(p))
	}
	r.Preemption = fmt.Sprintf("removing %s would make room", plural(len(v.pods), "pod"))
	if v.violations > 0 {
		r.Preemption += fmt.Sprintf(", against a disruption budget for %s", plural(v.violations, "pod"))
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func texts(reasons []*reason) string {
	var all []string
	for _, r := range reasons {
		all = append(all, r.text)
	}
	return strings.Join(all, ", ")
}

func nameOf(p *pod) string { return p.object.Namespace + "/" + p.object.Name }
