// Package node holds the Kind of the API group node.k8s.io: runtime classes.
package node

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
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
		errs = append(errs, core.ValidateOverhead(c.Overhead.PodFixed, field.NewPath("overhead", "podFixed"))...)
	}
	if c.Scheduling != nil {
		errs = append(errs, scheduling(c.Scheduling, field.NewPath("scheduling"))...)
	}
	return errs
}

func scheduling(s *nodev1.Scheduling, path *field.Path) field.ErrorList {
	errs := validate.Labels(s.NodeSelector, path.Child("nodeSelector"))
	errs = append(errs, core.ValidateTolerations(s.Tolerations, path.Child("tolerations"))...)
	seen := map[corev1.Toleration]bool{}
	for i, t := range s.Tolerations {
		key := t
		key.TolerationSeconds = nil
		if seen[key] {
			errs = append(errs, field.Duplicate(path.Child("tolerations").Index(i), t))
		}
		seen[key] = true
	}
	return errs
}
