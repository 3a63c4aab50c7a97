package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// bindTimeout is how long a pod that has a node waits for its volumes (VolumeBindingArgs.bindTimeoutSeconds).
const bindTimeout = 10 * time.Minute

// assumed are volumes and claims as the scheduler has decided them, until the store shows another version than the one that
// it decided on.
type assumed struct {
	volumes map[string]*corev1.PersistentVolume
	claims  map[string]*corev1.PersistentVolumeClaim
}

func newAssumed() assumed {
	return assumed{map[string]*corev1.PersistentVolume{}, map[string]*corev1.PersistentVolumeClaim{}}
}

// volume returns what a volume of the store is taken to be.
func (a *assumed) volume(v *corev1.PersistentVolume) *corev1.PersistentVolume {
	if mine := a.volumes[v.Name]; mine != nil && mine.UID == v.UID && mine.ResourceVersion == v.ResourceVersion {
		return mine
	}
	delete(a.volumes, v.Name)
	return v
}

// claim returns what a claim of the store is taken to be.
func (a *assumed) claim(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	key := c.Namespace + "/" + c.Name
	if mine := a.claims[key]; mine != nil && mine.UID == c.UID && mine.ResourceVersion == c.ResourceVersion {
		return mine
	}
	delete(a.claims, key)
	return c
}

// take assumes a plan for a node.
func (a *assumed) take(p *volumePlan, node string) {
	for _, b := range p.bind {
		v := b.volume.DeepCopy()
		reserve(v, b.claim)
		a.volumes[v.Name] = v
	}
	for _, c := range p.provision {
		claim := c.claim.DeepCopy()
		setAnnotation(&claim.Annotations, annotationSelectedNode, node)
		a.claims[claim.Namespace+"/"+claim.Name] = claim
	}
}

// drop takes a plan back.
func (a *assumed) drop(p *volumePlan) {
	for _, b := range p.bind {
		delete(a.volumes, b.volume.Name)
	}
	for _, c := range p.provision {
		delete(a.claims, c.claim.Namespace+"/"+c.claim.Name)
	}
}

func setAnnotation(all *map[string]string, key, value string) {
	if *all == nil {
		*all = map[string]string{}
	}
	(*all)[key] = value
}

// reserve names a claim in a volume, as whatever binds volumes does.
func reserve(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
	if v.Spec.ClaimRef == nil || v.Spec.ClaimRef.Name != c.Name || v.Spec.ClaimRef.Namespace != c.Namespace {
		setAnnotation(&v.Annotations, annotationBound, "yes")
	}
	v.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name,
		UID: c.UID, ResourceVersion: c.ResourceVersion}
}

// awaited is a pod that has a node and waits there for its volumes.
type awaited struct {
	it   *item
	pod  *corev1.Pod
	node string
	plan volumePlan
	due  time.Time
	// claims are devices that have to become ready, rest is what is then to be done for volumes.
	claims []*resourcev1.ResourceClaim
	rest   volumePlan
}

// bind gives a pod the node that was decided: at once or, if claims of it still need volumes, when they have them.
func (s *Scheduler) bind(ctx context.Context, it *item, node string, plan volumePlan) error {
	pod := it.pod.object
	if len(plan.bind)+len(plan.provision) == 0 {
		return s.do(ctx, func(work context.Context) {
			err := s.assign(work, pod, node)
			s.report(ctx, func() { s.bound(it, pod, node, err) })
		})
	}
	s.assumed.take(&plan, node)
	return s.do(ctx, func(work context.Context) {
		err := s.writePlan(work, &plan, node)
		s.report(ctx, func() {
			if err != nil {
				s.assumed.drop(&plan)
				s.unbound(it, pod, node, "PreBind", "VolumeBinding", err)
				return
			}
			w := &awaited{it: it, pod: pod, node: node, plan: plan, due: s.Now().Add(it.pod.profile.bindTimeout)}
			s.awaiting[pod.UID] = w
			s.check(ctx, w, s.Client.Snapshot(), s.Now())
		})
	})
}

// assign binds a pod: by the extender that does that for pods like it, or by itself.
func (s *Scheduler) assign(ctx context.Context, pod *corev1.Pod, node string) error {
	for _, e := range s.Configuration.Extenders {
		if e.BindVerb != "" && e.interested(pod) {
			err := e.bind(pod, node)
			if err == nil || !e.Ignorable {
				return err
			}
		}
	}
	return s.Client.Bind(ctx, pod.Namespace, pod.Name, pod.UID, node)
}

// failed lets a pod try again after a pass that came to nothing.
func (s *Scheduler) failed(it *item, err error) {
	pod := it.pod.object
	s.queue.retry(it, s.Now())
	s.Log.Warn("scheduling failed", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	s.record(pod.Spec.SchedulerName, pod, corev1.EventTypeWarning, "FailedScheduling", err.Error())
	select { // as above
	case s.work <- func(ctx context.Context) {
		s.setStatus(ctx, pod, unscheduled(corev1.PodReasonSchedulerError, err.Error()), nil)
	}:
	default:
	}
}

// writePlan reserves the volumes of a plan for their claims, and asks provisioners for the others.
func (s *Scheduler) writePlan(ctx context.Context, plan *volumePlan, node string) error {
	for _, b := range plan.bind {
		v := b.volume.DeepCopy()
		reserve(v, b.claim)
		if _, err := s.Client.Update(ctx, client.PersistentVolumes.Name, v, client.WriteOptions{}); err != nil {
			return err
		}
	}
	for _, c := range plan.provision {
		if c.claim.Annotations[annotationSelectedNode] == node {
			continue // asked for already
		}
		claim := c.claim.DeepCopy()
		setAnnotation(&claim.Annotations, annotationSelectedNode, node)
		if _, err := s.Client.Update(ctx, client.PersistentVolumeClaims.Name, claim, client.WriteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// checkAwaited looks at the pods that wait for volumes, if any volume, claim or node has changed or one of them has waited too long.
func (s *Scheduler) checkAwaited(ctx context.Context) {
	if len(s.awaiting) == 0 {
		return
	}
	if first, _ := s.nextAwaited(); !s.moved && first.After(s.Now()) {
		return
	}
	s.moved = false
	snap, now := s.Client.Snapshot(), s.Now()
	for _, w := range s.awaiting {
		s.check(ctx, w, snap, now)
	}
}

// check binds a pod if its volumes are there, and lets it try again if they will not come.
func (s *Scheduler) check(ctx context.Context, w *awaited, snap store.Snapshot, now time.Time) {
	uid := w.pod.UID
	if s.binding[uid] != w.it { // it is gone, or somebody else has bound it
		delete(s.awaiting, uid)
		return
	}
	done, err := w.ready(snap)
	if w.claims != nil {
		done, err = w.claimsReady(snap)
	}
	if err == nil && !done && !w.due.After(now) {
		err = context.DeadlineExceeded
	}
	switch {
	case err != nil:
		delete(s.awaiting, uid)
		if w.claims != nil {
			s.unbound(w.it, w.pod, w.node, "PreBind", "DynamicResources", fmt.Errorf("device binding: %w", err))
			return
		}
		s.assumed.drop(&w.plan)
		s.unbound(w.it, w.pod, w.node, "PreBind", "VolumeBinding", fmt.Errorf("binding volumes: %w", err))
	case done:
		delete(s.awaiting, uid)
		_ = s.bind(ctx, w.it, w.node, w.rest) // fails only when the scheduler ends
	}
}

// nextAwaited is when the first of those that wait gives up.
func (s *Scheduler) nextAwaited() (first time.Time, ok bool) {
	for _, w := range s.awaiting {
		if !ok || w.due.Before(first) {
			first, ok = w.due, true
		}
	}
	return first, ok
}

// ready tells whether all volumes of a plan are bound; an error says that they will not be.
func (w *awaited) ready(snap store.Snapshot) (bool, error) {
	object, ok := client.Nodes.Get(snap, "", w.node)
	if !ok {
		return false, fmt.Errorf("failed to get node %q: node %q not found", w.node, w.node)
	}
	n := &node{name: w.node, object: object, labels: object.Labels}
	done := true
	for _, b := range w.plan.bind {
		v, ok := client.PersistentVolumes.Get(snap, "", b.volume.Name)
		switch {
		case !ok:
			return false, fmt.Errorf("failed to check binding: persistentvolume %q not found", b.volume.Name)
		case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == "":
			return false, fmt.Errorf("ClaimRef got reset for pv %q", v.Name)
		}
		if err := reachable(v, n); err != nil {
			return false, err
		}
		claim, ok := client.PersistentVolumeClaims.Get(snap, b.claim.Namespace, b.claim.Name)
		if !ok {
			return false, fmt.Errorf("failed to check binding: persistentvolumeclaim %q not found", b.claim.Name)
		}
		done = done && fullyBound(claim)
	}
	for _, p := range w.plan.provision {
		claim, ok := client.PersistentVolumeClaims.Get(snap, p.claim.Namespace, p.claim.Name)
		switch {
		case !ok:
			return false, fmt.Errorf("failed to check provisioning pvc: persistentvolumeclaim %q not found", p.claim.Name)
		case claim.Annotations[annotationSelectedNode] != w.node:
			return false, fmt.Errorf("provisioning failed for PVC %q", claim.Name)
		}
		if v, ok := client.PersistentVolumes.Get(snap, "", claim.Spec.VolumeName); ok {
			if err := reachable(v, n); err != nil {
				return false, err
			}
		}
		done = done && fullyBound(claim)
	}
	return done, nil
}

func reachable(v *corev1.PersistentVolume, n *node) error {
	if c := newChoice(v); c == nil || !c.reaches(n) {
		return fmt.Errorf("pv %q node affinity doesn't match node %q: %w", v.Name, n.name, errors.New("no matching NodeSelectorTerms"))
	}
	return nil
}

// unbound takes back the place of a pod that could not be bound. The store says what became of the pod.
func (s *Scheduler) unbound(it *item, pod *corev1.Pod, node, point, plugin string, err error) {
	if s.binding[pod.UID] != it {
		return // the store has told already what became of the pod
	}
	delete(s.binding, pod.UID)
	s.unreserve(it, pod)
	now := s.Now()
	was := s.cluster.pods[pod.UID]
	s.cluster.Forget(pod.UID)
	s.wakeForPods(was, nil, now)
	current, ok := client.Pods.Get(s.Client.Snapshot(), pod.Namespace, pod.Name)
	if !ok || current.UID != pod.UID || current.Spec.NodeName != "" || terminal(current) ||
		current.DeletionTimestamp != nil || len(current.Spec.SchedulingGates) > 0 {
		s.queue.remove(pod.UID)
		return
	}
	s.queue.put(current, now)
	s.queue.retry(it, now)
	message := fmt.Sprintf("running %s plugin %q: %v", point, plugin, err)
	if !apierrors.IsConflict(err) || point == "Bind" {
		s.Log.Warn("binding failed", "pod", pod.Namespace+"/"+pod.Name, "node", node, "error", err)
	}
	s.record(current.Spec.SchedulerName, current, corev1.EventTypeWarning, "FailedScheduling", message)
	none := ""
	select { // nobody waits for the condition: should there be no room, the next attempt says it
	case s.work <- func(ctx context.Context) {
		s.setStatus(ctx, current, unscheduled(corev1.PodReasonSchedulerError, message), &none)
	}:
	default:
	}
}
