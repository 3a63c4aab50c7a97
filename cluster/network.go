package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/linux/nft/untracked"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/overlay"
)

// networkPlan is what a node, the server's or a joined one, has to know of the cluster's network.
type networkPlan struct {
	// Instance is the name of what this node makes in the kernel, Node its own.
	Instance, Node string
	// Pods and Services are the cluster's ranges.
	Pods, Services []netip.Prefix
	Overlay        overlay.Settings
	// Hosts are the node's addresses if they were chosen.
	Hosts []netip.Addr
}

func (c *Cluster) networkPlan() networkPlan {
	chosen, _ := parseNodeIPs(c.cfg.NodeIPs) // Complete did it before
	return networkPlan{Hosts: chosen, Instance: c.state.identity.ID, Node: c.cfg.NodeName, Pods: c.podRanges(), Services: c.serviceRanges(),
		Overlay: c.cfg.Overlay}
}

// open makes the routes of the pods' network and takes over the links that are there. The ways to other nodes are made by a loop:
// see overlayConfig.
func (p networkPlan) open() (*network.Pods, error) {
	if _, err := link.EnableForwarding(p.Pods...); err != nil {
		return nil, err
	}
	hosts, err := p.hosts()
	if err != nil {
		return nil, err
	}
	for _, services := range p.Services {
		for _, host := range hosts {
			if host.Is4() != services.Addr().Is4() {
				continue
			}
			if err := link.Reach(services, host); err != nil {
				return nil, err
			}
		}
	}
	for _, pods := range p.Pods {
		if err := link.Blackhole(pods); err != nil {
			return nil, err
		}
	}
	mtu, err := link.MTU(hosts[0])
	if err != nil {
		return nil, err
	}
	return network.NewPods(p.Instance, overlay.PodMTU(hosts[0], mtu, p.Overlay))
}

// hosts are this node's addresses, that of the preferred family first; there is at least one.
func (p networkPlan) hosts() ([]netip.Addr, error) {
	if len(p.Hosts) == 0 {
		return link.HostAddrs(p.Pods)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, host := range p.Hosts {
		if !slices.ContainsFunc(own, func(a net.Addr) bool {
			prefix, err := netip.ParsePrefix(a.String())
			return err == nil && prefix.Addr() == host
		}) {
			return nil, fmt.Errorf("node-ip: %s is not an address of this machine", host)
		}
	}
	if len(p.Pods) > 0 && p.Hosts[0].Is4() != p.Pods[0].Addr().Is4() { // the cluster's preferred family goes first
		turned := slices.Clone(p.Hosts)
		slices.Reverse(turned)
		return turned, nil
	}
	return p.Hosts, nil
}

// parseNodeIPs reads the addresses of a node.
func parseNodeIPs(texts []string) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.IsGlobalUnicast() || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is not an address that others could reach", text)
		}
		if len(all) == 2 || len(all) == 1 && all[0].Is4() == addr.Is4() {
			return nil, errors.New("give one address, or one of each family")
		}
		all = append(all, addr)
	}
	return all, nil
}

// overlayConfig is what the loop that makes the ways to other nodes needs.
func (p networkPlan) overlayConfig(log *slog.Logger) overlay.Config {
	return overlay.Config{Instance: p.Instance, Node: p.Node, Inside: p.Pods, Settings: p.Overlay, Log: log}
}

// remove takes out of the kernel what was put there.
func (p networkPlan) remove() error {
	errs := []error{overlay.Remove(p.Instance, p.Pods), network.RemoveAll(p.Instance), nft.DeleteTable(tableName(p.Instance)), untracked.Delete(untrackedTable(p.Instance)),
		link.RemoveRoutes(p.Pods...), link.RemoveRoutes(p.Services...)}
	for _, services := range p.Services {
		errs = append(errs, link.RemoveAddress(nth(services, dnsIndex)))
	}
	return errors.Join(errs...)
}

// startNetwork makes what the pods' network has in the kernel. The packet rules follow Services as a loop of the engine: see
// startControllers.
func (c *Cluster) startNetwork(context.Context) (func(context.Context) error, string, error) {
	plan := c.networkPlan()
	var err error
	if c.pods, err = plan.open(); err != nil {
		return nil, "", err
	}
	stop := func(context.Context) error {
		if c.Asked().Keep {
			return nil
		}
		return plan.remove()
	}
	return stop, formatRanges(plan.Pods), nil
}

// removeNetwork takes out of the kernel what an instance's network put there.
func removeNetwork(id identity) error {
	return networkPlan{Instance: id.ID, Pods: id.podRanges(), Services: id.serviceRanges()}.remove()
}

// nodeBlocks are the ranges that this node takes when it registers, so that its first pod need not wait for somebody to give it some: the
// first blocks of the cluster's. It asks for none if another node has them.
func (c *Cluster) nodeBlocks() []netip.Prefix {
	if c.agent != nil {
		return nil // two that join at once would take the same
	}
	var blocks []netip.Prefix
	for _, r := range c.podRanges() {
		blocks = append(blocks, netip.PrefixFrom(r.Addr(), nodeBlockBits(r)))
	}
	for n := range client.Nodes.List(c.client.Snapshot(), "") {
		for _, text := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(text)
			if err == nil && n.Name != c.cfg.NodeName && overlaps(blocks, p) {
				return nil
			}
		}
	}
	return blocks
}

func overlaps(blocks []netip.Prefix, p netip.Prefix) bool {
	for _, b := range blocks {
		if b.Overlaps(p) {
			return true
		}
	}
	return false
}
