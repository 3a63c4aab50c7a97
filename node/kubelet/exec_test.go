package kubelet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"golang.org/x/net/websocket"
)

// executors are the two ways in which client-go runs commands.
var executors = map[string]func(base string, path string, q url.Values) (remotecommand.Executor, error){
	"spdy": func(base, path string, q url.Values) (remotecommand.Executor, error) {
		u, _ := url.Parse(base + path + "?" + q.Encode())
		return remotecommand.NewSPDYExecutor(&rest.Config{Host: base}, "POST", u)
	},
	"websocket": func(base, path string, q url.Values) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{Host: base}, "GET", base+path+"?"+q.Encode())
	},
}

func eachExecutor(t *testing.T, path string, q url.Values, f func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, s *Server)) {
	for name, make := range executors {
		t.Run(name, func(t *testing.T) {
			rt := newFake()
			srv, s := serve(t, rt, "")
			e, err := make(srv.URL, path, q)
			if err != nil {
				t.Fatal(err)
			}
			f(t, rt, e, s)
		})
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

const appExec = "/exec/default/web/app"

func TestExecOutputAndExitCode(t *testing.T) {
	q := url.Values{"output": {"1"}, "error": {"1"}, "command": {"sh", "-c", "echo out; echo err >&2; exit 3"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		var out, errs bytes.Buffer
		err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
		var code exec.CodeExitError
		if !errors.As(err, &code) || code.Code != 3 || code.Error() != "command terminated with exit code 3" {
			t.Fatalf("error is %v", err)
		}
		if out.String() != "out\n" || errs.String() != "err\n" {
			t.Fatalf("stdout %q, stderr %q", out.String(), errs.String())
		}
	})
}

func TestExecStdinCloses(t *testing.T) {
	// cat ends only when it sees the end of its input: v5 and SPDY pass that on.
	q := url.Values{"stdin": {"true"}, "stdout": {"true"}, "command": {"sh", "-c", "cat; echo end"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		in := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
		var out bytes.Buffer
		if err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != in+"end\n" {
			t.Fatalf("%d bytes came back, of %d", len(got), len(in)+4)
		}
	})
}

func TestExecProcessThatIgnoresStdin(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}, "command": {"true"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		r, w := io.Pipe()
		defer w.Close()
		var out bytes.Buffer
		if err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: r, Stdout: &out}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestExecUnreadInput: input that the process does not read holds up neither sizes nor the hang-up.
func TestExecUnreadInput(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}, "tty": {"1"}, "command": {"sizes", "2"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		queue := make(sizes, 2)
		queue <- remotecommand.TerminalSize{Width: 80, Height: 24}
		r, w := io.Pipe()
		defer w.Close()
		out := &notifyingWriter{c: make(chan struct{})}
		go func() {
			<-out.c // the first size was printed
			w.Write(bytes.Repeat([]byte("typed ahead "), 10_000))
			queue <- remotecommand.TerminalSize{Width: 132, Height: 50}
		}()
		err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: r, Stdout: out, Tty: true, TerminalSizeQueue: queue})
		if err != nil || out.got.String() != "80x24\n132x50\n" {
			t.Fatalf("%q, %v", out.got.String(), err)
		}
	})
}

// sizes is a queue of terminal sizes.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestExecResize(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}, "tty": {"1"}, "command": {"sizes", "2"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		queue := make(sizes, 2)
		queue <- remotecommand.TerminalSize{Width: 80, Height: 24}
		queue <- remotecommand.TerminalSize{Width: 132, Height: 50}
		r, w := io.Pipe()
		defer w.Close()
		var out bytes.Buffer
		err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: r, Stdout: &out, Tty: true, TerminalSizeQueue: queue})
		if err != nil || out.String() != "80x24\n132x50\n" {
			t.Fatalf("%q, %v", out.String(), err)
		}
	})
}

func TestExecErrors(t *testing.T) {
	q := url.Values{"output": {"1"}, "error": {"1"}, "command": {"missing"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
		const want = `Internal error occurred: error executing command in container: failed to exec in container: OCI runtime exec failed: ` +
			`exec failed: unable to start container process: exec: "missing": executable file not found in $PATH`
		if err == nil || err.Error() != want {
			t.Fatalf("error is %v", err)
		}
	})
}

func TestExecRefused(t *testing.T) {
	srv, _ := serve(t, newFake(), "")
	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{"/exec/default/web/app?command=true", 400, "you must specify at least 1 of stdin, stdout, stderr"},
		{"/exec/default/web/app?output=1", 400, "you must specify a command"},
		{"/exec/default/gone/app?output=1&command=true", 404, "pod does not exist"},
		{"/exec/default/web/other-uid/app?output=1&command=true", 404, "pod does not exist"},
		{"/exec/default/web/side?output=1&command=true", 500, `container not found ("side")`},
		{"/attach/default/web/side?output=1", 500, `container not found ("side")`},
		{"/portForward/default/gone", 404, "pod does not exist"},
	} {
		resp, err := http.Post(srv.URL+c.path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || string(body) != c.text {
			t.Errorf("%s: %d %q", c.path, resp.StatusCode, body)
		}
	}
}

// TestExecHangup: a client that goes away ends what runs on a terminal.
func TestExecHangup(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}, "tty": {"1"}, "command": {"hang"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		ctx, cancel := context.WithCancel(testContext(t))
		r, w := io.Pipe()
		defer w.Close()
		out := &notifyingWriter{c: make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: r, Stdout: out, Tty: true})
		}()
		<-out.c
		cancel()
		<-done
		select {
		case <-rt.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the command runs on")
		}
	})
}

// notifyingWriter closes c at the first write.
type notifyingWriter struct {
	c    chan struct{}
	once bool
	got  bytes.Buffer
}

func (n *notifyingWriter) Write(p []byte) (int, error) {
	if !n.once {
		n.once = true
		close(n.c)
	}
	return n.got.Write(p)
}

// TestClose: shutting down ends the sessions under way, also those that a client's leaving would not end.
func TestClose(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}, "command": {"hang"}}
	eachExecutor(t, appExec, q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, s *Server) {
		r, w := io.Pipe()
		defer w.Close()
		out := &notifyingWriter{c: make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			done <- e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: r, Stdout: out})
		}()
		<-out.c
		s.Close()
		<-rt.ended
		<-done
	})
}

func TestAttach(t *testing.T) {
	q := url.Values{"input": {"1"}, "output": {"1"}}
	eachExecutor(t, "/attach/default/web/app", q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
		var out bytes.Buffer
		err := e.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
		if err != nil || out.String() != "hello" {
			t.Fatalf("%q, %v", out.String(), err)
		}
	})
	t.Run("detach", func(t *testing.T) {
		eachExecutor(t, "/attach/default/web/app", q, func(t *testing.T, rt *fakeRuntime, e remotecommand.Executor, _ *Server) {
			ctx, cancel := context.WithCancel(testContext(t))
			r, w := io.Pipe()
			out := &notifyingWriter{c: make(chan struct{})}
			done := make(chan error, 1)
			go func() { done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: r, Stdout: out}) }()
			io.WriteString(w, "x")
			<-out.c
			cancel()
			<-done
			w.Close()
		})
	})
}

// TestOldWebSocketProtocols speaks what clients other than kubectl do.
func TestOldWebSocketProtocols(t *testing.T) {
	srv, _ := serve(t, newFake(), "")
	for _, c := range []struct {
		protocol string
		stdout   string
		status   string
	}{
		{"v4.channel.k8s.io", "\x01out\n", "\x03" + `{"metadata":{},"status":"Success"}`},
		{"v4.base64.channel.k8s.io", "1b3V0Cg==", "3" + "eyJtZXRhZGF0YSI6e30sInN0YXR1cyI6IlN1Y2Nlc3MifQ=="},
		{"channel.k8s.io", "\x01out\n", ""},
		{"base64.channel.k8s.io", "1b3V0Cg==", ""},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			u := strings.Replace(srv.URL, "http", "ws", 1) + appExec + "?output=1&command=echo&command=out"
			ws, err := websocket.Dial(u, c.protocol, srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			ws.SetDeadline(time.Now().Add(20 * time.Second))
			var got []string
			for {
				var frame []byte
				if err := websocket.Message.Receive(ws, &frame); err != nil {
					break
				}
				if len(frame) > 1 {
					got = append(got, string(frame))
				}
			}
			want := []string{c.stdout}
			if c.status != "" {
				want = append(want, c.status)
			}
			if strings.Join(got, "|") != strings.Join(want, "|") {
				t.Fatalf("frames %q", got)
			}
		})
	}
}

func TestRun(t *testing.T) {
	srv, _ := serve(t, newFake(), "")
	for _, c := range []struct {
		query, body string
		code        int
	}{
		{"cmd=echo+hi", "hi\n", 200},
		{"command=sh&command=-c&command=echo+no;exit+2", "command 'sh -c echo no;exit 2' exited with 2: no\n", 500},
	} {
		resp, err := http.Post(srv.URL+"/run/default/web/app?"+strings.ReplaceAll(c.query, ";", "%3B"), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || string(body) != c.body {
			t.Errorf("%s: %d %q", c.query, resp.StatusCode, body)
		}
	}
}
