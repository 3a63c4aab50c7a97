package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

// systemPriorities are the classes that exist without being created.
var systemPriorities = map[string]int32{
	"system-cluster-critical": 2000000000,
	"system-node-critical":    2000001000,
}

// priority turns the priority class of a pod into numbers, and keeps to one default class.
func priority() Plugin {
	return Plugin{
		Name: "Priority",
		Mutate: func(_ context.Context, r *Request) error {
			if r.Operation != Create || !r.Is("pods", "") {
				return nil
			}
			return setPriority(r, r.Object.(*corev1.Pod))
		},
		Validate: func(_ context.Context, r *Request) error {
			if r.Operation != Create && r.Operation != Update || !r.Is("priorityclasses.scheduling.k8s.io", "") {
				return nil
			}
			pc := r.Object.(*schedulingv1.PriorityClass)
			if !pc.GlobalDefault {
				return nil
			}
			if other := defaultPriority(r); other != nil && other.Name != pc.Name {
				return Forbidden(r, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", other.Name))
			}
			return nil
		},
	}
}

// defaultPriority is the class of pods that name none; of several the one with the lowest value.
func defaultPriority(r *Request) *schedulingv1.PriorityClass {
	var found *schedulingv1.PriorityClass
	for pc := range client.PriorityClasses.List(r.Snapshot, "") {
		if pc.GlobalDefault && (found == nil || pc.Value < found.Value) {
			found = pc
		}
	}
	return found
}

func setPriority(r *Request, pod *corev1.Pod) error {
	var value int32
	policy := corev1.PreemptLowerPriority
	name := pod.Spec.PriorityClassName
	pc, ok := client.PriorityClasses.Get(r.Snapshot, "", name)
	if name == "" {
		pc = defaultPriority(r)
		ok = pc != nil
	}
	switch system, isSystem := systemPriorities[name]; {
	case ok:
		pod.Spec.PriorityClassName, value = pc.Name, pc.Value
		if pc.PreemptionPolicy != nil {
			policy = *pc.PreemptionPolicy
		}
	case isSystem:
		value = system
	case name != "":
		return Forbidden(r, fmt.Errorf("no PriorityClass with name %v was found", name))
	}
	if p := pod.Spec.Priority; p != nil && *p != value {
		return Forbidden(r, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, value))
	}
	if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
		return Forbidden(r, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy))
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

// tolerationSeconds is how long pods stay on a node that is lost, if they do not say.
const tolerationSeconds = 300

// defaultTolerationSeconds lets pods stay for a while on nodes that are not ready or not reachable.
func defaultTolerationSeconds() Plugin {
	return Plugin{Name: "DefaultTolerationSeconds", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update || !r.Is("pods", "") {
			return nil
		}
		pod := r.Object.(*corev1.Pod)
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			if !tolerates(pod, key) {
				seconds := int64(tolerationSeconds)
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
					Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
				})
			}
		}
		return nil
	}}
}

func tolerates(pod *corev1.Pod, key string) bool {
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// runtimeClass gives pods the overhead and the placement of their runtime class.
func runtimeClass() Plugin {
	return Plugin{Name: "RuntimeClass", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is("pods", "") {
			return nil
		}
		pod := r.Object.(*corev1.Pod)
		if pod.Spec.RuntimeClassName == nil {
			if pod.Spec.Overhead != nil {
				return Forbidden(r, fmt.Errorf("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
			}
			return nil
		}
		rc, ok := client.RuntimeClasses.Get(r.Snapshot, "", *pod.Spec.RuntimeClassName)
		if !ok {
			return Forbidden(r, fmt.Errorf("pod rejected: RuntimeClass %q not found", *pod.Spec.RuntimeClassName))
		}
		if rc.Overhead != nil {
			if pod.Spec.Overhead != nil && !equality.Semantic.DeepEqual(rc.Overhead.PodFixed, pod.Spec.Overhead) {
				return Forbidden(r, fmt.Errorf("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
			}
			pod.Spec.Overhead = rc.Overhead.PodFixed.DeepCopy()
		} else if pod.Spec.Overhead != nil {
			return Forbidden(r, fmt.Errorf("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
		}
		if rc.Scheduling == nil {
			return nil
		}
		if pod.Spec.NodeSelector == nil && len(rc.Scheduling.NodeSelector) > 0 {
			pod.Spec.NodeSelector = map[string]string{}
		}
		for k, v := range rc.Scheduling.NodeSelector {
			if have, ok := pod.Spec.NodeSelector[k]; ok && have != v {
				return Forbidden(r, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, have))
			}
			pod.Spec.NodeSelector[k] = v
		}
		for _, t := range rc.Scheduling.Tolerations {
			if !containsToleration(pod.Spec.Tolerations, t) {
				pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
			}
		}
		return nil
	}}
}

func containsToleration(list []corev1.Toleration, t corev1.Toleration) bool {
	for i := range list {
		if equality.Semantic.DeepEqual(list[i], t) {
			return true
		}
	}
	return false
}

// newer tells which of two default classes wins: the one made last, then by name.
func newer(a, b metav1.Object) bool {
	x, y := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if x.Equal(&y) {
		return a.GetName() < b.GetName()
	}
	return y.Before(&x)
}

// defaultStorageClass gives a claim that names no class the default one.
func defaultStorageClass() Plugin {
	return Plugin{Name: "DefaultStorageClass", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is("persistentvolumeclaims", "") {
			return nil
		}
		pvc := r.Object.(*corev1.PersistentVolumeClaim)
		if _, beta := pvc.Annotations[corev1.BetaStorageClassAnnotation]; beta || pvc.Spec.StorageClassName != nil {
			return nil
		}
		var best metav1.Object
		for sc := range client.StorageClasses.List(r.Snapshot, "") {
			isDefault := sc.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" || sc.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true"
			if isDefault && (best == nil || newer(sc, best)) {
				best = sc
			}
		}
		if best != nil {
			name := best.GetName()
			pvc.Spec.StorageClassName = &name
		}
		return nil
	}}
}

var ingressClasses = client.Resource[*networkingv1.IngressClass]{Name: "ingressclasses.networking.k8s.io"}

// defaultIngressClass gives an ingress that names no class the default one.
func defaultIngressClass() Plugin {
	return Plugin{Name: "DefaultIngressClass", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation != Create || !r.Is("ingresses.networking.k8s.io", "") {
			return nil
		}
		ing := r.Object.(*networkingv1.Ingress)
		if _, old := ing.Annotations["kubernetes.io/ingress.class"]; old || ing.Spec.IngressClassName != nil {
			return nil
		}
		var best metav1.Object
		for ic := range ingressClasses.List(r.Snapshot, "") {
			if ic.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" && (best == nil || newer(ic, best)) {
				best = ic
			}
		}
		if best != nil {
			name := best.GetName()
			ing.Spec.IngressClassName = &name
		}
		return nil
	}}
}
