package protection_test

import (
	"testing"

	"coracle.dev/coracle/controllers/protection"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(*reconciletest.Cluster) []reconcile.Loop { return protection.Loops() })
}
