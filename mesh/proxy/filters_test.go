package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"coracle.dev/coracle/mesh/table"
)

// TestCORS holds what browsers are told of requests from other origins.
func TestCORS(t *testing.T) {
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		// A backend that allows everything by itself, and tells who asked.
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		w.Header().Set("Access-Control-Expose-Headers", "X-Backend")
		w.Header().Set("X-Method", r.Method)
		w.Header().Set("Vary", "Accept-Encoding")
	})
	narrow := &table.CORS{Origins: []string{"https://one.example", "https://*.wild.example"}, Methods: []string{"GET", "PUT"}, Headers: []string{"X-A", "X-B"},
		Expose: []string{"X-Out"}, MaxAge: time.Hour}
	open := &table.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}}
	trusting := &table.CORS{Origins: []string{"*"}, Methods: []string{"*"}, Headers: []string{"*"}, Credentials: true}
	const plain, preflight = "GET", "OPTIONS"
	for _, test := range []struct {
		name           string
		cors           *table.CORS
		method, origin string
		want           string // origin|credentials|methods|headers|age|expose|vary
	}{
		{"allowed", narrow, plain, "https://one.example", "https://one.example|||||X-Out|Accept-Encoding, Origin"},
		{"any case", narrow, plain, "HTTPS://One.example", "HTTPS://One.example|||||X-Out|Accept-Encoding, Origin"},
		{"wildcard", narrow, plain, "https://a.b.wild.example", "https://a.b.wild.example|||||X-Out|Accept-Encoding, Origin"},
		{"not the star's own", narrow, plain, "https://wild.example", "||||||Accept-Encoding, Origin"},
		{"nor nothing", narrow, plain, "https://.wild.example", "||||||Accept-Encoding, Origin"},
		{"another", narrow, plain, "https://evil.example", "||||||Accept-Encoding, Origin"},
		{"another scheme", narrow, plain, "http://one.example", "||||||Accept-Encoding, Origin"},
		{"another port", narrow, plain, "https://one.example:8443", "||||||Accept-Encoding, Origin"},
		{"a name that goes on", narrow, plain, "https://one.example.evil", "||||||Accept-Encoding, Origin"},
		{"no origin", narrow, plain, "", "*|true||||X-Backend|Accept-Encoding, Origin"},
		{"preflight", narrow, preflight, "https://one.example", "https://one.example||GET, PUT|X-A, X-B|3600|X-Out|Origin"},
		{"preflight of another", narrow, preflight, "https://evil.example", "||||||Origin"},
		{"anybody", open, plain, "https://any.example", "*||||||Accept-Encoding"},
		{"nobody's", open, plain, "null", "*||||||Accept-Encoding"},
		{"preflight of anybody", open, preflight, "https://any.example", "*||*|*||| "},
		{"with cookies", trusting, plain, "https://any.example", "https://any.example|true|||||Accept-Encoding, Origin"},
		{"preflight with cookies", trusting, preflight, "https://any.example", "https://any.example|true|DELETE|x-c|||Origin"},
	} {
		t.Run(test.name, func(t *testing.T) {
			rule := to("b")
			rule.CORS = test.cors
			w := newWorld(t)
			q := must(http.NewRequest(test.method, w.serve(rule, backend("b", at)), nil))
			if test.origin != "" {
				q.Header.Set("Origin", test.origin)
			}
			if test.method == preflight {
				q.Header.Set("Access-Control-Request-Method", "DELETE")
				q.Header.Set("Access-Control-Request-Headers", "x-c")
			}
			r, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			h := func(name string) string { return strings.Join(r.Header.Values(name), ", ") }
			got := strings.Join([]string{h("Access-Control-Allow-Origin"), h("Access-Control-Allow-Credentials"), h("Access-Control-Allow-Methods"),
				h("Access-Control-Allow-Headers"), h("Access-Control-Max-Age"), h("Access-Control-Expose-Headers"), h("Vary")}, "|")
			if strings.TrimSpace(test.want) != got {
				t.Errorf("told %s, want %s", got, test.want)
			}
			if reached := r.Header.Get("X-Method") != ""; reached == (test.method == preflight) {
				t.Errorf("the backend was reached: %v", reached)
			}
			if want := map[bool]int{true: 204, false: 200}[test.method == preflight]; r.StatusCode != want {
				t.Errorf("status %d", r.StatusCode)
			}
		})
	}
	// OPTIONS that is no preflight is the backend's.
	rule := to("b")
	rule.CORS = narrow
	w := newWorld(t)
	q := must(http.NewRequest("OPTIONS", w.serve(rule, backend("b", at)), nil))
	q.Header.Set("Origin", "https://one.example")
	r := must(http.DefaultClient.Do(q))
	r.Body.Close()
	if r.Header.Get("X-Method") != "OPTIONS" {
		t.Error("OPTIONS was answered for the backend")
	}
}

// TestRedirects holds where clients are sent.
func TestRedirects(t *testing.T) {
	for _, test := range []struct {
		name     string
		match    table.PathMatch
		redirect table.Redirect
		host     string
		target   string
		code     int
		want     string
	}{
		{"as it is", table.PathMatch{}, table.Redirect{}, "a.example", "/x?q=1", 302, "http://a.example:8080/x?q=1"},
		{"scheme", table.PathMatch{}, table.Redirect{Scheme: "https", Code: 301}, "a.example", "/x", 301, "https://a.example/x"},
		{"scheme and port", table.PathMatch{}, table.Redirect{Scheme: "https", Port: 8443}, "a.example:99", "/x", 302, "https://a.example:8443/x"},
		{"scheme's own port", table.PathMatch{}, table.Redirect{Scheme: "http", Port: 80}, "a.example", "/x", 302, "http://a.example/x"},
		{"another's port", table.PathMatch{}, table.Redirect{Scheme: "http", Port: 443}, "a.example", "/x", 302, "http://a.example:443/x"},
		{"host", table.PathMatch{}, table.Redirect{Host: "b.example", Code: 308}, "a.example", "/x", 308, "http://b.example:8080/x"},
		{"host by address", table.PathMatch{}, table.Redirect{}, "[::1]:8080", "/x", 302, "http://[::1]:8080/x"},
		{"address and scheme", table.PathMatch{}, table.Redirect{Scheme: "https"}, "[::1]:8080", "/x", 302, "https://[::1]/x"},
		{"full path", table.PathMatch{Value: "/old"}, table.Redirect{Path: &table.PathRewrite{Full: "/new"}}, "a", "/old/x?y", 302, "http://a:8080/new?y"},
		{"prefix", table.PathMatch{Value: "/old"}, table.Redirect{Path: &table.PathRewrite{Prefix: "/new"}, Code: 303}, "a", "/old/x", 303, "http://a:8080/new/x"},
		{"prefix alone", table.PathMatch{Value: "/old/"}, table.Redirect{Path: &table.PathRewrite{Prefix: "/new/"}}, "a", "/old", 302, "http://a:8080/new"},
		{"no prefix", table.PathMatch{Value: "/old"}, table.Redirect{Path: &table.PathRewrite{}, Code: 307}, "a", "/old/x", 307, "http://a:8080/x"},
		{"nothing left", table.PathMatch{Value: "/old"}, table.Redirect{Path: &table.PathRewrite{Prefix: "/"}}, "a", "/old", 302, "http://a:8080/"},
		{"what is escaped", table.PathMatch{}, table.Redirect{Scheme: "https"}, "a", "/x%20y%2Fz", 302, "https://a/x%20y%2Fz"},
		{"a line too many", table.PathMatch{}, table.Redirect{Path: &table.PathRewrite{Full: "/\r\nX: y"}}, "a", "/", 500, ""},
	} {
		rule := &table.Rule{Redirect: &test.redirect}
		w := newWorld(t)
		l := must(table.NewListener(table.Listener{ID: "web", Address: loopback, Port: 8080,
			Chains: []*table.Chain{{Hosts: hosts(&table.Route{Match: table.Match{Path: test.match}, Rule: rule})}}}))
		w.apply([]*table.Listener{l})
		c := must(net.Dial("tcp", w.address("web")))
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n\r\nbody", test.target, test.host)
		in := bufio.NewReader(c)
		r := must(http.ReadResponse(in, nil))
		if r.StatusCode != test.code || r.Header.Get("Location") != test.want {
			t.Errorf("%s: %d to %q, want %d to %q", test.name, r.StatusCode, r.Header.Get("Location"), test.code, test.want)
		}
		c.Close()
	}
}

// TestRedirectNameless holds where a client is sent that named no host, as HTTP/1.0 allows.
func TestRedirectNameless(t *testing.T) {
	w := newWorld(t)
	w.apply([]*table.Listener{web(hosts(&table.Route{Rule: &table.Rule{Redirect: &table.Redirect{Path: &table.PathRewrite{Full: "/new"}}}}))})
	c := must(net.Dial("tcp", w.address("web")))
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	r := must(http.ReadResponse(bufio.NewReader(c), nil))
	if got, want := r.Header.Get("Location"), "http://"+w.address("web")+"/new"; r.StatusCode != 302 || got != want {
		t.Errorf("%d to %q, want %q", r.StatusCode, got, want)
	}
}

// TestMirrors holds what mirrors get, and that nobody waits for them or sees what they say.
func TestMirrors(t *testing.T) {
	type seen struct{ what, body, edited string }
	copies := make(chan seen, 100)
	release := make(chan struct{})
	mirror := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		copies <- seen{r.Method + " " + r.Host + r.RequestURI, string(b), r.Header.Get("X-Edit")}
		<-release
		w.WriteHeader(500)
	})
	defer close(release)
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %d", len(b))
	})
	gone := must(net.Listen("tcp", "127.0.0.1:0"))
	gone.Close()
	rule := to("b")
	rule.Rewrite = &table.Rewrite{Host: "inner.example"}
	rule.Request = &table.HeaderEdit{Set: []table.Header{{Name: "X-Edit", Value: "1"}}}
	rule.Mirrors = []table.Mirror{{Backend: "m"}, {Backend: "m", Numerator: 1, Denominator: 1}, {Backend: "m", Numerator: 0, Denominator: 5}, {Backend: "none"}, {Backend: "dead"}}
	w := newWorld(t)
	w.apply([]*table.Listener{web(hosts(&table.Route{Rule: rule}))}, backend("b", at), backend("m", mirror), backend("dead", gone.Addr().String()))
	for _, test := range []struct {
		body    string
		chunked bool
		copies  int
	}{
		{"", false, 2}, {"short", false, 2}, {strings.Repeat("x", maxReplay), false, 2},
		{strings.Repeat("x", maxReplay+1), false, 0}, {"chunked", true, 0},
	} {
		var body io.Reader = strings.NewReader(test.body)
		if test.chunked {
			body = io.MultiReader(body)
		}
		r, err := http.Post("http://"+w.address("web")+"/p?q=1", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != 200 || string(got) != fmt.Sprintf("got %d", len(test.body)) {
			t.Errorf("answered %d %s", r.StatusCode, got)
		}
		for range test.copies {
			select {
			case c := <-copies:
				if c.what != "POST inner.example/p?q=1" || c.body != test.body || c.edited != "1" {
					t.Errorf("the mirror got %s with %d bytes, edited %q", c.what, len(c.body), c.edited)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no copy of a body of %d came", len(test.body))
			}
		}
	}
	if n := len(copies); n != 0 {
		t.Errorf("%d copies more", n)
	}
}

// TestMirrors2 mirrors requests over HTTP/2 from many streams at once.
func TestMirrors2(t *testing.T) {
	var copies, right atomic.Int32
	mirror := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if len(b) == 1000 {
			right.Add(1)
		}
		copies.Add(1)
	})
	at := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %d", len(b))
	})
	rule := to("b")
	rule.Mirrors = []table.Mirror{{Backend: "m"}}
	w := newWorld(t)
	w.apply([]*table.Listener{web(hosts(&table.Route{Rule: rule}))}, backend("b", at), backend("m", mirror))
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, at string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, at)
	}}
	defer tr.CloseIdleConnections()
	const all = 50
	errs := make(chan error, all)
	for range all {
		go func() {
			q := must(http.NewRequest("POST", "http://"+w.address("web")+"/", strings.NewReader(strings.Repeat("x", 1000))))
			r, err := tr.RoundTrip(q)
			if err == nil {
				var b []byte
				if b, err = io.ReadAll(r.Body); err == nil && string(b) != "got 1000" {
					err = fmt.Errorf("%d %s", r.StatusCode, b)
				}
				r.Body.Close()
			}
			errs <- err
		}()
	}
	for range all {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	until(t, func() bool { return copies.Load() == all })
	if right.Load() != all {
		t.Errorf("%d of %d copies are whole", right.Load(), all)
	}
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come to pass")
		case <-time.After(time.Millisecond):
		}
	}
}

// outliers is a cluster of n endpoints by the rules, without a network.
func outliers(n int, rules *table.Outlier) (*cluster, []*endpoint) {
	b := &table.Backend{ID: "b", Outlier: rules}
	for i := range n {
		b.Endpoints = append(b.Endpoints, table.Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80)})
	}
	c := newCluster(b, nil)
	var all []*endpoint
	for _, e := range b.Endpoints {
		all = append(all, c.state.Load().all[e.Address])
	}
	return c, all
}

// in counts the endpoints that are chosen at a time.
func (c *cluster) in(now time.Time) int {
	found := map[*endpoint]bool{}
	for range 1000 {
		found[c.pick(c.state.Load(), &choice{now: now})] = true
	}
	return len(found)
}

// TestOutliers holds by a clock when endpoints are taken out of use, for how long, and how many at most.
func TestOutliers(t *testing.T) {
	start := time.Unix(1000, 0)
	repeat := func(c *cluster, e *endpoint, o outcome, n int, now time.Time) {
		for range n {
			c.observe(e, o, now)
		}
	}
	t.Run("failures in a row", func(t *testing.T) {
		c, all := outliers(3, &table.Outlier{Failures: 3})
		repeat(c, all[0], failed, 2, start)
		c.observe(all[0], succeeded, start)
		repeat(c, all[0], failed, 2, start)
		c.observe(all[0], answered5xx, start) // no failure, unless errors count
		repeat(c, all[0], failed, 2, start)
		if n := c.in(start); n != 3 {
			t.Errorf("%d are in use", n)
		}
		c.observe(all[0], failed, start)
		if c.in(start) != 2 || c.in(start.Add(29*time.Second)) != 2 || c.in(start.Add(31*time.Second)) != 3 {
			t.Error("it is not out for half a minute")
		}
		again := start.Add(time.Minute)
		repeat(c, all[0], failed, 3, again)
		if c.in(again.Add(59*time.Second)) != 2 || c.in(again.Add(61*time.Second)) != 3 {
			t.Error("it is not out for a minute the second time")
		}
	})
	t.Run("errors", func(t *testing.T) {
		c, all := outliers(2, &table.Outlier{Errors: 2, Ejection: time.Second})
		c.observe(all[0], answered5xx, start)
		c.observe(all[0], failed, start)
		if c.in(start) != 1 || c.in(start.Add(1100*time.Millisecond)) != 2 {
			t.Error("two errors do not take it out for a second")
		}
	})
	t.Run("share", func(t *testing.T) {
		for share, want := range map[uint8]int{0: 9, 10: 9, 30: 7, 100: 10} { // when all are out, all are used
			c, all := outliers(10, &table.Outlier{Failures: 1, Share: share})
			for _, e := range all {
				c.observe(e, failed, start)
			}
			if n := c.in(start); n != want {
				t.Errorf("%d %%: %d are in use, want %d", share, n, want)
			}
		}
	})
	t.Run("no rules", func(t *testing.T) {
		c, all := outliers(2, nil)
		repeat(c, all[0], failed, 100, start)
		if n := c.in(start); n != 2 {
			t.Errorf("%d are in use", n)
		}
		c.observe(all[0], unreachable, start)
		if c.in(start) != 1 || c.in(start.Add(1100*time.Millisecond)) != 2 {
			t.Error("one that cannot be reached is not passed over for a second")
		}
	})
	t.Run("longest", func(t *testing.T) {
		c, all := outliers(2, &table.Outlier{Failures: 1, Ejection: time.Second})
		now := start
		for range 20 {
			now = now.Add(time.Hour)
			c.observe(all[0], failed, now)
		}
		if c.in(now.Add(9900*time.Millisecond)) != 1 || c.in(now.Add(10100*time.Millisecond)) != 2 {
			t.Error("it is not out for ten times as long")
		}
	})
}

// TestEjected holds that a server that fails gets no more requests, by answers of its own, and none for codes that a rule merely retries.
func TestEjected(t *testing.T) {
	for _, test := range []struct {
		code    int
		rules   table.Outlier
		retry   *table.Retry
		ejected bool
	}{
		{503, table.Outlier{Failures: 3}, nil, true},
		{500, table.Outlier{Failures: 3}, nil, false},
		{500, table.Outlier{Failures: 3, Errors: 3}, nil, true},
		{404, table.Outlier{Failures: 3, Errors: 3}, nil, false},
		{503, table.Outlier{Failures: 3}, &table.Retry{Codes: []int{503}, Attempts: 1, Backoff: time.Microsecond}, true},
		{500, table.Outlier{Failures: 3}, &table.Retry{Codes: []int{500}, Attempts: 1, Backoff: time.Microsecond}, false},
		{409, table.Outlier{Failures: 3, Errors: 3}, &table.Retry{Codes: []int{409}, Attempts: 1, Backoff: time.Microsecond}, false},
	} {
		var bad, good atomic.Int32
		b := backend("b", server(t, func(w http.ResponseWriter, _ *http.Request) { bad.Add(1); w.WriteHeader(test.code) }),
			server(t, func(http.ResponseWriter, *http.Request) { good.Add(1) }))
		b.Outlier = &test.rules
		rule := to("b")
		rule.Retry = test.retry
		w := newWorld(t)
		url := w.serve(rule, b)
		for range 40 {
			get(t, url)
		}
		if ejected := bad.Load() == 3; ejected != test.ejected || good.Load() < 15 {
			t.Errorf("%d with %+v and %+v: the bad one was asked %d times, the good one %d times", test.code, test.rules, test.retry, bad.Load(), good.Load())
		}
	}
}

// TestDirect is an answer of the proxy's own, with the edits and the origins of its rule.
func TestDirect(t *testing.T) {
	for _, code := range []int{200, 204, 404} {
		w := newWorld(t)
		rule := &table.Rule{Direct: &table.Direct{Code: code, ContentType: "text/plain", Body: "said\n"}, CORS: &table.CORS{Origins: []string{"*"}},
			Response: &table.HeaderEdit{Add: []table.Header{{Name: "X-Out", Value: "1"}}}}
		if code == 204 {
			rule.Direct.Body = ""
		}
		w.apply([]*table.Listener{web(hosts(&table.Route{Rule: rule}))})
		for _, method := range []string{"GET", "HEAD"} {
			q := must(http.NewRequest(method, "http://"+w.address("web"), nil))
			q.Header.Set("Origin", "https://a.example")
			r := must(http.DefaultClient.Do(q))
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			want := rule.Direct.Body
			if method == "HEAD" {
				want = ""
			}
			if r.StatusCode != code || string(b) != want || r.Header.Get("X-Out") != "1" || !slices.Equal(r.Header.Values("Access-Control-Allow-Origin"), []string{"*"}) {
				t.Errorf("%s %d: %d %q %v", method, code, r.StatusCode, b, r.Header)
			}
		}
	}
}
