package kubelet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// dialers are the two ways in which kubectl forwards ports.
var dialers = map[string]func(base, path string) (httpstream.Dialer, error){
	"spdy": func(base, path string) (httpstream.Dialer, error) {
		u, _ := url.Parse(base + path)
		rt, up, err := spdy.RoundTripperFor(&rest.Config{Host: base})
		if err != nil {
			return nil, err
		}
		return spdy.NewDialerForStreaming(up, &http.Client{Transport: rt}, "POST", u), nil
	},
	"websocket tunnel": func(base, path string) (httpstream.Dialer, error) {
		u, _ := url.Parse(base + path)
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{Host: base})
	},
}

// listen serves connections on a port of the loopback with f.
func listen(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
	return l.Addr().String()
}

func TestPortForward(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			rt := newFake()
			// Answers only after the client has closed its direction.
			rt.ports[80] = listen(t, func(c net.Conn) {
				defer c.Close()
				data, _ := io.ReadAll(c)
				fmt.Fprintf(c, "%d:%s", len(data), data[:min(5, len(data))])
			})
			srv, _ := serve(t, rt, "")
			d, err := dial(srv.URL, "/portForward/default/web")
			if err != nil {
				t.Fatal(err)
			}
			stop, ready := make(chan struct{}), make(chan struct{})
			fw, err := portforward.NewOnAddressesForStreaming(d, []string{"127.0.0.1"}, []string{"0:80", "0:81"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- fw.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatalf("not ready: %v", err)
			}
			ports, err := fw.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				talk(t, ports[0].Local)
			}
			refused(t, ports[1].Local)
			close(stop)
			if err := <-done; err != nil && !strings.Contains(err.Error(), "lost connection") {
				t.Fatal(err)
			}
		})
	}
}

func talk(t *testing.T, port uint16) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		c.Write(bytes.Repeat([]byte("hello"), 100_000))
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "500000:hello" {
		t.Fatalf("%q, %v", got, err)
	}
}

func refused(t *testing.T, port uint16) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if got, _ := io.ReadAll(c); len(got) != 0 {
		t.Fatalf("%q came from a closed port", got)
	}
}

// openPair opens the error and the data stream of a forwarded connection. The server may close the pair before its
// answer to the second SYN is out (the stream library starts the forwarding first), which the client's library then takes
// for a reset: kubectl asks again, and so does this.
func openPair(t *testing.T, d httpstream.Dialer) (httpstream.Connection, httpstream.Stream) {
	t.Helper()
	for range 20 {
		conn, _, err := d.Dial("portforward.k8s.io")
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set("port", "81")
		h.Set("requestID", "0")
		h.Set("streamType", "error")
		errStream, err := conn.CreateStream(h)
		if err == nil {
			h.Set("streamType", "data")
			_, err = conn.CreateStream(h)
		}
		if err == nil {
			return conn, errStream
		}
		conn.Close()
		if err.Error() != "Stream reset" {
			t.Fatal(err)
		}
	}
	t.Fatal("the streams were reset again and again")
	return nil, nil
}

// TestPortForwardError reads the error stream as kubectl does.
func TestPortForwardError(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			srv, _ := serve(t, newFake(), "")
			d, err := dial(srv.URL, "/portForward/default/web")
			if err != nil {
				t.Fatal(err)
			}
			conn, errStream := openPair(t, d)
			defer conn.Close()
			text, _ := io.ReadAll(errStream)
			const want = `error forwarding port 81 to pod web, uid uid-1: failed to execute portforward in network namespace of pod web: ` +
				`failed to connect to localhost:81 inside namespace "s1": dial tcp4 127.0.0.1:81: connect: connection refused`
			if string(text) != want {
				t.Fatalf("%q", text)
			}
		})
	}
}

// TestPortForwardChannels speaks plain WebSocket channels, as clients without SPDY do.
func TestPortForwardChannels(t *testing.T) {
	rt := newFake()
	rt.ports[80] = listen(t, func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, 5)
		io.ReadFull(c, buf)
		fmt.Fprintf(c, "got %s", buf)
	})
	srv, _ := serve(t, rt, "")
	u := strings.Replace(srv.URL, "http", "ws", 1) + "/portForward/default/web?ports=80"
	ws, err := websocket.Dial(u, "v4.channel.k8s.io", srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetDeadline(time.Now().Add(20 * time.Second))
	receive := func() []byte {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			t.Fatal(err)
		}
		return frame
	}
	for channel := range 2 { // each channel begins with its port
		frame := receive()
		if len(frame) != 3 || int(frame[0]) != channel || binary.LittleEndian.Uint16(frame[1:]) != 80 {
			t.Fatalf("frame %v", frame)
		}
	}
	websocket.Message.Send(ws, []byte("\x00hello"))
	if got := receive(); string(got) != "\x00got hello" {
		t.Fatalf("%q", got)
	}
}
