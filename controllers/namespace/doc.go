// Package namespace empties namespaces that are being deleted, and then lets them go.
//
// It owns the finalizer "kubernetes" of namespaces and the conditions that tell how far a deletion
// has come. It deletes everything in such a namespace, of every kind that the registry
// knows: first the pods, and when those are gone the rest (KEP-5080). It never touches a namespace
// that is not being deleted, and never removes the finalizers of others.
//
// What other API servers hold in the namespace (aggregated groups) goes by way of Elsewhere; while one of them cannot be asked, the
// namespace stays, and its condition NamespaceDeletionDiscoveryFailure says so.
package namespace
