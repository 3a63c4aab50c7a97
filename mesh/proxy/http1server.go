package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// server1 serves HTTP/1 on one connection. It is the sink of its calls.
type server1 struct {
	l    *listener
	conn *client
	in   buffered
	out  []byte
	call call
	body body
	// mu keeps an interim 100 from another goroutine out of the final answer, and guards sent and stopped.
	mu        sync.Mutex
	sent      bool
	stopped   bool
	keepAlive bool
	head      bool // the request is a HEAD
	minor     int
}

// longAgo makes reads and writes fail at once.
var longAgo = time.Unix(1, 0)

var preface = "PRI * HTTP/2.0\r\n\r\n"

// serve reads requests and answers them until the connection is of no use. It returns true if the connection speaks HTTP/2.
func (s *server1) serve() (http2 bool) {
	for first := true; ; first = false {
		limits := &s.l.spec.Load().Limits
		wait := limits.IdleTimeout
		if first {
			wait = limits.HeaderTimeout
		}
		if s.in.buffered() == 0 {
			_ = s.conn.c.SetReadDeadline(time.Now().Add(wait))
			if !s.conn.enter(idle) {
				return false
			}
		} else {
			_ = s.conn.c.SetReadDeadline(time.Now().Add(limits.HeaderTimeout))
		}
		began := false
		text, err := s.in.until(headEnd, limits.HeaderBytes, func() {
			began = true
			s.conn.enter(busy)
			if !first {
				_ = s.conn.c.SetReadDeadline(time.Now().Add(limits.HeaderTimeout))
			}
		})
		if err != nil {
			switch {
			case errors.Is(err, errHead):
				s.refuse(431, "request head too long")
			case began && isTimeout(err):
				s.refuse(408, "the request's head took too long")
			}
			return false
		}
		s.conn.enter(busy)
		if first && text == preface {
			return true
		}
		for len(text) > 2 && text[0] == '\r' && text[1] == '\n' { // RFC 9112, 2.2
			text = text[2:]
		}
		if text == "\r\n" {
			return false
		}
		if !s.one(text) {
			return false
		}
	}
}

// one serves a request and says whether another may follow.
func (s *server1) one(text string) bool {
	c := &s.call
	c.reset(s.l.p)
	c.view = s.l.p.current.Load()
	c.listener = s.l.listenerOf(c.view)
	h, err := parseRequest(text, c.req.fields, c.listener.Limits.Headers)
	c.req.fields = h.fields
	var authority string
	if err == nil && h.method != "CONNECT" {
		authority, c.req.path, c.req.query, err = splitTarget(h.target)
	}
	if err != nil {
		var r *refusal
		if errors.As(err, &r) {
			s.refuse(r.code, r.reason)
		}
		return false
	}
	s.sent, s.stopped, s.keepAlive, s.head, s.minor = false, false, !h.close, h.method == "HEAD", h.minor
	r := &c.req
	r.method, r.target, r.major, r.minor = h.method, h.target, 1, h.minor
	r.length, r.framed = h.length, h.framed
	r.client, r.local, r.secure, r.serverName = s.conn.remote, s.conn.local, s.conn.secure, s.conn.serverName
	r.authority, r.scheme = c.req.fields.value("host"), "http"
	if authority != "" {
		r.authority = authority
	}
	if r.secure != nil {
		r.scheme = "https"
	}
	if h.minor > 0 && h.length == 0 && token(r.fields.value("connection"), "upgrade") {
		r.upgrade = upgradable(r.fields.value("upgrade"))
	}
	if h.length != 0 {
		s.body = body{in: &s.in, left: max(0, h.length), chunked: h.length < 0, limit: c.listener.Limits.HeaderBytes}
		s.in.wait = s.bodyWait
		r.body = &s.body
		if s.body.chunked {
			r.trailers = func() fields { return s.body.trailers }
		}
		if token(r.fields.value("expect"), "100-continue") {
			s.body.first = s.proceed
		}
	} else {
		s.body = body{done: true}
	}
	c.out = s
	err = s.l.p.serve(c)
	s.in.wait = nil
	if err != nil || !s.keepAlive {
		s.linger()
		return false
	}
	return s.drain()
}

// upgradable is what of an Upgrade header is passed on: all of it, or nothing if it offers another version of HTTP or TLS, in which requests
// would follow that no route was asked about. (A request with a body is not upgraded either: the body and what follows the 101 would be
// read at the same time. RFC 9110, 7.8 lets a server ignore the header.)
func upgradable(protocols string) string {
	for one := range strings.SplitSeq(protocols, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(one), "/")
		switch strings.ToLower(name) {
		case "h2c", "h2", "http", "tls":
			return ""
		}
	}
	return protocols
}

// bodyWait reads from the client, for a request's body: each read may take as long as a stream may stand still.
func (s *server1) bodyWait(p []byte) (int, error) {
	limit := s.call.until(s.call.listener.Limits.StreamTimeout)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return 0, errClient
	}
	_ = s.conn.c.SetReadDeadline(limit)
	s.mu.Unlock()
	return s.conn.c.Read(p)
}

// proceed asks for the body that the client holds back.
func (s *server1) proceed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent || s.stopped {
		return errClient
	}
	_ = s.conn.c.SetWriteDeadline(time.Now().Add(s.call.listener.Limits.HeaderTimeout))
	_, err := io.WriteString(s.conn.c, "HTTP/1.1 100 Continue\r\n\r\n")
	return err
}

func (s *server1) stopBody() {
	s.mu.Lock()
	s.stopped = true
	_ = s.conn.c.SetReadDeadline(longAgo)
	s.mu.Unlock()
}

func (s *server1) started() bool { return s.sent }

// watch waits in a goroutine for the client to close or to send the next request.
func (s *server1) watch(abort func()) func() {
	var stopping atomic.Bool
	done := make(chan struct{})
	s.in.wait = nil
	_ = s.conn.c.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		if s.in.buffered() > 0 {
			return
		}
		if err := s.in.fill(); err != nil && !stopping.Load() {
			abort()
		}
	}()
	return func() {
		stopping.Store(true)
		_ = s.conn.c.SetReadDeadline(longAgo)
		<-done
	}
}

const maxDrain = 256 << 10

// drain reads what is left of a body that nobody wanted, if that is little, so that the connection can go on.
func (s *server1) drain() bool {
	b := &s.body
	if b.done {
		return true
	}
	if b.first != nil || b.err != nil || s.stopped || b.left > maxDrain {
		s.linger()
		return false
	}
	s.in.wait = nil
	_ = s.conn.c.SetReadDeadline(time.Now().Add(time.Second))
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for total := 0; total <= maxDrain; {
		n, err := b.Read(*buffer)
		total += n
		if err == io.EOF {
			return true
		}
		if err != nil {
			break
		}
	}
	return false
}

// linger closes our half and reads on for a moment, so that the answer is not lost in a reset.
func (s *server1) linger() {
	if s.body.done && s.in.buffered() == 0 {
		return
	}
	half, ok := s.conn.c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = s.conn.c.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, s.conn.c, maxDrain)
}

// refuse answers a request that could not be read.
func (s *server1) refuse(code int, reason string) {
	s.l.p.refused.Add(1)
	s.out = fmt.Appendf(s.out[:0], "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		code, http.StatusText(code), len(reason)+1, reason)
	_ = s.conn.c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.conn.c.Write(s.out); err == nil {
		s.body.done = false
		s.linger()
	}
}

func (s *server1) inform(code int, f fields) error {
	if s.minor == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := statusLine(nil, code, "")
	out = append(f.write(out), "\r\n"...)
	return s.write(out)
}

func statusLine(out []byte, code int, reason string) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(code), 10)
	out = append(out, ' ')
	if reason == "" {
		reason = http.StatusText(code)
	}
	out = append(out, reason...)
	return append(out, "\r\n"...)
}

func (s *server1) write(out []byte) error {
	_ = s.conn.c.SetWriteDeadline(time.Now().Add(s.call.listener.Limits.StreamTimeout))
	if _, err := s.conn.c.Write(out); err != nil {
		return errClient
	}
	return nil
}

// respond sends an answer. What is there of the body already goes with the head in one write.
func (s *server1) respond(r *response) error {
	s.mu.Lock()
	s.sent = true
	s.mu.Unlock()
	if !s.body.done && s.body.first != nil || s.conn.draining() {
		s.keepAlive = false
	}
	chunked := false
	out := statusLine(s.out[:0], r.code, r.reason)
	out = r.fields.write(out)
	bodyless := s.head || r.code == 204 || r.code == 304
	switch {
	case r.length >= 0 && r.code != 204:
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, r.length, 10)
		out = append(out, "\r\n"...)
	case bodyless:
	case r.length == -2: // nothing comes
		out = append(out, "Content-Length: 0\r\n"...)
	case s.minor > 0:
		chunked = true
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	default:
		s.keepAlive = false
	}
	switch {
	case !s.keepAlive:
		out = append(out, "Connection: close\r\n"...)
	case s.minor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	out = append(out, "\r\n"...)
	var err error
	if r.body == nil || bodyless {
		err = s.write(out)
	} else {
		out, err = s.copyBody(out, r, chunked)
	}
	if cap(out) <= 64<<10 {
		s.out = out[:0]
	}
	return err
}

const (
	copySize   = 16 << 10
	chunkSpace = 8 // digits and line end of a chunk of at most copySize
)

// copyBody sends out and then the body, as it comes.
func (s *server1) copyBody(out []byte, r *response, chunked bool) ([]byte, error) {
	from, _ := r.body.(*body)
	if from == nil || from.in.buffered() == 0 {
		if _, local := r.body.(io.Seeker); !local {
			if err := s.write(out); err != nil {
				return out, err
			}
			out = out[:0]
		}
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		n, err := r.body.Read(*buffer)
		if err != nil && err != io.EOF {
			if len(out) > 0 {
				_ = s.write(out)
			}
			return out, err
		}
		if chunked {
			out = appendChunk(out, (*buffer)[:n])
		} else {
			out = append(out, (*buffer)[:n]...)
		}
		end := err == io.EOF || from != nil && from.done
		if !end && from != nil && from.in.buffered() > 0 && len(out) < copySize {
			continue // more is here already
		}
		if end && chunked {
			out = append(out, "0\r\n"...)
			if r.trailers != nil {
				out = r.trailers().write(out)
			}
			out = append(out, "\r\n"...)
		}
		if len(out) > 0 {
			if werr := s.write(out); werr != nil {
				return out, werr
			}
			s.l.p.bytes.Add(uint64(len(out)))
			out = out[:0]
		}
		if end {
			return out, nil
		}
	}
}

// switchProtocols passes the 101 on and then bytes both ways until both sides have ended.
func (s *server1) switchProtocols(c *call, r *response) error {
	u := r.upgraded
	c.unwatch()
	s.sent = true
	s.keepAlive = false
	f := r.fields
	upgrade := f.value("upgrade")
	f = f.strip()
	out := statusLine(s.out[:0], 101, r.reason)
	out = f.write(out)
	out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
	out = append(out, upgrade...)
	out = append(out, "\r\n\r\n"...)
	err := s.write(out)
	if err == nil {
		u.wait, s.in.wait = nil, nil
		_ = u.c.SetDeadline(time.Time{})
		_ = s.conn.c.SetDeadline(time.Time{})
		s.l.p.pipe(&s.in, &u.buffered, c.listener.Limits.StreamTimeout)
	}
	s.body.done = true
	s.in.r, s.in.w = 0, 0
	r.end(false)
	return errClient
}

// client is an accepted connection.
type client struct {
	l          *listener
	c          net.Conn
	remote     netip.AddrPort
	local      netip.AddrPort
	secure     *tls.ConnectionState
	serverName string
	state      atomic.Int32
}

// States of a client's connection.
const (
	busy int32 = iota
	idle
	leaving
)

// enter moves between busy and idle. It returns false when the listener is being drained and the connection must end instead of idling.
func (c *client) enter(state int32) bool {
	c.state.Store(state)
	return state != idle || !c.draining() // in this order: a listener that is removed first says so and then looks for who is idle
}

func (c *client) draining() bool { return c.l.drained.Load() }
