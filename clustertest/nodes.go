package clustertest

import (
	"context"
	"errors"
)

var errNoNodes = errors.New("clustertest: the cluster has no nodes")

// StopNode has a simulated node fall silent, as one whose machine is switched off: it renews its lease no more and
// reports nothing of its pods. After the grace period of 50 seconds the cluster takes it for unreachable, and after
// 300 more it evicts the pods that say nothing else in their tolerations.
func (c *Cluster) StopNode(name string) error {
	nodes := c.inner.Nodes()
	if nodes == nil {
		return errNoNodes
	}
	return nodes.Fail(name)
}

// StartNode has a node that was stopped report again.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	nodes := c.inner.Nodes()
	if nodes == nil {
		return errNoNodes
	}
	return nodes.Recover(ctx, name)
}
