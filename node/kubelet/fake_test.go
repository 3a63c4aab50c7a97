package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
)

// fakeRuntime runs commands on the host, so that streams have real processes behind them.
type fakeRuntime struct {
	container.Runtime

	mu         sync.Mutex
	containers map[string]container.ContainerStatus
	subs       map[int]func(container.Event)
	next       int
	// ended receives the context's error of each Exec that was cut short.
	ended chan error
	ports map[int]string // addresses behind the ports of the sandbox
}

func newFake() *fakeRuntime {
	return &fakeRuntime{
		containers: map[string]container.ContainerStatus{},
		subs:       map[int]func(container.Event){},
		ended:      make(chan error, 16),
		ports:      map[int]string{},
	}
}

func (f *fakeRuntime) Status() container.RuntimeStatus { return container.RuntimeStatus{Ready: true} }

func (f *fakeRuntime) Container(id string) (container.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, ok := f.containers[id]
	if !ok {
		return st, container.ErrNotFound
	}
	return st, nil
}

func (f *fakeRuntime) Subscribe(fn func(container.Event)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.next
	f.next++
	f.subs[n] = fn
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, n)
	}
}

// exit ends a container.
func (f *fakeRuntime) exit(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.containers[id]
	st.State = container.StateExited
	f.containers[id] = st
	for _, fn := range f.subs {
		fn(container.Event{Type: container.EventContainerExited, ContainerID: id})
	}
}

func (f *fakeRuntime) Exec(ctx context.Context, _ string, c container.ExecConfig, s container.Streams) (container.ExitStatus, error) {
	switch c.Args[0] {
	case "missing":
		return container.ExitStatus{}, &container.StartError{NotFound: true, Message: `exec: "missing": executable file not found in $PATH`}
	case "sizes": // prints as many terminal sizes as asked for
		n, _ := strconv.Atoi(c.Args[1])
		for range n {
			select {
			case size := <-s.Resize:
				fmt.Fprintf(s.Stdout, "%dx%d\n", size.Width, size.Height)
			case <-ctx.Done():
				return container.ExitStatus{}, ctx.Err()
			}
		}
		return container.ExitStatus{}, nil
	case "hang": // until the context ends
		fmt.Fprintln(s.Stdout, "hanging")
		<-ctx.Done()
		f.ended <- ctx.Err()
		return container.ExitStatus{}, ctx.Err()
	}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdout, cmd.Stderr = s.Stdout, s.Stderr
	if s.Stdin != nil {
		in, err := cmd.StdinPipe()
		if err != nil {
			return container.ExitStatus{}, err
		}
		go func() {
			io.Copy(in, s.Stdin)
			in.Close()
		}()
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return container.ExitStatus{Code: exit.ExitCode()}, nil
	}
	return container.ExitStatus{}, err
}

// Attach echoes.
func (f *fakeRuntime) Attach(ctx context.Context, _ string, s container.Streams) error {
	done := make(chan error, 1)
	if s.Stdin == nil {
		io.WriteString(s.Stdout, "attached\n")
		return nil
	}
	go func() {
		_, err := io.Copy(s.Stdout, s.Stdin)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		f.ended <- ctx.Err()
		return ctx.Err()
	}
}

func (f *fakeRuntime) Dial(ctx context.Context, _ string, port int) (net.Conn, error) {
	f.mu.Lock()
	addr := f.ports[port]
	f.mu.Unlock()
	if addr == "" {
		return nil, fmt.Errorf("dial tcp4 127.0.0.1:%d: connect: connection refused", port)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (f *fakeRuntime) Sandbox(id string) (container.SandboxStatus, error) {
	return container.SandboxStatus{Config: container.SandboxConfig{ID: id}, State: container.SandboxReady,
		NetNS: "/run/netns/" + id, Cgroup: "kubepods/" + id, Created: t0}, nil
}

func (f *fakeRuntime) SandboxStats(string) (container.Stats, error) {
	return container.Stats{Time: t0.Add(time.Minute), Stats: cgroup.Stats{CPUNanos: 5e9, WorkingSetBytes: 5 << 20, Pids: 3}}, nil
}

func (f *fakeRuntime) Stats(id string) (container.Stats, error) {
	return container.Stats{Time: t0.Add(time.Minute), Stats: cgroup.Stats{CPUNanos: 3e9, WorkingSetBytes: 4 << 20, MemoryBytes: 6 << 20, MemoryLimit: 10 << 20}}, nil
}

func (f *fakeRuntime) DiskUsage(context.Context, string) (container.DiskUsage, error) {
	return container.DiskUsage{Time: t0, Bytes: 4096, Inodes: 2}, nil
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var testPod = &corev1.Pod{
	ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1"},
	Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "init"}},
		Containers:     []corev1.Container{{Name: "app"}, {Name: "side"}},
	},
	Status: corev1.PodStatus{
		InitContainerStatuses: []corev1.ContainerStatus{{Name: "init", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "side", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}}},
	},
}

// serve starts the handler for testPod, whose container "app" runs as "c1".
func serve(t *testing.T, f *fakeRuntime, logPath string) (*httptest.Server, *Server) {
	t.Helper()
	f.containers["c1"] = container.ContainerStatus{
		Config:  container.ContainerConfig{ID: "c1", Image: "busybox"},
		State:   container.StateRunning,
		Started: t0,
		LogPath: logPath,
	}
	s := Handler(Config{
		NodeName: "node-a",
		Pods:     func() []*corev1.Pod { return []*corev1.Pod{testPod} },
		Pod: func(ns, name string) *corev1.Pod {
			if ns == testPod.Namespace && name == testPod.Name {
				return testPod
			}
			return nil
		},
		Sandbox: func(uid types.UID) string { return "s1" },
		Container: func(uid types.UID, name string, previous bool) string {
			if name == "app" && !previous {
				return "c1"
			}
			return ""
		},
		Runtime: f,
		Log:     slog.New(slog.DiscardHandler),
		Now:     func() time.Time { return t0.Add(time.Hour) },
	})
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		srv.Close()
	})
	return srv, s
}
