package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/embedded/shim"
	"coracle.dev/coracle/container/image"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/linux/mount"
)

const busybox = "/bin/busybox"

var shimProgram []byte

// TestMain builds the shim as it is in the tree, whatever was embedded before.
func TestMain(m *testing.M) {
	if os.Getenv("CORACLE_TEST_CHILD") != "" {
		childMain()
		return
	}
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "container/embedded: these tests run real containers and need root")
			return 1
		}
		dir, err := os.MkdirTemp("", "coracle-shim-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		out := filepath.Join(dir, "coracle-shim")
		if msg, err := exec.Command("shim/build.sh", out).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the shim: %v\n%s", err, msg)
			return 1
		}
		if shimProgram, err = os.ReadFile(out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		os.Setenv("CORACLE_TEST_SHIM", out)
		return m.Run()
	}())
}

// testLog sends a runtime's log to the test.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// fixture is a runtime in a directory of its own, with a busybox image.
type fixture struct {
	*Runtime
	t   testing.TB
	dir string
	n   int
}

func open(t testing.TB, dir string) *Runtime { return openWith(t, dir, Options{}) }

func openWith(t testing.TB, dir string, o Options) *Runtime {
	t.Helper()
	o.Dir = filepath.Join(dir, "runtime")
	o.Log = slog.New(slog.NewTextHandler(testLog{t}, nil))
	if o.Shim == nil {
		o.Shim = func() ([]byte, error) { return shimProgram, nil }
	}
	r, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureWith(t, Options{})
}

func newFixtureWith(t testing.TB, o Options) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "coracle-test-")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, dir: dir, Runtime: openWith(t, dir, o)}
	t.Cleanup(f.destroy)
	f.importBusybox()
	return f
}

func (f *fixture) importBusybox() {
	f.t.Helper()
	archive, err := build.Busybox(busybox, "busybox").Archive()
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.Images().Import(context.Background(), bytes.NewReader(archive), container.ImportOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

// destroy removes everything and fails the test if something stays behind.
func (f *fixture) destroy() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range f.Sandboxes() {
		if err := f.RemoveSandbox(ctx, s.Config.ID); err != nil {
			f.t.Errorf("removing sandbox %s: %v", s.Config.ID, err)
		}
	}
	if err := f.Shutdown(ctx); err != nil {
		f.t.Errorf("shutting down: %v", err)
	}
	if err := f.Close(); err != nil {
		f.t.Errorf("closing: %v", err)
	}
	if f.t.Failed() {
		if log, err := os.ReadFile(filepath.Join(f.dir, "runtime", logName)); err == nil && len(log) > 0 {
			f.t.Logf("shim.log:\n%s", log)
		}
	}
	points, err := mount.Below(f.dir)
	if err != nil || len(points) > 0 {
		f.t.Errorf("mounts left behind: %v %v", points, err)
		_ = mount.UnmountBelow(f.dir)
	}
	if group := f.cgroups.Group(f.cgroupRoot); group.Exists() {
		left, _ := group.Children()
		f.t.Errorf("cgroup %s left behind with %v", f.cgroupRoot, left)
		_ = group.Remove(ctx)
	}
	if err := os.RemoveAll(f.dir); err != nil {
		f.t.Error(err)
	}
}

func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

// sandbox makes a sandbox; change, if not nil, edits its configuration.
func (f *fixture) sandbox(change func(*container.SandboxConfig)) string {
	f.t.Helper()
	f.n++
	config := container.SandboxConfig{
		ID: fmt.Sprintf("sandbox%d", f.n), Hostname: "ship",
		DNS:    container.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		LogDir: filepath.Join(f.dir, "logs"),
	}
	if change != nil {
		change(&config)
	}
	if _, err := f.CreateSandbox(f.ctx(), config); err != nil {
		f.t.Fatal(err)
	}
	return config.ID
}

// create makes a container that runs a shell script.
func (f *fixture) create(sandbox, script string, change func(*container.ContainerConfig)) string {
	f.t.Helper()
	f.n++
	config := container.ContainerConfig{
		ID: fmt.Sprintf("container%d", f.n), SandboxID: sandbox, Image: "busybox",
		Args:    []string{"/bin/sh", "-c", script},
		Seccomp: container.Seccomp{Mode: container.SeccompDefault},
		Log:     container.LogConfig{Path: fmt.Sprintf("%d.log", f.n)},
	}
	if change != nil {
		change(&config)
	}
	if _, err := f.CreateContainer(f.ctx(), config); err != nil {
		f.t.Fatal(err)
	}
	return config.ID
}

func (f *fixture) start(sandbox, script string, change func(*container.ContainerConfig)) string {
	f.t.Helper()
	id := f.create(sandbox, script, change)
	if err := f.Start(f.ctx(), id); err != nil {
		f.t.Fatal(err)
	}
	return id
}

// wait waits until a container has exited.
func (f *fixture) wait(id string) container.ContainerStatus {
	f.t.Helper()
	return waitFor(f.t, f.Runtime, id)
}

func waitFor(t testing.TB, r *Runtime, id string) container.ContainerStatus {
	t.Helper()
	wake := make(chan struct{}, 1)
	cancel := r.Subscribe(func(container.Event) {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	defer cancel()
	timeout := time.After(30 * time.Second)
	for {
		s, err := r.Container(id)
		if err != nil {
			t.Fatal(err)
		}
		if s.State == container.StateExited {
			return s
		}
		select {
		case <-wake:
		case <-timeout:
			t.Fatalf("container %s does not exit: %+v", id, s.State)
		}
	}
}

// logs returns what a container logged, by stream.
func (f *fixture) logs(id string) (stdout, stderr string) {
	f.t.Helper()
	s, err := f.Container(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return readLog(f.t, s.LogPath)
}

// run runs a script to its end.
func (f *fixture) run(sandbox, script string, change func(*container.ContainerConfig)) (status container.ContainerStatus, stdout, stderr string) {
	f.t.Helper()
	id := f.start(sandbox, script, change)
	status = f.wait(id)
	stdout, stderr = f.logs(id)
	return status, stdout, stderr
}

// exec runs a command in a container and returns its output.
func (f *fixture) exec(id string, args ...string) (container.ExitStatus, string, string) {
	f.t.Helper()
	var out, errs bytes.Buffer
	status, err := f.Exec(f.ctx(), id, container.ExecConfig{Args: args}, container.Streams{Stdout: &out, Stderr: &errs})
	if err != nil {
		f.t.Fatalf("exec %v: %v", args, err)
	}
	return status, out.String(), errs.String()
}

func TestEcho(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	status, out, errs := f.run(sb, "echo hello; echo oops >&2; hostname; exit 7", nil)
	if status.Exit.Code != 7 || status.Reason != container.ReasonError {
		t.Errorf("exit %+v, reason %s", status.Exit, status.Reason)
	}
	if out != "hello\nship\n" || errs != "oops\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if status.Started.IsZero() || status.Exit.Time.Before(status.Started) {
		t.Errorf("started %v, finished %v", status.Started, status.Exit.Time)
	}
	if err := f.Remove(f.ctx(), status.Config.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Container(status.Config.ID); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("a removed container gives %v", err)
	}
}

// TestWithoutOverlay: where overlays do not work each container has a copy of its image.
func TestWithoutOverlay(t *testing.T) {
	f := newFixtureWith(t, Options{Images: image.Options{NoOverlay: true}})
	sb := f.sandbox(nil)
	id := f.start(sb, "echo changed > /etc/passwd; head -c 100000 /dev/zero > /big; sleep 1000", nil)
	eventually(t, "the file", func() bool { s, _, _ := f.exec(id, "test", "-s", "/big"); return s.Code == 0 })
	if use, err := f.DiskUsage(f.ctx(), id); err != nil || use.Bytes < 1_000_000 {
		t.Errorf("a copy takes %+v %v", use, err)
	}
	if _, out, _ := f.run(sb, "head -1 /etc/passwd; ls -ld /tmp | cut -c1-10", nil); out != "root:x:0:0:root:/root:/bin/sh\ndrwxrwxrwt\n" {
		t.Errorf("%q", out)
	}
}

// TestWithoutShim: a coracle that was built without its shim says what to do, and works otherwise.
func TestWithoutShim(t *testing.T) {
	f := newFixtureWith(t, Options{Shim: func() ([]byte, error) { return nil, shim.ErrMissing }})
	sb := f.sandbox(nil)
	id := f.create(sb, "true", nil)
	if err := f.Start(f.ctx(), id); !errors.Is(err, shim.ErrMissing) || !strings.Contains(err.Error(), "make shim") {
		t.Errorf("%v", err)
	}
	if s, err := f.Container(id); err != nil || s.State != container.StateCreated {
		t.Errorf("%+v %v", s.State, err)
	}
	eventually(t, "not ready", func() bool { s := f.Status(); return !s.Ready && strings.Contains(s.Message, "make shim") })
}

// TestShimFails: a shim that does not come up says why.
func TestShimFails(t *testing.T) {
	script := "#!/bin/sh\n" // a sealed file cannot be a script, which shows in the error
	f := newFixtureWith(t, Options{Shim: func() ([]byte, error) { return []byte(script), nil }})
	sb := f.sandbox(nil)
	id := f.create(sb, "true", nil)
	if err := f.Start(f.ctx(), id); err == nil || !strings.Contains(err.Error(), "shim") {
		t.Errorf("%v", err)
	}
	program, err := os.ReadFile(busybox) // a program, but not one that serves
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Runtime = openWith(t, f.dir, Options{Shim: func() ([]byte, error) { return program, nil }})
	if err := f.Start(f.ctx(), id); err == nil || !strings.Contains(err.Error(), "it says: ") || !strings.Contains(err.Error(), "applet not found") {
		t.Errorf("%v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Runtime = open(t, f.dir)
	if err := f.Start(f.ctx(), id); err != nil {
		t.Errorf("with a good one: %v", err)
	}
}

// TestNothingInherited: the shim keeps no file open that coracle was started with.
func TestNothingInherited(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETFD, 0); err != nil { // as an inherited one is
		t.Fatal(err)
	}
	f := newFixture(t)
	f.start(f.sandbox(nil), "sleep 1000", nil)
	w.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 1))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("someone holds the pipe open")
	}
}

// holds says which process has a file below dir open as the shim has its lock, "" for none.
func holds(dir string) string {
	pids, _ := filepath.Glob("/proc/[0-9]*/fd/4")
	for _, fd := range pids {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
			return fd + " is " + target
		}
	}
	return ""
}

// TestCloseEarly closes while the shim is just being started for the first sandbox: none stays.
func TestCloseEarly(t *testing.T) {
	for range 10 {
		f := newFixture(t)
		f.sandbox(nil)
		f.destroy()
		for end := time.Now().Add(10 * time.Second); ; {
			holder := holds(f.dir)
			if holder == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatal(holder)
			}
			runtime.Gosched() // a shim that is told to end does so on its own
		}
		if err := os.MkdirAll(f.dir, 0o755); err != nil { // for the cleanup, which looks again
			t.Fatal(err)
		}
		f.Runtime = open(t, f.dir)
	}
}

// TestLongPaths: data directories may be deeper than what a socket's name may hold.
func TestLongPaths(t *testing.T) {
	base, err := os.MkdirTemp("", "coracle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	dir := filepath.Join(base, strings.Repeat("deep/", 40), "with space: and more")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, dir: dir, Runtime: open(t, dir)}
	t.Cleanup(f.destroy)
	f.importBusybox()
	sb := f.sandbox(nil)
	if s, out, errs := f.run(sb, "echo fine", nil); s.Exit.Code != 0 || out != "fine\n" {
		t.Errorf("%+v %q %q", s.Exit, out, errs)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(context.Background(), Options{Dir: filepath.Join(t.TempDir(), "a,b")}); err == nil || !strings.Contains(err.Error(), "comma") {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), Options{Dir: file}); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// TestSubscribe: events come in order, to all, and end with the subscription.
func TestSubscribe(t *testing.T) {
	f := newFixture(t)
	events := make(chan container.Event, 100)
	cancel := f.Subscribe(func(e container.Event) { events <- e })
	sb := f.sandbox(nil)
	s, _, _ := f.run(sb, "exit 3", nil)
	if err := f.RemoveSandbox(f.ctx(), sb); err != nil {
		t.Fatal(err)
	}
	id := s.Config.ID
	for _, want := range []container.Event{
		{Type: container.EventSandboxCreated, SandboxID: sb},
		{Type: container.EventContainerStarted, SandboxID: sb, ContainerID: id},
		{Type: container.EventContainerExited, SandboxID: sb, ContainerID: id},
		{Type: container.EventContainerRemoved, SandboxID: sb, ContainerID: id},
		{Type: container.EventSandboxRemoved, SandboxID: sb},
	} {
		select {
		case got := <-events:
			if got.Time.IsZero() {
				t.Errorf("%s has no time", got.Type)
			}
			got.Time = want.Time
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s does not come", want.Type)
		}
	}
	cancel()
	cancel()
	f.sandbox(nil)
	if len(events) != 0 {
		t.Errorf("%d events after the end", len(events))
	}
}

// TestFullDisk: on a full disk things fail with the reason, undo themselves, and can be removed.
func TestFullDisk(t *testing.T) {
	base, err := os.MkdirTemp("", "coracle-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := mount.Tmpfs(base, 12<<20, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.Unmount(base) })
	dir := filepath.Join(base, "data")
	f := &fixture{t: t, dir: dir, Runtime: open(t, dir)}
	t.Cleanup(f.destroy)
	fill := func() {
		t.Helper()
		file, err := os.Create(filepath.Join(base, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		block := make([]byte, 4096)
		for err == nil {
			_, err = file.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	drain := func() {
		if err := os.Remove(filepath.Join(base, "filler")); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	archive, err := build.Busybox(busybox, "busybox").Archive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Images().Import(f.ctx(), bytes.NewReader(archive), container.ImportOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("import: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "images", "tmp")); len(left) != 0 {
		t.Errorf("a failed import left %v", left)
	}
	drain()
	f.importBusybox()
	sb := f.sandbox(nil)
	id := f.start(sb, "while true; do echo a line for a full disk; usleep 1000; done", nil)
	fill()
	if _, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: "no"}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("sandbox: %v", err)
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "no", SandboxID: sb, Image: "busybox"}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("container: %v", err)
	}
	for _, path := range []string{"sandboxes/no", "containers/no"} {
		if _, err := os.Stat(filepath.Join(dir, "runtime", path)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	// The exit is known although it cannot be recorded, and all of it can be removed.
	if err := f.Stop(f.ctx(), id, "", 0); err != nil {
		t.Fatal(err)
	}
	if s := f.wait(id); s.Exit.Code != 137 {
		t.Errorf("%+v", s.Exit)
	}
	if err := f.RemoveSandbox(f.ctx(), sb); err != nil {
		t.Errorf("removing on a full disk: %v", err)
	}
	drain()
	if s, out, _ := f.run(f.sandbox(nil), "echo room again", nil); s.Exit.Code != 0 || out != "room again\n" {
		t.Errorf("%+v %q", s.Exit, out)
	}
}
