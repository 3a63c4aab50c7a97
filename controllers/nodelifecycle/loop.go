package nodelifecycle

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Loops are the node lifecycle controller, whose keys are nodes, and the taint eviction
// controller, whose keys are pods.
func Loops(cfg Config) []reconcile.Loop {
	cfg = cfg.withDefaults()
	seen := &sightings{}
	return []reconcile.Loop{{
		Name:           "node-lifecycle-controller",
		ServiceAccount: "node-controller",
		Source:         "node-controller",
		Workers:        4,
		Inputs:         []reconcile.Input{{Resource: client.Nodes.Name, Keys: ofNode}},
		Outputs: []reconcile.Output{
			{Resource: client.Nodes.Name, Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.Nodes.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			node, ok := client.Nodes.Get(s, "", key.Name)
			if !ok || node.DeletionTimestamp != nil {
				return reconcile.Plan{}, nil
			}
			return planNode(s, node, cfg, now), nil
		},
	}, {
		Name:    "taint-eviction-controller",
		Workers: 8,
		Inputs: []reconcile.Input{
			{Resource: client.Pods.Name, Keys: ofPod},
			{Resource: client.Nodes.Name, Keys: ofTaints},
		},
		Outputs: []reconcile.Output{
			{Resource: client.Pods.Name, Verbs: []reconcile.Verb{reconcile.Delete}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, now time.Time) (reconcile.Plan, error) {
			return planEviction(s, key, now, seen), nil
		},
	}}
}

// ofNode gives the node, and if it became ready or stopped being so, all nodes that are not: whether
// their pods are evicted depends on there being a ready one. Renewed leases wake nobody: the pass that the last
// one put off looks at the lease when it comes.
func ofNode(s store.Snapshot, ev store.Event) []reconcile.Key {
	node := ev.Entry.Object.(*corev1.Node)
	if ev.Prev == nil && !ev.Deleted {
		if readiness(node) != corev1.ConditionTrue {
			return []reconcile.Key{{Name: node.Name}}
		}
		return append(notReady(s), reconcile.Key{Name: node.Name})
	}
	was := node
	if ev.Prev != nil {
		was = ev.Prev.Object.(*corev1.Node)
	}
	switch {
	case ev.Deleted && readiness(was) == corev1.ConditionTrue:
		return notReady(s)
	case ev.Deleted:
		return nil
	case readiness(was) != readiness(node):
		return append(notReady(s), reconcile.Key{Name: node.Name})
	case was.Spec.Unschedulable != node.Spec.Unschedulable, !equality.Semantic.DeepEqual(was.Spec.Taints, node.Spec.Taints),
		!equality.Semantic.DeepEqual(was.Status.Conditions, node.Status.Conditions):
		return []reconcile.Key{{Name: node.Name}}
	}
	return nil
}

func notReady(s store.Snapshot) []reconcile.Key {
	var keys []reconcile.Key
	for node := range client.Nodes.List(s, "") {
		if readiness(node) != corev1.ConditionTrue {
			keys = append(keys, reconcile.Key{Name: node.Name})
		}
	}
	return keys
}

// ofPod gives a pod on a node that evicts, when it comes there or its tolerations change.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if ev.Deleted || pod.Spec.NodeName == "" {
		return nil
	}
	if ev.Prev != nil {
		was := ev.Prev.Object.(*corev1.Pod)
		if was.Spec.NodeName == pod.Spec.NodeName && equality.Semantic.DeepEqual(was.Spec.Tolerations, pod.Spec.Tolerations) {
			return nil
		}
	}
	if node, ok := client.Nodes.Get(s, "", pod.Spec.NodeName); !ok || len(noExecute(node)) == 0 {
		return nil
	}
	return []reconcile.Key{{Namespace: pod.Namespace, Name: pod.Name}}
}

// ofTaints gives the pods of a node whose evicting taints changed.
func ofTaints(s store.Snapshot, ev store.Event) []reconcile.Key {
	if ev.Deleted {
		return nil
	}
	node := ev.Entry.Object.(*corev1.Node)
	var before []corev1.Taint
	if ev.Prev != nil {
		before = noExecute(ev.Prev.Object.(*corev1.Node))
	}
	if equality.Semantic.DeepEqual(before, noExecute(node)) {
		return nil
	}
	var keys []reconcile.Key
	for pod := range client.Pods.Index(s, "node", node.Name) {
		keys = append(keys, reconcile.Key{Namespace: pod.Namespace, Name: pod.Name})
	}
	return keys
}
