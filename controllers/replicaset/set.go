package replicaset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/claim"
)

// set is what a ReplicaSet and a ReplicationController have in common.
type set struct {
	meta                       *metav1.ObjectMeta
	apiVersion, kind, resource string
	replicas, minReady         int32
	selector                   labels.Selector
	template                   *corev1.PodTemplateSpec
	status                     status
	// with returns a copy of the object with another status.
	with func(status) api.Object
}

// status is the status of either kind. Conditions are in the form of a ReplicaSet.
type status struct {
	replicas, labeled, ready, available int32
	terminating                         *int32 // nil where the kind has none
	observed                            int64
	conditions                          []appsv1.ReplicaSetCondition
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func ofReplicaSet(rs *appsv1.ReplicaSet) *set {
	return &set{
		meta: &rs.ObjectMeta, apiVersion: "apps/v1", kind: "ReplicaSet", resource: client.ReplicaSets.Name,
		replicas: replicas(rs.Spec.Replicas), minReady: rs.Spec.MinReadySeconds,
		selector: claim.Selector(rs.Spec.Selector), template: &rs.Spec.Template,
		status: status{
			replicas: rs.Status.Replicas, labeled: rs.Status.FullyLabeledReplicas, ready: rs.Status.ReadyReplicas,
			available: rs.Status.AvailableReplicas, terminating: rs.Status.TerminatingReplicas,
			observed: rs.Status.ObservedGeneration, conditions: rs.Status.Conditions,
		},
		with: func(s status) api.Object {
			rs := rs.DeepCopy()
			rs.Status = appsv1.ReplicaSetStatus{
				Replicas: s.replicas, FullyLabeledReplicas: s.labeled, ReadyReplicas: s.ready,
				AvailableReplicas: s.available, TerminatingReplicas: s.terminating,
				ObservedGeneration: s.observed, Conditions: s.conditions,
			}
			return rs
		},
	}
}

func ofReplicationController(rc *corev1.ReplicationController) *set {
	template := rc.Spec.Template
	if template == nil {
		template = &corev1.PodTemplateSpec{}
	}
	selector := labels.Nothing()
	if len(rc.Spec.Selector) > 0 {
		selector = labels.SelectorFromSet(rc.Spec.Selector)
	}
	return &set{
		meta: &rc.ObjectMeta, apiVersion: "v1", kind: "ReplicationController", resource: client.ReplicationControllers.Name,
		replicas: replicas(rc.Spec.Replicas), minReady: rc.Spec.MinReadySeconds, selector: selector, template: template,
		status: status{
			replicas: rc.Status.Replicas, labeled: rc.Status.FullyLabeledReplicas, ready: rc.Status.ReadyReplicas,
			available: rc.Status.AvailableReplicas, observed: rc.Status.ObservedGeneration,
			conditions: fromController(rc.Status.Conditions),
		},
		with: func(s status) api.Object {
			rc := rc.DeepCopy()
			rc.Status = corev1.ReplicationControllerStatus{
				Replicas: s.replicas, FullyLabeledReplicas: s.labeled, ReadyReplicas: s.ready,
				AvailableReplicas: s.available, ObservedGeneration: s.observed, Conditions: toController(s.conditions),
			}
			return rc
		},
	}
}

func fromController(in []corev1.ReplicationControllerCondition) []appsv1.ReplicaSetCondition {
	var out []appsv1.ReplicaSetCondition
	for _, c := range in {
		out = append(out, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message})
	}
	return out
}

func toController(in []appsv1.ReplicaSetCondition) []corev1.ReplicationControllerCondition {
	var out []corev1.ReplicationControllerCondition
	for _, c := range in {
		out = append(out, corev1.ReplicationControllerCondition{Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message})
	}
	return out
}
