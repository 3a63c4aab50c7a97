package deployment_test

import (
	"testing"

	"coracle.dev/coracle/controllers/deployment"
	"coracle.dev/coracle/controllers/replicaset"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func loops(c *reconciletest.Cluster) []reconcile.Loop {
	return []reconcile.Loop{deployment.Loop(), replicaset.Loop(), reconciletest.Kubelet(c)}
}

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", loops)
}
