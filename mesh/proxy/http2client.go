package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// conn2 is an HTTP/2 connection to an endpoint.
type conn2 struct {
	net.Conn
	cc     *http2.ClientConn
	active int // guarded by endpoint.mu
	closed atomic.Bool
}

// Close is called by the HTTP/2 client, with locks of its own held.
func (c *conn2) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// dialing is a connection that is being made for all who wait for it.
type dialing struct {
	done chan struct{}
	// err is why there is none. Those who wait try themselves when only the one who dialled had no more time.
	err   error
	again bool
}

// take2 reserves a stream on a connection of the endpoint, and makes a connection if none has room.
func (e *endpoint) take2(ctx context.Context) (*conn2, error) {
	limit := e.cluster.state.Load().backend.Pool.Connections
	if limit == 0 {
		limit = 1024
	}
	for {
		e.mu.Lock()
		if c := e.reserve(); c != nil {
			e.mu.Unlock()
			return c, nil
		}
		d := e.dialing
		if d == nil {
			if len(e.conns) >= limit {
				e.mu.Unlock()
				return nil, errFull
			}
			d = &dialing{done: make(chan struct{})}
			e.dialing = d
			e.mu.Unlock()
			return e.connect2(ctx, d)
		}
		e.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil && !d.again {
				return nil, d.err
			}
		case <-ctx.Done():
			return nil, &notSent{ctx.Err()}
		}
	}
}

// reserve finds a connection with room and forgets those that are closed. mu is held.
func (e *endpoint) reserve() *conn2 {
	var found *conn2
	open := e.conns[:0]
	for _, c := range e.conns {
		if c.closed.Load() {
			continue
		}
		open = append(open, c)
		if found == nil && c.cc.ReserveNewRequest() {
			found = c
			c.active++
		}
	}
	clear(e.conns[len(open):])
	e.conns = open
	return found
}

// connect2 makes a connection and reserves its first stream.
func (e *endpoint) connect2(ctx context.Context, d *dialing) (*conn2, error) {
	c := &conn2{}
	var err error
	if c.Conn, err = e.dial(ctx, []string{"h2"}); err == nil {
		if c.cc, err = e.transport().NewClientConn(c); err != nil {
			_ = c.Close()
			err = &notSent{err}
		}
	}
	e.mu.Lock()
	e.dialing = nil
	if err == nil {
		e.conns = append(e.conns, c)
		if c.cc.ReserveNewRequest() {
			c.active++
		} else {
			err = &notSent{errDropped}
		}
	}
	d.err, d.again = err, ctx.Err() != nil
	close(d.done)
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// put2 gives a stream's place back.
func (e *endpoint) put2(c *conn2) {
	e.mu.Lock()
	c.active--
	e.mu.Unlock()
}

// retire2 closes the connections without a request; no others take new ones if the endpoint is gone. mu is held.
func (e *endpoint) retire2() (unused []*conn2) {
	gone := e.gone.Load()
	busy := e.conns[:0]
	for _, c := range e.conns {
		switch {
		case c.active == 0:
			unused = append(unused, c)
			continue
		case gone:
			c.cc.SetDoNotReuse()
		}
		busy = append(busy, c)
	}
	clear(e.conns[len(busy):])
	e.conns = busy
	return unused
}

// transport is the HTTP/2 client of the endpoint.
func (e *endpoint) transport() *http2.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.h2 == nil {
		unused := e.cluster.state.Load().backend.Pool.Idle
		if unused == 0 {
			unused = defaultUnused
		}
		e.h2 = &http2.Transport{
			AllowHTTP:          true,
			DisableCompression: true,
			IdleConnTimeout:    unused,
			ReadIdleTimeout:    30 * time.Second,
			PingTimeout:        15 * time.Second,
			WriteByteTimeout:   time.Minute,
			DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) {
				return nil, errDropped // connections are made by take2
			},
		}
	}
	return e.h2
}

// refused is an error of a backend that did not process the request (RFC 9113, 8.7): it may be sent again, whatever its method.
type refused struct{ err error }

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

// unprocessed says that an error of the HTTP/2 client means that. The client has no types for what it says of GOAWAY; TestRefused holds its wording.
func unprocessed(err error) bool {
	var stream http2.StreamError
	if errors.As(err, &stream) {
		return stream.Code == http2.ErrCodeRefusedStream
	}
	switch text := err.Error(); text {
	case "http2: client conn not usable", "http2: client conn could not be established",
		"http2: Transport received Server's graceful shutdown GOAWAY":
		return true
	default: // the stream was above the last that the server looked at
		return strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:")
	}
}

// roundTrip2 sends the request of c over HTTP/2 and returns the head of the answer.
func (e *endpoint) roundTrip2(c *call, m *outgoing) (*response, error) {
	ctx, cancel := c.context()
	if !c.hold(cancel) {
		cancel()
		return nil, &broken{err: errDropped}
	}
	conn, err := e.take2(ctx)
	if err != nil {
		c.release()
		cancel()
		return nil, err
	}
	r := e.request2(ctx, c, m)
	if c.mayWatchAlways() {
		c.watch()
	}
	var tooStill atomic.Bool
	guard := c.whenStill(func() {
		if c.waitsForClient() {
			c.starve()
			return
		}
		tooStill.Store(true)
		cancel()
	})
	h, err := conn.cc.RoundTrip(r)
	if err != nil {
		guard.end()
		e.put2(conn)
		c.release()
		cancel()
		c.unwatch()
		if r.Body != nil {
			_ = r.Body.Close()
		}
		if unprocessed(err) && (!c.streamed() || c.feed.replayable()) {
			return nil, &refused{err}
		}
		c.stopBody()
		if tooStill.Load() {
			return nil, &broken{err: os.ErrDeadlineExceeded}
		}
		return nil, &broken{err: err, silent: !errors.Is(err, context.Canceled) && !isTimeout(err), reused: true}
	}
	c.moved()
	if c.streamed() {
		c.feed.answered()
	}
	out := &response{code: h.StatusCode, fields: fields{}.fromHeader(h.Header), length: h.ContentLength}
	if h.ContentLength != 0 && m.method != "HEAD" && h.StatusCode != 204 && h.StatusCode != 304 {
		out.body = &moving{h.Body, c}
		out.trailers = func() fields { return fields{}.fromHeader(h.Trailer) }
	} else if h.ContentLength < 0 {
		out.length = -2
	}
	out.end = func(bool) {
		guard.end()
		c.unwatch()
		_ = h.Body.Close()
		c.release()
		cancel()
		e.put2(conn)
		if c.streamed() && !c.bodyDone() {
			c.stopBody()
		}
	}
	return out, nil
}

// request2 is the request of one try.
func (e *endpoint) request2(ctx context.Context, c *call, m *outgoing) *http.Request {
	path, query, _ := strings.Cut(m.target, "?")
	scheme := "http"
	if e.cluster.state.Load().backend.TLS != nil {
		scheme = "https"
	}
	r := (&http.Request{Method: m.method, Host: m.authority, Header: m.fields.header(),
		URL: &url.URL{Scheme: scheme, Host: e.name, Path: path, RawPath: path, RawQuery: query}}).WithContext(ctx)
	if u, err := url.ParseRequestURI(m.target); err == nil {
		r.URL.Path, r.URL.RawPath = u.Path, u.RawPath
	}
	switch {
	case !c.streamed() && len(c.buffer) > 0:
		r.Body, r.ContentLength = io.NopCloser(newReader(c.buffer)), int64(len(c.buffer))
	case c.streamed():
		if c.feed == nil {
			c.feed = newFeed(c)
		}
		body := c.feed.reader()
		r.Body, r.ContentLength, r.Trailer = body, c.req.length, body.trailer
	}
	return r
}

// moving is a body whose bytes are the pulse of a call.
type moving struct {
	io.Reader
	c *call
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		m.c.moved()
	}
	return n, err
}
