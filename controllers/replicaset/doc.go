// Package replicaset keeps as many pods as a ReplicaSet or a ReplicationController asks for.
//
// It owns the pods of both kinds, which it creates, deletes, adopts and releases,
// and their status. It never looks at Deployments, never changes a pod that it keeps,
// and never touches a spec. Both kinds go through the same plan: what differs stands in a set.
package replicaset
