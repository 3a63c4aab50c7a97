package apiserver

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
)

// The subprotocols in which a log is sent over a WebSocket: each piece a binary message, or a text message in base64. A
// client that names none gets the first.
const (
	binarySocket = "binary.k8s.io"
	base64Socket = "base64.binary.k8s.io"
)

// logPiece is the most bytes of a log in one message.
const logPiece = 2048

// logOverSocket sends a pod's log to a client that asked for a WebSocket. The connection is upgraded when the node has
// something to send: until then an error is told as a Status.
func (c *call) logOverSocket(pod *corev1.Pod, path, query string) error {
	r, pipe := io.Pipe()
	defer r.Close() // ends the node's part
	head := &socketHead{header: http.Header{}, pipe: pipe, begun: make(chan struct{})}
	w := &logWriter{ResponseWriter: head}
	ended := make(chan error, 1)
	go func() {
		err := c.node(pod.Spec.NodeName, path, query, w)
		if err == nil {
			err = w.result(pod)
		}
		pipe.CloseWithError(err) // nil is the log's end
		ended <- err
	}()
	select {
	case <-head.begun:
	case err := <-ended:
		if err != nil {
			return err
		}
	}
	websocket.Server{Handshake: chooseLogProtocol, Handler: func(ws *websocket.Conn) {
		go func() { // the client says nothing; its end ends the log
			io.Copy(io.Discard, ws)
			r.CloseWithError(io.ErrClosedPipe)
		}()
		sendLog(ws, r)
	}}.ServeHTTP(c.w, c.r)
	return nil
}

// chooseLogProtocol takes the first of the client's subprotocols that is known.
func chooseLogProtocol(config *websocket.Config, _ *http.Request) error {
	if len(config.Protocol) == 0 {
		return nil
	}
	i := slices.IndexFunc(config.Protocol, func(p string) bool { return p == binarySocket || p == base64Socket })
	if i < 0 {
		return errors.New("requested protocol(s) are not supported: " + config.Protocol[0])
	}
	config.Protocol = config.Protocol[i : i+1]
	return nil
}

// sendLog copies a log into messages; the first is empty, so that the client sees at once that it is connected.
func sendLog(ws *websocket.Conn, log io.Reader) {
	defer ws.Close()
	send := func(p []byte) error { return websocket.Message.Send(ws, p) }
	if chosen := ws.Config().Protocol; len(chosen) > 0 && chosen[0] == base64Socket {
		send = func(p []byte) error { return websocket.Message.Send(ws, base64.StdEncoding.EncodeToString(p)) }
	}
	if send([]byte{}) != nil {
		return
	}
	buf := make([]byte, logPiece)
	for {
		n, err := log.Read(buf)
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}

// socketHead stands in for the response while nothing is known of the log: it takes the head and sends the body into a pipe.
type socketHead struct {
	header http.Header
	pipe   *io.PipeWriter
	begun  chan struct{}
}

func (h *socketHead) Header() http.Header         { return h.header }
func (h *socketHead) WriteHeader(int)             { close(h.begun) } // called once, by logWriter, if the log is to be had
func (h *socketHead) Write(p []byte) (int, error) { return h.pipe.Write(p) }
func (h *socketHead) Flush()                      {}
