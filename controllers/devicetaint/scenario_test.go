package devicetaint_test

import (
	"testing"

	"coracle.dev/coracle/controllers/devicetaint"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(*reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{devicetaint.Loop()}
	})
}
