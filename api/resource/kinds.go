// Package resource holds the Kinds of the API group resource.k8s.io (dynamic resource allocation): claims
// for devices, templates and classes of them, what devices there are, and taints on them.
//
// It checks their form. CEL selectors are compiled where devices are chosen.
package resource

import (
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const group = resourcev1.GroupName

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

func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

func deviceClassKind() *api.Kind {
	type class = *resourcev1.DeviceClass
	return &api.Kind{
		Group: group, Kind: "DeviceClass", Resource: "deviceclasses", Singular: "deviceclass",
		Versions: declare.V1[resourcev1.DeviceClass, resourcev1.DeviceClassList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(c class) field.ErrorList { return deviceClass(&c.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(c, _ class) field.ErrorList { return deviceClass(&c.Spec) }),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(class).Spec, p.(class).Spec) },
		UnconditionalUpdate: true,
		Columns:             []api.Column{declare.Name(), declare.Age()},
	}
}

func deviceTaintRuleKind() *api.Kind {
	type rule = *resourcev1.DeviceTaintRule
	return &api.Kind{
		Group: group, Kind: "DeviceTaintRule", Resource: "devicetaintrules", Singular: "devicetaintrule",
		Versions: declare.V1[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](),
		Strategy: api.Strategy{
			PrepareCreate:  api.On(func(r rule) { r.Status = resourcev1.DeviceTaintRuleStatus{} }),
			PrepareUpdate:  api.OnUpdate(func(r, old rule) { r.Status = old.Status }),
			Validate:       api.Checks(func(r rule) field.ErrorList { return taintRule(&r.Spec) }),
			ValidateUpdate: api.ChecksUpdate(func(r, _ rule) field.ErrorList { return taintRule(&r.Spec) }),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(rule).Spec, p.(rule).Spec) },
		UnconditionalUpdate: true,
		Columns:             []api.Column{declare.Name(), declare.Age()},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(r, old rule) {
				r.Spec = old.Spec
				metav1.ResetObjectMetaForStatus(&r.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(func(r, _ rule) field.ErrorList {
				return conditions(r.Status.Conditions, resourcev1.DeviceTaintRuleStatusMaxConditions, field.NewPath("status", "conditions"))
			}),
		})},
	}
}

func resourceClaimKind() *api.Kind {
	type claim = *resourcev1.ResourceClaim
	return &api.Kind{
		Group: group, Kind: "ResourceClaim", Resource: "resourceclaims", Singular: "resourceclaim",
		Namespaced: true,
		Versions:   declare.V1[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](),
		Default:    api.On(func(c claim) { defaultClaim(&c.Spec) }),
		Strategy: api.Strategy{
			PrepareCreate: api.On(func(c claim) { c.Status = resourcev1.ResourceClaimStatus{} }),
			PrepareUpdate: api.OnUpdate(func(c, old claim) { c.Status = old.Status }),
			Validate:      api.Checks(func(c claim) field.ErrorList { return claimSpec(&c.Spec, field.NewPath("spec")) }),
			ValidateUpdate: api.ChecksUpdate(func(c, old claim) field.ErrorList {
				return validate.Immutable(c.Spec, old.Spec, field.NewPath("spec"))
			}),
		},
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("State", "A summary of the current state (allocated, pending, reserved, etc.).", func(c claim) any { return claimState(c) }),
			declare.Age(),
		},
		Subresources: []api.Subresource{declare.Status(api.Strategy{
			PrepareUpdate: api.OnUpdate(func(c, old claim) {
				c.Spec = old.Spec
				dropDeallocated(&c.Status, &old.Status)
				metav1.ResetObjectMetaForStatus(&c.ObjectMeta, &old.ObjectMeta)
			}),
			ValidateUpdate: api.ChecksUpdate(claimStatus),
		})},
	}
}

// dropDeallocated removes what drivers say of devices that are no longer the claim's.
func dropDeallocated(s, old *resourcev1.ResourceClaimStatus) {
	if old.Allocation == nil || len(s.Devices) == 0 {
		return
	}
	type id struct{ driver, pool, device string }
	gone := map[id]bool{}
	for i := range old.Allocation.Devices.Results {
		r := &old.Allocation.Devices.Results[i]
		gone[id{r.Driver, r.Pool, r.Device}] = true
	}
	if s.Allocation != nil {
		for i := range s.Allocation.Devices.Results {
			r := &s.Allocation.Devices.Results[i]
			delete(gone, id{r.Driver, r.Pool, r.Device})
		}
	}
	s.Devices = slices.DeleteFunc(s.Devices, func(d resourcev1.AllocatedDeviceStatus) bool { return gone[id{d.Driver, d.Pool, d.Device}] })
}

func claimState(c *resourcev1.ResourceClaim) string {
	var states []string
	if c.DeletionTimestamp != nil {
		states = append(states, "deleted")
	}
	switch {
	case c.Status.Allocation == nil && c.DeletionTimestamp == nil:
		states = append(states, "pending")
	case c.Status.Allocation != nil:
		states = append(states, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			states = append(states, "reserved")
		}
	}
	return strings.Join(states, ",")
}

func resourceClaimTemplateKind() *api.Kind {
	type template = *resourcev1.ResourceClaimTemplate
	return &api.Kind{
		Group: group, Kind: "ResourceClaimTemplate", Resource: "resourceclaimtemplates", Singular: "resourceclaimtemplate",
		Namespaced: true,
		Versions:   declare.V1[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](),
		Default:    api.On(func(t template) { defaultClaim(&t.Spec.Spec) }),
		Strategy: api.Strategy{
			Validate: api.Checks(func(t template) field.ErrorList {
				path := field.NewPath("spec")
				return append(validate.TemplateMeta(&t.Spec.ObjectMeta, path.Child("metadata")), claimSpec(&t.Spec.Spec, path.Child("spec"))...)
			}),
			ValidateUpdate: api.ChecksUpdate(func(t, old template) field.ErrorList {
				return validate.Immutable(t.Spec, old.Spec, field.NewPath("spec"))
			}),
		},
		UnconditionalUpdate: true,
		Columns:             []api.Column{declare.Name(), declare.Age()},
	}
}

func resourceSliceKind() *api.Kind {
	type slice = *resourcev1.ResourceSlice
	doc := resourcev1.ResourceSliceSpec{}.SwaggerDoc()
	node := func(s slice) string {
		if s.Spec.NodeName == nil {
			return ""
		}
		return *s.Spec.NodeName
	}
	return &api.Kind{
		Group: group, Kind: "ResourceSlice", Resource: "resourceslices", Singular: "resourceslice",
		Versions: declare.V1[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](),
		Strategy: api.Strategy{
			Validate:       api.Checks(func(s slice) field.ErrorList { return sliceSpec(&s.Spec, nil) }),
			ValidateUpdate: api.ChecksUpdate(func(s, old slice) field.ErrorList { return sliceSpec(&s.Spec, &old.Spec) }),
		},
		Desired:             func(o, p api.Object) bool { return changed(o.(slice).Spec, p.(slice).Spec) },
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Node", doc["nodeName"], func(s slice) any { return node(s) }),
			declare.Text("Driver", doc["driver"], func(s slice) any { return s.Spec.Driver }),
			declare.Text("Pool", doc["pool"], func(s slice) any { return s.Spec.Pool.Name }),
			declare.Age(),
		},
		Fields: map[string]func(api.Object) string{
			resourcev1.ResourceSliceSelectorNodeName: api.Field(node),
			resourcev1.ResourceSliceSelectorDriver:   api.Field(func(s slice) string { return s.Spec.Driver }),
			resourcev1.ResourceSliceSelectorPoolName: api.Field(func(s slice) string { return s.Spec.Pool.Name }),
		},
		Indexes: map[string]func(api.Object) []string{
			// By the node that has the devices, "" where that is not one node.
			"node": api.Values(func(s slice) []string { return []string{node(s)} }),
		},
	}
}

// defaultClaim asks for one device wherever no number is given.
func defaultClaim(s *resourcev1.ResourceClaimSpec) {
	one := func(mode *resourcev1.DeviceAllocationMode, count *int64, tolerations []resourcev1.DeviceToleration) {
		if *mode == "" {
			*mode = resourcev1.DeviceAllocationModeExactCount
		}
		if *mode == resourcev1.DeviceAllocationModeExactCount && *count == 0 {
			*count = 1
		}
		for i := range tolerations {
			if tolerations[i].Operator == "" {
				tolerations[i].Operator = resourcev1.DeviceTolerationOpEqual
			}
		}
	}
	for i := range s.Devices.Requests {
		r := &s.Devices.Requests[i]
		if r.Exactly != nil {
			one(&r.Exactly.AllocationMode, &r.Exactly.Count, r.Exactly.Tolerations)
		}
		for k := range r.FirstAvailable {
			f := &r.FirstAvailable[k]
			one(&f.AllocationMode, &f.Count, f.Tolerations)
		}
	}
}
