// Package devices offers the devices of device plugins as extended resources of a node, and gives them to containers
// (https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/, API v1beta1).
//
// It owns which device belongs to which container, a record that survives restarts. It admits no pods, and starts no containers.
package devices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"coracle.dev/coracle/api/validate"
	"coracle.dev/coracle/node/plugins"
)

// How long things may take.
const (
	// callTimeout bounds a call of a plugin, preStartTimeout that of PreStartContainer (as upstream).
	callTimeout     = 10 * time.Second
	preStartTimeout = pluginapi.KubeletPreStartContainerRPCTimeoutInSecs * time.Second
	// stopGrace is how long the devices of a resource without plugins count as the node's, though as unhealthy.
	stopGrace = 5 * time.Minute
)

// maxDevices bounds how many devices of one resource are taken note of.
const maxDevices = 10_000

// Config is what a Manager needs.
type Config struct {
	// Dir is where plugins find kubelet.sock and put their own sockets ("device-plugins").
	Dir string
	// Record is the file in which it is kept who has which device.
	Record string
	// CDIDirs are where CDI specifications are.
	CDIDirs []string
	// Changed is called when there are other devices than before. It must not block.
	Changed func()
	// PodChanged is called when the health of a pod's devices has changed, or devices may be free that it waits for. It must not block.
	PodChanged func(types.UID)
	Log        *slog.Logger
}

// Manager knows plugins, devices and who has them. Make it with New; its methods are safe for concurrent use.
type Manager struct {
	pluginapi.UnimplementedRegistrationServer
	cfg Config

	// ctx ends with Close; running are the watches of plugins.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex // guards what follows; not held during calls
	resources map[string]*pool
	pods      map[types.UID]containers
	waiting   map[types.UID]bool // pods for which there were too few devices
}

// containers are the devices of a pod, by container and resource.
type containers map[string]map[string]*allotment

// allotment are the devices of one resource that a container has, with what their plugin said to make of them.
type allotment struct {
	Devices  []string                             `json:"devices"`
	Response *pluginapi.ContainerAllocateResponse `json:"response"`
	// Numa are the NUMA nodes of the devices, where a plugin says so.
	Numa map[string][]int64 `json:"numa,omitempty"`
}

// pool are the devices of one resource.
type pool struct {
	devices map[string]*pluginapi.Device
	// plugins that are connected; the newest, which is last, is asked.
	plugins []*endpoint
	// ends forgets the devices some time after the last plugin has gone.
	ends *time.Timer
	// asking are devices that are meant for a container, while their plugin is asked, by the pod's UID.
	asking map[string]types.UID
}

// endpoint is a plugin.
type endpoint struct {
	socket  string
	conn    *grpc.ClientConn
	client  pluginapi.DevicePluginClient
	options *pluginapi.DevicePluginOptions
	cancel  context.CancelFunc
}

// saved is the record.
type saved struct {
	Pods map[types.UID]containers `json:"pods"`
	// Resources are those that there were plugins for: the node says that it has none of them until there are again.
	Resources []string `json:"resources"`
}

// New opens the record. Close ends all that the Manager has begun.
func New(cfg Config) (*Manager, error) {
	m := &Manager{cfg: cfg, resources: map[string]*pool{}, pods: map[types.UID]containers{}, waiting: map[types.UID]bool{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	data, err := os.ReadFile(cfg.Record)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Record, err)
	}
	if s.Pods != nil {
		m.pods = s.Pods
	}
	for _, name := range s.Resources {
		m.resources[name] = newPool()
	}
	return m, nil
}

func newPool() *pool {
	return &pool{devices: map[string]*pluginapi.Device{}, asking: map[string]types.UID{}}
}

// Close ends the connections to plugins and waits until nothing is under way.
func (m *Manager) Close() {
	m.cancel()
	m.mu.Lock()
	for _, p := range m.resources {
		for _, e := range p.plugins {
			e.cancel()
		}
		if p.ends != nil {
			p.ends.Stop()
		}
	}
	m.mu.Unlock()
	m.running.Wait()
}

// Run serves the registration of plugins at kubelet.sock until ctx is done. Sockets that an earlier run has left are removed: plugins take
// that as the sign to register again.
func (m *Manager) Run(ctx context.Context) error {
	if err := os.MkdirAll(m.cfg.Dir, 0o750); err != nil {
		return err
	}
	if err := removeSockets(m.cfg.Dir); err != nil {
		return err
	}
	server := grpc.NewServer()
	pluginapi.RegisterRegistrationServer(server, m)
	plugins.Serve(ctx, filepath.Join(m.cfg.Dir, "kubelet.sock"), server, m.cfg.Log)
	return nil
}

func removeSockets(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Type()&fs.ModeSocket != 0 {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Register (gRPC) takes a plugin that asks for it at kubelet.sock.
func (m *Manager) Register(ctx context.Context, r *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	switch {
	case r.Version != pluginapi.Version:
		return nil, fmt.Errorf("requested API version %q is not supported by kubelet. Supported version is %q", r.Version, pluginapi.SupportedVersions)
	case !validate.ExtendedResource(corev1.ResourceName(r.ResourceName)):
		return nil, fmt.Errorf("the ResourceName %q is invalid", r.ResourceName)
	}
	if err := m.connect(ctx, r.ResourceName, filepath.Join(m.cfg.Dir, r.Endpoint)); err != nil {
		m.cfg.Log.Warn("device plugin could not be taken", "resource", r.ResourceName, "err", err)
		return nil, err
	}
	return &pluginapi.Empty{}, nil
}

// Sockets takes plugins that register by a socket of their own in plugins_registry.
type Sockets struct{ *Manager }

// Register takes a plugin (plugins.Handler).
func (s Sockets) Register(ctx context.Context, p plugins.Plugin) error {
	switch {
	case !slices.Contains(p.Versions, pluginapi.Version):
		return fmt.Errorf("manager version, %s, is not among plugin supported versions %v", pluginapi.Version, p.Versions)
	case !validate.ExtendedResource(corev1.ResourceName(p.Name)):
		return fmt.Errorf("invalid name of device plugin socket: the ResourceName %q is invalid", p.Name)
	}
	return s.connect(ctx, p.Name, p.Endpoint)
}

// Deregister forgets a plugin whose socket is gone (plugins.Handler).
func (s Sockets) Deregister(p plugins.Plugin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.resources[p.Name]; r != nil {
		for _, e := range r.plugins {
			if e.socket == p.Endpoint {
				e.cancel()
			}
		}
	}
}

// connect begins to watch a plugin. One that was known by the same socket is replaced.
func (m *Manager) connect(ctx context.Context, name, socket string) error {
	conn, err := plugins.Dial(socket)
	if err != nil {
		return fmt.Errorf("failed to dial device plugin: %w", err)
	}
	e := &endpoint{socket: socket, conn: conn, client: pluginapi.NewDevicePluginClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// The plugin may still be on its way to serve its socket.
	if e.options, err = e.client.GetDevicePluginOptions(ctx, &pluginapi.Empty{}, grpc.WaitForReady(true)); err != nil {
		conn.Close()
		return fmt.Errorf("failed to get device plugin options: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		conn.Close()
		return errors.New("the node is going down")
	}
	r, known := m.resources[name]
	if !known {
		r = newPool()
		m.resources[name] = r
	}
	for _, old := range r.plugins {
		if old.socket == socket {
			old.cancel()
		}
	}
	r.plugins = slices.DeleteFunc(r.plugins, func(old *endpoint) bool { return old.socket == socket })
	r.plugins = append(r.plugins, e)
	if r.ends != nil {
		r.ends.Stop()
		r.ends = nil
	}
	watch, end := context.WithCancel(m.ctx)
	e.cancel = end
	m.running.Go(func() { m.follow(watch, name, e) })
	m.cfg.Log.Info("device plugin registered", "resource", name, "socket", socket)
	if known {
		return nil
	}
	return m.save()
}

// follow takes what a plugin says of its devices until it ends.
func (m *Manager) follow(ctx context.Context, name string, e *endpoint) {
	stream, err := e.client.ListAndWatch(ctx, &pluginapi.Empty{})
	for err == nil {
		var r *pluginapi.ListAndWatchResponse
		if r, err = stream.Recv(); err == nil {
			m.offered(name, e, r.Devices)
		}
	}
	if ctx.Err() == nil {
		m.cfg.Log.Warn("ListAndWatch ended unexpectedly for device plugin", "resource", name, "err", err)
	}
	e.cancel()
	e.conn.Close()
	m.left(name, e)
}

// offered takes the devices that there are now of a resource.
func (m *Manager) offered(name string, from *endpoint, list []*pluginapi.Device) {
	if len(list) > maxDevices {
		m.cfg.Log.Warn("device plugin offers too many devices", "resource", name, "devices", len(list), "taken", maxDevices)
		list = list[:maxDevices]
	}
	m.mu.Lock()
	r := m.resources[name]
	if !slices.Contains(r.plugins, from) {
		m.mu.Unlock()
		return // it was replaced
	}
	old := r.devices
	r.devices = make(map[string]*pluginapi.Device, len(list))
	altered := len(old) != len(list)
	changed := map[string]bool{}
	for _, d := range list {
		r.devices[d.ID] = d
		if was := old[d.ID]; was == nil || was.Health != d.Health {
			changed[d.ID], altered = true, true
		}
	}
	pods := m.holders(name, changed)
	if altered {
		pods = append(pods, slices.Collect(maps.Keys(m.waiting))...)
		clear(m.waiting)
	}
	m.mu.Unlock()
	m.tell(altered, pods)
}

// left takes note of the end of a plugin. The devices of a resource without any are unhealthy.
func (m *Manager) left(name string, e *endpoint) {
	m.mu.Lock()
	r := m.resources[name]
	before := len(r.plugins)
	r.plugins = slices.DeleteFunc(r.plugins, func(other *endpoint) bool { return other == e })
	last := before > 0 && len(r.plugins) == 0
	var pods []types.UID
	if last && m.ctx.Err() == nil {
		changed := map[string]bool{}
		for id, d := range r.devices {
			if d.Health == pluginapi.Healthy {
				r.devices[id] = &pluginapi.Device{ID: id, Health: pluginapi.Unhealthy, Topology: d.Topology}
				changed[id] = true
			}
		}
		pods = m.holders(name, changed)
		r.ends = time.AfterFunc(stopGrace, func() { m.forget(name) })
	}
	m.mu.Unlock()
	if last && m.ctx.Err() == nil {
		m.cfg.Log.Info("device plugin is gone", "resource", name)
		m.tell(true, pods)
	}
}

// forget drops the devices of a resource whose plugins do not come back. The node goes on to say that it has none.
func (m *Manager) forget(name string) {
	m.mu.Lock()
	r := m.resources[name]
	gone := len(r.plugins) == 0 && m.ctx.Err() == nil
	if gone {
		clear(r.devices)
	}
	m.mu.Unlock()
	m.tell(gone, nil)
}

// holders are the pods that have one of some devices. The lock is held.
func (m *Manager) holders(name string, devices map[string]bool) []types.UID {
	if len(devices) == 0 {
		return nil
	}
	var pods []types.UID
	for uid, all := range m.pods {
		for _, by := range all {
			if a := by[name]; a != nil && slices.ContainsFunc(a.Devices, func(id string) bool { return devices[id] }) {
				pods = append(pods, uid)
				break
			}
		}
	}
	return pods
}

func (m *Manager) tell(node bool, pods []types.UID) {
	if node && m.cfg.Changed != nil {
		m.cfg.Changed()
	}
	for _, uid := range pods {
		if m.cfg.PodChanged != nil {
			m.cfg.PodChanged(uid)
		}
	}
}

// Capacity is what the node has of the resources of plugins, and how much of that is healthy. A resource whose plugin is not there, or has
// not come back yet, is named with zero.
func (m *Manager) Capacity() (capacity, allocatable corev1.ResourceList) {
	m.mu.Lock()
	defer m.mu.Unlock()
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	for name, r := range m.resources {
		healthy := 0
		for _, d := range r.devices {
			if d.Health == pluginapi.Healthy {
				healthy++
			}
		}
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(int64(len(r.devices)), resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(int64(healthy), resource.DecimalSI)
	}
	return capacity, allocatable
}

// Release takes the devices of a pod back. Idempotent.
func (m *Manager) Release(uid types.UID) error {
	m.mu.Lock()
	delete(m.waiting, uid)
	if m.pods[uid] == nil {
		m.mu.Unlock()
		return nil
	}
	delete(m.pods, uid)
	err := m.save()
	wake := slices.Collect(maps.Keys(m.waiting))
	clear(m.waiting)
	m.mu.Unlock()
	m.tell(false, wake)
	return err
}

// Orphans releases the devices of all pods but those to keep.
func (m *Manager) Orphans(keep func(types.UID) bool) error {
	m.mu.Lock()
	uids := slices.Collect(maps.Keys(m.pods))
	m.mu.Unlock()
	var errs []error
	for _, uid := range uids {
		if !keep(uid) {
			errs = append(errs, m.Release(uid))
		}
	}
	return errors.Join(errs...)
}

// save writes the record, durably. The lock is held.
func (m *Manager) save() error {
	data, err := json.Marshal(saved{m.pods, slices.Sorted(maps.Keys(m.resources))})
	if err == nil {
		err = replace(m.cfg.Record, data)
	}
	if err != nil {
		return fmt.Errorf("failed to write checkpoint file %q: %w", m.cfg.Record, err)
	}
	return nil
}

func replace(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	tmp, err := os.OpenFile(file+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
