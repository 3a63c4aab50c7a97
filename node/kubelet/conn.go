package kubelet

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
)

// connections are the upgraded connections under way.
type connections struct {
	mu     sync.Mutex // guards what follows
	open   map[*watchedConn]struct{}
	closed bool
}

func (c *connections) add(w *watchedConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	if c.open == nil {
		c.open = map[*watchedConn]struct{}{}
	}
	c.open[w] = struct{}{}
	return true
}

func (c *connections) remove(w *watchedConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, w)
}

func (c *connections) close() {
	c.mu.Lock()
	c.closed = true
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for w := range open {
		w.Close()
	}
}

// hijacker hands out the connection of a request in a form that tells when the client is gone, which
// net/http does not tell any more after an upgrade.
type hijacker struct {
	http.ResponseWriter
	conns *connections
	conn  *watchedConn
}

func (s *Server) hijacker(w http.ResponseWriter) *hijacker {
	return &hijacker{ResponseWriter: w, conns: &s.conns}
}

// Unwrap is for http.ResponseController.
func (h *hijacker) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// Hijack takes the connection over.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	var early []byte // what the client sent behind its request
	if rw != nil {
		early, _ = rw.Peek(rw.Reader.Buffered())
	}
	h.conn = &watchedConn{Conn: conn, gone: make(chan struct{}), conns: h.conns}
	if !h.conns.add(h.conn) {
		conn.Close()
		return nil, nil, errors.New("the node API is shutting down")
	}
	h.conn.r = conn
	if len(early) > 0 {
		h.conn.r = io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)
	}
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// gone is closed when the client has closed its end or the connection broke. It never is if nothing
// was hijacked.
func (h *hijacker) gone() <-chan struct{} {
	if h.conn == nil {
		return nil
	}
	return h.conn.gone
}

// release forgets the connection, after its protocol has ended.
func (h *hijacker) release() {
	if h.conn != nil {
		h.conn.Close()
	}
}

// watchedConn is a connection that tells when reading from it has ended.
type watchedConn struct {
	net.Conn
	r     io.Reader
	once  sync.Once
	gone  chan struct{}
	conns *connections
}

// Read reads, and closes gone at the end.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.gone) })
	}
	return n, err
}

// Close closes the connection.
func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	c.conns.remove(c)
	return c.Conn.Close()
}

// CloseWrite passes a half-close on where the transport has one.
func (c *watchedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
