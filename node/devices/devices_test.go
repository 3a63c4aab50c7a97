package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/plugins"
)

const gpu = "example.com/gpu"

// plugin is a device plugin whose devices the test says.
type plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	server  *grpc.Server
	updates chan []*pluginapi.Device
	options *pluginapi.DevicePluginOptions

	mu      sync.Mutex
	asked   []string // "allocate a,b", "prestart a", "prefer ..."
	refuse  error
	prefers []string
	hold    chan struct{} // Allocate waits for it, if not nil
}

func (p *plugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return p.options, nil
}

func (p *plugin) ListAndWatch(_ *pluginapi.Empty, s grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		select {
		case <-s.Context().Done():
			return nil
		case d := <-p.updates:
			if err := s.Send(&pluginapi.ListAndWatchResponse{Devices: d}); err != nil {
				return err
			}
		}
	}
}

func (p *plugin) Allocate(_ context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	p.mu.Lock()
	ids := r.ContainerRequests[0].DevicesIds
	p.asked = append(p.asked, "allocate "+strings.Join(ids, ","))
	refuse, hold := p.refuse, p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if refuse != nil {
		return nil, refuse
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{
		Envs:        map[string]string{"GPUS": strings.Join(ids, ","), "PATH": "plugin"},
		Devices:     []*pluginapi.DeviceSpec{{HostPath: "/dev/zero", ContainerPath: "/dev/gpu", Permissions: "rw"}},
		Mounts:      []*pluginapi.Mount{{HostPath: "/opt/lib", ContainerPath: "/lib/gpu", ReadOnly: true}},
		CdiDevices:  []*pluginapi.CDIDevice{{Name: "example.com/gpu=a"}},
		Annotations: map[string]string{"cdi.k8s.io/x": "example.com/gpu=b,example.com/gpu=a", "other": "1"},
	}}}, nil
}

func (p *plugin) GetPreferredAllocation(_ context.Context, r *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := r.ContainerRequests[0]
	p.asked = append(p.asked, fmt.Sprintf("prefer %d of %s with %s", c.AllocationSize, strings.Join(c.AvailableDeviceIDs, ","), strings.Join(c.MustIncludeDeviceIDs, ",")))
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{{DeviceIDs: p.prefers}}}, nil
}

func (p *plugin) PreStartContainer(_ context.Context, r *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, "prestart "+strings.Join(r.DevicesIds, ","))
	return &pluginapi.PreStartContainerResponse{}, p.refuse
}

func (p *plugin) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.asked, "; ")
}

func (p *plugin) say(devices string) {
	var list []*pluginapi.Device
	for _, id := range strings.Fields(devices) {
		d := &pluginapi.Device{ID: strings.Trim(id, "!"), Health: pluginapi.Healthy, Topology: &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: 1}}}}
		if strings.HasSuffix(id, "!") {
			d.Health = pluginapi.Unhealthy
		}
		list = append(list, d)
	}
	p.updates <- list
}

// rig is a Manager that runs, in a directory of its own.
type rig struct {
	*Manager
	t      *testing.T
	cfg    Config
	stop   func()
	events chan types.UID
}

func newRig(t *testing.T) *rig {
	dir, err := os.MkdirTemp("", "dev") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, events: make(chan types.UID, 100)}
	r.cfg = Config{Dir: filepath.Join(dir, "device-plugins"), Record: filepath.Join(dir, "devices.json"), CDIDirs: []string{filepath.Join(dir, "cdi")},
		Log: slog.New(slog.DiscardHandler), PodChanged: func(uid types.UID) { r.events <- uid }}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) start() {
	m, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	r.Manager = m
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		m.Close()
		r.stop = func() {}
	}
	r.until("kubelet.sock", func() bool {
		c, err := net.Dial("unix", filepath.Join(r.cfg.Dir, "kubelet.sock"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// until waits for a condition.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.After(30 * time.Second)
	for !f() {
		select {
		case <-deadline:
			r.t.Fatalf("%s: not within 30 s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// plug starts a plugin and registers it.
func (r *rig) plug(name, socket, devices string, options *pluginapi.DevicePluginOptions) *plugin {
	r.t.Helper()
	p := &plugin{updates: make(chan []*pluginapi.Device), options: options, server: grpc.NewServer()}
	l, err := net.Listen("unix", filepath.Join(r.cfg.Dir, socket))
	if err != nil {
		r.t.Fatal(err)
	}
	pluginapi.RegisterDevicePluginServer(p.server, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = p.server.Serve(l) }()
	r.t.Cleanup(func() { p.server.Stop(); <-done })
	if err := r.register(pluginapi.Version, name, socket); err != nil {
		r.t.Fatal(err)
	}
	p.say(devices)
	r.until("devices of "+name, func() bool {
		capacity, _ := r.Capacity()
		return capacity.Name(corev1.ResourceName(name), resource.DecimalSI).Value() == int64(len(strings.Fields(devices)))
	})
	return p
}

func (r *rig) register(version, name, socket string) error {
	conn, err := plugins.Dial(filepath.Join(r.cfg.Dir, "kubelet.sock"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = pluginapi.NewRegistrationClient(conn).Register(context.Background(), &pluginapi.RegisterRequest{Version: version, Endpoint: socket, ResourceName: name})
	return err
}

func (r *rig) amounts() string {
	capacity, allocatable := r.Capacity()
	var all []string
	for name, q := range capacity {
		a := allocatable[name]
		all = append(all, fmt.Sprintf("%s %d/%d", name, a.Value(), q.Value()))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// pod asks for devices: "i:1 s*:1 a=2" are an init container, a sidecar, a container.
func pod(uid, text string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "default", UID: types.UID(uid)}}
	for _, one := range strings.Fields(text) {
		name, count, main := strings.Cut(one, "=")
		if !main {
			name, count, _ = strings.Cut(one, ":")
		}
		c := corev1.Container{Name: strings.TrimSuffix(name, "*"), Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{gpu: resource.MustParse(count)}}}
		if strings.HasSuffix(name, "*") {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		if main {
			p.Spec.Containers = append(p.Spec.Containers, c)
		} else {
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		}
	}
	return p
}

func all(types.UID) bool { return true }

func (r *rig) has(uid, container string) string {
	var ids []string
	for _, h := range r.Of(types.UID(uid), container) {
		ids = append(ids, h.ID)
	}
	return strings.Join(ids, ",")
}

func TestRegistration(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ version, name, want string }{
		{"v1", gpu, `requested API version "v1" is not supported by kubelet. Supported version is ["v1beta1"]`},
		{"v1beta1", "cpu", `the ResourceName "cpu" is invalid`},
		{"v1beta1", "x.kubernetes.io/y", `the ResourceName "x.kubernetes.io/y" is invalid`},
	} {
		if err := r.register(c.version, c.name, "none.sock"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.version, c.name, err)
		}
	}
	p := r.plug(gpu, "gpu.sock", "a b c!", nil)
	if got := r.amounts(); got != "example.com/gpu 2/3" {
		t.Errorf("amounts: %s", got)
	}
	p.say("a! b c!")
	r.until("one left", func() bool { return r.amounts() == "example.com/gpu 1/3" })
	// A plugin that is gone leaves its devices unhealthy.
	p.server.Stop()
	r.until("none left", func() bool { return r.amounts() == "example.com/gpu 0/3" })
	r.forget(gpu)
	if got := r.amounts(); got != "example.com/gpu 0/0" {
		t.Errorf("after the grace: %s", got)
	}
	r.plug(gpu, "again.sock", "a", nil)
	r.until("back", func() bool { return r.amounts() == "example.com/gpu 1/1" })
}

func TestAllocation(t *testing.T) {
	r := newRig(t)
	p := r.plug(gpu, "gpu.sock", "a b c d!", nil)
	ctx := context.Background()
	one := pod("one", "i:2 s*:1 main=1")
	if !r.Uses(one) || r.Uses(pod("none", "")) {
		t.Error("who uses devices")
	}
	if err := r.Allocate(ctx, one, all); err != nil {
		t.Fatal(err)
	}
	// The sidecar takes one of the init container's, the container the other.
	if got := r.has("one", "i") + " " + r.has("one", "s") + " " + r.has("one", "main"); got != "a,b a b" {
		t.Errorf("has %s", got)
	}
	if err := r.Allocate(ctx, one, all); err != nil || p.log() != "allocate a,b; allocate a; allocate b" {
		t.Errorf("again: %v, asked %s", err, p.log())
	}
	if err := r.Allocate(ctx, pod("one", "i:2 s*:1 main=2"), all); err == nil || err.Error() != `pod "one" container "main" changed request for resource "example.com/gpu" from 1 to 2` {
		t.Errorf("changed: %v", err)
	}
	if err := r.Allocate(ctx, pod("two", "main=2"), all); err == nil || err.Error() != "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1" {
		t.Errorf("too many: %v", err)
	}
	// What a pod has that is on its way out is waited for.
	two := pod("two", "main=2")
	if err := r.Allocate(ctx, two, func(uid types.UID) bool { return uid != "one" }); !errors.Is(err, ErrLater) {
		t.Errorf("later: %v", err)
	}
	if err := r.Release("one"); err != nil {
		t.Fatal(err)
	}
	if got := <-r.events; got != "two" {
		t.Errorf("woken: %s", got)
	}
	if err := r.Allocate(ctx, two, all); err != nil || r.has("two", "main") != "a,b" {
		t.Errorf("two: %v, has %s", err, r.has("two", "main"))
	}
	want := []Held{{gpu, "a", []int64{1}}, {gpu, "b", []int64{1}}}
	if got := r.Of("two", "main"); !reflect.DeepEqual(got, want) {
		t.Errorf("held: %v", got)
	}
	if got := r.Allocatable(); len(got) != 3 {
		t.Errorf("allocatable: %v", got)
	}
	// A plugin that refuses leaves nothing taken.
	p.mu.Lock()
	p.refuse = errors.New("broken")
	p.mu.Unlock()
	if err := r.Allocate(ctx, pod("three", "main=1"), all); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("refused: %v", err)
	}
	p.mu.Lock()
	p.refuse = nil
	p.mu.Unlock()
	if err := r.Allocate(ctx, pod("three", "main=1"), all); err != nil || r.has("three", "main") != "c" {
		t.Errorf("three: %v, has %s", err, r.has("three", "main"))
	}
	if err := r.Orphans(func(uid types.UID) bool { return uid == "two" }); err != nil || r.has("three", "main") != "" || r.has("two", "main") == "" {
		t.Errorf("orphans: %v", err)
	}
	// What a claim gives is not asked of a plugin.
	claimed := pod("claimed", "main=1")
	claimed.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "c",
		RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: "main", ResourceName: gpu, RequestName: "r"}}}
	if r.Uses(claimed) {
		t.Error("a claim's resource is asked of a plugin")
	}
}

func TestPreference(t *testing.T) {
	r := newRig(t)
	p := r.plug(gpu, "gpu.sock", "a b c d", &pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true})
	p.prefers = []string{"d", "x", "c"}
	if err := r.Allocate(context.Background(), pod("one", "i:1 main=3"), all); err != nil {
		t.Fatal(err)
	}
	if got, want := p.log(), "prefer 1 of a,b,c,d with ; allocate d; prefer 3 of a,b,c,d with d; allocate a,c,d"; got != want {
		t.Errorf("asked %s\nwant  %s", got, want)
	}
}

// TestSideBySide checks that pods that come at one time never share a device.
func TestSideBySide(t *testing.T) {
	r := newRig(t)
	p := r.plug(gpu, "gpu.sock", "a b c d", nil)
	p.hold = make(chan struct{})
	errs := make(chan error, 5)
	for i := range 5 {
		go func() { errs <- r.Allocate(context.Background(), pod(fmt.Sprint(i), "main=1"), all) }()
	}
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "unavailable") {
		t.Errorf("the fifth: %v", err)
	}
	close(p.hold)
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	seen := map[string]bool{}
	for i := range 5 {
		if id := r.has(fmt.Sprint(i), "main"); id != "" {
			if seen[id] {
				t.Errorf("%s is given twice", id)
			}
			seen[id] = true
		}
	}
	if len(seen) != 4 {
		t.Errorf("given: %v", seen)
	}
}

func TestInject(t *testing.T) {
	r := newRig(t)
	if err := os.Mkdir(r.cfg.CDIDirs[0], 0o755); err != nil {
		t.Fatal(err)
	}
	spec := `{"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [{"name": "a", "containerEdits": {"env": ["CDI_A=1"]}}, {"name": "b", "containerEdits": {"env": ["CDI_B=1"]}}]}`
	if err := os.WriteFile(filepath.Join(r.cfg.CDIDirs[0], "gpu.json"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	p := r.plug(gpu, "gpu.sock", "a b", &pluginapi.DevicePluginOptions{PreStartRequired: true})
	one := pod("one", "main=1")
	if err := r.Allocate(context.Background(), one, all); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		cfg := container.ContainerConfig{Env: []string{"PATH=pod"}}
		if err := r.Inject(context.Background(), one, &one.Spec.Containers[0], &cfg); err != nil {
			t.Fatal(err)
		}
		want := container.ContainerConfig{
			Env:         []string{"GPUS=a", "PATH=plugin", "PATH=pod", "CDI_A=1", "CDI_B=1"},
			Devices:     []container.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/gpu", Permissions: "rw"}},
			Mounts:      []container.Mount{{HostPath: "/opt/lib", ContainerPath: "/lib/gpu", ReadOnly: true}},
			Annotations: map[string]string{"cdi.k8s.io/x": "example.com/gpu=b,example.com/gpu=a", "other": "1"},
		}
		if !reflect.DeepEqual(cfg, want) {
			t.Errorf("got  %+v\nwant %+v", cfg, want)
		}
	}
	check()
	if got := p.log(); got != "allocate a; prestart a" {
		t.Errorf("asked %s", got)
	}
	other := container.ContainerConfig{}
	if err := r.Inject(context.Background(), pod("none", "main=1"), &one.Spec.Containers[0], &other); err != nil || len(other.Env) != 0 {
		t.Errorf("nothing to inject: %v, %+v", err, other)
	}
	p.mu.Lock()
	p.refuse = errors.New("not ready")
	p.mu.Unlock()
	if err := r.Inject(context.Background(), one, &one.Spec.Containers[0], &other); err == nil || !strings.Contains(err.Error(), "device plugin PreStartContainer rpc failed with err:") {
		t.Errorf("refused: %v", err)
	}
	// Over a restart, what was given stays; the node has none to offer until the plugin is back.
	r.stop()
	r.start()
	if got := r.amounts(); got != "example.com/gpu 0/0" {
		t.Errorf("after a restart: %s", got)
	}
	check()
	if err := r.Allocate(context.Background(), one, all); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := r.Allocate(context.Background(), pod("two", "main=1"), all); err == nil || err.Error() != "no healthy devices present; cannot allocate unhealthy devices example.com/gpu" {
		t.Errorf("without plugin: %v", err)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t)
	p := r.plug(gpu, "gpu.sock", "a b", nil)
	if err := r.Allocate(context.Background(), pod("one", "main=2"), all); err != nil {
		t.Fatal(err)
	}
	want := []corev1.ResourceStatus{{Name: gpu, Resources: []corev1.ResourceHealth{{ResourceID: "a", Health: "Healthy"}, {ResourceID: "b", Health: "Healthy"}}}}
	if got := r.Health("one", "main"); !reflect.DeepEqual(got, want) {
		t.Errorf("health: %+v", got)
	}
	p.say("a b!")
	if got := <-r.events; got != "one" {
		t.Errorf("told %s", got)
	}
	want[0].Resources[1].Health = "Unhealthy"
	if got := r.Health("one", "main"); !reflect.DeepEqual(got, want) {
		t.Errorf("health: %+v", got)
	}
	p.server.Stop()
	<-r.events
	want[0].Resources[0].Health = "Unhealthy"
	if got := r.Health("one", "main"); !reflect.DeepEqual(got, want) {
		t.Errorf("health without plugin: %+v", got)
	}
	if got := r.Health("one", "other"); got != nil {
		t.Errorf("another container: %+v", got)
	}
}

func TestSocketOfItsOwn(t *testing.T) {
	r := newRig(t)
	s := Sockets{r.Manager}
	p := plugins.Plugin{Type: plugins.Device, Name: "cpu", Versions: []string{"v1beta1"}}
	if err := s.Register(context.Background(), p); err == nil || err.Error() != `invalid name of device plugin socket: the ResourceName "cpu" is invalid` {
		t.Errorf("name: %v", err)
	}
	p.Versions = []string{"v2"}
	if err := s.Register(context.Background(), p); err == nil || err.Error() != "manager version, v1beta1, is not among plugin supported versions [v2]" {
		t.Errorf("version: %v", err)
	}
	r.plug(gpu, "gpu.sock", "a", nil)
	s.Deregister(plugins.Plugin{Type: plugins.Device, Name: gpu, Endpoint: filepath.Join(r.cfg.Dir, "gpu.sock")})
	r.until("gone", func() bool { return r.amounts() == "example.com/gpu 0/1" })
}
