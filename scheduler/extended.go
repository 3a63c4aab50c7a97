package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"coracle.dev/coracle/client"
)

// classOf is the device class that stands for an extended resource: by name (spec.extendedResourceName) or, for every class,
// as deviceclass.resource.kubernetes.io/CLASS (KEP-5004). Nil for none.
func (d *devices) classOf(name corev1.ResourceName) *resourcev1.DeviceClass {
	if d.byResource == nil {
		d.byResource = classesByResource(d.classes)
	}
	return d.byResource[name]
}

// classesByResource files classes under the extended resources that they stand for. Of several that name the same one the newest
// counts, among those of one age the first by name.
func classesByResource(classes map[string]*resourcev1.DeviceClass) map[corev1.ResourceName]*resourcev1.DeviceClass {
	by := make(map[corev1.ResourceName]*resourcev1.DeviceClass, 2*len(classes))
	for name, c := range classes {
		by[corev1.ResourceName(resourcev1.ResourceDeviceClassPrefix+name)] = c
		if c.Spec.ExtendedResourceName == nil {
			continue
		}
		resource := corev1.ResourceName(*c.Spec.ExtendedResourceName)
		if have := by[resource]; have == nil || preferred(c, have) {
			by[resource] = c
		}
	}
	return by
}

func preferred(a, b *resourcev1.DeviceClass) bool {
	return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name)) < 0
}

// byDevices tells whether what a pod asks for of a resource is, on a node, to come from devices: the node itself offers
// none, and a class stands for it.
func (c *Cluster) byDevices(n *node, name corev1.ResourceName) bool {
	return n.allocatable.extended[name] == 0 && c.hasClass != nil && c.hasClass(name)
}

// mayHold tells whether a node could hold the pod if it were empty.
func (c *Cluster) mayHold(p *pod, n *node) bool {
	if n.object == nil || p.static(n) != nil {
		return false
	}
	if !n.allocatable.less(&p.asks) {
		return true
	}
	if c.hasClass == nil || len(p.asks.extended) == 0 {
		return false
	}
	asks := p.asks
	asks.extended = maps.Clone(asks.extended)
	maps.DeleteFunc(asks.extended, func(name corev1.ResourceName, _ int64) bool { return c.byDevices(n, name) })
	return !n.allocatable.less(&asks)
}

// special is what a pod needs of devices without naming a claim: extended resources that classes stand for. For the node that it
// gets, one claim is made.
type special struct {
	// stale is such a claim of an earlier attempt that came to nothing. It has to go first.
	stale *resourcev1.ResourceClaim
	wants []corev1.ResourceName // in order
	// uid stands for the claim until there is one.
	uid types.UID
	// variants are the claims by what of wants comes from devices; on says which is a node's.
	variants map[string]*variant
	on       map[*node]*variant
}

// variant is the claim for nodes that leave the same resources to devices, and which request serves which container.
type variant struct {
	claim    *resourcev1.ResourceClaim
	mappings []corev1.ContainerExtendedResourceRequest
}

// specialOf is what a pod needs of devices for its extended resources, nil for nothing.
func (s *Scheduler) specialOf(p *pod) *special {
	if len(p.asks.extended) == 0 || len(s.devices.classes) == 0 {
		return nil
	}
	x := &special{}
	for name, v := range p.asks.extended {
		if v > 0 && s.devices.classOf(name) != nil {
			x.wants = append(x.wants, name)
		}
	}
	if len(x.wants) == 0 {
		return nil
	}
	slices.Sort(x.wants)
	x.stale = s.devices.specials[p.object.UID]
	x.uid, x.variants, x.on = uuid.NewUUID(), map[string]*variant{}, map[*node]*variant{}
	return x
}

// isSpecial tells the claims that are made for extended resources.
func isSpecial(c *resourcev1.ResourceClaim) bool {
	return c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] == "true"
}

// reasonStale keeps a pod waiting until what is left of an earlier attempt is gone.
var reasonStale = &reason{"cannot schedule extended resource claim", true, claimChanges}

// variant is the claim that a pod needs on a node, nil if the node has all that it asks for. It is remembered.
func (n *needs) variant(on *node) *variant {
	x := n.special
	if x == nil {
		return nil
	}
	if v, ok := x.on[on]; ok {
		return v
	}
	var left []corev1.ResourceName
	key := ""
	for _, name := range x.wants {
		if on.allocatable.extended[name] == 0 {
			left = append(left, name)
			key += string(name) + "|"
		}
	}
	v := x.variants[key]
	if v == nil && len(left) > 0 {
		v = newVariant(n.pod, x.uid, left, n.classOf)
		x.variants[key] = v
	}
	x.on[on] = v
	return v
}

func newVariant(pod *corev1.Pod, uid types.UID, resources []corev1.ResourceName, classOf func(corev1.ResourceName) *resourcev1.DeviceClass) *variant {
	v := &variant{claim: &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, GenerateName: pod.Name + "-extended-resources-", UID: uid,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: new(true)}},
		Annotations:     map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"},
	}}}
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	requests := &v.claim.Spec.Devices.Requests
	for _, name := range resources {
		class := classOf(name)
		if class == nil {
			continue
		}
		r := requesting{containers: containers, init: len(pod.Spec.InitContainers), resource: name, class: class.Name}
		r.work()
		*requests = append(*requests, r.requests...)
		v.mappings = append(v.mappings, r.mappings...)
	}
	slices.SortFunc(*requests, func(a, b resourcev1.DeviceRequest) int { return strings.Compare(a.Name, b.Name) })
	return v
}

// requesting turns what the containers of a pod ask for of one resource into requests for devices. Containers that run side by side have
// requests of their own. An init container that ends uses the devices of those that start after it; what it lacks beyond them is one
// request that such containers share, as large as the largest.
type requesting struct {
	containers []corev1.Container
	init       int // how many of them are init containers
	resource   corev1.ResourceName
	class      string

	requests []resourcev1.DeviceRequest
	mappings []corev1.ContainerExtendedResourceRequest
}

func (r *requesting) work() {
	own := make([]*resourcev1.DeviceRequest, len(r.containers)) // of those that stay
	for i := range r.containers {
		if count := r.count(i); count > 0 && !r.ends(i) {
			own[i] = r.request(i, count)
			r.requests = append(r.requests, *own[i])
			r.maps(i, own[i].Name)
		}
	}
	var shared *resourcev1.DeviceRequest
	var lacking []int
	for i := range r.init {
		left := r.count(i)
		if left <= 0 || !r.ends(i) {
			continue
		}
		for _, later := range own[i:] {
			if left > 0 && later != nil {
				left -= later.Exactly.Count
				r.maps(i, later.Name)
			}
		}
		if left > 0 {
			lacking = append(lacking, len(r.mappings))
			r.maps(i, "")
			if shared == nil || shared.Exactly.Count < left {
				shared = r.request(i, left)
			}
		}
	}
	if shared != nil {
		r.requests = append(r.requests, *shared)
	}
	for _, i := range lacking {
		r.mappings[i].RequestName = shared.Name
	}
}

// ends tells the containers that are done before others start.
func (r *requesting) ends(i int) bool {
	policy := r.containers[i].RestartPolicy
	return i < r.init && (policy == nil || *policy != corev1.ContainerRestartPolicyAlways)
}

func (r *requesting) count(i int) int64 {
	q := r.containers[i].Resources.Requests[r.resource]
	n, ok := q.AsInt64()
	if !ok {
		return 0
	}
	return n
}

// request names a request by the places of the container and, by name, of the resource among all that the container asks for.
func (r *requesting) request(i int, count int64) *resourcev1.DeviceRequest {
	names := slices.Sorted(maps.Keys(r.containers[i].Resources.Requests))
	return &resourcev1.DeviceRequest{
		Name: fmt.Sprintf("container-%d-request-%d", i, slices.Index(names, r.resource)),
		Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: r.class,
			AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: count},
	}
}

func (r *requesting) maps(i int, request string) {
	r.mappings = append(r.mappings, corev1.ContainerExtendedResourceRequest{
		ContainerName: r.containers[i].Name, ResourceName: string(r.resource), RequestName: request})
}

// writeSpecial makes the claim of a pod for extended resources, with its devices, and names it in the pod's status. The claim is
// returned as soon as it exists, also if what follows fails.
func (s *Scheduler) writeSpecial(ctx context.Context, pod *corev1.Pod, v *variant, result *resourcev1.AllocationResult) (*resourcev1.ResourceClaim, error) {
	claim := v.claim.DeepCopy()
	claim.UID = ""
	claim.Finalizers = []string{resourcev1.Finalizer}
	made, err := s.Client.Create(ctx, client.ResourceClaims.Name, claim, client.WriteOptions{})
	if err != nil {
		return nil, fmt.Errorf("create claim for extended resources %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	claim = made.(*resourcev1.ResourceClaim)
	written, err := s.writeClaim(ctx, pod, claim, result)
	if err != nil {
		return claim, err
	}
	status := &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: claim.Name, RequestMappings: v.mappings}
	gone := false
	_, err = client.Mutate(ctx, s.Client, client.Pods, pod.Namespace, pod.Name, "status", func(p *corev1.Pod) bool {
		if gone = p.UID != pod.UID; gone {
			return false
		}
		p.Status.ExtendedResourceClaimStatus = status
		return true
	})
	if err == nil && gone {
		err = apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
	}
	if err != nil {
		return written, fmt.Errorf("update pod %s/%s ExtendedResourceClaimStatus: %w", pod.Namespace, pod.Name, err)
	}
	return written, nil
}

// settleSpecial takes note of how making the claim of a variant ended, which may have been made even if err is not nil.
func (s *Scheduler) settleSpecial(v *variant, made *resourcev1.ResourceClaim, result *resourcev1.AllocationResult, err error) {
	switch {
	case v == nil:
		return
	case made == nil:
		s.devices.release(v.claim.UID)
		return
	case err != nil:
		result = nil
	default:
		// Of one that is gone already no event may come any more.
		if now, ok := client.ResourceClaims.Get(s.Client.Snapshot(), made.Namespace, made.Name); !ok || now.UID != made.UID {
			result = nil
		}
	}
	s.devices.settle(v.claim.UID, made.UID, result)
}

// removeSpecial removes the claim of an attempt that came to nothing.
func (s *Scheduler) removeSpecial(ctx context.Context, claim *resourcev1.ResourceClaim) error {
	_, err := client.Mutate(ctx, s.Client, client.ResourceClaims, claim.Namespace, claim.Name, "", func(c *resourcev1.ResourceClaim) bool {
		i := slices.Index(c.Finalizers, resourcev1.Finalizer)
		if c.UID != claim.UID || i < 0 {
			return false
		}
		c.Finalizers = slices.Delete(c.Finalizers, i, i+1)
		return true
	})
	if err == nil {
		err = s.Client.Delete(ctx, client.Ref{Resource: client.ResourceClaims.Name, Namespace: claim.Namespace, Name: claim.Name},
			client.DeleteOptions{UID: claim.UID})
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
