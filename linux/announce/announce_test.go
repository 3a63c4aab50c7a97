package announce

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestNeighboursFindAddresses joins two namespaces by a link. On one side an Announcer answers, and the other side's kernel looks for its addresses.
func TestNeighboursFindAddresses(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread goes with the test
	client, err := netns.New()
	if err != nil {
		t.Fatalf("needs network namespaces (root): %v", err)
	}
	defer client.Close()
	server, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	setUp(t, client, server)
	if err := netns.Set(server); err != nil {
		t.Fatal(err)
	}
	a, err := Open(netip.MustParseAddr("192.0.2.1"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	link, err := netlink.LinkByName("b")
	if err != nil {
		t.Fatal(err)
	}
	mac := link.Attrs().HardwareAddr
	vips := []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}
	if err := a.Set(vips); err != nil {
		t.Fatal(err)
	}
	if err := netns.Set(client); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"ipv4", "ipv6"} { // so that the kernel gives up soon
		if err := os.WriteFile("/proc/sys/net/"+family+"/neigh/a/retrans_time_ms", []byte("100"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, vip := range vips {
		if got := resolve(t, vip); got.String() != mac.String() {
			t.Errorf("%s is at %v, want %s", vip, got, mac)
		}
	}
	if got := resolve(t, netip.MustParseAddr("192.0.2.10")); got != nil {
		t.Errorf("an address that nobody has is at %s", got)
	}
	// An address that another had before moves at once, without being asked for.
	wrong := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, vip := range []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")} {
		c, err := netlink.LinkByName("a")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: c.Attrs().Index, State: netlink.NUD_STALE, IP: vip.AsSlice(), HardwareAddr: wrong}); err != nil {
			t.Fatal(err)
		}
		if err := a.Set(append(vips, vip)); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for known(t, vip).String() != mac.String() {
			if time.Now().After(deadline) {
				t.Fatalf("%s is still at %v", vip, known(t, vip))
			}
			runtime.Gosched()
		}
	}
	if err := a.Set(nil); err != nil {
		t.Fatal(err)
	}
	if got := resolve(t, netip.MustParseAddr("192.0.2.12")); got != nil {
		t.Errorf("an address that is not answered for any more is at %s", got)
	}
}

// setUp joins the namespaces by a link whose ends are a and b.
func setUp(t *testing.T, client, server netns.NsHandle) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a"
	in, err := netlink.NewHandleAt(client)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := netlink.NewHandleAt(server)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := in.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b", PeerNamespace: netlink.NsFd(int(server))}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		h     *netlink.Handle
		name  string
		addrs []string
	}{{in, "a", []string{"192.0.2.2/24", "2001:db8::2/64"}}, {out, "b", []string{"192.0.2.1/24", "2001:db8::1/64"}}} {
		l, err := end.h.LinkByName(end.name)
		if err == nil {
			err = end.h.LinkSetUp(l)
		}
		for _, text := range end.addrs {
			addr, _ := netlink.ParseAddr(text)
			addr.Flags = 2 // IFA_F_NODAD
			if err == nil {
				err = end.h.AddrAdd(l, addr)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// resolve has the kernel look for an address, and gives what it found; nil if nobody answers.
func resolve(t *testing.T, addr netip.Addr) net.HardwareAddr {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		out, _ := exec.Command("ip", "neigh", "show", addr.String()).Output()
		if strings.Contains(string(out), "FAILED") {
			return nil
		}
		if mac := known(t, addr); mac != nil {
			return mac
		}
	}
	t.Fatalf("%s is neither found nor given up", addr)
	return nil
}

func known(t *testing.T, addr netip.Addr) net.HardwareAddr {
	t.Helper()
	all, err := netlink.NeighList(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr && len(n.HardwareAddr) > 0 {
			return n.HardwareAddr
		}
	}
	return nil
}
