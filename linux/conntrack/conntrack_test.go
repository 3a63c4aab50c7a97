package conntrack

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestDeleteByFilter sends real datagrams through a namespace's loopback and deletes what the table has of them.
func TestDeleteByFilter(t *testing.T) {
	inside(t)
	table, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		func() { // not a subtest: that would have a thread of its own
			addr := netip.MustParseAddr(loopback)
			ports := map[uint16]bool{}
			for range 3 {
				ports[exchange(t, addr)] = true
			}
			f := Filter{Original: Tuple{Dst: addr, Proto: unix.IPPROTO_UDP}}
			flows, err := table.List(f)
			if err != nil || len(flows) != 3 {
				t.Fatalf("%v, %v; want three flows", flows, err)
			}
			one := flows[0]
			if !ports[one.Original.DstPort] || one.Reply.Src != addr || one.Reply.SrcPort != one.Original.DstPort {
				t.Errorf("flow %v, answered by %v", one.Original, one.Reply)
			}
			if one.Timeout <= 0 {
				t.Errorf("timeout %s", one.Timeout)
			}
			for _, f := range []Filter{
				{Original: Tuple{Dst: addr, Proto: unix.IPPROTO_UDP, DstPort: one.Original.DstPort}},
				{Reply: Tuple{Src: addr, Proto: unix.IPPROTO_UDP, SrcPort: one.Original.DstPort}},
				{Original: Tuple{Proto: unix.IPPROTO_UDP, DstPort: one.Original.DstPort}},
			} {
				if got, err := table.List(f); err != nil || len(got) != 1 || got[0].Original != one.Original {
					t.Errorf("%+v: %v, %v", f, got, err)
				}
			}
			if n, err := table.Delete(one, one); n != 1 || err != nil {
				t.Errorf("deleted %d, %v; want 1", n, err)
			}
			keep := flows[1].Original
			n, err := table.DeleteMatching(func(f *Flow) bool { return f.Original != keep }, f)
			if n != 1 || err != nil {
				t.Errorf("deleted %d, %v; want 1", n, err)
			}
			if left, err := table.List(f); err != nil || len(left) != 1 || left[0].Original != keep {
				t.Errorf("left: %v, %v", left, err)
			}
			if none, err := table.List(Filter{Original: Tuple{Dst: addr, Proto: unix.IPPROTO_TCP}}); err != nil || len(none) != 0 {
				t.Errorf("other protocol: %v, %v", none, err)
			}
		}()
	}
	if _, err := table.List(Filter{Original: Tuple{Src: netip.MustParseAddr("::1"), Dst: netip.MustParseAddr("127.0.0.1")}}); err == nil {
		t.Error("a filter with two families was taken")
	}
}

// inside moves the test into a network namespace of its own that tracks connections.
func inside(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread goes with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("needs a network namespace (root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Connections are tracked where a rule asks for their state.
	conn := &nftables.Conn{}
	table := conn.AddTable(&nftables.Table{Name: "track", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{Name: "track", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Counter{}}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// exchange sends one datagram to a new port, and gives the port.
func exchange(t *testing.T, addr netip.Addr) uint16 {
	t.Helper()
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
	c, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.ReadFromUDP(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return port
}
