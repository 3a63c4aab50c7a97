// Package proxy carries out what a table.Table says: it listens, terminates TLS, reads HTTP/1.1 and HTTP/2, chooses routes and endpoints and
// moves bytes. The gateways of Ingress and Gateway API and the mesh are this one data plane.
//
// It owns sockets, connections to backends, their health, and metrics. It never decides what is served, never reads the store and
// never knows a Kubernetes object: Apply hands it the next table.
//
// Apply is atomic for requests: each reads one view (table and clusters) at its beginning, and a connection that is open reads the new one at its next
// request. A listener that is in both tables keeps its socket. One that is gone stops accepting, lets requests under way finish and closes what is
// left after Limits.Drain. An endpoint that is gone loses its idle connections at once and the others after their request; a request of
// which nothing was sent, or whose pooled connection had been closed before an answer and which may be repeated, goes to another endpoint.
//
// HTTP/1 is read by this package's own parser, which refuses whatever two parsers could read differently: both lengths at once or several, line
// folding, blanks before colons, bare line feeds, odd chunk sizes. Framing towards backends is always written anew. HTTP/2
// is golang.org/x/net/http2 on both sides.
//
// Goroutines: one a listener, one a client connection (HTTP/2: and one a stream), one more while a request with a streamed body is under way or while a slow
// answer is waited for, two a TCP stream, one a UDP session. All end with their connection; Close waits for them.
//
// Lock order: Proxy.mu, then listener.mu, then cluster and endpoint locks. None is held while something is read, written or dialled.
package proxy
