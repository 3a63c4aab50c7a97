package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/container/logfile"
)

// childMain is another coracle, which TestAdoption kills: it starts containers, says so, and never ends.
func childMain() {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	dir := os.Getenv("CORACLE_TEST_CHILD")
	if os.Getenv("CORACLE_TEST_CHURN") != "" {
		churn(ctx, dir, fail)
	}
	r, err := Open(ctx, Options{
		Dir:  filepath.Join(dir, "runtime"),
		Shim: func() ([]byte, error) { return os.ReadFile(os.Getenv("CORACLE_TEST_SHIM")) },
	})
	fail(err)
	archive, err := build.Busybox(busybox, "busybox").Archive()
	fail(err)
	_, err = r.Images().Import(ctx, bytes.NewReader(archive), container.ImportOptions{})
	fail(err)
	_, err = r.CreateSandbox(ctx, container.SandboxConfig{ID: "kept", Hostname: "kept", LogDir: filepath.Join(dir, "logs"), Labels: map[string]string{"pod": "one"}})
	fail(err)
	pids := map[string]int{}
	for id, script := range map[string]string{
		"steady": `i=0; while true; do i=$((i+1)); echo line $i; usleep 20000; done`,
		"later":  `while [ ! -e /shared/go ]; do usleep 10000; done; echo done; exit 42`,
		"input":  `while read line; do echo got $line; done; echo end`,
	} {
		_, err := r.CreateContainer(ctx, container.ContainerConfig{
			ID: id, SandboxID: "kept", Image: "busybox", Args: []string{"sh", "-c", script},
			Log: container.LogConfig{Path: id + ".log"}, Stdin: id == "input", StdinOnce: id == "input",
			Mounts:      []container.Mount{{HostPath: filepath.Join(dir, "shared"), ContainerPath: "/shared"}},
			Annotations: map[string]string{"name": id},
		})
		fail(err)
		fail(r.Start(ctx, id))
		s, err := r.Container(id)
		fail(err)
		pids[id] = s.PID
	}
	fail(json.NewEncoder(os.Stdout).Encode(pids))
	select {}
}

// churn makes and removes sandboxes and containers until it is killed.
func churn(ctx context.Context, dir string, fail func(error)) {
	r, err := Open(ctx, Options{
		Dir:  filepath.Join(dir, "runtime"),
		Shim: func() ([]byte, error) { return os.ReadFile(os.Getenv("CORACLE_TEST_SHIM")) },
	})
	fail(err)
	step := func(err error) {
		fail(err)
		fmt.Println("step")
	}
	for worker := range 4 {
		go func() {
			for i := 0; ; i++ {
				sb := fmt.Sprintf("churn-%d-%d-%d", os.Getpid(), worker, i)
				config := container.SandboxConfig{ID: sb}
				if i%2 == 0 {
					config.Namespaces.PID = container.NamespaceSandbox
				}
				_, err := r.CreateSandbox(ctx, config)
				step(err)
				for _, script := range []string{"sleep 1000", "exit 7"} {
					id := fmt.Sprintf("%s-%d", sb, len(script))
					_, err = r.CreateContainer(ctx, container.ContainerConfig{ID: id, SandboxID: sb, Image: "busybox", Args: []string{"sh", "-c", script}})
					step(err)
					step(r.Start(ctx, id))
				}
				step(r.RemoveSandbox(ctx, sb))
			}
		}()
	}
	select {}
}

// readLog parses a log into the text of its streams.
func readLog(t testing.TB, path string) (stdout, stderr string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	for raw := range bytes.Lines(data) {
		line, err := logfile.Parse(raw)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		to := &out
		if line.Stream == logfile.Stderr {
			to = &errs
		}
		to.Write(line.Text)
		if !line.Partial {
			to.WriteByte('\n')
		}
	}
	return out.String(), errs.String()
}

// screen collects output and lets a test wait for some of it.
type screen struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func (s *screen) expect(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.more:
		case <-timeout:
			t.Fatalf("%q does not come; there is %q", text, s.String())
		}
	}
}

// eventually waits until ok, looking again after each event of the kernel or the runtime that may change
// it; for what tells nobody (files written by containers) it looks every few milliseconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s: never", what)
		}
	}
}

// keyboard is an input that a test types on.
type keyboard struct {
	*io.PipeReader
	w *io.PipeWriter
}

func newKeyboard() keyboard {
	r, w := io.Pipe()
	return keyboard{r, w}
}

func (k keyboard) press(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(k.w, text); err != nil {
		t.Fatal(err)
	}
}
