package nft

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

// everything is a few groups that have all that a group can have, in both families.
func everything() map[string]*Group {
	four, six := testGroup(7, 3), &Group{Pools: [][]Backend{nil, nil}}
	four.Pools[1] = four.Pools[0][:1]
	vip := netip.MustParseAddr("192.0.2.7")
	four.Routes = append(four.Routes,
		Route{Front: Front{Addr: vip, Proto: 6, Port: 80}, Pool: 1, Empty: DropEmpty, Allowed: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.9/32")}},
		Route{Front: Front{Addr: vip, Proto: 6, Port: 80, Near: true}, Source: HideOutside, Empty: RefuseEmpty},
		Route{Front: Front{Proto: 132, Port: 30132, Family: 4, Near: true}, Source: HideOutside})
	four.Refused = []netip.Addr{vip}
	for i := range 3 {
		six.Pools[i%2] = append(six.Pools[i%2], Backend{Addr: netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x42, 15: byte(i + 1)}), 53), Local: i == 0})
	}
	six.Routes = []Route{
		{Front: Front{Addr: netip.MustParseAddr("fd43::10"), Proto: 17, Port: 53}, Source: HideOutside, Empty: RefuseEmpty},
		{Front: Front{Addr: netip.MustParseAddr("2001:db8::7"), Proto: 6, Port: 53}, Pool: 1, Allowed: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/48")}, Empty: DropEmpty},
		{Front: Front{Proto: 6, Port: 30053, Family: 6}, Source: HideSource}}
	sticky4, sticky6 := testGroup(8, 3), *six
	sticky4.Sticky, sticky6.Sticky = time.Hour, 90*time.Second
	sticky6.Routes = []Route{
		{Front: Front{Addr: netip.MustParseAddr("fd43::11"), Proto: 17, Port: 53}, Source: HideOutside},
		{Front: Front{Proto: 17, Port: 30054, Family: 6, Near: true}, Source: HideSource}}
	refuses, drops := testGroup(9, 0), testGroup(10, 0)
	drops.Routes[0].Empty = DropEmpty
	return map[string]*Group{"four": four, "six": six, "sticky4": sticky4, "sticky6": &sticky6, "refuses": refuses, "drops": drops}
}

// TestNftPrintsTheTable: an administrator's nft can print what is in the kernel, the elements too, as text and as JSON. Release 1.0.6 (Debian
// 12) aborts at rules that look a map's answer up in another map.
func TestNftPrintsTheTable(t *testing.T) {
	namespace(t)
	inside := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}
	b, err := NewBalancer("printed", inside, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Apply(everything()); err != nil {
		t.Fatal(err)
	}
	remember(t, b, 50)
	text := list(t, "list", "ruleset")
	for _, want := range []string{
		"10.43.0.7 . tcp . 80", "192.0.2.7 . tcp . 80 . 198.51.100.0/24", "fd43::11 . udp . 53", "10.44.0.21 . 8080", "masquerade",
		"numgen random mod 3 offset", "dnat ip to", "dnat ip6 to", "@clients4", "timeout 1h", "reject",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the listing does not have %q", want)
		}
	}
	if strings.Contains(text, "[invalid type]") {
		t.Error("the listing has values of no type")
	}
	if t.Failed() || os.Getenv("SHOW") != "" {
		t.Log(text)
	}
	var parsed struct{ Nftables []map[string]any }
	if err := json.Unmarshal([]byte(list(t, "-j", "list", "ruleset")), &parsed); err != nil {
		t.Fatalf("JSON: %v", err)
	}
	rules := 0
	for _, o := range parsed.Nftables {
		if o["rule"] != nil {
			rules++
		}
	}
	if rules < 40 {
		t.Errorf("%d rules in JSON, want all", rules)
	}
}

// remember has n clients of sticky fronts, as packets of theirs would.
func remember(t *testing.T, b *Balancer, n int) {
	t.Helper()
	for key, all := range b.claims {
		v := all[0].value
		if !v.pool.isSticky() || key.family != 4 || key.addr.IsValid() {
			continue
		}
		f := b.kernel.family(4)
		for i := range n {
			e := nftables.SetElement{Key: append(key.bytes(), 198, 51, 100, byte(i)), Val: number(v.pool.tokens[i%len(v.pool.tokens)]), Timeout: time.Hour}
			if err := b.kernel.conn.SetAddElements(f.all.clients, []nftables.SetElement{e}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.kernel.conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// list is what nft prints in the test's namespace.
func list(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed")
	}
	cmd := exec.Command(path, args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		t.Fatalf("nft %s: %v\n%s", fmt.Sprint(args), err, problem.String())
	}
	for line := range strings.Lines(problem.String()) {
		// Release 1.0.6 has no JSON for what sticky fronts do to their map of clients, says so, and leaves it out.
		if !strings.Contains(line, "stmt ops map have no json callback") {
			t.Errorf("nft %s complains: %s", fmt.Sprint(args), line)
		}
	}
	return out.String()
}
