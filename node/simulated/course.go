package simulated

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
)

// nodeLife is the course of a node: a stage that is to come, in force, or neither.
type nodeLife struct {
	drawn   bool
	inForce bool
	stage   *NodeStage
	due     time.Time // when the stage begins, or ends if it is in force
	forever bool
	lasts   time.Duration
	visit   int
	boots   int
	fired   map[*NodeStage]int
}

// mute tells whether a node does nothing at present, because it failed or because of a stage.
func (a *Agent) mute(node string) bool {
	n := a.nodes[node]
	return n != nil && n.silent.Load() || a.down(node)
}

// play has the stages of a node looked at.
func (a *Agent) play(ctx context.Context, node string) {
	if a.cfg.Stages != nil && len(a.cfg.Stages.Nodes) > 0 {
		a.enqueue(ctx, types.NamespacedName{Name: node})
	}
}

// passNode begins or ends the stage of a node if its time has come.
func (a *Agent) passNode(ctx context.Context, n *simNode) error {
	if a.down(n.name) {
		return nil // it is looked at when it has recovered
	}
	l := &n.life
	key := types.NamespacedName{Name: n.name}
	for {
		now := a.cfg.Now()
		if !l.drawn {
			object, ok := client.Nodes.Get(a.cfg.Client.Snapshot(), "", n.name)
			if !ok {
				return nil
			}
			l.visit++
			stage, after, lasts := a.cfg.Stages.node(object, l.visit, func(s *NodeStage) int { return l.fired[s] })
			l.drawn, l.stage, l.due, l.lasts = true, stage, now.Add(after), lasts
			l.forever = stage != nil && stage.For == (Delay{})
		}
		switch {
		case l.stage == nil, l.inForce && l.forever:
			return nil
		case l.due.After(now):
			a.later(key, l.due)
			return nil
		}
		if l.inForce {
			if err := a.end(ctx, n, now); err != nil {
				return err
			}
			l.inForce, l.drawn = false, false
			continue
		}
		if err := a.begin(ctx, n, now); err != nil {
			return err
		}
		if l.fired == nil {
			l.fired = map[*NodeStage]int{}
		}
		l.fired[l.stage]++
		l.inForce, l.due = true, now.Add(l.lasts)
	}
}

// begin puts the stage of a node in force.
func (a *Agent) begin(ctx context.Context, n *simNode, now time.Time) error {
	s := n.life.stage
	switch s.Do {
	case NodeNotReady:
		c := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: s.Reason, Message: s.Message}
		if c.Reason == "" {
			c.Reason = "KubeletNotReady"
		}
		if c.Message == "" {
			c.Message = "simulated: the stage " + s.Name + " is in force"
		}
		return a.changeNode(ctx, n, "status", func(node *corev1.Node) { setNodeCondition(node, c, now) })
	case NodeCondition:
		c := corev1.NodeCondition{Type: s.Condition, Status: s.Status, Reason: s.Reason, Message: s.Message}
		return a.changeNode(ctx, n, "status", func(node *corev1.Node) { setNodeCondition(node, c, now) })
	case NodeTaint:
		return a.changeNode(ctx, n, "", func(node *corev1.Node) {
			without(node, s.Taints)
			for _, t := range s.Taints {
				if t.Effect == corev1.TaintEffectNoExecute {
					at := metav1.NewTime(now.Truncate(time.Second))
					t.TimeAdded = &at
				}
				node.Spec.Taints = append(node.Spec.Taints, t)
			}
		})
	case NodeSilent, NodeReboot:
		n.silent.Store(true)
	}
	return nil
}

// end makes a node healthy again.
func (a *Agent) end(ctx context.Context, n *simNode, now time.Time) error {
	s := n.life.stage
	want := a.node(n, metav1.NewTime(now.Truncate(time.Second))).Status
	healthy := func(node *corev1.Node) {
		for _, c := range want.Conditions {
			setNodeCondition(node, c, now)
		}
	}
	switch s.Do {
	case NodeTaint:
		return a.changeNode(ctx, n, "", func(node *corev1.Node) { without(node, s.Taints) })
	case NodeCondition:
		return a.changeNode(ctx, n, "status", func(node *corev1.Node) {
			node.Status.Conditions = slices.DeleteFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == s.Condition && !slices.ContainsFunc(want.Conditions, func(w corev1.NodeCondition) bool { return w.Type == c.Type })
			})
			healthy(node)
		})
	case NodeSilent, NodeReboot:
		if s.Do == NodeReboot {
			n.life.boots++
		}
		n.silent.Store(false)
		if err := a.renewLease(ctx, n); err != nil {
			n.silent.Store(true)
			return err
		}
	}
	err := a.changeNode(ctx, n, "status", func(node *corev1.Node) {
		healthy(node)
		node.Status.NodeInfo.BootID = n.bootID()
	})
	if err != nil || s.Do == NodeNotReady {
		return err
	}
	a.mu.Lock()
	if s.Do == NodeReboot {
		n.booted = now
	}
	a.recovered = append(a.recovered, n.name)
	a.mu.Unlock()
	a.hint()
	return nil
}

// strip takes taints off a node that a stage of an earlier run left.
func (a *Agent) strip(ctx context.Context, n *simNode) error {
	if a.cfg.Stages == nil {
		return nil
	}
	var all []corev1.Taint
	for i := range a.cfg.Stages.Nodes {
		all = append(all, a.cfg.Stages.Nodes[i].Taints...)
	}
	if len(all) == 0 {
		return nil
	}
	return a.changeNode(ctx, n, "", func(node *corev1.Node) { without(node, all) })
}

// changeNode edits a node's object; one that is gone stays so.
func (a *Agent) changeNode(ctx context.Context, n *simNode, subresource string, change func(*corev1.Node)) error {
	for {
		object, ok := client.Nodes.Get(a.cfg.Client.Snapshot(), "", n.name)
		if !ok {
			return nil
		}
		out := object.DeepCopy()
		change(out)
		_, err := a.cfg.Client.Update(ctx, client.Nodes.Name, out, client.WriteOptions{Subresource: subresource, FieldManager: fieldManager})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
	}
}

// without takes taints off, by key and effect.
func without(node *corev1.Node, taints []corev1.Taint) {
	node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, func(t corev1.Taint) bool {
		return slices.ContainsFunc(taints, func(o corev1.Taint) bool { return o.Key == t.Key && o.Effect == t.Effect })
	})
}

func setNodeCondition(node *corev1.Node, c corev1.NodeCondition, now time.Time) {
	at := metav1.NewTime(now.Truncate(time.Second))
	c.LastHeartbeatTime, c.LastTransitionTime = at, at
	for i := range node.Status.Conditions {
		old := &node.Status.Conditions[i]
		if old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	node.Status.Conditions = append(node.Status.Conditions, c)
}

// bootID names the run of a node since its start.
func (n *simNode) bootID() string { return fmt.Sprintf("%s-%d", n.name, n.life.boots) }
