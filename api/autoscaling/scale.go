package autoscaling

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
)

// ScaleOf is what the "scale" subresource of a built-in workload shows (a
// Deployment, ReplicaSet, StatefulSet or ReplicationController); nil for any other object.
func ScaleOf(o api.Object) *autoscalingv1.Scale {
	s := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              o.GetName(),
			Namespace:         o.GetNamespace(),
			UID:               o.GetUID(),
			ResourceVersion:   o.GetResourceVersion(),
			CreationTimestamp: o.GetCreationTimestamp(),
		},
	}
	switch w := o.(type) {
	case *appsv1.Deployment:
		fill(s, w.Spec.Replicas, w.Status.Replicas, selectorText(w.Spec.Selector))
	case *appsv1.ReplicaSet:
		fill(s, w.Spec.Replicas, w.Status.Replicas, selectorText(w.Spec.Selector))
	case *appsv1.StatefulSet:
		fill(s, w.Spec.Replicas, w.Status.Replicas, selectorText(w.Spec.Selector))
	case *corev1.ReplicationController:
		fill(s, w.Spec.Replicas, w.Status.Replicas, labels.Set(w.Spec.Selector).AsSelector().String())
	default:
		return nil
	}
	return s
}

func fill(s *autoscalingv1.Scale, want *int32, have int32, selector string) {
	if want != nil {
		s.Spec.Replicas = *want
	}
	s.Status = autoscalingv1.ScaleStatus{Replicas: have, Selector: selector}
}

func selectorText(s *metav1.LabelSelector) string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return selector.String()
}

// SetReplicas writes the count that an updated Scale asks for into the workload,
// which must be the caller's own copy. It tells whether the object is one that scales.
func SetReplicas(o api.Object, replicas int32) bool {
	switch w := o.(type) {
	case *appsv1.Deployment:
		w.Spec.Replicas = &replicas
	case *appsv1.ReplicaSet:
		w.Spec.Replicas = &replicas
	case *appsv1.StatefulSet:
		w.Spec.Replicas = &replicas
	case *corev1.ReplicationController:
		w.Spec.Replicas = &replicas
	default:
		return false
	}
	return true
}

// ValidateScale checks the spec of a Scale that a client sent.
func ValidateScale(s *autoscalingv1.Scale) field.ErrorList {
	if s.Spec.Replicas >= 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0")}
}
