package cluster

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFreeRanges(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, s := range texts {
			all = append(all, netip.MustParsePrefix(s))
		}
		return all
	}
	for _, test := range []struct {
		taken []netip.Prefix
		want  string
	}{
		{nil, "10.42.0.0/16"},
		{prefixes("10.42.7.0/24"), "10.44.0.0/16"},
		{prefixes("10.43.0.10/32", "10.44.0.0/15"), "10.46.0.0/16"},
		{prefixes("192.168.0.0/16"), "10.42.0.0/16"},
	} {
		if pods, _, err := freeRanges(test.taken); err != nil || pods.String() != test.want {
			t.Errorf("beside %v: %s, %v; want %s", test.taken, pods, err, test.want)
		}
	}
	if _, _, err := freeRanges(prefixes("10.0.0.0/8")); err == nil {
		t.Error("a range was found where all are taken")
	}
}

// TestReservations holds that an instance that is down keeps its ranges, and one that is gone does not.
func TestReservations(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test writes to " + rangesDir + ": run it as root")
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pods, services := netip.MustParsePrefix("10.250.0.0/16"), netip.MustParsePrefix("10.251.0.0/16")
	if err := reserve(dir, []netip.Prefix{pods, netip.MustParsePrefix("fd42::/56")}, []netip.Prefix{services}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unreserve(dir); err != nil {
			t.Error(err)
		}
	})
	seen := func(by string) bool {
		all, err := reserved(by)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(all, pods) && slices.Contains(all, netip.MustParsePrefix("fd42::/56")) && slices.Contains(all, services)
	}
	if !seen("/elsewhere") {
		t.Error("another instance does not see the reservation")
	}
	if seen(dir) {
		t.Error("an instance keeps itself out")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if seen("/elsewhere") {
		t.Error("the reservation of an instance that is gone is still seen")
	}
}

func TestParseRanges(t *testing.T) {
	for _, test := range []struct{ pods, services, want string }{
		{"", "", ""},
		{"10.42.0.0/16", "10.43.0.0/16", ""},
		{"10.42.0.0/16,fd42::/56", "10.43.0.0/16,fd43::/112", ""},
		{"fd42::/56, 10.42.0.0/16", "fd43::/112,10.43.0.0/16", ""},
		{"fd42::/56,10.42.0.0/16", "fd43::/112", ""},
		{"10.42.0.0/16", "", "pod-cidr and service-cidr: give both or neither"},
		{"10.42.0.1/16", "10.43.0.0/16", `pod-cidr: "10.42.0.1/16" is not a range such as 10.42.0.0/16 or fd42:0:0:0100::/56`},
		{"10.42.0.0/16,10.44.0.0/16", "10.43.0.0/16", `pod-cidr: "10.42.0.0/16,10.44.0.0/16": give one range, or one of IPv4 and one of IPv6`},
		{"10.42.0.0/16", "fd43::/112", "service-cidr: pods have no address of the family of fd43::/112 at that place: give the families of pod-cidr in the same order"},
		{"10.42.0.0/16", "10.42.128.0/17", "service-cidr: 10.42.128.0/17 overlaps with the pods' range 10.42.0.0/16"},
		{"fd42::/56", "fd43::/48", "service-cidr: fd43::/48 is larger than a /64"},
	} {
		got := ""
		if err := checkRanges(test.pods, test.services); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s and %s: %q, want %q", test.pods, test.services, got, test.want)
		}
	}
	for text, want := range map[string]int{"10.42.0.0/16": 24, "10.42.0.0/26": 26, "fd42::/56": 64, "fd42::/64": 64, "fd42::/112": 120} {
		if got := nodeBlockBits(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: blocks of /%d, want /%d", text, got, want)
		}
	}
}
