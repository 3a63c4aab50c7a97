package bootstrap_test

import (
	"net/netip"
	"testing"

	"coracle.dev/coracle/controllers/bootstrap"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(*reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{bootstrap.Loop(bootstrap.Config{
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
			Endpoints:    []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:6443")},
		})}
	})
}
