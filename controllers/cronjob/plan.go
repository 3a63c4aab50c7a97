package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/batch"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/store"
)

// tooManyMissed is from how many missed runs on the user is warned.
const tooManyMissed = 100

// pass is one pass over a cron job.
type pass struct {
	snap   store.Snapshot
	now    time.Time
	cj     *batchv1.CronJob
	status *batchv1.CronJobStatus
	jobs   []*batchv1.Job // of this cron job, by name

	writes []reconcile.Write
	events []reconcile.Event
	after  time.Duration
}

func plan(s store.Snapshot, cj *batchv1.CronJob, now time.Time) reconcile.Plan {
	p := &pass{snap: s, now: now, cj: cj, status: cj.Status.DeepCopy()}
	for job := range client.Jobs.Index(s, "owner", string(cj.UID)) {
		if metav1.IsControlledBy(job, cj) {
			p.jobs = append(p.jobs, job)
		}
	}
	p.observe()
	p.trim()
	if cj.DeletionTimestamp == nil {
		p.run()
	}
	if !equality.Semantic.DeepEqual(*p.status, cj.Status) {
		out := cj.DeepCopy()
		out.Status = *p.status
		p.writes = append(p.writes, reconcile.Write{Verb: reconcile.Update, Resource: client.CronJobs.Name, Subresource: "status", Object: out})
	}
	return reconcile.Plan{Writes: p.writes, Events: p.events, After: p.after}
}

func (p *pass) event(kind, reason, message string) {
	p.events = append(p.events, *p.about(kind, reason, message))
}

func (p *pass) about(kind, reason, message string) *reconcile.Event {
	return &reconcile.Event{Regarding: reconcile.Regarding("batch/v1", "CronJob", p.cj), Type: kind, Reason: reason, Message: message}
}

// outcome is the type of the condition that ended a job, "" while it goes on.
func outcome(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// dueOf is the time for which a job was made, as its annotation says.
func dueOf(j *batchv1.Job) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	return t, err == nil
}

// observe brings the list of active jobs and the times of the last runs up to date.
func (p *pass) observe() {
	byUID := map[string]*batchv1.Job{}
	for _, j := range p.jobs {
		byUID[string(j.UID)] = j
	}
	p.status.Active = slices.DeleteFunc(p.status.Active, func(ref corev1.ObjectReference) bool {
		j := byUID[string(ref.UID)]
		if j == nil {
			p.event("Normal", "MissingJob", "Active job went missing: "+ref.Name)
			return true
		}
		if how := outcome(j); how != "" {
			p.event("Normal", "SawCompletedJob", fmt.Sprintf("Saw completed job: %s, condition: %s", j.Name, how))
			return true
		}
		return false
	})
	for _, j := range p.jobs {
		due, ours := dueOf(j)
		if ours && (p.status.LastScheduleTime == nil || p.status.LastScheduleTime.Time.Before(due)) {
			p.status.LastScheduleTime = &metav1.Time{Time: due}
		}
		switch how := outcome(j); {
		case how == batchv1.JobComplete:
			if at := j.Status.CompletionTime; at != nil && (p.status.LastSuccessfulTime == nil || p.status.LastSuccessfulTime.Before(at)) {
				p.status.LastSuccessfulTime = at
			}
		case how == "" && !p.isActive(j):
			if !ours {
				p.event("Warning", "UnexpectedJob", "Saw a job that the controller did not create or forgot: "+j.Name)
				continue
			}
			p.status.Active = append(p.status.Active, reconcile.Regarding("batch/v1", "Job", j))
		}
	}
}

func (p *pass) isActive(j *batchv1.Job) bool {
	return slices.ContainsFunc(p.status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == j.UID })
}

// trim deletes the oldest finished jobs beyond the history limits.
func (p *pass) trim() {
	for how, limit := range map[batchv1.JobConditionType]*int32{batchv1.JobComplete: p.cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: p.cj.Spec.FailedJobsHistoryLimit} {
		if limit == nil {
			continue
		}
		var ended []*batchv1.Job
		for _, j := range p.jobs {
			if outcome(j) == how && j.DeletionTimestamp == nil {
				ended = append(ended, j)
			}
		}
		slices.SortStableFunc(ended, func(a, b *batchv1.Job) int {
			return cmp.Or(started(a).Compare(started(b)), cmp.Compare(a.Name, b.Name))
		})
		for _, j := range ended[:max(len(ended)-int(*limit), 0)] {
			p.remove(j)
		}
	}
}

func started(j *batchv1.Job) time.Time {
	if j.Status.StartTime != nil {
		return j.Status.StartTime.Time
	}
	return j.CreationTimestamp.Time
}

func (p *pass) remove(j *batchv1.Job) {
	p.writes = append(p.writes, reconcile.Write{Verb: reconcile.Delete, Resource: client.Jobs.Name, Namespace: j.Namespace, Name: j.Name, UID: j.UID,
		Propagation: metav1.DeletePropagationBackground,
		OnSuccess: func(api.Object) *reconcile.Event {
			return p.about("Normal", "SuccessfulDelete", "Deleted job "+j.Name)
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.about("Warning", "FailedDelete", "Deleted job: "+err.Error())
		}})
}

// run makes the job that is due, if one is, and asks for a pass when the next one will be.
func (p *pass) run() {
	zone, ok := p.zone()
	if !ok || p.cj.Spec.Suspend != nil && *p.cj.Spec.Suspend {
		return
	}
	if strings.Contains(p.cj.Spec.Schedule, "TZ") {
		p.event("Warning", "UnsupportedSchedule", fmt.Sprintf("CRON_TZ or TZ used in schedule %q is not officially supported, "+
			"see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", p.cj.Spec.Schedule))
	}
	schedule, err := batch.ParseSchedule(p.cj.Spec.Schedule)
	if err != nil {
		p.event("Warning", "UnparseableSchedule", fmt.Sprintf("unparseable schedule: %q : %s", p.cj.Spec.Schedule, err))
		return
	}
	now := p.now.In(zone)
	next := schedule.Next(p.since().In(zone))
	if next.IsZero() { // such as the 30th of February
		p.event("Warning", "InvalidSchedule", fmt.Sprintf("invalid schedule: %s : time difference between two schedules is less than 1 second", p.cj.Spec.Schedule))
		return
	}
	if !next.After(now) {
		next = schedule.Next(now)
	}
	if !next.IsZero() {
		p.after = next.Sub(now) + time.Millisecond // timers may be early by less
	}
	due, missed := latest(schedule, p.since().In(zone), now)
	if missed > tooManyMissed {
		p.event("Warning", "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if due.IsZero() || !p.mayStart(due) {
		return
	}
	p.start(due)
}

func (p *pass) zone() (*time.Location, bool) {
	if p.cj.Spec.TimeZone == nil {
		return time.Local, true
	}
	zone, err := time.LoadLocation(*p.cj.Spec.TimeZone)
	if err != nil {
		p.event("Warning", "UnknownTimeZone", fmt.Sprintf("invalid timeZone: %q: %s", *p.cj.Spec.TimeZone, err))
		return nil, false
	}
	return zone, true
}

// since is the time after which a run can be due: that of the last one, or the deadline for starting late.
func (p *pass) since() time.Time {
	since := p.cj.CreationTimestamp.Time
	if last := p.status.LastScheduleTime; last != nil {
		since = last.Time
	}
	if d := p.cj.Spec.StartingDeadlineSeconds; d != nil {
		if limit := p.now.Add(-time.Duration(*d) * time.Second); limit.After(since) {
			since = limit
		}
	}
	return since
}

func jobName(cj *batchv1.CronJob, due time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, due.Unix()/60)
}

// mayStart tells whether a run that is due may begin: it was not begun already, it is not too late, and
// the concurrency policy lets it.
func (p *pass) mayStart(due time.Time) bool {
	key := store.Key{Resource: client.Jobs.Name, Namespace: p.cj.Namespace, Name: jobName(p.cj, due)}
	if p.snap.Get(key) != nil {
		return false
	}
	if d := p.cj.Spec.StartingDeadlineSeconds; d != nil && due.Add(time.Duration(*d)*time.Second).Before(p.now) {
		p.event("Warning", "MissSchedule", "Missed scheduled time to start a job: "+due.UTC().Format(time.RFC1123Z))
		return false
	}
	if len(p.status.Active) == 0 {
		return true
	}
	switch p.cj.Spec.ConcurrencyPolicy {
	case batchv1.ForbidConcurrent:
		p.event("Normal", "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return false
	case batchv1.ReplaceConcurrent:
		for _, j := range p.jobs {
			if p.isActive(j) {
				p.remove(j)
			}
		}
		p.status.Active = nil
	}
	return true
}

// start makes the job. That it exists wakes the pass which lists it as active.
func (p *pass) start(due time.Time) {
	t := p.cj.Spec.JobTemplate.DeepCopy()
	annotations := maps.Clone(t.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	if p.cj.Spec.TimeZone == nil {
		due = due.UTC()
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.Format(time.RFC3339)
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.cj.Namespace, Name: jobName(p.cj, due), Labels: t.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{claim.Reference("batch/v1", "CronJob", p.cj)},
		},
		Spec: t.Spec,
	}
	p.writes = append(p.writes, reconcile.Write{Verb: reconcile.Create, Resource: client.Jobs.Name, Object: job,
		OnSuccess: func(created api.Object) *reconcile.Event {
			return p.about("Normal", "SuccessfulCreate", "Created job "+created.GetName())
		},
		OnFailure: func(err error) *reconcile.Event {
			return p.about("Warning", "FailedCreate", "Error creating job: "+err.Error())
		}})
}
