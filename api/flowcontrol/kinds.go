// Package flowcontrol holds the Kinds of the API group flowcontrol: flow schemas and priority levels.
package flowcontrol

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		flowSchemaKind(),
		priorityLevelConfigurationKind(),
	}
}

func flowSchemaKind() *api.Kind {
	return &api.Kind{
		Group: flowcontrolv1.GroupName, Kind: "FlowSchema", Resource: "flowschemas", Singular: "flowschema",
		Versions:     declare.V1[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func priorityLevelConfigurationKind() *api.Kind {
	return &api.Kind{
		Group: flowcontrolv1.GroupName, Kind: "PriorityLevelConfiguration", Resource: "prioritylevelconfigurations", Singular: "prioritylevelconfiguration",
		Versions:     declare.V1[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}
