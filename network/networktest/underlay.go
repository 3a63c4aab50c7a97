package networktest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Machine is a network namespace that stands for a machine.
type Machine struct {
	// Path holds the namespace open.
	Path string
	// V4 and V6 are its addresses in the underlay.
	V4, V6 netip.Addr
}

// Underlay makes n machines on one bridge with the addresses 192.168.77.1 and fd77::1 onwards. The bridge is in a namespace of its own,
// so that nothing is left in the machine that the test runs on.
func Underlay(t *testing.T, n int) []Machine {
	t.Helper()
	bridge := Namespace(t, fmt.Sprintf("cot%d-bridge", os.Getpid()))
	inside(t, bridge, func(h *netlink.Handle) error {
		if err := up(h, "lo"); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br"
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up(h, "br")
	})
	var machines []Machine
	for i := 1; i <= n; i++ {
		m := Machine{Path: Namespace(t, fmt.Sprintf("cot%d-%d", os.Getpid(), i)),
			V4: netip.AddrFrom4([4]byte{192, 168, 77, byte(i)}), V6: netip.MustParseAddr(fmt.Sprintf("fd77::%d", i))}
		ns, err := netns.GetFromPath(m.Path)
		if err != nil {
			t.Fatal(err)
		}
		port := fmt.Sprintf("m%d", i)
		inside(t, bridge, func(h *netlink.Handle) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = port
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}); err != nil {
				return err
			}
			l, err := h.LinkByName(port)
			if err != nil {
				return err
			}
			br, err := h.LinkByName("br")
			if err != nil {
				return err
			}
			if err := h.LinkSetMaster(l, br); err != nil {
				return err
			}
			return up(h, port)
		})
		ns.Close()
		inside(t, m.Path, func(h *netlink.Handle) error {
			for _, name := range []string{"lo", "eth0"} {
				if err := up(h, name); err != nil {
					return err
				}
			}
			l, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: m.V4.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
				return err
			}
			const noDAD = 2 // IFA_F_NODAD
			return h.AddrAdd(l, &netlink.Addr{Flags: noDAD, IPNet: &net.IPNet{IP: m.V6.AsSlice(), Mask: net.CIDRMask(64, 128)}})
		})
		machines = append(machines, m)
	}
	return machines
}

func inside(t *testing.T, path string, f func(h *netlink.Handle) error) {
	t.Helper()
	var err error
	Inside(t, path, func() {
		var h *netlink.Handle
		if h, err = netlink.NewHandle(); err == nil {
			defer h.Close()
			err = f(h)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return h.LinkSetUp(l)
}

// Links lists the names of a namespace's links, sorted as the kernel has them.
func Links(t *testing.T, path string) []string {
	t.Helper()
	var names []string
	inside(t, path, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	return names
}

// Routes lists a namespace's routes of the main table, as text.
func Routes(t *testing.T, path string) []string {
	t.Helper()
	var all []string
	inside(t, path, func(h *netlink.Handle) error {
		routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
		for _, r := range routes {
			all = append(all, r.String())
		}
		return err
	})
	return all
}
