package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/mesh/table"
)

// exchangeRaw sends text to the proxy and returns the status and body of the first answer.
func exchangeRaw(t *testing.T, address, text string) (int, string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// TestUpgradesThatSmuggle holds that no upgrade reaches a backend after which requests would pass that no route was asked about, nor one
// of a request whose body is still on its way.
func TestUpgradesThatSmuggle(t *testing.T) {
	w := newWorld(t)
	at := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "upgrade=%q", r.Header.Get("Upgrade")) })
	url := strings.TrimPrefix(w.serve(to("b"), backend("b", at)), "http://")
	for _, x := range []struct{ head, want string }{
		{"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket"},
		{"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", ""},
		{"Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n\r\n", ""},
		{"Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1\r\n\r\n", ""},
		{"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc", ""},
		{"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""},
	} {
		code, body := exchangeRaw(t, url, "POST / HTTP/1.1\r\nHost: a\r\n"+x.head)
		if want := fmt.Sprintf("upgrade=%q", x.want); code != 200 || body != want {
			t.Errorf("%q: %d %s, want %s", x.head, code, body, want)
		}
	}
}

// TestRoutesCannotSmuggle holds that what a route's author writes ends no line of a request or an answer.
func TestRoutesCannotSmuggle(t *testing.T) {
	const evil = "/ HTTP/1.1\r\nHost: b\r\n\r\nGET /admin"
	reached := make(chan string, 100)
	at := server(t, func(w http.ResponseWriter, r *http.Request) { reached <- r.URL.Path })
	for name, change := range map[string]func(*table.Rule){
		"path": func(r *table.Rule) { r.Rewrite = &table.Rewrite{Path: &table.PathRewrite{Full: evil}} },
		"host": func(r *table.Rule) { r.Rewrite = &table.Rewrite{Host: "a\r\nX: y"} },
		"header": func(r *table.Rule) {
			r.Request = &table.HeaderEdit{Set: []table.Header{{Name: "Host", Value: "a\r\nX: y"}}}
		},
		"redirect": func(r *table.Rule) {
			r.Redirect = &table.Redirect{Host: "a", Path: &table.PathRewrite{Full: "/\r\nSet-Cookie: x=y"}}
		},
	} {
		w := newWorld(t)
		rule := to("b")
		change(rule)
		url := strings.TrimPrefix(w.serve(rule, backend("b", at)), "http://")
		if code, body := exchangeRaw(t, url, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); code != 500 {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	select {
	case path := <-reached:
		t.Errorf("the backend was asked for %s", path)
	default:
	}
}

// TestUnaskedSwitch holds that a backend cannot switch protocols when nobody asked.
func TestUnaskedSwitch(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	url := strings.TrimPrefix(w.serve(to("b"), backend("b", l.Addr().String())), "http://")
	if code, body := exchangeRaw(t, url, "POST / HTTP/1.1\r\nHost: a\r\n\r\n"); code != 502 {
		t.Errorf("%d %s", code, body)
	}
}
