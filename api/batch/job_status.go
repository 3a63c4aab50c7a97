package batch

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
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
	c.conditions()
	c.finished()
	c.times(is(old.Spec.Suspend, true))
	c.indexes()
	return c.errs
}

type statusCheck struct {
	j    *batchv1.Job
	s, o *batchv1.JobStatus // new and old
	path *field.Path
	errs field.ErrorList
}

func (c *statusCheck) invalid(name string, value any, message string) {
	c.errs = append(c.errs, field.Invalid(c.path.Child(name), value, message))
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
	if r := c.s.Ready; r != nil && *r > c.s.Active && (changed(r, c.o.Ready) || c.s.Active != c.o.Active) {
		c.invalid("ready", *r, "cannot set more ready pods than active")
	}
	if c.s.Failed < c.o.Failed {
		c.invalid("failed", c.s.Failed, "cannot decrease the failed counter")
	}
	if c.s.Succeeded < c.o.Succeeded && !is(c.j.Spec.CompletionMode, batchv1.IndexedCompletion) {
		c.invalid("succeeded", c.s.Succeeded, "cannot decrease the succeeded counter")
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

func (c *statusCheck) turned(t batchv1.JobConditionType) bool { return has(c.s, t) != has(c.o, t) }

// conditions checks which conditions go together, and that terminal ones stay.
func (c *statusCheck) conditions() {
	complain := func(message string) { c.invalid("conditions", field.OmitValueType{}, message) }
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		if has(c.o, t) && !has(c.s, t) {
			complain(fmt.Sprintf("cannot disable the terminal %s=True condition", t))
		}
	}
	for _, rule := range []struct {
		a, b    batchv1.JobConditionType
		bad     bool
		message string
	}{
		{batchv1.JobComplete, batchv1.JobFailed, has(c.s, batchv1.JobComplete) && has(c.s, batchv1.JobFailed),
			"cannot set Complete=True and Failed=true conditions"},
		{batchv1.JobComplete, batchv1.JobFailureTarget, has(c.s, batchv1.JobComplete) && has(c.s, batchv1.JobFailureTarget),
			"cannot set Complete=True and FailureTarget=true conditions"},
		{batchv1.JobFailed, batchv1.JobSuccessCriteriaMet, has(c.s, batchv1.JobFailed) && has(c.s, batchv1.JobSuccessCriteriaMet),
			"cannot set Failed=True and SuccessCriteriaMet=true conditions"},
		{batchv1.JobFailureTarget, batchv1.JobSuccessCriteriaMet, has(c.s, batchv1.JobFailureTarget) && has(c.s, batchv1.JobSuccessCriteriaMet),
			"cannot set FailureTarget=True and SuccessCriteriaMet=true conditions"},
		{batchv1.JobFailed, batchv1.JobFailureTarget, has(c.s, batchv1.JobFailed) && !has(c.s, batchv1.JobFailureTarget),
			"cannot set Failed=True condition without the FailureTarget=true condition"},
		{batchv1.JobComplete, batchv1.JobSuccessCriteriaMet, has(c.s, batchv1.JobComplete) && !has(c.s, batchv1.JobSuccessCriteriaMet),
			"cannot set Complete=True condition without the SuccessCriteriaMet=true condition"},
	} {
		if rule.bad && (c.turned(rule.a) || c.turned(rule.b)) {
			complain(rule.message)
		}
	}
}

// finished checks what must hold once a job is complete or failed.
func (c *statusCheck) finished() {
	if !has(c.s, batchv1.JobComplete) && !has(c.s, batchv1.JobFailed) {
		return
	}
	now := c.turned(batchv1.JobComplete) || c.turned(batchv1.JobFailed)
	if c.s.Active > 0 && (now || c.s.Active != c.o.Active) {
		c.invalid("active", c.s.Active, "active>0 is invalid for finished job")
	}
	if t := c.s.Terminating; t != nil && *t > 0 && (now || changed(t, c.o.Terminating)) {
		c.invalid("terminating", *t, "terminating>0 is invalid for finished job")
	}
	if u := c.s.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 && (now || changed(u, c.o.UncountedTerminatedPods)) {
		c.invalid("uncountedTerminatedPods", u, "uncountedTerminatedPods needs to be empty for finished job")
	}
	if c.s.StartTime == nil && (now || c.o.StartTime != nil) {
		c.errs = append(c.errs, field.Required(c.path.Child("startTime"), "startTime is required for finished job"))
	}
}

func (c *statusCheck) times(suspended bool) {
	s, o := c.s, c.o
	complete := has(s, batchv1.JobComplete)
	moved := !sameTime(s.CompletionTime, o.CompletionTime)
	switch {
	case s.CompletionTime != nil && !complete && (moved || c.turned(batchv1.JobComplete)):
		c.invalid("completionTime", s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
	case s.CompletionTime == nil && complete && (moved || c.turned(batchv1.JobComplete)):
		c.errs = append(c.errs, field.Required(c.path.Child("completionTime"), "completionTime is required for Complete jobs"))
	}
	if s.StartTime != nil && s.CompletionTime != nil && s.CompletionTime.Before(s.StartTime) && (moved || !sameTime(s.StartTime, o.StartTime)) {
		c.invalid("completionTime", s.CompletionTime, "completionTime cannot be set before startTime")
	}
	if o.CompletionTime != nil && moved {
		c.invalid("completionTime", s.CompletionTime, "field is immutable")
	}
	if suspended || is(c.j.Spec.Suspend, true) || o.StartTime == nil || sameTime(s.StartTime, o.StartTime) {
		return
	}
	if s.StartTime == nil {
		c.errs = append(c.errs, field.Required(c.path.Child("startTime"), "startTime cannot be removed for unsuspended job"))
	} else {
		c.errs = append(c.errs, field.Required(c.path.Child("startTime"), "startTime cannot be updated for unsuspended job"))
	}
}

func sameTime(a, b *metav1.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(b)
}

// indexes checks the two texts that list indexes.
func (c *statusCheck) indexes() {
	indexed := is(c.j.Spec.CompletionMode, batchv1.IndexedCompletion)
	var completions int32
	if n := c.j.Spec.Completions; n != nil {
		completions = *n
	}
	if text := c.s.CompletedIndexes; text != c.o.CompletedIndexes {
		if !indexed && text != "" {
			c.invalid("completedIndexes", text, "cannot set non-empty completedIndexes when non-indexed completion mode")
		} else if _, err := countIndexes(text, completions); err != nil {
			c.invalid("completedIndexes", text, fmt.Sprintf("error parsing completedIndexes: %s", err))
		}
	}
	if text := c.s.FailedIndexes; text != nil && changed(text, c.o.FailedIndexes) {
		if c.j.Spec.BackoffLimitPerIndex == nil {
			c.invalid("failedIndexes", *text, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
		} else if _, err := countIndexes(*text, completions); err != nil {
			c.invalid("failedIndexes", *text, fmt.Sprintf("error parsing failedIndexes: %s", err))
		}
	}
}
