// Package podautoscaler follows HorizontalPodAutoscalers: it sets the number of replicas of what they name so that
// metrics come near their targets.
//
// It owns the replicas of scale targets that an autoscaler names (through their subresource "scale") and the status of
// autoscalers. It never measures anything, never creates or deletes a pod, and does nothing at all while there is no
// autoscaler.
//
// # Where the figures come from
//
// A Plan is a pure function of a snapshot, and metrics do not stand in snapshots. A turn of an autoscaler therefore has two passes.
// The first finds what is to be asked and hands that to Apply as its effect, which asks (Metrics) and notes the answers in the
// loop's memory; it asks for another pass at once. The second finds answers to the questions that it would ask, not older than
// a turn, and decides. What is remembered is a value with a time, replaced and never changed, so a pass reads one state of
// it: decide is a function of a view and of nothing else.
//
// The memory also holds what the rules of behavior need and the API does not keep: past recommendations (for stabilization
// windows), past changes that this loop made (for policies), and which pods each autoscaler selects (so that two do not fight over
// one). Recommendations are noted by the effect of a decision, changes when the write of a scale succeeds. As upstream, a
// restart forgets all of it, and begins with the present size as the only recommendation.
//
// Turns come every 15 s by the autoscaler's own timer (Plan.After), and at once when its spec changes.
//
// The algorithm, its numbers and its words are those of https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
// and of kube-controller-manager 1.37: KEP-853 (behavior), KEP-1610 (container resources), KEP-2021 (scale to zero), KEP-4951
// (tolerance of one autoscaler).
package podautoscaler
