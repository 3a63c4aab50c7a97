package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// incoming is a request as a client sent it, of either protocol.
type incoming struct {
	method, target, path, query, authority, scheme string
	major, minor                                   int
	fields                                         fields
	// length of the body, -1 if unknown; framed says that the client gave a length, 0 included.
	length   int64
	framed   bool
	body     io.Reader
	trailers func() fields
	// trailer2 is filled at the end of an HTTP/2 body.
	trailer2   http.Header
	upgrade    string
	client     netip.AddrPort
	local      netip.AddrPort
	secure     *tls.ConnectionState
	serverName string
}

// sink is where an answer goes.
type sink interface {
	// inform sends an interim answer (1xx).
	inform(code int, f fields) error
	// respond sends the answer: head, body, trailers. The error says which side broke.
	respond(r *response) error
	// switchProtocols sends the 101 and copies both ways until the end.
	switchProtocols(c *call, r *response) error
	// watch calls abort when the client goes away before stop is called. It must not be called while the body is being read.
	watch(abort func()) (stop func())
	// stopBody makes a read of the request's body fail, now and later.
	stopBody()
	// started says that a part of the final answer was sent.
	started() bool
}

// call is one request on its way. One goroutine owns it; abort may come from others.
type call struct {
	p        *Proxy
	view     *view
	listener *table.Listener
	req      incoming
	out      sink
	base     context.Context
	route    *table.Route
	rule     *table.Rule
	backend  string
	endpoint *endpoint
	began    time.Time
	tries    int
	refusals int
	code     int
	reason   string

	deadline, tryDeadline time.Time
	buffer                []byte
	whole                 bool // buffer is all of the body
	send                  *bodySend
	// feed is the body over HTTP/2, once it was tried to send one.
	feed *feed
	// pulse is when something last moved, where HTTP/2 is on one of the sides.
	pulse *pulse
	// starved says that the client did not send the body that it announced.
	starved   atomic.Bool
	watching  bool
	unwatcher func()

	mu      sync.Mutex // guards what follows
	stop    func()
	aborted bool
}

func (c *call) reset(p *Proxy) {
	buffer := c.buffer[:0]
	if cap(buffer) > 64<<10 {
		buffer = nil
	}
	f := c.req.fields[:0]
	*c = call{p: p, buffer: buffer}
	c.req.fields = f
}

// hold says what abort does from now on. It returns false if the call was aborted before.
func (c *call) hold(stop func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted {
		return false
	}
	c.stop = stop
	return true
}

// release ends a hold and says whether the call goes on.
func (c *call) release() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = nil
	return !c.aborted
}

// abort gives the call up, since the client is gone.
func (c *call) abort() {
	c.mu.Lock()
	stop := c.stop
	c.aborted = true
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (c *call) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.aborted
}

// until is the deadline for an operation that may take at most d.
func (c *call) until(d time.Duration) time.Time {
	t := time.Now().Add(d)
	if !c.deadline.IsZero() && c.deadline.Before(t) {
		t = c.deadline
	}
	if !c.tryDeadline.IsZero() && c.tryDeadline.Before(t) {
		t = c.tryDeadline
	}
	return t
}

// limit is the deadline of the try, zero for none.
func (c *call) limit() time.Time {
	if c.deadline.IsZero() || !c.tryDeadline.IsZero() && c.tryDeadline.Before(c.deadline) {
		return c.tryDeadline
	}
	return c.deadline
}

func (c *call) context() (context.Context, context.CancelFunc) {
	base := c.base
	if base == nil {
		base = c.p.ctx
	}
	if limit := c.limit(); !limit.IsZero() {
		return context.WithDeadline(base, limit)
	}
	return context.WithCancel(base)
}

func nothing() {}

func (c *call) dialContext() (context.Context, context.CancelFunc) {
	if c.base == nil && c.limit().IsZero() {
		return c.p.ctx, nothing
	}
	return c.context()
}

// streamed says that the body is not in the buffer but still to be read.
func (c *call) streamed() bool { return c.req.body != nil && !c.whole }

func (c *call) bodyDone() bool {
	b, ok := c.req.body.(*body)
	return ok && b.done
}

// replayable says that the request can be sent again.
func (c *call) replayable() bool { return c.req.body == nil || c.whole }

func (c *call) idempotent() bool {
	switch c.req.method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

func (c *call) mayWatch() bool {
	if c.send == nil {
		return true
	}
	select {
	case <-c.send.done:
		return c.send.err == nil
	default:
		return false
	}
}

func (c *call) mayWatchAlways() bool { return !c.streamed() && !c.watching }

func (c *call) watch() {
	c.watching = true
	c.unwatcher = c.out.watch(c.abort)
}

func (c *call) unwatch() {
	if c.watching {
		c.unwatcher()
		c.watching = false
	}
}

// stopBody ends a body that is being streamed, and waits until nobody reads it.
func (c *call) stopBody() {
	c.unwatch()
	if !c.streamed() {
		return
	}
	c.out.stopBody()
	if c.send != nil {
		<-c.send.done
	}
	if c.feed != nil {
		c.feed.stop()
	}
}

// maxReplay is how long a body may be that is kept for retries and mirrors.
const maxReplay = 64 << 10

// keep reads the body into memory when it is there already, or when the rule needs it and it is short.
func (c *call) keep() error {
	if c.req.body == nil || c.req.length < 0 || c.req.length > maxReplay {
		return nil
	}
	b, ok := c.req.body.(*body)
	here := ok && b.first == nil && int64(b.in.buffered()) >= b.left
	if !here && c.rule.Retry == nil && len(c.rule.Mirrors) == 0 {
		return nil
	}
	if cap(c.buffer) < int(c.req.length) {
		c.buffer = make([]byte, 0, c.req.length)
	}
	c.buffer = c.buffer[:c.req.length]
	if _, err := io.ReadFull(c.req.body, c.buffer); err != nil {
		return err
	}
	if ok { // the end is seen, so that the connection can be used again
		var none [1]byte
		if _, err := b.Read(none[:]); err != io.EOF {
			return err
		}
	}
	c.whole = true
	return nil
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
