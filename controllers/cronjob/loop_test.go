package cronjob_test

import (
	"testing"

	"coracle.dev/coracle/controllers/cronjob"
	"coracle.dev/coracle/controllers/job"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/reconciletest"
)

func TestScenarios(t *testing.T) {
	reconciletest.Scenarios(t, "testdata/*.txtar", func(c *reconciletest.Cluster) []reconcile.Loop {
		return append(job.Loops(), cronjob.Loop(), reconciletest.Kubelet(c))
	})
}
