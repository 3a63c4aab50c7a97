package batch

import (
	"fmt"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// jobStatusUpdate checks what the controller of a job (ours, or that named in
// spec.managedBy) says of it. A rule about a field applies only when the update changes what
// it is about, so that a job which broke it before can still be written.
func jobStatusUpdate(j, old *batchv1.Job) field.ErrorList {
	c := statusCheck{j: j, s: &j.Status, o: &old.Status, path: field.NewPath("status")}
	c.counters()
	c.uncounted()
	c.ends()
	c.finished()
	c.indexes()
	c.criteria()
	c.changes()
	return c.errs
}

type statusCheck struct {
	j    *batchv1.Job
	s, o *batchv1.JobStatus // new and old
	path *field.Path
	errs field.ErrorList
}

func (c *statusCheck) invalid(bad bool, name string, value any, message string) {
	if bad {
		c.errs = append(c.errs, field.Invalid(c.path.Child(name), value, message))
	}
}

func (c *statusCheck) required(missing bool, name, message string) {
	if missing {
		c.errs = append(c.errs, field.Required(c.path.Child(name), message))
	}
}

func (c *statusCheck) conditions(bad bool, message string) {
	c.invalid(bad, "conditions", field.OmitValueType{}, message)
}

// is tells whether the job now has a condition, turned whether that is new.
func (c *statusCheck) is(t batchv1.JobConditionType) bool     { return has(c.s, t) }
func (c *statusCheck) turned(t batchv1.JobConditionType) bool { return has(c.s, t) != has(c.o, t) }

// over tells whether the job has ended, and whether that is new.
func (c *statusCheck) over() (over, news bool) {
	over = c.is(batchv1.JobComplete) || c.is(batchv1.JobFailed)
	return over, over != (has(c.o, batchv1.JobComplete) || has(c.o, batchv1.JobFailed))
}

func (c *statusCheck) counters() {
	for _, f := range []struct {
		name  string
		value *int32
	}{
		{"active", &c.s.Active}, {"succeeded", &c.s.Succeeded}, {"failed", &c.s.Failed},
		{"ready", c.s.Ready}, {"terminating", c.s.Terminating},
	} {
		if f.value != nil {
			c.errs = append(c.errs, validate.NonNegative(*f.value, c.path.Child(f.name))...)
		}
	}
}

// uncounted checks that each terminated pod is listed once.
func (c *statusCheck) uncounted() {
	u := c.s.UncountedTerminatedPods
	if u == nil {
		return
	}
	seen := map[string]bool{}
	path := c.path.Child("uncountedTerminatedPods")
	list := func(path *field.Path, uid string) {
		switch {
		case uid == "":
			c.errs = append(c.errs, field.Invalid(path, uid, "must not be empty"))
		case seen[uid]:
			c.errs = append(c.errs, field.Duplicate(path, uid))
		}
		seen[uid] = true
	}
	for i, uid := range u.Succeeded {
		list(path.Child("succeeded").Index(i), string(uid))
	}
	for i, uid := range u.Failed {
		list(path.Child("failed").Index(i), string(uid))
	}
}

// ends checks the conditions with which a job ends, and the time at which it was complete.
func (c *statusCheck) ends() {
	const complete, failed = batchv1.JobComplete, batchv1.JobFailed
	done, at := c.is(complete), c.s.CompletionTime
	moved := !sameTime(at, c.o.CompletionTime)
	c.conditions((c.turned(complete) || c.turned(failed)) && done && c.is(failed),
		"cannot set Complete=True and Failed=true conditions")
	c.conditions((c.turned(complete) || c.turned(batchv1.JobFailureTarget)) && done && c.is(batchv1.JobFailureTarget),
		"cannot set Complete=True and FailureTarget=true conditions")
	c.invalid((c.turned(complete) || moved) && !done && at != nil, "completionTime", at,
		"cannot set completionTime when there is no Complete=True condition")
	c.required((c.turned(complete) || moved) && done && at == nil, "completionTime",
		"completionTime is required for Complete jobs")
	c.invalid((moved || !sameTime(c.s.StartTime, c.o.StartTime)) && at != nil && c.s.StartTime != nil && at.Before(c.s.StartTime),
		"completionTime", at, "must be equal to or after `startTime`")
	c.conditions((c.turned(failed) || changed(c.s.FailedIndexes, c.o.FailedIndexes)) && c.is(failed) && !c.is(batchv1.JobFailureTarget),
		"cannot set Failed=True condition without the FailureTarget=true condition")
	c.conditions((c.turned(complete) || c.turned(batchv1.JobSuccessCriteriaMet)) && done && !c.is(batchv1.JobSuccessCriteriaMet),
		"cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
}

// finished checks what must hold once a job is complete or failed.
func (c *statusCheck) finished() {
	over, news := c.over()
	if !over {
		return
	}
	idle := is(c.j.Spec.Suspend, true) && is(c.j.Spec.Completions, 0) // done without ever starting
	c.invalid((news || c.s.Active != c.o.Active) && c.s.Active > 0, "active", c.s.Active, "active>0 is invalid for finished job")
	c.required((news || !sameTime(c.s.StartTime, c.o.StartTime)) && !idle && c.s.StartTime == nil, "startTime", "startTime is required for finished job")
	if u := c.s.UncountedTerminatedPods; u != nil {
		c.invalid((news || changed(u, c.o.UncountedTerminatedPods)) && len(u.Succeeded)+len(u.Failed) > 0,
			"uncountedTerminatedPods", u, "must be empty for finished job")
	}
}

// indexes checks the two texts that list indexes, and what remains of the counters.
func (c *statusCheck) indexes() {
	completed, failed := c.s.CompletedIndexes, c.s.FailedIndexes
	newCompleted, newFailed := completed != c.o.CompletedIndexes, changed(failed, c.o.FailedIndexes)
	format := func(name, text string) {
		_, err := countIndexes(text, *c.j.Spec.Completions)
		c.invalid(err != nil, name, text, fmt.Sprintf("error parsing %s: %v", name, err))
	}
	perIndex := c.j.Spec.BackoffLimitPerIndex != nil
	if newCompleted && c.j.Spec.Completions != nil {
		format("completedIndexes", completed)
	}
	if newFailed && c.j.Spec.Completions != nil && perIndex && failed != nil {
		format("failedIndexes", *failed)
	}
	c.invalid(newCompleted && completed != "" && !is(c.j.Spec.CompletionMode, batchv1.IndexedCompletion), "completedIndexes", completed,
		"cannot set non-empty completedIndexes when non-indexed completion mode")
	if failed != nil {
		c.invalid(newFailed && !perIndex, "failedIndexes", *failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
		if (newFailed || newCompleted) && c.j.Spec.Completions != nil {
			at, overlap := commonIndex(completed, *failed, *c.j.Spec.Completions)
			c.invalid(overlap, "failedIndexes", *failed, fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", at))
		}
	}
	over, news := c.over()
	if t := c.s.Terminating; t != nil {
		c.invalid((news || changed(t, c.o.Terminating)) && over && *t > 0, "terminating", *t, "terminating>0 is invalid for finished job")
	}
	if r := c.s.Ready; r != nil {
		c.invalid((changed(r, c.o.Ready) || c.s.Active != c.o.Active) && *r > c.s.Active, "ready", *r, "cannot set more ready pods than active")
	}
}

// commonIndex finds an index in both texts. What is no interval is skipped: others complain of it.
func commonIndex(a, b string, completions int32) (index int32, found bool) {
	next := func(list *[]string) (from, to int32, ok bool) {
		for len(*list) > 0 {
			from, to, err := indexRange((*list)[0], completions)
			if err == nil {
				return from, to, true
			}
			*list = (*list)[1:]
		}
		return 0, 0, false
	}
	left, right := strings.Split(a, ","), strings.Split(b, ",")
	for {
		leftFrom, leftTo, ok := next(&left)
		if !ok {
			return 0, false
		}
		rightFrom, rightTo, ok := next(&right)
		switch {
		case !ok:
			return 0, false
		case leftFrom <= rightTo && rightFrom <= leftTo:
			return max(leftFrom, rightFrom), true
		case leftFrom <= rightFrom:
			left = left[1:]
		default:
			right = right[1:]
		}
	}
}

// criteria checks the condition that says a job is to end well.
func (c *statusCheck) criteria() {
	met := c.is(batchv1.JobSuccessCriteriaMet)
	c.conditions(met && c.is(batchv1.JobFailed), "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	c.conditions(met && c.is(batchv1.JobFailureTarget), "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	c.conditions(c.j.Spec.SuccessPolicy != nil && !met && c.is(batchv1.JobComplete),
		"cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
}

// changes checks what must not become different.
func (c *statusCheck) changes() {
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		c.conditions(has(c.o, t) && !c.is(t), fmt.Sprintf("cannot disable the terminal %s=True condition", t))
	}
	c.invalid(c.s.Failed < c.o.Failed, "failed", c.s.Failed, "cannot decrease the failed counter")
	// An indexed job may lose pods that succeeded: those beyond the indexes it is scaled to.
	scales := is(c.j.Spec.CompletionMode, batchv1.IndexedCompletion) && !changed(c.j.Spec.Completions, c.j.Spec.Parallelism)
	c.invalid(c.s.Succeeded < c.o.Succeeded && !scales, "succeeded", c.s.Succeeded, "cannot decrease the succeeded counter")
	c.invalid(c.o.CompletionTime != nil && c.s.CompletionTime != nil && !sameTime(c.o.CompletionTime, c.s.CompletionTime),
		"completionTime", c.s.CompletionTime, validate.ImmutableMessage)
	c.required(c.o.StartTime != nil && !sameTime(c.o.StartTime, c.s.StartTime) && !is(c.j.Spec.Suspend, true) && !c.resumes(),
		"startTime", "startTime cannot be removed for unsuspended job")
	met, was := c.is(batchv1.JobSuccessCriteriaMet), has(c.o, batchv1.JobSuccessCriteriaMet)
	c.conditions(was && !met, "cannot disable the SuccessCriteriaMet=True condition")
	c.conditions(has(c.o, batchv1.JobComplete) && !was && met, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
}

// resumes tells whether the update says that a suspended job runs again, from now on.
func (c *statusCheck) resumes() bool {
	if !has(c.o, batchv1.JobSuspended) {
		return false
	}
	for i := range c.s.Conditions {
		if k := &c.s.Conditions[i]; k.Type == batchv1.JobSuspended && k.Status == corev1.ConditionFalse {
			return true
		}
	}
	return false
}

func sameTime(a, b *metav1.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b)
}
