package deployment

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// fences are maxSurge and maxUnavailable in pods; of two zeros, the second becomes one.
func fences(d *appsv1.Deployment) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || r == nil {
		return 0, 0
	}
	n := int(*d.Spec.Replicas)
	s, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxSurge, intstr.FromInt32(0)), n, true)
	u, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(0)), n, false)
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), int32(u)
}

func (p *pass) maxSurge() int32 {
	surge, _ := fences(p.d)
	return surge
}

func (p *pass) maxUnavailable() int32 {
	if *p.d.Spec.Replicas == 0 {
		return 0
	}
	_, unavailable := fences(p.d)
	return min(unavailable, *p.d.Spec.Replicas)
}

// available is how many available pods the replica set will keep: its status may be older than its size.
func (s *set) available() int32 { return min(s.Status.AvailableReplicas, s.size()) }

// sizes is the sum of what replica sets ask for, available that of what they have and will keep.
func sizes(sets []*set) (n int32) {
	for _, rs := range sets {
		n += rs.size()
	}
	return n
}

func available(sets []*set) (n int32) {
	for _, rs := range sets {
		n += rs.available()
	}
	return n
}

// scale sets the size of a replica set and tells whether that is a change.
func (p *pass) scale(rs *set, n int32) bool {
	if rs.size() == n {
		return false
	}
	p.setSize(rs, n)
	return true
}

// setSize is scale that also brings the annotations up to date which say for what size of the
// deployment the replica set was scaled.
func (p *pass) setSize(rs *set, n int32) {
	setSizes(rs, *p.d.Spec.Replicas, p.maxSurge())
	if rs.size() != n {
		rs.edit().Spec.Replicas = &n
	}
}

func setSizes(rs *set, desired, surge int32) {
	for k, v := range map[string]string{desiredAnnotation: fmt.Sprint(desired), maxAnnotation: fmt.Sprint(desired + surge)} {
		if rs.Annotations[k] != v {
			setAnnotation(rs, k, v)
		}
	}
}

// newSize is how large the new replica set may be now.
func (p *pass) newSize() int32 {
	desired := *p.d.Spec.Replicas
	if p.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return desired
	}
	var now int32
	if p.new.Spec.Replicas != nil {
		now = *p.new.Spec.Replicas
	}
	total := sizes(p.old) + now
	room := desired + p.maxSurge() - total
	if room <= 0 {
		return now
	}
	return now + min(room, desired-now)
}

// growNew scales the new replica set, and tells whether it did.
func (p *pass) growNew() bool {
	desired := *p.d.Spec.Replicas
	if p.new.size() > desired {
		return p.scale(p.new, desired)
	}
	if p.new.created || p.new.size() == desired {
		return false
	}
	return p.scale(p.new, p.newSize())
}

// shrinkOld scales old replica sets down as far as enough pods stay available, those without
// healthy pods first, and tells whether it did.
func (p *pass) shrinkOld() bool {
	if sizes(p.old) == 0 {
		return false
	}
	least := *p.d.Spec.Replicas - p.maxUnavailable()
	newMissing := p.new.size() - p.new.available()
	budget := sizes(p.all) - least - newMissing
	if budget <= 0 {
		return false
	}
	shrunk := false
	for _, rs := range p.old { // pods that are not available are not missed
		n := min(budget, rs.size()-rs.available())
		if n > 0 && rs.size() > 0 {
			p.scale(rs, rs.size()-n)
			budget -= n
			shrunk = true
		}
	}
	spare := available(p.all) - least
	for _, rs := range p.old {
		if n := min(spare, rs.size()); n > 0 {
			p.scale(rs, rs.size()-n)
			spare -= n
			shrunk = true
		}
	}
	return shrunk
}

// sizeChanged tells whether the deployment was scaled since its replica sets were. With Recreate and several active
// replica sets there is nothing to be scaled: the old ones have to go first. Upstream scales and rolls out neither then.
func (p *pass) sizeChanged() bool {
	if p.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType && p.activeOrLatest() == nil && !p.saturated() {
		return false
	}
	for _, rs := range p.all {
		if rs.size() == 0 {
			continue
		}
		if desired, ok := number(rs.Annotations, desiredAnnotation); ok && desired != *p.d.Spec.Replicas {
			return true
		}
	}
	return false
}

func number(annotations map[string]string, key string) (int32, bool) {
	n, err := strconv.ParseInt(annotations[key], 10, 32)
	return int32(n), err == nil
}

// resize brings the replica sets to the size of the deployment without rolling anything out.
func (p *pass) resize() {
	p.ensureNew(false)
	p.distribute()
	if p.d.Spec.Paused {
		p.cleanup()
	}
	p.observe()
}

// distribute scales what is there: the only active replica set, or all in proportion to their size.
func (p *pass) distribute() {
	desired := *p.d.Spec.Replicas
	if only := p.activeOrLatest(); only != nil {
		p.setSize(only, desired) // also of one that has that size by chance: it is not to look scaled for another for ever
		return
	}
	if p.saturated() {
		for _, rs := range p.old {
			p.scale(rs, 0)
		}
		return
	}
	if p.d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		p.proportion(desired)
	}
}

// activeOrLatest is the one active replica set, or the newest if none is; nil if several are.
func (p *pass) activeOrLatest() *set {
	var active []*set
	for _, rs := range p.all {
		if rs.size() > 0 {
			active = append(active, rs)
		}
	}
	switch {
	case len(active) == 1:
		return active[0]
	case len(active) > 1 || len(p.all) == 0:
		return nil
	case p.new != nil:
		return p.new
	}
	return p.old[len(p.old)-1]
}

// saturated tells whether the new replica set is all that the deployment asks for.
func (p *pass) saturated() bool {
	if p.new == nil {
		return false
	}
	n := *p.d.Spec.Replicas
	desired, ok := number(p.new.Annotations, desiredAnnotation)
	return ok && p.new.size() == n && desired == n && p.new.Status.AvailableReplicas == n
}

// proportion gives each active replica set its share of what is to be added or taken away, and
// the largest one what rounding leaves.
func (p *pass) proportion(desired int32) {
	var active []*set
	for _, rs := range p.all {
		if rs.size() > 0 {
			active = append(active, rs)
		}
	}
	var allowed int32
	if desired > 0 {
		allowed = desired + p.maxSurge()
	}
	toAdd := allowed - sizes(active)
	slices.SortStableFunc(active, func(a, b *set) int {
		if a.size() != b.size() {
			return int(b.size() - a.size())
		}
		if toAdd > 0 {
			return -byAge(a, b) // newer ones grow first
		}
		return byAge(a, b) // older ones shrink first
	})
	var added int32
	want := make([]int32, len(active))
	for i, rs := range active {
		share := p.share(rs, toAdd, added)
		want[i] = rs.size() + share
		added += share
	}
	for i, rs := range active {
		if i == 0 {
			want[i] = max(want[i]+toAdd-added, 0)
		}
		p.setSize(rs, want[i])
	}
}

// share is what a replica set gets of toAdd, of which added is given away already.
func (p *pass) share(rs *set, toAdd, added int32) int32 {
	if toAdd == 0 || toAdd == added {
		return 0
	}
	fraction := p.fraction(rs)
	if toAdd > 0 {
		return min(fraction, toAdd-added)
	}
	return max(fraction, toAdd-added)
}

// fraction is by how much a replica set grows if it keeps its part of the deployment.
func (p *pass) fraction(rs *set) int32 {
	if *p.d.Spec.Replicas == 0 {
		return -rs.size()
	}
	before, ok := number(rs.Annotations, maxAnnotation)
	if !ok || before == 0 {
		if before = p.d.Status.Replicas; before == 0 {
			return 0
		}
	}
	size := float64(rs.size()) * float64(*p.d.Spec.Replicas+p.maxSurge()) / float64(before)
	return int32(math.Round(size)) - rs.size()
}

// revisionOf is the revision of a replica set, 0 for none.
func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func maxRevision(sets []*set) (n int64) {
	for _, rs := range sets {
		n = max(n, revisionOf(rs.ReplicaSet))
	}
	return n
}
