package core

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

// validatePodResize follows KEP-1287 and, for resources of the pod, KEP-5419: CPU and memory may
// change, as long as the QoS class stays.
func validatePodResize(p, old *corev1.Pod) field.ErrorList {
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "windows pods cannot be resized")}
	}
	r := &report{}
	podRules(r, p)
	if qosOf(old) != QOSClass(p) {
		r.invalid(specPath, p.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	if !resizable(old) {
		r.forbidden(specPath, "Pod running on node without support for resize")
	}
	if resourcehelper.IsPodLevelResourcesSet(old) || resourcehelper.IsPodLevelResourcesSet(p) {
		podLevelResize(r, p.Spec.Resources, old.Spec.Resources)
	}
	if !sameContainers(r, p.Spec.Containers, old.Spec.Containers, "containers") ||
		!sameContainers(r, p.Spec.InitContainers, old.Spec.InitContainers, "initContainers") {
		return r.errs
	}
	for i := range old.Spec.InitContainers {
		initContainerResize(r, &p.Spec.InitContainers[i], &old.Spec.InitContainers[i], specPath.Child("initContainers").Index(i))
	}
	for i := range old.Spec.Containers {
		c, o := &p.Spec.Containers[i], &old.Spec.Containers[i]
		keptResources(r, &c.Resources, &o.Resources, specPath.Child("containers").Index(i).Child("resources"))
		if !equality.Semantic.DeepEqual(withOldComputeOf(c, o), o) {
			r.forbidden(specPath, "only cpu and memory resources are mutable")
		}
	}
	return r.errs
}

// qosOf is the class that a pod was given, or would be now.
func qosOf(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	return QOSClass(p)
}

// resizable tells whether the node reports the resources of running containers, as those do that can
// resize them.
func resizable(p *corev1.Pod) bool {
	for i := range p.Status.ContainerStatuses {
		if s := &p.Status.ContainerStatuses[i]; s.State.Running != nil {
			return s.Resources != nil
		}
	}
	return true
}

func sameContainers(r *report, list, old []corev1.Container, name string) bool {
	p := specPath.Child(name)
	if len(list) != len(old) {
		r.forbidden(p, name+" may not be added or removed on resize")
		return false
	}
	same := true
	for i := range list {
		if list[i].Name != old[i].Name {
			r.forbidden(p.Index(i).Child("name"), name+" may not be renamed or reordered on resize")
			same = false
		}
	}
	return same
}

func initContainerResize(r *report, c, old *corev1.Container, p *field.Path) {
	keptResources(r, &c.Resources, &old.Resources, p.Child("resources"))
	if !equality.Semantic.DeepEqual(withOldComputeOf(c, old), old) {
		r.forbidden(p, "only cpu and memory resources for init or sidecar containers are mutable")
	}
	if Restartable(old) || equality.Semantic.DeepEqual(c, old) {
		return
	}
	for _, policy := range c.ResizePolicy {
		if policy.RestartPolicy == corev1.RestartContainer {
			r.forbidden(p, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
		}
	}
}

// keptResources holds that a resource, once requested or limited, stays so.
func keptResources(r *report, rs, old *corev1.ResourceRequirements, p *field.Path) {
	if removed(rs.Requests, old.Requests) {
		r.forbidden(p.Child("requests"), "resource requests cannot be removed")
	}
	if removed(rs.Limits, old.Limits) {
		r.forbidden(p.Child("limits"), "resource limits cannot be removed")
	}
}

func removed(list, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := list[name]; !ok {
			return true
		}
	}
	return false
}

// withOldComputeOf returns the container with the CPU and memory of old.
func withOldComputeOf(c, old *corev1.Container) *corev1.Container {
	out := *c
	out.Resources = corev1.ResourceRequirements{
		Limits:   withOldCompute(c.Resources.Limits, old.Resources.Limits),
		Requests: withOldCompute(c.Resources.Requests, old.Resources.Requests),
		Claims:   c.Resources.Claims,
	}
	return &out
}

func withOldCompute(list, old corev1.ResourceList) corev1.ResourceList {
	out := maps.Clone(list)
	if out == nil && len(old) > 0 {
		out = corev1.ResourceList{}
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		delete(out, name)
		if q, ok := old[name]; ok {
			out[name] = q
		}
	}
	return out
}

func podLevelResize(r *report, rs, old *corev1.ResourceRequirements) {
	p := specPath.Child("resources")
	if rs == nil {
		if old != nil {
			r.forbidden(p, "pod-level resources cannot be removed")
		}
		return
	}
	before := corev1.ResourceRequirements{}
	if old != nil {
		before = *old
	}
	if removed(rs.Requests, before.Requests) {
		r.forbidden(p.Child("requests"), "pod-level resource requests cannot be removed")
	}
	if removed(rs.Limits, before.Limits) {
		r.forbidden(p.Child("limits"), "pod-level resource limits cannot be removed")
	}
	if !equality.Semantic.DeepEqual(withOldCompute(rs.Limits, before.Limits), before.Limits) ||
		!equality.Semantic.DeepEqual(withOldCompute(rs.Requests, before.Requests), before.Requests) ||
		!slices.Equal(rs.Claims, before.Claims) {
		r.forbidden(specPath, "only cpu and memory resources are mutable at pod-level")
	}
}
