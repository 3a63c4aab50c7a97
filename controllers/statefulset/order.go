package statefulset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/reconcile/revision"
)

// ReplaceBroken is an annotation of stateful sets. With the value "false", a rolling update of a set whose pods come
// in order waits for every pod of an old revision to become available, as upstream does: a rollout that breaks then
// needs its broken pods deleted by hand ("Forced rollback" in the documentation of stateful sets). Without it,
// pods that are not ready and never were, or that are of a rollout which was given up, are replaced as soon as there is another template for them.
const ReplaceBroken = "statefulset.coracle.dev/replace-broken"

// startup is by how much the start of a pod and its first report of not being ready may differ: both are
// stored in whole seconds.
const startup = 2 * time.Second

// ordered tells whether pods come and go one after the other.
func (p *pass) ordered() bool { return p.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement }

func (p *pass) rolling() bool {
	return p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType
}

// act decides what happens to the pods: the missing ones come in order, then those beyond the range go, the
// highest first, then those of an old revision are replaced, the highest first.
func (p *pass) act() error {
	for i := range p.replicas {
		stop, err := p.replica(i)
		if err != nil || stop {
			return err
		}
	}
	for _, pod := range p.condemned {
		n, _ := ordinal(p.set, pod)
		p.retain(n, pod, true)
	}
	if p.condemn() {
		return nil
	}
	if p.rolling() {
		p.roll()
	}
	return nil
}

// replica looks after one pod of the range, and tells whether those behind it have to wait.
func (p *pass) replica(i int) (stop bool, err error) {
	n, pod := start(p.set)+i, p.replicas[i]
	switch {
	case pod == nil:
		if p.claimsGoing(n) {
			return p.ordered(), nil
		}
		template, rev, err := p.templateOf(n)
		if err != nil {
			return true, err
		}
		p.create(n, p.make(n, template, rev))
		return p.ordered(), nil
	case ended(pod):
		if pod.DeletionTimestamp == nil {
			p.remove(pod)
		}
		return p.ordered(), nil // it is made again when it is gone
	case pod.Status.Phase == corev1.PodPending:
		p.pods = append(p.pods, p.claims(n)...)
	}
	p.retain(n, pod, false)
	if p.ordered() && (pod.DeletionTimestamp != nil || !p.available(pod)) {
		again, err := p.replaceable(n, pod)
		if again {
			p.remove(pod)
		}
		return true, err
	}
	if !identified(pod, n) && pod.DeletionTimestamp == nil {
		fixed := pod.DeepCopy()
		identify(fixed, n)
		p.change(fixed)
	}
	return false, nil
}

// replaceable tells whether pod number n, for which others wait, is broken and would be made from another template now.
func (p *pass) replaceable(n int, pod *corev1.Pod) (bool, error) {
	if !p.rolling() || pod.DeletionTimestamp != nil || !p.hopeless(pod) {
		return false, nil
	}
	_, rev, err := p.templateOf(n)
	return rev == p.update.Name && rev != revisionOf(pod), err
}

// hopeless tells whether a pod is broken and not to be waited for.
func (p *pass) hopeless(pod *corev1.Pod) bool {
	rev := revisionOf(pod)
	return p.set.Annotations[ReplaceBroken] != "false" && broken(pod, rev != p.current.Name && rev != p.update.Name)
}

// broken tells whether a pod is not ready and nothing is lost with it: it never was ready, or it is of a rollout
// that was given up, which leaves it of neither the current nor the update revision.
func broken(pod *corev1.Pod, givenUp bool) bool {
	ready := podstate.Condition(pod, corev1.PodReady)
	switch {
	case ready == nil:
		return true
	case ready.Status == corev1.ConditionTrue:
		return false
	case givenUp:
		return true
	}
	began := pod.Status.StartTime
	if began == nil {
		began = &pod.CreationTimestamp
	}
	return ready.LastTransitionTime.Sub(began.Time) <= startup
}

func (p *pass) available(pod *corev1.Pod) bool {
	ok, _ := podstate.Available(pod, p.set.Spec.MinReadySeconds, p.now)
	return ok
}

// unavailable tells whether a pod of the range counts against maxUnavailable: also one that is not there.
func (p *pass) unavailable(pod *corev1.Pod) bool {
	return pod == nil || pod.DeletionTimestamp != nil || !p.available(pod)
}

// templateOf is the template from which pod number n is made, and its revision: the old one below the partition. Where a
// rolling update names no partition, upstream counts as many as status.currentReplicas from the first; with the policy
// Parallel, which replaces unavailable pods wherever they stand, such a pod would be made from the old template again and for ever,
// so that there no partition is the partition 0 (docs/decisions/0012).
func (p *pass) templateOf(n int) (*corev1.PodTemplateSpec, string, error) {
	if !p.rolling() || p.current.Name == p.update.Name {
		return &p.set.Spec.Template, p.update.Name, nil
	}
	limit := start(p.set) + int(p.set.Status.CurrentReplicas)
	if p.set.Spec.UpdateStrategy.RollingUpdate != nil || !p.ordered() {
		limit = start(p.set) + p.partition()
	}
	if n >= limit {
		return &p.set.Spec.Template, p.update.Name, nil
	}
	t, err := revision.Template(p.current)
	return t, p.current.Name, err
}

func (p *pass) partition() int {
	if r := p.set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

// condemn deletes the pods beyond the range, and tells whether that has to end before anything else goes on. With pods in
// order it waits for one that is not available, unless that is the first of all, it has ended, or nothing is lost with it: upstream
// waits for the latter two, too, and for ever if there are two.
func (p *pass) condemn() (stop bool) {
	first := p.firstUnavailable()
	for _, pod := range p.condemned {
		switch {
		case pod.DeletionTimestamp != nil:
			if p.ordered() {
				return true
			}
			continue
		case p.ordered() && !p.available(pod) && pod != first && !ended(pod) && !p.hopeless(pod):
			return true
		}
		p.remove(pod)
		if p.ordered() {
			return true
		}
	}
	return false
}

// firstUnavailable is the pod with the lowest ordinal that is not available: it may go although it is not. Nil if
// there is none, or if it is one that is missing.
func (p *pass) firstUnavailable() *corev1.Pod {
	for _, pod := range p.replicas {
		if p.unavailable(pod) {
			return pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if p.unavailable(pod) {
			return pod
		}
	}
	return nil
}

// roll replaces pods of an old revision from the highest ordinal down to the partition, as many at a
// time as may be unavailable (KEP-961). With the policy Parallel those that are not available go first, whatever
// the budget: nobody misses them.
func (p *pass) roll() {
	budget := p.maxUnavailable()
	for _, pod := range p.replicas {
		if p.unavailable(pod) {
			budget--
		}
	}
	for i := len(p.replicas) - 1; i >= p.partition(); i-- {
		pod := p.replicas[i]
		if pod == nil || pod.DeletionTimestamp != nil || revisionOf(pod) == p.update.Name || ended(pod) {
			continue // those that ended are replaced anyway
		}
		if p.unavailable(pod) {
			if !p.ordered() {
				p.remove(pod)
			}
		} else if budget > 0 {
			p.remove(pod)
			budget--
		}
	}
}

// maxUnavailable is at least one, however small the percentage.
func (p *pass) maxUnavailable() int {
	r := p.set.Spec.UpdateStrategy.RollingUpdate
	if r == nil || r.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, p.size(), false)
	if err != nil {
		return 1
	}
	return max(n, 1)
}
