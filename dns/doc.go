// Package dns answers the cluster's names from a store snapshot, so that a new endpoint
// is visible in the next query, and forwards all other names.
//
// It owns the answers (records.go, pure: snapshot and question in, records out), the
// servers on UDP and TCP, and the forwarding. It keeps no copy of the cluster's state.
// The names are those of the Kubernetes DNS specification 1.1.0
// (github.com/kubernetes/dns/blob/master/docs/specification.md).
package dns
