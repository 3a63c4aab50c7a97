package podautoscaler

import (
	"errors"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// proposal is what one metric wants.
type proposal struct {
	replicas int32
	name     string // of the metric, as conditions and events call it
	status   autoscalingv2.MetricStatus
	// err is set if there is none; cause is its inner part, for which reason is the word in events and conditions.
	err, cause error
	reason     string
}

// refuse is a proposal that could not be made. Upstream words what it says of the metric and of the autoscaler differently.
func refuse(reason string, cause error, format string, args ...any) proposal {
	return proposal{reason: reason, cause: cause, err: fmt.Errorf(format+": %w", append(args, cause)...)}
}

// outer is refuse with a layer more in the error than in the event.
func (m proposal) outer(format string, args ...any) proposal {
	if m.err != nil {
		m.err = fmt.Errorf(format+": %w", append(args, m.err)...)
	}
	return m
}

// propose computes what one metric wants.
func (p *pass) propose(spec *autoscalingv2.MetricSpec, a *answer) proposal {
	switch {
	case spec.Type == autoscalingv2.ResourceMetricSourceType && spec.Resource != nil:
		m, now := p.proposeResource(spec.Resource.Name, "", &spec.Resource.Target, a, "FailedGetResourceMetric")
		m.status = autoscalingv2.MetricStatus{Type: spec.Type, Resource: &autoscalingv2.ResourceMetricStatus{Name: spec.Resource.Name, Current: now}}
		return m.outer("failed to get %s resource metric value", spec.Resource.Name)
	case spec.Type == autoscalingv2.ContainerResourceMetricSourceType && spec.ContainerResource != nil:
		c := spec.ContainerResource
		m, now := p.proposeResource(c.Name, c.Container, &c.Target, a, "FailedGetContainerResourceMetric")
		m.status = autoscalingv2.MetricStatus{Type: spec.Type, ContainerResource: &autoscalingv2.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container, Current: now}}
		return m.outer("failed to get %s container metric value", c.Container)
	case spec.Type == autoscalingv2.PodsMetricSourceType && spec.Pods != nil:
		return p.proposePods(spec.Pods, a).outer("failed to get pods metric value")
	case spec.Type == autoscalingv2.ObjectMetricSourceType && spec.Object != nil:
		return p.proposeObject(spec.Object, a).outer("failed to get object metric value")
	case spec.Type == autoscalingv2.ExternalMetricSourceType && spec.External != nil:
		return p.proposeExternal(spec.External, a).outer("failed to get %s external metric value", spec.External.Metric.Name)
	}
	err := fmt.Errorf("unknown metric source type %q", string(spec.Type))
	return proposal{reason: "InvalidMetricSourceType", cause: err, err: err}
}

// proposeResource is for CPU and memory of pods, or of one container in each.
func (p *pass) proposeResource(name corev1.ResourceName, container string, want *autoscalingv2.MetricTarget, a *answer, reason string) (proposal, autoscalingv2.MetricValueStatus) {
	fail := func(format string, err error) (proposal, autoscalingv2.MetricValueStatus) {
		if format != "" {
			err = fmt.Errorf(format, name, err)
		}
		return proposal{reason: reason, cause: err, err: err}, autoscalingv2.MetricValueStatus{}
	}
	if want.AverageValue == nil && want.AverageUtilization == nil {
		return fail("", errors.New("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set"))
	}
	err := a.err
	if err != nil {
		err = fmt.Errorf("unable to get metrics for resource %s: %w", name, err)
	}
	g := gauge{pods: p.pods, samples: a.pods, resource: name, now: p.now, tuning: p.tuning, tolerances: p.tolerances(), current: p.current}
	if want.AverageValue != nil {
		var replicas int32
		var usage int64
		if err == nil {
			replicas, usage, err = g.byValue(want.AverageValue.MilliValue())
		}
		if err != nil {
			return fail("failed to get %s usage: %w", err)
		}
		return proposal{replicas: replicas, name: name.String() + " resource"}, autoscalingv2.MetricValueStatus{AverageValue: quantity(name, usage)}
	}
	var replicas, utilization int32
	var usage int64
	if err == nil {
		replicas, utilization, usage, err = g.byUtilization(*want.AverageUtilization, container)
	}
	if err != nil {
		return fail("failed to get %s utilization: %w", err)
	}
	called := fmt.Sprintf("%s resource utilization (percentage of request)", name)
	if container != "" {
		called = fmt.Sprintf("%s container resource utilization (percentage of request)", name)
	}
	return proposal{replicas: replicas, name: called}, autoscalingv2.MetricValueStatus{AverageUtilization: &utilization, AverageValue: quantity(name, usage)}
}

// quantity shows a use in thousandths as the resource metrics API shows it.
func quantity(name corev1.ResourceName, milli int64) *resource.Quantity {
	if name == corev1.ResourceMemory {
		return resource.NewMilliQuantity(milli, resource.BinarySI)
	}
	return resource.NewMilliQuantity(milli, resource.DecimalSI)
}

func decimal(milli int64) *resource.Quantity {
	return resource.NewMilliQuantity(milli, resource.DecimalSI)
}

// proposePods is for a metric that each pod has (custom.metrics.k8s.io).
func (p *pass) proposePods(spec *autoscalingv2.PodsMetricSource, a *answer) proposal {
	const reason = "FailedGetPodsMetric"
	fail := func(err error) proposal { return proposal{reason: reason, cause: err, err: err} }
	if a.unasked != nil {
		return fail(a.unasked)
	}
	if a.err != nil {
		return fail(fmt.Errorf("unable to get metric %s: %w", spec.Metric.Name, a.err))
	}
	g := gauge{pods: p.pods, samples: a.pods, now: p.now, tuning: p.tuning, tolerances: p.tolerances(), current: p.current}
	replicas, usage, err := g.byValue(spec.Target.AverageValue.MilliValue())
	if err != nil {
		return fail(err)
	}
	return proposal{replicas: replicas, name: "pods metric " + spec.Metric.Name, status: autoscalingv2.MetricStatus{
		Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricStatus{
			Metric: spec.Metric, Current: autoscalingv2.MetricValueStatus{AverageValue: decimal(usage)}}}}
}

// proposeObject is for a metric of one other object.
func (p *pass) proposeObject(spec *autoscalingv2.ObjectMetricSource, a *answer) proposal {
	const reason = "FailedGetObjectMetric"
	fail := func(err error) proposal { return proposal{reason: reason, cause: err, err: err} }
	err := a.unasked
	if err != nil {
		return fail(err)
	}
	if a.err != nil {
		o := spec.DescribedObject
		err = fmt.Errorf("unable to get metric %s on %s %s/%s: %w", spec.Metric.Name, o.Kind, p.hpa.Namespace, o.Name, a.err)
	}
	status := func(now autoscalingv2.MetricValueStatus) autoscalingv2.MetricStatus {
		return autoscalingv2.MetricStatus{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricStatus{
			DescribedObject: spec.DescribedObject, Metric: spec.Metric, Current: now}}
	}
	usage := a.total()
	switch want := &spec.Target; {
	case want.Type == autoscalingv2.ValueMetricType && want.Value != nil:
		var replicas int32
		if err == nil {
			replicas, err = p.byTotal(usage, want.Value.MilliValue())
		}
		if err != nil {
			return fail(err)
		}
		return proposal{replicas: replicas, name: fmt.Sprintf("%s metric %s", spec.DescribedObject.Kind, spec.Metric.Name),
			status: status(autoscalingv2.MetricValueStatus{Value: decimal(usage)})}
	case want.Type == autoscalingv2.AverageValueMetricType && want.AverageValue != nil:
		if err != nil {
			return refuse(reason, err, "failed to get %s object metric", spec.Metric.Name)
		}
		replicas, average := p.byShare(usage, want.AverageValue.MilliValue())
		return proposal{replicas: replicas, name: externalName(spec.Metric),
			status: status(autoscalingv2.MetricValueStatus{AverageValue: decimal(average)})}
	}
	return fail(errors.New("invalid object metric source: neither a value target nor an average value target was set"))
}

// proposeExternal is for a metric from outside of the cluster (external.metrics.k8s.io).
func (p *pass) proposeExternal(spec *autoscalingv2.ExternalMetricSource, a *answer) proposal {
	const reason = "FailedGetExternalMetric"
	err := a.unasked
	if err == nil && a.err != nil {
		err = fmt.Errorf("unable to get external metric %s/%s/%+v: %w", p.hpa.Namespace, spec.Metric.Name, spec.Metric.Selector, a.err)
	}
	status := func(now autoscalingv2.MetricValueStatus) autoscalingv2.MetricStatus {
		return autoscalingv2.MetricStatus{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricStatus{
			Metric: spec.Metric, Current: now}}
	}
	usage := a.total()
	switch want := &spec.Target; {
	case want.AverageValue != nil:
		if err != nil {
			return refuse(reason, err, "failed to get %s external metric", spec.Metric.Name)
		}
		replicas, average := p.byShare(usage, want.AverageValue.MilliValue())
		return proposal{replicas: replicas, name: externalName(spec.Metric), status: status(autoscalingv2.MetricValueStatus{AverageValue: decimal(average)})}
	case want.Value != nil:
		var replicas int32
		if err == nil {
			replicas, err = p.byTotal(usage, want.Value.MilliValue())
		}
		if err != nil {
			return refuse(reason, err, "failed to get external metric %s", spec.Metric.Name)
		}
		return proposal{replicas: replicas, name: externalName(spec.Metric), status: status(autoscalingv2.MetricValueStatus{Value: decimal(usage)})}
	}
	err = errors.New("invalid external metric source: neither a value target nor an average value target was set")
	return proposal{reason: reason, cause: err, err: err}
}

func externalName(m autoscalingv2.MetricIdentifier) string {
	return fmt.Sprintf("external metric %s(%+v)", m.Name, m.Selector)
}

// metricSelector reads the selector of a metric; none selects everything. (Upstream's nil selector selects nothing for
// external metrics and reads as "" in the request all the same.)
func metricSelector(s *metav1.LabelSelector) (string, error) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "", err
	}
	return sel.String(), nil
}
