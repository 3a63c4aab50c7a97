package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// ErrClosed is what requests get once the cluster is closed.
var ErrClosed = errors.New("clustertest: the cluster is closed")

const (
	// sendAt is how much of an answer is gathered before the client sees its beginning, unless the handler flushes.
	sendAt = 64 << 10
	// holdAt is how much of an answer may wait to be read. Beyond it the handler waits.
	holdAt = 1 << 20
)

// transport is an http.RoundTripper that calls a handler. Answers stream as they would over a connection: what
// the handler flushes can be read at once, a reader that is slow holds the handler back, and a body that is closed, or a
// request whose context ends, ends the context that the handler sees.
//
// It waits on nothing but channels and conditions, so that in a bubble of testing/synctest an open
// watch is at rest.
type transport struct {
	handler http.Handler
	// remote is the address that the handler takes requests to come from.
	remote string

	life     context.Context // ends with close
	end      context.CancelFunc
	mu       sync.Mutex // guards closed, and that no request begins once it is set
	closed   bool
	requests sync.WaitGroup
}

func newTransport(h http.Handler) *transport {
	t := &transport{handler: h, remote: "192.0.2.2:1024"} // of TEST-NET-1
	t.life, t.end = context.WithCancel(context.Background())
	return t
}

// patience is how long requests under way may take to end by themselves.
const patience = 100 * time.Millisecond

// close lets no request begin any more, ends those that do not end by themselves, and waits for their handlers.
func (t *transport) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	impatient := time.AfterFunc(patience, t.end)
	t.requests.Wait()
	impatient.Stop()
	t.end()
}

// begin counts a request, if there may still be one.
func (t *transport) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.requests.Add(1)
	}
	return !t.closed
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	body := r.Body
	if body == nil {
		body = http.NoBody
	}
	if !t.begin() {
		body.Close()
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(r.Context())
	a := &answer{header: http.Header{}, head: r.Method == http.MethodHead, cancel: cancel, started: make(chan struct{})}
	a.changed.L = &a.mu
	stopLife := context.AfterFunc(t.life, func() { a.abort(ErrClosed) })
	stopClient := context.AfterFunc(r.Context(), func() { a.abort(context.Cause(r.Context())) })
	a.release = func() { stopClient(); stopLife() }
	in := t.incoming(r, body).WithContext(ctx)
	go func() {
		defer t.requests.Done()
		defer cancel()
		defer body.Close()
		a.end(call(t.handler, a, in))
	}()
	<-a.started
	return a.response(r)
}

// incoming is a request as the server sees it.
func (t *transport) incoming(r *http.Request, body io.ReadCloser) *http.Request {
	in := &http.Request{
		Method: r.Method, Proto: "HTTP/2.0", ProtoMajor: 2, Header: r.Header.Clone(), Body: body, ContentLength: r.ContentLength,
		Host: r.Host, RemoteAddr: t.remote,
	}
	if in.Method == "" {
		in.Method = http.MethodGet
	}
	if in.Header == nil {
		in.Header = http.Header{}
	}
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if r.Body == nil || r.Body == http.NoBody {
		in.ContentLength = 0
	} else if in.ContentLength == 0 {
		in.ContentLength = -1
	}
	in.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	in.RequestURI = in.URL.RequestURI()
	return in
}

// call runs a handler. A handler that panics breaks its answer off.
func call(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				err = fmt.Errorf("clustertest: the handler panicked: %v", p)
				return
			}
			err = io.ErrUnexpectedEOF
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

// answer is one response on its way: the handler writes to it, the client reads from it.
type answer struct {
	header http.Header // the handler's
	head   bool        // the client wants no body
	cancel context.CancelFunc
	// release is called once, when neither side needs to hear of the other's context any more.
	release func()
	// started is closed when the response can be given to the client, or failed.
	started chan struct{}

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	open    bool // started is closed
	status  int
	sent    http.Header // the header as it was when the status was written
	buf     []byte      // what is not read yet
	ended   bool        // the handler has returned
	whole   bool        // and had before the client saw anything
	err     error       // what a reader gets behind the end of buf, nil for the end
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writeHeader(status)
}

func (a *answer) writeHeader(status int) {
	if a.status == 0 && a.err == nil && (status >= 200 || status == http.StatusSwitchingProtocols) {
		a.status, a.sent = status, a.header.Clone()
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writeHeader(http.StatusOK)
	for len(a.buf) >= holdAt && a.err == nil {
		a.changed.Wait()
	}
	if a.err != nil {
		return 0, a.err
	}
	if !a.head {
		a.buf = append(a.buf, p...)
	}
	if len(a.buf) >= sendAt {
		a.start()
	}
	a.changed.Broadcast()
	return len(p), nil
}

// Flush implements http.Flusher.
func (a *answer) Flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writeHeader(http.StatusOK)
	a.start()
}

// start lets the client see the response. mu is held.
func (a *answer) start() {
	if !a.open {
		a.open = true
		close(a.started)
	}
}

// end notes that the handler has returned; err says that it broke off.
func (a *answer) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.writeHeader(http.StatusOK)
	} else if a.err == nil {
		a.err = err
	}
	a.whole, a.ended = !a.open, true
	a.start()
	a.changed.Broadcast()
}

// abort ends both sides with an error.
func (a *answer) abort(err error) {
	a.mu.Lock()
	if a.err == nil {
		a.err = err
	}
	a.buf = nil
	a.start()
	a.changed.Broadcast()
	a.mu.Unlock()
	a.cancel() // the handler's answer to that comes too late
}

// response is what the client gets once the answer has started.
func (a *answer) response(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := context.Cause(r.Context()); err != nil && a.err == nil {
		a.err = err // the handler was quicker than abort
	}
	if a.status == 0 || r.Context().Err() != nil {
		a.release()
		return nil, a.err
	}
	out := &http.Response{
		Status: strconv.Itoa(a.status) + " " + http.StatusText(a.status), StatusCode: a.status, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: a.sent, ContentLength: -1, Body: (*reader)(a), Request: r,
	}
	if n, err := strconv.ParseInt(a.sent.Get("Content-Length"), 10, 64); err == nil {
		out.ContentLength = n
	} else if a.whole && !a.head {
		out.ContentLength = int64(len(a.buf))
	}
	return out, nil
}

// reader is the body of the response.
type reader answer

// Read implements io.Reader.
func (b *reader) Read(p []byte) (int, error) {
	a := (*answer)(b)
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.buf) == 0 && !a.ended && a.err == nil {
		a.changed.Wait()
	}
	if len(a.buf) > 0 {
		n := copy(p, a.buf)
		if a.buf = a.buf[n:]; len(a.buf) == 0 {
			a.buf = nil
		}
		a.changed.Broadcast()
		return n, nil
	}
	if a.err != nil {
		return 0, a.err
	}
	return 0, io.EOF
}

// Close implements io.Closer. The handler sees that its client is gone.
func (b *reader) Close() error {
	a := (*answer)(b)
	a.release()
	a.abort(http.ErrBodyReadAfterClose)
	return nil
}
