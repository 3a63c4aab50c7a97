package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// response is an answer on its way to a client.
type response struct {
	code   int
	reason string
	fields fields
	// length of the body, -1 if unknown.
	length int64
	// body is nil if there is none.
	body io.Reader
	// trailers may be asked for after the end of the body.
	trailers func() fields
	// upgraded is the connection behind a 101.
	upgraded *upstream
	// end gives the connection back, or closes it. It is called exactly once.
	end func(whole bool)
}

// broken is an error after something was sent.
type broken struct {
	err error
	// silent says that no byte of an answer came, so that a request that may be repeated is sent again.
	silent bool
	// reused says that the connection was a pooled one, which the other side may have closed at any time.
	reused bool
}

func (b *broken) Error() string { return b.err.Error() }
func (b *broken) Unwrap() error { return b.err }

// bodySend is a request body that is being streamed by a goroutine of its own.
type bodySend struct {
	done chan struct{}
	err  error
}

// watchAfter is how long an answer is waited for before somebody looks whether the client is still there.
const watchAfter = 200 * time.Millisecond

// roundTrip1 sends the request of c over HTTP/1 and returns the head of the answer.
func (e *endpoint) roundTrip1(c *call, message *outgoing) (*response, error) {
	ctx, cancel := c.dialContext()
	u, reused, err := e.take(ctx)
	cancel()
	if err != nil {
		return nil, err
	}
	if !c.hold(u.close) {
		u.close()
		return nil, &broken{err: errDropped}
	}
	u.out = message.head1(u.out[:0], c)
	streamed := c.streamed()
	if !streamed && len(c.buffer) > 0 {
		u.out = append(u.out, c.buffer...)
	}
	var send *bodySend
	_ = u.c.SetDeadline(c.until(c.listener.Limits.StreamTimeout))
	if n, err := u.c.Write(u.out); err != nil {
		c.release()
		u.close()
		if n == 0 {
			return nil, &notSent{err}
		}
		return nil, &broken{err: err, silent: true, reused: reused}
	}
	if streamed {
		send = &bodySend{done: make(chan struct{})}
		c.send = send
		go u.sendBody(c, send)
	}
	u.wait = func(p []byte) (int, error) { return u.patient(c, p) }
	h, err := u.answer(c)
	if err != nil {
		c.release()
		u.close()
		if limit := c.limit(); isTimeout(err) && c.waitsForClient() && (limit.IsZero() || time.Now().Before(limit)) {
			c.starved.Store(true) // not the backend's fault
		}
		c.stopBody()
		return nil, &broken{err: err, silent: errors.Is(err, errNoAnswer), reused: reused}
	}
	return u.response(c, &h, send), nil
}

// errNoAnswer is a connection that ended without a byte of an answer.
var errNoAnswer = errors.New("the backend closed the connection without an answer")

// answer reads heads until the final one; interim ones are passed on.
func (u *upstream) answer(c *call) (head, error) {
	for {
		began := false
		text, err := u.until(headEnd, 256<<10, func() { began = true })
		if err != nil {
			if !began && !isTimeout(err) && !errors.Is(err, errHead) {
				err = errNoAnswer
			}
			return head{}, err
		}
		h, err := parseResponse(text, u.fields, 512)
		if err != nil {
			return head{}, err
		}
		u.fields = h.fields
		if h.code == 101 && c.req.upgrade == "" {
			return head{}, errors.New("the backend switches protocols unasked")
		}
		if h.code >= 200 || h.code == 101 {
			return h, nil
		}
		if h.code != 100 {
			if err := c.out.inform(h.code, h.fields.strip()); err != nil {
				return head{}, err
			}
		}
	}
}

func (u *upstream) response(c *call, h *head, send *bodySend) *response {
	r := &response{code: h.code, reason: h.reason, fields: h.fields, length: h.length}
	reusable := !h.close
	r.end = func(whole bool) {
		c.unwatch()
		if send != nil {
			select {
			case <-send.done:
				reusable = reusable && send.err == nil
			default: // the answer is complete before the request: RFC 9112, 9.6
				reusable = false
				u.close()
				c.stopBody()
			}
		}
		if c.release() && whole && reusable {
			u.put()
		} else {
			u.close()
		}
	}
	if h.code == 101 {
		r.upgraded = u
		return r
	}
	if c.req.method == "HEAD" || h.code == 204 || h.code == 304 {
		if !h.framed {
			r.length = -2 // nothing is known and nothing comes
		}
		return r
	}
	if h.framed && h.length == 0 {
		return r
	}
	u.body = body{in: &u.buffered, left: max(0, h.length), chunked: h.length < 0, toEnd: !h.framed, limit: 64 << 10}
	if !h.framed {
		r.length, reusable = -1, false
	}
	r.body = &u.body
	if u.body.chunked {
		r.trailers = func() fields { return u.body.trailers }
	}
	return r
}

// patient reads from the backend. When that takes long, the client is watched meanwhile, and the connection is closed when it goes away.
func (u *upstream) patient(c *call, p []byte) (int, error) {
	limit := c.until(c.listener.Limits.StreamTimeout)
	if !c.watching && c.mayWatch() {
		soon := time.Now().Add(watchAfter)
		if soon.Before(limit) {
			_ = u.c.SetReadDeadline(soon)
			n, err := u.c.Read(p)
			if err == nil || !isTimeout(err) {
				return n, err
			}
			c.watch()
		}
	}
	_ = u.c.SetReadDeadline(limit)
	return u.c.Read(p)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// sendBody copies the request's body to the backend.
func (u *upstream) sendBody(c *call, s *bodySend) {
	defer close(s.done)
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	var out []byte
	for {
		n, err := c.req.body.Read(*buffer)
		if err != nil && err != io.EOF {
			s.err = err
			if c.starved.Load() {
				return
			}
			c.abort() // nobody can use the answer of half a request
			return
		}
		out = out[:0]
		if c.req.length >= 0 {
			out = append(out, (*buffer)[:n]...)
		} else {
			out = appendChunk(out, (*buffer)[:n])
			if err == io.EOF {
				out = append(out, "0\r\n"...)
				if c.req.trailers != nil {
					out = c.req.trailers().write(out)
				}
				out = append(out, "\r\n"...)
			}
		}
		if len(out) > 0 {
			_ = u.c.SetWriteDeadline(c.until(c.listener.Limits.StreamTimeout))
			if _, werr := u.c.Write(out); werr != nil {
				s.err = werr // the backend may have answered before: that is read elsewhere
				return
			}
			_ = u.c.SetReadDeadline(c.until(c.listener.Limits.StreamTimeout)) // as long as the request moves, the answer may wait
		}
		if err == io.EOF {
			return
		}
	}
}

func appendChunk(out, data []byte) []byte {
	if len(data) == 0 {
		return out
	}
	out = strconv.AppendInt(out, int64(len(data)), 16)
	out = append(out, "\r\n"...)
	out = append(out, data...)
	return append(out, "\r\n"...)
}

// outgoing is a request as a backend gets it.
type outgoing struct {
	method, target, authority string
	fields                    fields
	upgrade                   string
}

// head1 appends the request's head as HTTP/1 has it, framed anew.
func (m *outgoing) head1(out []byte, c *call) []byte {
	out = append(out, m.method...)
	out = append(out, ' ')
	out = append(out, m.target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, m.authority...)
	out = append(out, "\r\n"...)
	out = m.fields.write(out)
	if m.upgrade != "" {
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, m.upgrade...)
		out = append(out, "\r\n"...)
	}
	switch {
	case c.req.body != nil && c.req.length < 0 && c.streamed():
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	case c.req.body != nil || c.req.framed:
		length := c.req.length
		if !c.streamed() {
			length = int64(len(c.buffer))
		}
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, length, 10)
		out = append(out, "\r\n"...)
	}
	return append(out, "\r\n"...)
}
