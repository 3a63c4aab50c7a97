package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// TestRetries counts what a backend that fails gets, by rule, method and body.
func TestRetries(t *testing.T) {
	for _, test := range []struct {
		name  string
		retry *table.Retry
		fails int32
		code  int
		tries int32
	}{
		{"none", nil, 1, 503, 1},
		{"enough", &table.Retry{Codes: []int{503}, Attempts: 2, Backoff: time.Millisecond}, 2, 200, 3},
		{"not enough", &table.Retry{Codes: []int{503}, Attempts: 2, Backoff: time.Millisecond}, 3, 503, 3},
		{"another code", &table.Retry{Codes: []int{500}, Attempts: 2, Backoff: time.Millisecond}, 1, 503, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tries atomic.Int32
			at := server(t, func(w http.ResponseWriter, r *http.Request) {
				if b, _ := io.ReadAll(r.Body); string(b) != "body" {
					t.Errorf("the backend got %q", b)
				}
				if tries.Add(1) <= test.fails {
					w.WriteHeader(503)
				}
			})
			rule := to("b")
			rule.Retry = test.retry
			w := newWorld(t)
			r, err := http.Post(w.serve(rule, backend("b", at)), "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != test.code || tries.Load() != test.tries {
				t.Errorf("answered %d after %d tries, want %d after %d", r.StatusCode, tries.Load(), test.code, test.tries)
			}
		})
	}
}

// TestSession keeps a client at the endpoint that it first got, by cookie and by header.
func TestSession(t *testing.T) {
	var at []string
	for i := range 4 {
		at = append(at, server(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) }))
	}
	for _, s := range []*table.Session{{Cookie: "stay"}, {Header: "X-Stay"}} {
		rule := to("b")
		rule.Session = s
		w := newWorld(t)
		url := w.serve(rule, backend("b", at...))
		token, first := "", ""
		for range 20 {
			q := must(http.NewRequest("GET", url, nil))
			if token != "" {
				if s.Cookie != "" {
					q.AddCookie(&http.Cookie{Name: s.Cookie, Value: token})
				} else {
					q.Header.Set(s.Header, token)
				}
			}
			r, err := http.DefaultClient.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if token == "" {
				first, token = string(b), r.Header.Get(s.Header)
				for _, c := range r.Cookies() {
					token = c.Value
				}
			}
			if token == "" || string(b) != first {
				t.Fatalf("token %q: endpoint %s, then %s", token, first, b)
			}
		}
	}
}

// TestWeights shares requests out by weight; a weight of 0 gets nothing.
func TestWeights(t *testing.T) {
	var got [3]atomic.Int32
	var all []*table.Backend
	rule := &table.Rule{}
	for i, weight := range []uint32{3, 1, 0} {
		id := fmt.Sprint(i)
		all = append(all, backend(id, server(t, func(http.ResponseWriter, *http.Request) { got[i].Add(1) })))
		rule.Backends = append(rule.Backends, table.Weighted{Backend: id, Weight: weight})
	}
	w := newWorld(t)
	w.apply([]*table.Listener{web(hosts(&table.Route{Rule: rule}))}, all...)
	for range 1000 {
		get(t, "http://"+w.address("web"))
	}
	if n := got[0].Load(); n < 650 || n > 850 || got[2].Load() != 0 {
		t.Errorf("of 1000 requests: %d, %d, %d", n, got[1].Load(), got[2].Load())
	}
}
