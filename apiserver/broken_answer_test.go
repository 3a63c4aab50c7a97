package apiserver

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/apiserver/fairness"
	"coracle.dev/coracle/apiserver/route"
	"coracle.dev/coracle/client"
)

// TestPanicInTheMiddle: once an answer has begun, a panic breaks the connection off, so that nobody takes the half for the whole or
// finds a second document behind it.
func TestPanicInTheMiddle(t *testing.T) {
	s := &Server{cfg: Config{Now: time.Now, Log: slog.New(slog.DiscardHandler)}}
	for _, begun := range []bool{false, true} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/api/v1/pods", nil)
		var passed any
		func() {
			defer func() { passed = recover() }()
			x := &exchange{ResponseWriter: w, server: s, began: time.Now()}
			defer x.end(r)
			if begun {
				_, _ = x.Write([]byte(`{"items":[`))
			}
			panic("on purpose")
		}()
		switch {
		case begun && (passed != http.ErrAbortHandler || w.Body.String() != `{"items":[`):
			t.Errorf("in the middle: %v, %s", passed, w.Body)
		case !begun && (passed != nil || w.Code != http.StatusInternalServerError):
			t.Errorf("before the answer: %v, %d", passed, w.Code)
		}
	}
}

// TestLeftWhileQueued: a client that goes while its request waits was not refused for there being too many.
func TestLeftWhileQueued(t *testing.T) {
	e := start(t, builtin.Kinds(), func(c *Config) { c.MaxReads, c.MaxWrites, c.Authorizer = 10, 10, allowAll{} })
	gone, leave := context.WithCancel(context.Background())
	leave()
	user := &client.User{Name: "user", Groups: []string{client.GroupAuthenticated}}
	info := &route.Info{IsResource: true, Verb: "list", Version: "v1", Resource: "pods", Path: "/api/v1/pods"}
	for {
		p, err := e.Fairness().Enter(gone, info, user, 1, 0)
		if err != nil {
			break
		}
		defer func(p fairness.Pass) { p.Release() }(p)
	}
	r, _ := http.NewRequestWithContext(gone, "GET", "/api/v1/pods", nil)
	r.TLS = certificateOf(t, e.as("user"))
	w := &sink{h: http.Header{}}
	e.serve(w, r)
	if w.code != http.StatusGatewayTimeout || w.h.Get("Retry-After") != "" {
		t.Errorf("code %d, %v", w.code, w.h)
	}
}
