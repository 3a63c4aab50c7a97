package cluster

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network/service"
)

// addServices makes the table that Services are balanced by, and gives the engine the loop that keeps it. stop closes what the
// loop has open; the rules stay until the network goes.
func (c *Cluster) addServices() (stop func(context.Context) error, err error) {
	if c.balancer, err = nft.NewBalancer(tableName(c.state.identity.ID), c.podRanges(), c.serviceRanges()); err != nil {
		return nil, err
	}
	health := &service.HealthPorts{Log: c.log}
	c.engine.Add(service.Loop(c.balancer, health, service.Options{
		NodeName: c.cfg.NodeName, Served: c.serviceIPs(dnsIndex), ExternalIPs: c.cfg.Services.ExternalIPs,
	}))
	return health.Close, nil
}

// leave waits until Services send nobody to a deleted pod any more.
func (c *Cluster) leave(ctx context.Context, pod *corev1.Pod) {
	rev, err := service.Leaving(ctx, c.client, pod)
	if err == nil {
		err = c.engine.WaitForLoops(ctx, rev, service.LoopName)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		c.log.Debug("a pod ends while Services may still lead to it", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	}
}

// Services says how Services are made reachable.
type Services struct {
	// ExternalIPs has spec.externalIPs of Services followed, which lets whoever may write a Service take over traffic to any address.
	ExternalIPs bool
}
