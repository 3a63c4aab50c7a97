package devices

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/cdi"
)

// ErrLater says that the devices which a pod needs are still with pods that are on their way out. PodChanged is called when it may be tried
// again.
var ErrLater = errors.New("devices are not free yet")

// Allocate gives the containers of a pod their devices and asks plugins what to make of them. Idempotent. counts tells which pods are
// to keep theirs. Errors are in upstream's words.
func (m *Manager) Allocate(ctx context.Context, pod *corev1.Pod, counts func(types.UID) bool) error {
	reuse := map[string][]string{} // of init containers that are done by then, by resource
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		given, err := m.allocate(ctx, pod, c, reuse, counts)
		if err != nil {
			return err
		}
		stays := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		for name, ids := range given {
			others := slices.DeleteFunc(slices.Clone(reuse[name]), func(id string) bool { return slices.Contains(ids, id) })
			if stays {
				reuse[name] = others
			} else {
				reuse[name] = append(others, ids...)
			}
		}
	}
	for i := range pod.Spec.Containers {
		given, err := m.allocate(ctx, pod, &pod.Spec.Containers[i], reuse, counts)
		if err != nil {
			return err
		}
		for name, ids := range given {
			reuse[name] = slices.DeleteFunc(slices.Clone(reuse[name]), func(id string) bool { return slices.Contains(ids, id) })
		}
	}
	return nil
}

// uses are the resources of plugins that a container asks for, in order.
func (m *Manager) uses(pod *corev1.Pod, c *corev1.Container) []string {
	var names []string
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, q := range c.Resources.Limits {
		if m.resources[string(name)] != nil && q.Sign() > 0 && !fromClaim(pod, c.Name, string(name)) {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return names
}

// Uses tells whether a pod asks for devices of plugins, or has some.
func (m *Manager) Uses(pod *corev1.Pod) bool {
	m.mu.Lock()
	none, has := len(m.resources) == 0, m.pods[pod.UID] != nil
	m.mu.Unlock()
	if none || has {
		return has
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if len(m.uses(pod, &list[i])) > 0 {
				return true
			}
		}
	}
	return false
}

// fromClaim tells whether what a container asks for of a resource comes from the pod's claim for such resources (KEP-5004).
func fromClaim(pod *corev1.Pod, container, resource string) bool {
	st := pod.Status.ExtendedResourceClaimStatus
	return st != nil && slices.ContainsFunc(st.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool {
		return m.ContainerName == container && m.ResourceName == resource
	})
}

// allocate gives a container its devices and returns them by resource.
func (m *Manager) allocate(ctx context.Context, pod *corev1.Pod, c *corev1.Container, reuse map[string][]string, counts func(types.UID) bool) (map[string][]string, error) {
	given := map[string][]string{}
	for _, name := range m.uses(pod, c) {
		q := c.Resources.Limits[corev1.ResourceName(name)]
		want := int(q.Value())
		m.mu.Lock()
		have := m.pods[pod.UID][c.Name][name]
		m.mu.Unlock()
		if have != nil {
			if n := len(have.Devices); n != want {
				return nil, fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", pod.UID, c.Name, name, n, want)
			}
			given[name] = have.Devices
			continue
		}
		ids, e, err := m.choose(ctx, pod.UID, name, want, reuse[name], counts)
		if err != nil {
			return nil, err
		}
		a, err := ask(ctx, e, ids)
		if err := m.allotted(pod.UID, c.Name, name, ids, a, err); err != nil {
			return nil, err
		}
		given[name] = ids
	}
	return given, nil
}

// choose decides on devices for a container, which nobody else gets until allotted is called.
func (m *Manager) choose(ctx context.Context, uid types.UID, name string, want int, reuse []string, counts func(types.UID) bool) ([]string, *endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resources[name]
	healthy := map[string]bool{}
	for id, d := range r.devices {
		healthy[id] = d.Health == pluginapi.Healthy
	}
	if !slices.Contains(slices.Collect(maps.Values(healthy)), true) {
		return nil, nil, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", name)
	}
	if len(r.plugins) == 0 {
		return nil, nil, fmt.Errorf("unknown Device Plugin %s", name)
	}
	e := r.plugins[len(r.plugins)-1]
	chosen := slices.Sorted(slices.Values(reuse))
	chosen = chosen[:min(len(chosen), want)]
	if len(chosen) < want {
		free, err := m.free(r, uid, name, want-len(chosen), healthy, chosen, counts)
		if err != nil {
			return nil, nil, err
		}
		preferred, err := m.prefers(ctx, e, name, free, chosen, want)
		if err != nil {
			return nil, nil, err
		}
		// The lock was not held: others may have been quicker.
		if free, err = m.free(r, uid, name, want-len(chosen), healthy, chosen, counts); err != nil {
			return nil, nil, err
		}
		for _, from := range [][]string{preferred, free} {
			for _, id := range from {
				if len(chosen) < want && slices.Contains(free, id) && !slices.Contains(chosen, id) {
					chosen = append(chosen, id)
				}
			}
		}
	}
	slices.Sort(chosen)
	for _, id := range chosen {
		r.asking[id] = uid
	}
	return chosen, e, nil
}

// free are the healthy devices that nobody has, in order, but those that are chosen already. There have to be as many as are needed.
// The lock is held.
func (m *Manager) free(r *pool, uid types.UID, name string, need int, healthy map[string]bool, chosen []string, counts func(types.UID) bool) ([]string, error) {
	taken, leaving := map[string]bool{}, 0
	for id, by := range r.asking {
		taken[id] = by != ""
	}
	for holder, all := range m.pods {
		for _, by := range all {
			if a := by[name]; a != nil {
				for _, id := range a.Devices {
					if holder != uid && !counts(holder) && healthy[id] && !taken[id] {
						leaving++
					}
					taken[id] = true
				}
			}
		}
	}
	var free []string
	for id, well := range healthy {
		if well && !taken[id] && !slices.Contains(chosen, id) {
			free = append(free, id)
		}
	}
	switch {
	case len(free) >= need:
		slices.Sort(free)
		return free, nil
	case len(free)+leaving >= need:
		m.waiting[uid] = true
		return nil, ErrLater
	}
	return nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, need, len(free))
}

// prefers asks a plugin which devices it would take, if it has an opinion. The lock is held, but not during the call.
func (m *Manager) prefers(ctx context.Context, e *endpoint, name string, free, chosen []string, want int) ([]string, error) {
	if e.options == nil || !e.options.GetPreferredAllocationAvailable || len(free) == want-len(chosen) {
		return nil, nil
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	out, err := e.client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
		{AvailableDeviceIDs: slices.Concat(free, chosen), MustIncludeDeviceIDs: chosen, AllocationSize: int32(want)}}})
	cancel()
	m.mu.Lock()
	if err != nil {
		return nil, fmt.Errorf("device plugin GetPreferredAllocation rpc failed with err: %w", err)
	}
	if len(out.ContainerResponses) == 0 {
		return nil, nil
	}
	return out.ContainerResponses[0].DeviceIDs, nil
}

// ask has a plugin say what to make of devices.
func ask(ctx context.Context, e *endpoint, ids []string) (*pluginapi.ContainerAllocateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := e.client.Allocate(ctx, &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	switch {
	case err != nil:
		return nil, err
	case len(out.ContainerResponses) == 0:
		return nil, fmt.Errorf("no containers return in allocation response %v", out)
	}
	return out.ContainerResponses[0], nil
}

// allotted takes note of how asking for devices ended.
func (m *Manager) allotted(uid types.UID, container, name string, ids []string, response *pluginapi.ContainerAllocateResponse, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resources[name]
	for _, id := range ids {
		delete(r.asking, id)
	}
	if err != nil {
		return err
	}
	a := &allotment{Devices: ids, Response: response}
	for _, id := range ids {
		if d := r.devices[id]; d != nil && d.Topology != nil {
			for _, n := range d.Topology.Nodes {
				if a.Numa == nil {
					a.Numa = map[string][]int64{}
				}
				a.Numa[id] = append(a.Numa[id], n.ID)
			}
		}
	}
	if m.pods[uid] == nil {
		m.pods[uid] = containers{}
	}
	if m.pods[uid][container] == nil {
		m.pods[uid][container] = map[string]*allotment{}
	}
	m.pods[uid][container][name] = a
	return m.save()
}

// Inject tells plugins that a container is about to start, where they want to know, and adds its devices to its description.
func (m *Manager) Inject(ctx context.Context, pod *corev1.Pod, c *corev1.Container, cfg *container.ContainerConfig) error {
	m.mu.Lock()
	given := maps.Clone(m.pods[pod.UID][c.Name])
	m.mu.Unlock()
	var ids []string
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if err := m.preStart(ctx, name, given[name]); err != nil {
			return err
		}
		ids = append(ids, apply(cfg, given[name].Response)...)
	}
	return cdi.Inject(cfg, ids, m.cfg.CDIDirs)
}

func (m *Manager) preStart(ctx context.Context, name string, a *allotment) error {
	m.mu.Lock()
	var e *endpoint
	if r := m.resources[name]; r != nil && len(r.plugins) > 0 {
		e = r.plugins[len(r.plugins)-1]
	}
	m.mu.Unlock()
	if e == nil || e.options == nil || !e.options.PreStartRequired {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, preStartTimeout)
	defer cancel()
	if _, err := e.client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: a.Devices}); err != nil {
		return fmt.Errorf("device plugin PreStartContainer rpc failed with err: %w", err)
	}
	return nil
}

// cdiAnnotations begin the annotations by which plugins named CDI devices before there was a field for them.
const cdiAnnotations = "cdi.k8s.io/"

// apply adds what a plugin wants to a container, and returns the CDI devices that it names. What the pod says of its environment goes first.
func apply(cfg *container.ContainerConfig, r *pluginapi.ContainerAllocateResponse) (ids []string) {
	var env []string
	for _, name := range slices.Sorted(maps.Keys(r.Envs)) {
		env = append(env, name+"="+r.Envs[name])
	}
	cfg.Env = append(env, cfg.Env...)
	for _, d := range r.Devices {
		cfg.Devices = append(cfg.Devices, container.Device{HostPath: d.HostPath, ContainerPath: d.ContainerPath, Permissions: d.Permissions})
	}
	for _, one := range r.Mounts {
		cfg.Mounts = append(cfg.Mounts, container.Mount{HostPath: one.HostPath, ContainerPath: one.ContainerPath, ReadOnly: one.ReadOnly})
	}
	for _, d := range r.CdiDevices {
		ids = append(ids, d.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Annotations)) {
		if cfg.Annotations == nil {
			cfg.Annotations = map[string]string{}
		}
		cfg.Annotations[name] = r.Annotations[name]
		if strings.HasPrefix(name, cdiAnnotations) {
			for _, id := range strings.Split(r.Annotations[name], ",") {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
	}
	return ids
}

// Health says how the devices of a pod's container are, by resource and device (KEP-4680); nil if it has none.
func (m *Manager) Health(pod types.UID, container string) []corev1.ResourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []corev1.ResourceStatus
	given := m.pods[pod][container]
	for _, name := range slices.Sorted(maps.Keys(given)) {
		st := corev1.ResourceStatus{Name: corev1.ResourceName(name)}
		for _, id := range given[name].Devices {
			one := corev1.ResourceHealth{ResourceID: corev1.ResourceID(id), Health: corev1.ResourceHealthStatusHealthy}
			if r := m.resources[name]; r != nil && r.devices[id] != nil && r.devices[id].Health != pluginapi.Healthy {
				one.Health = corev1.ResourceHealthStatusUnhealthy
			}
			st.Resources = append(st.Resources, one)
		}
		all = append(all, st)
	}
	return all
}

// Held is one device of a resource, with its NUMA nodes where its plugin says so.
type Held struct {
	Resource, ID string
	Numa         []int64
}

// Of are the devices of a pod's container, in order.
func (m *Manager) Of(pod types.UID, container string) []Held {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Held
	given := m.pods[pod][container]
	for _, name := range slices.Sorted(maps.Keys(given)) {
		for _, id := range given[name].Devices {
			all = append(all, Held{name, id, given[name].Numa[id]})
		}
	}
	return all
}

// Allocatable are all healthy devices, in order.
func (m *Manager) Allocatable() []Held {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Held
	for _, name := range slices.Sorted(maps.Keys(m.resources)) {
		r := m.resources[name]
		for _, id := range slices.Sorted(maps.Keys(r.devices)) {
			d := r.devices[id]
			if d.Health != pluginapi.Healthy {
				continue
			}
			h := Held{Resource: name, ID: id}
			if d.Topology != nil {
				for _, n := range d.Topology.Nodes {
					h.Numa = append(h.Numa, n.ID)
				}
			}
			all = append(all, h)
		}
	}
	return all
}
