package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/linux/cgroup"
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

func open(t testing.TB, dir string) *Runtime {
	t.Helper()
	r, err := Open(context.Background(), Options{
		Dir:  filepath.Join(dir, "runtime"),
		Shim: func() ([]byte, error) { return shimProgram, nil },
		Log:  slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "coracle-test-")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, dir: dir, Runtime: open(t, dir)}
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

var _ = cgroup.Resources{}
