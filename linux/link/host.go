package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside are addresses that only a default route leads to (RFC 5737, RFC 3849).
var outside = map[bool]net.IP{true: net.IPv4(192, 0, 2, 1).To4(), false: net.ParseIP("2001:db8::1")}

// HostAddr returns the IPv4 address that the host uses towards the outside: the source of its
// default route, else the first global address of an interface that is up, else loopback.
func HostAddr() (netip.Addr, error) {
	addr, ok, err := hostAddr(true)
	if err == nil && !ok {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return addr, err
}

// HostAddrs returns the address that the host uses towards the outside for the family of each range. A family of
// which it has none is left out; if it has none at all, the loopback address of the first is returned.
func HostAddrs(ranges []netip.Prefix) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, r := range ranges {
		addr, ok, err := hostAddr(r.Addr().Is4())
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, addr)
		}
	}
	if len(all) == 0 {
		if len(ranges) > 0 && ranges[0].Addr().Is6() {
			return []netip.Addr{netip.IPv6Loopback()}, nil
		}
		all = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return all, nil
}

func hostAddr(v4 bool) (netip.Addr, bool, error) {
	if routes, err := netlink.RouteGet(outside[v4]); err == nil && len(routes) > 0 {
		if addr, ok := netip.AddrFromSlice(routes[0].Src); ok && addr.Unmap().Is4() == v4 && addr.Unmap().IsGlobalUnicast() {
			return addr.Unmap(), true, nil
		}
	}
	family := netlink.FAMILY_V6
	if v4 {
		family = netlink.FAMILY_V4
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, family) })
		if err != nil {
			return netip.Addr{}, false, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap().IsGlobalUnicast() {
				return addr.Unmap(), true, nil
			}
		}
	}
	return netip.Addr{}, false, nil
}

// defaultMTU is that of Ethernet.
const defaultMTU = 1500

// MTU returns that of the link that bears an address of the host, and Ethernet's where that is loopback or none.
func MTU(of netip.Addr) (int, error) {
	index, err := Bearer(of)
	if err != nil || index == 0 {
		return defaultMTU, err
	}
	l, err := netlink.LinkByIndex(index)
	if missing(err) {
		return defaultMTU, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find link %d: %w", index, err)
	}
	if l.Attrs().Flags&net.FlagLoopback != 0 {
		return defaultMTU, nil
	}
	return l.Attrs().MTU, nil
}

// Bearer returns the index of the link that has an address, 0 if none has.
func Bearer(of netip.Addr) (int, error) {
	family := netlink.FAMILY_V4
	if of.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap() == of {
			return a.LinkIndex, nil
		}
	}
	return 0, nil
}

// EnableForwarding lets the kernel pass packets of the ranges' families between links, of IPv4 if there is none. It returns
// whether it changed anything. A host that gets its IPv6 routes from advertisements goes on to do so, which the kernel would end otherwise
// (ip-sysctl, accept_ra).
func EnableForwarding(ranges ...netip.Prefix) (bool, error) {
	changed := false
	if len(ranges) == 0 {
		ranges = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	for _, r := range ranges {
		path := "/proc/sys/net/ipv4/ip_forward"
		if r.Addr().Is6() {
			path = "/proc/sys/net/ipv6/conf/all/forwarding"
		}
		now, err := os.ReadFile(path)
		if r.Addr().Is6() && errors.Is(err, fs.ErrNotExist) {
			return changed, fmt.Errorf("pods cannot have addresses of %s: this kernel has no IPv6", r)
		}
		if err != nil {
			return changed, fmt.Errorf("read %s: %w", path, err)
		}
		if len(now) > 0 && now[0] == '1' {
			continue
		}
		if r.Addr().Is6() {
			if err := keepAdvertisements(); err != nil {
				return changed, err
			}
		}
		if err := os.WriteFile(path, []byte("1\n"), 0); err != nil {
			return changed, fmt.Errorf("enable forwarding: %w", err)
		}
		changed = true
	}
	return changed, nil
}

// keepAdvertisements has every link that takes router advertisements take them although the host forwards.
func keepAdvertisements() error {
	files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, file := range files {
		now, err := os.ReadFile(file)
		if err != nil || len(now) == 0 || now[0] != '1' {
			continue // a link that went, or one that takes none or all
		}
		if err := os.WriteFile(file, []byte("2\n"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep router advertisements: %w", err)
		}
	}
	return nil
}

// Reach makes sure that the host has a source address for connections to a range that packet
// rules translate before anything is sent. A default route is enough for that; without any,
// the range is routed to loopback, and source is used.
func Reach(to netip.Prefix, source netip.Addr) error {
	if routes, err := netlink.RouteGet(to.Addr().Next().AsSlice()); err == nil && len(routes) > 0 {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	err = netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: network(to), Src: source.AsSlice(), Scope: netlink.SCOPE_LINK})
	if err != nil {
		return fmt.Errorf("route %s: %w", to, err)
	}
	return nil
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Blackhole keeps packets to a range that has no more specific route from
// leaving the host. It replaces an earlier one.
func Blackhole(to netip.Prefix) error {
	if err := netlink.RouteReplace(&netlink.Route{Dst: network(to), Type: unix.RTN_BLACKHOLE}); err != nil {
		return fmt.Errorf("blackhole %s: %w", to, err)
	}
	return nil
}

// RemoveRoutes deletes the routes of the host to exactly these ranges.
func RemoveRoutes(ranges ...netip.Prefix) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if !ok {
			continue
		}
		for _, p := range ranges {
			if netip.PrefixFrom(addr.Unmap(), ones) == p {
				errs = append(errs, netlink.RouteDel(&r))
			}
		}
	}
	return errors.Join(errs...)
}

// AddAddress gives loopback a further address, so that the host answers for it.
func AddAddress(addr netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	address := &netlink.Addr{IPNet: network(netip.PrefixFrom(addr, addr.BitLen()))}
	if addr.Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(lo, address); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

// RemoveAddress takes back what AddAddress gave.
func RemoveAddress(addr netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	ip := network(netip.PrefixFrom(addr, addr.BitLen()))
	if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: ip}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s: %w", addr, err)
	}
	return nil
}
