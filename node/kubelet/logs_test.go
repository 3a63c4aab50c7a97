package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/logfile"
)

// at is a time in a log, n seconds after t0.
func at(n int) string { return t0.Add(time.Duration(n) * time.Second).Format(logfile.TimeFormat) }

func line(n int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", at(n), stream, tag, text)
}

func get(t *testing.T, u string) (int, string) {
	t.Helper()
	resp, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestLogs(t *testing.T) {
	content := line(0, "stdout", "F", "one") +
		line(1, "stderr", "F", "two") +
		"rubbish\n" +
		line(2, "stdout", "P", "thr") +
		line(2, "stderr", "F", "between") +
		line(2, "stdout", "F", "ee") +
		line(3, "stdout", "F", "") +
		line(4, "stdout", "F:x", "five ")
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, _ := serve(t, newFake(), path)
	since := url.QueryEscape(t0.Add(2 * time.Second).Format(time.RFC3339))
	for _, c := range []struct{ query, want string }{
		{"", "one\ntwo\nthrbetween\nee\n\nfive \n"},
		{"stream=All", "one\ntwo\nthrbetween\nee\n\nfive \n"},
		{"stream=Stdout", "one\nthree\n\nfive \n"},
		{"stream=Stderr", "two\nbetween\n"},
		{"tailLines=0", ""},
		{"tailLines=1", "five \n"},
		{"tailLines=2", "\nfive \n"},
		{"tailLines=3", "ee\n\nfive \n"},
		{"tailLines=1000", "one\ntwo\nthrbetween\nee\n\nfive \n"},
		{"limitBytes=5", "one\nt"},
		{"limitBytes=1000", "one\ntwo\nthrbetween\nee\n\nfive \n"},
		{"sinceTime=" + since, "thrbetween\nee\n\nfive \n"},
		{"sinceSeconds=3597", "\nfive \n"}, // the clock stands an hour after t0
		{"timestamps=true&tailLines=1", at(4) + " five \n"},
		{"timestamps=true&stream=Stdout&sinceTime=" + since, at(2) + " three\n" + at(3) + " \n" + at(4) + " five \n"},
	} {
		code, body := get(t, srv.URL+"/containerLogs/default/web/app?"+c.query)
		if code != 200 || body != c.want {
			t.Errorf("%s: %d %q, want %q", c.query, code, body, c.want)
		}
	}
}

func TestLogsRefused(t *testing.T) {
	srv, _ := serve(t, newFake(), filepath.Join(t.TempDir(), "absent.log"))
	for _, c := range []struct {
		path string
		code int
		want string
	}{
		{"default/gone/app", 404, `pod "gone" does not exist`},
		{"default/web/nope", 404, `container "nope" not found in pod "web"`},
		{"default/web/side", 400, `container "side" in pod "web" is waiting to start: PodInitializing`},
		{"default/web/init", 400, `container "init" in pod "web" is waiting to start: image can't be pulled`},
		{"default/web/app?previous=true", 400, `previous terminated container "app" in pod "web" not found`},
		{"default/web/app?tailLines=-1", 422, `tailLines: Invalid value: "-1": must be greater than or equal to 0`},
		{"default/web/app?limitBytes=0", 422, `limitBytes: Invalid value: "0": must be greater than 0`},
		{"default/web/app?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of `sinceTime` or `sinceSeconds` may be specified"},
		{"default/web/app?stream=Other", 422, `stream: Unsupported value: "Other": supported values: "All", "Stderr", "Stdout"`},
	} {
		code, body := get(t, srv.URL+"/containerLogs/"+c.path)
		if code != c.code || body != c.want {
			t.Errorf("%s: %d %q", c.path, code, body)
		}
	}
	if code, _ := get(t, srv.URL+"/containerLogs/default/web/app"); code != 400 {
		t.Errorf("a missing file gives %d", code)
	}
}

// TestLogsFollow writes through the real writer, with rotations, while a client follows.
func TestLogsFollow(t *testing.T) {
	rt := newFake()
	path := filepath.Join(t.TempDir(), "0.log")
	srv, _ := serve(t, rt, path)
	req, err := http.NewRequestWithContext(testContext(t), "GET", srv.URL+"/containerLogs/default/web/app?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		body []byte
		err  error
	}
	answers := make(chan answer, 1)
	first := make(chan struct{})
	go func() { // the file does not exist yet
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			answers <- answer{err: err}
			return
		}
		defer resp.Body.Close()
		b := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			answers <- answer{err: err}
			return
		}
		close(first)
		rest, err := io.ReadAll(resp.Body)
		answers <- answer{append(b, rest...), err}
	}()
	w, err := logfile.Open(path, 40<<10, 100, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	out := w.Stream(logfile.Stdout)
	var want bytes.Buffer
	fmt.Fprintln(io.MultiWriter(out, &want), "begin")
	<-first
	for i := range 3000 {
		fmt.Fprintf(io.MultiWriter(out, &want), "line %d %s\n", i, strings.Repeat("x", i%90))
	}
	fmt.Fprint(io.MultiWriter(out, &want), strings.Repeat("y", 40<<10)+"\n") // several partial records
	fmt.Fprint(io.MultiWriter(out, &want), "no newline at the end")
	out.Close()
	if n := len(logfile.Rotated(path)); n < 3 {
		t.Fatalf("only %d rotations", n)
	}
	rt.exit("c1")
	a := <-answers
	if a.err != nil {
		t.Fatal(a.err)
	}
	if !bytes.Equal(a.body, want.Bytes()) {
		t.Fatalf("%d bytes, want %d", len(a.body), want.Len())
	}
}

// TestLogsFollowEnds: the client's leaving ends the request.
func TestLogsFollowEnds(t *testing.T) {
	rt := newFake()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(line(0, "stdout", "F", "one")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, s := serve(t, rt, path)
	ctx, cancel := context.WithCancel(testContext(t))
	rec := &flushRecorder{ResponseRecorder: httptest.NewRecorder(), flushed: make(chan struct{}, 8)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeHTTP(rec, httptest.NewRequest("GET", "/containerLogs/default/web/app?follow=true", nil).WithContext(ctx))
	}()
	<-rec.flushed
	cancel()
	<-done
	if got := rec.Body.String(); got != "one\n" {
		t.Fatalf("%q", got)
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if len(rt.subs) != 0 {
		t.Fatal("a subscription is left")
	}
}

type flushRecorder struct {
	*httptest.ResponseRecorder
	flushed chan struct{}
}

func (f *flushRecorder) Flush() { f.flushed <- struct{}{} }

// TestLogsOfEnded: following a container that has ended gives its log and returns.
func TestLogsOfEnded(t *testing.T) {
	rt := newFake()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(line(0, "stdout", "F", "one")+strings.TrimSuffix(line(1, "stdout", "F", "cut"), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, _ := serve(t, rt, path)
	rt.containers["c1"] = container.ContainerStatus{State: container.StateExited, LogPath: path}
	if code, body := get(t, srv.URL+"/containerLogs/default/web/app?follow=true"); code != 200 || body != "one\ncut" {
		t.Fatalf("%d %q", code, body)
	}
}

// FuzzTail holds the search from the end to a plain count from the beginning, and the reader to
// never losing or making up bytes.
func FuzzTail(f *testing.F) {
	f.Add([]byte(line(0, "stdout", "F", "a")+line(0, "stdout", "P", "b")+line(0, "stdout", "F", "c")), int64(1), 7)
	f.Add([]byte("x\n\n"+line(0, "stderr", "P", "")), int64(2), 1)
	f.Add([]byte(line(0, "stdout", "F", strings.Repeat("a", 100))+"\n"), int64(1), 3)
	f.Fuzz(func(t *testing.T, data []byte, n int64, step int) {
		if n < 0 || n > 100 || len(data) > 1<<16 {
			t.Skip()
		}
		got, err := tailStart(bytes.NewReader(data), n)
		if err != nil {
			t.Fatal(err)
		}
		if want := plainTail(data, n); got != want {
			t.Fatalf("tail %d of %q begins at %d, want %d", n, data, got, want)
		}
		if step < 1 || step > 1000 {
			return
		}
		read := func(r io.Reader, calls int) string {
			rec := httptest.NewRecorder()
			out := &logWriter{w: rec, o: logOptions{stdout: true, stderr: true, tail: -1, limit: -1}, left: -1}
			d := newRecordReader(r)
			for range calls {
				if _, err := d.drain(out); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.rest(out); err != nil {
				t.Fatal(err)
			}
			return rec.Body.String()
		}
		whole := read(bytes.NewReader(data), 1)
		pieces := read(&growing{data: data, step: step}, len(data)/step+2)
		if whole != pieces {
			t.Fatalf("read at once %q, in pieces %q", whole, pieces)
		}
	})
}

// growing is a file of which each read to the end finds a few bytes more.
type growing struct {
	data []byte
	step int
	eof  bool
}

func (g *growing) Read(p []byte) (int, error) {
	if g.eof || len(g.data) == 0 {
		g.eof = false
		return 0, io.EOF
	}
	n := copy(p, g.data[:min(g.step, len(g.data))])
	g.data = g.data[n:]
	g.eof = true
	return n, nil
}

// plainTail is tailStart by going through all lines: parts belong to the full record that follows.
func plainTail(data []byte, n int64) int64 {
	if n == 0 {
		return int64(len(data))
	}
	var ends []int64 // after each line of output
	pos := int64(0)
	for _, l := range bytes.SplitAfter(data, []byte("\n")) {
		pos += int64(len(l))
		if rec, err := logfile.Parse(l); err == nil && len(l) > 0 && (!rec.Partial || pos == int64(len(data))) {
			ends = append(ends, pos)
		}
	}
	if int64(len(ends)) <= n {
		return 0
	}
	return ends[int64(len(ends))-1-n]
}
