package nft

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/linux/conntrack"
)

// sent sends n first packets of one client to a front and says which backends they were led to.
func sent(t *testing.T, d *datagrams, to netip.AddrPort, n int) map[netip.AddrPort]int {
	t.Helper()
	tracked, err := conntrack.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tracked.Close()
	for range n {
		d.send(t, to)
	}
	led := map[netip.AddrPort]int{}
	_, err = tracked.DeleteMatching(func(f *conntrack.Flow) bool {
		led[netip.AddrPortFrom(f.Reply.Src, f.Reply.SrcPort)]++
		return true
	}, conntrack.Filter{Original: conntrack.Tuple{Dst: to.Addr(), Proto: 17, DstPort: to.Port()}})
	if err != nil {
		t.Fatal(err)
	}
	return led
}

// TestStickyClients: connections of a client go to one backend while that is there and the time after the last has not passed, and to
// another then; nothing is remembered of the clients of a front that is gone. And the numbers that rules hand on in a packet's priority
// do not leave with it.
func TestStickyClients(t *testing.T) {
	namespace(t)
	wire(t)
	b, err := NewBalancer("sticky", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	list(t, "add table inet witness; add chain inet witness out { type filter hook postrouting priority 300; }; "+
		"add rule inet witness out meta l4proto udp counter; add rule inet witness out meta priority & 0xe0000000 == 0xc0000000 counter")
	g := testGroup(0, 10)
	g.Routes = g.Routes[:1]
	g.Routes[0].Front.Proto = 17
	front := netip.AddrPortFrom(g.Routes[0].Front.Addr, 80)
	set := func(sticky time.Duration, backends []Backend) {
		t.Helper()
		if err := b.Apply(map[string]*Group{"s": {Routes: g.Routes, Pools: [][]Backend{backends}, Sticky: sticky}}); err != nil {
			t.Fatal(err)
		}
	}
	remembered := func() int {
		t.Helper()
		all, err := b.kernel.conn.GetSetElements(b.kernel.family(4).addresses.clients)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	d := openDatagrams(t)
	all := g.Pools[0]
	only := func(led map[netip.AddrPort]int, n int) netip.AddrPort {
		t.Helper()
		for at, count := range led {
			if count == n {
				return at
			}
		}
		t.Fatalf("a sticky client was led to %v, want one backend for %d connections", led, n)
		return netip.AddrPort{}
	}
	set(time.Hour, all)
	first := only(sent(t, d, front, 40), 40)
	for range 3 { // others come and go: it stays
		set(time.Hour, append([]Backend{{Addr: first}}, all[7:]...))
		set(time.Hour, all)
		if at := only(sent(t, d, front, 20), 20); at != first {
			t.Fatalf("a sticky client moved from %s to %s", first, at)
		}
	}
	var others []Backend
	for _, k := range all {
		if k.Addr != first {
			others = append(others, k)
		}
	}
	set(time.Hour, others)
	second := only(sent(t, d, front, 40), 40)
	set(time.Hour, all)
	if at := only(sent(t, d, front, 40), 40); at != second || at == first {
		t.Errorf("a client whose backend %s had gone and come went to %s, want %s", first, at, second)
	}
	set(0, all)
	if n := remembered(); n != 0 {
		t.Errorf("%d clients of a front that is not sticky are remembered", n)
	}
	if led := sent(t, d, front, 100); len(led) < 3 {
		t.Errorf("a client of a front that is not sticky was led to %v", led)
	}
	// After the time it may be anybody's; what was remembered is gone.
	set(time.Second, all)
	only(sent(t, d, front, 1), 1)
	for until := time.Now().Add(30 * time.Second); remembered() > 0; {
		if time.Now().After(until) {
			t.Fatal("a client is remembered long after its time")
		}
		time.Sleep(20 * time.Millisecond)
	}
	set(time.Hour, all)
	only(sent(t, d, front, 40), 40)
	if err := b.Remove("s"); err != nil {
		t.Fatal(err)
	}
	if n := remembered(); n != 0 {
		t.Errorf("%d clients of a front that is gone are remembered", n)
	}
	witness := list(t, "list", "table", "inet", "witness")
	if strings.Count(witness, "counter packets") != 2 || strings.Count(witness, "counter packets 0 ") != 1 || !strings.Contains(witness, "packets 0 bytes 0\n\t}") {
		t.Errorf("packets left with a number of the balancer's:\n%s", witness)
	}
}
