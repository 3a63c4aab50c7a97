package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Gateway4 and Gateway6 are the next hops that the inside of every pair has for
// everything. No interface bears them: the inside holds a permanent neighbour entry that
// leads to the host end, so that no ARP or neighbour discovery is ever needed.
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::c0:ac1e")
)

// InstancePrefix begins the names of the host ends of an instance's pairs. id is hexadecimal.
func InstancePrefix(id string) string {
	if len(id) > 4 {
		id = id[:4]
	}
	return "co" + id
}

// HostName derives the name of a host end from what it is for, so that it can be found without a record.
func HostName(prefix, alias string) string {
	sum := sha256.Sum256([]byte(alias))
	return prefix + hex.EncodeToString(sum[:])[:15-len(prefix)]
}

// Pair describes a veth pair between the host and another network namespace.
type Pair struct {
	// Host is the name of the host end, at most 15 bytes.
	Host string
	// Inside is the name of the other end, "eth0".
	Inside string
	// Alias is kept with the host end (ifalias), at most 255 bytes: it says what
	// the pair is for and survives a restart of the program.
	Alias string
	// NetNS is a path that holds the other network namespace open.
	NetNS string
	// Addrs are the addresses of the inside, each routed to alone.
	Addrs []netip.Addr
	// MTU of both ends, 0 for the kernel's default.
	MTU int
}

// Create makes the pair, brings both ends and the inside's loopback up, and
// installs addresses, routes and neighbours on both sides. If it fails, nothing is
// left. A host end of that name that exists already is replaced.
//
// Costs about a dozen netlink round trips; no process is started.
func Create(p Pair) (err error) {
	ns, err := netns.GetFromPath(p.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", p.NetNS, err)
	}
	defer ns.Close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", p.NetNS, err)
	}
	defer inside.Close()

	if err := remove(host, p.Host); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.Host, p.MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.Inside, PeerNamespace: netlink.NsFd(int(ns))}
	if err := host.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth %s: %w", p.Host, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(host, p.Host))
		}
	}()
	hostEnd, err := host.LinkByName(p.Host)
	if err != nil {
		return fmt.Errorf("find veth %s: %w", p.Host, err)
	}
	insideEnd, err := inside.LinkByName(p.Inside)
	if err != nil {
		return fmt.Errorf("find %s in %s: %w", p.Inside, p.NetNS, err)
	}
	if err := host.LinkSetAlias(hostEnd, p.Alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", p.Host, err)
	}
	if err := errors.Join(silence(host, hostEnd), silence(inside, insideEnd), upLoopback(inside)); err != nil {
		return err
	}
	if err := inside.LinkSetUp(insideEnd); err != nil {
		return fmt.Errorf("set %s up: %w", p.Inside, err)
	}
	if err := host.LinkSetUp(hostEnd); err != nil {
		return fmt.Errorf("set %s up: %w", p.Host, err)
	}
	for _, addr := range p.Addrs {
		if err := connect(host, inside, hostEnd, insideEnd, addr); err != nil {
			return err
		}
	}
	return nil
}

// addrGenNone keeps the kernel from giving a link an IPv6 address by itself (linux/if_link.h, IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

// silence keeps a link from having a link-local address, with which the kernel would look for duplicates, join groups and ask for routers:
// nothing needs it, and a pod would have sent packets before it runs. A kernel without IPv6 has nothing to be silenced.
func silence(h *netlink.Handle, l netlink.Link) error {
	if err := h.LinkSetIP6AddrGenMode(l, addrGenNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set up %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func upLoopback(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// connect gives the inside one address and both sides the way to the other.
func connect(host, inside *netlink.Handle, hostEnd, insideEnd netlink.Link, addr netip.Addr) error {
	single := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
	gateway, everything := Gateway4, "0.0.0.0/0"
	if addr.Is6() {
		gateway, everything = Gateway6, "::/0"
	}
	_, all, _ := net.ParseCIDR(everything)
	address := &netlink.Addr{IPNet: single}
	if addr.Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := inside.AddrAdd(insideEnd, address); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	neighbour := func(l netlink.Link, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
		family := netlink.FAMILY_V4
		if ip.Is6() {
			family = netlink.FAMILY_V6
		}
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
			IP: ip.AsSlice(), HardwareAddr: mac}
	}
	if err := inside.NeighSet(neighbour(insideEnd, gateway, hostEnd.Attrs().HardwareAddr)); err != nil {
		return fmt.Errorf("add gateway neighbour: %w", err)
	}
	if err := host.NeighSet(neighbour(hostEnd, addr, insideEnd.Attrs().HardwareAddr)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", addr, err)
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: insideEnd.Attrs().Index, Dst: all,
		Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	if err := host.RouteReplace(&netlink.Route{LinkIndex: hostEnd.Attrs().Index, Dst: single,
		Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("add route to %s: %w", addr, err)
	}
	return nil
}

// Remove deletes the host end of that name, and with it the other end and all
// routes. An absent one is no error.
func Remove(name string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	return remove(h, name)
}

func remove(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// missing tells that a link is not there, or went while it was looked for: a pair goes by itself with the other
// end's network namespace.
func missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// Found is a pair as the kernel knows it.
type Found struct {
	Host  string
	Alias string
	Addrs []netip.Addr
}

// Pairs lists the pairs whose host end's name begins with prefix, with the
// addresses that are routed to them.
func Pairs(prefix string) ([]Found, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var found []Found
	index := map[int]int{}
	for _, l := range links {
		a := l.Attrs()
		if len(a.Name) >= len(prefix) && a.Name[:len(prefix)] == prefix && l.Type() == "veth" {
			index[a.Index] = len(found)
			found = append(found, Found{Host: a.Name, Alias: a.Alias})
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		i, ours := index[r.LinkIndex]
		if !ours || r.Dst == nil {
			continue
		}
		ones, bits := r.Dst.Mask.Size()
		if addr, ok := netip.AddrFromSlice(r.Dst.IP); ok && ones == bits && !addr.Unmap().IsLinkLocalUnicast() {
			found[i].Addrs = append(found[i].Addrs, addr.Unmap())
		}
	}
	return found, nil
}

// Routed lists the prefixes that the host has routes to, other than default
// routes, so that a new range can be chosen beside them.
func Routed() ([]netip.Prefix, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var prefixes []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		if addr, ok := netip.AddrFromSlice(r.Dst.IP); ok && ones > 0 {
			prefixes = append(prefixes, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return prefixes, nil
}
