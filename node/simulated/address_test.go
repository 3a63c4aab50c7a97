package simulated

import (
	"net/netip"
	"testing"
)

func TestBlocks(t *testing.T) {
	for _, c := range []struct {
		all      string
		i, count int
		want     string
	}{
		{"100.64.0.0/10", 0, 1, "100.64.0.0/24"},
		{"100.64.0.0/10", 1, 1000, "100.64.1.0/24"},
		{"100.64.0.0/10", 999, 1000, "100.67.231.0/24"},
		{"10.0.0.0/24", 3, 4, "10.0.0.192/26"},
		{"10.0.0.0/28", 3, 100, "10.0.0.12/30"},
		{"fd00::/56", 17, 100, "fd00:0:0:11::/64"},
	} {
		if got := blockOf(netip.MustParsePrefix(c.all), c.i, c.count).String(); got != c.want {
			t.Errorf("block %d of %d in %s is %s, want %s", c.i, c.count, c.all, got, c.want)
		}
	}
}

func TestAddressesComeAgainWhenTheyAreFree(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.0.0.0/29"))
	used := map[netip.Addr]bool{}
	inUse := func(a netip.Addr) bool { return used[a] }
	var got []string
	for range 5 { // of 8, without network, gateway and broadcast
		a := p.take(inUse)
		used[a] = true
		got = append(got, a.String())
	}
	if len(used) != 5 || got[0] != "10.0.0.2" || got[4] != "10.0.0.6" {
		t.Fatalf("addresses: %v", got)
	}
	delete(used, netip.MustParseAddr("10.0.0.4"))
	if a := p.take(inUse); a.String() != "10.0.0.4" {
		t.Errorf("got %s, which is in use", a)
	}
}
