package process

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // unless the test has
	})
	return cmd
}

func handle(t *testing.T, pid int) *Handle {
	t.Helper()
	h, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestWait(t *testing.T) {
	cmd := sleeper(t)
	h := handle(t, cmd.Process.Pid)
	type result struct {
		status unix.WaitStatus
		err    error
	}
	done := make(chan result, 1)
	go func() {
		status, err := h.Wait()
		done <- result{status, err}
	}()
	if h.Gone(time.Millisecond) {
		t.Error("it is gone")
	}
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Gone's deadline applies to both, so the wait may have ended with it.
	r := <-done
	if errors.Is(r.err, os.ErrDeadlineExceeded) {
		if !handle(t, cmd.Process.Pid).Gone(10 * time.Second) {
			t.Fatal("it does not end")
		}
		r.status, r.err = handle(t, cmd.Process.Pid).Wait()
	}
	if r.err != nil || !r.status.Signaled() || r.status.Signal() != unix.SIGTERM {
		t.Errorf("%v %v", r.status, r.err)
	}
	if err := h.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal to what is gone: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); err == nil {
		t.Error("a handle of nothing")
	}
}

func TestCloseEndsWait(t *testing.T) {
	h := handle(t, sleeper(t).Process.Pid)
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		done <- h.Done()
	}()
	<-started
	h.Close()
	if err := <-done; err == nil {
		t.Error("a wait that was given up reports an exit")
	}
}

func TestStartTime(t *testing.T) {
	a, err := StartTime(os.Getpid())
	if err != nil || a == 0 {
		t.Fatal(a, err)
	}
	b, err := StartTime(sleeper(t).Process.Pid)
	if err != nil || b < a {
		t.Errorf("a child started at %d, its parent at %d (%v)", b, a, err)
	}
	if _, err := StartTime(1 << 30); err == nil {
		t.Error("the start of nothing")
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]unix.Signal{
		"SIGTERM": unix.SIGTERM, "TERM": unix.SIGTERM, "term": unix.SIGTERM, "15": unix.SIGTERM, "SIGRTMIN+3": 37, "rtmin": 34,
		"SIGRTMAX-1": 63, "SIGRTMAX": 64, "64": 64, "usr1": unix.SIGUSR1,
		"": 0, "0": 0, "65": 0, "-1": 0, "SIGNOTHING": 0, "SIGRTMIN+31": 0, "SIGRTMIN3": 0, "SIGRTMAX+1": 0, "RTMIN+x": 0,
	} {
		got, err := ParseSignal(in)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
}

func TestSealed(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Sealed("test", program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut")
	}
	cmd := &exec.Cmd{Path: "/proc/self/fd/3", ExtraFiles: []*os.File{f}, Args: []string{"true"}}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func TestClamp(t *testing.T) {
	own, err := OOMScoreAdj()
	if err != nil {
		t.Fatal(err)
	}
	if got, clamped := ClampOOMScoreAdj(own); got != own || clamped {
		t.Errorf("%d %v", got, clamped)
	}
	got, clamped := ClampOOMScoreAdj(-1000)
	if has := HasCapability(unix.CAP_SYS_RESOURCE); clamped == has || (!has && got != own) || (has && got != -1000) {
		t.Errorf("%d %v with the capability: %v", got, clamped, has)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	s, h, clamped := ClampRlimit(unix.RLIMIT_NOFILE, limit.Max+5, limit.Max+10)
	if has := HasCapability(unix.CAP_SYS_RESOURCE); clamped == has || (!has && (s != limit.Max || h != limit.Max)) {
		t.Errorf("%d %d %v", s, h, clamped)
	}
	if s, h, clamped := ClampRlimit(unix.RLIMIT_NOFILE, 5, 10); s != 5 || h != 10 || clamped {
		t.Errorf("%d %d %v", s, h, clamped)
	}
}

func TestZombie(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !handle(t, cmd.Process.Pid).Gone(10 * time.Second) {
		t.Fatal("true does not end")
	}
	// Other tests leave none behind, so that it is the first.
	pid, err := NextZombie()
	if err != nil || pid != cmd.Process.Pid {
		t.Errorf("%d %v, want %d", pid, err, cmd.Process.Pid)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
