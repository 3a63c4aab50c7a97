package quota

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
)

// Scopes tells whether an object of a resource is within all scopes of a quota; a quota without scopes takes every one. Only
// pods and claims are within any scope.
func Scopes(spec *corev1.ResourceQuotaSpec, obj api.Object) bool {
	for _, scope := range spec.Scopes {
		if !within(corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists}, obj) {
			return false
		}
	}
	if spec.ScopeSelector == nil {
		return true
	}
	for _, sel := range spec.ScopeSelector.MatchExpressions {
		if !within(sel, obj) {
			return false
		}
	}
	return true
}

func within(sel corev1.ScopedResourceSelectorRequirement, obj api.Object) bool {
	switch o := obj.(type) {
	case *corev1.Pod:
		return podWithin(sel, o)
	case *corev1.PersistentVolumeClaim:
		return sel.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass && chosen(sel, attributeClasses(o))
	}
	return false
}

func podWithin(sel corev1.ScopedResourceSelectorRequirement, pod *corev1.Pod) bool {
	switch sel.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return Terminating(pod)
	case corev1.ResourceQuotaScopeNotTerminating:
		return !Terminating(pod)
	case corev1.ResourceQuotaScopeBestEffort:
		return core.QOSClass(pod) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return core.QOSClass(pod) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		if pod.Spec.PriorityClassName == "" {
			return chosen(sel, nil)
		}
		return chosen(sel, []string{pod.Spec.PriorityClassName})
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(pod.Spec.Affinity)
	}
	return false
}

// Terminating tells a pod that ends by itself after some time.
func Terminating(pod *corev1.Pod) bool {
	return pod.Spec.ActiveDeadlineSeconds != nil && *pod.Spec.ActiveDeadlineSeconds >= 0
}

// chosen applies the operator of a selector to the values that an object has.
func chosen(sel corev1.ScopedResourceSelectorRequirement, have []string) bool {
	in := func(v string) bool { return slices.Contains(sel.Values, v) }
	switch sel.Operator {
	case corev1.ScopeSelectorOpExists:
		return len(have) > 0
	case corev1.ScopeSelectorOpDoesNotExist:
		return len(have) == 0
	case corev1.ScopeSelectorOpIn:
		return slices.ContainsFunc(have, in)
	case corev1.ScopeSelectorOpNotIn:
		return len(have) == 0 || slices.ContainsFunc(have, func(v string) bool { return !in(v) })
	}
	return false
}

// attributeClasses are the volume attributes classes that a claim asks for, has, or is on its way to.
func attributeClasses(pvc *corev1.PersistentVolumeClaim) []string {
	var names []string
	for _, n := range []*string{pvc.Spec.VolumeAttributesClassName, pvc.Status.CurrentVolumeAttributesClassName} {
		if n != nil && *n != "" {
			names = append(names, *n)
		}
	}
	if m := pvc.Status.ModifyVolumeStatus; m != nil && m.TargetVolumeAttributesClassName != "" {
		names = append(names, m.TargetVolumeAttributesClassName)
	}
	return names
}

func crossesNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	gather := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		terms = append(terms, required...)
		for _, p := range preferred {
			terms = append(terms, p.PodAffinityTerm)
		}
	}
	if p := a.PodAffinity; p != nil {
		gather(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if p := a.PodAntiAffinity; p != nil {
		gather(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}

// mandatory are the names that every container has to say something about once a quota limits them.
var mandatory = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
	corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
}

// Constraints says what a pod leaves out that a quota with these names asks of it: "must specify cpu for: c". Objects
// of other kinds leave nothing out.
func Constraints(names []corev1.ResourceName, obj api.Object) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok || resourcehelper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	var lacks []string
	for _, name := range mandatory { // in order of names
		if !slices.Contains(names, name) {
			continue
		}
		var who []string
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				said := corev1.ResourceList{}
				computeUsage(said, list[i].Resources.Requests, list[i].Resources.Limits)
				if _, ok := said[name]; !ok {
					who = append(who, list[i].Name)
				}
			}
		}
		if len(who) > 0 {
			slices.Sort(who)
			lacks = append(lacks, fmt.Sprintf("%s for: %s", name, strings.Join(who, ",")))
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("must specify %s", strings.Join(lacks, "; "))
}
