package autoscaling

import (
	"fmt"

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

// spec checks what an autoscaler shall do. old, which may be nil, is what it was to do before.
func spec(s, old *autoscalingv2.HorizontalPodAutoscalerSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := replicas(s, path)
	errs = append(errs, reference(s.ScaleTargetRef, targetRule(s, old), path.Child("scaleTargetRef"))...)
	errs = append(errs, metrics(s, objectRule(old), path.Child("metrics"))...)
	if b := s.Behavior; b != nil {
		errs = append(errs, rules(b.ScaleUp, path.Child("behavior", "scaleUp"))...)
		errs = append(errs, rules(b.ScaleDown, path.Child("behavior", "scaleDown"))...)
	}
	return errs
}

// replicas checks the limits. The lower may be 0 (KEP-2021, on by default since 1.37); metrics says when.
func replicas(s *autoscalingv2.HorizontalPodAutoscalerSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m := s.MinReplicas; m != nil && *m < 0 {
		errs = append(errs, field.Invalid(path.Child("minReplicas"), *m, "must be greater than or equal to 0"))
	}
	most := path.Child("maxReplicas")
	switch {
	case s.MaxReplicas == 0:
		errs = append(errs, field.Required(most, "must be set and greater than 0"))
	case s.MaxReplicas < 0:
		errs = append(errs, field.Invalid(most, s.MaxReplicas, "must be greater than or equal to 1"))
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		errs = append(errs, field.Invalid(most, s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	return errs
}

// versionRule says what the API version in a reference may be.
type versionRule int

const (
	anyVersion   versionRule = iota // whatever it was before
	validVersion                    // one of any group
	groupVersion                    // one of a named group
)

// targetRule wants the group of what is scaled, unless that is the one kind of the core group that
// scales. References from before there was this rule may stay.
func targetRule(s, old *autoscalingv2.HorizontalPodAutoscalerSpec) versionRule {
	now := s.ScaleTargetRef
	switch {
	case old != nil && now.Kind == old.ScaleTargetRef.Kind && now.APIVersion == old.ScaleTargetRef.APIVersion:
		return anyVersion
	case now.Kind == "ReplicationController":
		return validVersion
	}
	return groupVersion
}

func objectRule(old *autoscalingv2.HorizontalPodAutoscalerSpec) versionRule {
	if old == nil {
		return validVersion
	}
	for i := range old.Metrics {
		if o := old.Metrics[i].Object; o != nil && version(o.DescribedObject.APIVersion, validVersion) != "" {
			return anyVersion
		}
	}
	return validVersion
}

// version says what is wrong with an API version, nothing if all is well.
func version(text string, rule versionRule) string {
	if rule == anyVersion {
		return ""
	}
	parsed, err := schema.ParseGroupVersion(text)
	switch {
	case err != nil:
		return err.Error()
	case rule == groupVersion && parsed.Group == "":
		return "apiVersion must specify API group"
	}
	return ""
}

func reference(r autoscalingv2.CrossVersionObjectReference, rule versionRule, path *field.Path) field.ErrorList {
	errs := segment(r.Kind, path.Child("kind"), "")
	errs = append(errs, segment(r.Name, path.Child("name"), "")...)
	if message := version(r.APIVersion, rule); message != "" {
		errs = append(errs, field.Invalid(path.Child("apiVersion"), r.APIVersion, message))
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

func metrics(s *autoscalingv2.HorizontalPodAutoscalerSpec, rule versionRule, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	fromOutside := false
	for i := range s.Metrics {
		errs = append(errs, metric(&s.Metrics[i], rule, path.Index(i))...)
		t := s.Metrics[i].Type
		fromOutside = fromOutside || t == autoscalingv2.ObjectMetricSourceType || t == autoscalingv2.ExternalMetricSourceType
	}
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !fromOutside {
		errs = append(errs, field.Forbidden(path, "must specify at least one Object or External metric to support scaling to zero replicas"))
	}
	return errs
}

var sourceTypes = []autoscalingv2.MetricSourceType{
	autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType, autoscalingv2.ObjectMetricSourceType,
	autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType,
}

// metric checks the first source that is there, and that it is the one which the type names, and alone.
func metric(m *autoscalingv2.MetricSpec, rule versionRule, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m.Type == "" {
		errs = append(errs, field.Required(path.Child("type"), "must specify a metric source type"))
	}
	errs = append(errs, validate.OneOf(m.Type, path.Child("type"), sourceTypes...)...)
	type source struct {
		kind  autoscalingv2.MetricSourceType
		name  string
		found bool
		check func(*field.Path) field.ErrorList
	}
	sources := []source{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) field.ErrorList { return object(m.Object, rule, p) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) field.ErrorList { return external(m.External, p) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) field.ErrorList { return pods(m.Pods, p) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) field.ErrorList { return resources(m.Resource, p) }},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil, func(p *field.Path) field.ErrorList { return containerResource(m.ContainerResource, p) }},
	}
	present := 0
	for _, s := range sources {
		if !s.found {
			continue
		}
		if present++; present == 1 {
			errs = append(errs, s.check(path.Child(s.name))...)
		}
	}
	for _, s := range sources {
		if s.kind == m.Type && !s.found {
			errs = append(errs, field.Required(path.Child(s.name), "must populate information for the given metric source"))
		}
	}
	for _, s := range sources {
		if present > 1 && s.found && s.kind != m.Type {
			errs = append(errs, field.Forbidden(path.Child(s.name), "must populate the given metric source only"))
		}
	}
	return errs
}

func identifier(m autoscalingv2.MetricIdentifier, path *field.Path) field.ErrorList {
	return segment(m.Name, path.Child("name"), "must specify a metric name")
}

func object(m *autoscalingv2.ObjectMetricSource, rule versionRule, path *field.Path) field.ErrorList {
	errs := reference(m.DescribedObject, rule, path.Child("describedObject"))
	errs = append(errs, identifier(m.Metric, path.Child("metric"))...)
	errs = append(errs, metricTarget(&m.Target, path.Child("target"))...)
	return append(errs, wantsOne(&m.Target, path.Child("target"), "must set either a target value or averageValue")...)
}

func external(m *autoscalingv2.ExternalMetricSource, path *field.Path) field.ErrorList {
	errs := identifier(m.Metric, path.Child("metric"))
	errs = append(errs, metricTarget(&m.Target, path.Child("target"))...)
	errs = append(errs, wantsOne(&m.Target, path.Child("target"), "must set either a target value for metric or a per-pod target")...)
	if m.Target.Value != nil && m.Target.AverageValue != nil {
		errs = append(errs, field.Forbidden(path.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
	}
	return errs
}

func wantsOne(t *autoscalingv2.MetricTarget, path *field.Path, message string) field.ErrorList {
	if t.Value != nil || t.AverageValue != nil {
		return nil
	}
	return field.ErrorList{field.Required(path.Child("averageValue"), message)}
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
	var errs field.ErrorList
	if m.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "must specify a resource name"))
	} else {
		errs = append(errs, validate.ContainerResourceName(m.Name, path.Child("name"))...)
	}
	if m.Container == "" {
		errs = append(errs, field.Required(path.Child("container"), "must specify a container"))
	} else {
		errs = append(errs, validate.DNSLabelField(m.Container, path.Child("container"))...)
	}
	return append(errs, resourceTarget(&m.Target, path.Child("target"))...)
}

func resources(m *autoscalingv2.ResourceMetricSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "must specify a resource name"))
	}
	return append(errs, resourceTarget(&m.Target, path.Child("target"))...)
}

func resourceTarget(t *autoscalingv2.MetricTarget, path *field.Path) field.ErrorList {
	errs := metricTarget(t, path)
	switch utilization, value := t.AverageUtilization != nil, t.AverageValue != nil; {
	case !utilization && !value:
		errs = append(errs, field.Required(path.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case utilization && value:
		errs = append(errs, field.Forbidden(path.Child("averageValue"), "may not set both a target raw value and a target utilization"))
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
