package cluster

import (
	"context"
	"errors"
	"net/netip"
	"slices"
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
	"coracle.dev/coracle/controllers/devicetaint"
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
	"coracle.dev/coracle/controllers/nodejoin"
	"coracle.dev/coracle/controllers/nodelifecycle"
	"coracle.dev/coracle/controllers/podautoscaler"
	"coracle.dev/coracle/controllers/podgc"
	"coracle.dev/coracle/controllers/protection"
	"coracle.dev/coracle/controllers/rbac"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/controllers/resourceclaim"
	"coracle.dev/coracle/controllers/resourcequota"
	"coracle.dev/coracle/controllers/rootca"
	"coracle.dev/coracle/controllers/serviceaccount"
	"coracle.dev/coracle/controllers/statefulset"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/network/overlay"
	"coracle.dev/coracle/reconcile"
)

// Defaults of upstream's controller manager.
const (
	nodeBits4      = 24        // --node-cidr-mask-size-ipv4
	nodeBits6      = 64        // --node-cidr-mask-size-ipv6
	terminatedPods = 12500     // --terminated-pod-gc-threshold
	eventLife      = time.Hour // --event-ttl
)

// startControllers gives the engine its loops and runs it.
func (c *Cluster) startControllers(ctx context.Context) (func(context.Context) error, string, error) {
	host, err := c.host()
	if err != nil {
		return nil, "", err
	}
	c.engine.Add(c.serverLoops(host)...)
	for _, l := range c.managerLoops() {
		if c.memory == nil || c.memory.Loops == nil || c.memory.Loops(l.Name) {
			c.engine.Add(l)
		}
	}
	stopServices := func(context.Context) error { return nil }
	if c.cfg.Nodes.Real {
		if stopServices, err = c.addNodeLoops(); err != nil {
			return nil, "", err
		}
	}
	stopGateways, err := c.addGateways()
	if err != nil {
		return nil, "", err
	}
	stopServices = both(stopGateways, stopServices)
	stopBalancers, err := c.addBalancers()
	if err != nil {
		return nil, "", err
	}
	stopEngine := c.run("controllers", c.engine.Run)
	stop := func(ctx context.Context) error {
		return errors.Join(stopEngine(ctx), stopServices(ctx), stopBalancers(ctx))
	}
	// What every cluster has is there before anything else starts that may need it.
	if _, err := c.engine.Settle(ctx); err != nil {
		return nil, "", errors.Join(err, stop(context.WithoutCancel(ctx)))
	}
	return stop, "", nil
}

// addNodeLoops gives the engine the loops of a node that runs containers, with a control plane beside it or not.
func (c *Cluster) addNodeLoops() (stop func(context.Context) error, err error) {
	if stop, err = c.addServices(); err != nil {
		return nil, err
	}
	c.engine.Add(overlay.Loop(c.networkPlan().overlayConfig(c.log)))
	return stop, nil
}

// host is the address at which pods reach the API.
func (c *Cluster) host() (netip.Addr, error) {
	if c.memory != nil {
		return memoryHost, nil
	}
	if bind, err := netip.ParseAddr(c.cfg.Bind); err == nil && !bind.IsUnspecified() {
		return bind, nil
	}
	hosts, err := link.HostAddrs(c.serviceRanges())
	if err != nil {
		return netip.Addr{}, err
	}
	return hosts[0], nil
}

// serverLoops are those without which the API is not whole; upstream has them in its API server. Every cluster runs them.
func (c *Cluster) serverLoops(host netip.Addr) []reconcile.Loop {
	objects := bootstrap.Config{ServiceCIDRs: c.serviceRanges(),
		Endpoints:      []netip.AddrPort{netip.AddrPortFrom(host, uint16(c.cfg.Port))},
		Authentication: c.authenticationData()}
	if c.cfg.Nodes.Real {
		objects.DNS = c.serviceIP(dnsIndex)
	}
	loops := []reconcile.Loop{
		bootstrap.Loop(objects),
		eventttl.Loop(eventLife),
		admissionpolicy.Loop(admissionpolicy.Config{Registry: c.registry, Document: c.document}),
		ipaddress.Loop(),
		ipaddress.RangeLoop(),
		flowcontrol.Loop(c.server.Fairness().Update),
	}
	if c.memory == nil { // nobody else asks whether one in memory is alive, and every test that lets days pass would pay for it
		loops = append(loops, c.serverLease())
	}
	loops = append(loops, apiservice.Loops(c.apiServices())...)
	loops = append(loops, customresource.Loops(customresource.Config{
		Registry: c.registry, Serve: c.custom.Serve,
		BuiltIn: func(resource string) bool { k := c.registry.ByName(resource); return k != nil && !custom.Is(k) },
	})...)
	if c.memory == nil {
		loops = append(loops, nodejoin.Loop(c.joinableNetwork()))
	}
	return append(loops, bootstraptoken.Loops(c.newNodes(host))...)
}

// nodeRanges are the cluster's pod ranges with the size of the blocks that nodes get.
func (c *Cluster) nodeRanges() []nodeipam.Range {
	var all []nodeipam.Range
	for _, r := range c.podRanges() {
		all = append(all, nodeipam.Range{Cluster: r, NodeBits: nodeBlockBits(r)})
	}
	return all
}

// managerLoops are those of upstream's controller manager. A cluster in memory may leave some of them out.
func (c *Cluster) managerLoops() []reconcile.Loop {
	return slices.Concat([]reconcile.Loop{
		namespace.Loop(c.registry, c.elsewhere()),
		serviceaccount.Loop(),
		rootca.Loop(c.keys.caPEM),
		deployment.Loop(),
		replicaset.Loop(),
		replicaset.ReplicationControllerLoop(),
		statefulset.Loop(),
		daemonset.Loop(),
		garbage.Loop(c.registry),
		endpointslice.Loop(),
		endpointslice.MirrorLoop(),
		endpoints.Loop(),
		nodeipam.Loop(c.nodeRanges()),
		podgc.Loop(terminatedPods),
		accounttoken.Loop(c.accountTokens()),
		cronjob.Loop(),
		resourceclaim.Loop(),
		devicetaint.Loop(),
		resourcequota.Loop(c.registry),
		podautoscaler.Loop(c.autoscaling()),
	},
		rbac.Loops(),
		protection.Loops(),
		job.Loops(),
		certificates.Loops(c.certificateLoops()),
		disruption.Loops(c.registry),
		nodelifecycle.Loops(nodelifecycle.Config{Started: c.began}))
}
