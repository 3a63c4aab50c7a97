package cluster

import (
	"net/netip"
	"testing"
)

func TestLastBlock(t *testing.T) {
	for _, test := range []struct {
		r, want string
		bits    int
	}{
		{"10.42.0.0/16", "10.42.255.0/24", 24}, {"10.0.0.0/8", "10.255.255.0/24", 24}, {"10.42.0.0/25", "invalid Prefix", 24},
		{"fd42::/56", "fd42::ff:ffff:ffff:ffff:ff00/120", 120}, {"fd42:1::/64", "fd42:1::ffff:ffff:ffff:ff00/120", 120}, {"fd42::/120", "invalid Prefix", 120},
	} {
		if got := lastBlock(netip.MustParsePrefix(test.r), test.bits).String(); got != test.want {
			t.Errorf("the last /%d of %s is %s, want %s", test.bits, test.r, got, test.want)
		}
	}
}
