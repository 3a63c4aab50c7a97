package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"coracle.dev/coracle/mesh/table"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// world is a proxy under test with one HTTP listener "web".
type world struct {
	t *testing.T
	p *Proxy
}

func newWorld(t *testing.T) *world {
	w := &world{t, New(Config{})}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		w.p.Close(ctx)
	})
	return w
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func hosts(routes ...*table.Route) *table.Hosts {
	return must(table.NewHosts(must(table.NewVirtualHost("all", []string{"*"}, routes))))
}

func to(backends ...string) *table.Rule {
	r := &table.Rule{Name: "rule"}
	for _, b := range backends {
		r.Backends = append(r.Backends, table.Weighted{Backend: b, Weight: 1})
	}
	return r
}

func web(h *table.Hosts) *table.Listener {
	return must(table.NewListener(table.Listener{ID: "web", Address: loopback, Chains: []*table.Chain{{Name: "http", Hosts: h}},
		Limits: table.Limits{HeaderTimeout: time.Minute}}))
}

func backend(id string, addresses ...string) *table.Backend {
	b := &table.Backend{ID: id}
	for _, a := range addresses {
		b.Endpoints = append(b.Endpoints, table.Endpoint{Address: netip.MustParseAddrPort(a)})
	}
	return b
}

func (w *world) apply(listeners []*table.Listener, backends ...*table.Backend) {
	w.t.Helper()
	if err := w.p.Apply(must(table.New(1, listeners, backends))); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) address(id string) string {
	w.t.Helper()
	a, ok := w.p.Address(id)
	if !ok {
		w.t.Fatalf("listener %s is not open", id)
	}
	return a.String()
}

// serve applies one rule before one backend.
func (w *world) serve(rule *table.Rule, b *table.Backend) string {
	w.t.Helper()
	w.apply([]*table.Listener{web(hosts(&table.Route{Rule: rule}))}, b)
	return "http://" + w.address("web")
}

func server(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func certificate(names ...string) (tls.Certificate, *x509.CertPool) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	pool := x509.NewCertPool()
	pool.AddCert(must(x509.ParseCertificate(der)))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestForwards(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Secret", "s")
		fmt.Fprintf(w, "%s %s host=%s for=%s proto=%s fwdhost=%s add=%s conn=%q named=%q te=%v body=%d", r.Method, r.RequestURI, r.Host,
			r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-Add"),
			r.Header.Get("Connection"), r.Header.Get("X-Named"), r.TransferEncoding, len(body))
	})
	w := newWorld(t)
	rule := to("b")
	rule.Rewrite = &table.Rewrite{Host: "inner", Path: &table.PathRewrite{Prefix: "/new"}}
	rule.Request = &table.HeaderEdit{Add: []table.Header{{Name: "X-Add", Value: "1"}}}
	rule.Response = &table.HeaderEdit{Remove: []string{"x-secret"}, Set: []table.Header{{Name: "X-Out", Value: "2"}}}
	w.apply([]*table.Listener{web(hosts(&table.Route{Match: table.Match{Path: table.PathMatch{Value: "/old"}}, Rule: rule}))}, backend("b", at))
	url := "http://" + w.address("web")
	for _, length := range []int{0, 10, 100_000} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(strings.Repeat("x", length))
			if chunked {
				body = io.MultiReader(body)
			}
			q := must(http.NewRequest("POST", url+"/old/a%2Fb/../c?q=1", body))
			q.Host = "outer.example.com"
			q.Header.Set("X-Forwarded-For", "6.6.6.6")
			q.Header.Set("Connection", "X-Named")
			q.Header.Set("X-Named", "gone")
			r, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(r.Body)
			r.Body.Close()
			want := fmt.Sprintf("host=inner for=127.0.0.1 proto=http fwdhost=outer.example.com add=1 conn=\"\" named=\"\" te=")
			if !strings.HasPrefix(string(got), "POST /new/c?q=1 "+want) || !strings.HasSuffix(string(got), fmt.Sprintf("body=%d", length)) {
				t.Errorf("%d %v: the backend got %s", length, chunked, got)
			}
			if r.Header.Get("X-Secret") != "" || r.Header.Get("X-Out") != "2" {
				t.Errorf("response headers %v", r.Header)
			}
		}
	}
	if code, _ := get(t, url+"/other"); code != 404 {
		t.Errorf("no route answers %d", code)
	}
}

// TestStatus is what clients get when backends misbehave.
func TestStatus(t *testing.T) {
	raw := func(answer string) string {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
						return
					}
					if answer == "hang" {
						_, _ = io.Copy(io.Discard, c)
						return
					}
					_, _ = io.WriteString(c, answer)
				}()
			}
		}()
		return l.Addr().String()
	}
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	nobody := closed.Addr().String()
	closed.Close()
	slow := to("b")
	slow.Timeouts.Backend = 50 * time.Millisecond
	whole := to("b")
	whole.Timeouts.Request = 50 * time.Millisecond
	for _, test := range []struct {
		name string
		rule *table.Rule
		b    *table.Backend
		code int
	}{
		{"no endpoints", to("b"), backend("b"), 503},
		{"connection refused", to("b"), backend("b", nobody), 503},
		{"closed without an answer", to("b"), backend("b", raw("")), 502},
		{"malformed answer", to("b"), backend("b", raw("HELLO\r\n\r\n")), 502},
		{"both lengths", to("b"), backend("b", raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx")), 502},
		{"backend timeout", slow, backend("b", raw("hang")), 504},
		{"request timeout", whole, backend("b", raw("hang")), 504},
		{"no valid backend", to(""), backend("b"), 500},
		{"unknown backend", to("x"), backend("b"), 500},
		{"to the end of the connection", to("b"), backend("b", raw("HTTP/1.0 200 OK\r\n\r\nhello")), 200},
		{"interim answers", to("b"), backend("b", raw("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")), 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if code, body := get(t, w.serve(test.rule, test.b)); code != test.code {
				t.Errorf("answered %d %q, want %d", code, body, test.code)
			}
		})
	}
	t.Run("broken in the middle", func(t *testing.T) {
		w := newWorld(t)
		r, err := http.Get(w.serve(to("b"), backend("b", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"))))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("half an answer was taken for a whole one: %q", b)
		}
	})
}

// TestRaw is what is refused of clients, byte by byte.
func TestRaw(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); fmt.Fprint(w, "ok") })
	w := newWorld(t)
	l := must(table.NewListener(table.Listener{ID: "web", Address: loopback, Chains: []*table.Chain{{Hosts: hosts(&table.Route{Rule: to("b")})}},
		Limits: table.Limits{HeaderTimeout: 100 * time.Millisecond, HeaderBytes: 8 << 10, Headers: 20}}))
	w.apply([]*table.Listener{l}, backend("b", at))
	for _, test := range []struct {
		name, text string
		code       string
	}{
		{"plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		{"one dot zero", "GET / HTTP/1.0\r\n\r\n", "200"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		{"both lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", "400"},
		{"signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", "400"},
		{"folded", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "400"},
		{"blank before colon", "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", "400"},
		{"bare line feed", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", "400"},
		{"other encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		{"version", "GET / HTTP/2.1\r\nHost: a\r\n\r\n", "505"},
		{"connect", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "405"},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"large", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 9<<10) + "\r\n\r\n", "431"},
		{"many", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: 1\r\n", 30) + "\r\n", "431"},
		{"slowloris", "GET / HTTP/1.1\r\nHost: a\r\n", "408"},
		{"bad chunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", ""},
		{"absolute", "GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := must(net.Dial("tcp", w.address("web")))
			defer c.Close()
			_, _ = io.WriteString(c, test.text)
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if test.code == "" {
				if err == nil && r.StatusCode == 200 {
					t.Error("answered 200")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(r.Status, test.code) {
				t.Errorf("answered %s, want %s", r.Status, test.code)
			}
		})
	}
	t.Run("pipelined and continued", func(t *testing.T) {
		c := must(net.Dial("tcp", w.address("web")))
		defer c.Close()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		in := bufio.NewReader(c)
		for range 2 {
			r, err := http.ReadResponse(in, nil)
			if err != nil || r.StatusCode != 200 {
				t.Fatal(r, err)
			}
			_, _ = io.Copy(io.Discard, r.Body)
		}
		if r, err := http.ReadResponse(in, nil); err != nil || r.StatusCode != 100 {
			t.Fatal(r, err)
		}
		_, _ = io.WriteString(c, "abc")
		if r, err := http.ReadResponse(in, nil); err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
	})
}

// TestSwap changes tables under load: no request may fail.
func TestSwap(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	w := newWorld(t)
	routes := func(n int) *table.Hosts {
		return hosts(&table.Route{Match: table.Match{Path: table.PathMatch{Kind: table.PathExact, Value: fmt.Sprint("/", n)}}, Rule: to("x")},
			&table.Route{Rule: to("b")})
	}
	b := backend("b", at)
	w.apply([]*table.Listener{web(routes(0))}, b)
	url := "http://" + w.address("web")
	stop, done := load(t, url, 8)
	for i := range 200 {
		extra := must(table.NewListener(table.Listener{ID: "extra", Address: loopback, Chains: []*table.Chain{{Hosts: routes(i)}}}))
		listeners := []*table.Listener{web(routes(i))}
		if i%2 == 0 {
			listeners = append(listeners, extra)
		}
		w.apply(listeners, b, backend("x", at))
	}
	total := finish(t, stop, done, 2000)
	t.Logf("%d requests", total)
}

// load sends requests from n goroutines until told to stop; errors come at the end.
func load(t *testing.T, url string, n int) (*atomic.Bool, chan result) {
	stop, done := &atomic.Bool{}, make(chan result, n)
	for range n {
		go func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			c := &http.Client{Transport: transport}
			r := result{}
			for !stop.Load() {
				q, err := c.Get(url)
				if err != nil {
					r.err = err
					break
				}
				b, err := io.ReadAll(q.Body)
				q.Body.Close()
				if err != nil || q.StatusCode != 200 {
					r.err = fmt.Errorf("%d %q: %w", q.StatusCode, b, errors.Join(err))
					break
				}
				r.n++
				answered.Add(1)
			}
			done <- r
		}()
	}
	answered.Store(0)
	return stop, done
}

var answered atomic.Int64

type result struct {
	n   int
	err error
}

func finish(t *testing.T, stop *atomic.Bool, done chan result, least int) int {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for answered.Load() < int64(least) && time.Now().Before(deadline) && len(done) == 0 {
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	total := 0
	for range cap(done) {
		r := <-done
		if r.err != nil {
			t.Errorf("after %d requests: %v", r.n, r.err)
		}
		total += r.n
	}
	return total
}

// TestChurn replaces endpoints as a rolling update does, while requests come: none may fail.
func TestChurn(t *testing.T) {
	w := newWorld(t)
	start := func() *http.Server {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		s := &http.Server{Addr: l.Addr().String(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })}
		go func() { _ = s.Serve(l) }()
		return s
	}
	servers := []*http.Server{start(), start(), start()}
	apply := func() {
		var at []string
		for _, s := range servers {
			at = append(at, s.Addr)
		}
		w.apply([]*table.Listener{web(hosts(&table.Route{Rule: to("b")}))}, backend("b", at...))
	}
	apply()
	stop, done := load(t, "http://"+w.address("web"), 8)
	for range 60 {
		old := servers[0]
		servers = append(servers[1:], start())
		apply()
		_ = old.Shutdown(context.Background())
	}
	t.Logf("%d requests", finish(t, stop, done, 2000))
	// and without any word: the server just shuts down
	stop, done = load(t, "http://"+w.address("web"), 8)
	_ = servers[0].Shutdown(context.Background())
	_ = servers[1].Shutdown(context.Background())
	finish(t, stop, done, 1000)
	_ = servers[2].Close()
}

// TestUpgrade carries a protocol of its own through an upgraded connection.
func TestUpgrade(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		_, _ = io.Copy(c, rw)
	})
	w := newWorld(t)
	w.serve(to("b"), backend("b", at))
	c := must(net.Dial("tcp", w.address("web"))).(*net.TCPConn)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
	in := bufio.NewReader(c)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != 101 || r.Header.Get("Upgrade") != "echo" {
		t.Fatal(r, err)
	}
	_, _ = io.WriteString(c, "bytes")
	_ = c.CloseWrite()
	if b, err := io.ReadAll(in); err != nil || string(b) != "early bytes" {
		t.Fatalf("%q %v", b, err)
	}
}

// TestTLS serves two certificates by name, HTTP/2 and HTTP/1 on both, and passes a third name through.
func TestTLS(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "plain ", r.Header.Get("X-Forwarded-Proto"))
	})
	inner := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "inner") }))
	t.Cleanup(inner.Close)
	w := newWorld(t)
	a, rootsA := certificate("a.example.com")
	b, rootsB := certificate("*.wild.example.com")
	h := hosts(&table.Route{Rule: to("b")})
	l := must(table.NewListener(table.Listener{ID: "tls", Address: loopback, Chains: []*table.Chain{
		{Name: "a", ServerNames: []string{"a.example.com"}, TLS: must(table.MakeTLS([]tls.Certificate{a}, nil, 0, nil)), Hosts: h},
		{Name: "b", ServerNames: []string{"*.wild.example.com"}, TLS: must(table.MakeTLS([]tls.Certificate{b}, nil, 0, nil)), Hosts: h},
		{Name: "through", ServerNames: []string{"example.com"}, Forward: to("inner")},
	}}))
	w.apply([]*table.Listener{l}, backend("b", at), backend("inner", inner.Listener.Addr().String()))
	ask := func(name, host string, roots *x509.CertPool, two bool) (int, int, string) {
		t.Helper()
		transport := &http.Transport{ForceAttemptHTTP2: two, TLSClientConfig: &tls.Config{ServerName: name, RootCAs: roots}}
		defer transport.CloseIdleConnections()
		q := must(http.NewRequest("GET", "https://"+w.address("tls"), nil))
		q.Host = host
		r, err := transport.RoundTrip(q)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.ProtoMajor, r.StatusCode, string(body)
	}
	for _, two := range []bool{false, true} {
		major := 1
		if two {
			major = 2
		}
		for name, roots := range map[string]*x509.CertPool{"a.example.com": rootsA, "x.wild.example.com": rootsB} {
			if m, code, body := ask(name, name, roots, two); m != major || code != 200 || body != "plain https" {
				t.Errorf("%s: HTTP/%d %d %q", name, m, code, body)
			}
		}
		if _, code, _ := ask("a.example.com", "x.wild.example.com", rootsA, two); code != 421 {
			t.Errorf("another connection's host answers %d", code)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(inner.Certificate())
	if _, code, body := ask("example.com", "example.com", pool, false); code != 200 || body != "inner" {
		t.Errorf("passthrough: %d %q", code, body)
	}
	if _, err := tls.Dial("tcp", w.address("tls"), &tls.Config{ServerName: "other.org", InsecureSkipVerify: true}); err == nil {
		t.Error("a name that nobody serves got a handshake")
	}
}

// TestHTTP2 goes all the way in HTTP/2 without TLS, with trailers both ways and both sides streaming.
func TestHTTP2(t *testing.T) {
	h2 := &http2.Server{}
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { l.Close() })
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h2.ServeConn(c, &http2.ServeConnOpts{Handler: handler})
		}
	}()
	w := newWorld(t)
	b := backend("b", l.Addr().String())
	b.Protocol = table.HTTP2
	url := w.serve(to("b"), b)
	transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", w.address("web"))
	}}
	defer transport.CloseIdleConnections()
	body, send := io.Pipe()
	q := must(http.NewRequest("POST", url+"/svc/Method", body))
	q.Header.Set("Content-Type", "application/grpc")
	q.Header.Set("TE", "trailers")
	r, err := transport.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	for i := range 20 { // each message comes back before the next is sent
		text := fmt.Sprintf("message %02d", i)
		_, _ = io.WriteString(send, text)
		got := make([]byte, len(text))
		if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != text {
			t.Fatalf("%q %v", got, err)
		}
	}
	send.Close()
	if rest, err := io.ReadAll(r.Body); err != nil || len(rest) > 0 {
		t.Fatal(rest, err)
	}
	if r.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailers %v", r.Trailer)
	}
	// the proxy's own errors are gRPC's
	w.serve(to("b"), &table.Backend{ID: "b", Protocol: table.HTTP2})
	q = must(http.NewRequest("POST", url+"/svc/Method", strings.NewReader("x")))
	q.Header.Set("Content-Type", "application/grpc")
	if r, err = transport.RoundTrip(q); err != nil || r.StatusCode != 200 || r.Header.Get("Grpc-Status") != "14" {
		t.Fatal(r, err)
	}
	r.Body.Close()
	// and HTTP/1 clients reach HTTP/2 backends
	w.serve(to("b"), b)
	one, err := http.Post(url+"/svc/Method", "text/plain", strings.NewReader("over one"))
	if err != nil {
		t.Fatal(err)
	}
	defer one.Body.Close()
	if got, _ := io.ReadAll(one.Body); string(got) != "over one" || one.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%q %v", got, one.Trailer)
	}
}

// TestClientGone cancels the backend's work when the client leaves.
func TestClientGone(t *testing.T) {
	began, ended := make(chan bool, 1), make(chan bool, 1)
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-r.Context().Done()
		ended <- true
	})
	w := newWorld(t)
	w.serve(to("b"), backend("b", at))
	c := must(net.Dial("tcp", w.address("web")))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	c.Close()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the backend still works for nobody")
	}
}

func TestStreams(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c) // needs the half-close
				_, _ = c.Write(b)
			}()
		}
	}()
	u := must(net.ListenPacket("udp", "127.0.0.1:0"))
	t.Cleanup(func() { u.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
	w := newWorld(t)
	w.apply([]*table.Listener{
		must(table.NewListener(table.Listener{ID: "tcp", Address: loopback, Chains: []*table.Chain{{Forward: to("tcp")}}})),
		must(table.NewListener(table.Listener{ID: "udp", Address: loopback, Network: table.UDP, Chains: []*table.Chain{{Forward: to("udp")}}})),
	}, backend("tcp", l.Addr().String()), backend("udp", u.LocalAddr().String()))
	c := must(net.Dial("tcp", w.address("tcp"))).(*net.TCPConn)
	defer c.Close()
	sent := strings.Repeat("stream", 50_000)
	go func() { _, _ = io.WriteString(c, sent); _ = c.CloseWrite() }()
	if b, err := io.ReadAll(c); err != nil || string(b) != sent {
		t.Fatalf("%d bytes of %d came back: %v", len(b), len(sent), err)
	}
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() {
			c := must(net.Dial("udp", w.address("udp")))
			defer c.Close()
			text := fmt.Sprint("datagram ", i)
			b := make([]byte, 100)
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = io.WriteString(c, text)
			if n, err := c.Read(b); err != nil || string(b[:n]) != text {
				t.Errorf("%q %v", b[:n], err)
			}
		})
	}
	wait.Wait()
}

// TestRemoved holds that a listener that goes lets its request end and then closes.
func TestRemoved(t *testing.T) {
	began, goOn := make(chan bool), make(chan bool)
	at := server(t, func(w http.ResponseWriter, r *http.Request) { began <- true; <-goOn; fmt.Fprint(w, "late") })
	w := newWorld(t)
	w.serve(to("b"), backend("b", at))
	address := w.address("web")
	c := must(net.Dial("tcp", address))
	defer c.Close()
	unused := must(net.Dial("tcp", address))
	defer unused.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	w.apply(nil)
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("a removed listener accepts")
	}
	goOn <- true
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	in := bufio.NewReader(c)
	r, err := http.ReadResponse(in, nil)
	if err != nil || r.StatusCode != 200 || !r.Close {
		t.Fatal(r, err)
	}
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "late" {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestCloseIdle holds that connections that are kept for later do not hold up the end, whenever they became idle.
func TestCloseIdle(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	began := time.Now()
	for range 100 {
		w := newWorld(t)
		get(t, w.serve(to("b"), backend("b", at)))
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		w.p.Close(ctx)
		cancel()
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("100 times took %v", took)
	}
}
