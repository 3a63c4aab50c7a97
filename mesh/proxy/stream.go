package proxy

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// forward carries a stream to a backend of the rule.
func (l *listener) forward(conn *client, rule *table.Rule, c net.Conn) {
	p := l.p
	began := time.Now()
	call := &call{p: p, view: p.current.Load(), rule: rule, began: began, code: 0}
	call.req.client = conn.remote
	call.listener = l.listenerOf(call.view)
	to, e := call.connect(l.p.ctx)
	if to == nil {
		p.stats.stream(rule.Name, false)
		return
	}
	e.active.Add(1)
	defer e.done()
	defer to.Close()
	stop := context.AfterFunc(p.ctx, func() { _ = to.Close() })
	defer stop()
	p.stats.stream(rule.Name, true)
	p.pipe(&buffered{c: c}, &buffered{c: to}, call.listener.Limits.StreamTimeout)
}

// connect dials an endpoint for a stream, and others if that fails.
func (c *call) connect(ctx context.Context) (net.Conn, *endpoint) {
	to := c.weighted()
	if to == nil {
		return nil, nil
	}
	cl, _ := c.view.clusters.Get(to.Backend)
	if cl == nil {
		return nil, nil
	}
	want := choice{now: c.began}
	for len(want.tried) < freeTries {
		s := cl.state.Load()
		if s.backend.Balance.Policy == table.Hash {
			want.key, want.keyed = c.req.client.Addr().String(), true
		}
		e := cl.pick(s, &want)
		if e == nil {
			return nil, nil
		}
		conn, err := e.dial(ctx, nil)
		if err == nil {
			cl.observe(e, succeeded, c.began)
			return conn, e
		}
		want.now = time.Now()
		cl.observe(e, unreachable, want.now)
		want.tried = append(want.tried, e)
	}
	return nil, nil
}

// pipe copies both ways. The end of one side is passed on as the end of that half; it returns when both have ended, when one broke, or when nothing moved
// in either direction for the time given.
func (p *Proxy) pipe(a, b *buffered, still time.Duration) {
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	var cutOff atomic.Bool
	cut := func() {
		cutOff.Store(true)
		_ = a.c.SetDeadline(longAgo)
		_ = b.c.SetDeadline(longAgo)
	}
	stop := context.AfterFunc(p.ctx, cut)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !p.copyHalf(b, a, still, &last, &cutOff) {
			cut()
		}
	}()
	if !p.copyHalf(a, b, still, &last, &cutOff) {
		cut()
	}
	<-done
}

// copyHalf copies until the end of from, and says whether that was orderly.
func (p *Proxy) copyHalf(from, to *buffered, still time.Duration, last *atomic.Int64, cutOff *atomic.Bool) bool {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for p.ctx.Err() == nil {
		if from.buffered() == 0 {
			_ = from.c.SetReadDeadline(time.Unix(0, last.Load()).Add(still))
			if cutOff.Load() { // set before the deadlines are, so that ours cannot undo that one unseen
				return false
			}
		}
		n, err := from.Read(*buffer)
		if n > 0 {
			last.Store(time.Now().UnixNano())
			_ = to.c.SetWriteDeadline(time.Now().Add(still))
			if _, werr := to.c.Write((*buffer)[:n]); werr != nil {
				return false
			}
			p.bytes.Add(uint64(n))
		}
		if err == io.EOF {
			if half, ok := to.c.(interface{ CloseWrite() error }); ok {
				return half.CloseWrite() == nil
			}
			return false
		}
		if err != nil {
			if isTimeout(err) && p.ctx.Err() == nil && time.Since(time.Unix(0, last.Load())) < still && !cutOff.Load() {
				continue // the other direction moved meanwhile
			}
			return false
		}
	}
	return false
}
