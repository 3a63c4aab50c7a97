// Package claims makes the devices of ResourceClaims ready on a node before the pods that use them start, and undoes that when the
// last of them has ended (KEP-4381). The work is done by DRA drivers, which it finds through node/plugins.
//
// It owns the record of what is prepared, which survives restarts. It never allocates devices, and starts no containers.
package claims

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
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/cdi"
	"coracle.dev/coracle/node/plugins"
	"coracle.dev/coracle/store"
)

// callTimeout bounds one call of a driver, as kubelet does.
const callTimeout = 45 * time.Second

// Manager prepares claims. Make it with New; its methods are safe for concurrent use.
type Manager struct {
	file string // the record
	snap func() store.Snapshot
	log  *slog.Logger
	dirs []string // of CDI specifications
	// health is what drivers say of their devices; ctx ends the watches of that, which are running, with Close.
	health  *healthBoard
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows; not held during calls
	drivers map[string][]driver
	claims  map[types.UID]*claim
	notify  func(types.UID)
	busy    map[types.UID]chan struct{} // claims of which a driver is being asked; closed when it is done
}

// driver is a registered DRA driver. The newest of a name is used.
type driver struct {
	socket string
	conn   *grpc.ClientConn
	prefix string // of its methods
	// unwatch ends the watch of its devices' health, nil for none.
	unwatch context.CancelFunc
}

// claim is the record of one claim on this node.
type claim struct {
	Namespace string             `json:"namespace"`
	Name      string             `json:"name"`
	UID       types.UID          `json:"uid"`
	Pods      map[types.UID]bool `json:"pods"`
	// Drivers are those that were asked to prepare it, with what they gave.
	Drivers map[string][]device `json:"drivers"`
	// Prepared is set once all of them have.
	Prepared bool `json:"prepared"`
}

// device is what a driver prepared.
type device struct {
	Requests []string `json:"requests,omitempty"`
	Pool     string   `json:"pool"`
	Device   string   `json:"device"`
	CDI      []string `json:"cdi,omitempty"`
	Share    *string  `json:"share,omitempty"`
}

// New opens the record in dir. snap gives the objects of now, dirs are those of CDI specifications.
func New(dir string, snap func() store.Snapshot, dirs []string, log *slog.Logger) (*Manager, error) {
	m := &Manager{file: filepath.Join(dir, "claims.json"), snap: snap, dirs: dirs, log: log,
		drivers: map[string][]driver{}, claims: map[types.UID]*claim{}, busy: map[types.UID]chan struct{}{}}
	m.health = newHealthBoard(time.Now, m.unwell)
	m.ctx, m.cancel = context.WithCancel(context.Background())
	data, err := os.ReadFile(m.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(data, &m.claims); err != nil {
		return nil, fmt.Errorf("%s: %w", m.file, err)
	}
	return m, nil
}

// services are those that can be spoken with, the preferred first, and how their methods begin. Their messages are the same.
var services = []struct{ version, prefix string }{
	{drapb.DRAPluginService, "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/"},
	{"v1beta1.DRAPlugin", "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/"},
}

// Register takes a driver (plugins.Handler).
func (m *Manager) Register(_ context.Context, p plugins.Plugin) error {
	prefix := ""
	for _, s := range services {
		if prefix == "" && slices.Contains(p.Versions, s.version) {
			prefix = s.prefix
		}
	}
	if prefix == "" {
		return fmt.Errorf("invalid versions of plugin %s: none of the provided gRPC services is supported: %s", p.Name, strings.Join(p.Versions, ", "))
	}
	conn, err := plugins.Dial(p.Endpoint)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(p)
	d := driver{socket: p.Socket, conn: conn, prefix: prefix}
	for _, service := range healthServices {
		if slices.Contains(p.Versions, service) && m.ctx.Err() == nil {
			var watch context.Context
			watch, d.unwatch = context.WithCancel(m.ctx)
			m.running.Go(func() { m.followHealth(watch, p.Name, service, conn) })
			break
		}
	}
	m.drivers[p.Name] = append(m.drivers[p.Name], d)
	return nil
}

// Deregister forgets a driver whose socket is gone (plugins.Handler).
func (m *Manager) Deregister(p plugins.Plugin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(p)
}

func (m *Manager) remove(p plugins.Plugin) {
	m.drivers[p.Name] = slices.DeleteFunc(m.drivers[p.Name], func(d driver) bool {
		if d.socket == p.Socket {
			if d.unwatch != nil {
				d.unwatch()
			}
			d.conn.Close()
		}
		return d.socket == p.Socket
	})
}

// Close ends the connections to drivers.
func (m *Manager) Close() {
	m.cancel()
	m.health.close()
	m.mu.Lock()
	for _, all := range m.drivers {
		for _, d := range all {
			d.conn.Close()
		}
	}
	clear(m.drivers)
	m.mu.Unlock()
	m.running.Wait()
}

// Uses tells whether a pod has claims.
func Uses(pod *corev1.Pod) bool {
	return len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil
}

// Prepare makes all claims of a pod ready. Idempotent; errors are in upstream's words.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod) error {
	found, err := m.lookUp(pod)
	if err != nil {
		return err
	}
	for _, c := range found {
		if err := m.prepare(ctx, pod.UID, c); err != nil {
			return err
		}
	}
	return nil
}

// lookUp gives the claims of a pod, allocated and reserved for it.
func (m *Manager) lookUp(pod *corev1.Pod) ([]*resourcev1.ResourceClaim, error) {
	snap := m.snap()
	var names []string
	var owned []bool
	for i := range pod.Spec.ResourceClaims {
		name, mustOwn, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if err != nil {
			return nil, fmt.Errorf("list ResourceClaims: %w", err)
		}
		if name != nil {
			names, owned = append(names, *name), append(owned, mustOwn)
		}
	}
	if st := pod.Status.ExtendedResourceClaimStatus; st != nil {
		names, owned = append(names, st.ResourceClaimName), append(owned, true)
	}
	var found []*resourcev1.ResourceClaim
	for i, name := range names {
		c, ok := client.ResourceClaims.Get(snap, pod.Namespace, name)
		if !ok {
			return nil, fmt.Errorf("fetch ResourceClaim %s: resourceclaims.resource.k8s.io %q not found", name, name)
		}
		if owned[i] {
			if err := resourceclaim.IsForPod(pod, c, false); err != nil {
				return nil, err
			}
		}
		if !resourceclaim.IsReservedForPod(pod, c, false) {
			return nil, fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s)", pod.Name, pod.UID, c.Name, c.UID)
		}
		if c.Status.Allocation == nil {
			return nil, fmt.Errorf("ResourceClaim %s: not allocated", c.Name)
		}
		found = append(found, c)
	}
	return found, nil
}

// enter waits until no driver is being asked about a claim, and then keeps others out until leave is called.
func (m *Manager) enter(ctx context.Context, uid types.UID) (leave func(), err error) {
	for {
		m.mu.Lock()
		wait := m.busy[uid]
		if wait == nil {
			own := make(chan struct{})
			m.busy[uid] = own
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, uid)
				m.mu.Unlock()
				close(own)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *Manager) prepare(ctx context.Context, pod types.UID, c *resourcev1.ResourceClaim) error {
	leave, err := m.enter(ctx, c.UID)
	if err != nil {
		return err
	}
	defer leave()
	m.mu.Lock()
	have := m.claims[c.UID]
	for _, other := range m.claims {
		if other.UID != c.UID && other.Namespace == c.Namespace && other.Name == c.Name {
			m.mu.Unlock()
			return fmt.Errorf("old ResourceClaim with same name %s and different UID %s still exists (previous pod force-deleted?!)", c.Name, other.UID)
		}
	}
	if have == nil {
		have = &claim{Namespace: c.Namespace, Name: c.Name, UID: c.UID, Pods: map[types.UID]bool{}, Drivers: map[string][]device{}}
		for i := range c.Status.Allocation.Devices.Results {
			have.Drivers[c.Status.Allocation.Devices.Results[i].Driver] = nil
		}
		m.claims[c.UID] = have
	}
	known := have.Pods[pod]
	have.Pods[pod] = true
	prepared := have.Prepared
	names := slices.Sorted(maps.Keys(have.Drivers))
	// Who is to be asked is on record before anyone is.
	if !known {
		err = m.save()
	}
	m.mu.Unlock()
	if err != nil || prepared {
		return err
	}
	given := map[string][]device{}
	for _, name := range names {
		if given[name], err = m.ask(ctx, name, have); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	have.Drivers, have.Prepared = given, true
	return m.save()
}

// ask has a driver prepare a claim.
func (m *Manager) ask(ctx context.Context, name string, c *claim) ([]device, error) {
	out := &drapb.NodePrepareResourcesResponse{}
	if err := m.call(ctx, name, "NodePrepareResources", &drapb.NodePrepareResourcesRequest{Claims: []*drapb.Claim{c.wire()}}, out); err != nil {
		return nil, fmt.Errorf("NodePrepareResources: %w", err)
	}
	r := out.Claims[string(c.UID)]
	switch {
	case r == nil:
		return nil, errors.New("NodePrepareResources skipped 1 ResourceClaims")
	case r.Error != "":
		return nil, fmt.Errorf("NodePrepareResources failed for ResourceClaim %s: %s", c.Name, r.Error)
	}
	devices := []device{}
	for _, d := range r.Devices {
		devices = append(devices, device{d.RequestNames, d.PoolName, d.DeviceName, d.CdiDeviceIds, d.ShareId})
	}
	return devices, nil
}

func (c *claim) wire() *drapb.Claim {
	return &drapb.Claim{Namespace: c.Namespace, Uid: string(c.UID), Name: c.Name}
}

// call calls a method of the newest driver of a name.
func (m *Manager) call(ctx context.Context, name, method string, in, out any) error {
	m.mu.Lock()
	all := m.drivers[name]
	if len(all) == 0 {
		m.mu.Unlock()
		return fmt.Errorf("DRA driver %s is not registered", name)
	}
	d := all[len(all)-1]
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return d.conn.Invoke(ctx, d.prefix+method, in, out)
}

// Unprepare ends a pod's use of its claims. Drivers undo what nobody else uses. Idempotent.
func (m *Manager) Unprepare(ctx context.Context, pod types.UID) error {
	m.mu.Lock()
	var used []types.UID
	for uid, c := range m.claims {
		if c.Pods[pod] {
			used = append(used, uid)
		}
	}
	m.mu.Unlock()
	var errs []error
	for _, uid := range used {
		errs = append(errs, m.unprepare(ctx, pod, uid))
	}
	return errors.Join(errs...)
}

func (m *Manager) unprepare(ctx context.Context, pod, uid types.UID) error {
	leave, err := m.enter(ctx, uid)
	if err != nil {
		return err
	}
	defer leave()
	m.mu.Lock()
	c := m.claims[uid]
	if c == nil || !c.Pods[pod] {
		m.mu.Unlock()
		return nil
	}
	if len(c.Pods) > 1 {
		delete(c.Pods, pod)
		err := m.save()
		m.mu.Unlock()
		return err
	}
	names := slices.Sorted(maps.Keys(c.Drivers))
	m.mu.Unlock()
	for _, name := range names {
		out := &drapb.NodeUnprepareResourcesResponse{}
		if err := m.call(ctx, name, "NodeUnprepareResources", &drapb.NodeUnprepareResourcesRequest{Claims: []*drapb.Claim{c.wire()}}, out); err != nil {
			return fmt.Errorf("NodeUnprepareResources: %w", err)
		}
		r, ok := out.Claims[string(uid)]
		if !ok {
			return errors.New("NodeUnprepareResources skipped 1 ResourceClaims")
		}
		if r.GetError() != "" {
			return fmt.Errorf("NodeUnprepareResources failed for ResourceClaim %s: %s", c.Name, r.Error)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.claims, uid)
	return m.save()
}

// Orphans unprepares the claims of all pods but those to keep.
func (m *Manager) Orphans(ctx context.Context, keep func(types.UID) bool) error {
	m.mu.Lock()
	gone := map[types.UID]bool{}
	for _, c := range m.claims {
		for pod := range c.Pods {
			gone[pod] = gone[pod] || !keep(pod)
		}
	}
	m.mu.Unlock()
	var errs []error
	for pod, yes := range gone {
		if yes {
			errs = append(errs, m.Unprepare(ctx, pod))
		}
	}
	return errors.Join(errs...)
}

// Inject adds to a container the devices of the claims that it names.
func (m *Manager) Inject(pod *corev1.Pod, c *corev1.Container, cfg *container.ContainerConfig) error {
	return cdi.Inject(cfg, m.devices(pod, c), m.dirs)
}

// devices are the CDI devices of a container, in a stable order, each once.
func (m *Manager) devices(pod *corev1.Pod, c *corev1.Container) []string {
	var ids []string
	add := func(claimName, request string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, have := range m.claims {
			if have.Name != claimName || have.Namespace != pod.Namespace || !have.Pods[pod.UID] {
				continue
			}
			for _, name := range slices.Sorted(maps.Keys(have.Drivers)) {
				for _, d := range have.Drivers[name] {
					if !d.serves(request) {
						continue
					}
					for _, id := range d.CDI {
						if !slices.Contains(ids, id) {
							ids = append(ids, id)
						}
					}
				}
			}
		}
	}
	for _, use := range c.Resources.Claims {
		for i := range pod.Spec.ResourceClaims {
			if pc := &pod.Spec.ResourceClaims[i]; pc.Name == use.Name {
				if name, _, err := resourceclaim.Name(pod, pc); err == nil && name != nil {
					add(*name, use.Request)
				}
			}
		}
	}
	if st := pod.Status.ExtendedResourceClaimStatus; st != nil {
		for _, r := range st.RequestMappings {
			if r.ContainerName == c.Name {
				add(st.ResourceClaimName, r.RequestName)
			}
		}
	}
	return ids
}

// serves tells whether a device is of a request, "" for any. The first part of the name of an alternative is the request's.
func (d *device) serves(request string) bool {
	return request == "" || len(d.Requests) == 0 || slices.ContainsFunc(d.Requests, func(r string) bool {
		base, _, _ := strings.Cut(r, "/")
		return base == request || r == request
	})
}

// save writes the record, durably. The lock is held.
func (m *Manager) save() error {
	data, err := json.Marshal(m.claims)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.file), 0o750); err != nil {
		return err
	}
	tmp, err := os.OpenFile(m.file+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), m.file)
	}
	if err != nil {
		return fmt.Errorf("checkpoint ResourceClaim state: %w", err)
	}
	return nil
}
