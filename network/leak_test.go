package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"

	"coracle.dev/coracle/network/networktest"
)

// traces are the links, routes, neighbours and addresses of a namespace.
func traces(t *testing.T, path string) []string {
	t.Helper()
	var all []string
	networktest.Inside(t, path, func() {
		links, err := netlink.LinkList()
		if err != nil {
			t.Error(err)
		}
		for _, l := range links {
			all = append(all, "link "+l.Attrs().Name)
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				neighbours, err := netlink.NeighList(l.Attrs().Index, family)
				if err != nil {
					t.Error(err)
				}
				for _, n := range neighbours {
					all = append(all, "neighbour "+n.String())
				}
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Error(err)
		}
		for _, r := range routes {
			all = append(all, "route "+r.String())
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			t.Error(err)
		}
		for _, a := range addrs {
			all = append(all, "address "+a.String())
		}
	})
	slices.Sort(all)
	return all
}

// TestNothingIsLeft has pods come and go, CORACLE_CHURN of them (200 if not set), several at a time, some of which go by their namespace.
func TestNothingIsLeft(t *testing.T) {
	churn := 200
	if n, err := strconv.Atoi(os.Getenv("CORACLE_CHURN")); err == nil && n > 0 {
		churn = n
	}
	ctx := context.Background()
	machine := networktest.Namespace(t, fmt.Sprintf("leak%d", os.Getpid()))
	var pods *Pods
	var err error
	networktest.Inside(t, machine, func() { pods, err = NewPods("1eac", 1450) })
	if err != nil {
		t.Fatal(err)
	}
	pods.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.252.0.0/28"), netip.MustParsePrefix("fd42:1eac::/64")})
	before := traces(t, machine)
	const together = 10
	for done := 0; done < churn; done += together {
		var sandboxes []string
		for i := range together {
			name := fmt.Sprintf("leak%d-%d", os.Getpid(), i)
			space := networktest.Unnamed(t)
			sandbox := fmt.Sprintf("%s-%d", name, done)
			networktest.Inside(t, machine, func() { _, err = pods.Attach(ctx, sandbox, space.Path(), sandbox) })
			if err != nil {
				t.Fatalf("pod %d: %v", done+i, err)
			}
			if i%3 == 0 {
				space.Close() // the kernel takes the pair away with it, and Detach finds none
			} else {
				defer space.Close()
			}
			sandboxes = append(sandboxes, sandbox)
		}
		for _, s := range sandboxes {
			networktest.Inside(t, machine, func() { err = pods.Detach(ctx, s, "") })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if c := pods.Connected(); len(c) > 0 {
		t.Errorf("connected: %v", c)
	}
	for _, r := range pods.ranges {
		if len(r.used) > 0 {
			t.Errorf("addresses of %s in use: %v", r.prefix, r.used)
		}
	}
	if after := traces(t, machine); !slices.Equal(after, before) {
		t.Errorf("left after %d pods: %q\nbefore: %q", churn, after, before)
	}
}
