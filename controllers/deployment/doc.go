// Package deployment rolls Deployments out: it makes a ReplicaSet for each pod
// template and moves replicas from the old ones to the new one.
//
// It owns the replica sets of a deployment (their size, revision and the annotations copied from the
// deployment), the deployment's status, and its annotation deployment.kubernetes.io/revision.
// It never creates or deletes pods, and never changes a deployment's spec.
package deployment
