package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire gives the test's namespace a link on which packets to all addresses leave and vanish.
func wire(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	// What comes out at the other end is for no link address of there, and dropped first of all.
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "end"}
	if err == nil {
		err = netlink.LinkAdd(link)
	}
	if err == nil {
		err = netlink.LinkSetARPOff(link)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if end, failed := netlink.LinkByName("end"); failed == nil {
		err = errors.Join(err, netlink.LinkSetUp(end))
	}
	for _, a := range []string{"10.42.0.1/16"} {
		var addr *netlink.Addr
		if addr, err = netlink.ParseAddr(a); err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}); err != nil {
		t.Fatal(err)
	}
}

// datagrams sends UDP packets, each the first of a connection.
type datagrams struct {
	fd     int
	packet []byte
	n      uint32
}

func openDatagrams(t testing.TB) *datagrams {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	d := &datagrams{fd: fd, packet: make([]byte, 36)}
	d.packet[0], d.packet[8], d.packet[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(d.packet[12:], []byte{10, 42, 0, 1})
	return d
}

func (d *datagrams) send(t testing.TB, to netip.AddrPort) {
	d.n++
	binary.BigEndian.PutUint16(d.packet[2:], uint16(len(d.packet)))
	// Another client each time.
	binary.BigEndian.PutUint32(d.packet[12:], 0x0a2a0100+d.n>>15)
	copy(d.packet[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(d.packet[20:], uint16(1024+d.n&0x7fff))
	binary.BigEndian.PutUint16(d.packet[22:], to.Port())
	binary.BigEndian.PutUint16(d.packet[24:], 16)
	if err := unix.Sendto(d.fd, d.packet, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkFirstPacket is the time that the kernel has for the first packet of a connection, tracking included, beside so many services with
// ten endpoints each; what none of them leads elsewhere is there to be compared with.
func BenchmarkFirstPacket(b *testing.B) {
	for _, services := range []int{10, 1000, 10000} {
		namespace(b)
		wire(b)
		balancer, err := NewBalancer("bench", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, nil)
		if err != nil {
			b.Fatal(err)
		}
		all := map[string]*Group{}
		for n := range services {
			g := testGroup(n, 10)
			g.Routes[0].Front.Proto = 17
			all[fmt.Sprint(n)] = g
		}
		sticky := testGroup(12000, 10)
		sticky.Routes[0].Front.Proto, sticky.Sticky = 17, 3600e9
		all["sticky"] = sticky
		if err := balancer.Apply(all); err != nil {
			b.Fatal(err)
		}
		d := openDatagrams(b)
		for name, to := range map[string]netip.Addr{"none": netip.MustParseAddr("10.42.7.7"), "cluster-address": netip.AddrFrom4([4]byte{10, 43, 0, 5}), "sticky": sticky.Routes[0].Front.Addr} {
			b.Run(fmt.Sprint(services, "/", name), func(b *testing.B) {
				for b.Loop() {
					d.send(b, netip.AddrPortFrom(to, 80))
				}
			})
		}
		balancer.Close()
	}
}
