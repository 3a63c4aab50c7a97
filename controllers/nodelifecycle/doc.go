// Package nodelifecycle notices nodes that fall silent, keeps pods away from
// nodes that are not fit, and evicts pods that do not tolerate that.
//
// It owns the conditions of nodes that no longer report, the taints node.kubernetes.io/* that stand for
// conditions, the readiness of pods on nodes that are not ready, and the deletion of pods because of
// NoExecute taints. It never decides that a node is healthy: only the node's agent does.
package nodelifecycle
