package autoscaling

import (
	"encoding/json"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
)

// What v1 cannot say in fields it carries in these annotations, as upstream does, so that
// nothing is lost on the way from v2 to v1 and back. Their values are JSON in v1's own forms.
const (
	metricsAnnotation        = "autoscaling.alpha.kubernetes.io/metrics"
	currentMetricsAnnotation = "autoscaling.alpha.kubernetes.io/current-metrics"
	conditionsAnnotation     = "autoscaling.alpha.kubernetes.io/conditions"
	behaviorAnnotation       = "autoscaling.alpha.kubernetes.io/behavior"
)

// carried are the annotations of v1 objects that no v2 object shows.
var carried = []string{metricsAnnotation, currentMetricsAnnotation, conditionsAnnotation, behaviorAnnotation}

// toV2 converts a v1 autoscaler to the hub. Annotations that do not parse are ignored, as upstream does.
func toV2(o runtime.Object) (api.Object, error) {
	in, ok := o.(*autoscalingv1.HorizontalPodAutoscaler)
	if !ok {
		return nil, fmt.Errorf("%T is no autoscaling/v1 HorizontalPodAutoscaler", o)
	}
	in = in.DeepCopy()
	out := &autoscalingv2.HorizontalPodAutoscaler{TypeMeta: typeMeta("autoscaling/v2"), ObjectMeta: in.ObjectMeta}
	out.Spec = autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
		MinReplicas:    in.Spec.MinReplicas,
		MaxReplicas:    in.Spec.MaxReplicas,
	}
	out.Status = autoscalingv2.HorizontalPodAutoscalerStatus{
		ObservedGeneration: in.Status.ObservedGeneration,
		LastScaleTime:      in.Status.LastScaleTime,
		CurrentReplicas:    in.Status.CurrentReplicas,
		DesiredReplicas:    in.Status.DesiredReplicas,
	}

	var metrics []autoscalingv1.MetricSpec
	if read(in.Annotations, metricsAnnotation, &metrics) {
		for i := range metrics {
			out.Spec.Metrics = append(out.Spec.Metrics, metricToV2(&metrics[i]))
		}
	}
	if p := in.Spec.TargetCPUUtilizationPercentage; p != nil {
		out.Spec.Metrics = append(out.Spec.Metrics, cpuUtilization(*p))
	}
	var rules carriedBehavior
	if read(in.Annotations, behaviorAnnotation, &rules) {
		out.Spec.Behavior = rules.toV2()
	}
	var current []autoscalingv1.MetricStatus
	if read(in.Annotations, currentMetricsAnnotation, &current) {
		for i := range current {
			out.Status.CurrentMetrics = append(out.Status.CurrentMetrics, statusToV2(&current[i]))
		}
	}
	if p := in.Status.CurrentCPUUtilizationPercentage; p != nil && !hasCPUStatus(out.Status.CurrentMetrics) {
		out.Status.CurrentMetrics = append([]autoscalingv2.MetricStatus{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricStatus{
				Name:    corev1.ResourceCPU,
				Current: autoscalingv2.MetricValueStatus{AverageUtilization: p},
			},
		}}, out.Status.CurrentMetrics...)
	}
	var conditions []autoscalingv1.HorizontalPodAutoscalerCondition
	if read(in.Annotations, conditionsAnnotation, &conditions) {
		for _, c := range conditions {
			out.Status.Conditions = append(out.Status.Conditions, conditionToV2(c))
		}
	}
	for _, name := range carried {
		delete(out.Annotations, name)
	}
	if len(out.Annotations) == 0 {
		out.Annotations = nil
	}
	return out, nil
}

func typeMeta(version string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: "HorizontalPodAutoscaler"}
}

func cpuUtilization(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		},
	}
}

func hasCPUStatus(metrics []autoscalingv2.MetricStatus) bool {
	for _, m := range metrics {
		if m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil && m.Resource.Name == corev1.ResourceCPU {
			return true
		}
	}
	return false
}

func read(annotations map[string]string, name string, into any) bool {
	text, ok := annotations[name]
	return ok && json.Unmarshal([]byte(text), into) == nil
}

// toV1 converts the hub to v1: the first CPU utilization target becomes the field, everything else annotations.
func toV1(o api.Object) (runtime.Object, error) {
	in, ok := o.(*autoscalingv2.HorizontalPodAutoscaler)
	if !ok {
		return nil, fmt.Errorf("%T is no autoscaling/v2 HorizontalPodAutoscaler", o)
	}
	in = in.DeepCopy()
	out := &autoscalingv1.HorizontalPodAutoscaler{TypeMeta: typeMeta("autoscaling/v1"), ObjectMeta: in.ObjectMeta}
	for _, name := range carried {
		delete(out.Annotations, name)
	}
	out.Spec = autoscalingv1.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef),
		MinReplicas:    in.Spec.MinReplicas,
		MaxReplicas:    in.Spec.MaxReplicas,
	}
	out.Status = autoscalingv1.HorizontalPodAutoscalerStatus{
		ObservedGeneration: in.Status.ObservedGeneration,
		LastScaleTime:      in.Status.LastScaleTime,
		CurrentReplicas:    in.Status.CurrentReplicas,
		DesiredReplicas:    in.Status.DesiredReplicas,
	}

	var metrics []autoscalingv1.MetricSpec
	for i := range in.Spec.Metrics {
		m := &in.Spec.Metrics[i]
		if out.Spec.TargetCPUUtilizationPercentage == nil && isCPUUtilization(m) {
			out.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
			continue
		}
		metrics = append(metrics, metricToV1(m))
	}
	var current []autoscalingv1.MetricStatus
	for i := range in.Status.CurrentMetrics {
		m := &in.Status.CurrentMetrics[i]
		current = append(current, statusToV1(m))
		if r := m.Resource; m.Type == autoscalingv2.ResourceMetricSourceType && r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
		}
	}
	var conditions []autoscalingv1.HorizontalPodAutoscalerCondition
	for _, c := range in.Status.Conditions {
		conditions = append(conditions, conditionToV1(c))
	}
	a := carrier{out: out}
	a.write(metricsAnnotation, metrics, len(metrics) > 0)
	a.write(behaviorAnnotation, carryBehavior(in.Spec.Behavior), in.Spec.Behavior != nil)
	a.write(currentMetricsAnnotation, current, len(current) > 0)
	a.write(conditionsAnnotation, conditions, len(conditions) > 0)
	return out, a.err
}

func isCPUUtilization(m *autoscalingv2.MetricSpec) bool {
	return m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil &&
		m.Resource.Name == corev1.ResourceCPU && m.Resource.Target.AverageUtilization != nil
}

// carrier writes annotations and keeps the first error.
type carrier struct {
	out *autoscalingv1.HorizontalPodAutoscaler
	err error
}

func (c *carrier) write(name string, value any, present bool) {
	if !present || c.err != nil {
		return
	}
	text, err := json.Marshal(value)
	if err != nil {
		c.err = err
		return
	}
	if c.out.Annotations == nil {
		c.out.Annotations = map[string]string{}
	}
	c.out.Annotations[name] = string(text)
}

func conditionToV2(c autoscalingv1.HorizontalPodAutoscalerCondition) autoscalingv2.HorizontalPodAutoscalerCondition {
	return autoscalingv2.HorizontalPodAutoscalerCondition{
		Type: autoscalingv2.HorizontalPodAutoscalerConditionType(c.Type), Status: c.Status,
		LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		ObservedGeneration: c.ObservedGeneration,
	}
}

func conditionToV1(c autoscalingv2.HorizontalPodAutoscalerCondition) autoscalingv1.HorizontalPodAutoscalerCondition {
	return autoscalingv1.HorizontalPodAutoscalerCondition{
		Type: autoscalingv1.HorizontalPodAutoscalerConditionType(c.Type), Status: c.Status,
		LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		ObservedGeneration: c.ObservedGeneration,
	}
}
