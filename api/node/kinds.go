// Package node holds the Kind of the API group node.k8s.io: runtime classes.
package node

import (
	"sort"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{runtimeClassKind()}
}

func runtimeClassKind() *api.Kind {
	type class = *nodev1.RuntimeClass
	return &api.Kind{
		Group: nodev1.GroupName, Kind: "RuntimeClass", Resource: "runtimeclasses", Singular: "runtimeclass",
		Versions: declare.V1[nodev1.RuntimeClass, nodev1.RuntimeClassList](),
		Strategy: api.Strategy{
			Validate: api.Checks(runtimeClass),
			ValidateUpdate: api.ChecksUpdate(func(c, old class) field.ErrorList {
				return validate.Immutable(c.Handler, old.Handler, field.NewPath("handler"))
			}),
		},
		Columns: []api.Column{
			declare.Name(),
			declare.Text("Handler", nodev1.RuntimeClass{}.SwaggerDoc()["handler"], func(c class) any { return c.Handler }),
			declare.Age(),
		},
	}
}

func runtimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	errs := validate.DNSLabelField(c.Handler, field.NewPath("handler"))
	if c.Overhead != nil {
		errs = append(errs, overhead(c.Overhead.PodFixed, field.NewPath("overhead", "podFixed", "limits"))...)
	}
	if c.Scheduling != nil {
		errs = append(errs, scheduling(c.Scheduling, field.NewPath("scheduling"))...)
	}
	return errs
}

// overhead is checked as the limits of a container are.
func overhead(l corev1.ResourceList, path *field.Path) field.ErrorList {
	names := make([]string, 0, len(l))
	for name := range l {
		names = append(names, string(name))
	}
	sort.Strings(names)
	var errs field.ErrorList
	for _, name := range names {
		n := corev1.ResourceName(name)
		errs = append(errs, validate.ContainerResourceName(n, path.Key(name))...)
		errs = append(errs, validate.ResourceQuantity(n, l[n], path.Key(name))...)
	}
	return errs
}

func scheduling(s *nodev1.Scheduling, path *field.Path) field.ErrorList {
	errs := validate.Labels(s.NodeSelector, path.Child("nodeSelector"))
	seen := map[corev1.Toleration]bool{}
	for i, t := range s.Tolerations {
		p := path.Child("tolerations").Index(i)
		errs = append(errs, toleration(&t, p)...)
		key := t
		key.TolerationSeconds = nil
		if seen[key] {
			errs = append(errs, field.Duplicate(p, t))
		}
		seen[key] = true
	}
	return errs
}

func toleration(t *corev1.Toleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, validate.LabelKey(t.Key, path.Child("key"))...)
	}
	if t.Key == "" && t.Operator != corev1.TolerationOpExists {
		errs = append(errs, field.Invalid(path.Child("operator"), t.Operator,
			"operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		errs = append(errs, field.Invalid(path.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		errs = append(errs, validate.Invalids(path.Child("operator"), t.Value, validate.LabelValue(t.Value))...)
	case corev1.TolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(path.Child("operator"), t, "value must be empty when `operator` is 'Exists'"))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	if t.Effect != "" {
		errs = append(errs, validate.OneOf(t.Effect, path.Child("effect"), corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule)...)
	}
	return errs
}
