package resource

import (
	"fmt"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/validate"
)

// set checks the size of a list and that no two entries have the same key; max below 0 means any size.
func set[T any](list []T, max int, path *field.Path, key func(*T) string, check func(*T, *field.Path) field.ErrorList) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	if max >= 0 && len(list) > max {
		errs = append(errs, field.TooMany(path, len(list), max))
	}
	for i := range list {
		errs = append(errs, check(&list[i], path.Index(i))...)
		if key == nil {
			continue
		}
		k := key(&list[i])
		if seen[k] {
			errs = append(errs, field.Duplicate(path.Index(i), k))
		}
		seen[k] = true
	}
	return errs
}

// requests tells which names a constraint or configuration may refer to: "request" and "request/subrequest".
type requests map[string]bool

func requestsOf(c *resourcev1.DeviceClaim) requests {
	r := requests{}
	for i := range c.Requests {
		name := c.Requests[i].Name
		r[name] = true
		for k := range c.Requests[i].FirstAvailable {
			r[name+"/"+c.Requests[i].FirstAvailable[k].Name] = true
		}
	}
	return r
}

func (r requests) check(name *string, path *field.Path) field.ErrorList {
	const unknown = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
	parts := strings.Split(*name, "/")
	if len(parts) > 2 {
		return field.ErrorList{field.Invalid(path, *name, unknown)}
	}
	var errs field.ErrorList
	for _, p := range parts {
		errs = append(errs, validate.DNSLabelField(p, path)...)
	}
	if !r[*name] {
		errs = append(errs, field.Invalid(path, *name, unknown))
	}
	return errs
}

func (r requests) list(names []string, path *field.Path) field.ErrorList {
	return set(names, resourcev1.DeviceRequestsMaxSize, path, func(s *string) string { return *s }, r.check)
}

func claimSpec(s *resourcev1.ResourceClaimSpec, path *field.Path) field.ErrorList {
	c := &s.Devices
	devices := path.Child("devices")
	names := requestsOf(c)
	errs := set(c.Requests, resourcev1.DeviceRequestsMaxSize, devices.Child("requests"),
		func(r *resourcev1.DeviceRequest) string { return r.Name }, deviceRequest)
	errs = append(errs, set(c.Constraints, resourcev1.DeviceConstraintsMaxSize, devices.Child("constraints"), nil,
		func(d *resourcev1.DeviceConstraint, path *field.Path) field.ErrorList {
			return constraint(d, names, path)
		})...)
	return append(errs, set(c.Config, resourcev1.DeviceConfigMaxSize, devices.Child("config"), nil,
		func(d *resourcev1.DeviceClaimConfiguration, path *field.Path) field.ErrorList {
			return append(names.list(d.Requests, path.Child("requests")), configuration(&d.DeviceConfiguration, path)...)
		})...)
}

func deviceRequest(r *resourcev1.DeviceRequest, path *field.Path) field.ErrorList {
	errs := validate.DNSLabelField(r.Name, path.Child("name"))
	switch first := len(r.FirstAvailable) > 0; {
	case !first && r.Exactly == nil:
		errs = append(errs, field.Required(path, "exactly one of `exactly` or `firstAvailable` is required"))
	case first && r.Exactly != nil:
		errs = append(errs, field.Invalid(path, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
	case first:
		errs = append(errs, set(r.FirstAvailable, resourcev1.FirstAvailableDeviceRequestMaxSize, path.Child("firstAvailable"),
			func(s *resourcev1.DeviceSubRequest) string { return s.Name },
			func(s *resourcev1.DeviceSubRequest, path *field.Path) field.ErrorList {
				return append(validate.DNSLabelField(s.Name, path.Child("name")),
					wanted(s.DeviceClassName, s.Selectors, s.AllocationMode, s.Count, s.Tolerations, path)...)
			})...)
	default:
		e := r.Exactly
		errs = append(errs, wanted(e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations, path.Child("exactly"))...)
	}
	return errs
}

// wanted checks what requests of both forms say.
func wanted(class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, tolerations []resourcev1.DeviceToleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if class == "" {
		errs = append(errs, field.Required(path.Child("deviceClassName"), ""))
	} else {
		errs = append(errs, validate.DNSSubdomainField(class, path.Child("deviceClassName"))...)
	}
	errs = append(errs, selectorList(selectors, path.Child("selectors"))...)
	switch p := path.Child("count"); mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(p, count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		errs = append(errs, validate.Positive(count, p)...)
	default:
		errs = append(errs, field.NotSupported(path.Child("allocationMode"), mode,
			[]resourcev1.DeviceAllocationMode{resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount}))
	}
	for i := range tolerations {
		errs = append(errs, toleration(&tolerations[i], path.Child("tolerations").Index(i))...)
	}
	return errs
}

func selectorList(selectors []resourcev1.DeviceSelector, path *field.Path) field.ErrorList {
	return set(selectors, resourcev1.DeviceSelectorsMaxSize, path, nil, func(s *resourcev1.DeviceSelector, path *field.Path) field.ErrorList {
		switch p := path.Child("cel", "expression"); {
		case s.CEL == nil:
			return field.ErrorList{field.Required(path.Child("cel"), "")}
		case s.CEL.Expression == "":
			return field.ErrorList{field.Required(p, "")}
		case len(s.CEL.Expression) > resourcev1.CELSelectorExpressionMaxLength:
			return field.ErrorList{field.TooLong(p, "", resourcev1.CELSelectorExpressionMaxLength)}
		}
		return nil
	})
}

var effects = []resourcev1.DeviceTaintEffect{
	resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone,
}

func toleration(t *resourcev1.DeviceToleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, validate.LabelKey(t.Key, path.Child("key"))...)
	}
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(path.Child("value"), t.Value, "must be empty for operator `Exists`"))
		}
	case resourcev1.DeviceTolerationOpEqual:
		if t.Key == "" {
			errs = append(errs, field.Required(path.Child("key"), "must not be empty for operator `Equal`"))
		}
		errs = append(errs, validate.Invalids(path.Child("value"), t.Value, validate.LabelValue(t.Value))...)
	default:
		errs = append(errs, field.NotSupported(path.Child("operator"), t.Operator,
			[]resourcev1.DeviceTolerationOperator{resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists}))
	}
	if t.Effect != "" {
		errs = append(errs, validate.OneOf(t.Effect, path.Child("effect"), effects[:2]...)...)
	}
	return errs
}

func constraint(c *resourcev1.DeviceConstraint, names requests, path *field.Path) field.ErrorList {
	errs := names.list(c.Requests, path.Child("requests"))
	switch {
	case c.MatchAttribute != nil:
		errs = append(errs, qualified(string(*c.MatchAttribute), true, path.Child("matchAttribute"))...)
	case c.DistinctAttribute != nil:
		errs = append(errs, qualified(string(*c.DistinctAttribute), true, path.Child("distinctAttribute"))...)
	default:
		errs = append(errs, field.Required(path, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`))
	}
	return errs
}

// qualified checks a C identifier behind a domain, which full asks for.
func qualified(name string, full bool, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "name required")}
	}
	domain, id, ok := strings.Cut(name, "/")
	if !ok {
		if full {
			return field.ErrorList{field.Invalid(path, name, "must include a domain")}
		}
		domain, id = "", name
	}
	var errs field.ErrorList
	if ok {
		if domain == "" {
			errs = append(errs, field.Required(path, "the domain must not be empty"))
		} else {
			errs = append(errs, core.ValidateCSIDriverName(domain, path)...)
		}
	}
	if id == "" {
		return append(errs, field.Required(path, "the name must not be empty"))
	}
	if len(id) > resourcev1.DeviceMaxIDLength {
		errs = append(errs, field.TooLong(path, "", resourcev1.DeviceMaxIDLength))
	}
	if !isIdentifier(id) {
		errs = append(errs, field.Invalid(path, id, "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"))
	}
	return errs
}

func isIdentifier(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func configuration(c *resourcev1.DeviceConfiguration, path *field.Path) field.ErrorList {
	if c.Opaque == nil {
		return field.ErrorList{field.Required(path.Child("opaque"), "")}
	}
	errs := core.ValidateCSIDriverName(c.Opaque.Driver, path.Child("opaque", "driver"))
	return append(errs, rawObject(c.Opaque.Parameters.Raw, resourcev1.OpaqueParametersMaxLength, path.Child("opaque", "parameters"))...)
}

func claimStatus(c, old *resourcev1.ResourceClaim) field.ErrorList {
	path := field.NewPath("status")
	s := &c.Status
	reserved := path.Child("reservedFor")
	errs := set(s.ReservedFor, resourcev1.ResourceClaimReservedForMaxSize, reserved,
		func(r *resourcev1.ResourceClaimConsumerReference) string { return string(r.UID) },
		func(r *resourcev1.ResourceClaimConsumerReference, path *field.Path) field.ErrorList {
			var errs field.ErrorList
			for _, f := range []struct{ name, value string }{{"resource", r.Resource}, {"name", r.Name}, {"uid", string(r.UID)}} {
				if f.value == "" {
					errs = append(errs, field.Required(path.Child(f.name), ""))
				}
			}
			return errs
		})
	errs = append(errs, deviceStatuses(s, path.Child("devices"))...)
	if len(s.ReservedFor) > 0 {
		if s.Allocation == nil {
			errs = append(errs, field.Forbidden(reserved, "may not be specified when `allocated` is not set"))
		} else if c.DeletionTimestamp != nil && slices.ContainsFunc(s.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool {
			return !slices.Contains(old.Status.ReservedFor, r)
		}) {
			errs = append(errs, field.Forbidden(reserved, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
		}
	}
	switch {
	case s.Allocation != nil && old.Status.Allocation != nil:
		errs = append(errs, validate.Immutable(s.Allocation, old.Status.Allocation, path.Child("allocation"))...)
	case s.Allocation != nil:
		errs = append(errs, allocation(s.Allocation, requestsOf(&c.Spec.Devices), path.Child("allocation"))...)
	}
	return errs
}

func allocation(a *resourcev1.AllocationResult, names requests, path *field.Path) field.ErrorList {
	errs := set(a.Devices.Results, resourcev1.AllocationResultsMaxSize, path.Child("devices", "results"), nil,
		func(r *resourcev1.DeviceRequestAllocationResult, path *field.Path) field.ErrorList {
			errs := names.check(&r.Request, path.Child("request"))
			errs = append(errs, core.ValidateCSIDriverName(r.Driver, path.Child("driver"))...)
			errs = append(errs, poolName(r.Pool, path.Child("pool"))...)
			errs = append(errs, validate.DNSLabelField(r.Device, path.Child("device"))...)
			for i := range r.Tolerations {
				errs = append(errs, toleration(&r.Tolerations[i], path.Child("tolerations").Index(i))...)
			}
			return errs
		})
	errs = append(errs, set(a.Devices.Config, 2*resourcev1.DeviceConfigMaxSize, path.Child("devices", "config"), nil,
		func(c *resourcev1.DeviceAllocationConfiguration, path *field.Path) field.ErrorList {
			errs := validate.RequiredOneOf(c.Source, path.Child("source"), resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)
			errs = append(errs, names.list(c.Requests, path.Child("requests"))...)
			return append(errs, configuration(&c.DeviceConfiguration, path)...)
		})...)
	if a.NodeSelector != nil {
		errs = append(errs, core.ValidateNodeSelector(a.NodeSelector, path.Child("nodeSelector"))...)
	}
	return errs
}

// deviceStatuses checks that drivers speak of allocated devices, each once.
func deviceStatuses(s *resourcev1.ResourceClaimStatus, path *field.Path) field.ErrorList {
	id := func(driver, pool, device string) string { return driver + "/" + pool + "/" + device }
	allocated := map[string]bool{}
	if s.Allocation != nil {
		for _, r := range s.Allocation.Devices.Results {
			allocated[id(r.Driver, r.Pool, r.Device)] = true
		}
	}
	key := func(d *resourcev1.AllocatedDeviceStatus) string {
		k := id(d.Driver, d.Pool, d.Device)
		if d.ShareID != nil {
			k += "/" + *d.ShareID
		}
		return k
	}
	return set(s.Devices, -1, path, key, func(d *resourcev1.AllocatedDeviceStatus, path *field.Path) field.ErrorList {
		errs := core.ValidateCSIDriverName(d.Driver, path.Child("driver"))
		errs = append(errs, poolName(d.Pool, path.Child("pool"))...)
		errs = append(errs, validate.DNSLabelField(d.Device, path.Child("device"))...)
		if !allocated[id(d.Driver, d.Pool, d.Device)] {
			errs = append(errs, field.Invalid(path, id(d.Driver, d.Pool, d.Device), "must be an allocated device in the claim"))
		}
		errs = append(errs, conditions(d.Conditions, resourcev1.AllocatedDeviceStatusMaxConditions, path.Child("conditions"))...)
		if d.Data != nil && len(d.Data.Raw) > 0 {
			errs = append(errs, rawObject(d.Data.Raw, resourcev1.AllocatedDeviceStatusDataMaxLength, path.Child("data"))...)
		}
		if n := d.NetworkData; n != nil {
			errs = append(errs, networkData(n, path.Child("networkData"))...)
		}
		return errs
	})
}

func networkData(n *resourcev1.NetworkDeviceData, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(n.InterfaceName) > resourcev1.NetworkDeviceDataInterfaceNameMaxLength {
		errs = append(errs, field.TooLong(path.Child("interfaceName"), "", resourcev1.NetworkDeviceDataInterfaceNameMaxLength))
	}
	if len(n.HardwareAddress) > resourcev1.NetworkDeviceDataHardwareAddressMaxLength {
		errs = append(errs, field.TooLong(path.Child("hardwareAddress"), "", resourcev1.NetworkDeviceDataHardwareAddressMaxLength))
	}
	return append(errs, set(n.IPs, resourcev1.NetworkDeviceDataMaxIPs, path.Child("ips"), func(s *string) string { return *s },
		func(ip *string, path *field.Path) field.ErrorList { return content.IsValidInterfaceAddress(path, *ip) })...)
}

func conditions(list []metav1.Condition, max int, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list) > max {
		errs = append(errs, field.TooMany(path, len(list), max))
	}
	return append(errs, validate.Conditions(list, path)...)
}
