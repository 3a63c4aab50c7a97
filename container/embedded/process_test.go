package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/container/logfile"
	"coracle.dev/coracle/linux/cgroup"
)

func TestExits(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	for _, test := range []struct {
		script       string
		code, signal int
		reason       string
	}{
		{"true", 0, 0, container.ReasonCompleted},
		{"exit 255", 255, 0, container.ReasonError},
		// The first process of a namespace dies of no signal that it has not asked for, but by its parent's SIGKILL.
		{"sh -c 'kill -SEGV $$'; exit $?", 139, 0, container.ReasonError},
		{"exec /bin/nothing", 127, 0, container.ReasonError},
	} {
		s, _, _ := f.run(sb, test.script, nil)
		if s.Exit.Code != test.code || s.Exit.Signal != test.signal || s.Reason != test.reason {
			t.Errorf("%s: %+v %s", test.script, s.Exit, s.Reason)
		}
		if s.Exit.Time.IsZero() || s.Started.IsZero() || s.Created.After(s.Started) {
			t.Errorf("%s: created %v, started %v, finished %v", test.script, s.Created, s.Started, s.Exit.Time)
		}
	}
}

func TestStop(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	polite := `trap 'echo bye; exit 3' TERM; trap 'echo usr; exit 4' USR1; echo ready; while true; do usleep 10000; done`
	ready := func(id string) {
		eventually(t, "ready", func() bool { out, _ := f.logs(id); return strings.Contains(out, "ready") })
	}
	for _, test := range []struct {
		name, script, stopSignal, signal string
		grace                            time.Duration
		code                             int
	}{
		{"polite", polite, "", "", time.Minute, 3},
		{"image signal", polite, "SIGUSR1", "", time.Minute, 4},
		{"given signal", polite, "", "USR1", time.Minute, 4},
		{"stubborn", `trap '' TERM; echo ready; while true; do usleep 10000; done`, "", "", 50 * time.Millisecond, 137},
		{"no grace", polite, "", "", 0, 137},
	} {
		id := f.start(sb, test.script, func(c *container.ContainerConfig) { c.StopSignal = test.stopSignal })
		ready(id)
		if err := f.Stop(f.ctx(), id, test.signal, test.grace); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		s, err := f.Container(id)
		if err != nil || s.State != container.StateExited || s.Exit.Code != test.code {
			t.Errorf("%s: %v %+v %v", test.name, s.State, s.Exit, err)
		}
		if err := f.Stop(f.ctx(), id, "", time.Second); err != nil {
			t.Errorf("%s: stopping a stopped one: %v", test.name, err)
		}
	}
	id := f.start(sb, polite, nil)
	ready(id)
	if err := f.Signal(f.ctx(), id, "SIGUSR1"); err != nil {
		t.Fatal(err)
	}
	if s := f.wait(id); s.Exit.Code != 4 {
		t.Errorf("after a signal: %+v", s.Exit)
	}
	if err := f.Signal(f.ctx(), id, "SIGUSR1"); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("signal to an exited container: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	for _, test := range []struct {
		args     []string
		want     string
		notFound bool
	}{
		{[]string{"nothing-there"}, `exec: "nothing-there": executable file not found in $PATH`, true},
		{[]string{"/no/such"}, `exec: "/no/such": stat /no/such: no such file or directory`, true},
		{[]string{"/etc/passwd"}, `permission denied`, false},
	} {
		id := f.create(sb, "", func(c *container.ContainerConfig) { c.Args = test.args })
		err := f.Start(f.ctx(), id)
		var serr *container.StartError
		if !errors.As(err, &serr) || !strings.Contains(err.Error(), test.want) || serr.NotFound != test.notFound {
			t.Errorf("%v: %v (%+v)", test.args, err, serr)
		}
		s, err := f.Container(id)
		if err != nil || s.State != container.StateExited || s.Exit.Code != 128 || s.Reason != container.ReasonStartError || !strings.Contains(s.Message, test.want) {
			t.Errorf("%v: %+v %v", test.args, s, err)
		}
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "x", SandboxID: sb, Image: "nothere"}); !errors.Is(err, container.ErrImageNotFound) {
		t.Errorf("unknown image: %v", err)
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "x", SandboxID: "other", Image: "busybox"}); !errors.Is(err, container.ErrNotFound) {
		t.Errorf("unknown sandbox: %v", err)
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "../x", SandboxID: sb, Image: "busybox"}); err == nil {
		t.Error("an ID that is a path was taken")
	}
	if _, err := f.CreateSandbox(f.ctx(), container.SandboxConfig{ID: sb}); !errors.Is(err, container.ErrExists) {
		t.Errorf("taken ID: %v", err)
	}
	if _, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: "mnt", SandboxID: sb, Image: "busybox",
		Mounts: []container.Mount{{HostPath: "/no/such/path", ContainerPath: "/x"}}}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing mount source: %v", err)
	}
}

func TestOOM(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	s, _, _ := f.run(sb, `x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done`, func(c *container.ContainerConfig) {
		c.Resources = cgroup.Resources{Memory: 16 << 20}
	})
	if !s.Exit.OOMKilled || s.Reason != container.ReasonOOMKilled || s.Exit.Code != 137 {
		t.Errorf("%+v %s", s.Exit, s.Reason)
	}
}

func TestLogs(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	long := 3*logfile.MaxLine + 100
	s, out, errs := f.run(sb, fmt.Sprintf(`printf 'no newline' >&2; head -c %d /dev/zero | tr '\0' a; echo; echo last`, long), nil)
	if want := strings.Repeat("a", long) + "\nlast\n"; out != want {
		t.Errorf("%d bytes of output, want %d", len(out), len(want))
	}
	if errs != "no newline" {
		t.Errorf("stderr %q", errs)
	}
	raw, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(raw, []byte(" stdout P ")); n != 3 {
		t.Errorf("%d partial lines", n)
	}
	if info, err := os.Stat(s.LogPath); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode of the log %v %v", info.Mode(), err)
	}

	// Rotation keeps the newest lines, in order over the files.
	id := f.start(sb, `i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done`, func(c *container.ContainerConfig) {
		c.Log.MaxSize, c.Log.MaxFiles = 4096, 3
	})
	s = f.wait(id)
	files := append(logfile.Rotated(s.LogPath), s.LogPath)
	if len(files) != 3 {
		t.Fatalf("files %v", files)
	}
	var all string
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 4096 {
			t.Errorf("%s: %v %v", file, info.Size(), err)
		}
		text, _ := readLog(t, file)
		all += text
	}
	lines := strings.Split(strings.TrimSpace(all), "\n")
	if lines[len(lines)-1] != "line 2000" {
		t.Errorf("the last line is %q", lines[len(lines)-1])
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", 2000-len(lines)+i+1); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}

	// A log that was moved by someone else is made anew on request.
	id = f.start(sb, `echo one; while [ ! -e /tmp/go ]; do usleep 5000; done; echo two`, nil)
	path := func() string { s, _ := f.Container(id); return s.LogPath }()
	eventually(t, "first line", func() bool { out, _ := f.logs(id); return out == "one\n" })
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := f.ReopenLog(f.ctx(), id); err != nil {
		t.Fatal(err)
	}
	f.exec(id, "touch", "/tmp/go")
	f.wait(id)
	if out, _ := f.logs(id); out != "two\n" {
		t.Errorf("the new log has %q", out)
	}
}

func TestExec(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, "sleep 1000", func(c *container.ContainerConfig) {
		c.Env = []string{"COLOUR=red", "SHAPE=round"}
		c.Cwd = "/work/dir"
	})
	status, out, errs := f.exec(id, "sh", "-c", "echo $COLOUR $SHAPE $(pwd); echo to stderr >&2; exit 5")
	if status.Code != 5 || out != "red round /work/dir\n" || errs != "to stderr\n" {
		t.Errorf("%+v %q %q", status, out, errs)
	}
	var buf bytes.Buffer
	status, err := f.Exec(f.ctx(), id, container.ExecConfig{
		Args: []string{"sh", "-c", "echo $COLOUR $SHAPE $(pwd) $(id -u):$(id -g)"}, Env: []string{"COLOUR=blue"}, Cwd: "/tmp",
		User: &container.User{Name: "nobody"},
	}, container.Streams{Stdout: &buf})
	if err != nil || status.Code != 0 || buf.String() != "blue round /tmp 65534:65534\n" {
		t.Errorf("%+v %q %v", status, buf.String(), err)
	}
	// Input, and more output than a pipe holds.
	buf.Reset()
	input := strings.Repeat("0123456789abcdef\n", 100_000)
	_, err = f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"cat"}}, container.Streams{Stdin: strings.NewReader(input), Stdout: &buf})
	if err != nil || buf.String() != input {
		t.Errorf("cat of %d bytes gave %d, %v", len(input), buf.Len(), err)
	}
	// Output left open by a grandchild does not keep the exec from ending.
	begin := time.Now()
	if _, out, _ := f.exec(id, "sh", "-c", "sleep 100 & echo started"); out != "started\n" {
		t.Errorf("with a grandchild: %q", out)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a grandchild kept the exec for %v", took)
	}
	var serr *container.StartError
	_, err = f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"nothing"}}, container.Streams{})
	if !errors.As(err, &serr) || !serr.NotFound || !strings.Contains(err.Error(), `exec: "nothing": executable file not found in $PATH`) {
		t.Errorf("exec of nothing: %v", err)
	}
	// A timeout kills, also one that comes while the process is being started.
	for _, limit := range []time.Duration{200 * time.Millisecond, 0, 2 * time.Millisecond, 5 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(f.ctx(), limit)
		defer cancel()
		_, err = f.Exec(ctx, id, container.ExecConfig{Args: []string{"sleep", "4321"}}, container.Streams{})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("timeout of %v: %v", limit, err)
		}
	}
	eventually(t, "the end of a timed out exec", func() bool {
		_, out, _ := f.exec(id, "ps")
		return !strings.Contains(out, "4321")
	})
	if s, _, _ := f.exec(id, "sh", "-c", "kill -9 $$"); s.Code != 137 || s.Signal != 9 {
		t.Errorf("a killed exec: %+v", s)
	}
	if err := f.Stop(f.ctx(), id, "", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"true"}}, container.Streams{}); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}

func TestExecTerminal(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, "sleep 1000", nil)
	keys, see, sizes := newKeyboard(), newScreen(), make(chan container.TerminalSize, 4)
	sizes <- container.TerminalSize{Width: 132, Height: 43}
	type result struct {
		status container.ExitStatus
		err    error
	}
	done := make(chan result, 1)
	go func() {
		status, err := f.Exec(f.ctx(), id, container.ExecConfig{Args: []string{"sh"}, TTY: true}, container.Streams{Stdin: keys, Stdout: see, Resize: sizes})
		done <- result{status, err}
	}()
	keys.press(t, "stty size; echo $TERM\n")
	see.expect(t, "43 132")
	see.expect(t, "xterm")
	sizes <- container.TerminalSize{Width: 80, Height: 25}
	eventually(t, "the new size", func() bool {
		keys.press(t, "stty size\n")
		return strings.Contains(see.String(), "25 80")
	})
	keys.press(t, "tty; exit 9\n")
	see.expect(t, "/dev/pts/0")
	if r := <-done; r.err != nil || r.status.Code != 9 {
		t.Errorf("%+v", r)
	}
	keys.w.Close()
}

func TestAttach(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, `while read line; do echo out $line; echo err $line >&2; done; echo end; exit 6`, func(c *container.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	})
	keys, out, errs := newKeyboard(), newScreen(), newScreen()
	done := make(chan error, 1)
	go func() {
		done <- f.Attach(f.ctx(), id, container.Streams{Stdin: keys, Stdout: out, Stderr: errs})
	}()
	keys.press(t, "first\n")
	out.expect(t, "out first\n")
	errs.expect(t, "err first\n")
	// A second client sees the output too, and may leave.
	other := newScreen()
	ctx, leave := context.WithCancel(f.ctx())
	left := make(chan error, 1)
	go func() { left <- f.Attach(ctx, id, container.Streams{Stdout: other}) }()
	eventually(t, "the second client", func() bool {
		keys.press(t, "again\n")
		return strings.Contains(other.String(), "out again")
	})
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("leaving: %v", err)
	}
	keys.w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := f.wait(id); s.Exit.Code != 6 {
		t.Errorf("%+v", s.Exit)
	}
	if !strings.HasSuffix(out.String(), "end\n") {
		t.Errorf("attached output %q", out)
	}
	if logged, _ := f.logs(id); logged != out.String() {
		t.Errorf("the log has %q and the client saw %q", logged, out)
	}
	if err := f.Attach(f.ctx(), id, container.Streams{Stdout: out}); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("attach to an exited container: %v", err)
	}
}

func TestAttachTerminal(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, `while read line; do echo "<$line>"; stty size; done`, func(c *container.ContainerConfig) {
		c.Stdin, c.TTY = true, true
	})
	keys, see, sizes := newKeyboard(), newScreen(), make(chan container.TerminalSize, 1)
	sizes <- container.TerminalSize{Width: 101, Height: 31}
	done := make(chan error, 1)
	go func() { done <- f.Attach(f.ctx(), id, container.Streams{Stdin: keys, Stdout: see, Resize: sizes}) }()
	eventually(t, "the size", func() bool {
		keys.press(t, "x\n")
		return strings.Contains(see.String(), "31 101")
	})
	see.expect(t, "<x>")
	keys.press(t, "\x04")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := f.wait(id); s.Exit.Code != 0 {
		t.Errorf("%+v", s.Exit)
	}
	keys.w.Close()
}

// TestStalledAttach: a client that does not read must not lose the log's lines.
func TestSlowClientKeepsLog(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, `read x; i=0; while [ $i -lt 40000 ]; do i=$((i+1)); echo a rather long line of output number $i; done`, func(c *container.ContainerConfig) {
		c.Stdin, c.Log.MaxSize = true, -1
	})
	ctx, cancel := context.WithCancel(f.ctx())
	stuck := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- f.Attach(ctx, id, container.Streams{Stdin: strings.NewReader("go\n"), Stdout: blockedWriter{stuck}})
	}()
	<-stuck
	cancel()
	<-done
	f.wait(id)
	if out, _ := f.logs(id); !strings.HasSuffix(out, "number 40000\n") || strings.Count(out, "\n") != 40000 {
		t.Errorf("the log has %d lines", strings.Count(out, "\n"))
	}
}

// blockedWriter takes one write, reports it, and then blocks for ever.
type blockedWriter struct{ got chan struct{} }

func (b blockedWriter) Write(p []byte) (int, error) {
	close(b.got)
	select {}
}

func TestEnvironment(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	_, out, _ := f.run(sb, `echo $PATH; echo $HOME; echo $HOSTNAME; echo $MINE; cat /etc/resolv.conf; cat /etc/hostname`, func(c *container.ContainerConfig) {
		c.Env = []string{"MINE=a=b"}
	})
	want := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/root\nship\na=b\n" +
		"search svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\nship\n"
	if out != want {
		t.Errorf("got %q\nwant %q", out, want)
	}
}

func TestMounts(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	host := filepath.Join(f.dir, "volume")
	if err := os.MkdirAll(filepath.Join(host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, out, errs := f.run(sb, `cat /rw/file /one; echo new > /rw/new; echo no > /ro/no; echo no > /one; ls /img/bin/busybox; echo no > /img/x; cat /etc/hosts`, func(c *container.ContainerConfig) {
		c.Mounts = []container.Mount{
			{HostPath: host, ContainerPath: "/rw"},
			{HostPath: host, ContainerPath: "/ro", ReadOnly: true},
			{HostPath: filepath.Join(host, "file"), ContainerPath: "/one", ReadOnly: true},
			{HostPath: filepath.Join(host, "file"), ContainerPath: "/etc/hosts"},
			{HostPath: filepath.Join(host, "sub"), ContainerPath: "/rw/sub/deeper"},
			{Image: "busybox", ContainerPath: "/img"},
		}
	})
	if out != "content\ncontent\n/img/bin/busybox\ncontent\n" {
		t.Errorf("stdout %q", out)
	}
	if n := strings.Count(errs, "Read-only file system"); n != 3 {
		t.Errorf("stderr %q", errs)
	}
	if data, err := os.ReadFile(filepath.Join(host, "new")); err != nil || string(data) != "new\n" {
		t.Errorf("%q %v", data, err)
	}
	// Writes stay in the container: the image has not changed.
	f.run(sb, `rm /bin/sh.keep /etc/passwd; echo x > /etc/group`, nil)
	if _, out, _ := f.run(sb, `head -1 /etc/passwd; head -1 /etc/group`, nil); out != "root:x:0:0:root:/root:/bin/sh\nroot:x:0:\n" {
		t.Errorf("the image changed: %q", out)
	}
}

func TestResources(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(func(c *container.SandboxConfig) {
		c.Cgroup = "kubepods/burstable/pod1"
		c.Resources = cgroup.Resources{CPUShares: 512, Memory: 256 << 20, Pids: 500}
	})
	id := f.start(sb, "sleep 1000", func(c *container.ContainerConfig) {
		c.Resources = cgroup.Resources{CPUShares: 256, CPUQuota: 50_000, CPUPeriod: 100_000, Memory: 64 << 20, Pids: 100}
	})
	// Until the program is executed its place is held by the shim's own.
	eventually(t, "one process", func() bool { stats, err := f.Stats(id); return err == nil && stats.Pids == 1 })
	stats, err := f.Stats(id)
	if err != nil {
		t.Fatal(err)
	}
	if stats.MemoryLimit != 64<<20 || stats.PidsLimit != 100 || stats.CPUNanos == 0 || stats.MemoryBytes == 0 {
		t.Errorf("%+v", stats)
	}
	pod, err := f.SandboxStats(sb)
	if err != nil || pod.MemoryLimit != 256<<20 || pod.PidsLimit != 500 {
		t.Errorf("%+v %v", pod, err)
	}
	status, _ := f.Container(id)
	if want := f.cgroupRoot + "/kubepods/burstable/pod1/" + id; status.Cgroup != want {
		t.Errorf("cgroup %s, want %s", status.Cgroup, want)
	}
	// Up past the swap limit, and down again.
	for _, memory := range []int64{128 << 20, 32 << 20} {
		if err := f.UpdateContainer(f.ctx(), id, cgroup.Resources{Memory: memory, CPUShares: 1024}); err != nil {
			t.Fatal(err)
		}
		if stats, _ := f.Stats(id); stats.MemoryLimit != uint64(memory) || stats.PidsLimit != 100 {
			t.Errorf("after an update %+v", stats)
		}
	}
	if s, _ := f.Container(id); s.Config.Resources.Memory != 32<<20 || s.Config.Resources.CPUQuota != 50_000 {
		t.Errorf("recorded %+v", s.Config.Resources)
	}
	if err := f.UpdateSandbox(f.ctx(), sb, cgroup.Resources{Memory: 300 << 20}); err != nil {
		t.Fatal(err)
	}
	if pod, _ := f.SandboxStats(sb); pod.MemoryLimit != 300<<20 {
		t.Errorf("sandbox after an update %+v", pod)
	}
	// A container that does not run yet gets its new limits when it does.
	id = f.create(sb, "sleep 1000", func(c *container.ContainerConfig) { c.Resources.Memory = 64 << 20 })
	if err := f.UpdateContainer(f.ctx(), id, cgroup.Resources{Memory: 48 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stats(id); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("stats before the start: %v", err)
	}
	if err := f.Start(f.ctx(), id); err != nil {
		t.Fatal(err)
	}
	if stats, _ := f.Stats(id); stats.MemoryLimit != 48<<20 {
		t.Errorf("started with %+v", stats)
	}
	f.exec(id, "sh", "-c", "head -c 1000000 /dev/zero > /big; mkdir /d; touch /d/1 /d/2")
	use, err := f.DiskUsage(f.ctx(), id)
	if err != nil || use.Bytes < 1_000_000 || use.Bytes > 2_000_000 || use.Inodes < 5 {
		t.Errorf("disk usage %+v %v", use, err)
	}
}

// TestImageVolumes: what an image declares as a volume is writable on a read-only root, and begins as the image has it.
func TestImageVolumes(t *testing.T) {
	f := newFixture(t)
	img := build.Busybox(busybox, "withvolume")
	img.Layers = append(img.Layers, []build.File{{Path: "data/file", Data: []byte("from the image\n"), UID: 5}})
	img.Config.Volumes = []string{"/data", "/new/place", "/mine"}
	archive, err := img.Archive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Images().Import(f.ctx(), bytes.NewReader(archive), container.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(f.dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	sb := f.sandbox(nil)
	script := `cat /data/file; stat -c %u /data/file; echo x > /data/file; echo y > /new/place/y; echo z > /mine/z; echo no > /no; cat /data/file`
	for range 2 { // each container has its own
		_, out, errs := f.run(sb, script, func(c *container.ContainerConfig) {
			c.Image, c.ReadonlyRootfs = "withvolume", true
			c.Mounts = []container.Mount{{HostPath: mine, ContainerPath: "/mine"}}
		})
		if out != "from the image\n5\nx\n" || strings.Count(errs, "Read-only file system") != 1 {
			t.Errorf("%q %q", out, errs)
		}
	}
	if _, err := os.Stat(filepath.Join(mine, "z")); err != nil {
		t.Error(err)
	}
}

// TestUmask: containers do not depend on the umask of who runs coracle.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	f := newFixture(t)
	sb := f.sandbox(nil)
	_, out, errs := f.run(sb, `umask; cat /etc/hostname; cat /etc/resolv.conf | wc -l; cat /etc/passwd | wc -l; ls -ld / | cut -c1-10; echo x > /tmp/x; ls -l /tmp/x | cut -c1-10`, func(c *container.ContainerConfig) {
		c.User.UID = u32(1000)
	})
	if out != "0022\nship\n3\n4\ndrwxr-xr-x\n-rw-r--r--\n" {
		t.Errorf("%q %q", out, errs)
	}
}

// TestRemoveWhileMaking: a sandbox is removed with containers that are just being made in it.
func TestRemoveWhileMaking(t *testing.T) {
	f := newFixture(t)
	for range 10 {
		sb := f.sandbox(nil)
		var group sync.WaitGroup
		for i := range 3 {
			group.Add(1)
			go func() {
				defer group.Done()
				id := fmt.Sprintf("%s-%d", sb, i)
				_, err := f.CreateContainer(f.ctx(), container.ContainerConfig{ID: id, SandboxID: sb, Image: "busybox", Args: []string{"sleep", "1000"}})
				if err == nil {
					err = f.Start(f.ctx(), id)
				}
				if err != nil {
					t.Logf("%s: %v", id, err)
				}
			}()
		}
		if err := f.RemoveSandbox(f.ctx(), sb); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		if len(f.Sandboxes()) != 0 || len(f.Containers("")) != 0 {
			t.Fatalf("left: %v %v", f.Sandboxes(), f.Containers(""))
		}
	}
	for _, dir := range []string{"containers", "sandboxes", "oci"} {
		if left, _ := os.ReadDir(filepath.Join(f.dir, "runtime", dir)); len(left) != 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}
