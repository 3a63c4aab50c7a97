package job

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/reconcile"
)

// track moves pods that ended through the status into the counters, and returns the
// writes that free those that the stored status lists.
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
	next := &batchv1.UncountedTerminatedPods{}
	listed := map[types.UID]bool{}
	keep := func(uids []types.UID, counter *int32) (kept []types.UID) {
		for _, uid := range uids {
			listed[uid] = true
			if held[uid] {
				kept = append(kept, uid)
			} else {
				*counter++
			}
		}
		return kept
	}
	indexedSucceeded := new(int32)
	counter := &p.status.Succeeded
	if p.indexed() {
		counter = indexedSucceeded // the indexes are what counts
	}
	next.Succeeded = keep(had.Succeeded, counter)
	next.Failed = keep(had.Failed, &p.status.Failed)
	ignored := p.count(next, listed)
	p.status.UncountedTerminatedPods = next
	p.succeeded, p.failed = int(p.status.Succeeded)+len(next.Succeeded), int(p.status.Failed)+len(next.Failed)
	p.countIndexes()
	return release(p.pods, union(listed, ignored))
}

func union(a, b map[types.UID]bool) map[types.UID]bool {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// count lists pods that ended since, and returns those that a failure policy lets go uncounted.
func (p *pass) count(next *batchv1.UncountedTerminatedPods, listed map[types.UID]bool) (ignored map[types.UID]bool) {
	ignored = map[types.UID]bool{}
	for _, pod := range p.pods {
		if listed[pod.UID] || !tracked(pod) {
			continue
		}
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			next.Succeeded = append(next.Succeeded, pod.UID)
		case p.isFailed(pod):
			action, message := p.judge(pod)
			switch {
			case action == batchv1.PodFailurePolicyActionIgnore:
				ignored[pod.UID] = true
				continue
			case action == batchv1.PodFailurePolicyActionFailJob && p.failJob == "":
				p.failJob = message
			}
			next.Failed = append(next.Failed, pod.UID)
		}
	}
	return ignored
}

// isFailed tells whether a pod counts as failed: also one that is being deleted, unless its end is to be awaited.
func (p *pass) isFailed(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded && !p.onlyFailed()
}

// countIndexes finds the indexes that are completed and those that failed for good.
func (p *pass) countIndexes() {
	if !p.indexed() {
		return
	}
	limit := number(p.job.Spec.Completions, 0)
	p.done = parseIndexes(p.status.CompletedIndexes, limit)
	var fresh []int
	for _, pod := range p.pods {
		if i := indexOf(pod); pod.Status.Phase == corev1.PodSucceeded && i >= 0 && i < limit {
			fresh = append(fresh, i)
		}
	}
	p.done = p.done.with(fresh)
	p.status.CompletedIndexes, p.status.Succeeded, p.succeeded = p.done.String(), int32(p.done.total()), p.done.total()
	if p.job.Spec.BackoffLimitPerIndex == nil {
		return
	}
	text := ""
	if p.status.FailedIndexes != nil {
		text = *p.status.FailedIndexes
	}
	p.failuresOf = map[int]int{}
	p.lost = parseIndexes(text, limit)
	fresh = nil
	for _, pod := range p.pods {
		i := indexOf(pod)
		if i < 0 || i >= limit || !p.isFailed(pod) {
			continue
		}
		action, _ := p.judge(pod)
		n, _ := strconv.Atoi(pod.Annotations[batchv1.JobIndexFailureCountAnnotation])
		if action != batchv1.PodFailurePolicyActionIgnore {
			n++
		}
		p.failuresOf[i] = max(p.failuresOf[i], n)
		if action == batchv1.PodFailurePolicyActionFailIndex || n > int(*p.job.Spec.BackoffLimitPerIndex) {
			fresh = append(fresh, i)
		}
	}
	p.lost = p.lost.with(slices.DeleteFunc(fresh, p.done.has))
	lost := p.lost.String()
	p.status.FailedIndexes = &lost
}

// judge finds the first rule of the failure policy that a failed pod matches (KEP-3329).
func (p *pass) judge(pod *corev1.Pod) (batchv1.PodFailurePolicyAction, string) {
	if p.job.Spec.PodFailurePolicy == nil {
		return "", ""
	}
	for i, rule := range p.job.Spec.PodFailurePolicy.Rules {
		if rule.Action == batchv1.PodFailurePolicyActionFailIndex && p.job.Spec.BackoffLimitPerIndex == nil {
			continue
		}
		if rule.OnExitCodes != nil {
			if c := exited(pod, rule.OnExitCodes); c != nil {
				return rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d",
					c.Name, pod.Namespace, pod.Name, c.State.Terminated.ExitCode, rule.Action, i)
			}
			continue
		}
		for _, want := range rule.OnPodConditions {
			if slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == want.Type && c.Status == want.Status }) {
				return rule.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", pod.Namespace, pod.Name, want.Type, rule.Action, i)
			}
		}
	}
	return batchv1.PodFailurePolicyActionCount, ""
}

// exited finds the first container whose exit code the requirement is about.
func exited(pod *corev1.Pod, r *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for i := range statuses {
			c := &statuses[i]
			if r.ContainerName != nil && *r.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
				continue
			}
			if slices.Contains(r.Values, c.State.Terminated.ExitCode) == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c
			}
		}
	}
	return nil
}
