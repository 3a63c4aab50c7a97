package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/linux/cgroup"
	"coracle.dev/coracle/volume"
)

// fakeRuntime plays containers by their command line:
//
//	run               runs until it is stopped, then exits with 143
//	stubborn          runs until it is killed (137)
//	exit CODE [AFTER] exits
//	noexec            cannot be executed
//
// A method that it lacks panics.
type fakeRuntime struct {
	container.Runtime
	images *fakeImages

	mu         sync.Mutex
	sandboxes  map[string]*container.SandboxStatus
	order      []string
	containers map[string]*fakeContainer
	fns        map[int]func(container.Event)
	seq        int
	log        []string // what was done, in order: "start web", "stop web TERM"
	events     chan container.Event
	// exec answers Exec: exit code and output.
	exec func(name string, args []string) (int, string)
	// refuse makes CreateSandbox fail.
	refuse  error
	written uint64 // by each container
	updates []string
}

type fakeContainer struct {
	container.ContainerStatus
	seq    int
	exited chan struct{}
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{
		images:    &fakeImages{present: map[string]container.Image{}},
		sandboxes: map[string]*container.SandboxStatus{}, containers: map[string]*fakeContainer{},
		fns: map[int]func(container.Event){},
	}
}

func (f *fakeRuntime) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fakeRuntime) emit(ev container.Event) {
	f.mu.Lock()
	fns := make([]func(container.Event), 0, len(f.fns))
	for _, fn := range f.fns {
		fns = append(fns, fn)
	}
	f.mu.Unlock()
	for _, fn := range fns {
		fn(ev)
	}
}

func (f *fakeRuntime) Images() container.Images { return f.images }

func (f *fakeRuntime) CreateSandbox(_ context.Context, c container.SandboxConfig) (container.SandboxStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return container.SandboxStatus{}, f.refuse
	}
	st := &container.SandboxStatus{Config: c, State: container.SandboxReady, Created: time.Now(), NetNS: "/run/netns/" + c.ID}
	if c.Namespaces.Net == container.NamespaceHost {
		st.NetNS = ""
	}
	f.sandboxes[c.ID] = st
	f.order = append(f.order, c.ID)
	f.note("sandbox")
	return *st, nil
}

func (f *fakeRuntime) RemoveSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sandboxes[id] == nil {
		return nil
	}
	for cid, c := range f.containers {
		if c.Config.SandboxID == id {
			if c.State == container.StateRunning {
				f.end(c, 137, 9)
			}
			delete(f.containers, cid)
		}
	}
	delete(f.sandboxes, id)
	f.note("remove sandbox")
	return nil
}

func (f *fakeRuntime) Sandbox(id string) (container.SandboxStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[id]; s != nil {
		return *s, nil
	}
	return container.SandboxStatus{}, container.ErrNotFound
}

func (f *fakeRuntime) Sandboxes() []container.SandboxStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []container.SandboxStatus
	for _, id := range f.order {
		if s := f.sandboxes[id]; s != nil {
			out = append(out, *s)
		}
	}
	return out
}

func (f *fakeRuntime) UpdateSandbox(_ context.Context, id string, res cgroup.Resources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updates = append(f.updates, fmt.Sprintf("sandbox shares=%d", res.CPUShares))
	return nil
}

func (f *fakeRuntime) UpdateContainer(_ context.Context, id string, res cgroup.Resources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.updates = append(f.updates, fmt.Sprintf("container shares=%d quota=%d memory=%d", res.CPUShares, res.CPUQuota, res.Memory))
	return nil
}

func (f *fakeRuntime) CreateContainer(_ context.Context, c container.ContainerConfig) (container.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sandboxes[c.SandboxID] == nil {
		return container.ContainerStatus{}, container.ErrNotFound
	}
	f.seq++
	fc := &fakeContainer{seq: f.seq, exited: make(chan struct{})}
	fc.ContainerStatus = container.ContainerStatus{Config: c, State: container.StateCreated, Created: time.Now(), ImageID: c.Image}
	f.containers[c.ID] = fc
	return fc.ContainerStatus, nil
}

func nameOf(c *fakeContainer) string { return c.Config.Labels["io.kubernetes.container.name"] }

func (f *fakeRuntime) Start(_ context.Context, id string) error {
	f.mu.Lock()
	c := f.containers[id]
	if c == nil {
		f.mu.Unlock()
		return container.ErrNotFound
	}
	f.note("start %s", nameOf(c))
	if c.Config.Args[0] == "noexec" {
		c.State, c.Exit = container.StateExited, container.ExitStatus{Code: 128, Time: time.Now()}
		c.Reason, c.Message = container.ReasonStartError, "no such file"
		f.mu.Unlock()
		return &container.StartError{NotFound: true, Message: "no such file"}
	}
	c.State, c.Started = container.StateRunning, time.Now()
	args := c.Config.Args
	f.mu.Unlock()
	if args[0] == "exit" {
		code, _ := strconv.Atoi(args[1])
		after := time.Duration(0)
		if len(args) > 2 {
			after, _ = time.ParseDuration(args[2])
		}
		time.AfterFunc(after, func() { f.exit(id, code, 0) })
	}
	return nil
}

// exit ends a container of that ID.
func (f *fakeRuntime) exit(id string, code, signal int) {
	f.mu.Lock()
	c := f.containers[id]
	if c == nil || c.State != container.StateRunning {
		f.mu.Unlock()
		return
	}
	f.end(c, code, signal)
	sandbox := c.Config.SandboxID
	f.mu.Unlock()
	f.emit(container.Event{Type: container.EventContainerExited, SandboxID: sandbox, ContainerID: id, Time: time.Now()})
}

func (f *fakeRuntime) end(c *fakeContainer, code, signal int) {
	c.State, c.Exit = container.StateExited, container.ExitStatus{Code: code, Signal: signal, Time: time.Now()}
	c.Reason = container.ReasonError
	if code == 0 {
		c.Reason = container.ReasonCompleted
	}
	close(c.exited)
}

func (f *fakeRuntime) Stop(ctx context.Context, id, signal string, grace time.Duration) error {
	f.mu.Lock()
	c := f.containers[id]
	if c == nil {
		f.mu.Unlock()
		return container.ErrNotFound
	}
	if c.State != container.StateRunning {
		f.mu.Unlock()
		return nil
	}
	f.note("stop %s %v", nameOf(c), grace)
	stubborn := c.Config.Args[0] == "stubborn"
	f.mu.Unlock()
	if !stubborn {
		f.exit(id, 143, 15)
		return nil
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-t.C:
		f.mu.Lock()
		f.note("kill %s", nameOf(c))
		f.mu.Unlock()
		f.exit(id, 137, 9)
		return nil
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeRuntime) Remove(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
	return nil
}

func (f *fakeRuntime) Container(id string) (container.ContainerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return c.ContainerStatus, nil
	}
	return container.ContainerStatus{}, container.ErrNotFound
}

func (f *fakeRuntime) Containers(sandboxID string) []container.ContainerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []container.ContainerStatus
	for seq := 1; seq <= f.seq; seq++ {
		for _, c := range f.containers {
			if c.seq == seq && (sandboxID == "" || c.Config.SandboxID == sandboxID) {
				out = append(out, c.ContainerStatus)
			}
		}
	}
	return out
}

func (f *fakeRuntime) Exec(ctx context.Context, id string, cfg container.ExecConfig, s container.Streams) (container.ExitStatus, error) {
	f.mu.Lock()
	c, exec := f.containers[id], f.exec
	f.mu.Unlock()
	if c == nil || c.State != container.StateRunning {
		return container.ExitStatus{}, container.ErrNotRunning
	}
	if cfg.Args[0] == "hang" {
		<-ctx.Done()
		return container.ExitStatus{}, ctx.Err()
	}
	if cfg.Args[0] == "sleep" {
		d, _ := time.ParseDuration(cfg.Args[1])
		select {
		case <-time.After(d):
			return container.ExitStatus{}, nil
		case <-ctx.Done():
			return container.ExitStatus{}, ctx.Err()
		}
	}
	code, out := 0, ""
	if exec != nil {
		code, out = exec(nameOf(c), cfg.Args)
	}
	io.WriteString(s.Stdout, out)
	return container.ExitStatus{Code: code, Time: time.Now()}, nil
}

func (f *fakeRuntime) Subscribe(fn func(container.Event)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seq++
	key := f.seq
	f.fns[key] = fn
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.fns, key)
	}
}

func (f *fakeRuntime) Status() container.RuntimeStatus {
	return container.RuntimeStatus{Name: "fake", Version: "1.0", Ready: true}
}

func (f *fakeRuntime) DiskUsage(context.Context, string) (container.DiskUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return container.DiskUsage{Bytes: f.written}, nil
}

// byName gives the newest container of that name, nil if there is none.
func (f *fakeRuntime) byName(name string) *container.ContainerStatus {
	list := f.Containers("")
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Config.Labels["io.kubernetes.container.name"] == name {
			return &list[i]
		}
	}
	return nil
}

// took gives what was done since the last call.
func (f *fakeRuntime) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.log
	f.log = nil
	return out
}

// fakeImages has images that are present, and others that can be pulled.
type fakeImages struct {
	container.Images
	mu      sync.Mutex
	present map[string]container.Image
	// pull answers Pull; nil pulls anything.
	pull  func(ref string) error
	pulls []string
	auths [][]container.Auth
}

func (f *fakeImages) Resolve(ref string) (container.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.ToLower(ref) != ref {
		return container.Image{}, &container.PullError{Ref: ref, Kind: container.PullInvalidName, Err: fmt.Errorf("could not parse reference")}
	}
	if img, ok := f.present[ref]; ok {
		return img, nil
	}
	return container.Image{}, container.ErrImageNotFound
}

func (f *fakeImages) Pull(_ context.Context, ref string, opts container.PullOptions) (container.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pulls = append(f.pulls, ref)
	f.auths = append(f.auths, opts.Auths)
	if f.pull != nil {
		if err := f.pull(ref); err != nil {
			return container.Image{}, &container.PullError{Ref: ref, Kind: container.PullNotFound, Err: err}
		}
	}
	img := container.Image{ID: "sha256:" + ref, Names: []string{ref}, Size: 1234}
	f.present[ref] = img
	return img, nil
}

func (f *fakeImages) List() []container.Image { return nil }

// fakeVolumes gives every volume an empty directory.
type fakeVolumes struct {
	root string

	mu         sync.Mutex
	fail       error
	slow       chan struct{} // Prepare waits for it, having seen whether it fails
	unprepared []types.UID
	usages     []volume.Usage
	measured   int
}

func (f *fakeVolumes) Prepare(_ context.Context, pod *corev1.Pod) (map[string]volume.Mount, error) {
	f.mu.Lock()
	err, slow := f.fail, f.slow
	f.mu.Unlock()
	if slow != nil {
		<-slow
	}
	if err != nil {
		return nil, err
	}
	out := map[string]volume.Mount{}
	for _, v := range pod.Spec.Volumes {
		out[v.Name] = volume.Mount{HostPath: filepath.Join(f.PodDir(pod.UID), "volumes", v.Name)}
	}
	return out, nil
}

func (f *fakeVolumes) SubPath(_ context.Context, _ types.UID, m volume.Mount, _, _ string, _ int, sub string) (string, error) {
	return filepath.Join(m.HostPath, sub), nil
}

func (f *fakeVolumes) Unprepare(_ context.Context, uid types.UID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unprepared = append(f.unprepared, uid)
	return os.RemoveAll(f.PodDir(uid))
}

func (f *fakeVolumes) Orphans(_ context.Context, keep func(types.UID) bool) ([]types.UID, error) {
	return nil, nil
}

func (f *fakeVolumes) Usages(context.Context, types.UID) ([]volume.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.measured++
	return f.usages, nil
}

func (f *fakeVolumes) PodDir(uid types.UID) string { return filepath.Join(f.root, string(uid)) }

// fakeNetwork gives addresses in order.
type fakeNetwork struct {
	mu   sync.Mutex
	addr map[string]netip.Addr
	next netip.Addr
	fail error
}

func (f *fakeNetwork) Attach(_ context.Context, sandboxID, netns, _ string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	if f.addr == nil {
		f.addr, f.next = map[string]netip.Addr{}, netip.MustParseAddr("10.1.0.2")
	}
	if _, ok := f.addr[sandboxID]; !ok {
		f.addr[sandboxID] = f.next
		f.next = f.next.Next()
	}
	return []netip.Addr{f.addr[sandboxID]}, nil
}

func (f *fakeNetwork) Detach(_ context.Context, sandboxID, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.addr, sandboxID)
	return nil
}

func (f *fakeNetwork) attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.addr)
}

// GC removes nothing: how full the disk of the machine is that runs the test does not matter.
func (f *fakeImages) GC(context.Context, container.GCPolicy) (container.GCResult, error) {
	return container.GCResult{}, nil
}
