// Package network connects the pods of one node: it gives each a link, an
// address from the node's range and a way to the host, the other pods and the outside.
//
// Pods are routed, not bridged: every packet of a pod passes the host's
// routing and so its nftables hooks, where Services and NetworkPolicy act. The
// kernel is the only record of what is connected: after a restart the links that
// are there are read back. It never decides what runs, and knows pods
// only as sandboxes with a network namespace.
package network
