package cluster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/mesh/gateway"
	"coracle.dev/coracle/mesh/proxy"
	"coracle.dev/coracle/mesh/table"
	"coracle.dev/coracle/network/overlay"
	"coracle.dev/coracle/network/policy"
)

// gatewayDrain is how long requests may go on when the cluster stops.
const gatewayDrain = 5 * time.Second

// failures sorts by their ids the listeners that could not be opened.
func failures(err error) map[string]error {
	all, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	out := map[string]error{}
	for _, e := range all.Unwrap() {
		var l *proxy.ListenError
		if errors.As(e, &l) {
			out[l.ID] = l.Err
		}
	}
	return out
}

// addGateways gives the engine the loops of Gateway API and Ingress. On a machine that runs containers the proxy serves what they
// make; elsewhere they only say that nobody does. stop ends what is served and takes the addresses back.
func (c *Cluster) addGateways() (stop func(context.Context) error, err error) {
	c.engine.Add(gateway.ClassLoop())
	var cfg gateway.Config
	stop = func(context.Context) error { return nil }
	if c.cfg.Nodes.Real {
		if cfg.Nodes, err = link.HostAddrs(c.serviceRanges()); err != nil {
			return nil, err
		}
		for _, r := range c.podRanges() {
			if pool := overlay.GatewayBlock(r); pool.IsValid() {
				cfg.Pools = append(cfg.Pools, pool)
			}
		}
		if cfg.Loopback, err = loopbacks(); err != nil {
			return nil, err
		}
		source, release, err := c.gatewaySource()
		if err != nil {
			return nil, err
		}
		p := proxy.New(proxy.Config{Log: c.log, Source: source})
		serve := func(t *table.Table) map[string]error { return failures(p.Apply(t)) }
		cfg.Publisher = &gateway.Publisher{Client: c.client, Serve: serve, Claim: link.AddAddress, Release: link.RemoveAddress}
		stop = func(ctx context.Context) error {
			err := cfg.Publisher.Close()
			ctx, cancel := context.WithTimeout(ctx, gatewayDrain)
			defer cancel()
			p.Close(ctx)
			return errors.Join(err, release())
		}
	}
	c.engine.Add(gateway.Loop(cfg), gateway.IngressLoop(cfg))
	return stop, nil
}

// gatewaySource has gateways speak to pods from an address that network policies know them by, and not from the node's, of which they have
// no say. What is not in the cluster's pod ranges is spoken to as by any process of the node.
func (c *Cluster) gatewaySource() (source func(netip.Addr) netip.Addr, release func() error, err error) {
	var own []netip.Addr
	release = func() error {
		var errs []error
		for _, a := range own {
			errs = append(errs, link.RemoveAddress(a))
		}
		return errors.Join(errs...)
	}
	for _, block := range c.nodeBlocks() {
		a := policy.GatewayAddress(block)
		if err := link.AddAddress(a); err != nil {
			return nil, nil, errors.Join(err, release())
		}
		own = append(own, a)
	}
	ranges := c.podRanges()
	return func(to netip.Addr) netip.Addr {
		for i, a := range own {
			if ranges[i].Contains(to) {
				return a
			}
		}
		return netip.Addr{}
	}, release, nil
}

// loopbacks are this machine's own: IPv6 may be missing.
func loopbacks() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if slices.ContainsFunc(all, func(n net.Addr) bool { ip, ok := n.(*net.IPNet); return ok && ip.IP.Equal(a.AsSlice()) }) {
			out = append(out, a)
		}
	}
	return out, nil
}

// both stops one thing after the other.
func both(first, second func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return errors.Join(first(ctx), second(ctx)) }
}
