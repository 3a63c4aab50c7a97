// Package scheduling holds the Kind of the API group scheduling.k8s.io: priority classes.
package scheduling

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/declare"
	"coracle.dev/coracle/api/validate"
)

const (
	// HighestUserPriority is the greatest value that a class of a user may have.
	HighestUserPriority = 1_000_000_000
	// SystemPriority is the value from which on the classes of the system are.
	SystemPriority = 2 * HighestUserPriority
	// SystemPrefix starts the names that are the system's.
	SystemPrefix = "system-"
	// ClusterCritical is the class of pods that the cluster cannot do without.
	ClusterCritical = "system-cluster-critical"
	// NodeCritical is the class of pods that their node cannot do without.
	NodeCritical = "system-node-critical"
)

// SystemClasses returns new objects of the classes that every cluster has.
func SystemClasses() []*schedulingv1.PriorityClass {
	class := func(name string, value int32, description string) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: description}
	}
	return []*schedulingv1.PriorityClass{
		class(NodeCritical, SystemPriority+1000, "Used for system critical pods that must not be moved from their current node."),
		class(ClusterCritical, SystemPriority, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{priorityClassKind()}
}

func priorityClassKind() *api.Kind {
	type class = *schedulingv1.PriorityClass
	doc := schedulingv1.PriorityClass{}.SwaggerDoc()
	return &api.Kind{
		Group: schedulingv1.GroupName, Kind: "PriorityClass", Resource: "priorityclasses", Singular: "priorityclass",
		ShortNames: []string{"pc"},
		Versions:   declare.V1[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](),
		Default: api.On(func(c class) {
			if c.PreemptionPolicy == nil {
				p := corev1.PreemptLowerPriority
				c.PreemptionPolicy = &p
			}
		}),
		Strategy: api.Strategy{
			Validate: api.Checks(priorityClass),
			ValidateUpdate: api.ChecksUpdate(func(c, old class) field.ErrorList {
				var errs field.ErrorList
				if c.Value != old.Value {
					errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
				}
				return append(errs, validate.Immutable(c.PreemptionPolicy, old.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
			}),
		},
		// A class has generation 1 for all its life: what counts of it cannot change.
		Desired:             func(_, _ api.Object) bool { return false },
		UnconditionalUpdate: true,
		Columns: []api.Column{
			declare.Name(),
			declare.Integer("Value", doc["value"], func(c class) int64 { return int64(c.Value) }),
			{Name: "Global-Default", Type: "boolean", Description: doc["globalDefault"], Cell: api.Cell(func(c class) any { return c.GlobalDefault })},
			declare.Age(),
			declare.Text("PreemptionPolicy", doc["preemptionPolicy"], func(c class) any {
				if c.PreemptionPolicy == nil {
					return string(corev1.PreemptLowerPriority)
				}
				return string(*c.PreemptionPolicy)
			}),
		},
	}
}

func priorityClass(c *schedulingv1.PriorityClass) field.ErrorList {
	var errs field.ErrorList
	if strings.HasPrefix(c.Name, SystemPrefix) {
		if err := knownSystemClass(c); err != nil {
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				"priority class names with 'system-' prefix are reserved for system use only. error: "+err.Error()))
		}
	} else if c.Value > HighestUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"),
			fmt.Sprintf("maximum allowed value of a user defined priority is %d", HighestUserPriority)))
	}
	if p := c.PreemptionPolicy; p != nil {
		switch *p {
		case corev1.PreemptLowerPriority, corev1.PreemptNever:
		case "":
			errs = append(errs, field.Required(field.NewPath("preemptionPolicy"), ""))
		default:
			errs = append(errs, field.NotSupported(field.NewPath("preemptionPolicy"), *p, []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}))
		}
	}
	return errs
}

func knownSystemClass(c *schedulingv1.PriorityClass) error {
	for _, s := range SystemClasses() {
		switch {
		case s.Name != c.Name:
		case s.Value != c.Value:
			return fmt.Errorf("value of %v PriorityClass must be %v", s.Name, s.Value)
		case s.GlobalDefault != c.GlobalDefault:
			return fmt.Errorf("globalDefault of %v PriorityClass must be %v", s.Name, s.GlobalDefault)
		default:
			return nil
		}
	}
	return fmt.Errorf("%v is not a known system priority class", c.Name)
}
