package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"coracle.dev/coracle/linux/link"
	"coracle.dev/coracle/network/networktest"
)

func TestPodsReachEachOther(t *testing.T) {
	ctx := context.Background()
	p, err := NewPods("7e57", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Attach(ctx, "early", "/nowhere", "early"); err == nil {
		t.Fatal("attached without a range")
	}
	p.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.255.77.0/29")})
	if _, err := link.EnableForwarding(); err != nil {
		t.Fatal(err)
	}
	nsA, nsB := networktest.Namespace(t, "coracle-test-a"), networktest.Namespace(t, "coracle-test-b")
	a, err := p.Attach(ctx, "sandbox-a", nsA, "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Detach(ctx, "sandbox-a", nsA) })
	b, err := p.Attach(ctx, "sandbox-b", nsB, "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Detach(ctx, "sandbox-b", nsB) })

	var l net.Listener
	networktest.Inside(t, nsB, func() { l, err = net.Listen("tcp4", netip.AddrPortFrom(b[0], 8080).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(c.RemoteAddr().(*net.TCPAddr).IP.String()))
			c.Close()
		}
	}()
	ask := func() (string, error) {
		c, err := net.DialTimeout("tcp4", l.Addr().String(), 3*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	if _, err := ask(); err != nil {
		t.Fatalf("host to pod: %v", err)
	}
	var seen string
	networktest.Inside(t, nsA, func() { seen, err = ask() })
	if err != nil || seen != a[0].String() {
		t.Fatalf("pod to pod: peer saw %q, want %s; %v", seen, a[0], err)
	}
	// A new agent reads the same pods back from the kernel.
	again, err := NewPods("7e57", 0)
	if err != nil {
		t.Fatal(err)
	}
	again.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.255.77.0/29")})
	if got, err := again.Attach(ctx, "sandbox-a", nsA, "a"); err != nil || got[0] != a[0] {
		t.Fatalf("adopted %v, %v; want %v", got, err, a)
	}
	if err := RemoveAll("7e57"); err != nil {
		t.Fatal(err)
	}
	if left, err := link.Pairs(linkPrefix("7e57")); err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestAddressesRunOut(t *testing.T) {
	a := &addresses{prefix: netip.MustParsePrefix("10.1.2.0/29"), used: map[netip.Addr]string{}}
	a.next = a.first()
	seen := map[netip.Addr]bool{}
	for range 5 { // .2 to .6
		addr, err := a.take("s")
		if err != nil || seen[addr] {
			t.Fatalf("address %s, %v; had %v", addr, err, seen)
		}
		seen[addr] = true
	}
	if _, err := a.take("s"); !errors.Is(err, ErrNoAddress) {
		t.Fatalf("a sixth address: %v", err)
	}
	free := netip.MustParseAddr("10.1.2.4")
	delete(a.used, free)
	if got, err := a.take("s"); err != nil || got != free {
		t.Fatalf("got %s, %v; want %s", got, err, free)
	}
}
