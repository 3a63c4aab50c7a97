package core

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// mutablePodFields is what the refusal of a change names as allowed.
const mutablePodFields = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`," +
	"`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// ValidatePodUpdate checks a change through the main endpoint of pods.
func ValidatePodUpdate(p, old *corev1.Pod) field.ErrorList {
	r := &report{}
	podRules(r, p)
	podAnnotationsUpdate(r, p, old)
	if !containersUpdate(r, p.Spec.Containers, old.Spec.Containers, specPath.Child("containers")) ||
		!containersUpdate(r, p.Spec.InitContainers, old.Spec.InitContainers, specPath.Child("initContainers")) {
		return r.errs
	}
	if !deadlineUpdate(r, p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds) {
		return r.errs
	}
	if !equality.Semantic.DeepEqual(p.Spec.Tolerations, old.Spec.Tolerations) {
		onlyAddedTolerations(r, p.Spec.Tolerations, old.Spec.Tolerations)
	}
	onlyRemovedGates(r, p.Spec.SchedulingGates, old.Spec.SchedulingGates)
	if equality.Semantic.DeepEqual(&p.Spec, &old.Spec) {
		return r.errs
	}
	s := withOldMutable(r, p, old)
	if !equality.Semantic.DeepEqual(s, &old.Spec) {
		r.forbidden(specPath, fmt.Sprintf("pod updates may not change fields other than %s\n%v", mutablePodFields, diff.Diff(old.Spec, *s)))
	}
	return r.errs
}

// withOldMutable returns the new spec with the old values of all that may change, so
// that any difference that is left is a fault. What may change only so far is reported.
func withOldMutable(r *report, p, old *corev1.Pod) *corev1.PodSpec {
	s := p.Spec // a shallow copy: the parts that are changed below are copied first
	s.Containers = withOldImages(s.Containers, old.Spec.Containers)
	s.InitContainers = withOldImages(s.InitContainers, old.Spec.InitContainers)
	s.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	s.SchedulingGates = old.Spec.SchedulingGates
	s.Tolerations = old.Spec.Tolerations
	if g, o := s.TerminationGracePeriodSeconds, old.Spec.TerminationGracePeriodSeconds; g != nil && *g == 1 && o != nil && *o < 0 {
		s.TerminationGracePeriodSeconds = o
	}
	if len(old.Spec.SchedulingGates) > 0 {
		gatedPlacement(r, &s, &old.Spec)
	}
	return &s
}

func withOldImages(list, old []corev1.Container) []corev1.Container {
	out := slices.Clone(list)
	for i := range out {
		out[i].Image = old[i].Image
	}
	return out
}

// gatedPlacement lets a pod that waits at a gate narrow down where it may run (KEP-3838).
func gatedPlacement(r *report, s, old *corev1.PodSpec) {
	if !equality.Semantic.DeepEqual(s.NodeSelector, old.NodeSelector) {
		for key, value := range old.NodeSelector {
			if v, ok := s.NodeSelector[key]; !ok || v != value {
				r.invalid(specPath.Child("nodeSelector"), s.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
				break
			}
		}
		s.NodeSelector = old.NodeSelector
	}
	var affinity, before *corev1.NodeAffinity
	if s.Affinity != nil {
		affinity = s.Affinity.NodeAffinity
	}
	if old.Affinity != nil {
		before = old.Affinity.NodeAffinity
	}
	if equality.Semantic.DeepEqual(affinity, before) {
		return
	}
	narrowedAffinity(r, affinity, before)
	a := corev1.Affinity{}
	if s.Affinity != nil {
		a = *s.Affinity
	}
	a.NodeAffinity = before
	s.Affinity = &a
	if old.Affinity == nil && a == (corev1.Affinity{}) {
		s.Affinity = nil
	}
}

func narrowedAffinity(r *report, a, old *corev1.NodeAffinity) {
	if old == nil || old.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	var terms []corev1.NodeSelectorTerm
	if a != nil && a.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = a.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	before := old.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	p := specPath.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	if len(before) > 0 && len(terms) != len(before) {
		r.invalid(p, terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	for i := range before {
		if !narrowedTerm(&terms[i], &before[i]) {
			r.invalid(p.Index(i), terms[i], "only additions are allowed (no mutations or deletions)")
		}
	}
}

// narrowedTerm tells whether t is old with requirements added. An empty term matches nothing, so that
// additions would widen it.
func narrowedTerm(t, old *corev1.NodeSelectorTerm) bool {
	if len(old.MatchExpressions) == 0 && len(old.MatchFields) == 0 {
		return len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0
	}
	startsWith := func(list, start []corev1.NodeSelectorRequirement) bool {
		return len(list) >= len(start) && equality.Semantic.DeepEqual(list[:len(start)], start)
	}
	return (len(old.MatchExpressions) == 0 || startsWith(t.MatchExpressions, old.MatchExpressions)) &&
		(len(old.MatchFields) == 0 || startsWith(t.MatchFields, old.MatchFields))
}

// podAnnotationsUpdate holds on to annotations that say what a pod is.
func podAnnotationsUpdate(r *report, p, old *corev1.Pod) {
	for key, value := range inOrder(old.Annotations) {
		if v, ok := p.Annotations[key]; ok && v == value {
			continue
		}
		if strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) {
			r.forbidden(annotationsPath.Key(key), "may not remove or update AppArmor annotations")
		}
		if key == corev1.MirrorPodAnnotationKey {
			r.forbidden(annotationsPath.Key(key), "may not remove or update mirror pod annotation")
		}
	}
	for key := range inOrder(p.Annotations) {
		if _, ok := old.Annotations[key]; ok {
			continue
		}
		if strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) {
			r.forbidden(annotationsPath.Key(key), "may not add AppArmor annotations")
		}
		if key == corev1.MirrorPodAnnotationKey {
			r.forbidden(annotationsPath.Key(key), "may not add mirror pod annotation")
		}
	}
	podAnnotations(r, p.Annotations, &p.Spec, annotationsPath)
}

// containersUpdate checks the images, and tells whether old and new containers can be compared.
func containersUpdate(r *report, list, old []corev1.Container, p *field.Path) bool {
	if len(list) != len(old) {
		r.forbidden(p, "pod updates may not add or remove containers")
		return false
	}
	for i := range list {
		if list[i].Image == "" {
			r.required(p.Index(i).Child("image"), "")
		}
		imagePadding(r, list[i].Image, p, i)
	}
	return true
}

// deadlineUpdate lets a deadline be set, and be made shorter. It tells whether to go on.
func deadlineUpdate(r *report, seconds, old *int64) bool {
	p := specPath.Child("activeDeadlineSeconds")
	switch {
	case seconds == nil:
		if old != nil {
			r.invalid(p, seconds, "must not update from a positive integer to nil value")
		}
	case *seconds < 0 || *seconds > math.MaxInt32:
		r.invalid(p, *seconds, content.InclusiveRangeError(0, math.MaxInt32))
		return false
	case old != nil && *old < *seconds:
		r.invalid(p, *seconds, "must be less than or equal to previous value")
		return false
	}
	return true
}

// onlyAddedTolerations holds that every old toleration is still there, but for its seconds.
func onlyAddedTolerations(r *report, list, old []corev1.Toleration) {
	p := specPath.Child("tolerations")
	have := make(map[corev1.Toleration]bool, len(list))
	for _, t := range list {
		t.TolerationSeconds = nil
		have[t] = true
	}
	for _, o := range old {
		o.TolerationSeconds = nil
		if !have[o] {
			r.forbidden(p, "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
	tolerations(r, list, p)
}

func onlyRemovedGates(r *report, gates, old []corev1.PodSchedulingGate) {
	var before names
	for _, g := range old {
		before.add(g.Name)
	}
	for i, g := range gates {
		if !before.has(g.Name) {
			r.forbidden(specPath.Child("schedulingGates").Index(i).Child("name"),
				fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
		}
	}
}

// validateEphemeralContainersUpdate lets ephemeral containers be added, never changed or removed.
func validateEphemeralContainersUpdate(p, old *corev1.Pod) field.ErrorList {
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	r := &report{}
	podRules(r, p)
	podAnnotationsUpdate(r, p, old)
	at := specPath.Child("ephemeralContainers")
	for i := range old.Spec.EphemeralContainers {
		o := &old.Spec.EphemeralContainers[i]
		n := slices.IndexFunc(p.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == o.Name })
		if n < 0 {
			r.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", o.Name))
		} else if !equality.Semantic.DeepEqual(*o, p.Spec.EphemeralContainers[n]) {
			r.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", o.Name, diff.Diff(*o, p.Spec.EphemeralContainers[n])))
		}
	}
	return r.errs
}
