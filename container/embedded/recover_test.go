package embedded

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/namespace"
)

// TestAdoption kills a coracle with SIGKILL: its containers keep their processes, lose no line of their
// logs, and the next coracle learns how they ended while nobody looked.
func TestAdoption(t *testing.T) {
	dir, err := os.MkdirTemp("", "coracle-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "shared"), 0o777); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), "CORACLE_TEST_CHILD="+dir)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	if err := json.NewDecoder(stdout).Decode(&pids); err != nil {
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	// One ends between the two lives of coracle.
	if err := os.WriteFile(filepath.Join(dir, "shared", "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the recorded exit", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "runtime", "containers", "later", "state.json"))
		return strings.Contains(string(data), `"exited":true`)
	})

	f := &fixture{Runtime: open(t, dir), t: t, dir: dir}
	t.Cleanup(f.destroy)
	if s := f.Sandboxes(); len(s) != 1 || s[0].Config.ID != "kept" || s[0].Config.Labels["pod"] != "one" || s[0].State != container.SandboxReady {
		t.Fatalf("sandboxes %+v", s)
	}
	list := f.Containers("kept")
	if len(list) != 3 {
		t.Fatalf("%d containers", len(list))
	}
	for _, c := range list {
		id := c.Config.ID
		if c.Config.Annotations["name"] != id {
			t.Errorf("%s: annotations %v", id, c.Config.Annotations)
		}
		if id == "later" {
			if c.State != container.StateExited || c.Exit.Code != 42 || c.Reason != container.ReasonError {
				t.Errorf("later: %v %+v", c.State, c.Exit)
			}
			continue
		}
		if c.State != container.StateRunning || c.PID != pids[id] || unix.Kill(c.PID, 0) != nil {
			t.Errorf("%s: %v, process %d, was %d", id, c.State, c.PID, pids[id])
		}
	}
	if out, _ := f.logs("later"); out != "done\n" {
		t.Errorf("log of later: %q", out)
	}
	if f.Status().SupervisorPID == 0 {
		t.Error("no supervisor")
	}
	// The adopted ones are as good as others: streams, exec, stop.
	see := newScreen()
	if err := f.Attach(f.ctx(), "input", container.Streams{Stdin: strings.NewReader("word\n"), Stdout: see}); err != nil {
		t.Error(err)
	}
	if s := f.wait("input"); s.Exit.Code != 0 || see.String() != "got word\nend\n" {
		t.Errorf("input: %+v %q", s.Exit, see)
	}
	if _, out, _ := f.exec("steady", "hostname"); out != "kept\n" {
		t.Errorf("exec in an adopted container: %q", out)
	}
	if err := f.Stop(f.ctx(), "steady", "KILL", time.Second); err != nil {
		t.Fatal(err)
	}
	out, _ := f.logs("steady")
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if line != fmt.Sprintf("line %d", i+1) {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
}

// TestCrash kills coracle at any moment of making and removing containers: what the next one finds can be used or
// removed, and nothing stays that it does not find.
func TestCrash(t *testing.T) {
	f := newFixture(t)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	found := 0
	for round := range rounds {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), "CORACLE_TEST_CHILD="+f.dir, "CORACLE_TEST_CHURN=1")
		child.Stderr = os.Stderr
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		// Four workers go on while the last step is told, so that each is killed in the middle of another one.
		lines := bufio.NewScanner(stdout)
		for range 3 + 5*round {
			if !lines.Scan() || lines.Text() != "step" {
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()

		f.Runtime = open(t, f.dir)
		for _, s := range f.Sandboxes() {
			if s.State != container.SandboxReady {
				t.Errorf("round %d: %s is %s: %s", round, s.Config.ID, s.State, s.Message)
			}
			for _, c := range f.Containers(s.Config.ID) {
				found++
				switch {
				case c.State == container.StateRunning && !alive(c.PID):
					// It may just have exited.
					f.wait(c.Config.ID)
				case c.State == container.StateExited && c.Exit.Code != 7 && c.Exit.Code != 137:
					t.Errorf("round %d: %s: %+v %s", round, c.Config.ID, c.Exit, c.Message)
				case c.State == container.StateCreated && round%2 == 0:
					if err := f.Start(f.ctx(), c.Config.ID); err != nil {
						t.Errorf("round %d: %s: %v", round, c.Config.ID, err)
					}
				}
			}
			if err := f.RemoveSandbox(f.ctx(), s.Config.ID); err != nil {
				t.Errorf("round %d: %s: %v", round, s.Config.ID, err)
			}
		}
		if len(f.Containers("")) != 0 {
			t.Errorf("round %d: containers without a sandbox: %+v", round, f.Containers(""))
		}
		if f.Status().SupervisorPID != 0 {
			eventually(t, "nothing left", func() bool {
				things, _ := census(t, f)
				return strings.HasPrefix(things, "mounts 0,") && strings.Contains(things, "directories 0,") && strings.HasSuffix(things, `shim's children ""`)
			})
		}
		if left, _ := f.cgroups.Group(f.cgroupRoot + "/sandboxes").Children(); len(left) != 0 {
			t.Errorf("round %d: cgroups %v", round, left)
		}
	}
	if found == 0 {
		t.Error("nothing was ever found")
	}
}

// TestReopen closes and opens the runtime in one process.
func TestReopen(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	running := f.start(sb, "sleep 1000", nil)
	created := f.create(sb, "echo at last", nil)
	before, _ := f.Container(running)
	shim := f.Status().SupervisorPID
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Runtime = open(t, f.dir)
	if got := f.Status().SupervisorPID; got != shim {
		t.Errorf("another supervisor: %d and %d", shim, got)
	}
	after, err := f.Container(running)
	if err != nil || after.PID != before.PID || !after.Started.Equal(before.Started) {
		t.Errorf("%+v %v", after, err)
	}
	if err := f.Shutdown(f.ctx()); !errors.Is(err, container.ErrBusy) {
		t.Errorf("shutdown with a running container: %v", err)
	}
	if err := f.Start(f.ctx(), created); err != nil {
		t.Fatal(err)
	}
	f.wait(created)
	if out, _ := f.logs(created); out != "at last\n" {
		t.Errorf("%q", out)
	}
}

// TestRenew: a coracle with another shim inside takes over from a former one, as soon as nothing runs.
func TestRenew(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, "sleep 1000", nil)
	first := f.Status().SupervisorPID
	other := append(bytes.Clone(shimProgram), 0) // as good, and another build
	reopen := func() int {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f.Runtime = openWith(t, f.dir, Options{Shim: func() ([]byte, error) { return other, nil }})
		return f.Status().SupervisorPID
	}
	if pid := reopen(); pid != first {
		t.Errorf("a busy shim was left for %d", pid)
	}
	if err := f.Remove(f.ctx(), id); err != nil {
		t.Fatal(err)
	}
	if pid := reopen(); pid != 0 || alive(first) {
		t.Errorf("an idle shim of another build is still there: %d, alive %v", pid, alive(first))
	}
	if s, _, _ := f.run(sb, "exit 4", nil); s.Exit.Code != 4 {
		t.Errorf("%+v", s.Exit)
	}
	second := f.Status().SupervisorPID
	if pid := reopen(); pid != second {
		t.Errorf("the same build was renewed: %d and %d", second, pid)
	}
}

// TestShimDies: containers whose supervisor is gone are ended and say so, and new ones can be started.
func TestShimDies(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	shared := f.sandbox(func(c *container.SandboxConfig) { c.Namespaces.PID = container.NamespaceSandbox })
	id := f.start(sb, "sleep 1000", nil)
	other := f.start(shared, "sleep 1000", nil)
	before, _ := f.Container(id)
	kill := func() {
		if err := unix.Kill(f.Status().SupervisorPID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	for _, id := range []string{id, other} {
		s := f.wait(id)
		if s.Exit.Code != 255 || s.Reason != container.ReasonLost || !strings.Contains(s.Message, "shim") {
			t.Errorf("%s: %+v %s %q", id, s.Exit, s.Reason, s.Message)
		}
	}
	if alive(before.PID) {
		t.Error("its process runs on without a supervisor")
	}
	eventually(t, "not ready", func() bool { s, _ := f.Sandbox(shared); return s.State == container.SandboxNotReady })
	if s, _ := f.Sandbox(sb); s.State != container.SandboxReady {
		t.Errorf("a sandbox without an init: %+v", s)
	}
	if s, out, _ := f.run(sb, "echo again", nil); s.Exit.Code != 0 || out != "again\n" {
		t.Errorf("%+v %q", s.Exit, out)
	}
	// The same when nobody was there to see it.
	id = f.start(sb, "sleep 1000", nil)
	pid := f.Status().SupervisorPID
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the shim", func() bool { return !alive(pid) })
	f.Runtime = open(t, f.dir)
	if s, err := f.Container(id); err != nil || s.State != container.StateExited || s.Reason != container.ReasonLost {
		t.Errorf("%+v %v", s, err)
	}
}

// TestHalfMade: what a crash left in the middle of making it goes at the next start.
func TestHalfMade(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, "sleep 1000", nil)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(f.dir, "runtime")
	// A sandbox whose record says that it is being made, with a namespace and a mount, and one with no record.
	half := filepath.Join(root, "sandboxes", "half")
	if err := os.MkdirAll(filepath.Join(half, "shm"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(half, sandboxFile), sandboxRecord{Config: normalise(container.SandboxConfig{ID: "half"}), BootID: f.bootID}); err != nil {
		t.Fatal(err)
	}
	if err := namespace.Pin(filepath.Join(half, "ns"), []namespace.Type{namespace.Net, namespace.UTS}, nil); err != nil {
		t.Fatal(err)
	}
	if err := mount.Tmpfs(filepath.Join(half, "shm"), 1<<20, 0o777); err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(root, "sandboxes", "torn")
	if err := os.MkdirAll(torn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(torn, sandboxFile), []byte(`{"config":{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	// A running container whose record was damaged: the shim knows it, nobody else does.
	if err := os.WriteFile(filepath.Join(root, "containers", id, containerFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.Runtime = open(t, f.dir)
	if s := f.Sandboxes(); len(s) != 1 || s[0].Config.ID != sb {
		t.Errorf("sandboxes %+v", s)
	}
	if c := f.Containers(""); len(c) != 0 {
		t.Errorf("containers %+v", c)
	}
	for _, dir := range []string{half, torn, filepath.Join(root, "containers", id)} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	if s, out, _ := f.run(sb, "echo fine", nil); s.Exit.Code != 0 || out != "fine\n" {
		t.Errorf("%+v %q", s.Exit, out)
	}
}

func TestDestroy(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(func(c *container.SandboxConfig) { c.Namespaces.PID = container.NamespaceSandbox })
	id := f.start(sb, "sleep 1000", nil)
	s, _ := f.Container(id)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Destroy(f.ctx(), Options{Dir: filepath.Join(f.dir, "runtime")}); err != nil {
		t.Fatal(err)
	}
	if alive(s.PID) {
		t.Error("a process is left")
	}
	for _, name := range []string{"runtime", "images"} {
		if _, err := os.Stat(filepath.Join(f.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if err := Destroy(f.ctx(), Options{Dir: filepath.Join(f.dir, "runtime")}); err != nil {
		t.Errorf("a second time: %v", err)
	}
	f.Runtime = open(t, f.dir) // for the cleanup, which looks for what is left
}

// alive says whether a process runs; a zombie, whose new parent has not taken note yet, does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(data, []byte(") Z ")) && !bytes.Contains(data, []byte(") X "))
}

// census counts what containers could leave behind, and the open files of shim and runtime.
func census(t testing.TB, f *fixture) (things string, open int) {
	t.Helper()
	mounts, err := mount.Below(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	groups := 0
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, f.cgroupRoot) {
			groups++
		}
		return nil
	})
	files := 0
	for _, dir := range []string{"containers", "oci", "sandboxes"} {
		entries, err := os.ReadDir(filepath.Join(f.dir, "runtime", dir))
		if err != nil {
			t.Fatal(err)
		}
		files += len(entries)
	}
	shim := f.Status().SupervisorPID
	count := func(pid int) int {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shim, shim))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("mounts %d, cgroups %d, directories %d, shim's children %q", len(mounts), groups, files, children),
		count(shim) + count(os.Getpid())
}

// namespacesOf lists the namespaces that threads of these processes are in, with one link to each. The numbers of
// namespaces that are gone are given out again, so that other programs on the machine may be in what bears the
// number of one of ours.
func namespacesOf(t testing.TB, pids ...int) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pid := range pids {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/ns/*", pid))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil {
				found[target] = link
			}
		}
	}
	return found
}

// TestCycles creates and removes sandboxes with containers in all their forms, and then nothing is there that was not before.
func TestCycles(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	made := map[string]bool{} // namespaces of the sandboxes
	cycle := func(i int) {
		sb := f.sandbox(func(c *container.SandboxConfig) {
			c.ID = fmt.Sprintf("cycle%d", i)
			if i%3 == 0 {
				c.Namespaces.PID = container.NamespaceSandbox
			}
			if i%5 == 0 {
				c.Namespaces.Net = container.NamespaceHost
			}
		})
		var st unix.Stat_t
		for _, name := range []string{"net", "uts", "ipc", "pid"} {
			path := filepath.Join(f.dir, "runtime", "sandboxes", sb, "ns", name)
			if unix.Stat(path, &st) == nil {
				mu.Lock()
				made[fmt.Sprintf("%s:[%d]", name, st.Ino)] = true
				mu.Unlock()
			}
		}
		id := f.start(sb, "(sleep 1000 &); sleep 1000", func(c *container.ContainerConfig) { c.TTY = i%7 == 0; c.Stdin = i%2 == 0 })
		if i%4 == 0 {
			f.exec(id, "true")
		}
		if i%6 == 0 {
			ctx, cancel := context.WithCancel(f.ctx())
			go cancel()
			_ = f.Attach(ctx, id, container.Streams{Stdin: strings.NewReader(""), Stdout: io.Discard})
			cancel()
		}
		if err := f.RemoveSandbox(f.ctx(), sb); err != nil {
			t.Fatal(err)
		}
	}
	// The first ones bring up the shim and pools of all kinds.
	for i := range 15 {
		cycle(i)
	}
	before, files := census(t, f)
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	var group sync.WaitGroup
	work := make(chan int)
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range work {
				cycle(1000 + i)
			}
		}()
	}
	for i := range rounds {
		work <- i
	}
	close(work)
	group.Wait()
	after := ""
	eventually(t, "the same as before", func() bool {
		things, open := census(t, f)
		if now := fmt.Sprintf("%s, files %d", things, open); now != after {
			after = now
			t.Logf("before: %s, files %d; now: %s", before, files, now)
		}
		return things == before && open <= files+4 // the garbage collector closes some, in its own time
	})
	if len(made) < rounds {
		t.Errorf("%d namespaces were made", len(made))
	}
	for ns, link := range namespacesOf(t, os.Getpid(), f.Status().SupervisorPID) {
		if made[ns] {
			t.Errorf("%s lives on as %s", ns, link)
		}
	}
}

func TestDial(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.start(sb, `nc -l -p 8080 -e sh -c 'read x; echo got $x'`, nil)
	var conn net.Conn
	eventually(t, "the server", func() bool {
		var err error
		conn, err = f.Dial(f.ctx(), sb, 8080)
		return err == nil
	})
	defer conn.Close()
	if _, err := io.WriteString(conn, "mail\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "got mail\n" {
		t.Errorf("%q %v", got, err)
	}
	f.wait(id)
	if _, err := f.Dial(f.ctx(), sb, 8080); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestImagesInUse(t *testing.T) {
	f := newFixture(t)
	sb := f.sandbox(nil)
	id := f.create(sb, "true", nil)
	if err := f.Images().Remove(f.ctx(), "busybox"); !errors.Is(err, container.ErrImageInUse) {
		t.Errorf("removing a used image: %v", err)
	}
	if err := f.Remove(f.ctx(), id); err != nil {
		t.Fatal(err)
	}
	if err := f.Images().Remove(f.ctx(), "busybox"); err != nil {
		t.Error(err)
	}
	if list := f.Images().List(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if u := f.Images().Usage(); u.Bytes != 0 || u.Images != 0 {
		t.Errorf("%+v", u)
	}
}
