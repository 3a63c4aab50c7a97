package cluster

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"coracle.dev/coracle/apiserver/custom"
	"coracle.dev/coracle/controllers/accounttoken"
	"coracle.dev/coracle/controllers/admissionpolicy"
	"coracle.dev/coracle/controllers/apiservice"
	"coracle.dev/coracle/controllers/bootstrap"
	"coracle.dev/coracle/controllers/bootstraptoken"
	"coracle.dev/coracle/controllers/certificates"
	"coracle.dev/coracle/controllers/cronjob"
	"coracle.dev/coracle/controllers/customresource"
	"coracle.dev/coracle/controllers/daemonset"
	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/disruption"
	"coracle.dev/coracle/controllers/endpoints"
	"coracle.dev/coracle/controllers/endpointslice"
	"coracle.dev/coracle/controllers/eventttl"
	"coracle.dev/coracle/controllers/flowcontrol"
	"coracle.dev/coracle/controllers/garbage"
	"coracle.dev/coracle/controllers/ipaddress"
	"coracle.dev/coracle/controllers/job"
	"coracle.dev/coracle/controllers/namespace"
	"coracle.dev/coracle/controllers/nodeipam"
	"coracle.dev/coracle/controllers/nodelifecycle"
	"coracle.dev/coracle/controllers/podgc"
	"coracle.dev/coracle/controllers/protection"
	"coracle.dev/coracle/controllers/rbac"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/controllers/resourcequota"
	"coracle.dev/coracle/controllers/rootca"
	"coracle.dev/coracle/controllers/serviceaccount"
	"coracle.dev/coracle/controllers/statefulset"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network/service"
)

// Defaults of upstream's controller manager.
const (
	nodeBits       = 24        // --node-cidr-mask-size
	terminatedPods = 12500     // --terminated-pod-gc-threshold
	eventLife      = time.Hour // --event-ttl
)

// startControllers gives the engine its loops and runs it.
func (c *Cluster) startControllers(ctx context.Context) (func(context.Context) error, string, error) {
	host, err := link.HostAddr()
	if err != nil {
		return nil, "", err
	}
	if bind, err := netip.ParseAddr(c.cfg.Bind); err == nil && !bind.IsUnspecified() {
		host = bind
	}
	objects := bootstrap.Config{ServiceCIDRs: []netip.Prefix{c.serviceRange()},
		Endpoints:      []netip.AddrPort{netip.AddrPortFrom(host, uint16(c.cfg.Port))},
		Authentication: c.authenticationData()}
	if c.cfg.Nodes.Real {
		objects.DNS = c.serviceIP(dnsIndex)
	}
	c.engine.Add(
		bootstrap.Loop(objects),
		namespace.Loop(c.registry),
		serviceaccount.Loop(),
		rootca.Loop(c.keys.caPEM),
		deployment.Loop(),
		replicaset.Loop(),
		replicaset.ReplicationControllerLoop(),
		statefulset.Loop(),
		daemonset.Loop(),
		eventttl.Loop(eventLife),
		garbage.Loop(c.registry),
		endpointslice.Loop(),
		endpointslice.MirrorLoop(),
		endpoints.Loop(),
		nodeipam.Loop([]nodeipam.Range{{Cluster: c.podRange(), NodeBits: nodeBits}}),
		podgc.Loop(terminatedPods),
	)
	c.engine.Add(apiservice.Loops(c.apiServices())...)
	c.engine.Add(admissionpolicy.Loop(admissionpolicy.Config{Registry: c.registry, Document: c.document}))
	c.engine.Add(accounttoken.Loop(c.accountTokens()))
	c.engine.Add(bootstraptoken.Loops(c.newNodes(host))...)
	c.engine.Add(cronjob.Loop(), ipaddress.Loop())
	c.engine.Add(flowcontrol.Loop(c.server.Fairness().Update), c.serverLease())
	c.engine.Add(customresource.Loops(customresource.Config{
		Registry: c.registry, Serve: c.custom.Serve,
		BuiltIn: func(resource string) bool { k := c.registry.ByName(resource); return k != nil && !custom.Is(k) },
	})...)
	c.engine.Add(rbac.Loops()...)
	c.engine.Add(resourcequota.Loop(c.registry))
	c.engine.Add(protection.Loops()...)
	c.engine.Add(job.Loops()...)
	c.engine.Add(certificates.Loops(c.certificateLoops())...)
	c.engine.Add(disruption.Loops()...)
	c.engine.Add(nodelifecycle.Loops(nodelifecycle.Config{Started: c.began})...)
	if c.cfg.Nodes.Real {
		c.balancer, err = nft.NewBalancer(tableName(c.state.identity.ID), []netip.Prefix{c.podRange()}, []netip.Prefix{c.serviceRange()})
		if err != nil {
			return nil, "", err
		}
		c.engine.Add(service.Loop(c.balancer, c.serviceIP(dnsIndex)))
	}
	stop := c.run("controllers", c.engine.Run)
	// What every cluster has is there before anything else starts that may need it.
	if _, err := c.engine.Settle(ctx); err != nil {
		return nil, "", errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return stop, "", nil
}
