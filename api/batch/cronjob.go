package batch

import (
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // spec.timeZone means the same on machines without a zone database

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// maxCronJobName leaves room for what the names of its jobs add: 11 of 63 characters.
const maxCronJobName = 52

func cronJobKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "CronJob", Resource: "cronjobs", Singular: "cronjob",
		ShortNames: []string{"cj"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   declare.V1[batchv1.CronJob, batchv1.CronJobList](),
		Default:    api.On(defaultCronJob),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(c *batchv1.CronJob) { c.Status = batchv1.CronJobStatus{} }),
			PrepareUpdate: api.OnUpdate(func(c, old *batchv1.CronJob) { c.Status = old.Status }),
			Validate: api.Checks(func(c *batchv1.CronJob) field.ErrorList {
				errs := cronJobSpec(&c.Spec, nil)
				if len(c.Name) > maxCronJobName {
					errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters"))
				}
				return errs
			}),
			ValidateUpdate: api.ChecksUpdate(func(c, old *batchv1.CronJob) field.ErrorList { return cronJobSpec(&c.Spec, &old.Spec) }),
			Warnings: func(o, p api.Object) []string {
				old, _ := p.(*batchv1.CronJob)
				return cronJobWarnings(o.(*batchv1.CronJob), old)
			},
		},
		Desired: func(o, p api.Object) bool {
			return changed(o.(*batchv1.CronJob).Spec, p.(*batchv1.CronJob).Spec)
		},
		UnconditionalUpdate: true,
		Columns:             cronJobColumns(),
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(c, old *batchv1.CronJob) { c.Spec = old.Spec }),
		})},
	}
}

func defaultCronJob(c *batchv1.CronJob) {
	s := &c.Spec
	if s.ConcurrencyPolicy == "" {
		s.ConcurrencyPolicy = batchv1.AllowConcurrent
	}
	or(&s.Suspend, false)
	or(&s.SuccessfulJobsHistoryLimit, 3)
	or(&s.FailedJobsHistoryLimit, 1)
	core.DefaultPodTemplate(&s.JobTemplate.Spec.Template)
	defaultFailurePolicy(s.JobTemplate.Spec.PodFailurePolicy)
}

func cronJobSpec(s, old *batchv1.CronJobSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if s.Schedule == "" {
		errs = append(errs, field.Required(path.Child("schedule"), ""))
	} else {
		zoned := old != nil && strings.Contains(old.Schedule, "TZ")
		errs = append(errs, schedule(s, zoned, path.Child("schedule"))...)
	}
	if s.StartingDeadlineSeconds != nil {
		errs = append(errs, validate.NonNegative(*s.StartingDeadlineSeconds, path.Child("startingDeadlineSeconds"))...)
	}
	if old == nil || changed(s.TimeZone, old.TimeZone) {
		errs = append(errs, timeZone(s.TimeZone, path.Child("timeZone"))...)
	}
	errs = append(errs, validate.RequiredOneOf(s.ConcurrencyPolicy, path.Child("concurrencyPolicy"),
		batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	errs = append(errs, jobTemplate(&s.JobTemplate, path.Child("jobTemplate", "spec"))...)
	if n := s.SuccessfulJobsHistoryLimit; n != nil {
		errs = append(errs, validate.NonNegative(*n, path.Child("successfulJobsHistoryLimit"))...)
	}
	if n := s.FailedJobsHistoryLimit; n != nil {
		errs = append(errs, validate.NonNegative(*n, path.Child("failedJobsHistoryLimit"))...)
	}
	return errs
}

// jobTemplate checks the job inside; its selector will be made by the server.
func jobTemplate(t *batchv1.JobTemplateSpec, path *field.Path) field.ErrorList {
	errs := jobTemplateSpec(&t.Spec, path)
	if t.Spec.Selector != nil {
		errs = append(errs, field.Invalid(path.Child("selector"), t.Spec.Selector, "`selector` will be auto-generated"))
	}
	if is(t.Spec.ManualSelector, true) {
		errs = append(errs, field.NotSupported(path.Child("manualSelector"), t.Spec.ManualSelector, []string{"nil", "false"}))
	}
	return errs
}

// schedule checks the text; zoned tells that one which names a time zone was accepted before.
func schedule(s *batchv1.CronJobSpec, zoned bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if _, err := ParseSchedule(s.Schedule); err != nil {
		errs = append(errs, field.Invalid(path, s.Schedule, err.Error()))
	}
	if strings.Contains(s.Schedule, "TZ") {
		switch {
		case !zoned:
			errs = append(errs, field.Invalid(path, s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
		case s.TimeZone != nil:
			errs = append(errs, field.Invalid(path, s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
		}
	}
	return errs
}

// zonePart is what may stand between the slashes of a zone's name.
var zonePart = regexp.MustCompile(`^[A-Za-z.\-_0-9+]{1,14}$`)

func timeZone(zone *string, path *field.Path) field.ErrorList {
	if zone == nil {
		return nil
	}
	invalid := func(message string) field.ErrorList {
		return field.ErrorList{field.Invalid(path, *zone, message)}
	}
	if *zone == "" {
		return invalid("timeZone must be nil or non-empty string")
	}
	for _, part := range strings.Split(*zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !zonePart.MatchString(part) {
			return invalid("unknown time zone " + *zone)
		}
	}
	if strings.EqualFold(*zone, "Local") {
		return invalid("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		return invalid(err.Error())
	}
	return nil
}

func cronJobWarnings(c, old *batchv1.CronJob) []string {
	path := field.NewPath("spec", "jobTemplate", "spec")
	var warnings []string
	switch {
	case old == nil:
		warnings = append(podNameWarning(c.Name), jobWarnings(&c.Spec.JobTemplate.Spec, path)...)
	case changed(c.Spec, old.Spec):
		warnings = jobWarnings(&c.Spec.JobTemplate.Spec, path)
	}
	if strings.Contains(c.Spec.Schedule, "TZ") {
		warnings = append(warnings, "CRON_TZ or TZ used in spec.spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
	}
	return warnings
}

func cronJobColumns() []api.Column {
	spec, status := batchv1.CronJobSpec{}.SwaggerDoc(), batchv1.CronJobStatus{}.SwaggerDoc()
	return append([]api.Column{
		declare.Name(),
		declare.Text("Schedule", spec["schedule"], func(c *batchv1.CronJob) any { return c.Spec.Schedule }),
		declare.Text("Timezone", spec["timeZone"], func(c *batchv1.CronJob) any {
			if c.Spec.TimeZone == nil {
				return declare.None
			}
			return *c.Spec.TimeZone
		}),
		declare.Text("Suspend", spec["suspend"], func(c *batchv1.CronJob) any { return declare.Bool(c.Spec.Suspend) }),
		declare.Integer("Active", status["active"], func(c *batchv1.CronJob) int64 { return int64(len(c.Status.Active)) }),
		declare.Timed("Last Schedule", status["lastScheduleTime"], func(c *batchv1.CronJob, now time.Time) any {
			if c.Status.LastScheduleTime == nil {
				return declare.None
			}
			return declare.Since(*c.Status.LastScheduleTime, now)
		}),
		declare.Age(),
	}, declare.Containers(
		func(c *batchv1.CronJob) []corev1.Container { return c.Spec.JobTemplate.Spec.Template.Spec.Containers },
		func(c *batchv1.CronJob) *metav1.LabelSelector { return c.Spec.JobTemplate.Spec.Selector })...)
}
