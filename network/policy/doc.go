// Package policy decides which traffic is allowed (NetworkPolicy of networking.k8s.io/v1, ClusterNetworkPolicy v1alpha2 of
// policy.networking.k8s.io) and keeps the node's packet rules so that this is what happens.
//
// Evaluate and Model are pure: policies, pods, namespaces and nodes in, a Verdict out that names the rule that decided.
// Compile asks the same functions for every class of peers and ports, and what they answer becomes sets and maps of nftables.
// Enforcer is the deed: it holds the node's filter table, installs a pod's verdicts before its link is there, follows the
// store, and cuts connections that are no longer allowed.
//
// It owns that table and nothing else, and never decides where a packet goes.
package policy
