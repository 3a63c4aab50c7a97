package namespace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/mount"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "linux/namespace: these tests make namespaces and need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func own(t *testing.T, name Type) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + string(name))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func pin(t *testing.T, types []Type, setup func() error) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Pin(dir, types, setup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range types {
			if err := Unpin(filepath.Join(dir, string(name))); err != nil {
				t.Error(err)
			}
		}
		if points, err := mount.Below(dir); err != nil || len(points) != 0 {
			t.Errorf("left %v %v", points, err)
		}
	})
	return dir
}

// hostname is that of the calling thread's namespace.
func hostname(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Nodename[:])
}

func TestPin(t *testing.T) {
	before := map[Type]string{Net: own(t, Net), IPC: own(t, IPC), UTS: own(t, UTS)}
	outside := hostname(t)
	dir := pin(t, []Type{Net, UTS, IPC}, func() error {
		if err := Sysctl("net.core.somaxconn", "77"); err != nil {
			return err
		}
		return SetHostname("inside", "example")
	})
	for name, link := range before {
		if own(t, name) != link {
			t.Errorf("the process itself is in another %s namespace", name)
		}
		if path := filepath.Join(dir, string(name)); !Pinned(path) {
			t.Errorf("%s is not pinned", path)
		}
	}
	if Pinned(filepath.Join(dir, "nothing")) || Pinned(dir) {
		t.Error("what is no namespace looks pinned")
	}
	err := Do(func() error {
		if got := hostname(t); got != "inside" {
			t.Errorf("host name %q", got)
		}
		data, err := os.ReadFile("/proc/sys/net/core/somaxconn")
		if err != nil || string(data) != "77\n" {
			t.Errorf("somaxconn %q %v", data, err)
		}
		links, err := net.Interfaces()
		if err != nil || len(links) == 0 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
			t.Errorf("links %+v %v", links, err)
		}
		return errors.New("passed on")
	}, filepath.Join(dir, "net"), filepath.Join(dir, "uts"))
	if err == nil || err.Error() != "passed on" {
		t.Errorf("%v", err)
	}
	if hostname(t) != outside {
		t.Error("the host's name changed")
	}
	// No thread of this process is left in there.
	inside, err := os.Stat(filepath.Join(dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	link := fmt.Sprintf("net:[%d]", inside.Sys().(*syscall.Stat_t).Ino)
	timeout := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond) // nobody tells when a thread has ended
	defer tick.Stop()
	for threadsIn(link) > 0 {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%d threads are still inside", threadsIn(link))
		}
	}
}

// threadsIn counts this process's threads in a network namespace.
func threadsIn(link string) int {
	n := 0
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if got, err := os.Readlink(task); err == nil && got == link {
			n++
		}
	}
	return n
}

// TestFirstThread: however often, the process's first thread stays where it was.
func TestFirstThread(t *testing.T) {
	before := own(t, Net)
	var group sync.WaitGroup
	for range 50 {
		group.Add(1)
		go func() {
			defer group.Done()
			pin(t, []Type{Net}, nil)
		}()
	}
	group.Wait()
	if own(t, Net) != before {
		t.Error("the first thread was taken along")
	}
}

func TestPinFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	if err := Pin(dir, []Type{Net, UTS}, func() error { return errors.New("no") }); err == nil || err.Error() != "no" {
		t.Errorf("%v", err)
	}
	if err := Pin(dir, []Type{Net}, func() error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("%v", err)
	}
	if err := Pin(dir, []Type{PID}, nil); err == nil {
		t.Error("a PID namespace without a process")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if err := Do(func() error { return nil }, "/no/such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := Do(func() error { return nil }, "/etc/passwd"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}

func TestPinOf(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	path := filepath.Join(t.TempDir(), "pid")
	if err := PinOf(cmd.Process.Pid, PID, path); err != nil {
		t.Fatal(err)
	}
	if !Pinned(path) {
		t.Error("not pinned")
	}
	if err := Unpin(path); err != nil {
		t.Error(err)
	}
	if err := Unpin(path); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestSysctlNames(t *testing.T) {
	for name, want := range map[string]Type{
		"net.ipv4.ip_forward": Net, "net/ipv4/conf/eth0.1/forwarding": Net, "kernel.shmmax": IPC, "kernel.msgmax": IPC, "kernel.sem": IPC,
		"fs.mqueue.msg_max": IPC, "kernel.hostname": UTS, "vm.swappiness": "", "kernel.pid_max": "", "kernel.semaphore": "", "": "",
	} {
		if got, ok := SysctlType(name); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v", name, got, ok)
		}
	}
	for _, bad := range []string{"../../etc/passwd", "net/../../../etc/passwd", "net..core", ""} {
		if err := Sysctl(bad, "x"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
