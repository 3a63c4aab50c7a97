// Package scheduling holds the Kinds of the API group scheduling: priority classes.
package scheduling

import (
	schedulingv1 "k8s.io/api/scheduling/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		priorityClassKind(),
	}
}

func priorityClassKind() *api.Kind {
	return &api.Kind{
		Group: schedulingv1.GroupName, Kind: "PriorityClass", Resource: "priorityclasses", Singular: "priorityclass",
		ShortNames: []string{"pc"},
		Versions:   declare.V1[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](),
	}
}
