package kubelet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	clientportforward "k8s.io/client-go/tools/portforward"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// dialTimeout bounds the connection to a port of a pod.
const dialTimeout = 30 * time.Second

// portForward carries connections to ports of a pod: over SPDY, over SPDY inside a WebSocket
// (what kubectl uses since 1.31, KEP-4006), or over plain WebSocket channels.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod := s.cfg.Pod(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil || !uidMatches(pod, r.PathValue("uid")) {
		fail(w, &httpError{http.StatusNotFound, "pod does not exist"})
		return
	}
	sandbox := s.cfg.Sandbox(pod.UID)
	if sandbox == "" {
		fail(w, fmt.Errorf("sandbox for pod %s/%s not found", pod.Namespace, pod.Name))
		return
	}
	h := s.hijacker(w)
	defer h.release()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	f := &forwarder{s: s, ctx: ctx, pod: pod, sandbox: sandbox}
	var out http.ResponseWriter = h
	req := r
	opts := &portforward.V4Options{}
	var err error
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		if out, req, err = openTunnel(h, r); err != nil {
			s.cfg.Log.Debug("port forward not upgraded", "pod", pod.Name, "err", err)
			return
		}
	case wsstream.IsWebSocketRequest(r):
		if opts, err = portforward.NewV4Options(withPorts(r)); err != nil {
			fail(w, &httpError{http.StatusBadRequest, err.Error()})
			return
		}
	}
	portforward.ServePortForward(out, req, f, pod.Name, string(pod.UID), opts,
		idleTimeout, streamTimeout, portforward.SupportedProtocols)
}

// withPorts names the ports as the kubelet does where they are named as in the pods API.
func withPorts(r *http.Request) *http.Request {
	q := r.URL.Query()
	if len(q[portforward.PortHeader]) > 0 || len(q["ports"]) == 0 {
		return r
	}
	q[portforward.PortHeader] = q["ports"]
	out := r.Clone(r.Context())
	out.URL.RawQuery = q.Encode()
	return out
}

// tunnelProtocol is the one protocol that is spoken inside a WebSocket.
const tunnelProtocol = portforward.WebsocketsSPDYTunnelingPortForwardV1

// openTunnel accepts a WebSocket in which SPDY travels, and gives what a SPDY server needs: a request as
// if it had come without the WebSocket, and a writer whose connection is the tunnel.
func openTunnel(h *hijacker, r *http.Request) (http.ResponseWriter, *http.Request, error) {
	if !offers(r, tunnelProtocol) {
		err := errors.New("unable to upgrade: no tunneling spdy protocols provided")
		http.Error(h, err.Error(), http.StatusBadRequest)
		return nil, nil, err
	}
	up := websocket.Upgrader{
		// Origins matter to cookies, which nothing here knows.
		CheckOrigin:  func(*http.Request) bool { return true },
		Subprotocols: []string{tunnelProtocol},
	}
	ws, err := up.Upgrade(h, r, nil)
	if err != nil {
		return nil, nil, err // the client was told
	}
	req := r.Clone(r.Context())
	req.Method = http.MethodPost
	for _, name := range []string{wsstream.WebSocketProtocolHeader, "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions"} {
		req.Header.Del(name)
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	req.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	return &tunnelWriter{header: http.Header{}, conn: clientportforward.NewTunnelingConnection("server", ws)}, req, nil
}

// offers tells whether a WebSocket client offers a subprotocol.
func offers(r *http.Request, protocol string) bool {
	for _, line := range r.Header.Values(wsstream.WebSocketProtocolHeader) {
		for p := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(p) == protocol {
				return true
			}
		}
	}
	return false
}

// tunnelWriter is the response to a request that was upgraded already: the second upgrade has no
// answer of its own.
type tunnelWriter struct {
	header http.Header
	conn   net.Conn
}

// Header is dropped.
func (t *tunnelWriter) Header() http.Header { return t.header }

// WriteHeader is dropped.
func (t *tunnelWriter) WriteHeader(int) {}

// Write is refused: there is no body after an upgrade.
func (t *tunnelWriter) Write([]byte) (int, error) { return 0, http.ErrHijacked }

// Hijack gives the tunnel.
func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

// forwarder connects streams to ports of one pod.
type forwarder struct {
	s       *Server
	ctx     context.Context // ends with the client's connection
	pod     *corev1.Pod
	sandbox string
}

// PortForward carries one connection, and returns when both directions ended. The end of one
// direction is passed on alone, so that protocols which half-close work.
func (f *forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	conn, err := f.s.cfg.DialPod(ctx, f.pod, f.sandbox, int(port))
	cancel()
	if err != nil {
		return fmt.Errorf("failed to execute portforward in network namespace of pod %s: failed to connect to localhost:%d inside namespace %q: %w",
			f.pod.Name, port, f.sandbox, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(f.ctx, func() { conn.Close() })
	defer stop()
	out := make(chan struct{})
	go func() { // ends when the client half-closes or goes, or conn is closed
		defer close(out)
		if _, err := io.Copy(conn, stream); err == nil {
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
				return
			}
		}
		conn.Close()
	}()
	_, err = io.Copy(stream, conn)
	if err != nil && !errors.Is(err, net.ErrClosed) && f.ctx.Err() == nil {
		conn.Close()
		return err
	}
	stream.Close() // our direction; the other ends when the client has read it all
	<-out
	return nil
}
