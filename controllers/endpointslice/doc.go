// Package endpointslice keeps the EndpointSlices of services: those that select
// pods, and by mirroring those whose Endpoints somebody else writes.
//
// It owns the slices with the label endpointslice.kubernetes.io/managed-by:
// endpointslice-controller.k8s.io or endpointslicemirroring-controller.k8s.io, which it creates, changes
// and deletes so that as few slices as possible change. It never touches slices of others.
// The rules are those of KEP-752; the hints those of KEP-4444 and KEP-3015.
package endpointslice
