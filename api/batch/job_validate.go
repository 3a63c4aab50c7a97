package batch

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/validate"
)

// Limits that upstream sets so that the status of an indexed job stays storable.
const (
	maxIndexedParallelism = 100_000
	maxFailedIndexes      = 100_000
	manyCompletions       = 100_000 // above: the two below hold with backoffLimitPerIndex
	maxParallelismOfMany  = 10_000
	maxFailedOfMany       = 10_000
	maxPolicyRules        = 20
	maxConditionPatterns  = 20
	maxExitCodes          = 255
	maxIndexesText        = 64 * 1024
	maxManagedBy          = 63
)

func jobCreate(j *batchv1.Job) field.ErrorList {
	path := field.NewPath("spec")
	errs := generatedSelector(j)
	errs = append(errs, jobSpec(&j.Spec, path)...)
	if n := j.Spec.Completions; is(j.Spec.CompletionMode, batchv1.IndexedCompletion) && n != nil && *n > 0 {
		// The pods of an indexed job are hosts named after the job and their index.
		if host := fmt.Sprintf("%s-%d", j.Name, *n-1); len(validate.DNSLabel(host)) > 0 {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), j.Name,
				fmt.Sprintf("will not able to create pod with invalid DNS label: %s", host)))
		}
	}
	return errs
}

// generatedSelector checks that a selector which the client left to the server
// selects the pods of this job and of no other.
func generatedSelector(j *batchv1.Job) field.ErrorList {
	if is(j.Spec.ManualSelector, true) || j.Spec.Selector == nil {
		return nil
	}
	var errs field.ErrorList
	if j.UID == "" {
		errs = append(errs, field.Required(field.NewPath("metadata", "uid"), ""))
	}
	own := ownLabels(j)
	path := field.NewPath("spec", "template", "metadata", "labels")
	for _, key := range []string{legacyUIDLabel, legacyNameLabel, batchv1.ControllerUidLabel, batchv1.JobNameLabel} {
		want := fmt.Sprintf("must be '%s'", own[key])
		if got, ok := j.Spec.Template.Labels[key]; !ok {
			errs = append(errs, field.Required(path.Key(key), want))
		} else if got != own[key] {
			errs = append(errs, field.Invalid(path.Key(key), j.Spec.Template.Labels, want))
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(labels.Set(own)) {
		errs = append(errs, field.Invalid(field.NewPath("spec", "selector"), j.Spec.Selector, "`selector` not auto-generated"))
	}
	return errs
}

func jobSpec(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	errs := jobTemplateSpec(s, path)
	if s.Selector == nil {
		errs = append(errs, field.Required(path.Child("selector"), ""))
	} else {
		errs = append(errs, validate.LabelSelector(s.Selector, path.Child("selector"))...)
	}
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(path.Child("template", "metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`"))
	}
	return errs
}

// jobTemplateSpec checks what a job and the template of a cron job have in common.
func jobTemplateSpec(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		value *int32
	}{
		{"parallelism", s.Parallelism}, {"completions", s.Completions}, {"backoffLimit", s.BackoffLimit},
		{"ttlSecondsAfterFinished", s.TTLSecondsAfterFinished}, {"backoffLimitPerIndex", s.BackoffLimitPerIndex},
		{"maxFailedIndexes", s.MaxFailedIndexes},
	} {
		if f.value != nil {
			errs = append(errs, validate.NonNegative(*f.value, path.Child(f.name))...)
		}
	}
	if s.ActiveDeadlineSeconds != nil {
		errs = append(errs, validate.NonNegative(*s.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	}
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(path.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	if m := s.ManagedBy; m != nil {
		errs = append(errs, content.IsDomainPrefixedPath(path.Child("managedBy"), *m)...)
		if len(*m) > maxManagedBy {
			errs = append(errs, field.TooLong(path.Child("managedBy"), *m, maxManagedBy))
		}
	}
	errs = append(errs, completionMode(s, path)...)
	if s.PodFailurePolicy != nil {
		errs = append(errs, failurePolicy(s, path.Child("podFailurePolicy"))...)
	}
	if s.SuccessPolicy != nil {
		if is(s.CompletionMode, batchv1.IndexedCompletion) {
			errs = append(errs, successPolicy(s, path.Child("successPolicy"))...)
		} else {
			errs = append(errs, field.Invalid(path.Child("successPolicy"), s.SuccessPolicy, "requires indexed completion mode"))
		}
	}
	errs = append(errs, replacementPolicy(s, path.Child("podReplacementPolicy"))...)
	if s.Scheduling != nil {
		errs = append(errs, field.Forbidden(path.Child("scheduling"), "requires the feature gate WorkloadWithJob"))
	}
	errs = append(errs, core.ValidatePodTemplateSpec(&s.Template, path.Child("template"))...)
	return append(errs, jobRestartPolicy(s, path.Child("template", "spec", "restartPolicy"))...)
}

func jobRestartPolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	switch p := s.Template.Spec.RestartPolicy; {
	case p == corev1.RestartPolicyAlways || p == "":
		return field.ErrorList{field.Required(path, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever))}
	case p != corev1.RestartPolicyOnFailure && p != corev1.RestartPolicyNever:
		return field.ErrorList{field.NotSupported(path, p, []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever})}
	case p != corev1.RestartPolicyNever && s.PodFailurePolicy != nil:
		return field.ErrorList{field.Invalid(path, p, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever))}
	}
	return nil
}

func completionMode(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m := s.CompletionMode; m != nil {
		errs = append(errs, validate.OneOf(*m, path.Child("completionMode"), batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)...)
	}
	if is(s.CompletionMode, batchv1.IndexedCompletion) {
		return append(errs, indexed(s, path)...)
	}
	if s.CompletionMode == nil || *s.CompletionMode == batchv1.NonIndexedCompletion {
		if s.BackoffLimitPerIndex != nil {
			errs = append(errs, field.Invalid(path.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
		}
		if s.MaxFailedIndexes != nil {
			errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "requires indexed completion mode"))
		}
	}
	return errs
}

// indexed checks the limits of an indexed job.
func indexed(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	invalid := func(name string, value int32, format string, args ...any) {
		errs = append(errs, field.Invalid(path.Child(name), value, fmt.Sprintf(format, args...)))
	}
	if s.Completions == nil {
		errs = append(errs, field.Required(path.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
	}
	if p := s.Parallelism; p != nil && *p > maxIndexedParallelism {
		invalid("parallelism", *p, "must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion)
	}
	if f := s.MaxFailedIndexes; f != nil {
		if s.Completions != nil && *f > *s.Completions {
			invalid("maxFailedIndexes", *f, "must be less than or equal to completions")
		}
		if *f > maxFailedIndexes {
			invalid("maxFailedIndexes", *f, "must be less than or equal to %d", maxFailedIndexes)
		}
	}
	if s.Completions == nil || *s.Completions <= manyCompletions || s.BackoffLimitPerIndex == nil {
		return errs
	}
	const most = "must be less than or equal to %d when completions are above %d and used with backoff limit per index"
	if s.MaxFailedIndexes == nil {
		errs = append(errs, field.Required(path.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
	}
	if p := s.Parallelism; p != nil && *p > maxParallelismOfMany {
		invalid("parallelism", *p, most, maxParallelismOfMany, manyCompletions)
	}
	if f := s.MaxFailedIndexes; f != nil && *f > maxFailedOfMany {
		invalid("maxFailedIndexes", *f, most, maxFailedOfMany, manyCompletions)
	}
	return errs
}

func replacementPolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	switch p := s.PodReplacementPolicy; {
	case p == nil:
		return nil
	case s.PodFailurePolicy != nil:
		return validate.OneOf(*p, path, batchv1.Failed)
	default:
		return validate.OneOf(*p, path, batchv1.Failed, batchv1.TerminatingOrFailed)
	}
}

func jobUpdate(j, old *batchv1.Job) field.ErrorList {
	path := field.NewPath("spec")
	s, o := &j.Spec, &old.Spec
	errs := jobSpec(s, path)
	errs = append(errs, completionsUpdate(s, o, path.Child("completions"))...)
	errs = append(errs, validate.Immutable(s.Selector, o.Selector, path.Child("selector"))...)
	errs = append(errs, jobTemplateUpdate(s, old, path.Child("template"))...)
	errs = append(errs, validate.Immutable(s.CompletionMode, o.CompletionMode, path.Child("completionMode"))...)
	errs = append(errs, validate.Immutable(s.PodFailurePolicy, o.PodFailurePolicy, path.Child("podFailurePolicy"))...)
	errs = append(errs, validate.Immutable(s.BackoffLimitPerIndex, o.BackoffLimitPerIndex, path.Child("backoffLimitPerIndex"))...)
	errs = append(errs, validate.Immutable(s.ManagedBy, o.ManagedBy, path.Child("managedBy"))...)
	return append(errs, validate.Immutable(s.SuccessPolicy, o.SuccessPolicy, path.Child("successPolicy"))...)
}

// completionsUpdate lets an indexed job grow and shrink, together with its parallelism.
func completionsUpdate(s, old *batchv1.JobSpec, path *field.Path) field.ErrorList {
	if !is(s.CompletionMode, batchv1.IndexedCompletion) {
		return validate.Immutable(s.Completions, old.Completions, path)
	}
	if s.Completions == nil || !changed(s.Completions, old.Completions) || is(s.Parallelism, *s.Completions) {
		return nil
	}
	return field.ErrorList{field.Invalid(path, *s.Completions, "can only be modified in tandem with spec.parallelism")}
}

// jobTemplateUpdate refuses changes of the template but for scheduling directives and container
// resources of a suspended job that has no pods (KEP-2926, KEP-5440).
func jobTemplateUpdate(s *batchv1.JobSpec, old *batchv1.Job, path *field.Path) field.ErrorList {
	begun := old.Status.StartTime != nil && !has(&old.Status, batchv1.JobSuspended) || old.Status.Active > 0
	if !is(old.Spec.Suspend, true) || begun {
		return validate.Immutable(&s.Template, &old.Spec.Template, path)
	}
	allowed := old.Spec.Template.DeepCopy()
	letSchedule(allowed, &s.Template)
	letResources(allowed.Spec.InitContainers, s.Template.Spec.InitContainers)
	letResources(allowed.Spec.Containers, s.Template.Spec.Containers)
	errs := validate.Immutable(s.Template.ObjectMeta, allowed.ObjectMeta, path)
	return append(errs, validate.Immutable(&s.Template.Spec, &allowed.Spec, path.Child("spec"))...)
}

// letSchedule takes over into allowed what decides on which node the pods go.
func letSchedule(allowed, t *corev1.PodTemplateSpec) {
	a, b := &allowed.Spec, &t.Spec
	switch {
	case b.Affinity != nil && a.Affinity != nil:
		a.Affinity.NodeAffinity = b.Affinity.NodeAffinity
	case b.Affinity != nil:
		a.Affinity = &corev1.Affinity{NodeAffinity: b.Affinity.NodeAffinity}
	case a.Affinity != nil:
		a.Affinity.NodeAffinity = nil
		if *a.Affinity == (corev1.Affinity{}) {
			a.Affinity = nil
		}
	}
	a.NodeSelector = b.NodeSelector
	a.Tolerations = b.Tolerations
	a.SchedulingGates = b.SchedulingGates
	allowed.Annotations = t.Annotations
	allowed.Labels = t.Labels
}

func letResources(allowed, containers []corev1.Container) {
	for i := range allowed {
		if len(containers) == len(allowed) && containers[i].Name == allowed[i].Name {
			allowed[i].Resources = containers[i].Resources
		}
	}
}
