package storage

import (
	"fmt"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	maxNodeID     = 192 // bytes
	minToken      = 600 // seconds
	maxToken      = 1 << 32
	minAllocation = 10 // seconds between updates of what a node can attach
)

func csiDriverKind() *api.Kind {
	type driver = *storagev1.CSIDriver
	return &api.Kind{
		Group: group, Kind: "CSIDriver", Resource: "csidrivers", Singular: "csidriver",
		Versions: declare.V1[storagev1.CSIDriver, storagev1.CSIDriverList](),
		Default: api.On(func(d driver) {
			s := &d.Spec
			or(&s.AttachRequired, true)
			or(&s.PodInfoOnMount, false)
			or(&s.StorageCapacity, false)
			or(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
			if len(s.VolumeLifecycleModes) == 0 {
				s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
			}
			or(&s.RequiresRepublish, false)
			or(&s.SELinuxMount, false)
		}),
		Strategy: api.Strategy{
			Validate: api.Checks(func(d driver) field.ErrorList {
				return append(core.ValidateCSIDriverName(d.Name, field.NewPath("name")), driverSpec(&d.Spec)...)
			}),
			ValidateUpdate: api.ChecksUpdate(func(d, old driver) field.ErrorList {
				path := field.NewPath("spec")
				errs := driverSpec(&d.Spec)
				errs = append(errs, validate.Immutable(d.Spec.AttachRequired, old.Spec.AttachRequired, path.Child("attachedRequired"))...)
				return append(errs, validate.Immutable(d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, path.Child("volumeLifecycleModes"))...)
			}),
		},
		Desired:      func(o, p api.Object) bool { return changed(o.(driver).Spec, p.(driver).Spec) },
		ValidateName: validate.PathSegment, // the rule of driver names is in Validate
		Columns:      driverColumns(),
	}
}

func driverSpec(s *storagev1.CSIDriverSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		value *bool
	}{{"attachedRequired", s.AttachRequired}, {"podInfoOnMount", s.PodInfoOnMount}, {"storageCapacity", s.StorageCapacity}} {
		if f.value == nil {
			errs = append(errs, field.Required(path.Child(f.name), ""))
		}
	}
	if p := s.FSGroupPolicy; p != nil {
		errs = append(errs, validate.OneOf(*p, path.Child("fsGroupPolicy"),
			storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
	}
	audiences := map[string]bool{}
	for i, t := range s.TokenRequests {
		p := path.Child("tokenRequests").Index(i)
		if audiences[t.Audience] {
			errs = append(errs, field.Duplicate(p.Child("audience"), t.Audience))
		}
		audiences[t.Audience] = true
		if n := t.ExpirationSeconds; n != nil && *n < minToken {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *n, "may not specify a duration less than 10 minutes"))
		} else if n != nil && *n > maxToken {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *n, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	for i, m := range s.VolumeLifecycleModes {
		errs = append(errs, validate.OneOf(m, path.Child("volumeLifecycleModes").Index(i), storagev1.VolumeLifecycleEphemeral, storagev1.VolumeLifecyclePersistent)...)
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < minAllocation {
		errs = append(errs, field.Invalid(path.Child("nodeAllocatableUpdatePeriodSeconds"), *n, fmt.Sprintf("must be greater than or equal to %d seconds", minAllocation)))
	}
	if s.ServiceAccountTokenInSecrets != nil && len(s.TokenRequests) == 0 {
		errs = append(errs, field.Invalid(path.Child("serviceAccountTokenInSecrets"), *s.ServiceAccountTokenInSecrets, "must be unset when tokenRequests is empty"))
	}
	return errs
}

func driverColumns() []api.Column {
	type driver = *storagev1.CSIDriver
	doc := storagev1.CSIDriverSpec{}.SwaggerDoc()
	truth := func(name, key string, value func(*storagev1.CSIDriverSpec) *bool, absent bool) api.Column {
		return api.Column{Name: name, Type: "boolean", Description: doc[key], Cell: api.Cell(func(d driver) any {
			if v := value(&d.Spec); v != nil {
				return *v
			}
			return absent
		})}
	}
	return []api.Column{
		declare.Name(),
		truth("AttachRequired", "attachRequired", func(s *storagev1.CSIDriverSpec) *bool { return s.AttachRequired }, true),
		truth("PodInfoOnMount", "podInfoOnMount", func(s *storagev1.CSIDriverSpec) *bool { return s.PodInfoOnMount }, false),
		truth("StorageCapacity", "storageCapacity", func(s *storagev1.CSIDriverSpec) *bool { return s.StorageCapacity }, false),
		declare.Text("TokenRequests", doc["tokenRequests"], func(d driver) any {
			var audiences []string
			for _, t := range d.Spec.TokenRequests {
				audiences = append(audiences, t.Audience)
			}
			if len(audiences) == 0 {
				return declare.Unset
			}
			return strings.Join(audiences, ",")
		}),
		truth("RequiresRepublish", "requiresRepublish", func(s *storagev1.CSIDriverSpec) *bool { return s.RequiresRepublish }, false),
		declare.Text("Modes", doc["volumeLifecycleModes"], func(d driver) any {
			var modes []string
			for _, m := range d.Spec.VolumeLifecycleModes {
				modes = append(modes, string(m))
			}
			if len(modes) == 0 {
				return declare.None
			}
			return strings.Join(modes, ",")
		}),
		declare.Age(),
	}
}

func csiNodeKind() *api.Kind {
	type node = *storagev1.CSINode
	return &api.Kind{
		Group: group, Kind: "CSINode", Resource: "csinodes", Singular: "csinode",
		Versions: declare.V1[storagev1.CSINode, storagev1.CSINodeList](),
		Strategy: api.Strategy{
			Validate: api.Checks(func(n node) field.ErrorList { return nodeDrivers(n.Spec.Drivers) }),
			ValidateUpdate: api.ChecksUpdate(func(n, old node) field.ErrorList {
				errs := nodeDrivers(n.Spec.Drivers)
				for i := range n.Spec.Drivers {
					for k := range old.Spec.Drivers {
						errs = append(errs, sameDriver(n.Spec.Drivers[i], old.Spec.Drivers[k])...)
					}
				}
				return errs
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node", func(n node) int64 { return int64(len(n.Spec.Drivers)) }),
			declare.Age(),
		},
	}
}

// sameDriver refuses a change of a driver's entry but for how many volumes it can attach.
func sameDriver(d, old storagev1.CSINodeDriver) field.ErrorList {
	if d.Name != old.Name {
		return nil
	}
	was := old
	was.Allocatable = d.Allocatable
	return validate.Immutable(d, was, field.NewPath("CSINodeDriver"))
}

func nodeDrivers(drivers []storagev1.CSINodeDriver) field.ErrorList {
	path := field.NewPath("spec", "drivers")
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range drivers {
		d := &drivers[i]
		p := path.Index(i)
		errs = append(errs, core.ValidateCSIDriverName(d.Name, p.Child("name"))...)
		switch {
		case d.NodeID == "":
			errs = append(errs, field.Required(p.Child("nodeID"), ""))
		case len(d.NodeID) > maxNodeID:
			errs = append(errs, field.Invalid(p.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", maxNodeID)))
		}
		if a := d.Allocatable; a != nil && a.Count != nil {
			errs = append(errs, validate.NonNegative(*a.Count, p.Child("allocatable", "count"))...)
		}
		keys := map[string]bool{}
		for _, k := range d.TopologyKeys {
			if keys[k] {
				errs = append(errs, field.Duplicate(p.Child("topologyKeys"), k))
			}
			keys[k] = true
			errs = append(errs, validate.QualifiedNameField(k, p.Child("topologyKeys"))...)
		}
		if names[d.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), d.Name))
		}
		names[d.Name] = true
	}
	return errs
}

func csiStorageCapacityKind() *api.Kind {
	type capacity = *storagev1.CSIStorageCapacity
	doc := storagev1.CSIStorageCapacity{}.SwaggerDoc()
	return &api.Kind{
		Group: group, Kind: "CSIStorageCapacity", Resource: "csistoragecapacities", Singular: "csistoragecapacity",
		Namespaced: true,
		Versions:   declare.V1[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](),
		Strategy: api.Strategy{
			Validate: api.Checks(storageCapacity),
			ValidateUpdate: api.ChecksUpdate(func(c, old capacity) field.ErrorList {
				errs := storageCapacity(c)
				errs = append(errs, validate.Immutable(c.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology"))...)
				return append(errs, validate.Immutable(c.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("StorageClassName", doc["storageClassName"], func(c capacity) any { return c.StorageClassName }),
			declare.Text("Capacity", doc["capacity"], func(c capacity) any {
				if c.Capacity == nil {
					return declare.Unset
				}
				return c.Capacity.String()
			}),
		},
	}
}

func storageCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	errs := validate.LabelSelector(c.NodeTopology, field.NewPath("nodeTopology"))
	errs = append(errs, validate.DNSSubdomainField(c.StorageClassName, field.NewPath("storageClassName"))...)
	if c.Capacity != nil {
		errs = append(errs, validate.NonNegativeQuantity(*c.Capacity, field.NewPath("capacity"))...)
	}
	if c.MaximumVolumeSize != nil {
		errs = append(errs, validate.NonNegativeQuantity(*c.MaximumVolumeSize, field.NewPath("maximumVolumeSize"))...)
	}
	return errs
}
