package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/mesh/table"
)

// listener is an open socket and its connections.
type listener struct {
	p       *Proxy
	id      string
	address netip.AddrPort
	socket  net.Listener
	packets *datagrams
	spec    atomic.Pointer[table.Listener]
	drained atomic.Bool
	h2      *http2.Server
	base    *http.Server

	mu      sync.Mutex // guards clients and ended
	clients map[*client]net.Conn
	ended   bool
	timer   *time.Timer
	// forget ends the wait for the end of the proxy.
	forget func() bool
}

// fits says that the socket can serve another version of its listener.
func (l *listener) fits(next *table.Listener) bool {
	now := l.spec.Load()
	return now.Address == next.Address && now.Network == next.Network && now.Transparent == next.Transparent
}

func (l *listener) take(next *table.Listener) { l.spec.Store(next) }

// listenerOf is what the view says of this listener; the last that was said if it is gone.
func (l *listener) listenerOf(v *view) *table.Listener {
	if t := v.table.Listener(l.id); t != nil {
		return t
	}
	return l.spec.Load()
}

// open binds a socket and begins to serve it.
func (p *Proxy) open(spec *table.Listener) (*listener, error) {
	l := &listener{p: p, id: spec.ID, clients: map[*client]net.Conn{}}
	l.spec.Store(spec)
	config := net.ListenConfig{Control: transparent(spec)}
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	if spec.Network == table.UDP {
		c, err := config.ListenPacket(ctx, "udp", spec.Address.String())
		if err != nil {
			return nil, err
		}
		l.address = c.LocalAddr().(*net.UDPAddr).AddrPort()
		l.packets = newDatagrams(l, c.(*net.UDPConn))
		p.work.Go(l.packets.serve)
		return l, nil
	}
	socket, err := config.Listen(ctx, "tcp", spec.Address.String())
	if err != nil {
		return nil, err
	}
	l.socket = socket
	l.address = socket.Addr().(*net.TCPAddr).AddrPort()
	l.h2, l.base = newServer2(&spec.Limits)
	l.forget = context.AfterFunc(p.ctx, l.cut)
	p.work.Go(l.accept)
	p.log.Info("listening", "listener", l.id, "address", l.address.String())
	return l, nil
}

func transparent(spec *table.Listener) func(string, string, syscall.RawConn) error {
	if !spec.Transparent {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		}); e != nil {
			return e
		}
		return err
	}
}

// remove stops accepting and lets what is there end, within Limits.Drain.
func (l *listener) remove() {
	l.drained.Store(true)
	if l.packets != nil {
		l.packets.close()
		return
	}
	_ = l.socket.Close()
	l.p.log.Info("listener removed", "listener", l.id)
	l.p.work.Go(func() { // tells HTTP/2 clients to go
		ctx, cancel := context.WithTimeout(l.p.ctx, time.Second)
		defer cancel()
		_ = l.base.Shutdown(ctx)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, raw := range l.clients {
		if c.state.Load() == idle {
			_ = raw.SetReadDeadline(longAgo)
		}
	}
	if len(l.clients) > 0 {
		l.timer = time.AfterFunc(l.spec.Load().Limits.Drain, l.cut)
	} else {
		l.ended = true
		l.forget()
	}
}

// cut closes what is left.
func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	_ = l.socket.Close()
	for _, raw := range l.clients {
		_ = raw.Close()
	}
}

// accept takes connections until the socket is closed.
func (l *listener) accept() {
	pause := time.Duration(0)
	for {
		c, err := l.socket.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || l.p.ctx.Err() != nil {
				break
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second) // out of descriptors: others must end first
			select {
			case <-time.After(pause):
			case <-l.p.ctx.Done():
			}
			continue
		}
		pause = 0
		cl := &client{l: l, c: c}
		cl.state.Store(busy)
		cl.remote = address(c.RemoteAddr())
		cl.local = address(c.LocalAddr())
		if !l.admit(cl, c) {
			l.p.overflow.Add(1)
			_ = c.Close()
			continue
		}
		l.p.work.Go(func() {
			defer l.leave(cl, c)
			l.serve(cl, c)
		})
	}
}

func address(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func (l *listener) admit(c *client, raw net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || len(l.clients) >= l.spec.Load().Limits.Connections {
		return false
	}
	l.clients[c] = raw
	l.p.connections.Add(1)
	return true
}

func (l *listener) leave(c *client, raw net.Conn) {
	_ = c.c.Close()
	_ = raw.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.clients, c)
	l.p.connections.Add(-1)
	if len(l.clients) == 0 && l.timer != nil {
		l.timer.Stop()
		l.forget()
	}
}

// serve chooses the chain of a connection and serves it.
func (l *listener) serve(conn *client, raw net.Conn) {
	spec := l.spec.Load()
	in := buffered{c: raw}
	_ = raw.SetDeadline(time.Now().Add(spec.Limits.HeaderTimeout))
	secure := false
	if spec.Inspect() {
		hello, err := readHello(&in)
		if err != nil {
			return
		}
		secure, conn.serverName = hello.secure, hello.serverName
	}
	chain := spec.Chain(conn.local, secure, conn.serverName)
	if chain == nil {
		return // nobody is served by this name: the handshake cannot be answered
	}
	var c net.Conn = raw
	if in.w > 0 {
		c = &replayed{Conn: raw, in: &in}
	}
	if chain.TLS != nil {
		t := tls.Server(c, chain.TLS.Config)
		if err := t.HandshakeContext(l.p.ctx); err != nil {
			return
		}
		state := t.ConnectionState()
		conn.secure = &state
		c = t
	}
	_ = raw.SetDeadline(time.Time{})
	conn.c = c
	switch {
	case chain.Forward != nil:
		l.forward(conn, chain.Forward, c)
	case conn.secure != nil && conn.secure.NegotiatedProtocol == "h2":
		l.serve2(conn, c)
	default:
		s := &server1{l: l, conn: conn}
		s.in.c = c
		if s.serve() {
			_ = raw.SetDeadline(time.Time{})
			before := &buffered{c: c, buf: append([]byte(preface), s.in.buf[s.in.r:s.in.w]...)}
			before.w = len(before.buf)
			l.serve2(conn, &replayed{Conn: c, in: before})
		}
	}
}

// replayed is a connection of which something was read before its time.
type replayed struct {
	net.Conn
	in *buffered
}

func (r *replayed) Read(p []byte) (int, error) {
	if r.in != nil && r.in.buffered() > 0 {
		return r.in.Read(p)
	}
	r.in = nil
	return r.Conn.Read(p)
}

// CloseWrite closes our half.
func (r *replayed) CloseWrite() error {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
