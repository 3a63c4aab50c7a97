package network

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"coracle.dev/coracle/linux/nft"
)

// mapped records what a balancer is told.
type mapped map[string]netip.AddrPort

func (m mapped) Set(id string, fronts []nft.Front, backends []netip.AddrPort, _ time.Duration) error {
	m[id] = backends[0]
	return nil
}

func (m mapped) Remove(id string) error {
	delete(m, id)
	return nil
}

func TestHostPortsGoWithTheirSandbox(t *testing.T) {
	pods, err := NewPods("7e5b", 0)
	if err != nil {
		t.Fatal(err)
	}
	m := mapped{}
	n := NewNode(pods, m)
	ports := []HostPort{
		{Front: nft.Front{Proto: nft.Protocol("UDP"), Port: 53}, Backend: netip.MustParseAddrPort("10.1.0.2:53")},
		{Front: nft.Front{Proto: nft.Protocol("UDP"), Port: 53}, Backend: netip.MustParseAddrPort("[fd42::2]:53")},
		{Front: nft.Front{Addr: netip.MustParseAddr("fd77::1"), Proto: nft.Protocol("SCTP"), Port: 99}, Backend: netip.MustParseAddrPort("[fd42::2]:99")},
	}
	if err := n.Map("a", ports); err != nil || len(m) != 3 {
		t.Fatalf("mapped %v, %v", m, err)
	}
	if err := n.Map("a", ports[:1]); err != nil || len(m) != 1 {
		t.Fatalf("after fewer were wanted: %v, %v", m, err)
	}
	if err := n.Map("b", ports[1:]); err != nil || len(m) != 3 {
		t.Fatalf("mapped for two: %v, %v", m, err)
	}
	if err := n.Detach(context.Background(), "a", ""); err != nil || len(m) != 2 {
		t.Fatalf("after one went: %v, %v", m, err)
	}
	if err := n.Detach(context.Background(), "b", ""); err != nil || len(m) != 0 {
		t.Fatalf("after both went: %v, %v", m, err)
	}
}
