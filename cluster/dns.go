package cluster

import (
	"context"
	"errors"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/dns"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft/untracked"
	"coracle.dev/coracle/reconcile"
)

// untrackedTable is the table that keeps connection tracking away from the DNS of an instance.
func untrackedTable(id string) string { return tableName(id) + "-dns" }

func (c *Cluster) startDNS(context.Context) (func(context.Context) error, string, error) {
	ips := c.serviceIPs(dnsIndex)
	var listen []netip.AddrPort
	var removed []error
	remove := func() error {
		removed = append(removed, untracked.Delete(untrackedTable(c.state.identity.ID)))
		for _, ip := range ips {
			removed = append(removed, link.RemoveAddress(ip))
		}
		return errors.Join(removed...)
	}
	for _, ip := range ips {
		listen = append(listen, netip.AddrPortFrom(ip, 53))
		if err := link.AddAddress(ip); err != nil {
			return nil, "", errors.Join(err, remove())
		}
	}
	// Two queries from one socket race for one entry of connection tracking where there is one: here is none.
	if err := untracked.Datagrams(untrackedTable(c.state.identity.ID), ips, 53); err != nil {
		return nil, "", errors.Join(err, remove())
	}
	host, err := dns.ReadHost("/etc/resolv.conf", ips...)
	if err != nil {
		c.log.Warn("names outside of the cluster cannot be resolved", "error", err)
	}
	record := func(ev reconcile.Event) {
		c.engine.Recorder().Record(client.User{Name: "system:apiserver", Groups: []string{client.GroupMasters}}, corev1.EventSource{Component: "coredns"}, ev)
	}
	s, err := dns.New(dns.Config{Client: c.client, Domain: c.cfg.Domain, Host: host, Log: c.log, Listen: listen, Event: record})
	if err != nil {
		return nil, "", errors.Join(err, remove())
	}
	stop := c.run("dns", s.Run)
	return func(ctx context.Context) error {
		err := stop(ctx)
		if c.Asked().Keep {
			return err
		}
		return errors.Join(err, remove())
	}, listen[0].String(), nil
}
