package batch

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// templateWarnings tells what is odd about a pod template that is new or was changed. old is nil on create.
func templateWarnings(t, old *corev1.PodTemplateSpec, path *field.Path) []string { return nil }
