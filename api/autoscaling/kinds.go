// Package autoscaling holds the Kinds of the API group autoscaling: horizontal
// pod autoscalers, which live as v2 and are served as v1 too.
package autoscaling

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind { return []*api.Kind{autoscalerKind()} }

func autoscalerKind() *api.Kind {
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
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
