package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"coracle.dev/coracle/mesh/table"
)

// newServer2 makes the HTTP/2 server of a listener.
func newServer2(limits *table.Limits) (*http2.Server, *http.Server) {
	h2 := &http2.Server{IdleTimeout: limits.IdleTimeout, MaxConcurrentStreams: 250, ReadIdleTimeout: 0, WriteByteTimeout: limits.StreamTimeout}
	base := &http.Server{MaxHeaderBytes: limits.HeaderBytes, ReadHeaderTimeout: limits.HeaderTimeout, ErrorLog: quiet}
	_ = http2.ConfigureServer(base, h2) // so that Shutdown of base says goodbye to the clients
	return h2, base
}

// serve2 serves HTTP/2 on a connection.
func (l *listener) serve2(conn *client, c net.Conn) {
	_ = c.SetDeadline(time.Time{})
	l.h2.ServeConn(c, &http2.ServeConnOpts{
		Context:    l.p.ctx,
		BaseConfig: l.base,
		Handler:    http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.stream(conn, w, r) }),
	})
}

// stream serves one request of HTTP/2.
func (l *listener) stream(conn *client, w http.ResponseWriter, r *http.Request) {
	p := l.p
	c := &call{p: p, view: p.current.Load(), base: r.Context()}
	c.listener = l.listenerOf(c.view)
	s := &server2{w: w, r: r, c: c}
	c.out = s
	q := &c.req
	q.fields = make(fields, 0, len(r.Header)+4).fromHeader(r.Header)
	q.method, q.authority, q.scheme, q.target, q.major = r.Method, r.Host, "http", r.RequestURI, 2
	q.client, q.local, q.secure, q.serverName = conn.remote, conn.local, conn.secure, conn.serverName
	if q.secure != nil {
		q.scheme = "https"
	}
	q.length = r.ContentLength
	q.framed = r.ContentLength > 0
	if r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody {
		body := &body2{Reader: r.Body, c: c}
		q.body = body
		s.body = body
		q.trailer2 = r.Trailer
		q.trailers = func() fields { return fields{}.fromHeader(r.Trailer) }
	}
	if r.Method != "CONNECT" {
		if err := s.check(); err != nil {
			p.refused.Add(1)
			code := http.StatusBadRequest
			var why *refusal
			if errors.As(err, &why) {
				code = why.code
			}
			http.Error(w, err.Error(), code)
			return
		}
	}
	defer c.whenStill(s.still).end()
	if err := p.serve(c); err != nil {
		panic(http.ErrAbortHandler) // resets the stream, so that the client does not take half an answer for a whole one
	}
}

// server2 is the sink of one stream.
type server2 struct {
	w    http.ResponseWriter
	r    *http.Request
	c    *call
	sent atomic.Bool
	body *body2 // nil if there is none
}

// still ends a stream whose client neither takes the answer nor sends the body that is waited for.
func (s *server2) still() {
	if s.sent.Load() && s.c.stood() {
		_ = http.NewResponseController(s.w).SetWriteDeadline(longAgo)
	}
	if s.body != nil && s.body.reading.Load() {
		s.c.starve()
	}
}

// check holds a request to the same rules as HTTP/1's.
func (s *server2) check() error {
	q := &s.c.req
	if len(q.fields) > s.c.listener.Limits.Headers {
		return refuse(431, "too many headers")
	}
	for i := range q.fields {
		if !isToken(q.fields[i].name) || !cleanValue(q.fields[i].value) {
			return refuse(400, "malformed header")
		}
	}
	if q.target == "" || !cleanTarget(q.target) || !cleanHost(q.authority) || !isToken(q.method) {
		return refuse(400, "malformed request")
	}
	var err error
	_, q.path, q.query, err = splitTarget(q.target)
	return err
}

func (s *server2) inform(code int, f fields) error {
	h := s.w.Header()
	for i := range f {
		h.Add(f[i].name, f[i].value)
	}
	s.w.WriteHeader(code)
	clear(h)
	return nil
}

func (s *server2) respond(r *response) error {
	s.c.moved() // before sent: an answer that begins has its own time
	s.sent.Store(true)
	h := s.w.Header()
	for i := range r.fields {
		h.Add(r.fields[i].name, r.fields[i].value)
	}
	if r.length >= 0 && r.code != 204 {
		h["Content-Length"] = []string{itoa(r.length)}
	}
	if len(h["Date"]) == 0 {
		h["Date"] = nil // not ours to add
	}
	s.w.WriteHeader(r.code)
	if r.body == nil || s.r.Method == "HEAD" {
		return nil
	}
	flush := s.w.(http.Flusher)
	if _, local := r.body.(io.Seeker); !local && r.length < 0 {
		flush.Flush()
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := r.body.Read(*buffer)
		if n > 0 {
			if _, werr := s.w.Write((*buffer)[:n]); werr != nil {
				return errClient
			}
			s.c.p.bytes.Add(uint64(n))
			s.c.moved()
			if r.length < 0 {
				flush.Flush()
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if r.trailers != nil {
		for _, f := range r.trailers() {
			h.Add(http.TrailerPrefix+f.name, f.value)
		}
	}
	return nil
}

// switchProtocols has no meaning in HTTP/2.
func (s *server2) switchProtocols(_ *call, r *response) error {
	r.end(false)
	return errClient
}

func (s *server2) watch(abort func()) func() {
	stop := context.AfterFunc(s.r.Context(), abort)
	return func() { stop() }
}

func (s *server2) stopBody()     { _ = s.r.Body.Close() }
func (s *server2) started() bool { return s.sent.Load() }
