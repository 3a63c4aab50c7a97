package claims

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1"
)

// How drivers tell of the health of their devices (KEP-4680), as upstream has it.
const (
	healthTimeout = 30 * time.Second // of what is said, where the driver names none
	healthRetry   = 5 * time.Second
	// maxHealth bounds how many devices of a driver are kept, maxMessage the message of one, in bytes.
	maxHealth  = 16384
	maxMessage = 1024
)

// healthServices are those that can be spoken with, the preferred first. Their messages are the same.
var healthServices = []string{healthpb.DRAResourceHealthService, "v1alpha1.DRAResourceHealth"}

// healthBoard is what drivers say of the health of their devices. Its methods are safe for concurrent use.
type healthBoard struct {
	now     func() time.Time
	changed func(driver string, devices map[deviceKey]bool) // called without a lock

	mu      sync.Mutex // guards what follows
	drivers map[string]*driverHealth
	closed  bool
}

// deviceKey is a device of a driver.
type deviceKey struct{ pool, device string }

// driverHealth is what one driver said last.
type driverHealth struct {
	devices map[deviceKey]deviceHealth
	// by is the connection that it came by: of a driver that is being replaced, the old one ends beside the new one.
	by any
	// timer ends what has not been said again.
	timer *time.Timer
}

type deviceHealth struct {
	health  corev1.ResourceHealthStatus
	message string
	timeout time.Duration
	until   time.Time
}

func newHealthBoard(now func() time.Time, changed func(string, map[deviceKey]bool)) *healthBoard {
	return &healthBoard{now: now, changed: changed, drivers: map[string]*driverHealth{}}
}

// of is the health of a device, "Unknown" if nobody said it, or not for long.
func (b *healthBoard) of(driver string, key deviceKey) (corev1.ResourceHealthStatus, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.drivers[driver]; d != nil {
		if h, ok := d.devices[key]; ok && b.now().Before(h.until) {
			return h.health, h.message
		}
	}
	return corev1.ResourceHealthStatusUnknown, ""
}

// report takes a driver's list of all its devices. Those that it leaves out keep what was said of them until that times out.
func (b *healthBoard) report(driver string, by any, list []*healthpb.DeviceHealth) {
	changed := map[deviceKey]bool{}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	d := b.drivers[driver]
	if d == nil {
		d = &driverHealth{devices: map[deviceKey]deviceHealth{}}
		b.drivers[driver] = d
	}
	d.by = by
	now := b.now()
	for _, one := range list {
		key, h := deviceKey{one.GetDevice().GetPoolName(), one.GetDevice().GetDeviceName()}, healthOf(one, now)
		old, known := d.devices[key]
		if !known && len(d.devices) >= maxHealth {
			continue
		}
		if !known || old.health != h.health || old.message != h.message {
			changed[key] = true
		}
		d.devices[key] = h
	}
	b.expire(driver, d, changed)
	b.mu.Unlock()
	if len(changed) > 0 {
		b.changed(driver, changed)
	}
}

// expire drops what is said no more, adds it to changed, and sets the clock for the next. The lock is held.
func (b *healthBoard) expire(driver string, d *driverHealth, changed map[deviceKey]bool) {
	now, next := b.now(), time.Time{}
	for key, h := range d.devices {
		switch {
		case !now.Before(h.until):
			delete(d.devices, key)
			changed[key] = changed[key] || h.health != corev1.ResourceHealthStatusUnknown
		case next.IsZero() || h.until.Before(next):
			next = h.until
		}
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if next.IsZero() {
		return
	}
	d.timer = time.AfterFunc(next.Sub(now), func() {
		gone := map[deviceKey]bool{}
		b.mu.Lock()
		if b.drivers[driver] == d && !b.closed {
			b.expire(driver, d, gone)
		}
		b.mu.Unlock()
		if len(gone) > 0 {
			b.changed(driver, gone)
		}
	})
}

// clear forgets what a driver said by a connection, unless it has said more by another.
func (b *healthBoard) clear(driver string, by any) {
	b.mu.Lock()
	d := b.drivers[driver]
	gone := map[deviceKey]bool{}
	if d != nil && d.by == by {
		delete(b.drivers, driver)
		if d.timer != nil {
			d.timer.Stop()
		}
		for key := range d.devices {
			gone[key] = true
		}
	}
	b.mu.Unlock()
	if len(gone) > 0 {
		b.changed(driver, gone)
	}
}

func (b *healthBoard) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, d := range b.drivers {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
}

func healthOf(d *healthpb.DeviceHealth, now time.Time) deviceHealth {
	h := deviceHealth{health: corev1.ResourceHealthStatusUnknown, message: d.GetMessage(), timeout: healthTimeout}
	switch d.GetHealth() {
	case healthpb.HealthStatus_HEALTHY:
		h.health = corev1.ResourceHealthStatusHealthy
	case healthpb.HealthStatus_UNHEALTHY:
		h.health = corev1.ResourceHealthStatusUnhealthy
	}
	if s := d.GetHealthCheckTimeoutSeconds(); s > 0 {
		h.timeout = time.Duration(min(s, int64(24*time.Hour/time.Second))) * time.Second
	}
	if len(h.message) > maxMessage {
		h.message = h.message[:maxMessage-3] + "..."
	}
	h.until = now.Add(h.timeout)
	return h
}

// followHealth takes what a driver says of its devices until ctx is done, or the driver turns out not to do that.
func (m *Manager) followHealth(ctx context.Context, name, service string, conn *grpc.ClientConn) {
	defer m.health.clear(name, conn)
	for {
		err := m.streamHealth(ctx, name, service, conn)
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		m.log.Debug("health of devices", "driver", name, "err", err)
		m.health.clear(name, conn)
		select {
		case <-ctx.Done():
			return
		case <-time.After(healthRetry):
		}
	}
}

func (m *Manager) streamHealth(ctx context.Context, name, service string, conn *grpc.ClientConn) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/NodeWatchResources", grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&healthpb.NodeWatchResourcesRequest{}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		r := &healthpb.NodeWatchResourcesResponse{}
		if err := stream.RecvMsg(r); err != nil {
			return err
		}
		m.health.report(name, conn, r.Devices)
	}
}

// unwell tells the pods that have one of some devices.
func (m *Manager) unwell(driver string, devices map[deviceKey]bool) {
	pods := map[types.UID]bool{}
	m.mu.Lock()
	tell := m.notify
	for _, c := range m.claims {
		if slices.ContainsFunc(c.Drivers[driver], func(d device) bool { return devices[deviceKey{d.Pool, d.Device}] }) {
			maps.Copy(pods, c.Pods)
		}
	}
	m.mu.Unlock()
	if tell == nil {
		return
	}
	for uid := range pods {
		tell(uid)
	}
}

// Notify has f called when the health of devices changes that a pod has. f must not block. It is to be set before drivers register.
func (m *Manager) Notify(f func(types.UID)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notify = f
}

// Health says how the devices are that a container has by claim (KEP-4680); nil if it has none.
func (m *Manager) Health(pod *corev1.Pod, c *corev1.Container) []corev1.ResourceStatus {
	var all []corev1.ResourceStatus
	for _, use := range c.Resources.Claims {
		have := m.used(pod, use.Name)
		if have == nil {
			continue
		}
		st := corev1.ResourceStatus{Name: corev1.ResourceName("claim:" + use.Name)}
		if use.Request != "" {
			st.Name += corev1.ResourceName("/" + use.Request)
		}
		seen := map[corev1.ResourceID]bool{}
		for _, driver := range slices.Sorted(maps.Keys(have.Drivers)) {
			for _, d := range have.Drivers[driver] {
				id := corev1.ResourceID(fmt.Sprintf("%s/%s/%s", driver, d.Pool, d.Device))
				if len(d.CDI) > 0 {
					id = corev1.ResourceID(d.CDI[0])
				}
				if seen[id] || !d.serves(use.Request) {
					continue
				}
				seen[id] = true
				health, message := m.health.of(driver, deviceKey{d.Pool, d.Device})
				one := corev1.ResourceHealth{ResourceID: id, Health: health}
				if message != "" {
					one.Message = &message
				}
				st.Resources = append(st.Resources, one)
			}
		}
		if len(st.Resources) > 0 {
			all = append(all, st)
		}
	}
	return all
}

// used is the record of the claim that a pod has under a name; nil if there is none. It is a copy as far as it changes.
func (m *Manager) used(pod *corev1.Pod, name string) *claim {
	for i := range pod.Spec.ResourceClaims {
		if pc := &pod.Spec.ResourceClaims[i]; pc.Name == name {
			if real, _, err := resourceclaim.Name(pod, pc); err == nil && real != nil {
				return m.named(pod, *real)
			}
		}
	}
	return nil
}

func (m *Manager) named(pod *corev1.Pod, name string) *claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, have := range m.claims {
		if have.Name == name && have.Namespace == pod.Namespace && have.Pods[pod.UID] {
			return &claim{Namespace: have.Namespace, Name: have.Name, UID: have.UID, Drivers: have.Drivers} // which is replaced, never changed
		}
	}
	return nil
}

// Used is a claim that a container uses, with all that drivers have prepared of it.
type Used struct {
	Namespace, Name string
	Devices         []UsedDevice
}

// UsedDevice is a device of a claim.
type UsedDevice struct {
	Driver, Pool, Device string
	CDI                  []string
	Share                *string
}

// Of are the claims that a container uses, in the order of the pod's, that for extended resources last.
func (m *Manager) Of(pod *corev1.Pod, c *corev1.Container) []Used {
	var all []Used
	add := func(have *claim) {
		if have == nil {
			return
		}
		u := Used{Namespace: have.Namespace, Name: have.Name}
		for _, driver := range slices.Sorted(maps.Keys(have.Drivers)) {
			for _, d := range have.Drivers[driver] {
				u.Devices = append(u.Devices, UsedDevice{driver, d.Pool, d.Device, d.CDI, d.Share})
			}
		}
		all = append(all, u)
	}
	for i := range pod.Spec.ResourceClaims {
		name := pod.Spec.ResourceClaims[i].Name
		if slices.ContainsFunc(c.Resources.Claims, func(use corev1.ResourceClaim) bool { return use.Name == name }) {
			add(m.used(pod, name))
		}
	}
	if st := pod.Status.ExtendedResourceClaimStatus; st != nil && slices.ContainsFunc(st.RequestMappings, func(r corev1.ContainerExtendedResourceRequest) bool {
		return r.ContainerName == c.Name
	}) {
		add(m.named(pod, st.ResourceClaimName))
	}
	return all
}
