package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"coracle.dev/coracle/mesh/table"
)

// frames is an HTTP/2 server, frame by frame. refuse is called for every head; it returns true if it dealt with it. Other requests are
// answered, at their end, with the number of bytes of the body in X-Body.
func frames(t *testing.T, refuse func(f *http2.Framer, stream uint32) bool) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { l.Close() })
	one := func(c net.Conn) {
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings()
		lengths := map[uint32]int{}
		answer := func(id uint32) {
			var head bytes.Buffer
			e := hpack.NewEncoder(&head)
			_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
			_ = e.WriteField(hpack.HeaderField{Name: "x-body", Value: fmt.Sprint(lengths[id])})
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					_ = f.WriteSettingsAck()
				}
			case *http2.PingFrame:
				if !frame.IsAck() {
					_ = f.WritePing(true, frame.Data)
				}
			case *http2.HeadersFrame:
				lengths[frame.StreamID] = 0
				if refuse(f, frame.StreamID) {
					delete(lengths, frame.StreamID)
				} else if frame.StreamEnded() {
					answer(frame.StreamID)
				}
			case *http2.DataFrame:
				if n := uint32(len(frame.Data())); n > 0 { // what came of refused streams counts for the connection's window
					_ = f.WriteWindowUpdate(0, n)
				}
				if _, ok := lengths[frame.StreamID]; !ok {
					continue
				}
				lengths[frame.StreamID] += len(frame.Data())
				if frame.StreamEnded() {
					answer(frame.StreamID)
				}
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go one(c)
		}
	}()
	return l.Addr().String()
}

// two is an HTTP/2 client without TLS.
func two(t *testing.T, address string) *http.Client {
	transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// TestRefused holds that a request that an HTTP/2 backend did not process is sent again, whatever its method and body.
func TestRefused(t *testing.T) {
	goAway := func(code http2.ErrCode) func(*http2.Framer, uint32) {
		return func(f *http2.Framer, stream uint32) { _ = f.WriteGoAway(stream-1, code, nil) }
	}
	reset := func(f *http2.Framer, stream uint32) { _ = f.WriteRSTStream(stream, http2.ErrCodeRefusedStream) }
	for _, test := range []struct {
		name   string
		refuse func(*http2.Framer, uint32)
	}{{"goaway", goAway(http2.ErrCodeNo)}, {"goaway with an error", goAway(http2.ErrCodeEnhanceYourCalm)}, {"refused stream", reset}} {
		for _, body := range []string{"none", "buffer", "stream", "held"} {
			for _, major := range []int{1, 2} {
				t.Run(fmt.Sprint(test.name, "/", body, "/", major), func(t *testing.T) {
					var heads atomic.Int32
					refusedOnce := make(chan bool)
					b := backend("b", frames(t, func(f *http2.Framer, stream uint32) bool {
						if heads.Add(1) > 1 {
							return false
						}
						test.refuse(f, stream)
						close(refusedOnce)
						return true
					}))
					b.Protocol = table.HTTP2
					w := newWorld(t)
					url := w.serve(to("b"), b)
					client := &http.Client{Timeout: time.Minute}
					if major == 2 {
						client = two(t, w.address("web"))
					}
					var q *http.Request
					length := 0
					switch body {
					case "none":
						q = must(http.NewRequest("DELETE", url, nil))
					case "buffer":
						length = 100
						q = must(http.NewRequest("POST", url, strings.NewReader(strings.Repeat("x", length))))
					case "stream":
						length = 40_000
						q = must(http.NewRequest("POST", url, io.MultiReader(strings.NewReader(strings.Repeat("x", length)))))
					case "held": // the client sends the rest only after the refusal
						length = 20
						in, out := io.Pipe()
						go func() {
							_, _ = io.WriteString(out, strings.Repeat("x", 10))
							<-refusedOnce
							_, _ = io.WriteString(out, strings.Repeat("x", 10))
							_ = out.Close()
						}()
						q = must(http.NewRequest("POST", url, in))
					}
					r, err := client.Do(q)
					if err != nil {
						t.Fatal(err)
					}
					r.Body.Close()
					if r.StatusCode != 200 || r.Header.Get("X-Body") != fmt.Sprint(length) {
						t.Errorf("answered %d after %d heads, the backend got %s of %d bytes", r.StatusCode, heads.Load(), r.Header.Get("X-Body"), length)
					}
				})
			}
		}
	}
}

// TestRefusedElsewhere holds that who refuses is passed over while others are there, and that refusals end.
func TestRefusedElsewhere(t *testing.T) {
	var refusals atomic.Int32
	never := frames(t, func(f *http2.Framer, stream uint32) bool {
		refusals.Add(1)
		_ = f.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
		return true
	})
	always := frames(t, func(*http2.Framer, uint32) bool { return false })
	w := newWorld(t)
	b := backend("b", never, always)
	b.Protocol = table.HTTP2
	url := w.serve(to("b"), b)
	for range 10 {
		r, err := http.Post(url, "text/plain", strings.NewReader("x"))
		if err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		r.Body.Close()
	}
	if n := refusals.Load(); n == 0 || n > 10 {
		t.Errorf("%d refusals for 10 requests", n)
	}
	b = backend("b", never)
	b.Protocol = table.HTTP2
	w.serve(to("b"), b)
	refusals.Store(0)
	r, err := http.Post(url, "text/plain", strings.NewReader("x"))
	if err != nil || r.StatusCode != 503 {
		t.Fatal(r, err)
	}
	r.Body.Close()
	if n := refusals.Load(); n != freeTries {
		t.Errorf("sent %d times", n)
	}
}

// short is a listener whose streams may only stand still for a moment.
func short(rule *table.Rule) *table.Listener {
	return must(table.NewListener(table.Listener{ID: "web", Address: loopback, Chains: []*table.Chain{{Hosts: hosts(&table.Route{Rule: rule})}},
		Limits: table.Limits{StreamTimeout: 300 * time.Millisecond}}))
}

// TestStill2 holds what HTTP/1 has too: nothing may stand still for longer than the listener says, and what moves may take its time.
func TestStill2(t *testing.T) {
	silent := backend("silent", frames(t, func(*http2.Framer, uint32) bool { return true }))
	silent.Protocol = table.HTTP2
	reads := backend("reads", server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	reads2 := backend("reads2", frames(t, func(*http2.Framer, uint32) bool { return false }))
	reads2.Protocol = table.HTTP2
	for _, major := range []int{1, 2} {
		client := func(w *world) *http.Client {
			if major == 2 {
				return two(t, w.address("web"))
			}
			return &http.Client{Timeout: time.Minute}
		}
		t.Run(fmt.Sprint("backend never answers/", major), func(t *testing.T) {
			w := newWorld(t)
			w.apply([]*table.Listener{short(to("silent"))}, silent)
			for _, body := range []io.Reader{nil, strings.NewReader("x")} {
				r, err := client(w).Do(must(http.NewRequest("POST", "http://"+w.address("web"), body)))
				if err != nil || r.StatusCode != 504 {
					t.Fatal(r, err)
				}
				r.Body.Close()
			}
		})
		for _, b := range []*table.Backend{reads, reads2} {
			t.Run(fmt.Sprint("slow but moving/", b.ID, "/", major), func(t *testing.T) {
				w := newWorld(t)
				w.apply([]*table.Listener{short(to(b.ID))}, b)
				in, out := io.Pipe()
				go func() {
					tick := time.NewTicker(40 * time.Millisecond)
					defer tick.Stop()
					for range 20 {
						<-tick.C
						_, _ = io.WriteString(out, "x")
					}
					_ = out.Close()
				}()
				r, err := client(w).Do(must(http.NewRequest("POST", "http://"+w.address("web"), in)))
				if err != nil || r.StatusCode != 200 {
					t.Fatal(r, err)
				}
				r.Body.Close()
			})
		}
	}
	kept := to("reads")
	kept.Retry = &table.Retry{Attempts: 1}
	for _, test := range []struct {
		name string
		rule *table.Rule
		b    *table.Backend
		body string
	}{{"stream to HTTP/1", to("reads"), reads, ""}, {"stream to HTTP/2", to("reads2"), reads2, ""}, {"kept for retries", kept, reads, "10"}} {
		t.Run("client never sends/"+test.name, func(t *testing.T) {
			w := newWorld(t)
			w.apply([]*table.Listener{short(test.rule)}, test.b)
			in, out := io.Pipe()
			defer out.Close()
			go func() { _, _ = io.WriteString(out, "x") }()
			q := must(http.NewRequest("POST", "http://"+w.address("web"), in))
			if test.body != "" {
				q.ContentLength = 10
			}
			r, err := two(t, w.address("web")).Do(q)
			if err != nil || r.StatusCode != 408 {
				t.Fatal(r, err)
			}
			r.Body.Close()
		})
	}
}

// TestSource holds that endpoints are connected to from the address that was asked for, more often than one address has ports beside others.
func TestSource(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	p := New(Config{Source: func(netip.Addr) netip.Addr { return netip.MustParseAddr("127.0.0.77") }})
	w := &world{t, p}
	t.Cleanup(func() { p.Close(context.Background()) })
	if code, from := get(t, w.serve(to("b"), backend("b", at))); code != 200 || !strings.HasPrefix(from, "127.0.0.77:") {
		t.Errorf("%d: from %s", code, from)
	}
}
