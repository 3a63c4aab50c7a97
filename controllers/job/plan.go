package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
	"coracle.dev/coracle/store"
)

const controllerName = "kubernetes.io/job-controller"

// pass is one pass over a job.
type pass struct {
	now    time.Time
	job    *batchv1.Job
	status *batchv1.JobStatus // what the pass makes of it

	pods, active []*corev1.Pod
	// condemned are pods that run without the finalizer: they were let go to be deleted, and are not
	// counted whatever becomes of them.
	condemned   []*corev1.Pod
	terminating int
	ready       int

	// succeeding and failing tell that the outcome of the job stands in its stored status.
	succeeding, failing bool
	// succeeded and failed are what ended, counted or not.
	succeeded, failed int
	// open is how many pods ended that this pass neither counts nor lists as uncounted.
	open      int
	uncounted *batchv1.UncountedTerminatedPods
	free      map[types.UID]bool // pods whose finalizer may go
	// before are the indexes that the stored status calls completed, done those that are; lost are those that failed for
	// good (with a limit for each index).
	before, done, lost indexes
	replaced           map[int]*corev1.Pod // by index to be tried again, the pod that failed last

	work   []reconcile.Write // creates and deletes of pods
	events []reconcile.Event
	wait   time.Duration
}

func (p *pass) waitFor(d time.Duration) {
	if d > 0 && (p.wait == 0 || d < p.wait) {
		p.wait = d
	}
}

func (p *pass) indexed() bool {
	return p.job.Spec.CompletionMode != nil && *p.job.Spec.CompletionMode == batchv1.IndexedCompletion
}

func (p *pass) suspended() bool { return p.job.Spec.Suspend != nil && *p.job.Spec.Suspend }

// onlyFailed tells whether pods are replaced only once they have ended, not when they begin to (KEP-3939).
func (p *pass) onlyFailed() bool {
	return p.job.Spec.PodReplacementPolicy != nil && *p.job.Spec.PodReplacementPolicy == batchv1.Failed || p.job.Spec.PodFailurePolicy != nil
}

func number(n *int32, otherwise int) int {
	if n == nil {
		return otherwise
	}
	return int(*n)
}

func condition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t && s.Conditions[i].Status == corev1.ConditionTrue {
			return &s.Conditions[i]
		}
	}
	return nil
}

func finished(j *batchv1.Job) bool {
	return condition(&j.Status, batchv1.JobComplete) != nil || condition(&j.Status, batchv1.JobFailed) != nil
}

// plan is one pass over a job.
func plan(s store.Snapshot, job *batchv1.Job, now time.Time) reconcile.Plan {
	if m := job.Spec.ManagedBy; m != nil && *m != controllerName {
		return reconcile.Plan{}
	}
	owned := claim.Objects(s, client.Pods, job, claim.Reference("batch/v1", "Job", job), claim.Selector(job.Spec.Selector), nil)
	if finished(job) {
		return reconcile.Plan{Writes: release(slices.Collect(client.Pods.Index(s, "owner", string(job.UID))), nil), Parallel: true}
	}
	if len(owned.Writes) > 0 {
		return reconcile.Plan{Writes: tracking(owned.Writes, job)} // the new owner references wake the next pass
	}
	p := &pass{now: now, job: job, status: job.Status.DeepCopy(), pods: owned.Owned}
	p.succeeding = condition(p.status, batchv1.JobSuccessCriteriaMet) != nil
	p.failing = condition(p.status, batchv1.JobFailureTarget) != nil && !p.succeeding
	p.sort()
	freed := p.track()
	if p.status.StartTime == nil && !p.suspended() {
		at := p.at()
		p.status.StartTime = &at
	}
	if !p.end() && job.DeletionTimestamp == nil {
		p.manage()
		p.pause()
	}
	p.close()
	return p.plan(freed)
}

// sort counts the pods by their state.
func (p *pass) sort() {
	for _, pod := range p.pods {
		switch {
		case podstate.Terminal(pod):
		case pod.DeletionTimestamp != nil:
			p.terminating++
		case !tracked(pod):
			p.condemned = append(p.condemned, pod)
			p.terminating++
		default:
			p.active = append(p.active, pod)
			if podstate.Ready(pod) {
				p.ready++
			}
		}
	}
}

// tracked tells whether the pod is kept from vanishing before it is counted.
func tracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

// release takes the finalizer off pods: of those in only, or of all that have ended or are being deleted.
func release(pods []*corev1.Pod, only map[types.UID]bool) []reconcile.Write {
	var writes []reconcile.Write
	for _, pod := range pods {
		if !tracked(pod) || only != nil && !only[pod.UID] {
			continue
		}
		out := pod.DeepCopy()
		out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Pods.Name, Object: out})
	}
	return writes
}

// tracking gives adopted pods the finalizer with which they are counted, and takes it off released ones.
func tracking(writes []reconcile.Write, job *batchv1.Job) []reconcile.Write {
	for i := range writes {
		pod := writes[i].Object.(*corev1.Pod) // a copy that is nobody else's
		switch ours := metav1.IsControlledBy(pod, job); {
		case ours && !tracked(pod):
			pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
		case !ours:
			pod.Finalizers = slices.DeleteFunc(pod.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
		}
	}
	return writes
}

// pause brings the condition Suspended in line. A suspended job has no start time, and one that is resumed starts anew: its
// deadline counts from there.
func (p *pass) pause() {
	was := condition(p.status, batchv1.JobSuspended) != nil
	switch {
	case p.suspended() && !was:
		p.set(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")
		p.status.StartTime = nil
		p.event("Normal", "Suspended", "Job suspended")
	case !p.suspended() && was:
		p.set(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")
		at := p.at()
		p.status.StartTime = &at
		p.event("Normal", "Resumed", "Job resumed")
	}
}

func (p *pass) at() metav1.Time { return metav1.NewTime(p.now).Rfc3339Copy() }

// set changes a condition; the order of conditions is that of their first appearance.
func (p *pass) set(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) {
	cond := batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastProbeTime: p.at(), LastTransitionTime: p.at()}
	for i := range p.status.Conditions {
		if had := &p.status.Conditions[i]; had.Type == t {
			if had.Status != status || had.Reason != reason || had.Message != message {
				*had = cond
			}
			return
		}
	}
	if status == corev1.ConditionTrue {
		p.status.Conditions = append(p.status.Conditions, cond)
	}
}

func (p *pass) event(kind, reason, message string) {
	p.events = append(p.events, *p.about(kind, reason, message))
}

func (p *pass) about(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("batch/v1", "Job", p.job), Type: kind, Reason: reason, Message: message}
}

// close sets the terminal condition when the outcome stands and nothing is under way any more.
func (p *pass) close() {
	p.status.Active, p.status.Ready, p.status.Terminating = int32(len(p.active)), new(int32(p.ready)), new(int32(p.terminating))
	if len(p.active) > 0 || p.terminating > 0 || p.open+len(p.uncounted.Succeeded)+len(p.uncounted.Failed) > 0 || p.status.StartTime == nil {
		return
	}
	met := condition(p.status, batchv1.JobSuccessCriteriaMet)
	if c := condition(p.status, batchv1.JobFailureTarget); c != nil && met == nil {
		p.set(batchv1.JobFailed, corev1.ConditionTrue, c.Reason, c.Message)
		p.event("Warning", c.Reason, c.Message)
		return
	}
	if met != nil {
		p.set(batchv1.JobComplete, corev1.ConditionTrue, met.Reason, met.Message)
		at := p.at()
		p.status.CompletionTime = &at
		if n := p.job.Spec.Completions; n != nil && p.status.Succeeded > *n {
			p.event("Warning", "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
		}
		p.event("Normal", "Completed", "Job completed")
	}
}

// plan puts the writes in order: the status first, so that a pod is known to be uncounted before
// the next pass frees it.
func (p *pass) plan(freed []reconcile.Write) reconcile.Plan {
	out := reconcile.Plan{Events: p.events, After: p.wait}
	if !equality.Semantic.DeepEqual(*p.status, p.job.Status) {
		job := p.job.DeepCopy()
		job.Status = *p.status
		out.Writes = append(out.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Jobs.Name, Subresource: "status", Object: job})
		if len(freed)+len(p.work) > 1 {
			// Alone: what is written side by side has no order. The status wakes the next pass.
			return reconcile.Plan{Writes: out.Writes, Events: p.events, After: p.wait}
		}
	}
	out.Writes = append(append(out.Writes, freed...), p.work...)
	out.Parallel = len(out.Writes) > 1 && out.Writes[0].Resource == client.Pods.Name
	return out
}
