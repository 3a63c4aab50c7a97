package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes that are ours (`ip route show proto 99`).
const RouteProtocol = 99

// Kernel carries states out in the network namespace in which it was opened. Its methods are not to be called side by side.
type Kernel struct {
	h      *netlink.Handle
	link   string
	table  string
	inside []netip.Prefix
}

// Open reaches the kernel for an instance whose cluster's pod ranges are inside.
func Open(instance string, inside []netip.Prefix) (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if len(instance) > 8 {
		instance = instance[:8]
	}
	return &Kernel{h: h, link: "covx" + instance, table: "coracle_" + instance + "_overlay", inside: inside}, nil
}

// Close lets go of the kernel; what was made stays.
func (k *Kernel) Close() { k.h.Close() }

// Remove takes away all that Apply has made.
func (k *Kernel) Remove() error { return k.Apply(State{}, Host{}) }

// Remove takes away what an instance made, whatever state it was left in.
func Remove(instance string, inside []netip.Prefix) error {
	k, err := Open(instance, inside)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Remove()
}

// listTries is how often a list is asked for that changed while the kernel wrote it.
const listTries = 20

func listed[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		out, err := list()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) || try == listTries {
			return out, err
		}
	}
}

// Host asks where an address of this node is. It is an error if no link has it.
func (k *Kernel) Host(addr netip.Addr) (Host, error) {
	addrs, err := listed(func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Host{}, fmt.Errorf("list addresses: %w", err)
	}
	h := Host{Addr: addr}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == addr {
			h.Index = a.LinkIndex
		}
	}
	if h.Index == 0 {
		return h, fmt.Errorf("no link has the node's address %s", addr)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ones, bits := a.Mask.Size(); ok && a.LinkIndex == h.Index && ones < bits && !ip.IsLinkLocalUnicast() {
			h.Subnets = append(h.Subnets, netip.PrefixFrom(ip.Unmap(), ones).Masked())
		}
	}
	l, err := k.h.LinkByIndex(h.Index)
	if err != nil {
		return h, fmt.Errorf("find link %d: %w", h.Index, err)
	}
	h.MTU = l.Attrs().MTU
	return h, nil
}

// Apply makes the kernel as a state wants it; what is right already is left alone. What is new comes before what goes.
func (k *Kernel) Apply(st State, h Host) error {
	index := 0
	var routes []netlink.Route
	if t := st.Tunnel; t != nil {
		l, err := k.tunnel(t)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		if err := errors.Join(k.addresses(l, t), k.forward(index, t), k.neighbours(index, t)); err != nil {
			return err
		}
		if err := masqueradeInto(k.table, k.link, k.inside); err != nil {
			return err
		}
		for _, r := range t.Routes {
			route := netlink.Route{LinkIndex: index, Dst: network(r.To), Gw: r.Via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
			for _, own := range t.Addrs {
				if own.Is4() == r.To.Addr().Is4() {
					route.Src = own.AsSlice()
				}
			}
			routes = append(routes, route)
		}
	}
	for _, r := range st.Direct {
		routes = append(routes, netlink.Route{LinkIndex: h.Index, Dst: network(r.To), Gw: r.Via.AsSlice()})
	}
	if err := k.routes(routes); err != nil {
		return err
	}
	if st.Tunnel != nil {
		return nil
	}
	return k.removeTunnel()
}

func (k *Kernel) removeTunnel() error {
	l, err := k.h.LinkByName(k.link)
	if missing(err) {
		return deleteMasquerade(k.table)
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", k.link, err)
	}
	if err := k.h.LinkDel(l); err != nil && !missing(err) {
		return fmt.Errorf("delete link %s: %w", k.link, err)
	}
	return deleteMasquerade(k.table)
}

func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// tunnel makes the link. One that is another's in what cannot be changed is made anew.
func (k *Kernel) tunnel(t *Tunnel) (netlink.Link, error) {
	l, err := k.h.LinkByName(k.link)
	if err != nil && !missing(err) {
		return nil, fmt.Errorf("find link %s: %w", k.link, err)
	}
	if err == nil && !same(l, t) {
		if err := k.h.LinkDel(l); err != nil && !missing(err) {
			return nil, fmt.Errorf("delete link %s: %w", k.link, err)
		}
		l = nil
	} else if err != nil {
		l = nil
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = k.link, t.MAC, t.MTU
		err := k.h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: t.VNI, SrcAddr: t.Local.AsSlice(), Port: t.Port})
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("create link %s: another VXLAN link has the identifier %d at port %d: choose another with --vxlan-vni on every node", k.link, t.VNI, t.Port)
		}
		if err != nil {
			return nil, fmt.Errorf("create link %s: %w", k.link, err)
		}
		if l, err = k.h.LinkByName(k.link); err != nil {
			return nil, fmt.Errorf("find link %s: %w", k.link, err)
		}
		// Without addresses of its own it says nothing by itself. A kernel without IPv6 has nothing to say.
		if err := k.h.LinkSetIP6AddrGenMode(l, addrGenNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("set up link %s: %w", k.link, err)
		}
	}
	if l.Attrs().MTU != t.MTU {
		if err := k.h.LinkSetMTU(l, t.MTU); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", k.link, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := k.h.LinkSetUp(l); err != nil {
			return nil, fmt.Errorf("set %s up: %w", k.link, err)
		}
	}
	return l, nil
}

func same(l netlink.Link, t *Tunnel) bool {
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return false
	}
	local, ok := netip.AddrFromSlice(v.SrcAddr)
	return ok && local.Unmap() == t.Local && v.VxlanId == t.VNI && v.Port == t.Port && !v.Learning &&
		bytes.Equal(v.Attrs().HardwareAddr, t.MAC)
}

// addresses gives the link its own, and no others.
func (k *Kernel) addresses(l netlink.Link, t *Tunnel) error {
	have, err := listed(func() ([]netlink.Addr, error) { return k.h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", k.link, err)
	}
	left := slices.Clone(t.Addrs)
	var errs []error
	for i := range have {
		ip, _ := netip.AddrFromSlice(have[i].IP)
		if at := slices.Index(left, ip.Unmap()); at >= 0 {
			left = slices.Delete(left, at, at+1)
		} else if err := k.h.AddrDel(l, &have[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s: %w", ip, err))
		}
	}
	for _, addr := range left {
		a := &netlink.Addr{IPNet: network(netip.PrefixFrom(addr, addr.BitLen()))}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := k.h.AddrReplace(l, a); err != nil {
			errs = append(errs, fmt.Errorf("add address %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// forward fills the link's forwarding database.
func (k *Kernel) forward(index int, t *Tunnel) error {
	want := map[Forward]bool{}
	for _, f := range t.Forward {
		want[f] = true
	}
	return k.entries(index, unix.AF_BRIDGE, func(n *netlink.Neigh) bool {
		to, _ := netip.AddrFromSlice(n.IP)
		f := Forward{MAC: n.HardwareAddr.String(), To: to.Unmap()}
		keep := want[f]
		delete(want, f)
		return keep
	}, func() (missing []*netlink.Neigh) {
		for f := range want {
			mac, _ := net.ParseMAC(f.MAC)
			missing = append(missing, &netlink.Neigh{Flags: netlink.NTF_SELF, HardwareAddr: mac, IP: f.To.AsSlice()})
		}
		return missing
	})
}

// neighbours fills the link's neighbour tables.
func (k *Kernel) neighbours(index int, t *Tunnel) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		want := map[Neighbour]bool{}
		for _, n := range t.Neighbours {
			if n.Addr.Is4() == (family == netlink.FAMILY_V4) {
				want[n] = true
			}
		}
		errs = append(errs, k.entries(index, family, func(n *netlink.Neigh) bool {
			if n.State&netlink.NUD_PERMANENT == 0 {
				return true // the kernel's own, of broadcasts and multicasts
			}
			addr, _ := netip.AddrFromSlice(n.IP)
			e := Neighbour{Addr: addr.Unmap(), MAC: n.HardwareAddr.String()}
			keep := want[e]
			delete(want, e)
			return keep
		}, func() (missing []*netlink.Neigh) {
			for n := range want {
				mac, _ := net.ParseMAC(n.MAC)
				missing = append(missing, &netlink.Neigh{HardwareAddr: mac, IP: n.Addr.AsSlice()})
			}
			return missing
		}))
	}
	return errors.Join(errs...)
}

// entries makes one of the link's neighbour tables what it should be: those that are not to be kept go, those that missing lists after
// all were looked at come.
func (k *Kernel) entries(index, family int, keep func(*netlink.Neigh) bool, missing func() []*netlink.Neigh) error {
	have, err := listed(func() ([]netlink.Neigh, error) { return k.h.NeighList(index, family) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", k.link, err)
	}
	var stale []netlink.Neigh
	for i := range have {
		if !keep(&have[i]) {
			stale = append(stale, have[i])
		}
	}
	var errs []error
	// Entries of the same key are replaced, so the old one must not be deleted behind the new one.
	for i := range stale {
		if err := k.h.NeighDel(&stale[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete neighbour %s of %s: %w", stale[i].IP, k.link, err))
		}
	}
	for _, n := range missing() {
		n.LinkIndex, n.Family, n.State = index, family, netlink.NUD_PERMANENT
		if err := k.h.NeighSet(n); err != nil {
			errs = append(errs, fmt.Errorf("add neighbour %s of %s: %w", n.IP, k.link, err))
		}
	}
	return errors.Join(errs...)
}

// routes makes our routes into the cluster's ranges these and no others.
func (k *Kernel) routes(want []netlink.Route) error {
	have, err := listed(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for i := range want {
		want[i].Protocol, want[i].Table = RouteProtocol, unix.RT_TABLE_MAIN
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return sameRoute(&r, &want[i]) }) {
			continue
		}
		if err := k.h.RouteReplace(&want[i]); err != nil {
			errs = append(errs, fmt.Errorf("route to %s: %w", want[i].Dst, err))
		}
	}
	for i := range have {
		if !k.ours(&have[i]) || slices.ContainsFunc(want, func(r netlink.Route) bool { return r.Dst.String() == have[i].Dst.String() }) {
			continue
		}
		if err := k.h.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", have[i].Dst, err))
		}
	}
	return errors.Join(errs...)
}

func sameRoute(a, b *netlink.Route) bool {
	return a.Dst != nil && a.Dst.String() == b.Dst.String() && a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) &&
		(b.Src == nil || a.Src.Equal(b.Src))
}

// ours tells routes of this cluster from those of another instance on the machine.
func (k *Kernel) ours(r *netlink.Route) bool {
	if r.Dst == nil {
		return false
	}
	ip, ok := netip.AddrFromSlice(r.Dst.IP)
	return ok && slices.ContainsFunc(k.inside, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addrGenNone keeps the kernel from giving a link an IPv6 address by itself (linux/if_link.h, IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1
