package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// End is one end of a pair as the kernel has it.
type End struct {
	MAC   string
	MTU   int
	Up    bool
	Addrs []netip.Addr
	// Families of which there is a default route by way of it.
	Default4, Default6 bool
}

// Inspect looks at a link in the namespace that a path holds open, "" for the present one. ok is false if there is none of that name.
func Inspect(path, name string) (e End, ok bool, err error) {
	h, err := handleAt(path)
	if err != nil {
		return e, false, err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if missing(err) {
		return e, false, nil
	}
	if err != nil {
		return e, false, fmt.Errorf("find link %s: %w", name, err)
	}
	e = End{MAC: l.Attrs().HardwareAddr.String(), MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return e, false, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.IsLinkLocalUnicast() {
			e.Addrs = append(e.Addrs, addr.Unmap())
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return e, false, fmt.Errorf("list routes of %s: %w", name, err)
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue
		}
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		e.Default4, e.Default6 = e.Default4 || r.Gw.To4() != nil, e.Default6 || r.Gw.To4() == nil
	}
	return e, true, nil
}

func handleAt(path string) (*netlink.Handle, error) {
	if path == "" {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("netlink: %w", err)
		}
		return h, nil
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", path, err)
	}
	return h, nil
}
