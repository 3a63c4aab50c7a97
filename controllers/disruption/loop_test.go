package disruption_test

import (
	"testing"

	"coracle.dev/coracle/controllers/disruption"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return append(disruption.Loops(c.Registry), replicaset.Loop(), reconciletest.Kubelet(c))
	})
}
