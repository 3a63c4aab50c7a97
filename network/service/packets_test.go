package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"coracle.dev/coracle/linux/conntrack"
	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/linux/nft"
	"coracle.dev/coracle/network"
	"coracle.dev/coracle/network/networktest"
)

// TestDatagrams: datagrams of IPv6 are balanced, a client that goes on from the same port is led elsewhere as soon as its backend goes,
// the client's address is kept where it should be, addresses that are not allowed are dropped, and no tracked flow is left in the end.
func TestDatagrams(t *testing.T) {
	pods, err := network.NewPods("5e7d", 0)
	if err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParsePrefix("10.255.80.0/28"), netip.MustParsePrefix("fd42:5e7d::/64")
	pods.SetRanges([]netip.Prefix{four, six})
	if _, err := link.EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	var paths []string
	backends := map[bool][]nft.Backend{} // by whether it is IPv6
	var clients []netip.Addr             // of the third pod, who is the client
	for i := range 3 {
		name := fmt.Sprintf("coracle-test-d%d", i)
		path := networktest.Namespace(t, name)
		addrs, err := pods.Attach(context.Background(), name, path, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pods.Detach(context.Background(), name, path) })
		paths = append(paths, path)
		if i == 2 {
			clients = addrs
			break
		}
		for _, a := range addrs {
			at := netip.AddrPortFrom(a, 5353)
			var c net.PacketConn
			networktest.Inside(t, path, func() { c, err = net.ListenPacket("udp", at.String()) })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			go answer(c, name)
			backends[a.Is6()] = append(backends[a.Is6()], nft.Backend{Addr: at, Local: true})
		}
	}
	const table = "coracle_test_5e7d"
	b, err := nft.NewBalancer(table, []netip.Prefix{four, six}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		if err := nft.DeleteTable(table); err != nil {
			t.Error(err)
		}
	})
	for _, family := range []struct {
		vip    netip.Addr
		client netip.Addr
	}{{netip.MustParseAddr("10.255.81.10"), clients[0]}, {netip.MustParseAddr("fd43:5e7d::10"), clients[1]}} {
		t.Run(family.vip.String(), func(t *testing.T) {
			pool := backends[family.vip.Is6()]
			set := func(allowed []netip.Prefix, pool ...nft.Backend) {
				t.Helper()
				g := &nft.Group{Pools: [][]nft.Backend{pool}, Routes: []nft.Route{{Front: nft.Front{Addr: family.vip, Proto: 17, Port: 53}, Allowed: allowed, Empty: nft.RefuseEmpty}}}
				if err := b.Apply(map[string]*nft.Group{"dns": g}); err != nil {
					t.Fatal(err)
				}
			}
			var c net.Conn
			networktest.Inside(t, paths[2], func() { c, err = net.Dial("udp", netip.AddrPortFrom(family.vip, 53).String()) })
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for round := range 6 { // one socket all the time
				set(nil, pool[round%2])
				want := fmt.Sprintf("coracle-test-d%d %s", round%2, family.client)
				if got, err := askDatagram(c, 5*time.Second); err != nil || got != want {
					t.Fatalf("round %d: %q, %v, want %q", round, got, err, want)
				}
			}
			set(nil)
			tracked, err := conntrack.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer tracked.Close()
			own := netip.PrefixFrom(family.client, family.client.BitLen())
			set([]netip.Prefix{netip.PrefixFrom(pool[0].Addr.Addr(), own.Bits())}, pool[0])
			if got, err := askDatagram(c, 300*time.Millisecond); err == nil {
				t.Errorf("a client that is not allowed is answered: %q", got)
			}
			set([]netip.Prefix{own}, pool[0])
			if got, err := askDatagram(c, 5*time.Second); err != nil {
				t.Errorf("a client that is allowed: %q, %v", got, err)
			}
			set(nil)
			flows, err := tracked.List(conntrack.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range flows {
				if f.Original.Dst == family.vip && f.Reply.Src != family.vip {
					t.Errorf("still led to a backend that is gone: %+v", f)
				}
			}
		})
	}
}

// answer tells every client who answers, and whom it sees.
func answer(c net.PacketConn, name string) {
	buf := make([]byte, 64)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(from.String())
		_, _ = c.WriteTo([]byte(name+" "+host), from)
	}
}

func askDatagram(c net.Conn, patience time.Duration) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}
