package proxy

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// datagrams serves a UDP listener: one session with a socket of its own for each client address, so that answers find their way.
type datagrams struct {
	l    *listener
	c    *net.UDPConn
	mu   sync.Mutex // guards sessions
	open map[netip.AddrPort]*session
}

// session is a client's way to one endpoint.
type session struct {
	c        *net.UDPConn
	endpoint *endpoint
	last     atomic.Int64
}

// sessionIdle is how long a UDP session may be silent, at most: nobody says goodbye in UDP.
const sessionIdle = time.Minute

func newDatagrams(l *listener, c *net.UDPConn) *datagrams {
	return &datagrams{l: l, c: c, open: map[netip.AddrPort]*session{}}
}

func (d *datagrams) serve() {
	stop := make(chan struct{})
	d.l.p.work.Go(func() { // Close of the proxy ends the socket
		select {
		case <-d.l.p.ctx.Done():
			d.close()
		case <-stop:
		}
	})
	defer close(stop)
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := d.c.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if d.l.drained.Load() || d.l.p.ctx.Err() != nil {
				break
			}
			continue // an ICMP error of another client
		}
		s := d.session(from)
		if s == nil {
			d.l.p.datagramsDropped.Add(1)
			continue
		}
		s.last.Store(time.Now().UnixNano())
		_, _ = s.c.Write(buffer[:n])
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.open {
		_ = s.c.Close()
	}
}

// close ends the socket and with it all sessions.
func (d *datagrams) close() {
	d.l.drained.Store(true)
	_ = d.c.Close()
}

// session returns the session of a client, a new one if there is none or its endpoint is gone. Nil means that the datagram is dropped.
func (d *datagrams) session(from netip.AddrPort) *session {
	d.mu.Lock()
	s := d.open[from]
	full := len(d.open) >= d.l.spec.Load().Limits.Connections
	d.mu.Unlock()
	if s != nil && !s.endpoint.gone.Load() {
		return s
	}
	if s != nil {
		_ = s.c.Close()
	} else if full {
		return nil
	}
	view := d.l.p.current.Load()
	spec := d.l.listenerOf(view)
	if len(spec.Chains) == 0 {
		return nil
	}
	rule := spec.Chains[0].Forward
	c := &call{p: d.l.p, view: view, rule: rule, began: time.Now(), listener: spec}
	c.req.client = from
	e := c.endpointFor()
	if e == nil {
		d.l.p.stats.stream(rule.Name, false)
		return nil
	}
	var local *net.UDPAddr
	if a := e.source(); a.IsValid() {
		local = &net.UDPAddr{IP: a.AsSlice()}
	}
	conn, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(e.address))
	if err != nil {
		return nil
	}
	s = &session{c: conn, endpoint: e}
	s.last.Store(time.Now().UnixNano())
	d.mu.Lock()
	d.open[from] = s
	d.mu.Unlock()
	d.l.p.stats.stream(rule.Name, true)
	d.l.p.work.Go(func() { d.answers(from, s, min(sessionIdle, spec.Limits.StreamTimeout)) })
	return s
}

func (c *call) endpointFor() *endpoint {
	to := c.weighted()
	if to == nil {
		return nil
	}
	cl, _ := c.view.clusters.Get(to.Backend)
	if cl == nil {
		return nil
	}
	want := choice{now: c.began}
	s := cl.state.Load()
	if s.backend.Balance.Policy == table.Hash {
		want.key, want.keyed = c.req.client.Addr().String(), true
	}
	return cl.pick(s, &want)
}

// answers carries datagrams back until the session is silent.
func (d *datagrams) answers(to netip.AddrPort, s *session, idle time.Duration) {
	defer func() {
		_ = s.c.Close()
		d.mu.Lock()
		if d.open[to] == s {
			delete(d.open, to)
		}
		d.mu.Unlock()
	}()
	buffer := make([]byte, 64<<10)
	for {
		_ = s.c.SetReadDeadline(time.Unix(0, s.last.Load()).Add(idle))
		n, err := s.c.Read(buffer)
		if err != nil {
			if isTimeout(err) && time.Since(time.Unix(0, s.last.Load())) < idle {
				continue
			}
			return
		}
		s.last.Store(time.Now().UnixNano())
		if _, err := d.c.WriteToUDPAddrPort(buffer[:n], to); err != nil {
			return
		}
	}
}
