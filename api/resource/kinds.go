// Package resource holds the Kinds of the API group resource: dynamic resource allocation.
package resource

import (
	resourcev1 "k8s.io/api/resource/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		deviceClassKind(),
		deviceTaintRuleKind(),
		resourceClaimKind(),
		resourceClaimTemplateKind(),
		resourceSliceKind(),
	}
}

func deviceClassKind() *api.Kind {
	return &api.Kind{
		Group: resourcev1.GroupName, Kind: "DeviceClass", Resource: "deviceclasses", Singular: "deviceclass",
		Versions: declare.V1[resourcev1.DeviceClass, resourcev1.DeviceClassList](),
	}
}

func deviceTaintRuleKind() *api.Kind {
	return &api.Kind{
		Group: resourcev1.GroupName, Kind: "DeviceTaintRule", Resource: "devicetaintrules", Singular: "devicetaintrule",
		Versions:     declare.V1[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func resourceClaimKind() *api.Kind {
	return &api.Kind{
		Group: resourcev1.GroupName, Kind: "ResourceClaim", Resource: "resourceclaims", Singular: "resourceclaim",
		Namespaced:   true,
		Versions:     declare.V1[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](),
		Subresources: []api.Subresource{declare.Status(api.Strategy{})},
	}
}

func resourceClaimTemplateKind() *api.Kind {
	return &api.Kind{
		Group: resourcev1.GroupName, Kind: "ResourceClaimTemplate", Resource: "resourceclaimtemplates", Singular: "resourceclaimtemplate",
		Namespaced: true,
		Versions:   declare.V1[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](),
	}
}

func resourceSliceKind() *api.Kind {
	return &api.Kind{
		Group: resourcev1.GroupName, Kind: "ResourceSlice", Resource: "resourceslices", Singular: "resourceslice",
		Versions: declare.V1[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](),
	}
}
