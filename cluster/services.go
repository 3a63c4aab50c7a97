package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/announce"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/mesh/gateway"
	"coracle.dev/coracle/network/balance"
	"coracle.dev/coracle/network/service"
	"coracle.dev/coracle/reconcile"
)

// addServices makes the table that Services are balanced by, and gives the engine the loops that keep it and that answer for the
// addresses of load balancers. stop closes what the
// loop has open; the rules stay until the network goes.
func (c *Cluster) addServices() (stop func(context.Context) error, err error) {
	if c.balancer, err = nft.NewBalancer(tableName(c.state.identity.ID), c.podRanges(), c.serviceRanges()); err != nil {
		return nil, err
	}
	health := &service.HealthPorts{Log: c.log, Node: c.cfg.NodeName, Event: func(ev reconcile.Event) {
		user := client.User{Name: "system:node:" + c.cfg.NodeName, Groups: []string{client.GroupNodes, client.GroupAuthenticated}}
		c.engine.Recorder().Record(user, corev1.EventSource{Component: "kube-proxy", Host: c.cfg.NodeName}, ev)
	}}
	c.engine.Add(service.Loop(c.balancer, health, service.Options{
		NodeName: c.cfg.NodeName, Served: c.serviceIPs(dnsIndex), ExternalIPs: c.cfg.Services.ExternalIPs,
	}))
	announcer := &announcing{log: c.log}
	c.engine.Add(balance.AnnounceLoop(balance.Config{Bears: bears}, c.cfg.NodeName, announcer))
	return func(ctx context.Context) error { return errors.Join(health.Close(ctx), announcer.close()) }, nil
}

// arrival is how long a deleted pod has to accept the connections that were led to it just before the rules changed: what a server has
// not accepted when it closes its port is reset. Nothing tells when that is done.
const arrival = 200 * time.Millisecond

// leave waits until Services, gateways and Ingresses send nobody to a deleted pod any more, and who was on the way has arrived.
func (c *Cluster) leave(ctx context.Context, pod *corev1.Pod) {
	rev, led, err := service.Leaving(ctx, c.client, pod)
	if err == nil {
		err = c.engine.WaitForLoops(ctx, rev, service.LoopName, gateway.LoopName)
	}
	if err == nil && led {
		select {
		case <-time.After(arrival):
		case <-ctx.Done():
		}
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

// addBalancers gives the engine the controller of load balancers. Without a real node there is nobody who could bear the nodes'
// addresses; those of a pool are given all the same, so that who watches for them can be tried.
func (c *Cluster) addBalancers() (stop func(context.Context) error, err error) {
	stop = func(context.Context) error { return nil }
	pool, err := balance.ParsePool(c.cfg.Services.LoadBalancerPool)
	if err != nil || !c.cfg.Nodes.Real && len(pool) == 0 {
		return stop, err
	}
	c.engine.Add(balance.Loop(balance.Config{Pool: pool, Bears: bears}))
	return stop, nil
}

// bears tells whether a node may answer for addresses: simulated ones do not.
func bears(n *corev1.Node) bool { return n.Labels[simulatedKey] == "" }

// announcing answers for the addresses of load balancers at this node's link, once there are any. It is used by one loop.
type announcing struct {
	log  *slog.Logger
	open *announce.Announcer
	told bool // that it cannot be done
}

// Set implements balance.Announcing. A machine without a link of Ethernet has nobody to announce to.
func (a *announcing) Set(addrs []netip.Addr) error {
	if a.open == nil {
		if len(addrs) == 0 || a.told {
			return nil
		}
		host, err := link.HostAddr()
		if err == nil {
			a.open, err = announce.Open(host, a.log)
		}
		if err != nil {
			a.told = true
			a.log.Warn("addresses of load balancers are not announced", "error", err)
			return nil
		}
	}
	return a.open.Set(addrs)
}

func (a *announcing) close() error {
	if a.open == nil {
		return nil
	}
	return a.open.Close()
}
