package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
)

// serve gives a client of a handler.
func serve(t *testing.T, h http.HandlerFunc) (*http.Client, *transport) {
	rt := newTransport(h)
	t.Cleanup(rt.close)
	return &http.Client{Transport: rt}, rt
}

func TestAnswers(t *testing.T) {
	client, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", r.Header.Get("X-Sent"))
		r.Header.Set("X-Sent", "changed by the handler")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %d %s %s", r.Method, r.RequestURI, r.ContentLength, r.Host, body)
	})
	request, _ := http.NewRequestWithContext(t.Context(), "POST", "http://cluster/a%2Fb?c=d", strings.NewReader("body"))
	request.Header.Set("X-Sent", "yes")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(response.Body)
	if err != nil || string(got) != "POST /a%2Fb?c=d 4 cluster body" || response.StatusCode != http.StatusTeapot || response.ContentLength != int64(len(got)) {
		t.Errorf("%s (%d bytes announced): %q, %v", response.Status, response.ContentLength, got, err)
	}
	if response.Header.Get("X-Seen") != "yes" || request.Header.Get("X-Sent") != "yes" {
		t.Errorf("headers: %v, %v", response.Header, request.Header)
	}
}

// TestStreams reads what a handler flushed while it goes on, and has the handler see that its client is gone.
func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		client, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "first")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			close(gone)
		})
		response, err := client.Get("http://cluster/")
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, err := response.Body.Read(buf); err != nil || string(buf[:n]) != "first" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		synctest.Wait() // an open stream is at rest
		response.Body.Close()
		<-gone
	})
}

// TestSlowReader holds the handler back, so that an answer of any size needs bounded memory.
func TestSlowReader(t *testing.T) {
	const pieces = 100
	piece := bytes.Repeat([]byte("x"), 128<<10)
	synctest.Test(t, func(t *testing.T) {
		written := 0
		client, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for range pieces {
				if _, err := w.Write(piece); err != nil {
					t.Error(err)
				}
				written++
			}
		})
		response, err := client.Get("http://cluster/")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if most := holdAt/len(piece) + 1; written > most {
			t.Errorf("%d pieces are written before any is read, want at most %d", written, most)
		}
		n, err := io.Copy(io.Discard, response.Body)
		if err != nil || n != int64(pieces*len(piece)) {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
}

// TestEnds goes through the ways in which a request ends before its answer does.
func TestEnds(t *testing.T) {
	t.Run("context", func(t *testing.T) {
		client, _ := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithCancel(t.Context())
		request, _ := http.NewRequestWithContext(ctx, "GET", "http://cluster/", nil)
		cancel()
		if _, err := client.Do(request); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("panic", func(t *testing.T) {
		client, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "begun")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		response, err := client.Get("http://cluster/")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(response.Body); string(got) != "begun" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("close", func(t *testing.T) {
		begun := make(chan struct{})
		client, rt := serve(t, func(_ http.ResponseWriter, r *http.Request) { close(begun); <-r.Context().Done() })
		go func() { <-begun; rt.close() }()
		if _, err := client.Get("http://cluster/"); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if _, err := client.Get("http://cluster/"); !errors.Is(err, ErrClosed) {
			t.Errorf("after that: %v", err)
		}
	})
	t.Run("head", func(t *testing.T) {
		client, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "not for you") })
		response, err := client.Head("http://cluster/")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(response.Body); len(got) > 0 {
			t.Errorf("a body for HEAD: %q", got)
		}
	})
}
