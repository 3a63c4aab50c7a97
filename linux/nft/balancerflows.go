package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/conntrack"
)

// flows forgets connections of protocols that have none of their own: a client of UDP that goes on sending from the same port
// would for ever be led to where its first packet went. For TCP a connection ends when its backend does.
type flows struct{ table *conntrack.Table }

// flowChanges are fronts whose backends changed, with those whose connections go on.
type flowChanges struct {
	fronts map[flowFront]map[netip.AddrPort]bool
}

// flowFront is a front as connection tracking sees it; addr is zero for every address of the node.
type flowFront struct {
	addr   netip.Addr
	family uint8
	proto  uint8
	port   uint16
}

func connectionless(proto uint8) bool { return proto == unix.IPPROTO_UDP || proto == unix.IPPROTO_SCTP }

// flows are the backends whose connections go on, nil if no front has a protocol without connections.
func (g *Group) flows() map[netip.AddrPort]bool {
	var all map[netip.AddrPort]bool
	for i := range g.Routes {
		if !connectionless(g.Routes[i].Front.Proto) {
			continue
		}
		all = map[netip.AddrPort]bool{}
		for _, pool := range g.Pools {
			for _, k := range pool {
				all[k.Addr] = true
			}
		}
		for _, a := range g.Keep {
			all[a] = true
		}
		break
	}
	return all
}

// compare notes the fronts of a group with connections to forget: those to backends that it has no more, and those from
// before the front led anywhere.
func (c *flowChanges) compare(have, fresh *made) {
	if have.flows == nil && fresh.flows == nil {
		return
	}
	lost := len(have.flows) == 0
	for a := range have.flows {
		lost = lost || !fresh.flows[a]
	}
	note := func(key frontKey) {
		if !connectionless(key.proto) {
			return
		}
		if c.fronts == nil {
			c.fronts = map[flowFront]map[netip.AddrPort]bool{}
		}
		c.fronts[flowFront{key.addr, key.family, key.proto, key.port}] = fresh.flows
	}
	for key := range have.fronts {
		if _, stays := fresh.fronts[key]; lost || !stays {
			note(key)
		}
	}
	for key := range fresh.fronts {
		if _, was := have.fronts[key]; lost || !was {
			note(key)
		}
	}
}

// few is how many fronts are looked for one by one; for more, the table is read once.
const few = 4

// forget deletes the connections that changes made stale.
func (f *flows) forget(c *flowChanges) error {
	if len(c.fronts) == 0 {
		return nil
	}
	if f.table == nil {
		table, err := conntrack.Open()
		if err != nil {
			return err
		}
		f.table = table
	}
	own, err := addresses()
	if err != nil {
		return err
	}
	stale := func(flow *conntrack.Flow) bool {
		at := flow.Original
		family := familyOf(at.Dst)
		backend := netip.AddrPortFrom(flow.Reply.Src, flow.Reply.SrcPort)
		translated := flow.Reply.Src != at.Dst || flow.Reply.SrcPort != at.DstPort
		goOn, ok := c.fronts[flowFront{at.Dst, family, at.Proto, at.DstPort}]
		if ok {
			return !goOn[backend] && (translated || len(goOn) > 0)
		}
		goOn, ok = c.fronts[flowFront{netip.Addr{}, family, at.Proto, at.DstPort}]
		return ok && own[at.Dst] && !goOn[backend] && (translated || len(goOn) > 0)
	}
	var errs []error
	for _, filter := range c.filters() {
		_, err := f.table.DeleteMatching(stale, filter)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// filters are what to ask the kernel for.
func (c *flowChanges) filters() []conntrack.Filter {
	protos := map[uint8]bool{}
	var all []conntrack.Filter
	for f := range c.fronts {
		protos[f.proto] = true
		family := uint8(unix.AF_INET)
		if f.family == 6 {
			family = unix.AF_INET6
		}
		all = append(all, conntrack.Filter{Family: family, Original: conntrack.Tuple{Dst: f.addr, Proto: f.proto, DstPort: f.port}})
	}
	if len(all) <= few {
		return all
	}
	all = all[:0]
	for proto := range protos {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all = append(all, conntrack.Filter{Family: family, Original: conntrack.Tuple{Proto: proto}})
		}
	}
	return all
}

// addresses are the node's own.
func addresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}

func (f *flows) close() error {
	if f.table == nil {
		return nil
	}
	return f.table.Close()
}
