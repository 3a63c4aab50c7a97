package daemonset_test

import (
	"testing"

	"coracle.dev/coracle/controllers/daemonset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{daemonset.Loop(), reconciletest.Kubelet(c)}
	})
}
