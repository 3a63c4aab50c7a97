package namespace_test

import (
	"testing"

	"coracle.dev/coracle/controllers/namespace"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return []reconcile.Loop{namespace.Loop(c.Registry), reconciletest.Kubelet(c)}
	})
}
