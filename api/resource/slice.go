package resource

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/validate"
)

func deviceClass(s *resourcev1.DeviceClassSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := selectorList(s.Selectors, path.Child("selectors"))
	errs = append(errs, set(s.Config, resourcev1.DeviceConfigMaxSize, path.Child("config"), nil,
		func(c *resourcev1.DeviceClassConfiguration, path *field.Path) field.ErrorList {
			return configuration(&c.DeviceConfiguration, path)
		})...)
	if n := s.ExtendedResourceName; n != nil && !isExtended(*n) {
		errs = append(errs, field.Invalid(path.Child("extendedResourceName"), *n, "must be a valid extended resource name"))
	}
	return errs
}

// isExtended tells whether a name is one of a resource outside Kubernetes' own domains.
func isExtended(name string) bool {
	domain, _, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(domain, "kubernetes.io") && (domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io")) {
		return false
	}
	return !strings.HasPrefix(name, "requests.") && len(content.IsQualifiedName("requests."+name)) == 0
}

// rawObject checks JSON that goes to a driver as it is.
func rawObject(raw []byte, max int, path *field.Path) field.ErrorList {
	var object any
	switch {
	case len(raw) == 0:
		return field.ErrorList{field.Required(path, "")}
	case len(raw) > max:
		return field.ErrorList{field.TooLong(path, "", max)}
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return field.ErrorList{field.Invalid(path, "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err))}
	}
	switch object.(type) {
	case map[string]any:
		return nil
	case nil:
		return field.ErrorList{field.Required(path, "")}
	}
	return field.ErrorList{field.Invalid(path, "<value omitted>", "must be a valid JSON object")}
}

func taintRule(s *resourcev1.DeviceTaintRuleSpec) field.ErrorList {
	path := field.NewPath("spec")
	var errs field.ErrorList
	if d := s.DeviceSelector; d != nil {
		p := path.Child("deviceSelector")
		if d.Driver != nil {
			errs = append(errs, core.ValidateCSIDriverName(*d.Driver, p.Child("driver"))...)
		}
		if d.Pool != nil {
			errs = append(errs, poolName(*d.Pool, p.Child("pool"))...)
		}
		if d.Device != nil {
			errs = append(errs, validate.DNSLabelField(*d.Device, p.Child("device"))...)
		}
	}
	return append(errs, taint(&s.Taint, path.Child("taint"))...)
}

func taint(t *resourcev1.DeviceTaint, path *field.Path) field.ErrorList {
	errs := validate.LabelKey(t.Key, path.Child("key"))
	if t.Value != "" {
		errs = append(errs, validate.Invalids(path.Child("value"), t.Value, validate.LabelValue(t.Value))...)
	}
	return append(errs, validate.RequiredOneOf(t.Effect, path.Child("effect"), effects...)...)
}

func poolName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if len(name) > resourcev1.PoolNameMaxLength {
		errs = append(errs, field.TooLong(path, "", resourcev1.PoolNameMaxLength))
	}
	for _, part := range strings.Split(name, "/") {
		errs = append(errs, validate.DNSSubdomainField(part, path)...)
	}
	return errs
}

func sliceSpec(s, old *resourcev1.ResourceSliceSpec) field.ErrorList {
	path := field.NewPath("spec")
	errs := core.ValidateCSIDriverName(s.Driver, path.Child("driver"))
	errs = append(errs, poolName(s.Pool.Name, path.Child("pool", "name"))...)
	errs = append(errs, validate.Positive(s.Pool.ResourceSliceCount, path.Child("pool", "resourceSliceCount"))...)
	if s.Pool.Generation < 0 {
		errs = append(errs, field.Invalid(path.Child("pool", "generation"), s.Pool.Generation, "must be greater than or equal to zero"))
	}
	if old != nil {
		errs = append(errs, validate.Immutable(s.Pool.Name, old.Pool.Name, path.Child("pool", "name"))...)
		errs = append(errs, validate.Immutable(s.Driver, old.Driver, path.Child("driver"))...)
		errs = append(errs, validate.Immutable(s.NodeName, old.NodeName, path.Child("nodeName"))...)
	}
	errs = append(errs, sliceNodes(s, path)...)
	if s.SharedCounters != nil && s.Devices != nil {
		errs = append(errs, field.Invalid(path, "", "only one of `sharedCounters` or `devices` is allowed"))
	}
	perDevice := s.PerDeviceNodeSelection != nil && *s.PerDeviceNodeSelection
	errs = append(errs, set(s.Devices, maxDevices(s), path.Child("devices"),
		func(d *resourcev1.Device) string { return d.Name },
		func(d *resourcev1.Device, path *field.Path) field.ErrorList { return device(d, perDevice, path) })...)
	return append(errs, set(s.SharedCounters, resourcev1.ResourceSliceMaxCounterSets, path.Child("sharedCounters"),
		func(c *resourcev1.CounterSet) string { return c.Name },
		func(c *resourcev1.CounterSet, path *field.Path) field.ErrorList {
			return counters(c.Name, "name", c.Counters, resourcev1.ResourceSliceMaxCountersPerCounterSet, path)
		})...)
}

// maxDevices is smaller for slices whose devices say more.
func maxDevices(s *resourcev1.ResourceSliceSpec) int {
	for i := range s.Devices {
		d := &s.Devices[i]
		if len(d.Taints) > 0 || len(d.ConsumesCounters) > 0 {
			return resourcev1.ResourceSliceMaxDevicesWithAdvancedFeatures
		}
	}
	return resourcev1.ResourceSliceMaxDevices
}

// sliceNodes checks that a slice says in exactly one way which nodes have its devices.
func sliceNodes(s *resourcev1.ResourceSliceSpec, path *field.Path) field.ErrorList {
	var (
		errs field.ErrorList
		said []string
	)
	if n := s.NodeName; n != nil {
		if *n == "" {
			errs = append(errs, field.Invalid(path.Child("nodeName"), *n, "must be either unset or set to a non-empty string"))
		} else {
			said = append(said, "`nodeName`")
			errs = append(errs, validate.DNSSubdomainField(*n, path.Child("nodeName"))...)
		}
	}
	if n := s.NodeSelector; n != nil {
		said = append(said, "`nodeSelector`")
		errs = append(errs, core.ValidateNodeSelector(n, path.Child("nodeSelector"))...)
		if len(n.NodeSelectorTerms) != 1 {
			errs = append(errs, field.Invalid(path.Child("nodeSelector", "nodeSelectorTerms"), n.NodeSelectorTerms, "must have exactly one node selector term"))
		}
	}
	truth := func(name string, b *bool) {
		switch {
		case b == nil:
		case *b:
			said = append(said, "`"+name+"`")
		default:
			errs = append(errs, field.Invalid(path.Child(name), *b, "must be either unset or set to true"))
		}
	}
	truth("allNodes", s.AllNodes)
	truth("perDeviceNodeSelection", s.PerDeviceNodeSelection)
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch len(said) {
	case 0:
		errs = append(errs, field.Required(path, one))
	case 1:
	default:
		errs = append(errs, field.Invalid(path, "{"+strings.Join(said, ", ")+"}", one+", but multiple fields are set"))
	}
	return errs
}

func device(d *resourcev1.Device, perDevice bool, path *field.Path) field.ErrorList {
	errs := validate.DNSLabelField(d.Name, path.Child("name"))
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		errs = append(errs, field.Invalid(path, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice)))
	}
	for _, name := range sortedKeys(d.Attributes) {
		p := path.Child("attributes").Key(string(name))
		errs = append(errs, qualified(string(name), false, p)...)
		a := d.Attributes[name]
		errs = append(errs, attribute(&a, p)...)
	}
	shared := d.AllowMultipleAllocations != nil && *d.AllowMultipleAllocations
	for _, name := range sortedKeys(d.Capacity) {
		p := path.Child("capacity").Key(string(name))
		errs = append(errs, qualified(string(name), false, p)...)
		if d.Capacity[name].RequestPolicy != nil && !shared {
			errs = append(errs, field.Forbidden(p.Child("requestPolicy"), "allowMultipleAllocations must be true"))
		}
	}
	errs = append(errs, set(d.Taints, resourcev1.DeviceTaintsMaxLength, path.Child("taints"), nil, taint)...)
	errs = append(errs, set(d.ConsumesCounters, resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice, path.Child("consumesCounters"),
		func(c *resourcev1.DeviceCounterConsumption) string { return c.CounterSet },
		func(c *resourcev1.DeviceCounterConsumption, path *field.Path) field.ErrorList {
			return counters(c.CounterSet, "counterSet", c.Counters, resourcev1.ResourceSliceMaxCountersPerDeviceCounterConsumption, path)
		})...)
	return append(errs, deviceNodes(d, perDevice, path)...)
}

// deviceNodes checks that a device names its nodes exactly where its slice leaves that to the devices.
func deviceNodes(d *resourcev1.Device, perDevice bool, path *field.Path) field.ErrorList {
	said := 0
	for _, set := range []bool{d.NodeName != nil, d.NodeSelector != nil, d.AllNodes != nil} {
		if set {
			said++
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
	switch {
	case !perDevice && said > 0:
		return field.ErrorList{field.Invalid(path, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec")}
	case perDevice && said == 0:
		return field.ErrorList{field.Required(path, one)}
	case perDevice && said > 1:
		return field.ErrorList{field.Invalid(path, d.Name, one)}
	case d.NodeName != nil && *d.NodeName == "":
		return field.ErrorList{field.Invalid(path.Child("nodeName"), "", "must not be empty")}
	case d.NodeName != nil:
		return validate.DNSSubdomainField(*d.NodeName, path.Child("nodeName"))
	case d.NodeSelector != nil:
		return core.ValidateNodeSelector(d.NodeSelector, path.Child("nodeSelector"))
	case d.AllNodes != nil && !*d.AllNodes:
		return field.ErrorList{field.Invalid(path.Child("allNodes"), false, "must be either unset or set to true")}
	}
	return nil
}

// semver is the form of semver.org 2.0.0.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

func attribute(a *resourcev1.DeviceAttribute, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	fields := 0
	count := func(present bool) {
		if present {
			fields++
		}
	}
	long := func(text string, path *field.Path) {
		if len(text) > resourcev1.DeviceAttributeMaxValueLength {
			errs = append(errs, field.TooLong(path, "", resourcev1.DeviceAttributeMaxValueLength))
		}
	}
	version := func(text string, path *field.Path) {
		if !semver.MatchString(text) {
			errs = append(errs, field.Invalid(path, text, "must be a string compatible with semver.org spec 2.0.0"))
		}
		long(text, path)
	}
	count(a.BoolValue != nil)
	count(a.IntValue != nil)
	count(a.StringValue != nil)
	count(a.VersionValue != nil)
	count(a.BoolValues != nil)
	count(a.IntValues != nil)
	count(a.StringValues != nil)
	count(a.VersionValues != nil)
	if a.StringValue != nil {
		long(*a.StringValue, path.Child("string"))
	}
	if a.VersionValue != nil {
		version(*a.VersionValue, path.Child("version"))
	}
	for i, s := range a.StringValues {
		long(s, path.Child("strings").Index(i))
	}
	for i, s := range a.VersionValues {
		version(s, path.Child("versions").Index(i))
	}
	if fields != 1 {
		errs = append(errs, field.Invalid(path, a, "exactly one value must be specified"))
	}
	return errs
}

func counters(name, key string, list map[string]resourcev1.Counter, max int, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(path.Child(key), ""))
	} else {
		errs = append(errs, validate.DNSLabelField(name, path.Child(key))...)
	}
	p := path.Child("counters")
	switch n := len(list); {
	case n == 0:
		errs = append(errs, field.Required(p, ""))
	case n > max:
		errs = append(errs, field.TooMany(p, n, max))
	}
	for _, k := range sortedKeys(list) {
		errs = append(errs, validate.DNSLabelField(k, p)...)
	}
	return errs
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}
