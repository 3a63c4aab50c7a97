// Package apps holds the Kinds of the API group apps: deployments, replica sets,
// stateful sets, daemon sets and controller revisions.
//
// It owns their defaults, validation, columns, fields and indexes; the rules of
// the pod template inside are those of api/core. It never plans a rollout: that is the controllers'.
package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
	"coracle.dev/coracle/api/validate"
)

const group = appsv1.GroupName

// Kinds returns new descriptors of every kind of the group.
func Kinds() []*api.Kind {
	return []*api.Kind{
		deploymentKind(),
		replicaSetKind(),
		statefulSetKind(),
		daemonSetKind(),
		controllerRevisionKind(),
	}
}

func or[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

// changed compares as Kubernetes does: nil and empty are the same.
func changed(a, b any) bool { return !equality.Semantic.DeepEqual(a, b) }

// selectorOf checks the selector of a workload, which must be there and select
// something. empty is what to say of one that selects everything.
func selectorOf(s *metav1.LabelSelector, path *field.Path, empty string) field.ErrorList {
	if s == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	errs := validate.LabelSelector(s, path)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(path, s, empty))
	}
	return errs
}

// matches refuses a template whose labels the selector does not select.
func matches(s *metav1.LabelSelector, t *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || selector.Empty() || selector.Matches(labels.Set(t.Labels)) {
		return nil
	}
	return field.ErrorList{field.Invalid(path.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`")}
}

// runsForever refuses templates of pods that end by themselves; owner is the kind
// that upstream names in the message.
func runsForever(t *corev1.PodTemplateSpec, owner string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := t.Spec.RestartPolicy; p != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(path.Child("spec", "restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(path.Child("spec", "activeDeadlineSeconds"),
			fmt.Sprintf("activeDeadlineSeconds in %s is not Supported", owner)))
	}
	return errs
}

// replicatedTemplate checks the template of a Deployment or ReplicaSet.
func replicatedTemplate(s *metav1.LabelSelector, t *corev1.PodTemplateSpec, replicas int32, path *field.Path) field.ErrorList {
	errs := matches(s, t, path)
	errs = append(errs, core.ValidatePodTemplateSpec(t, path)...)
	if replicas > 1 {
		errs = append(errs, sharedDisks(t.Spec.Volumes, path.Child("spec", "volumes"))...)
	}
	return append(errs, runsForever(t, "ReplicaSet", path)...)
}

// sharedDisks refuses writable GCE disks in the pods of which there may be many.
func sharedDisks(volumes []corev1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range volumes {
		if d := volumes[i].GCEPersistentDisk; d != nil && !d.ReadOnly {
			errs = append(errs, field.Invalid(path.Index(i).Child("gcePersistentDisk", "readOnly"), false,
				"must be true for replicated pods > 1; GCE PD can only be mounted on multiple machines if it is read-only"))
		}
	}
	return errs
}

// count is a status counter by name.
type count struct {
	name  string
	value int64
}

func nonNegative(path *field.Path, counts ...count) field.ErrorList {
	var errs field.ErrorList
	for _, c := range counts {
		errs = append(errs, validate.NonNegative(c.value, path.Child(c.name))...)
	}
	return errs
}

// notAbove refuses counters that exceed limit.
func notAbove(path *field.Path, limit int32, message string, counts ...count) field.ErrorList {
	var errs field.ErrorList
	for _, c := range counts {
		if c.value > int64(limit) {
			errs = append(errs, field.Invalid(path.Child(c.name), int32(c.value), message))
		}
	}
	return errs
}

// collisions refuses a collision count that is negative.
func collisions(n *int32, path *field.Path) field.ErrorList {
	if n == nil {
		return nil
	}
	return validate.NonNegative(*n, path.Child("collisionCount"))
}

// notDecremented refuses a collision count that goes back.
func notDecremented(n, old *int32) field.ErrorList {
	if old == nil || n != nil && *n >= *old {
		return nil
	}
	var value int32
	if n != nil {
		value = *n
	}
	return field.ErrorList{field.Invalid(field.NewPath("status", "collisionCount"), value, "cannot be decremented")}
}

// templateWarnings tells what is odd about a pod template that is new or was changed.
func templateWarnings(t *corev1.PodTemplateSpec) []string {
	return core.PodTemplateWarnings(t, field.NewPath("spec", "template"))
}

// podNameWarning tells that the name of a workload makes awkward pod names.
func podNameWarning(name string) []string {
	msgs := validate.DNSLabel(name)
	if len(msgs) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)}
}
