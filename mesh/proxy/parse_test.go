package proxy

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// FuzzRequest compares the parser with net/http's: what is taken must be taken there too, with the same method, host and body.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcdef",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\nrest",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
		"GET http://b/ HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := &buffered{c: &peeked{Reader: strings.NewReader(text)}}
		head, err := in.until(headEnd, 64<<10, nil)
		if err != nil {
			return
		}
		h, err := parseRequest(head, nil, 100)
		if err != nil || h.method == "CONNECT" {
			return
		}
		if _, _, _, err := splitTarget(h.target); err != nil {
			return
		}
		b := body{in: in, left: max(0, h.length), chunked: h.length < 0, limit: 4096, done: h.length == 0}
		got, err := io.ReadAll(&b)
		theirs, terr := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if terr != nil {
			if strings.HasPrefix(h.target, "http") || h.target == "*" || h.method == "PRI" {
				return // forms of targets that net/url reads more strictly
			}
			t.Fatalf("taken here, refused by net/http: %v", terr)
		}
		want, werr := io.ReadAll(theirs.Body)
		if err == nil && (werr != nil || string(got) != string(want)) {
			t.Fatalf("body %q, net/http has %q, %v", got, want, werr)
		}
		if h.method != theirs.Method {
			t.Fatalf("method %q, net/http has %q", h.method, theirs.Method)
		}
		if host := h.fields.value("host"); h.target[0] == '/' && host != theirs.Host {
			t.Fatalf("host %q, net/http has %q", host, theirs.Host)
		}
	})
}

func TestNormal(t *testing.T) {
	for in, want := range map[string]string{"/": "/", "/a/../b": "/b", "/a/./b/.": "/a/b/", "/../..": "/", "/%61/%2e%2e/c": "/c", "/a%2Fb": "/a%2Fb", "/.well-known/x": "/.well-known/x", "/a//b": "/a//b"} {
		if got, err := normal(in); err != nil || got != want {
			t.Errorf("%s becomes %s (%v), want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"/%", "/%0", "/%zz", "/%00"} {
		if got, err := normal(in); err == nil {
			t.Errorf("%s is taken as %s", in, got)
		}
	}
}
