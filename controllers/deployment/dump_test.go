package deployment_test

import (
	"fmt"
	"testing"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/store"
)

// dump logs the replica sets and their pods at each revision, for a failure of the random test.
func dump(t *testing.T, h *reconciletest.Harness, from, to store.Revision) {
	for rev := from; rev <= to; rev++ {
		s, _ := h.SnapshotAt(rev)
		line := fmt.Sprint(rev, ": ")
		for rs := range client.ReplicaSets.List(s, "default") {
			a, r, term := 0, 0, 0
			for p := range client.Pods.Index(s, "owner", string(rs.UID)) {
				if podstate.Active(p) {
					a++
					if podstate.Ready(p) {
						r++
					}
				} else {
					term++
				}
			}
			line += fmt.Sprintf("[%s %s spec=%d st=%d/%d pods=%d ready=%d going=%d] ", rs.Name, rs.Spec.Template.Spec.Containers[0].Image, *rs.Spec.Replicas, rs.Status.Replicas, rs.Status.AvailableReplicas, a, r, term)
		}
		t.Log(line)
	}
}
