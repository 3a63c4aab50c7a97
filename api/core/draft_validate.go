package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidatePodSpec checks a pod spec; meta is the metadata of its pod or template.
func ValidatePodSpec(s *corev1.PodSpec, meta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	return errs
}

// ValidatePodTemplateSpecUpdate checks a change of the template of a workload.
func ValidatePodTemplateSpecUpdate(t, old *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	return ValidatePodTemplateSpec(t, path)
}
