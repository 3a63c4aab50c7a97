// Package statefulset keeps the pods of StatefulSets: numbered, each with a name,
// volume claims and a place in the order of its own.
//
// It owns the pods of a stateful set, the claims made from its templates, its ControllerRevisions and
// its status. It never deletes a claim itself (owner references let the garbage collector, if the
// retention policy says so), and never forces a pod out.
package statefulset
