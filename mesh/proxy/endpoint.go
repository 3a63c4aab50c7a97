package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/mesh/table"
)

// endpoint is one address of a cluster with its connections.
type endpoint struct {
	cluster *cluster
	address netip.AddrPort
	name    string
	// token names the endpoint in session cookies; it does not tell its address.
	token string
	// out is until when the endpoint is out of use, in Unix nanoseconds.
	out              atomic.Int64
	failures, errors atomic.Int32
	active           atomic.Int32
	// ejections and ejected are guarded by cluster.mu.
	ejections int
	ejected   bool
	gone      atomic.Bool

	mu   sync.Mutex
	idle []*upstream
	open int
	h2   *http2.Transport
	// conns are the HTTP/2 connections, dialing the one that is being made.
	conns   []*conn2
	dialing *dialing
}

func newEndpoint(c *cluster, address netip.AddrPort) *endpoint {
	return &endpoint{cluster: c, address: address, name: address.String(),
		token: strconv.FormatUint(hash(c.id+" "+address.String()), 36)}
}

// upstream is an HTTP/1 connection to an endpoint.
type upstream struct {
	buffered
	endpoint *endpoint
	out      []byte
	fields   fields
	body     body
	raw      syscall.RawConn
	used     int
	unused   *time.Timer
	closed   atomic.Bool
}

var (
	errFull    = errors.New("too many connections to the backend")
	errDropped = errors.New("connection to the backend was dropped")
)

// take returns an idle connection that is still open, or a new one. reused says which.
func (e *endpoint) take(ctx context.Context) (u *upstream, reused bool, err error) {
	pool := &e.cluster.state.Load().backend.Pool
	for {
		e.mu.Lock()
		n := len(e.idle)
		if n == 0 {
			break
		}
		u := e.idle[n-1]
		e.idle[n-1] = nil
		e.idle = e.idle[:n-1]
		e.mu.Unlock()
		u.unused.Stop()
		if u.alive() {
			return u, true, nil
		}
		u.close()
	}
	limit := pool.Connections
	if limit == 0 {
		limit = 1024
	}
	if e.open >= limit {
		e.mu.Unlock()
		return nil, false, errFull
	}
	e.open++
	e.mu.Unlock()
	c, err := e.dial(ctx, []string{"http/1.1"})
	if err != nil {
		e.mu.Lock()
		e.open--
		e.mu.Unlock()
		return nil, false, err
	}
	u = &upstream{endpoint: e}
	u.c = c
	raw := c
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if s, ok := raw.(syscall.Conn); ok {
		u.raw, _ = s.SyscallConn()
	}
	return u, false, nil
}

// alive says that the other side neither closed an idle connection nor sent something that nobody asked for.
func (u *upstream) alive() bool {
	if u.closed.Load() || u.buffered.buffered() > 0 {
		return false
	}
	if u.raw == nil {
		return true
	}
	ok := true
	err := u.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			return true
		}
		// With TLS a session ticket (22, 23) may come at any time; an alert (21) is the end.
		_, secure := u.c.(*tls.Conn)
		ok = err == nil && n > 0 && secure && b[0] != 21
		return true
	})
	return ok && err == nil
}

// put gives a connection back for the next request.
func (u *upstream) put() {
	e := u.endpoint
	pool := &e.cluster.state.Load().backend.Pool
	u.used++
	if u.buffered.buffered() > 0 || e.gone.Load() || pool.Uses > 0 && u.used >= pool.Uses || u.c.SetDeadline(time.Time{}) != nil {
		u.close()
		return
	}
	u.wait = nil
	u.body = body{}
	wait := pool.Idle
	if wait == 0 {
		wait = defaultUnused
	}
	if cap(u.out) > 64<<10 {
		u.out = nil
	}
	if len(u.buf) > 64<<10 {
		u.buf = nil
		u.r, u.w = 0, 0
	}
	if u.unused == nil {
		u.unused = time.AfterFunc(wait, u.expire)
	} else {
		u.unused.Reset(wait)
	}
	e.mu.Lock()
	if e.gone.Load() {
		e.mu.Unlock()
		u.unused.Stop()
		u.close()
		return
	}
	e.idle = append(e.idle, u)
	e.mu.Unlock()
}

// expire closes a connection that was idle for too long.
func (u *upstream) expire() {
	e := u.endpoint
	e.mu.Lock()
	for i, other := range e.idle {
		if other == u {
			e.idle = append(e.idle[:i], e.idle[i+1:]...)
			e.mu.Unlock()
			u.close()
			return
		}
	}
	e.mu.Unlock()
}

// close ends the connection. It may be called from anywhere, more than once.
func (u *upstream) close() {
	if u.closed.Swap(true) {
		return
	}
	_ = u.c.Close()
	u.endpoint.mu.Lock()
	u.endpoint.open--
	u.endpoint.mu.Unlock()
}

// retire closes what is idle. An endpoint that is gone takes no connection back after that.
func (e *endpoint) retire() {
	e.mu.Lock()
	idle := e.idle
	e.idle = nil
	unused := e.retire2()
	e.mu.Unlock()
	for _, u := range idle {
		u.unused.Stop()
		u.close()
	}
	for _, c := range unused {
		_ = c.cc.Close()
	}
}

// done counts a request less, and closes what a gone endpoint still has.
func (e *endpoint) done() {
	if e.active.Add(-1) == 0 && e.gone.Load() {
		e.retire()
	}
}

var dialer = net.Dialer{KeepAlive: 30 * time.Second}

// source is where connections to the endpoint come from, not valid for what the kernel chooses.
func (e *endpoint) source() netip.Addr {
	if e.cluster.source == nil {
		return netip.Addr{}
	}
	return e.cluster.source(e.address.Addr())
}

// latePort has the kernel choose the port of a connection from an address of ours when it knows the other side. Otherwise such ports are taken
// for all endpoints together, and a busy gateway would run out of them.
func latePort(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // what does not know it, does without
	})
}

// dial connects, TLS included.
func (e *endpoint) dial(ctx context.Context, alpn []string) (net.Conn, error) {
	b := e.cluster.state.Load().backend
	timeout := b.Pool.Connect
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	from := dialer
	if a := e.source(); a.IsValid() {
		from.LocalAddr = &net.TCPAddr{IP: a.AsSlice()}
		from.Control = latePort
	}
	c, err := from.DialContext(ctx, "tcp", e.name)
	if err != nil {
		return nil, &notSent{err}
	}
	if b.TLS == nil {
		return c, nil
	}
	t := tls.Client(c, clientConfig(b.TLS, alpn, e.address))
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, &notSent{err}
	}
	if len(alpn) == 1 && alpn[0] == "h2" && t.ConnectionState().NegotiatedProtocol != "h2" {
		_ = t.Close()
		return nil, &notSent{errors.New("the backend does not speak HTTP/2")}
	}
	return t, nil
}

// notSent is an error before anything was sent: the request may go elsewhere.
type notSent struct{ err error }

func (n *notSent) Error() string { return n.err.Error() }
func (n *notSent) Unwrap() error { return n.err }

func clientConfig(t *table.BackendTLS, alpn []string, address netip.AddrPort) *tls.Config {
	c := t.Config.Clone()
	if c.ServerName == "" {
		c.ServerName = address.Addr().String()
	}
	c.NextProtos = alpn
	if len(t.Names) == 0 || c.InsecureSkipVerify {
		return c
	}
	roots := c.RootCAs
	c.InsecureSkipVerify = true // the names are checked below, the chain too
	c.VerifyConnection = func(s tls.ConnectionState) error {
		leaf := s.PeerCertificates[0]
		options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, one := range s.PeerCertificates[1:] {
			options.Intermediates.AddCert(one)
		}
		if _, err := leaf.Verify(options); err != nil {
			return err
		}
		return verifyNames(leaf, t.Names)
	}
	return c
}

func verifyNames(leaf *x509.Certificate, names []string) error {
	for _, name := range names {
		if leaf.VerifyHostname(name) == nil {
			return nil
		}
		for _, uri := range leaf.URIs {
			if uri.String() == name {
				return nil
			}
		}
	}
	return fmt.Errorf("the backend's certificate has none of the names %q", names)
}
