package table

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Table is all that a proxy serves, at one revision.
type Table struct {
	revision  int64
	listeners Map[*Listener]
	backends  Map[*Backend]
}

// Edit is what differs between a Table and the next one.
type Edit struct {
	// Revision of the store that the next table is made for.
	Revision int64
	// Listeners and Backends that are new or replaced; their ids say which.
	Listeners []*Listener
	Backends  []*Backend
	// RemoveListeners and RemoveBackends are ids. Ids that are not there are ignored.
	RemoveListeners, RemoveBackends []string
}

// New returns a table of these listeners and backends.
func New(revision int64, listeners []*Listener, backends []*Backend) (*Table, error) {
	return (&Table{}).With(Edit{Revision: revision, Listeners: listeners, Backends: backends})
}

// With returns the next table. It fails when a listener was not compiled or two listeners of the edit have one id.
func (t *Table) With(e Edit) (*Table, error) {
	listeners := make(map[string]*Listener, len(e.Listeners))
	for _, l := range e.Listeners {
		if l == nil || !l.compiled {
			return nil, errors.New("a listener was not made by NewListener")
		}
		if listeners[l.ID] != nil {
			return nil, fmt.Errorf("two listeners have the id %q", l.ID)
		}
		listeners[l.ID] = l
	}
	backends := make(map[string]*Backend, len(e.Backends))
	for _, b := range e.Backends {
		backends[b.ID] = b
	}
	return &Table{
		revision:  e.Revision,
		listeners: t.listeners.With(listeners, e.RemoveListeners),
		backends:  t.backends.With(backends, e.RemoveBackends),
	}, nil
}

// Revision is the revision of the store that the table was made for.
func (t *Table) Revision() int64 { return t.revision }

// Listener returns the listener with an id, or nil.
func (t *Table) Listener(id string) *Listener { l, _ := t.listeners.Get(id); return l }

// Backend returns the backend with an id, or nil.
func (t *Table) Backend(id string) *Backend { b, _ := t.backends.Get(id); return b }

// Listeners are all listeners.
func (t *Table) Listeners() Map[*Listener] { return t.listeners }

// Backends are all backends.
func (t *Table) Backends() Map[*Backend] { return t.backends }

// Network is the transport of a listener.
type Network uint8

const (
	// TCP carries HTTP, TLS and plain streams.
	TCP Network = iota
	// UDP carries datagrams; the only chain of such a listener has a Forward rule.
	UDP
)

// Listener is one socket. Gateway listeners that share an address and a port become one Listener with several chains and hosts.
type Listener struct {
	// ID names the listener over tables: a new table that has the id with the same Address and Network keeps the socket and its connections.
	ID string
	// Address and port to bind. An unspecified address is all addresses. Port 0 lets the kernel choose (tests).
	Address netip.AddrPort
	// Port is what clients know, for redirects; that of Address if 0.
	Port uint16
	// Network is TCP or UDP.
	Network Network
	// Transparent takes connections that were meant for other addresses (tproxy): the chain is chosen by that original destination.
	Transparent bool
	// Chains in any order; which one serves a connection is chosen by specificity, see Chain.
	Chains []*Chain
	// Limits of the listener; zero values mean the defaults named there.
	Limits Limits
	// TrustForwarded keeps X-Forwarded-* headers of clients and adds to them; otherwise they are replaced.
	TrustForwarded bool

	compiled bool
	index    chains
}

// Limits bound what clients can take.
type Limits struct {
	// HeaderBytes bounds the head of a request (431 beyond). 64 KiB by default.
	HeaderBytes int
	// Headers bounds the number of header lines (431 beyond). 128 by default.
	Headers int
	// HeaderTimeout is how long the head of a request may take (408 beyond), TLS handshake likewise. 15 s by default.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request. 75 s by default.
	IdleTimeout time.Duration
	// StreamTimeout is how long a body, a TCP stream or an upgraded connection may stand still in both directions. 5 min by default.
	StreamTimeout time.Duration
	// Connections bounds the open connections (UDP: sessions) of the listener; more are closed at once. 16,384 by default.
	Connections int
	// Drain is how long connections of a removed listener may go on. 30 s by default.
	Drain time.Duration
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (l Limits) withDefaults() Limits {
	l.HeaderBytes = or(l.HeaderBytes, 64<<10)
	l.Headers = or(l.Headers, 128)
	l.HeaderTimeout = or(l.HeaderTimeout, 15*time.Second)
	l.IdleTimeout = or(l.IdleTimeout, 75*time.Second)
	l.StreamTimeout = or(l.StreamTimeout, 5*time.Minute)
	l.Connections = or(l.Connections, 16384)
	l.Drain = or(l.Drain, 30*time.Second)
	return l
}

// Chain says what is done with the connections of a listener that it is chosen for: first by destination (address and port, then port alone,
// then chains without destination), within these by server name (exact, then the longest wildcard, then chains without names). A
// connection without TLS only reaches chains that terminate no TLS and have no server names.
type Chain struct {
	// Name for logs and metrics.
	Name string
	// ServerNames are TLS server names, exact or "*.example.com" (one or more labels). None means any, and no name at all.
	ServerNames []string
	// Destinations are original destinations of a Transparent listener; an unspecified address means every address at that port.
	Destinations []netip.AddrPort
	// TLS terminates TLS. Nil leaves the stream as it is: with ServerNames that is passthrough by the name in the ClientHello.
	TLS *TLS
	// Hosts serves HTTP/1 and HTTP/2. Exactly one of Hosts and Forward is set.
	Hosts *Hosts
	// Forward serves TCP and UDP (of the Rule only Name, Backends and Timeouts count).
	Forward *Rule
}

// ClientAuth says whether clients must show a certificate.
type ClientAuth uint8

const (
	// NoClientCertificate asks for none.
	NoClientCertificate ClientAuth = iota
	// OptionalClientCertificate verifies one that is shown.
	OptionalClientCertificate
	// RequireClientCertificate refuses the handshake without one that verifies.
	RequireClientCertificate
	// AnyClientCertificate requires one and lets every one pass (Gateway API: AllowInsecureFallback).
	AnyClientCertificate
)

// TLS is how a chain terminates TLS. It must not be changed once a listener was made with it.
type TLS struct {
	// Config is what the handshake uses: certificates, client roots, versions, NextProtos ("h2", "http/1.1"). MakeTLS makes one.
	Config *tls.Config
}

// MakeTLS returns the termination with these certificates. A client gets the certificate whose names fit its server name best,
// else the first. ALPN lists protocols by preference, nil means h2 and http/1.1.
func MakeTLS(certificates []tls.Certificate, alpn []string, auth ClientAuth, adjust func(*tls.Config)) (*TLS, error) {
	if len(certificates) == 0 {
		return nil, errors.New("TLS needs a certificate")
	}
	if alpn == nil {
		alpn = []string{"h2", "http/1.1"}
	}
	c := &tls.Config{Certificates: certificates, NextProtos: alpn, MinVersion: tls.VersionTLS12}
	switch auth {
	case OptionalClientCertificate:
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case RequireClientCertificate:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case AnyClientCertificate:
		c.ClientAuth = tls.RequireAnyClientCert
	}
	if adjust != nil {
		adjust(c)
	}
	return &TLS{Config: c}, nil
}

// NewListener compiles l. The chains must not change afterwards. It fails when two chains would serve the same connections, or a
// chain does neither or both of HTTP and forwarding.
func NewListener(l Listener) (*Listener, error) {
	l.Limits = l.Limits.withDefaults()
	l.compiled, l.index = true, chains{}
	for _, c := range l.Chains {
		if (c.Hosts == nil) == (c.Forward == nil) {
			return nil, fmt.Errorf("chain %q of listener %q: exactly one of Hosts and Forward is needed", c.Name, l.ID)
		}
		if l.Network == UDP && (c.Forward == nil || c.TLS != nil || len(l.Chains) > 1) {
			return nil, fmt.Errorf("listener %q: a UDP listener has one chain that forwards", l.ID)
		}
		if err := l.index.add(c); err != nil {
			return nil, fmt.Errorf("listener %q: %w", l.ID, err)
		}
	}
	return &l, nil
}

// Inspect says whether a connection's first bytes must be looked at before its chain can be chosen.
func (l *Listener) Inspect() bool { return l.index.tls }

// Chain chooses the chain of a connection by its original destination (the zero AddrPort if that does not matter), whether it began with a TLS
// ClientHello, and the server name in it. Nil means that nobody serves it.
func (l *Listener) Chain(destination netip.AddrPort, secure bool, serverName string) *Chain {
	return l.index.find(destination, secure, serverName)
}

// chains finds a chain by destination and server name.
type chains struct {
	destinations map[netip.AddrPort]*names
	any          names
	tls          bool
}

// names finds a chain by server name.
type names struct {
	plain *Chain
	named map[string]*Chain
}

func (x *chains) add(c *Chain) error {
	x.tls = x.tls || c.TLS != nil || len(c.ServerNames) > 0
	if len(c.Destinations) == 0 {
		return x.any.add(c)
	}
	if x.destinations == nil {
		x.destinations = map[netip.AddrPort]*names{}
	}
	for _, d := range c.Destinations {
		if d.Addr().IsUnspecified() {
			d = netip.AddrPortFrom(netip.Addr{}, d.Port())
		}
		if x.destinations[d] == nil {
			x.destinations[d] = &names{}
		}
		if err := x.destinations[d].add(c); err != nil {
			return err
		}
	}
	return nil
}

func (n *names) add(c *Chain) error {
	if c.TLS == nil && len(c.ServerNames) == 0 {
		if n.plain != nil {
			return fmt.Errorf("chains %q and %q both serve connections without TLS", n.plain.Name, c.Name)
		}
		n.plain = c
		return nil
	}
	if n.named == nil {
		n.named = map[string]*Chain{}
	}
	serverNames := c.ServerNames
	if len(serverNames) == 0 {
		serverNames = []string{"*"}
	}
	for _, name := range serverNames {
		name = strings.ToLower(name)
		if other := n.named[name]; other != nil {
			return fmt.Errorf("chains %q and %q both serve the name %q", other.Name, c.Name, name)
		}
		n.named[name] = c
	}
	return nil
}

func (n *names) find(secure bool, serverName string) *Chain {
	if secure && n.named != nil {
		if c, ok := specific(serverName, func(key string) (*Chain, bool) { c, ok := n.named[key]; return c, ok }); ok {
			return c
		}
	}
	return n.plain
}

func (x *chains) find(destination netip.AddrPort, secure bool, serverName string) *Chain {
	if x.destinations != nil {
		if n := x.destinations[destination]; n != nil {
			if c := n.find(secure, serverName); c != nil {
				return c
			}
		}
		if n := x.destinations[netip.AddrPortFrom(netip.Addr{}, destination.Port())]; n != nil {
			if c := n.find(secure, serverName); c != nil {
				return c
			}
		}
	}
	return x.any.find(secure, serverName)
}
