package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// allocatorFeatures are those of dynamic resource allocation that upstream v1.37 has on by default.
var allocatorFeatures = structured.Features{AdminAccess: true, ConsumableCapacity: true, DeviceBindingAndStatus: true, DeviceTaints: true,
	FractionalCapacityRange: true, PartitionableDevices: true, PrioritizedList: true}

// devices is what the scheduler knows of the cluster's devices (KEP-4381), kept up with the history: what there is, and what is
// taken. It belongs to one goroutine. A cluster without devices pays for a few empty maps.
type devices struct {
	slices  map[string]*resourcev1.ResourceSlice
	rules   map[string]*resourcev1.DeviceTaintRule
	classes map[string]*resourcev1.DeviceClass
	// taken are the allocations that count, by the UID of the claim.
	taken map[types.UID]holding
	state structured.AllocatedState
	// offered are the slices with what rules taint, nil if they have changed since.
	offered []*resourcev1.ResourceSlice
	// programs holds compiled selectors; made when the first claim needs it.
	programs *cel.Cache
	// specials are the claims made for extended resources, by the UID of the pod.
	specials map[types.UID]*resourcev1.ResourceClaim
	// byResource are the classes by the extended resources that they stand for, nil if they have changed since.
	byResource map[corev1.ResourceName]*resourcev1.DeviceClass
}

// holding is what a claim has, or will have once it is written.
type holding struct {
	result  *resourcev1.AllocationResult
	pending bool // decided here, and not in the store yet
}

// maxPrograms bounds how many compiled selectors are kept.
const maxPrograms = 100

func newDevices() *devices {
	return &devices{
		slices: map[string]*resourcev1.ResourceSlice{}, rules: map[string]*resourcev1.DeviceTaintRule{}, classes: map[string]*resourcev1.DeviceClass{},
		taken: map[types.UID]holding{}, specials: map[types.UID]*resourcev1.ResourceClaim{},
		state: structured.AllocatedState{AllocatedDevices: sets.New[structured.DeviceID](),
			AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](), AggregatedCapacity: structured.NewConsumedCapacityCollection()},
	}
}

func (d *devices) load(snap store.Snapshot) {
	for c := range client.DeviceClasses.List(snap, "") {
		d.classes[c.Name] = c
	}
	for s := range client.ResourceSlices.List(snap, "") {
		d.slices[s.Name] = s
	}
	for r := range client.DeviceTaintRules.List(snap, "") {
		d.rules[r.Name] = r
	}
	for c := range client.ResourceClaims.List(snap, "") {
		d.setClaim(c, false)
	}
}

// setClaim takes a claim's version into account. What is decided and not written yet stands until an allocation is seen.
func (d *devices) setClaim(c *resourcev1.ResourceClaim, deleted bool) {
	if isSpecial(c) {
		if owner := metav1.GetControllerOfNoCopy(c); owner != nil {
			keep(d.specials, owner.UID, c, deleted)
		}
	}
	have, known := d.taken[c.UID]
	switch {
	case !deleted && c.Status.Allocation != nil:
		d.set(c.UID, holding{c.Status.Allocation, false})
	case known && (deleted || !have.pending):
		d.set(c.UID, holding{})
	}
}

// reserve takes devices for a claim before the store knows.
func (d *devices) reserve(uid types.UID, result *resourcev1.AllocationResult) {
	d.set(uid, holding{result, true})
}

// settle ends the reservation that stood for a claim until it was made. What the store says of the claim by now goes on to count; if it
// says nothing yet, result is reserved for it, nil for nothing.
func (d *devices) settle(until, uid types.UID, result *resourcev1.AllocationResult) {
	known := d.taken[uid]
	d.set(uid, holding{}) // both hold the same devices, which are counted once
	d.release(until)
	switch {
	case known.result != nil:
		d.set(uid, known)
	case result != nil:
		d.reserve(uid, result)
	}
}

// release takes that back.
func (d *devices) release(uid types.UID) {
	if d.taken[uid].pending {
		d.set(uid, holding{})
	}
}

func (d *devices) set(uid types.UID, t holding) {
	if old := d.taken[uid].result; old != nil {
		d.count(old, false)
	}
	if t.result == nil {
		delete(d.taken, uid)
		return
	}
	d.count(t.result, true)
	d.taken[uid] = t
}

// count counts an allocation in or out. Devices that an administrator looks at are not taken by that.
func (d *devices) count(a *resourcev1.AllocationResult, in bool) {
	for i := range a.Devices.Results {
		r := &a.Devices.Results[i]
		if r.AdminAccess != nil && *r.AdminAccess {
			continue
		}
		id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
		if r.ShareID == nil {
			if in {
				d.state.AllocatedDevices.Insert(id)
			} else {
				d.state.AllocatedDevices.Delete(id)
			}
			continue
		}
		share, capacity := structured.MakeSharedDeviceID(id, r.ShareID), structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity)
		if in {
			d.state.AllocatedSharedDeviceIDs.Insert(share)
			d.state.AggregatedCapacity.Insert(capacity)
		} else {
			d.state.AllocatedSharedDeviceIDs.Delete(share)
			d.state.AggregatedCapacity.Remove(capacity)
		}
	}
}

// offers are the slices with the taints that rules add, in order of name.
func (d *devices) offers() []*resourcev1.ResourceSlice {
	if d.offered != nil || len(d.slices) == 0 {
		return d.offered
	}
	for _, name := range slices.Sorted(maps.Keys(d.slices)) {
		s := d.slices[name]
		for _, rule := range slices.Sorted(maps.Keys(d.rules)) {
			s = tainted(s, d.slices[name], &d.rules[rule].Spec)
		}
		d.offered = append(d.offered, s)
	}
	return d.offered
}

// tainted is a slice with the taint of a rule on the devices that it selects. s is copied if it is still the original.
func tainted(s, original *resourcev1.ResourceSlice, rule *resourcev1.DeviceTaintRuleSpec) *resourcev1.ResourceSlice {
	sel := rule.DeviceSelector
	differs := func(want *string, have string) bool { return want != nil && *want != have }
	if sel == nil || differs(sel.Driver, s.Spec.Driver) || differs(sel.Pool, s.Spec.Pool.Name) {
		return s
	}
	for i := range s.Spec.Devices {
		if differs(sel.Device, s.Spec.Devices[i].Name) {
			continue
		}
		if s == original {
			s = original.DeepCopy()
		}
		s.Spec.Devices[i].Taints = append(s.Spec.Devices[i].Taints, rule.Taint)
	}
	return s
}

// allocator chooses devices among those that are free now.
func (d *devices) allocator() (structured.Allocator, error) {
	if d.programs == nil {
		d.programs = cel.NewCache(maxPrograms, cel.Features{EnableConsumableCapacity: true})
	}
	// The state is read only, and this goroutine changes it between passes and never within one.
	return structured.NewAllocator(quietly, allocatorFeatures, d.state, classLister{d}, d.offers(), d.programs)
}

// classLister shows the classes to the allocator.
type classLister struct{ d *devices }

// List gives all classes.
func (l classLister) List() ([]*resourcev1.DeviceClass, error) {
	return slices.Collect(maps.Values(l.d.classes)), nil
}

// Get gives one class.
func (l classLister) Get(name string) (*resourcev1.DeviceClass, error) {
	if c := l.d.classes[name]; c != nil {
		return c, nil
	}
	return nil, apierrors.NewNotFound(resourcev1.Resource("deviceclass"), name)
}
