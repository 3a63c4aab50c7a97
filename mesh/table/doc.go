// Package table is what the proxy decides by: listeners, hosts, routes and backends as typed, immutable values that are compiled once
// and read by many. Ingress, Gateway API and the mesh all compile into it; mesh/proxy carries it out.
//
// It owns the shapes and the matching. It never opens a socket, reads a clock, starts a goroutine or knows a Kubernetes object.
//
// A Table is made for one revision of the store. What did not change between two tables is the same pointer in both, so that making
// the next table and taking it over cost what the change costs: With shares everything that it does not replace. Whoever compiles keeps the
// VirtualHosts, Chains and Listeners that it made and hands the same pointers in again.
//
// The way of a connection: Listener (a socket) -> Chain (by original destination, then by the TLS server name) -> for TCP a Rule; for
// HTTP Hosts -> VirtualHost -> Route -> Rule -> Backend (by id) -> Endpoint.
package table
