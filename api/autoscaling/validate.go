package autoscaling

import (
	"fmt"
	"slices"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

const (
	maxWindow = 3600 // seconds that a stabilization window may last
	maxPeriod = 1800 // seconds that a scaling policy may look back
)

func spec(s *autoscalingv2.HorizontalPodAutoscalerSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if s.MinReplicas != nil && *s.MinReplicas < 1 {
		errs = append(errs, field.Invalid(path.Child("minReplicas"), *s.MinReplicas, "must be greater than or equal to 1"))
	}
	if s.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), s.MaxReplicas, "must be greater than 0"))
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		errs = append(errs, field.Invalid(path.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, reference(s.ScaleTargetRef, path.Child("scaleTargetRef"))...)
	for i := range s.Metrics {
		errs = append(errs, metric(&s.Metrics[i], path.Child("metrics").Index(i))...)
	}
	if b := s.Behavior; b != nil {
		errs = append(errs, rules(b.ScaleUp, path.Child("behavior", "scaleUp"))...)
		errs = append(errs, rules(b.ScaleDown, path.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func reference(r autoscalingv2.CrossVersionObjectReference, path *field.Path) field.ErrorList {
	errs := segment(r.Kind, path.Child("kind"), "")
	errs = append(errs, segment(r.Name, path.Child("name"), "")...)
	if _, err := schema.ParseGroupVersion(r.APIVersion); err != nil {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), r.APIVersion, err.Error()))
	}
	return errs
}

// segment checks what becomes part of a URL; absent says why it must be there.
func segment(value string, path *field.Path, absent string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, absent)}
	}
	return validate.Invalids(path, value, pathvalidation.IsValidPathSegmentName(value))
}

func metric(m *autoscalingv2.MetricSpec, path *field.Path) field.ErrorList {
	if m.Type == "" {
		return field.ErrorList{field.Required(path.Child("type"), "must specify a metric source type")}
	}
	sources := []struct {
		kind    autoscalingv2.MetricSourceType
		name    string
		present bool
		check   func(*field.Path) field.ErrorList
	}{
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil, func(p *field.Path) field.ErrorList { return containerResource(m.ContainerResource, p) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) field.ErrorList { return external(m.External, p) }},
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) field.ErrorList { return object(m.Object, p) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) field.ErrorList { return pods(m.Pods, p) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) field.ErrorList { return resources(m.Resource, p) }},
	}
	var (
		errs    field.ErrorList
		kinds   []autoscalingv2.MetricSourceType
		present int
	)
	for _, s := range sources {
		kinds = append(kinds, s.kind)
		if s.present {
			present++
		}
	}
	if !slices.Contains(kinds, m.Type) {
		errs = append(errs, field.NotSupported(path.Child("type"), m.Type, kinds))
	}
	for _, s := range sources {
		switch p := path.Child(s.name); {
		case s.present && s.kind == m.Type:
			errs = append(errs, s.check(p)...)
		case s.present:
			errs = append(errs, field.Forbidden(p, "must populate the given metric source only"))
		case s.kind == m.Type:
			errs = append(errs, field.Required(p, "must populate information for the given metric source"))
		}
	}
	return errs
}

func identifier(m autoscalingv2.MetricIdentifier, path *field.Path) field.ErrorList {
	return segment(m.Name, path.Child("name"), "must specify a metric name")
}

func object(m *autoscalingv2.ObjectMetricSource, path *field.Path) field.ErrorList {
	errs := reference(m.DescribedObject, path.Child("describedObject"))
	errs = append(errs, identifier(m.Metric, path.Child("metric"))...)
	errs = append(errs, metricTarget(&m.Target, path.Child("target"))...)
	return append(errs, wantsOne(&m.Target, path.Child("target"))...)
}

func external(m *autoscalingv2.ExternalMetricSource, path *field.Path) field.ErrorList {
	errs := identifier(m.Metric, path.Child("metric"))
	errs = append(errs, metricTarget(&m.Target, path.Child("target"))...)
	errs = append(errs, wantsOne(&m.Target, path.Child("target"))...)
	if m.Target.Value != nil && m.Target.AverageValue != nil {
		errs = append(errs, field.Forbidden(path.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
	}
	return errs
}

func wantsOne(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	if t.Value != nil || t.AverageValue != nil {
		return nil
	}
	return field.ErrorList{field.Required(path.Child("averageValue"), "must set either a target value for metric or a per-pod target")}
}

func pods(m *autoscalingv2.PodsMetricSource, path *field.Path) field.ErrorList {
	errs := identifier(m.Metric, path.Child("metric"))
	errs = append(errs, metricTarget(&m.Target, path.Child("target"))...)
	if v := m.Target.AverageValue; v == nil || v.Sign() != 1 {
		errs = append(errs, field.Required(path.Child("target", "averageValue"), "must specify a positive target averageValue"))
	}
	return errs
}

func containerResource(m *autoscalingv2.ContainerResourceMetricSource, path *field.Path) field.ErrorList {
	errs := resources(&autoscalingv2.ResourceMetricSource{Name: m.Name, Target: m.Target}, path)
	if m.Container == "" {
		errs = append(errs, field.Required(path.Child("container"), "must specify a container"))
	}
	return errs
}

func resources(m *autoscalingv2.ResourceMetricSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "must specify a resource name"))
	}
	p := path.Child("target")
	errs = append(errs, metricTarget(&m.Target, p)...)
	switch utilization, value := m.Target.AverageUtilization != nil, m.Target.AverageValue != nil; {
	case !utilization && !value:
		errs = append(errs, field.Required(p.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case utilization && value:
		errs = append(errs, field.Forbidden(p.Child("averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func metricTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch t.Type {
	case "":
		errs = append(errs, field.Required(path.Child("type"), "must specify a metric target type"))
		errs = append(errs, field.Invalid(path.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		errs = append(errs, field.Invalid(path.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		errs = append(errs, field.Invalid(path.Child("value"), t.Value, "must be positive"))
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		errs = append(errs, field.Invalid(path.Child("averageValue"), t.AverageValue, "must be positive"))
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		errs = append(errs, field.Invalid(path.Child("averageUtilization"), *t.AverageUtilization, "must be greater than 0"))
	}
	return errs
}

func rules(r *autoscalingv2.HPAScalingRules, path *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if w := r.StabilizationWindowSeconds; w != nil {
		if *w < 0 {
			errs = append(errs, field.Invalid(path.Child("stabilizationWindowSeconds"), *w, "must be greater than or equal to zero"))
		}
		if *w > maxWindow {
			errs = append(errs, field.Invalid(path.Child("stabilizationWindowSeconds"), *w, fmt.Sprintf("must be less than or equal to %d", maxWindow)))
		}
	}
	if s := r.SelectPolicy; s != nil {
		errs = append(errs, validate.OneOf(*s, path.Child("selectPolicy"),
			autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)...)
	}
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(path.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range r.Policies {
		errs = append(errs, policy(p, path.Child("policies").Index(i))...)
	}
	if r.Tolerance != nil {
		errs = append(errs, validate.NonNegativeQuantity(*r.Tolerance, path.Child("tolerance"))...)
	}
	return errs
}

func policy(p autoscalingv2.HPAScalingPolicy, path *field.Path) field.ErrorList {
	errs := validate.OneOf(p.Type, path.Child("type"), autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)
	errs = append(errs, validate.Positive(p.Value, path.Child("value"))...)
	errs = append(errs, validate.Positive(p.PeriodSeconds, path.Child("periodSeconds"))...)
	if p.PeriodSeconds > maxPeriod {
		errs = append(errs, field.Invalid(path.Child("periodSeconds"), p.PeriodSeconds, fmt.Sprintf("must be less than or equal to %d", maxPeriod)))
	}
	return errs
}
