package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/percent"
	"coracle.dev/coracle/api/validate"
)

func daemonSetKind() *api.Kind {
	return &api.Kind{
		Group: group, Kind: "DaemonSet", Resource: "daemonsets", Singular: "daemonset",
		ShortNames: []string{"ds"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   declare.V1[appsv1.DaemonSet, appsv1.DaemonSetList](),
		Default:    api.On(defaultDaemonSet),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(d *appsv1.DaemonSet) {
				d.Status = appsv1.DaemonSetStatus{}
				if templateGeneration(d) < 1 {
					setTemplateGeneration(d, 1)
				}
			}),
			PrepareUpdate:  api.OnUpdate(prepareDaemonSetUpdate),
			Validate:       api.Checks(func(d *appsv1.DaemonSet) field.ErrorList { return daemonSetSpec(&d.Spec) }),
			ValidateUpdate: api.ChecksUpdate(daemonSetUpdate),
			Warnings: func(o, p api.Object) []string {
				d := o.(*appsv1.DaemonSet)
				if p == nil {
					return templateWarnings(&d.Spec.Template)
				}
				if old := p.(*appsv1.DaemonSet); changed(d.Spec, old.Spec) {
					return templateWarnings(&d.Spec.Template)
				}
				return nil
			},
		},
		Desired: func(o, p api.Object) bool {
			return changed(o.(*appsv1.DaemonSet).Spec, p.(*appsv1.DaemonSet).Spec)
		},
		UnconditionalUpdate: true,
		Columns:             daemonSetColumns(),
		Subresources: []api.Subresource{
			declare.Status(api.Strategy{
				PrepareUpdate:  api.OnUpdate(func(d, old *appsv1.DaemonSet) { d.Spec = old.Spec }),
				ValidateUpdate: api.ChecksUpdate(daemonSetStatusUpdate),
			}),
		},
	}
}

func defaultDaemonSet(d *appsv1.DaemonSet) {
	core.DefaultPodTemplate(&d.Spec.Template)
	u := &d.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateDaemonSetStrategyType
	}
	if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		or(&u.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		percent.Default(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		percent.Default(&u.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	or(&d.Spec.RevisionHistoryLimit, 10)
}

// templateGeneration counts the changes of the template. It was a field once; upstream
// still keeps it, in an annotation that clients cannot change.
func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, _ := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	return n
}

// setTemplateGeneration changes a copy: annotations may be shared with an older version.
func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	annotations := make(map[string]string, len(d.Annotations)+1)
	for k, v := range d.Annotations {
		annotations[k] = v
	}
	annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
	d.Annotations = annotations
}

func prepareDaemonSetUpdate(d, old *appsv1.DaemonSet) {
	d.Status = old.Status
	n := templateGeneration(old)
	if changed(d.Spec.Template, old.Spec.Template) {
		n++
	}
	if n > 0 {
		setTemplateGeneration(d, n)
	}
}

func daemonSetSpec(s *appsv1.DaemonSetSpec) field.ErrorList {
	path := field.NewPath("spec")
	template := path.Child("template")
	errs := validate.LabelSelector(s.Selector, path.Child("selector"))
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(template.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`"))
	}
	if s.Selector != nil && len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(path.Child("selector"), s.Selector, "empty selector is invalid for daemonset"))
	}
	errs = append(errs, core.ValidatePodTemplateSpec(&s.Template, template)...)
	errs = append(errs, sharedDisks(s.Template.Spec.Volumes, template.Child("spec", "volumes"))...)
	errs = append(errs, runsForever(&s.Template, "DaemonSet", template)...)
	errs = append(errs, daemonSetStrategy(&s.UpdateStrategy, path.Child("updateStrategy"))...)
	errs = append(errs, validate.NonNegative(s.MinReadySeconds, path.Child("minReadySeconds"))...)
	if s.RevisionHistoryLimit != nil {
		errs = append(errs, validate.NonNegative(*s.RevisionHistoryLimit, path.Child("revisionHistoryLimit"))...)
	}
	return errs
}

func daemonSetStrategy(u *appsv1.DaemonSetUpdateStrategy, path *field.Path) field.ErrorList {
	switch u.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
		if u.RollingUpdate == nil {
			return field.ErrorList{field.Required(path.Child("rollingUpdate"), "")}
		}
		return rollingDaemonSet(u.RollingUpdate, path.Child("rollingUpdate"))
	}
	return field.ErrorList{field.NotSupported(path, u, []appsv1.DaemonSetUpdateStrategyType{
		appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType,
	})}
}

func rollingDaemonSet(r *appsv1.RollingUpdateDaemonSet, path *field.Path) field.ErrorList {
	unavailable, surge := path.Child("maxUnavailable"), path.Child("maxSurge")
	errs := percent.Check(r.MaxUnavailable, unavailable)
	errs = append(errs, percent.Check(r.MaxSurge, surge)...)
	errs = append(errs, percent.AtMost100(r.MaxUnavailable, unavailable)...)
	errs = append(errs, percent.AtMost100(r.MaxSurge, surge)...)
	switch hasUnavailable, hasSurge := !percent.IsZero(r.MaxUnavailable), !percent.IsZero(r.MaxSurge); {
	case hasUnavailable && hasSurge:
		errs = append(errs, field.Invalid(surge, r.MaxSurge, "may not be set when maxUnavailable is non-zero"))
	case !hasUnavailable && !hasSurge:
		errs = append(errs, field.Required(unavailable, "cannot be 0 when maxSurge is 0"))
	}
	return errs
}

func daemonSetUpdate(d, old *appsv1.DaemonSet) field.ErrorList {
	return append(daemonSetSpec(&d.Spec), validate.Immutable(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))...)
}

func daemonSetStatusUpdate(d, old *appsv1.DaemonSet) field.ErrorList {
	path := field.NewPath("status")
	s := &d.Status
	errs := nonNegative(path,
		count{"currentNumberScheduled", int64(s.CurrentNumberScheduled)},
		count{"numberMisscheduled", int64(s.NumberMisscheduled)},
		count{"desiredNumberScheduled", int64(s.DesiredNumberScheduled)},
		count{"numberReady", int64(s.NumberReady)},
		count{"observedGeneration", s.ObservedGeneration},
		count{"updatedNumberScheduled", int64(s.UpdatedNumberScheduled)},
		count{"numberAvailable", int64(s.NumberAvailable)},
		count{"numberUnavailable", int64(s.NumberUnavailable)})
	errs = append(errs, collisions(s.CollisionCount, path)...)
	return append(errs, notDecremented(s.CollisionCount, old.Status.CollisionCount)...)
}

func daemonSetColumns() []api.Column {
	doc := appsv1.DaemonSetStatus{}.SwaggerDoc()
	number := func(name, key string, n func(*appsv1.DaemonSetStatus) int32) api.Column {
		return declare.Integer(name, doc[key], func(d *appsv1.DaemonSet) int64 { return int64(n(&d.Status)) })
	}
	return append([]api.Column{
		declare.Name(),
		number("Desired", "desiredNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.DesiredNumberScheduled }),
		number("Current", "currentNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.CurrentNumberScheduled }),
		number("Ready", "numberReady", func(s *appsv1.DaemonSetStatus) int32 { return s.NumberReady }),
		number("Up-to-date", "updatedNumberScheduled", func(s *appsv1.DaemonSetStatus) int32 { return s.UpdatedNumberScheduled }),
		number("Available", "numberAvailable", func(s *appsv1.DaemonSetStatus) int32 { return s.NumberAvailable }),
		declare.Text("Node Selector", corev1.PodSpec{}.SwaggerDoc()["nodeSelector"], func(d *appsv1.DaemonSet) any {
			return labels.FormatLabels(d.Spec.Template.Spec.NodeSelector)
		}),
		declare.Age(),
	}, declare.Containers(
		func(d *appsv1.DaemonSet) []corev1.Container { return d.Spec.Template.Spec.Containers },
		func(d *appsv1.DaemonSet) *metav1.LabelSelector { return d.Spec.Selector })...)
}
