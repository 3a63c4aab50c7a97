package deployment

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

// set is a replica set of the deployment as the pass leaves it.
type set struct {
	*appsv1.ReplicaSet
	changed, created, deleted bool
	from                      int32 // its size before the pass
}

// size is spec.replicas.
func (s *set) size() int32 {
	if s.Spec.Replicas == nil {
		return 1
	}
	return *s.Spec.Replicas
}

// edit returns the replica set for changing.
func (s *set) edit() *appsv1.ReplicaSet {
	if !s.changed && !s.created {
		s.ReplicaSet, s.changed = s.DeepCopy(), true
	}
	return s.ReplicaSet
}

// pass is one pass over a deployment: it works on copies and turns into a plan at the end.
type pass struct {
	snap store.Snapshot
	now  time.Time
	was  *appsv1.Deployment
	d    *appsv1.Deployment // the copy whose status and annotations the pass changes
	old  []*set             // by age, the oldest first
	new  *set               // of the present template, nil if there is none
	all  []*set             // old and new
	// others are claims that end the pass before the rollout goes on.
	releases []reconcile.Write
	// collision is set if the name of the new replica set is taken.
	collision bool
	after     time.Duration
}

func begin(s store.Snapshot, d *appsv1.Deployment, now time.Time) *pass {
	p := &pass{snap: s, now: now, was: d, d: d.DeepCopy()}
	if p.d.Spec.Replicas == nil {
		p.d.Spec.Replicas = new(int32(1))
	}
	found := claim.Objects(s, client.ReplicaSets, d, claim.Reference("apps/v1", "Deployment", d), claim.Selector(d.Spec.Selector), nil)
	adopted := map[string]bool{}
	for _, w := range found.Writes {
		if metav1.IsControlledBy(w.Object, d) {
			adopted[w.Object.GetName()] = true
		} else {
			p.releases = append(p.releases, w)
		}
	}
	for _, rs := range found.Owned {
		found := &set{ReplicaSet: rs, changed: adopted[rs.Name]}
		found.from = found.size()
		p.all = append(p.all, found)
	}
	slices.SortStableFunc(p.all, byAge)
	for _, rs := range p.all {
		if p.new == nil && sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			p.new = rs
		} else {
			p.old = append(p.old, rs)
		}
	}
	return p
}

// byAge orders replica sets by creation, the oldest first.
func byAge(a, b *set) int {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	}
	return cmp.Compare(a.Name, b.Name)
}

// sameTemplate compares templates without the hash that replica sets carry.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	if !equality.Semantic.DeepEqual(a.Spec, b.Spec) {
		return false
	}
	x, y := a.ObjectMeta, b.ObjectMeta
	x.Labels, y.Labels = withoutHash(x.Labels), withoutHash(y.Labels)
	return equality.Semantic.DeepEqual(x, y)
}

func withoutHash(l map[string]string) map[string]string {
	if _, ok := l[appsv1.DefaultDeploymentUniqueLabelKey]; !ok {
		return l
	}
	l = maps.Clone(l)
	delete(l, appsv1.DefaultDeploymentUniqueLabelKey)
	return l
}

// templateHash is a short name for a pod template, different for each collision count. It hashes
// the protobuf form, which fields that are added to the API later do not change.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	data, err := t.Marshal()
	if err != nil {
		panic(fmt.Sprintf("a pod template that cannot be encoded: %v", err))
	}
	_, _ = h.Write(data)
	if collisions != nil {
		fmt.Fprintf(h, "%08x", *collisions)
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// run decides what the deployment's state asks for.
func (p *pass) run() reconcile.Plan {
	if sel := p.d.Spec.Selector; sel == nil || len(sel.MatchLabels)+len(sel.MatchExpressions) == 0 {
		return p.selectsAll()
	}
	switch {
	case p.d.DeletionTimestamp != nil:
		p.observe()
	case p.d.Spec.Paused:
		p.notePause()
		p.resize()
	default:
		p.notePause()
		if p.sizeChanged() {
			p.resize()
		} else if p.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			p.recreate()
		} else {
			p.roll()
		}
	}
	return p.plan()
}

func (p *pass) selectsAll() reconcile.Plan {
	plan := reconcile.Plan{Events: []reconcile.Event{*p.event("Warning", "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")}}
	if p.d.Status.ObservedGeneration < p.d.Generation {
		p.d.Status.ObservedGeneration = p.d.Generation
		plan.Writes = []reconcile.Write{{Verb: reconcile.Update, Resource: client.Deployments.Name, Subresource: "status", Object: p.d}}
	}
	return plan
}

// plan turns what the pass changed into writes.
func (p *pass) plan() reconcile.Plan {
	plan := reconcile.Plan{Writes: p.releases, After: p.after}
	for _, rs := range p.all {
		w := reconcile.Write{Resource: client.ReplicaSets.Name, Object: rs.ReplicaSet}
		switch {
		case rs.deleted:
			w = reconcile.Write{Verb: reconcile.Delete, Resource: client.ReplicaSets.Name, Namespace: rs.Namespace, Name: rs.Name, UID: rs.UID}
		case rs.created:
			w.Verb = reconcile.Create
			w.OnFailure = p.reportCreateFailure(rs.Name)
		case rs.changed:
			w.Verb = reconcile.Update
		default:
			continue
		}
		if ev := p.scaled(rs); ev != nil && !rs.deleted {
			w.OnSuccess = func(api.Object) *reconcile.Event { return ev }
		}
		plan.Writes = append(plan.Writes, w)
	}
	if !equality.Semantic.DeepEqual(p.d.Status, p.was.Status) || !equality.Semantic.DeepEqual(p.d.Annotations, p.was.Annotations) {
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Deployments.Name, Subresource: "status", Object: p.d})
	}
	return plan
}

func (p *pass) event(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("apps/v1", "Deployment", p.was), Type: kind, Reason: reason, Message: message}
}

// scaled is the event that tells of a new size, nil if it is the old one.
func (p *pass) scaled(rs *set) *reconcile.Event {
	direction := "up"
	switch n := rs.size(); {
	case n == rs.from:
		return nil
	case n < rs.from:
		direction = "down"
	}
	return p.event("Normal", "ScalingReplicaSet", fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, rs.Name, rs.from, rs.size()))
}

func (p *pass) reportCreateFailure(name string) func(error) *reconcile.Event {
	return func(err error) *reconcile.Event {
		return p.event("Warning", failedCreate, createFailure(name, err))
	}
}

func createFailure(name string, err error) string {
	return fmt.Sprintf("Failed to create new replica set %q: %v", name, err)
}

// createFailed notes in the status that the new replica set could not be made.
func (p *pass) createFailed(err error) reconcile.Plan {
	if p.new != nil || !p.hasDeadline() {
		return reconcile.Plan{}
	}
	name := p.d.Name + "-" + templateHash(&p.d.Spec.Template, p.d.Status.CollisionCount)
	p.set(appsv1.DeploymentProgressing, corev1.ConditionFalse, failedCreate, createFailure(name, err))
	p.all, p.releases = nil, nil
	return p.plan()
}

// ensureNew sees to it that the present template has a replica set with the next revision, and
// tells whether it has one.
func (p *pass) ensureNew(create bool) bool {
	revision := maxRevision(p.old) + 1
	if p.new != nil {
		p.adjustNew(revision)
		return true
	}
	if !create {
		return false
	}
	rs := p.make(revision)
	if p.snap.Get(store.Key{Resource: client.ReplicaSets.Name, Namespace: rs.Namespace, Name: rs.Name}) != nil {
		n := int32(1)
		if c := p.d.Status.CollisionCount; c != nil {
			n = *c + 1
		}
		p.d.Status.CollisionCount, p.collision = &n, true
		return false
	}
	p.new = &set{ReplicaSet: rs, created: true}
	p.all = append(p.all, p.new)
	size := p.newSize()
	rs.Spec.Replicas = &size
	setSizes(p.new, *p.d.Spec.Replicas, p.maxSurge())
	p.setRevision(fmt.Sprint(revision))
	if p.hasDeadline() {
		p.set(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", rs.Name))
	}
	return true
}

// adjustNew brings annotations and minReadySeconds of the new replica set up to date.
func (p *pass) adjustNew(revision int64) {
	annotate(p.new, p.d, revision)
	if p.new.Spec.MinReadySeconds != p.d.Spec.MinReadySeconds {
		p.new.edit().Spec.MinReadySeconds = p.d.Spec.MinReadySeconds
	}
	p.setRevision(p.new.Annotations[revisionAnnotation])
	if p.hasDeadline() && p.condition(appsv1.DeploymentProgressing) == nil {
		p.set(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", p.new.Name))
	}
}

func (p *pass) setRevision(revision string) {
	if p.d.Annotations[revisionAnnotation] == revision {
		return
	}
	if p.d.Annotations == nil {
		p.d.Annotations = map[string]string{}
	}
	p.d.Annotations[revisionAnnotation] = revision
}

// make is the replica set for the present template, without its size.
func (p *pass) make(revision int64) *appsv1.ReplicaSet {
	hash := templateHash(&p.d.Spec.Template, p.d.Status.CollisionCount)
	template := p.d.Spec.Template.DeepCopy()
	template.Labels = withHash(template.Labels, hash)
	selector := p.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withHash(selector.MatchLabels, hash)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.d.Name + "-" + hash, Namespace: p.d.Namespace, Labels: maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{claim.Reference("apps/v1", "Deployment", p.d)},
		},
		Spec: appsv1.ReplicaSetSpec{MinReadySeconds: p.d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	annotate(&set{ReplicaSet: rs, created: true}, p.d, revision)
	return rs
}

func withHash(l map[string]string, hash string) map[string]string {
	l = maps.Clone(l)
	if l == nil {
		l = map[string]string{}
	}
	l[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	return l
}

// roll is a pass of the strategy RollingUpdate: up as far as maxSurge allows, then down as far as
// maxUnavailable does.
func (p *pass) roll() {
	if !p.ensureNew(true) {
		return
	}
	if !p.growNew() && !p.shrinkOld() && p.complete(&p.d.Status) {
		p.cleanup()
	}
	p.progress()
}

// recreate is a pass of the strategy Recreate: the new pods come when all old ones are gone.
func (p *pass) recreate() {
	p.ensureNew(false)
	shrunk := false
	for _, rs := range p.old {
		shrunk = p.scale(rs, 0) || shrunk
	}
	if shrunk || p.oldPodsRun() {
		p.progress()
		return
	}
	if p.new == nil && !p.ensureNew(true) {
		return
	}
	p.scale(p.new, *p.d.Spec.Replicas)
	if p.complete(&p.d.Status) {
		p.cleanup()
	}
	p.progress()
}

// oldPodsRun tells whether a pod of an old replica set is not certain to have ended.
func (p *pass) oldPodsRun() bool {
	for _, rs := range p.old {
		if rs.Status.Replicas > 0 {
			return true
		}
		for pod := range client.Pods.Index(p.snap, "owner", string(rs.UID)) {
			if metav1.IsControlledBy(pod, rs) && !podstate.Terminal(pod) {
				return true
			}
		}
	}
	return false
}

// cleanup deletes old replica sets beyond the history limit, the oldest revisions first.
func (p *pass) cleanup() {
	if p.d.Spec.RevisionHistoryLimit == nil || *p.d.Spec.RevisionHistoryLimit == noLimit {
		return
	}
	var alive []*set
	for _, rs := range p.old {
		if rs.DeletionTimestamp == nil {
			alive = append(alive, rs)
		}
	}
	surplus := len(alive) - int(*p.d.Spec.RevisionHistoryLimit)
	if surplus <= 0 {
		return
	}
	slices.SortStableFunc(alive, func(a, b *set) int { return cmp.Compare(revisionOf(a.ReplicaSet), revisionOf(b.ReplicaSet)) })
	for _, rs := range alive[:surplus] {
		if rs.Status.Replicas == 0 && rs.size() == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			rs.deleted = true
		}
	}
}

const noLimit = 1<<31 - 1

// Annotations of replica sets and, the first, of deployments.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
	rollbackAnnotation = "deprecated.deployment.rollback.to"
	// historyLength bounds the history annotation, in characters.
	historyLength = 2000
)

// ownAnnotations are not copied from a deployment to its replica sets.
var ownAnnotations = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true, revisionAnnotation: true, historyAnnotation: true,
	desiredAnnotation: true, maxAnnotation: true, rollbackAnnotation: true,
}

// annotate copies the deployment's annotations to its new replica set and gives it the revision.
func annotate(rs *set, d *appsv1.Deployment, revision int64) {
	for k, v := range d.Annotations {
		if had, ok := rs.Annotations[k]; !ownAnnotations[k] && (!ok || had != v) {
			setAnnotation(rs, k, v)
		}
	}
	had, ok := rs.Annotations[revisionAnnotation]
	if revisionOf(rs.ReplicaSet) >= revision {
		return
	}
	setAnnotation(rs, revisionAnnotation, fmt.Sprint(revision))
	if ok {
		setAnnotation(rs, historyAnnotation, lengthen(rs.Annotations[historyAnnotation], had))
	}
}

// lengthen adds a revision to a history, which loses its oldest ones if it grows too long.
func lengthen(history, revision string) string {
	if history == "" {
		return revision
	}
	for len(history)+1+len(revision) > historyLength {
		_, rest, ok := strings.Cut(history, ",")
		if !ok {
			return revision
		}
		history = rest
	}
	return history + "," + revision
}

func setAnnotation(rs *set, key, value string) {
	obj := rs.edit()
	if obj.Annotations == nil {
		obj.Annotations = map[string]string{}
	}
	obj.Annotations[key] = value
}
