package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"
	"k8s.io/klog/v2"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// quietly is a context whose logger says nothing.
var quietly = klog.NewContext(context.Background(), klog.Logger{})

// allocateTimeout bounds the search for devices on one node (DynamicResourcesArgs.filterTimeout).
const allocateTimeout = 10 * time.Second

// needs are the claims of a pod in one pass (KEP-4381).
type needs struct {
	pod    *corev1.Pod
	claims []*resourcev1.ResourceClaim
	// at says, for each claim, which nodes its devices can be used on; nil for all, and for claims that have none yet.
	at []*nodeaffinity.NodeSelector
	// open are the claims that have no devices yet.
	open      []*resourcev1.ResourceClaim
	allocator structured.Allocator
	// special is what the pod needs of devices for extended resources, nil for nothing; classOf gives their classes.
	special *special
	classOf func(corev1.ResourceName) *resourcev1.DeviceClass
	now     time.Time

	// found are the devices for open and then for the node's variant of special, by node; refused why a node has none.
	found   map[*node][]resourcev1.AllocationResult
	refused map[*node]*reason
	reasons map[string]*reason
	// stuck are claims whose devices are of no use on a node that was looked at: to be freed if no node is left.
	stuck map[*resourcev1.ResourceClaim]bool
	err   error // ends the pass: something is wrong with a claim or a class
}

// needsOf looks up the claims of a pod, nil if it has none. problem keeps it off all nodes; waits says that the claims are still being
// made, of which nothing is told.
func (s *Scheduler) needsOf(snap store.Snapshot, p *pod) (n *needs, problem string, waits bool) {
	pod := p.object
	n = &needs{pod: pod, now: s.Now(), classOf: s.devices.classOf, found: map[*node][]resourcev1.AllocationResult{}, refused: map[*node]*reason{}, reasons: map[string]*reason{},
		stuck: map[*resourcev1.ResourceClaim]bool{}}
	for i := range pod.Spec.ResourceClaims {
		name, mustOwn, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if err != nil {
			return nil, err.Error(), errors.Is(err, resourceclaim.ErrClaimNotFound)
		}
		if name == nil {
			continue // it needs none
		}
		claim, ok := client.ResourceClaims.Get(snap, pod.Namespace, *name)
		switch {
		case !ok:
			return nil, fmt.Sprintf("resourceclaim.resource.k8s.io %q not found", *name), mustOwn
		case claim.DeletionTimestamp != nil:
			return nil, fmt.Sprintf("resourceclaim %q is being deleted", claim.Name), false
		}
		if mustOwn {
			if err := resourceclaim.IsForPod(pod, claim, false); err != nil {
				return nil, err.Error(), false
			}
		}
		if problem := s.need(n, claim); problem != "" {
			return nil, problem, false
		}
	}
	n.special = s.specialOf(p)
	if len(n.claims) == 0 && n.special == nil {
		return nil, "", false
	}
	if len(n.open) > 0 || n.special != nil && n.special.stale == nil {
		n.allocator, n.err = s.devices.allocator()
	}
	return n, "", false
}

// need adds a claim, or says what is wrong with it.
func (s *Scheduler) need(n *needs, claim *resourcev1.ResourceClaim) (problem string) {
	n.claims, n.at = append(n.claims, claim), append(n.at, nil)
	if a := claim.Status.Allocation; a != nil {
		if a.NodeSelector != nil {
			selector, err := nodeaffinity.NewNodeSelector(a.NodeSelector)
			if err != nil {
				n.err = err
				return ""
			}
			n.at[len(n.at)-1] = selector
		}
		return ""
	}
	if s.devices.taken[claim.UID].pending {
		return fmt.Sprintf("resource claim %s/%s is in the process of being allocated", claim.Namespace, claim.Name)
	}
	for i := range claim.Spec.Devices.Requests {
		r := &claim.Spec.Devices.Requests[i]
		if r.Exactly == nil && len(r.FirstAvailable) == 0 {
			return fmt.Sprintf("resource claim %s/%s, request %s: unknown request type", claim.Namespace, claim.Name, r.Name)
		}
		if r.Exactly != nil && s.devices.classes[r.Exactly.DeviceClassName] == nil {
			return fmt.Sprintf("request %s: device class %s does not exist", r.Name, r.Exactly.DeviceClassName)
		}
		for k := range r.FirstAvailable {
			if f := &r.FirstAvailable[k]; s.devices.classes[f.DeviceClassName] == nil {
				return fmt.Sprintf("request %s/%s: device class %s does not exist", r.Name, f.Name, f.DeviceClassName)
			}
		}
	}
	n.open = append(n.open, claim)
	return ""
}

// Reasons of DynamicResources. What its allocator says of a node is a reason too.
var (
	reasonClaimElsewhere = &reason{"resourceclaim not available on the node", true, claimChanges}
	reasonNoDevices      = &reason{"cannot allocate all claims", true, claimChanges}
)

// claimChanges are those that a pod hopes for whose devices are not on a node.
const claimChanges = nodeAdded | nodeLabels | nodeAllocatable | deviceChanges

// allows tells whether the claims that are allocated can be used on a node, and whether there are devices for the others. It
// remembers both: nothing that happens during a pass changes them.
func (n *needs) allows(on *node) *reason {
	if n.err != nil {
		return reasonNoDevices
	}
	if n.special != nil && n.special.stale != nil {
		return reasonStale
	}
	for i, claim := range n.claims {
		if claim.Status.Allocation == nil {
			continue
		}
		useless := n.at[i] != nil && !n.at[i].Match(on.object)
		if !useless {
			ready, err := claimReady(claim)
			useless = err != nil || !ready && bindingOverdue(claim, n.now)
		}
		if useless {
			n.stuck[claim] = true
			return reasonClaimElsewhere
		}
	}
	open := n.open
	if v := n.variant(on); v != nil {
		open = append(slices.Clip(open), v.claim)
	}
	if len(open) == 0 || n.found[on] != nil {
		return nil
	}
	if why := n.refused[on]; why != nil {
		return why
	}
	ctx, cancel := context.WithTimeout(quietly, allocateTimeout)
	results, err := n.allocator.Allocate(ctx, on.object, open)
	cancel()
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		n.err = fmt.Errorf("node %s: timed out trying to allocate devices", on.name)
	case errors.Is(err, structured.ErrFailedAllocationOnNode):
		n.refused[on] = n.reason(err.Error())
	case err != nil:
		n.err = err
	case len(results) != len(open):
		n.refused[on] = reasonNoDevices
	default:
		n.found[on] = results
		return nil
	}
	if n.err != nil {
		return reasonNoDevices
	}
	return n.refused[on]
}

func (n *needs) reason(text string) *reason {
	if n.reasons[text] == nil {
		n.reasons[text] = &reason{text, true, claimChanges}
	}
	return n.reasons[text]
}

// devicesAllow applies DynamicResources.
func (c *candidate) devicesAllow(on *node) *reason {
	if c.needs == nil || !c.profile.uses(ruleDevices) {
		return nil
	}
	return c.needs.allows(on)
}

// addDevices prefers nodes where the first of several alternatives can be had.
func (c *Cluster) addDevices(cand *candidate, nodes []*node, scores []int64, weight int64) {
	if cand.needs == nil {
		return
	}
	raw, most := make([]int64, len(nodes)), int64(0)
	for i, on := range nodes {
		raw[i] = cand.needs.worth(on)
		most = max(most, raw[i])
	}
	for i := range nodes {
		if most > 0 {
			scores[i] += weight * (raw[i] * maxScore / most)
		}
	}
}

// worth adds up how early in their lists the alternatives are that a node has.
func (n *needs) worth(on *node) int64 {
	score, open := int64(0), 0
	for _, claim := range n.claims {
		result := claim.Status.Allocation
		if result == nil {
			if open >= len(n.found[on]) || open >= len(n.open) {
				return 0
			}
			result = &n.found[on][open]
			open++
		}
		for i := range claim.Spec.Devices.Requests {
			r := &claim.Spec.Devices.Requests[i]
			for k := range r.FirstAvailable {
				name := r.Name + "/" + r.FirstAvailable[k].Name
				if slices.ContainsFunc(result.Devices.Results, func(d resourcev1.DeviceRequestAllocationResult) bool { return d.Request == name }) {
					score += int64(resourcev1.FirstAvailableDeviceRequestMaxSize - k)
				}
			}
		}
	}
	return score
}

// free is a claim that can be freed because its devices are of no use to its only user, nil for none.
func (n *needs) free() *resourcev1.ResourceClaim {
	if n == nil {
		return nil
	}
	for claim := range n.stuck {
		if r := claim.Status.ReservedFor; len(r) == 0 || len(r) == 1 && r[0].UID == n.pod.UID {
			return claim
		}
	}
	return nil
}

// deallocate frees a claim, so that other devices can be found for it.
func (s *Scheduler) deallocate(ctx context.Context, claim *resourcev1.ResourceClaim) {
	c := claim.DeepCopy()
	c.Status.ReservedFor, c.Status.Allocation, c.Status.Devices = nil, nil, nil
	if _, err := s.Client.Update(ctx, client.ResourceClaims.Name, c, client.WriteOptions{Subresource: "status"}); err != nil && ctx.Err() == nil {
		s.Log.Warn("claim could not be freed", "claim", c.Namespace+"/"+c.Name, "error", err)
	}
}

// bindClaims writes what a pass has decided about a pod's claims, waits for devices that have to be made ready, and goes on with its
// volumes.
func (s *Scheduler) bindClaims(ctx context.Context, it *item, n *needs, on *node, plan volumePlan) error {
	pod, name := it.pod.object, on.name
	results := map[*resourcev1.ResourceClaim]*resourcev1.AllocationResult{}
	for i, claim := range n.open {
		results[claim] = &n.found[on][i]
		s.devices.reserve(claim.UID, results[claim])
	}
	own := n.variant(on)
	var extra *resourcev1.AllocationResult
	if own != nil {
		extra = &n.found[on][len(n.open)]
		s.devices.reserve(own.claim.UID, extra)
	}
	return s.do(ctx, func(work context.Context) {
		claims, err := s.writeClaims(work, pod, n.claims, results)
		var made *resourcev1.ResourceClaim
		if err == nil && own != nil {
			if made, err = s.writeSpecial(work, pod, own, extra); made != nil {
				claims = append(claims, made)
			}
		}
		s.report(ctx, func() {
			it.reserved = claims
			s.settleSpecial(own, made, extra, err)
			if err != nil {
				for claim := range results {
					s.devices.release(claim.UID)
				}
				s.unbound(it, pod, name, "PreBind", "DynamicResources", err)
				return
			}
			if !slices.ContainsFunc(claims, hasBindingConditions) {
				_ = s.bind(ctx, it, name, plan) // fails only when the scheduler ends
				return
			}
			s.record(pod.Spec.SchedulerName, pod, corev1.EventTypeNormal, "BindingConditionsPending", "waiting for binding conditions for device on node "+name)
			w := &awaited{it: it, pod: pod, node: name, rest: plan, claims: claims, due: s.Now().Add(bindTimeout)}
			s.awaiting[pod.UID] = w
			s.check(ctx, w, s.Client.Snapshot(), s.Now())
		})
	})
}

// writeClaims gives claims their devices and reserves them for a pod. It returns those that are written, also if it fails.
func (s *Scheduler) writeClaims(ctx context.Context, pod *corev1.Pod, claims []*resourcev1.ResourceClaim, results map[*resourcev1.ResourceClaim]*resourcev1.AllocationResult) (written []*resourcev1.ResourceClaim, err error) {
	for _, claim := range claims {
		if resourceclaim.IsReservedForPod(pod, claim, false) && results[claim] == nil {
			written = append(written, claim)
			continue
		}
		out, err := s.writeClaim(ctx, pod, claim, results[claim])
		if err != nil {
			return written, err
		}
		written = append(written, out)
	}
	return written, nil
}

func (s *Scheduler) writeClaim(ctx context.Context, pod *corev1.Pod, claim *resourcev1.ResourceClaim, result *resourcev1.AllocationResult) (*resourcev1.ResourceClaim, error) {
	name := claim.Namespace + "/" + claim.Name
	if result != nil && !slices.Contains(claim.Finalizers, resourcev1.Finalizer) {
		_, err := client.Mutate(ctx, s.Client, client.ResourceClaims, claim.Namespace, claim.Name, "", func(c *resourcev1.ResourceClaim) bool {
			if c.UID != claim.UID || c.DeletionTimestamp != nil || slices.Contains(c.Finalizers, resourcev1.Finalizer) {
				return false
			}
			c.Finalizers = append(c.Finalizers, resourcev1.Finalizer)
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("add finalizer to claim %s: %w", name, err)
		}
	}
	var problem error
	out, err := client.Mutate(ctx, s.Client, client.ResourceClaims, claim.Namespace, claim.Name, "status", func(c *resourcev1.ResourceClaim) bool {
		problem = nil
		switch {
		case c.UID != claim.UID || c.DeletionTimestamp != nil:
			problem = fmt.Errorf("claim %s got deleted in the meantime", name)
		case result != nil && c.Status.Allocation != nil:
			problem = fmt.Errorf("claim %s got allocated elsewhere in the meantime", name)
		case result == nil && c.Status.Allocation == nil:
			problem = fmt.Errorf("claim %s got deallocated elsewhere in the meantime", name)
		}
		if problem != nil || result == nil && resourceclaim.IsReservedForPod(pod, c, false) {
			return false
		}
		if result != nil {
			c.Status.Allocation = result.DeepCopy()
		}
		if c.Status.Allocation.AllocationTimestamp == nil {
			now := metav1.NewTime(s.Now().Truncate(time.Second)) // as it is read again
			c.Status.Allocation.AllocationTimestamp = &now
		}
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: pod.Name, UID: pod.UID})
		return true
	})
	switch {
	case problem != nil:
		return nil, problem
	case err != nil && result != nil:
		return nil, fmt.Errorf("add allocation and reservation to claim %s: %w", name, err)
	case err != nil:
		return nil, fmt.Errorf("add reservation to claim %s: %w", name, err)
	}
	return out, nil
}

// unreserve takes the reservations of a pod back that was not bound.
func (s *Scheduler) unreserve(it *item, pod *corev1.Pod) {
	claims := it.reserved
	it.reserved = nil
	if len(claims) == 0 {
		return
	}
	undo := func(ctx context.Context) {
		for _, claim := range claims {
			if isSpecial(claim) && metav1.IsControlledBy(claim, pod) {
				if err := s.removeSpecial(ctx, claim); err != nil && ctx.Err() == nil {
					s.Log.Warn("claim for extended resources could not be removed", "claim", claim.Namespace+"/"+claim.Name, "error", err)
				}
				continue
			}
			_, err := client.Mutate(ctx, s.Client, client.ResourceClaims, claim.Namespace, claim.Name, "status", func(c *resourcev1.ResourceClaim) bool {
				before := len(c.Status.ReservedFor)
				c.Status.ReservedFor = slices.DeleteFunc(c.Status.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool { return r.UID == pod.UID })
				return len(c.Status.ReservedFor) != before
			})
			if err != nil && ctx.Err() == nil {
				s.Log.Debug("unreserve", "claim", claim.Namespace+"/"+claim.Name, "error", err)
			}
		}
	}
	select { // should there be no room, the reservation is the pod's own and does no harm
	case s.work <- undo:
	default:
	}
}

func hasBindingConditions(c *resourcev1.ResourceClaim) bool {
	return c.Status.Allocation != nil && slices.ContainsFunc(c.Status.Allocation.Devices.Results,
		func(r resourcev1.DeviceRequestAllocationResult) bool { return len(r.BindingConditions) > 0 })
}

// claimReady tells whether all conditions hold that a claim's devices have to meet before a pod is bound (KEP-5007); an error says that one
// will not.
func claimReady(c *resourcev1.ResourceClaim) (bool, error) {
	ready := true
	for i := range c.Status.Allocation.Devices.Results {
		r := &c.Status.Allocation.Devices.Results[i]
		if len(r.BindingConditions) == 0 {
			continue
		}
		holds := func(name string) bool {
			for k := range c.Status.Devices {
				d := &c.Status.Devices[k]
				if d.Driver != r.Driver || d.Pool != r.Pool || d.Device != r.Device {
					continue
				}
				if slices.ContainsFunc(d.Conditions, func(m metav1.Condition) bool { return m.Type == name && m.Status == metav1.ConditionTrue }) {
					return true
				}
			}
			return false
		}
		if i := slices.IndexFunc(r.BindingFailureConditions, holds); i >= 0 {
			return false, fmt.Errorf("claim %s binding failed: device %s/%s/%s has binding failure condition %s", c.Name, r.Driver, r.Pool, r.Device, r.BindingFailureConditions[i])
		}
		for _, name := range r.BindingConditions {
			ready = ready && holds(name)
		}
	}
	return ready, nil
}

// bindingOverdue tells whether a claim's devices have had their time to become ready.
func bindingOverdue(c *resourcev1.ResourceClaim, now time.Time) bool {
	at := c.Status.Allocation.AllocationTimestamp
	return at != nil && hasBindingConditions(c) && at.Add(bindTimeout).Before(now)
}

// claimsReady tells whether the claims of a pod that waits are ready.
func (w *awaited) claimsReady(snap store.Snapshot) (bool, error) {
	for _, known := range w.claims {
		c, ok := client.ResourceClaims.Get(snap, known.Namespace, known.Name)
		if !ok || c.UID != known.UID || c.Status.Allocation == nil {
			return false, fmt.Errorf("claim %s got deallocated elsewhere in the meantime", known.Name)
		}
		if ready, err := claimReady(c); err != nil || !ready {
			return false, err
		}
	}
	return true, nil
}

// observeDevices takes an event about devices into account and wakes whom it may help.
func (s *Scheduler) observeDevices(ev *store.Event) {
	now, d := s.Now(), s.devices
	all := func(it *item, _ change) bool {
		return len(it.pod.object.Spec.ResourceClaims)+len(it.pod.asks.extended) > 0
	}
	switch obj := ev.Entry.Object.(type) {
	case *resourcev1.ResourceClaim:
		s.moved = true
		var was *resourcev1.AllocationResult
		if ev.Prev != nil {
			old := ev.Prev.Object.(*resourcev1.ResourceClaim)
			if was = old.Status.Allocation; old.UID != obj.UID {
				d.setClaim(old, true)
			}
		} else if ev.Deleted {
			was = obj.Status.Allocation
		}
		d.setClaim(obj, ev.Deleted)
		if was != nil && (ev.Deleted || obj.Status.Allocation == nil) {
			s.queue.wake(deviceChanges, now, all)
		} else {
			s.queue.wake(deviceChanges, now, func(it *item, _ change) bool {
				return usesClaim(it.pod.object, obj) || metav1.IsControlledBy(obj, it.pod.object)
			})
		}
		return
	case *resourcev1.ResourceSlice:
		keep(d.slices, obj.Name, obj, ev.Deleted)
		d.offered = nil
	case *resourcev1.DeviceTaintRule:
		keep(d.rules, obj.Name, obj, ev.Deleted)
		d.offered = nil
	case *resourcev1.DeviceClass:
		keep(d.classes, obj.Name, obj, ev.Deleted)
		d.byResource = nil
		s.queue.wake(deviceClasses, now, all)
	}
	s.queue.wake(deviceChanges, now, all)
}

func keep[K comparable, T any](m map[K]T, name K, value T, deleted bool) {
	if deleted {
		delete(m, name)
	} else {
		m[name] = value
	}
}

func usesClaim(pod *corev1.Pod, claim *resourcev1.ResourceClaim) bool {
	if pod.Namespace != claim.Namespace {
		return false
	}
	return slices.ContainsFunc(pod.Spec.ResourceClaims, func(c corev1.PodResourceClaim) bool {
		name, _, err := resourceclaim.Name(pod, &c)
		return err == nil && name != nil && *name == claim.Name
	})
}

// claimFindings is what `why` says of the pod's claims, whatever the nodes are like.
func claimFindings(snap store.Snapshot, pod *corev1.Pod, about *Circumstances) []Finding {
	if len(pod.Spec.ResourceClaims) == 0 && about.needs == nil {
		return nil
	}
	f := Finding{Rule: "DynamicResources", Reason: about.Problem, Why: about.Problem}
	switch n := about.needs; {
	case about.waits:
		f.Why, f.Change = about.Problem+": waiting for its resource claim to be created", "see `kubectl describe pod "+pod.Name+" -n "+pod.Namespace+"` for why its template cannot be used"
	case about.claimProblem:
		f.Change = "see `kubectl get resourceclaims,deviceclasses -n " + pod.Namespace + "`"
	case n != nil && n.err != nil:
		f.Why, f.Reason, f.Change = n.err.Error(), n.err.Error(), "mend the selector of the claim or of its class"
	default:
		return nil
	}
	return []Finding{f}
}

// devices says what a node lacks for the pod's claims.
func (e *explainer) devices(n *node) []Finding {
	why := e.cand.devicesAllow(n)
	if why == nil || e.cand.needs.err != nil {
		return nil
	}
	f := Finding{Rule: "DynamicResources", Reason: why.text, Why: why.text}
	for i, claim := range e.cand.needs.claims {
		if at := e.cand.needs.at[i]; at != nil && !at.Match(n.object) {
			f.Why = fmt.Sprintf("claim %s has devices on other nodes", claim.Name)
			f.Change = fmt.Sprintf("delete the pods that use claim %s, or the claim", claim.Name)
		}
	}
	if f.Change == "" {
		var open []string
		for _, claim := range e.cand.needs.open {
			open = append(open, claim.Name)
		}
		if v := e.cand.needs.variant(n); v != nil {
			for i := range v.claim.Spec.Devices.Requests {
				r := v.claim.Spec.Devices.Requests[i].Exactly
				open = append(open, fmt.Sprintf("%d of class %s", r.Count, r.DeviceClassName))
			}
		}
		f.Why = fmt.Sprintf("%s: no free devices on the node for %v", why.text, open)
		f.Change = "free devices, or have a driver offer more (kubectl get resourceslices)"
	}
	return []Finding{f}
}
