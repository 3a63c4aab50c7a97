package job

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
)

const (
	// burst is how many pods one pass creates or deletes at most.
	burst = 500
	// A failed pod is replaced after backoffFirst, twice as long for each further failure, backoffLast at most.
	backoffFirst = 10 * time.Second
	backoffLast  = 10 * time.Minute
)

// end finds out whether the outcome of the job stands, and then deletes the pods that are still active.
func (p *pass) end() bool {
	if condition(p.status, batchv1.JobSuccessCriteriaMet) == nil && condition(p.status, batchv1.JobFailureTarget) == nil {
		if reason, message := p.failure(); reason != "" {
			p.set(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, message)
		} else if reason, message := p.success(); reason != "" {
			p.set(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, reason, message)
		} else {
			return false
		}
	}
	for _, pod := range slices.Concat(p.active, p.condemned) {
		p.remove(pod)
	}
	return true
}

// failure is why the job has failed, "" if it has not.
func (p *pass) failure() (reason, message string) {
	limit := number(p.job.Spec.BackoffLimit, 6)
	if message := p.failJob(); message != "" {
		return batchv1.JobReasonPodFailurePolicy, message
	}
	if p.failed > limit || p.restartsExceed(limit) {
		return batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit"
	}
	if d := p.job.Spec.ActiveDeadlineSeconds; d != nil && !p.suspended() && p.status.StartTime != nil {
		left := p.started().Add(time.Duration(*d) * time.Second).Sub(p.now)
		if left <= 0 {
			return batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline"
		}
		p.waitFor(left)
	}
	switch {
	case p.job.Spec.MaxFailedIndexes != nil && p.lost.total() > int(*p.job.Spec.MaxFailedIndexes):
		return batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes"
	case p.lost.total() > 0 && p.lost.total()+p.done.total() >= number(p.job.Spec.Completions, 0):
		return batchv1.JobReasonFailedIndexes, "Job has failed indexes"
	}
	return "", ""
}

// started is when the job was begun, or was resumed: now, if this pass is about to say so.
func (p *pass) started() time.Time {
	if condition(p.status, batchv1.JobSuspended) != nil {
		return p.now
	}
	return p.status.StartTime.Time
}

// restartsExceed counts restarts in place, for pods that are restarted on failure.
func (p *pass) restartsExceed(limit int) bool {
	if p.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := 0
	for _, pod := range p.pods {
		if pod.Status.Phase != corev1.PodRunning && pod.Status.Phase != corev1.PodPending {
			continue
		}
		for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for i := range statuses {
				restarts += int(statuses[i].RestartCount)
			}
		}
	}
	if limit == 0 {
		return restarts > 0
	}
	return restarts >= limit
}

// success is why the job has succeeded, "" if it has not.
func (p *pass) success() (reason, message string) {
	if p.indexed() && p.job.Spec.SuccessPolicy != nil {
		for i, rule := range p.job.Spec.SuccessPolicy.Rules {
			if p.satisfies(&rule) {
				return batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", i)
			}
		}
	}
	if len(p.active) > 0 && !p.suspended() || p.status.StartTime == nil {
		return "", "" // the pods of a suspended job are about to go
	}
	if n := p.job.Spec.Completions; n == nil && p.succeeded == 0 || n != nil && p.succeeded < int(*n) {
		return "", ""
	}
	return batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"
}

func (p *pass) satisfies(rule *batchv1.SuccessPolicyRule) bool {
	n := p.done.total()
	want := 0
	if rule.SucceededIndexes != nil {
		only := parseIndexes(*rule.SucceededIndexes, number(p.job.Spec.Completions, 0))
		n, want = 0, only.total()
		for _, r := range only {
			for i := r.first; i <= r.last; i++ {
				if p.done.has(i) {
					n++
				}
			}
		}
	}
	if rule.SucceededCount != nil {
		want = int(*rule.SucceededCount)
	}
	return want > 0 && n >= want
}

// manage creates the pods that are missing or gets rid of those that are too many.
func (p *pass) manage() {
	for _, pod := range p.condemned {
		p.remove(pod)
	}
	if p.suspended() {
		p.condemn(p.active)
		return
	}
	want := p.wantActive()
	surplus := p.surplus(want)
	p.condemn(surplus)
	missing := want - len(p.active) + len(surplus)
	if p.onlyFailed() {
		missing -= p.terminating
	}
	if len(surplus) > 0 || missing <= 0 {
		return
	}
	if left := p.backoff(); left > 0 && p.job.Spec.BackoffLimitPerIndex == nil {
		p.waitFor(left)
		return
	}
	missing = min(missing, burst)
	if !p.indexed() {
		for range missing {
			p.create(-1)
		}
		return
	}
	for _, i := range p.pending(missing) {
		p.create(i)
	}
}

// wantActive is how many pods are to run now.
func (p *pass) wantActive() int {
	parallelism := number(p.job.Spec.Parallelism, 1)
	n := p.job.Spec.Completions
	if n == nil { // the first success ends the making of pods
		if p.succeeded > 0 {
			return len(p.active)
		}
		return parallelism
	}
	return max(min(int(*n)-p.succeeded-p.lost.total(), parallelism), 0)
}

// surplus are the active pods to delete: those of an index that is done, failed, out of range or has another pod already, then
// as many as there are too many.
func (p *pass) surplus(want int) []*corev1.Pod {
	active := slices.Clone(p.active)
	slices.SortStableFunc(active, func(a, b *corev1.Pod) int { // the ones to keep come first
		return cmp.Or(cmp.Compare(rank(b), rank(a)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	var surplus, kept []*corev1.Pod
	if p.indexed() {
		limit := number(p.job.Spec.Completions, 0)
		seen := map[int]bool{}
		for _, pod := range active {
			i := indexOf(pod)
			if i < 0 || i >= limit || seen[i] || p.done.has(i) || p.lost.has(i) {
				surplus = append(surplus, pod)
				continue
			}
			seen[i] = true
			kept = append(kept, pod)
		}
		active = kept
	}
	if len(active) > want {
		surplus = append(surplus, active[want:]...)
	}
	return surplus[:min(len(surplus), burst)]
}

// rank says how far a pod has come.
func rank(pod *corev1.Pod) int {
	switch {
	case pod.Spec.NodeName == "":
		return 0
	case pod.Status.Phase != corev1.PodRunning:
		return 1
	case !podstate.Ready(pod):
		return 2
	}
	return 3
}

// pending are the lowest n indexes that have no pod and are neither done nor failed, and whose own back-off has passed.
func (p *pass) pending(n int) []int {
	taken := map[int]bool{}
	for _, pod := range p.pods {
		if i := indexOf(pod); !podstate.Terminal(pod) && (pod.DeletionTimestamp == nil || p.onlyFailed()) {
			taken[i] = true
		}
	}
	var free []int
	for i := 0; i < number(p.job.Spec.Completions, 0) && len(free) < n; i++ {
		if taken[i] || p.done.has(i) || p.lost.has(i) {
			continue
		}
		if left := p.indexBackoff(i); left > 0 {
			p.waitFor(left)
			continue
		}
		free = append(free, i)
	}
	return free
}

// backoff is how long a failed pod is still to be waited for before it is replaced: by how many failed
// since the last one succeeded.
func (p *pass) backoff() time.Duration {
	var failures int
	var last, success time.Time
	for _, pod := range p.pods {
		if pod.Status.Phase == corev1.PodSucceeded && endedAt(pod).After(success) {
			success = endedAt(pod)
		}
	}
	for _, pod := range p.pods {
		if at := endedAt(pod); p.isFailed(pod) && at.After(success) {
			failures++
			if at.After(last) {
				last = at
			}
		}
	}
	return p.left(failures, last)
}

// indexBackoff is backoff for one index of a job that limits failures for each.
func (p *pass) indexBackoff(i int) time.Duration {
	last := p.replaced[i]
	if last == nil {
		return 0
	}
	return p.left(attempts(last)+1, endedAt(last))
}

func (p *pass) left(failures int, last time.Time) time.Duration {
	if failures == 0 {
		return 0
	}
	d := backoffLast
	if failures < 8 {
		d = min(backoffFirst<<(failures-1), backoffLast)
	}
	return last.Add(d).Sub(p.now)
}

// endedAt is when a pod ended, as well as can be told: by its containers (sidecars end last), since when it is not
// ready, or when it began to be deleted.
func endedAt(pod *corev1.Pod) time.Time {
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars[c.Name] = true
		}
	}
	var at time.Time
	known := true
	see := func(s *corev1.ContainerStatus) {
		if t := s.State.Terminated; t == nil || t.FinishedAt.IsZero() {
			known = false
		} else if t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	for i := range pod.Status.ContainerStatuses {
		see(&pod.Status.ContainerStatuses[i])
	}
	for i := range pod.Status.InitContainerStatuses {
		if sidecars[pod.Status.InitContainerStatuses[i].Name] {
			see(&pod.Status.InitContainerStatuses[i])
		}
	}
	switch c := podstate.Condition(pod, corev1.PodReady); {
	case known && !at.IsZero():
		return at
	case c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero():
		return c.LastTransitionTime.Time
	case pod.DeletionTimestamp != nil:
		grace := int64(0)
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			grace = *g
		}
		return pod.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return pod.CreationTimestamp.Time
}

// create makes a pod, for an index unless that is -1.
func (p *pass) create(index int) {
	prefix := p.job.Name + "-"
	t := p.job.Spec.Template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.job.Namespace, Labels: t.Labels, Annotations: t.Annotations, Finalizers: withTracking(t.Finalizers),
			OwnerReferences: []metav1.OwnerReference{claim.Reference("batch/v1", "Job", p.job)},
		},
		Spec: t.Spec,
	}
	if index >= 0 {
		prefix = indexedPrefix(p.job.Name, index)
		p.number(pod, index)
	}
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = p.job.Name
	}
	pod.GenerateName = prefix
	p.work = append(p.work, reconcile.Write{
		Verb: reconcile.Create, Resource: client.Pods.Name, Object: pod,
		OnSuccess: func(created api.Object) *reconcile.Event {
			return p.about("Normal", "SuccessfulCreate", "Created pod: "+created.GetName())
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.about("Warning", "FailedCreate", "Error creating: "+err.Error())
		},
	})
}

func withTracking(finalizers []string) []string {
	if slices.Contains(finalizers, batchv1.JobTrackingFinalizer) {
		return finalizers
	}
	return append(finalizers, batchv1.JobTrackingFinalizer)
}

const (
	indexVariable = "JOB_COMPLETION_INDEX"
	longestName   = 63
	// longestPrefix leaves room for what the API puts behind a generated name.
	longestPrefix = longestName - 5
)

// indexedPrefix is what the names of the pods of an index begin with: of a long job's name as much as leaves room for the index.
func indexedPrefix(job string, index int) string {
	tail := "-" + strconv.Itoa(index) + "-"
	return job[:min(len(job), longestPrefix-len(tail))] + tail
}

// number tells a pod its index: by annotation, label, environment and host name.
func (p *pass) number(pod *corev1.Pod, index int) {
	text := strconv.Itoa(index)
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, batchv1.JobCompletionIndexAnnotation, text)
	metav1.SetMetaDataLabel(&pod.ObjectMeta, batchv1.JobCompletionIndexAnnotation, text)
	if p.job.Spec.BackoffLimitPerIndex != nil {
		counted, ignored := p.handedOn(index)
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, batchv1.JobIndexFailureCountAnnotation, strconv.Itoa(counted))
		if ignored > 0 {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, batchv1.JobIndexIgnoredFailureCountAnnotation, strconv.Itoa(ignored))
		}
	}
	if name := p.job.Name + "-" + text; len(name) <= longestName {
		pod.Spec.Hostname = name
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexVariable }) {
				continue
			}
			c.Env = append(c.Env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
				FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"}}})
		}
	}
}

// handedOn are the failures of an index that its next pod is told of.
func (p *pass) handedOn(index int) (counted, ignored int) {
	last := p.replaced[index]
	if last == nil {
		return 0, 0
	}
	counted, ignored = failures(last), passedOver(last)
	if action, _ := p.judge(last); action == batchv1.PodFailurePolicyActionIgnore {
		return counted, ignored + 1
	}
	return counted + 1, ignored
}

// condemn lets go of pods that are too many, so that they do not count as failed. That they run without
// the finalizer makes the next pass delete them.
func (p *pass) condemn(pods []*corev1.Pod) {
	only := map[types.UID]bool{}
	for _, pod := range pods {
		only[pod.UID] = true
	}
	p.work = append(p.work, release(pods, only)...)
}

func (p *pass) remove(pod *corev1.Pod) {
	p.work = append(p.work, reconcile.Write{
		Verb: reconcile.Delete, Resource: client.Pods.Name, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		OnSuccess: func(api.Object) *reconcile.Event {
			return p.about("Normal", "SuccessfulDelete", "Deleted pod: "+pod.Name)
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.about("Warning", "FailedDelete", "Error deleting: "+err.Error())
		},
	})
}
