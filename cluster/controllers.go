package cluster

import (
	"context"
	"net/netip"

	"coracle.dev/coracle/controllers/bootstrap"
	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/garbage"
	"coracle.dev/coracle/controllers/namespace"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/controllers/rootca"
	"coracle.dev/coracle/controllers/serviceaccount"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network/service"
)

// startControllers gives the engine its loops and runs it.
func (c *Cluster) startControllers(context.Context) (func(context.Context) error, string, error) {
	host, err := link.HostAddr()
	if err != nil {
		return nil, "", err
	}
	if bind, err := netip.ParseAddr(c.cfg.Bind); err == nil && !bind.IsUnspecified() {
		host = bind
	}
	c.engine.Add(
		bootstrap.Loop(bootstrap.Config{ServiceCIDRs: []netip.Prefix{c.serviceRange()},
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(host, uint16(c.cfg.Port))}}),
		namespace.Loop(c.registry),
		serviceaccount.Loop(),
		rootca.Loop(c.keys.caPEM),
		deployment.Loop(),
		replicaset.Loop(),
		garbage.Loop(c.registry),
	)
	if c.cfg.Nodes.Real {
		balancer, err := nft.NewBalancer(tableName(c.state.identity.ID), []netip.Prefix{c.podRange()}, []netip.Prefix{c.serviceRange()})
		if err != nil {
			return nil, "", err
		}
		c.engine.Add(service.Loop(balancer, c.serviceIP(dnsIndex)))
	}
	return c.run("controllers", c.engine.Run), "", nil
}
