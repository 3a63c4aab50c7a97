// Package balance gives Services of type LoadBalancer their addresses without any add-on, and has nodes answer for them.
//
// Loop is the controller: it chooses addresses from pools, or takes those of the nodes, and owns status.loadBalancer and the
// finalizer of the Services whose class is unset or Class. It never touches those of other classes. Announcer runs on every node: of each
// address from a pool one ready node is the bearer, which all nodes find by the same pure function (Bearer); that one answers ARP requests and
// neighbour solicitations, and tells the network when it has become the bearer. What happens to the packets is package service's.
package balance
