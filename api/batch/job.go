package batch

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Labels that the pods of a job have beside those with the prefix
// batch.kubernetes.io, from the time before prefixes.
const (
	legacyUIDLabel  = "controller-uid"
	legacyNameLabel = "job-name"
)

func jobKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "Job", Resource: "jobs", Singular: "job",
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   declare.V1[batchv1.Job, batchv1.JobList](),
		Default:    api.On(defaultJob),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(j *batchv1.Job) {
				if !is(j.Spec.ManualSelector, true) {
					generateSelector(j)
				}
				j.Status = batchv1.JobStatus{}
			}),
			PrepareUpdate:  api.OnUpdate(func(j, old *batchv1.Job) { j.Status = old.Status }),
			Validate:       api.Checks(jobCreate),
			ValidateUpdate: api.ChecksUpdate(jobUpdate),
			Warnings: func(o, p api.Object) []string {
				j := o.(*batchv1.Job)
				if p == nil {
					return append(podNameWarning(j.Name), jobWarnings(&j.Spec, field.NewPath("spec"))...)
				}
				if old := p.(*batchv1.Job); changed(j.Spec, old.Spec) {
					return jobWarnings(&j.Spec, field.NewPath("spec"))
				}
				return nil
			},
		},
		Desired: func(o, p api.Object) bool {
			return changed(o.(*batchv1.Job).Spec, p.(*batchv1.Job).Spec)
		},
		UnconditionalUpdate: true,
		Columns:             jobColumns(),
		Fields: map[string]func(api.Object) string{
			"status.successful": api.Field(func(j *batchv1.Job) string { return strconv.Itoa(int(j.Status.Succeeded)) }),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate:  api.OnUpdate(func(j, old *batchv1.Job) { j.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(jobStatusUpdate),
		})},
	}
}

func defaultJob(j *batchv1.Job) {
	defaultJobSpec(&j.Spec)
	if len(j.Labels) == 0 && len(j.Spec.Template.Labels) > 0 {
		j.Labels = maps.Clone(j.Spec.Template.Labels)
	}
}

// defaultJobSpec fills the spec of a job. The one inside a CronJob is completed only when a job is made of it.
func defaultJobSpec(s *batchv1.JobSpec) {
	core.DefaultPodTemplate(&s.Template)
	defaultFailurePolicy(s.PodFailurePolicy)
	if s.Completions == nil && s.Parallelism == nil {
		or(&s.Completions, 1)
	}
	or(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		or(&s.BackoffLimit, math.MaxInt32)
	}
	or(&s.BackoffLimit, 6)
	or(&s.CompletionMode, batchv1.NonIndexedCompletion)
	or(&s.Suspend, false)
	or(&s.ManualSelector, false)
	if s.PodFailurePolicy != nil {
		or(&s.PodReplacementPolicy, batchv1.Failed)
	}
	or(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
}

func defaultFailurePolicy(p *batchv1.PodFailurePolicy) {
	if p == nil {
		return
	}
	for i := range p.Rules {
		for k := range p.Rules[i].OnPodConditions {
			if c := &p.Rules[i].OnPodConditions[k]; c.Status == "" {
				c.Status = corev1.ConditionTrue
			}
		}
	}
}

// generateSelector makes the job select pods by its own UID, and labels the
// template so that it does. What the client wrote under these keys stays, and is then refused by validation.
func generateSelector(j *batchv1.Job) {
	labels := maps.Clone(j.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for key, value := range ownLabels(j) {
		if _, ok := labels[key]; !ok {
			labels[key] = value
		}
	}
	j.Spec.Template.Labels = labels

	s := &metav1.LabelSelector{}
	if j.Spec.Selector != nil {
		s = j.Spec.Selector.DeepCopy()
	}
	if s.MatchLabels == nil {
		s.MatchLabels = map[string]string{}
	}
	if _, ok := s.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		s.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
	j.Spec.Selector = s
}

// ownLabels are those by which the pods of a job are known.
func ownLabels(j *batchv1.Job) map[string]string {
	return map[string]string{
		batchv1.JobNameLabel:       j.Name,
		legacyNameLabel:            j.Name,
		batchv1.ControllerUidLabel: string(j.UID),
		legacyUIDLabel:             string(j.UID),
	}
}

func podNameWarning(name string) []string {
	msgs := validate.DNSLabel(name)
	if len(msgs) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)}
}

func jobWarnings(s *batchv1.JobSpec, path *field.Path) []string {
	var warnings []string
	if is(s.CompletionMode, batchv1.IndexedCompletion) &&
		declare.Replicas(s.Completions) > 100_000 && declare.Replicas(s.Parallelism) > 10_000 {
		warnings = append(warnings, "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail")
	}
	return append(warnings, core.PodTemplateWarnings(&s.Template, path.Child("template"))...)
}

func jobColumns() []api.Column {
	spec, status := batchv1.JobSpec{}.SwaggerDoc(), batchv1.JobStatus{}.SwaggerDoc()
	return append([]api.Column{
		declare.Name(),
		declare.Text("Status", status["conditions"], func(j *batchv1.Job) any { return jobState(j) }),
		declare.Text("Completions", status["succeeded"], func(j *batchv1.Job) any { return completions(j) }),
		declare.Timed("Duration", "Time required to complete the job.", func(j *batchv1.Job, now time.Time) any {
			switch s := &j.Status; {
			case s.StartTime == nil:
				return ""
			case s.CompletionTime == nil:
				return duration.HumanDuration(now.Sub(s.StartTime.Time))
			default:
				return duration.HumanDuration(s.CompletionTime.Sub(s.StartTime.Time))
			}
		}),
		declare.Age(),
	}, selectorDoc(declare.Containers(
		func(j *batchv1.Job) []corev1.Container { return j.Spec.Template.Spec.Containers },
		func(j *batchv1.Job) *metav1.LabelSelector { return j.Spec.Selector }), spec["selector"])...)
}

func selectorDoc(columns []api.Column, doc string) []api.Column {
	columns[len(columns)-1].Description = doc
	return columns
}

// jobState is the column that sums up the conditions.
func jobState(j *batchv1.Job) string {
	switch {
	case has(&j.Status, batchv1.JobComplete):
		return "Complete"
	case has(&j.Status, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case has(&j.Status, batchv1.JobSuspended):
		return "Suspended"
	case has(&j.Status, batchv1.JobFailureTarget):
		return "FailureTarget"
	case has(&j.Status, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

// has tells whether a condition is true.
func has(s *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return s.Conditions[i].Status == corev1.ConditionTrue
		}
	}
	return false
}

func completions(j *batchv1.Job) string {
	done := j.Status.Succeeded
	if j.Spec.Completions != nil {
		return fmt.Sprintf("%d/%d", done, *j.Spec.Completions)
	}
	if p := declare.Replicas(j.Spec.Parallelism); p > 1 {
		return fmt.Sprintf("%d/1 of %d", done, p)
	}
	return fmt.Sprintf("%d/1", done)
}
