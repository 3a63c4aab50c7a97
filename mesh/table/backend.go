package table

import (
	"crypto/tls"
	"net/netip"
	"time"
)

// Protocol is what a backend speaks.
type Protocol uint8

const (
	// HTTP1 is HTTP/1.1, WebSocket and other upgrades included.
	HTTP1 Protocol = iota
	// HTTP2 is HTTP/2 from the first byte (h2c), or by ALPN with TLS. gRPC is this.
	HTTP2
	// Stream is bytes or datagrams.
	Stream
)

// State of an endpoint.
type State uint8

const (
	// Ready gets requests.
	Ready State = iota
	// Terminating still serves: it gets requests only where no endpoint is ready. Its idle connections are closed at once.
	Terminating
)

// Endpoint is one address of a backend.
type Endpoint struct {
	// Address and port.
	Address netip.AddrPort
	// Weight beside others; 0 counts as 1.
	Weight uint32
	// Priority: those with the lowest number are used as long as one of them is available. Locality preference and failover are compiled into it.
	Priority uint8
	// State is whether it gets new requests.
	State State
	// Zone for logs.
	Zone string
}

// Backend is where requests go: a Service's port, or a subset of it. It must not change once it is in a table. The id names it over tables:
// connections, health and balance stay when a new table has the id with other endpoints.
type Backend struct {
	// ID is unique in the table: "namespace/name:port", say.
	ID string
	// Endpoints in any order.
	Endpoints []Endpoint
	// Protocol that the endpoints speak.
	Protocol Protocol
	// TLS to the endpoints, nil for none.
	TLS *BackendTLS
	// Balance is how one endpoint is chosen.
	Balance Balance
	// Pool bounds connections.
	Pool Pool
	// Outlier takes endpoints that fail out of use for a while; nil only passes over those that cannot be connected to.
	Outlier *Outlier
}

// BackendTLS is how a connection to an endpoint is secured.
type BackendTLS struct {
	// Config has ServerName (SNI), RootCAs, client Certificates. InsecureSkipVerify is honoured. NextProtos is set by the proxy.
	Config *tls.Config
	// Names that the certificate may have instead of the server name (subjectAltNames): DNS names, or URIs such as spiffe://...
	// Empty means that the server name counts.
	Names []string
}

// Policy is a way to choose an endpoint.
type Policy uint8

const (
	// RoundRobin by weight.
	RoundRobin Policy = iota
	// LeastRequest takes the one with fewer requests under way out of two chosen at random.
	LeastRequest
	// Random by weight.
	Random
	// Hash keeps equal keys at one endpoint; a change of endpoints moves only the keys that it must.
	Hash
)

// HashKind is where a hash key comes from.
type HashKind uint8

const (
	// HashSource is the client's address.
	HashSource HashKind = iota
	// HashHeader is a header's value.
	HashHeader
	// HashCookie is a cookie's value.
	HashCookie
	// HashQuery is a query parameter's value.
	HashQuery
)

// HashKey is a part of a request.
type HashKey struct {
	// Kind of the part.
	Kind HashKind
	// Name of header, cookie or parameter.
	Name string
}

// Balance is how an endpoint is chosen.
type Balance struct {
	// Policy is the way.
	Policy Policy
	// Key for Hash; a request without it is balanced at random.
	Key HashKey
	// Panic is the percentage of endpoints that must be healthy; below, all are used. 0 means that only "none" is below.
	Panic uint8
}

// Pool bounds the connections to a backend.
type Pool struct {
	// Connections at most to one endpoint (503 beyond, HTTP/2 shares one). 1,024 by default.
	Connections int
	// Requests at most under way to the backend (503 beyond); 0 is no bound of its own.
	Requests int
	// Uses of one HTTP/1 connection at most; 0 is no bound.
	Uses int
	// Idle is how long an unused connection is kept. 50 s by default.
	Idle time.Duration
	// Connect is how long a connection, TLS included, may take. 5 s by default.
	Connect time.Duration
}

// Outlier is when an endpoint is taken out of use.
type Outlier struct {
	// Failures in a row that take it out: broken or refused connections, time-outs, 502, 503, 504. 5 by default.
	Failures int
	// Errors in a row, any 5xx counted; 0 counts none.
	Errors int
	// Ejection is how long the first time; each time again it is that much longer, up to ten times. 30 s by default.
	Ejection time.Duration
	// Share is the percentage of endpoints that may be out at once, though always one. 10 by default.
	Share uint8
}
