package simulated

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

// Fail has a node fall silent, as one whose machine is off: its lease is not renewed, and nothing is reported of its pods. What
// the cluster makes of that is for the cluster to say.
func (a *Agent) Fail(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	if n == nil {
		return fmt.Errorf("there is no simulated node %s", name)
	}
	n.down = true
	return nil
}

// Recover has a node that failed report again: its lease and its conditions at once, and then what there is to say of its
// pods.
func (a *Agent) Recover(ctx context.Context, name string) error {
	a.mu.Lock()
	n := a.nodes[name]
	a.mu.Unlock()
	if n == nil {
		return fmt.Errorf("there is no simulated node %s", name)
	}
	if err := a.renewLease(ctx, n); err != nil {
		return err
	}
	now := a.cfg.Now()
	_, err := client.Mutate(ctx, a.cfg.Client, client.Nodes, "", name, "status", func(node *corev1.Node) bool {
		for _, fresh := range a.node(n, metav1.NewTime(now.Truncate(time.Second))).Status.Conditions {
			for i := range node.Status.Conditions {
				if have := &node.Status.Conditions[i]; have.Type == fresh.Type {
					if have.Status == fresh.Status {
						fresh.LastTransitionTime = have.LastTransitionTime
					}
					*have = fresh
				}
			}
		}
		return true
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	a.mu.Lock()
	n.down = false
	a.recovered = append(a.recovered, name)
	a.mu.Unlock()
	a.hint()
	return nil
}

// down tells whether a node has failed.
func (a *Agent) down(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	return n != nil && n.down
}

// resume takes up the pods of nodes that have recovered.
func (a *Agent) resume(ctx context.Context) {
	a.mu.Lock()
	names := a.recovered
	a.recovered = nil
	a.mu.Unlock()
	if len(names) == 0 {
		return
	}
	snap := a.cfg.Client.Snapshot()
	for _, name := range names {
		a.play(ctx, name)
		for pod := range client.Pods.Index(snap, "node", name) {
			a.touch(ctx, pod)
		}
	}
}

// hint has the agent look at its deadlines and its nodes again.
func (a *Agent) hint() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
