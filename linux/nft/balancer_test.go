package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
)

// namespace moves the test to a network namespace of its own.
func namespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread goes with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("needs a network namespace (root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
}

func testGroup(n int, backends int) *Group {
	g := &Group{Pools: [][]Backend{nil, nil}}
	vip := netip.AddrFrom4([4]byte{10, 43, byte(n >> 8), byte(n)})
	g.Routes = []Route{{Front: Front{Addr: vip, Proto: 6, Port: 80}, Source: HideOutside, Empty: RefuseEmpty},
		{Front: Front{Proto: 6, Port: uint16(20000 + n), Family: 4}, Source: HideSource, Empty: RefuseEmpty}}
	for i := range backends {
		at := n*backends + i
		g.Pools[0] = append(g.Pools[0], Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(44 + at>>16), byte(at >> 8), byte(at)}), 8080), Local: i == 0})
	}
	return g
}

// TestChurnLeavesNothing has services of all kinds come, change and go, and then looks at all that the kernel has.
func TestChurnLeavesNothing(t *testing.T) {
	namespace(t)
	b, err := NewBalancer("churn", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	before := contents(t)
	for i := range 200 {
		id := fmt.Sprint("s", i)
		for step := range 4 {
			g := testGroup(i, 1+(i+step)%7)
			if i%2 == 0 {
				g.Sticky = time.Hour
			}
			six := netip.AddrFrom16([16]byte{0xfd, 0x43, 15: byte(i)})
			g.Pools[1] = []Backend{{Addr: netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x42, 14: byte(i), 15: byte(step)}), 80), Local: true}}
			g.Routes = append(g.Routes, Route{Front: Front{Addr: six, Proto: 17, Port: 53}, Pool: 1, Empty: DropEmpty},
				Route{Front: Front{Addr: six, Proto: 17, Port: 53, Near: true}, Pool: 1, Source: HideSource})
			if step == 2 {
				g.Routes[0].Allowed = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("198.51.100.7/32")}
				g.Refused = []netip.Addr{six}
			}
			if step == 3 {
				g.Pools = [][]Backend{nil, nil}
			}
			if err := b.Apply(map[string]*Group{id: g}); err != nil {
				t.Fatalf("service %d, step %d: %v", i, step, err)
			}
		}
		if i >= 5 {
			if err := b.Remove(fmt.Sprint("s", i-5)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rest := map[string]*Group{}
	for i := 195; i < 200; i++ {
		rest[fmt.Sprint("s", i)] = nil
	}
	if err := b.Apply(rest); err != nil {
		t.Fatal(err)
	}
	if after := contents(t); !slices.Equal(before, after) {
		t.Errorf("left behind:\n%v\nwas\n%v", after, before)
	}
	if len(b.made)+len(b.claims)+len(b.locals)+len(b.refused)+len(b.groups) > 0 || len(b.plans) > unused {
		t.Errorf("remembered: %d groups, %d fronts, %d plans", len(b.made), len(b.claims), len(b.plans))
	}
	if left := planChains(t); left > unused {
		t.Errorf("%d chains of plans are left, at most %d are kept", left, unused)
	}
}

// contents lists the sets with the number of their elements, and the chains, but for what is kept of plans.
func contents(t *testing.T) []string {
	t.Helper()
	conn := &nftables.Conn{}
	table := &nftables.Table{Name: "churn", Family: nftables.TableFamilyINet}
	sets, err := conn.GetSets(table)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			t.Fatal(err)
		}
		if s.Name != "plans" {
			all = append(all, fmt.Sprint(s.Name, " ", len(elements)))
		}
	}
	slices.Sort(all)
	return all
}

func planChains(t *testing.T) (n int) {
	t.Helper()
	chains, err := (&nftables.Conn{}).ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if len(c.Name) > 4 && c.Name[:4] == "plan" {
			n++
		}
	}
	return n
}

// TestPlacesChangeLittle holds that an endpoint that goes costs its own place and the last one's.
func TestPlacesChangeLittle(t *testing.T) {
	before := testGroup(0, 100).Pools[0]
	after := places(before, slices.Delete(slices.Clone(before), 17, 18))
	changed := 0
	for i := range after {
		if after[i].Addr != before[i].Addr {
			changed++
		}
	}
	if len(after) != 99 || changed != 1 {
		t.Errorf("%d places, %d of them changed", len(after), changed)
	}
}

// BenchmarkEndpointChange swaps one endpoint of a service with ten, beside so many other services.
func BenchmarkEndpointChange(b *testing.B) {
	for _, services := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			namespace(b)
			balancer, err := NewBalancer("bench", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer balancer.Close()
			all := map[string]*Group{}
			for n := range services {
				all[fmt.Sprint(n)] = testGroup(n, 10)
			}
			began := time.Now()
			if err := balancer.Apply(all); err != nil {
				b.Fatal(err)
			}
			full := time.Since(began)
			sizes := []int{9, 10}
			for i := 0; b.Loop(); i++ {
				g := testGroup(3, 10)
				g.Pools[0] = g.Pools[0][:sizes[i%2]]
				if err := balancer.Apply(map[string]*Group{"3": g}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(full.Milliseconds()), "full-ms")
		})
	}
}

// TestLimitsGoWithTheirFront: where two want the same front, the clients that may use it are those of the one that has it.
func TestLimitsGoWithTheirFront(t *testing.T) {
	namespace(t)
	b, err := NewBalancer("churn", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	limited := func(n int, ranges ...string) *Group {
		g := testGroup(0, n)
		g.Routes = g.Routes[:1]
		for _, r := range ranges {
			g.Routes[0].Allowed = append(g.Routes[0].Allowed, netip.MustParsePrefix(r))
		}
		return g
	}
	for _, step := range []struct {
		change map[string]*Group
		want   []string
	}{
		{map[string]*Group{"a": limited(1, "192.0.2.0/24"), "b": limited(2, "192.0.2.0/24")}, []string{"limited4 1", "backends4 1"}},
		{map[string]*Group{"a": nil}, []string{"limited4 1", "backends4 2"}},
		{map[string]*Group{"c": limited(3)}, []string{"limited4 1", "backends4 2"}},
		{map[string]*Group{"b": nil}, []string{"limited4 0", "backends4 3"}},
		{map[string]*Group{"c": nil}, []string{"limited4 0", "backends4 0"}},
	} {
		if err := b.Apply(step.change); err != nil {
			t.Fatal(err)
		}
		got := contents(t)
		for _, want := range step.want {
			if !slices.Contains(got, want) {
				t.Errorf("after %v: no %q in %q", slices.Collect(maps.Keys(step.change)), want, got)
			}
		}
	}
}
