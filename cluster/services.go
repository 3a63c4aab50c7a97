package cluster

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/linux/announce"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network/balance"
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
	// LoadBalancerPool are the ranges that Services of type LoadBalancer get addresses from, with commas between; nodes
	// announce them. Empty: such Services have the addresses of the nodes.
	LoadBalancerPool string
}

func (s Services) check() error {
	if _, err := balance.ParsePool(s.LoadBalancerPool); err != nil {
		return fmt.Errorf("load-balancer-pool: %w", err)
	}
	return nil
}

// balancing says which addresses load balancers have. Simulated nodes bear none.
func (c *Cluster) balancing() (balance.Config, error) {
	pool, err := balance.ParsePool(c.cfg.Services.LoadBalancerPool)
	if err != nil {
		return balance.Config{}, fmt.Errorf("load-balancer-pool: %w", err)
	}
	return balance.Config{Pool: pool, Bears: func(n *corev1.Node) bool { return n.Labels[simulatedKey] == "" }}, nil
}

// addBalancers gives the engine the loops of load balancers. Without a real node there is nobody who could bear the nodes' addresses;
// those of a pool are given all the same, so that who watches for them can be tried.
func (c *Cluster) addBalancers() (stop func(context.Context) error, err error) {
	stop = func(context.Context) error { return nil }
	cfg, err := c.balancing()
	if err != nil || !c.cfg.Nodes.Real && len(cfg.Pool) == 0 {
		return stop, err
	}
	c.engine.Add(balance.Loop(cfg))
	if !c.cfg.Nodes.Real || len(cfg.Pool) == 0 {
		return stop, nil
	}
	host, err := c.host()
	if err != nil {
		return stop, err
	}
	announcer, err := announce.Open(host, c.log)
	if err != nil {
		c.log.Warn("addresses of load balancers are not announced", "error", err)
		return stop, nil
	}
	c.engine.Add(balance.AnnounceLoop(cfg, c.cfg.NodeName, announcer))
	return func(context.Context) error { return announcer.Close() }, nil
}
