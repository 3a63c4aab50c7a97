package claims_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/plugins"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

// driver is a DRA driver: it prepares whatever it is asked to.
type driver struct {
	drapb.UnimplementedDRAPluginServer
	registerapi.UnimplementedRegistrationServer
	info     *registerapi.PluginInfo
	statuses chan *registerapi.RegistrationStatus

	mu       sync.Mutex
	prepared map[string]int
	refuse   string
}

func (d *driver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return d.info, nil
}

func (d *driver) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	select {
	case d.statuses <- s:
	default:
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (d *driver) NodePrepareResources(_ context.Context, r *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		if d.refuse != "" {
			out.Claims[c.Uid] = &drapb.NodePrepareResourceResponse{Error: d.refuse}
			continue
		}
		d.prepared[c.Uid]++
		out.Claims[c.Uid] = &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{
			{RequestNames: []string{"one"}, PoolName: "p", DeviceName: "a", CdiDeviceIds: []string{"example.com/gpu=a"}},
			{RequestNames: []string{"two/first"}, PoolName: "p", DeviceName: "b", CdiDeviceIds: []string{"example.com/gpu=b"}}}}
	}
	return out, nil
}

func (d *driver) NodeUnprepareResources(_ context.Context, r *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		delete(d.prepared, c.Uid)
		out.Claims[c.Uid] = &drapb.NodeUnprepareResourceResponse{}
	}
	return out, nil
}

func (d *driver) has(uid string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.prepared[uid]
}

// start serves the driver at a socket until the returned function is called.
func (d *driver) start(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	drapb.RegisterDRAPluginServer(s, d)
	registerapi.RegisterRegistrationServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return func() { s.Stop(); <-done }
}

func newDriver(name string, versions ...string) *driver {
	return &driver{info: &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: name, SupportedVersions: versions},
		statuses: make(chan *registerapi.RegistrationStatus, 8), prepared: map[string]int{}}
}

// world is a node's side of claims with a store of its own.
type world struct {
	*claims.Manager
	t     *testing.T
	dir   string
	store store.Store
	stop  func()
}

// newWorld makes a Manager with a registry of plugins in dir.
func newWorld(t *testing.T, dir string, s store.Store) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m, err := claims.New(filepath.Join(dir, "state"), s.Snapshot, []string{filepath.Join(dir, "cdi")}, log)
	if err != nil {
		t.Fatal(err)
	}
	r := plugins.New(filepath.Join(dir, "reg"), map[string]plugins.Handler{plugins.DRA: m}, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w := &world{Manager: m, t: t, dir: dir, store: s}
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		m.Close()
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) put(key store.Key, o any) {
	w.t.Helper()
	if _, _, err := w.store.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: o, Expect: store.ExpectAny}}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) claim(name string, uid types.UID, pods ...*corev1.Pod) {
	c := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: uid}}
	c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{
		Results: []resourcev1.DeviceRequestAllocationResult{{Request: "one", Driver: "gpu.example.com", Pool: "p", Device: "a"}}}}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
	}
	w.put(store.Key{Resource: client.ResourceClaims.Name, Namespace: "d", Name: name}, c)
}

func pod(name, claim string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PodSpec{ResourceClaims: []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &claim}}}}
}

func (w *world) await(what string, f func() error) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestPrepare(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}, Window: 100})
	w := newWorld(t, dir, s)
	a, b := pod("a", "shared"), pod("b", "shared")
	w.claim("shared", "c1", a)

	if err := w.Prepare(ctx, b); err == nil || err.Error() != "pod b (uid-b) is not allowed to use ResourceClaim shared (c1)" {
		t.Errorf("a claim that is not reserved for the pod: %v", err)
	}
	if err := w.Prepare(ctx, a); err == nil || !strings.Contains(err.Error(), "DRA driver gpu.example.com is not registered") {
		t.Errorf("without a driver: %v", err)
	}
	d := newDriver("gpu.example.com", drapb.DRAPluginService)
	if err := os.MkdirAll(filepath.Join(dir, "reg"), 0o700); err != nil {
		t.Fatal(err)
	}
	stop := d.start(t, filepath.Join(dir, "reg", "gpu.sock"))
	if st := <-d.statuses; !st.PluginRegistered {
		t.Fatalf("not registered: %s", st.Error)
	}
	d.refuse = "it is on fire"
	if err := w.Prepare(ctx, a); err == nil || err.Error() != "NodePrepareResources failed for ResourceClaim shared: it is on fire" {
		t.Errorf("a driver that fails: %v", err)
	}
	d.mu.Lock()
	d.refuse = ""
	d.mu.Unlock()
	w.claim("shared", "c1", a, b)
	for _, p := range []*corev1.Pod{a, a, b} {
		if err := w.Prepare(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.has("c1"); n != 1 {
		t.Errorf("prepared %d times", n)
	}

	// After a restart the record stands, and a driver that comes back is asked to undo.
	w.stop()
	stop()
	w = newWorld(t, dir, s)
	if err := w.Unprepare(ctx, a.UID); err != nil {
		t.Errorf("b uses the claim too: %v", err)
	}
	if err := w.Unprepare(ctx, b.UID); err == nil {
		t.Error("undone without a driver")
	}
	stop = d.start(t, filepath.Join(dir, "reg", "gpu.sock"))
	defer stop()
	w.await("unprepare", func() error { return w.Orphans(ctx, func(types.UID) bool { return false }) })
	if n := d.has("c1"); n != 0 {
		t.Error("the claim is still prepared")
	}
	if err := w.Unprepare(ctx, b.UID); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestUnsupportedVersion(t *testing.T) {
	dir := t.TempDir()
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}, Window: 100})
	newWorld(t, dir, s)
	if err := os.MkdirAll(filepath.Join(dir, "reg"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDriver("gpu.example.com", "v9.DRAPlugin")
	defer d.start(t, filepath.Join(dir, "reg", "gpu.sock"))()
	if st := <-d.statuses; st.PluginRegistered || !strings.Contains(st.Error, "none of the provided gRPC services is supported") {
		t.Errorf("status: %v", st)
	}
}

func TestDeregister(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}, Window: 100})
	w := newWorld(t, dir, s)
	if err := os.MkdirAll(filepath.Join(dir, "reg"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDriver("gpu.example.com", "v1beta1.DRAPlugin", drapb.DRAPluginService)
	stop := d.start(t, filepath.Join(dir, "reg", "gpu.sock"))
	if st := <-d.statuses; !st.PluginRegistered {
		t.Fatal(st.Error)
	}
	p := pod("a", "mine")
	w.claim("mine", "c1", p)
	if err := w.Prepare(ctx, p); err != nil {
		t.Fatal(err)
	}
	stop() // the listener removes its socket
	w.await("deregistration", func() error {
		if err := w.Unprepare(ctx, p.UID); err == nil || !strings.Contains(err.Error(), "is not registered") {
			return errors.Join(errors.New("it is still there"), err)
		}
		return nil
	})
}

func TestInject(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := memory.New(store.Options{Stamp: func(any, store.Revision) {}, Window: 100})
	w := newWorld(t, dir, s)
	for _, sub := range []string{"reg", "cdi"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := `{"cdiVersion": "0.6.0", "kind": "example.com/gpu", "containerEdits": {"env": ["ALL=1"]}, "devices": [
		{"name": "a", "containerEdits": {"env": ["A=1"], "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/null", "permissions": "rw"}], "additionalGids": [7]}},
		{"name": "b", "containerEdits": {"mounts": [{"hostPath": "/tmp", "containerPath": "/x", "options": ["ro", "bind"]}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "cdi", "x.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDriver("gpu.example.com", drapb.DRAPluginService)
	defer d.start(t, filepath.Join(dir, "reg", "gpu.sock"))()
	<-d.statuses
	p := pod("a", "mine")
	w.claim("mine", "c1", p)
	if err := w.Prepare(ctx, p); err != nil {
		t.Fatal(err)
	}
	inject := func(use ...corev1.ResourceClaim) container.ContainerConfig {
		t.Helper()
		var cfg container.ContainerConfig
		if err := w.Inject(p, &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Claims: use}}, &cfg); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	if got := inject(); len(got.Env)+len(got.Devices) > 0 {
		t.Errorf("a container without claims gets %+v", got)
	}
	got := inject(corev1.ResourceClaim{Name: "gpu", Request: "one"})
	want := container.ContainerConfig{Env: []string{"ALL=1", "A=1"}, User: container.User{Groups: []uint32{7}},
		Devices: []container.Device{{HostPath: "/dev/null", ContainerPath: "/dev/gpu", Permissions: "rw"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("one request: %+v", got)
	}
	got = inject(corev1.ResourceClaim{Name: "gpu"})
	if len(got.Mounts) != 1 || !got.Mounts[0].ReadOnly || len(got.Env) != 2 || len(got.Devices) != 1 {
		t.Errorf("the whole claim: %+v", got)
	}
	if err := os.Remove(filepath.Join(dir, "cdi", "x.json")); err != nil {
		t.Fatal(err)
	}
	var cfg container.ContainerConfig
	err := w.Inject(p, &corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "gpu"}}}}, &cfg)
	if err == nil || !strings.Contains(err.Error(), "unresolvable CDI devices example.com/gpu=a, example.com/gpu=b") {
		t.Errorf("without a specification: %v", err)
	}
}
