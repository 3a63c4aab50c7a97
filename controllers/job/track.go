package job

import (
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/reconcile"
)

// mostUncounted is how many pods the status lists as uncounted at most: their UIDs are to stay below 20 KB.
const mostUncounted = 500

// track moves pods that ended through the status into the counters, and returns the
// writes that free those that the stored status accounts for.
func (p *pass) track() []reconcile.Write {
	had := p.status.UncountedTerminatedPods
	if had == nil {
		had = &batchv1.UncountedTerminatedPods{}
	}
	held := map[types.UID]bool{} // pods that still have the finalizer
	for _, pod := range p.pods {
		if tracked(pod) {
			held[pod.UID] = true
		}
	}
	p.uncounted, p.free = &batchv1.UncountedTerminatedPods{}, map[types.UID]bool{}
	keep := func(uids []types.UID, counter *int32) (kept []types.UID) {
		for _, uid := range uids {
			p.free[uid] = true
			if held[uid] {
				kept = append(kept, uid)
			} else {
				*counter++
			}
		}
		return kept
	}
	if !p.indexed() { // of those the indexes are what counts
		p.uncounted.Succeeded = keep(had.Succeeded, &p.status.Succeeded)
	}
	p.uncounted.Failed = keep(had.Failed, &p.status.Failed)
	p.status.UncountedTerminatedPods = p.uncounted
	p.countIndexes()
	p.failed = int(p.status.Failed) + len(p.uncounted.Failed)
	if !p.indexed() {
		p.succeeded = int(p.status.Succeeded) + len(p.uncounted.Succeeded)
	}
	listed := p.free
	p.free = map[types.UID]bool{}
	for _, pod := range p.pods {
		switch {
		case !tracked(pod):
		case listed[pod.UID]:
			p.free[pod.UID] = true
		default:
			p.account(pod)
		}
	}
	return release(p.pods, p.free)
}

// account lists a tracked pod as uncounted if it has ended, or frees one that is never to be counted.
func (p *pass) account(pod *corev1.Pod) {
	index := indexOf(pod)
	valid := !p.indexed() || index >= 0 && index < number(p.job.Spec.Completions, 0)
	switch {
	case p.letGo(pod):
		p.free[pod.UID] = true
	case pod.Status.Phase == corev1.PodSucceeded:
		switch {
		case !p.indexed():
			p.succeeded++
			p.list(&p.uncounted.Succeeded, pod)
		case !valid || p.before.has(index):
			p.free[pod.UID] = true
		}
	case p.isFailed(pod):
		action, _ := p.judge(pod)
		ignored := action == batchv1.PodFailurePolicyActionIgnore
		if valid && !ignored {
			p.failed++
		}
		switch {
		case p.replaced[index] == pod && !p.ending():
			p.open++ // its failures are yet to be handed on to the pod that comes after it
		case !valid || ignored:
			p.free[pod.UID] = true
		default:
			p.list(&p.uncounted.Failed, pod)
		}
	case p.job.DeletionTimestamp != nil:
		p.free[pod.UID] = true
	}
}

// letGo tells the pods that the job deletes because it has succeeded: however they end, they are not counted.
func (p *pass) letGo(pod *corev1.Pod) bool { return p.succeeding && pod.DeletionTimestamp != nil }

// list puts a pod on a list of those that ended and are not counted yet, as far as there is room.
func (p *pass) list(uids *[]types.UID, pod *corev1.Pod) {
	if len(p.uncounted.Succeeded)+len(p.uncounted.Failed) >= mostUncounted {
		p.open++
		return
	}
	*uids = append(*uids, pod.UID)
}

// ending tells whether the outcome of the job stood already before this pass, or the job is being deleted.
func (p *pass) ending() bool {
	return p.succeeding || p.failing || p.job.DeletionTimestamp != nil
}

// isFailed tells whether a pod counts as failed: also one that is being deleted, unless its end is to be
// awaited. When the job has failed, nothing is awaited any more.
func (p *pass) isFailed(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed ||
		pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded && (!p.onlyFailed() || p.failing)
}

// countIndexes finds the indexes that are completed and those that failed for good.
func (p *pass) countIndexes() {
	if !p.indexed() {
		return
	}
	limit := number(p.job.Spec.Completions, 0)
	p.before = parseIndexes(p.status.CompletedIndexes, limit)
	var fresh []int
	for _, pod := range p.pods {
		if i := indexOf(pod); pod.Status.Phase == corev1.PodSucceeded && tracked(pod) && !p.letGo(pod) && i >= 0 && i < limit {
			fresh = append(fresh, i)
		}
	}
	p.done = p.before.with(fresh)
	p.status.CompletedIndexes, p.status.Succeeded, p.succeeded = p.done.String(), int32(p.done.total()), p.done.total()
	if p.job.Spec.BackoffLimitPerIndex != nil {
		p.countLost(limit)
	}
}

// countLost finds the indexes that have failed, and of those that are to be tried again the pod that comes last (KEP-3850).
func (p *pass) countLost(limit int) {
	text := ""
	if p.status.FailedIndexes != nil {
		text = *p.status.FailedIndexes
	}
	p.lost = parseIndexes(text, limit)
	var fresh []int
	for _, pod := range p.pods {
		i := indexOf(pod)
		if i < 0 || i >= limit || p.done.has(i) || !tracked(pod) || !p.isFailed(pod) {
			continue
		}
		action, _ := p.judge(pod)
		counted := action != batchv1.PodFailurePolicyActionIgnore
		if action == batchv1.PodFailurePolicyActionFailIndex || counted && failures(pod) >= int(*p.job.Spec.BackoffLimitPerIndex) {
			fresh = append(fresh, i)
		}
	}
	p.lost = p.lost.with(fresh)
	lost := p.lost.String()
	p.status.FailedIndexes = &lost
	runs := map[int]bool{}
	for _, pod := range p.active {
		runs[indexOf(pod)] = true
	}
	p.replaced = map[int]*corev1.Pod{}
	for _, pod := range p.pods {
		i := indexOf(pod)
		if i < 0 || i >= limit || runs[i] || p.done.has(i) || p.lost.has(i) || !tracked(pod) || !p.isFailed(pod) {
			continue
		}
		if had := p.replaced[i]; had == nil || attempts(had) <= attempts(pod) && !endedAt(pod).Before(endedAt(had)) {
			p.replaced[i] = pod
		}
	}
}

// failures are those of the pod's index that counted before the pod was made, passedOver those that a failure policy let
// pass, attempts both.
func failures(pod *corev1.Pod) int { return annotated(pod, batchv1.JobIndexFailureCountAnnotation) }

func passedOver(pod *corev1.Pod) int {
	return annotated(pod, batchv1.JobIndexIgnoredFailureCountAnnotation)
}

func attempts(pod *corev1.Pod) int { return failures(pod) + passedOver(pod) }

func annotated(pod *corev1.Pod, key string) int {
	n, err := strconv.ParseInt(pod.Annotations[key], 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int(n)
}
