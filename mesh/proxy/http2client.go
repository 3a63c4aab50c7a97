package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
)

// counted is a request body that knows whether any of it was taken.
type counted struct {
	io.Reader
	taken atomic.Bool
}

func (c *counted) Read(p []byte) (int, error) {
	c.taken.Store(true)
	return c.Reader.Read(p)
}

func (c *counted) Close() error { return nil }

// roundTrip2 sends the request of c over HTTP/2 and returns the head of the answer.
func (e *endpoint) roundTrip2(c *call, m *outgoing) (*response, error) {
	ctx, cancel := c.context()
	if !c.hold(cancel) {
		cancel()
		return nil, &broken{err: errDropped}
	}
	path, query := m.target, ""
	for i := range path {
		if path[i] == '?' {
			path, query = path[:i], path[i+1:]
			break
		}
	}
	scheme := "http"
	if e.cluster.state.Load().backend.TLS != nil {
		scheme = "https"
	}
	r := (&http.Request{Method: m.method, Host: m.authority, Header: m.fields.header(), ContentLength: 0,
		URL: &url.URL{Scheme: scheme, Host: e.name, Opaque: "", Path: path, RawPath: path, RawQuery: query}}).WithContext(ctx)
	if u, err := url.ParseRequestURI(m.target); err == nil {
		r.URL.Path, r.URL.RawPath = u.Path, u.RawPath
	}
	sent := &counted{}
	switch {
	case !c.streamed() && len(c.buffer) > 0:
		sent.Reader = newReader(c.buffer)
		r.Body, r.ContentLength = sent, int64(len(c.buffer))
	case c.streamed():
		sent.Reader = c.req.body
		r.Body, r.ContentLength = sent, c.req.length
		r.Trailer = c.req.trailer2
	}
	if c.mayWatchAlways() {
		c.watch()
	}
	h, err := e.transport().RoundTrip(r)
	if err != nil {
		c.release()
		cancel()
		c.stopBody()
		var early *notSent
		if errors.As(err, &early) && !sent.taken.Load() {
			return nil, &notSent{err}
		}
		return nil, &broken{err: err, silent: !errors.Is(err, context.Canceled) && !isTimeout(err), reused: true}
	}
	out := &response{code: h.StatusCode, fields: fields{}.fromHeader(h.Header), length: h.ContentLength}
	if h.ContentLength != 0 && m.method != "HEAD" && h.StatusCode != 204 && h.StatusCode != 304 {
		out.body = h.Body
		out.trailers = func() fields { return fields{}.fromHeader(h.Trailer) }
	} else if h.ContentLength < 0 {
		out.length = -2
	}
	out.end = func(bool) {
		c.unwatch()
		_ = h.Body.Close()
		c.release()
		cancel()
		if c.streamed() && !c.bodyDone() {
			c.stopBody()
		}
	}
	return out, nil
}
