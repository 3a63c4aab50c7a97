// Package autoscaling holds the Kinds of the API group autoscaling: horizontal
// pod autoscalers, which live as v2 and are served as v1 too.
//
// It also says what the "scale" subresource of a workload shows and changes (ScaleOf, SetReplicas).
package autoscaling

import (
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind { return []*api.Kind{autoscalerKind()} }

func autoscalerKind() *api.Kind {
	type hpa = *autoscalingv2.HorizontalPodAutoscaler
	return &api.Kind{
		Group: autoscalingv2.GroupName, Kind: "HorizontalPodAutoscaler", Resource: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler",
		ShortNames: []string{"hpa"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions: []api.Version{
			declare.Hub[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList]("v2"),
			{
				Name:    "v1",
				New:     func() runtime.Object { return &autoscalingv1.HorizontalPodAutoscaler{} },
				NewList: func() runtime.Object { return &autoscalingv1.HorizontalPodAutoscalerList{} },
				ToHub:   toV2,
				FromHub: toV1,
			},
		},
		Default: api.On(defaultAutoscaler),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(h hpa) { h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(h, old hpa) { h.Status = old.Status }),
			Validate:       api.Checks(func(h hpa) field.ErrorList { return spec(&h.Spec, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(h, old hpa) field.ErrorList { return spec(&h.Spec, &old.Spec) }),
		},
		Desired: func(o, p api.Object) bool {
			return !equality.Semantic.DeepEqual(o.(hpa).Spec, p.(hpa).Spec)
		},
		UnconditionalUpdate: true,
		Columns:             columns(),
		Indexes: map[string]func(api.Object) []string{
			// By what is scaled: "ns/Kind/name".
			"target": api.Values(func(h hpa) []string {
				r := h.Spec.ScaleTargetRef
				return []string{h.Namespace + "/" + r.Kind + "/" + r.Name}
			}),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(h, old hpa) { h.Spec = old.Spec }),
			ValidateUpdate: api.ChecksUpdate(func(h, _ hpa) field.ErrorList {
				path := field.NewPath("status")
				errs := validate.NonNegative(h.Status.CurrentReplicas, path.Child("currentReplicas"))
				return append(errs, validate.NonNegative(h.Status.DesiredReplicas, path.Child("desiredReplicas"))...)
			}),
		})},
	}
}

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	or(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{cpuUtilization(80)}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	or(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
	or(&b.ScaleUp.StabilizationWindowSeconds, 0)
	or(&b.ScaleUp.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if b.ScaleUp.Policies == nil {
		b.ScaleUp.Policies = []autoscalingv2.HPAScalingPolicy{
			{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
			{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
		}
	}
	or(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
	or(&b.ScaleDown.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if b.ScaleDown.Policies == nil {
		b.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{
			{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
		}
	}
}

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func columns() []api.Column {
	doc, status := autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc(), autoscalingv2.HorizontalPodAutoscalerStatus{}.SwaggerDoc()
	type hpa = *autoscalingv2.HorizontalPodAutoscaler
	return []api.Column{
		declare.Name(),
		declare.Text("Reference", doc["scaleTargetRef"], func(h hpa) any {
			return h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name
		}),
		declare.Text("Targets", doc["metrics"], func(h hpa) any { return targets(h.Spec.Metrics, h.Status.CurrentMetrics) }),
		declare.Text("MinPods", doc["minReplicas"], func(h hpa) any {
			if h.Spec.MinReplicas == nil {
				return declare.Unset
			}
			return fmt.Sprint(*h.Spec.MinReplicas)
		}),
		declare.Text("MaxPods", doc["maxReplicas"], func(h hpa) any { return int64(h.Spec.MaxReplicas) }),
		declare.Text("Replicas", status["currentReplicas"], func(h hpa) any { return int64(h.Status.CurrentReplicas) }),
		declare.Age(),
	}
}

// targets shows for each metric what is and what is wanted ("cpu: 12%/80%"), for the first two of them.
func targets(specs []autoscalingv2.MetricSpec, current []autoscalingv2.MetricStatus) string {
	if len(specs) == 0 {
		return declare.None
	}
	const most = 2
	var shown []string
	for i := range specs {
		if i == most {
			break
		}
		var status autoscalingv2.MetricStatus
		if i < len(current) {
			status = current[i]
		}
		shown = append(shown, target(&specs[i], &status))
	}
	text := strings.Join(shown, ", ")
	if n := len(specs); n > most {
		text = fmt.Sprintf("%s + %d more...", text, n-most)
	}
	return text
}

func target(spec *autoscalingv2.MetricSpec, status *autoscalingv2.MetricStatus) string {
	switch spec.Type {
	case autoscalingv2.ExternalMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if status.External != nil {
			now = &status.External.Current
		}
		return valueOrAverage(now, &spec.External.Target)
	case autoscalingv2.PodsMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if status.Pods != nil {
			now = &status.Pods.Current
		}
		return average(now) + "/" + spec.Pods.Target.AverageValue.String()
	case autoscalingv2.ObjectMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if status.Object != nil {
			now = &status.Object.Current
		}
		return valueOrAverage(now, &spec.Object.Target)
	case autoscalingv2.ResourceMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if status.Resource != nil {
			now = &status.Resource.Current
		}
		return utilization(spec.Resource.Name, now, &spec.Resource.Target)
	case autoscalingv2.ContainerResourceMetricSourceType:
		var now *autoscalingv2.MetricValueStatus
		if status.ContainerResource != nil {
			now = &status.ContainerResource.Current
		}
		return utilization(spec.ContainerResource.Name, now, &spec.ContainerResource.Target)
	}
	return "<unknown type>"
}

func average(now *autoscalingv2.MetricValueStatus) string {
	if now == nil || now.AverageValue == nil {
		return declare.Unknown
	}
	return now.AverageValue.String()
}

func valueOrAverage(now *autoscalingv2.MetricValueStatus, want *autoscalingv2.MetricTarget) string {
	if want.AverageValue != nil {
		return average(now) + "/" + want.AverageValue.String() + " (avg)"
	}
	value := declare.Unknown
	if now != nil && now.Value != nil {
		value = now.Value.String()
	}
	return value + "/" + want.Value.String()
}

func utilization(name corev1.ResourceName, now *autoscalingv2.MetricValueStatus, want *autoscalingv2.MetricTarget) string {
	if want.AverageValue != nil {
		return fmt.Sprintf("%s: %s/%s", name, average(now), want.AverageValue.String())
	}
	is, wanted := declare.Unknown, "<auto>"
	if now != nil && now.AverageUtilization != nil {
		is = fmt.Sprintf("%d%%", *now.AverageUtilization)
	}
	if want.AverageUtilization != nil {
		wanted = fmt.Sprintf("%d%%", *want.AverageUtilization)
	}
	return fmt.Sprintf("%s: %s/%s", name, is, wanted)
}
