package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"coracle.dev/coracle/container"
)

const (
	// idleTimeout ends a connection on which nothing moves, as upstream's default.
	idleTimeout = 4 * time.Hour
	// streamTimeout is how long a SPDY client may take to create its streams.
	streamTimeout = 30 * time.Second
	// statusTimeout bounds the last write, that of the status.
	statusTimeout = 10 * time.Second
)

// The WebSocket subprotocols beside remotecommand's names: text frames in base64.
const (
	base64V1 = "base64.channel.k8s.io"
	base64V4 = "v4.base64.channel.k8s.io"
)

// wanted are the streams that a client asks for.
type wanted struct {
	stdin, stdout, stderr, tty bool
}

// wantedStreams reads the query of exec and attach.
func wantedStreams(r *http.Request) (wanted, error) {
	o := wanted{
		stdin:  boolParam(r, remotecommand.ExecStdinParam, "stdin"),
		stdout: boolParam(r, remotecommand.ExecStdoutParam, "stdout"),
		stderr: boolParam(r, remotecommand.ExecStderrParam, "stderr"),
		tty:    boolParam(r, remotecommand.ExecTTYParam),
	}
	if o.tty {
		o.stderr = false // a terminal has one output
	}
	if !o.stdin && !o.stdout && !o.stderr {
		return o, &httpError{http.StatusBadRequest, "you must specify at least 1 of stdin, stdout, stderr"}
	}
	return o, nil
}

// session is one upgraded connection of exec or attach.
type session struct {
	wanted
	conn           io.Closer
	stdin          io.ReadCloser
	stdout, stderr io.Writer
	resize         io.Reader
	// errs is the stream that the status goes to, structured if the protocol has exit codes (v4 and later).
	errs       io.Writer
	structured bool
	// deadline limits the last write, nil where the transport cannot.
	deadline func(time.Duration)
	// gone is closed when the client is.
	gone <-chan struct{}
}

// openSession upgrades the connection and waits for the client's streams. If it fails the client
// has been answered.
func (s *Server) openSession(h *hijacker, r *http.Request, o wanted) (*session, error) {
	var ses *session
	var err error
	if wsstream.IsWebSocketRequest(r) {
		ses, err = openWebSocket(h, r, o)
	} else {
		ses, err = openSPDY(h, r, o)
	}
	if err != nil {
		h.release()
		return nil, err
	}
	ses.gone = h.gone()
	return ses, nil
}

// openWebSocket serves v5 (with half-close), v4 and the protocols before it.
func openWebSocket(h *hijacker, r *http.Request, o wanted) (*session, error) {
	channel := func(on bool, t wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return t
		}
		return wsstream.IgnoreChannel
	}
	channels := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  channel(o.stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: channel(o.stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: channel(o.stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	binary := wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	text := wsstream.ChannelProtocolConfig{Binary: false, Channels: channels}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"":                                 binary,
		remotecommand.StreamProtocolV1Name: binary,
		base64V1:                           text,
		remotecommand.StreamProtocolV4Name: binary,
		base64V4:                           text,
		remotecommand.StreamProtocolV5Name: binary,
	})
	conn.SetIdleTimeout(idleTimeout)
	protocol, streams, err := conn.Open(h, r)
	if err != nil {
		return nil, fmt.Errorf("unable to upgrade websocket connection: %w", err)
	}
	ses := &session{
		wanted:   o,
		conn:     conn,
		errs:     streams[remotecommand.StreamErr],
		deadline: conn.SetWriteDeadline,
		resize:   streams[remotecommand.StreamResize],
	}
	if o.stdin {
		ses.stdin = streams[remotecommand.StreamStdIn]
	}
	if o.stdout {
		ses.stdout = streams[remotecommand.StreamStdOut]
	}
	if o.stderr {
		ses.stderr = streams[remotecommand.StreamStdErr]
	}
	switch protocol {
	case remotecommand.StreamProtocolV4Name, base64V4, remotecommand.StreamProtocolV5Name:
		ses.structured = true
	}
	// An empty message tells the client that the connection stands.
	first := ses.errs
	for _, w := range []io.Writer{ses.stderr, ses.stdout} {
		if w != nil {
			first = w
		}
	}
	if _, err := first.Write(nil); err != nil {
		conn.Close()
		return nil, err
	}
	return ses, nil
}

// openSPDY serves v4 to v1.
func openSPDY(h *hijacker, r *http.Request, o wanted) (*session, error) {
	protocol, err := httpstream.Handshake(r, h, remotecommand.SupportedStreamingProtocols)
	if err != nil {
		return nil, err // the client was told
	}
	type arrival struct {
		stream httpstream.Stream
		reply  <-chan struct{}
	}
	arrivals := make(chan arrival)
	done := make(chan struct{})
	defer close(done)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(h, r, func(stream httpstream.Stream, reply <-chan struct{}) error {
		select {
		case arrivals <- arrival{stream, reply}:
			return nil
		case <-done:
			return errors.New("no more streams are expected")
		}
	})
	if conn == nil {
		return nil, errors.New("unable to upgrade connection") // the client was told
	}
	conn.SetIdleTimeout(idleTimeout)
	v1 := protocol == remotecommand.StreamProtocolV1Name
	resizable := !v1 && protocol != remotecommand.StreamProtocolV2Name
	ses := &session{wanted: o, conn: conn, structured: protocol == remotecommand.StreamProtocolV4Name}
	missing := 1
	for _, on := range []bool{o.stdin, o.stdout, o.stderr, o.tty && resizable} {
		if on {
			missing++
		}
	}
	timer := time.NewTimer(streamTimeout)
	defer timer.Stop()
	var replies []<-chan struct{}
	for missing > 0 {
		select {
		case a := <-arrivals:
			if !ses.take(a.stream) {
				continue
			}
			replies = append(replies, a.reply)
			missing--
		case <-timer.C:
			conn.Close()
			return nil, errors.New("timed out waiting for client to create streams")
		case <-conn.CloseChan():
			return nil, errors.New("the client closed the connection before it created its streams")
		}
	}
	for _, reply := range replies {
		select {
		case <-reply:
		case <-conn.CloseChan():
			return nil, errors.New("the client closed the connection before its streams stood")
		}
	}
	if v1 && ses.stdin != nil {
		// The first protocol half-closes our direction of stdin at once.
		ses.stdin.Close()
	}
	return ses, nil
}

// take files a SPDY stream by its header; false if it is of no known type or one too many.
func (ses *session) take(stream httpstream.Stream) bool {
	switch stream.Headers().Get(remotecommand.StreamType) {
	case remotecommand.StreamTypeError:
		if ses.errs == nil {
			ses.errs = stream
			return true
		}
	case remotecommand.StreamTypeStdin:
		if ses.wanted.stdin && ses.stdin == nil {
			ses.stdin = stream
			return true
		}
	case remotecommand.StreamTypeStdout:
		if ses.wanted.stdout && ses.stdout == nil {
			ses.stdout = stream
			return true
		}
	case remotecommand.StreamTypeStderr:
		if ses.wanted.stderr && ses.stderr == nil {
			ses.stderr = stream
			return true
		}
	case remotecommand.StreamTypeResize:
		if ses.resize == nil {
			ses.resize = stream
			return true
		}
	}
	return false
}

// streams gives the runtime its ends, valid until ctx ends. Output that the client no longer takes is
// dropped, so that the process does not block on it.
func (ses *session) streams(ctx context.Context) container.Streams {
	out := container.Streams{}
	if ses.stdin != nil {
		in := bufferInput(ses.stdin)
		context.AfterFunc(ctx, func() { in.Close() })
		out.Stdin = in
	}
	if ses.stdout != nil {
		out.Stdout = &dropper{w: ses.stdout}
	}
	if ses.stderr != nil {
		out.Stderr = &dropper{w: ses.stderr}
	}
	if ses.tty && ses.resize != nil {
		sizes := make(chan container.TerminalSize)
		go readSizes(ctx, ses.resize, sizes)
		out.Resize = sizes
	} else if ses.resize != nil {
		go io.Copy(io.Discard, ses.resize) // a client may send sizes unasked; ends with the connection
	}
	return out
}

// readSizes decodes terminal sizes until the stream or ctx ends.
func readSizes(ctx context.Context, r io.Reader, sizes chan<- container.TerminalSize) {
	defer close(sizes)
	dec := json.NewDecoder(r)
	for {
		var size container.TerminalSize
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// dropper writes until that fails, and pretends from then on.
type dropper struct {
	mu     sync.Mutex
	w      io.Writer
	broken bool
}

// Write never fails.
func (d *dropper) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.broken {
		if _, err := d.w.Write(p); err != nil {
			d.broken = true
		}
	}
	return len(p), nil
}

// finish tells the client how it ended and closes the connection.
func (ses *session) finish(status *metav1.Status) {
	defer ses.conn.Close()
	if ses.deadline != nil {
		ses.deadline(statusTimeout)
	}
	if ses.structured {
		if data, err := json.Marshal(status); err == nil {
			ses.errs.Write(data)
		}
		return
	}
	if status.Status != metav1.StatusSuccess {
		io.WriteString(ses.errs, status.Message)
	}
}
