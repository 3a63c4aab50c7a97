package statefulset_test

import (
	"testing"

	"coracle.dev/coracle/controllers/statefulset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{statefulset.Loop(), reconciletest.Kubelet(c)}
	})
}
