package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// preparePodCreate gives a new pod its first status, and turns what is written in short
// (matchLabelKeys, AppArmor annotations) into the fields that readers look at.
func preparePodCreate(p *corev1.Pod) {
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(p)}
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type:    corev1.PodScheduled,
			Status:  corev1.ConditionFalse,
			Reason:  corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		}}
	}
	expandLabelKeys(p)
	appArmorFields(p)
}

// preparePodUpdate keeps the status, which has an endpoint of its own.
func preparePodUpdate(p, old *corev1.Pod) { p.Status = old.Status }

// preparePodStatus lets the status endpoint change nothing else. QoS is decided once; an
// observedGeneration that an older writer does not know of is kept.
func preparePodStatus(p, old *corev1.Pod) {
	p.Spec = old.Spec
	p.DeletionTimestamp = old.DeletionTimestamp
	p.OwnerReferences = old.OwnerReferences
	if p.Status.QOSClass == "" {
		p.Status.QOSClass = old.Status.QOSClass
	}
	keepObservedGeneration(&p.Status, &old.Status)
	dropGatedStatus(&p.Status)
}

func keepObservedGeneration(s, old *corev1.PodStatus) {
	if s.ObservedGeneration == 0 {
		s.ObservedGeneration = old.ObservedGeneration
	}
	// Conditions are matched by type; the n-th of a type with the n-th.
	used := make([]bool, len(old.Conditions))
	for i := range s.Conditions {
		c := &s.Conditions[i]
		for j := range old.Conditions {
			if used[j] || old.Conditions[j].Type != c.Type {
				continue
			}
			used[j] = true
			if c.ObservedGeneration == 0 {
				c.ObservedGeneration = old.Conditions[j].ObservedGeneration
			}
			break
		}
	}
}

// dropGatedStatus takes out status fields whose features are off in upstream's defaults.
func dropGatedStatus(s *corev1.PodStatus) {
	s.VolumeHealth = nil
	s.NodeAllocatableResourceClaimStatuses = nil
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			list[i].StopSignal = nil
			for j := range list[i].VolumeMounts {
				list[i].VolumeMounts[j].VolumeStatus = nil
			}
		}
	}
}

// prepareEphemeralContainers lets the endpoint change the ephemeral containers alone.
func prepareEphemeralContainers(p, old *corev1.Pod) {
	containers := p.Spec.EphemeralContainers
	keepPod(p, old)
	p.Spec.EphemeralContainers = containers
}

// keepPod takes everything but resourceVersion and such from old.
func keepPod(p, old *corev1.Pod) {
	p.Spec = old.Spec
	p.Status = old.Status
	metav1.ResetObjectMetaForStatus(&p.ObjectMeta, &old.ObjectMeta)
}

// preparePodResize lets the endpoint change resources and resize policies alone. A change
// of the containers themselves is left in place, for validation to refuse.
func preparePodResize(p, old *corev1.Pod) {
	if len(p.Spec.Containers) != len(old.Spec.Containers) || len(p.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return
	}
	containers := resized(p.Spec.Containers, old.Spec.Containers)
	initContainers := resized(p.Spec.InitContainers, old.Spec.InitContainers)
	resources := p.Spec.Resources
	keepPod(p, old)
	p.Spec.Containers, p.Spec.InitContainers, p.Spec.Resources = containers, initContainers, resources
}

func resized(containers, old []corev1.Container) []corev1.Container {
	out := slices.Clone(old)
	for i := range containers {
		if containers[i].Name != old[i].Name {
			return containers
		}
		out[i].Resources = containers[i].Resources
		out[i].ResizePolicy = containers[i].ResizePolicy
	}
	return out
}

// expandLabelKeys writes matchLabelKeys and mismatchLabelKeys of affinity (KEP-3633) and of topology
// spread (KEP-3243) into the label selectors, with the values that the pod has.
func expandLabelKeys(p *corev1.Pod) {
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		selectKeys(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, p.Labels)
	}
	a := p.Spec.Affinity
	if a == nil {
		return
	}
	if a.PodAffinity != nil {
		expandTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
	}
	if a.PodAntiAffinity != nil {
		expandTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Labels)
	}
}

func expandTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, labels map[string]string) {
	for i := range preferred {
		expandTerm(&preferred[i].PodAffinityTerm, labels)
	}
	for i := range required {
		expandTerm(&required[i], labels)
	}
}

func expandTerm(t *corev1.PodAffinityTerm, labels map[string]string) {
	selectKeys(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
	selectKeys(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
}

func selectKeys(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) {
	if s == nil {
		return // matches nothing, whatever is added
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			s.MatchExpressions = append(s.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
		}
	}
}

// appArmorFields copies the AppArmor annotations of before 1.30 into the fields of the containers
// that have none (KEP-24).
func appArmorFields(p *corev1.Pod) {
	if p.Spec.OS != nil && p.Spec.OS.Name == corev1.Windows {
		return
	}
	var pod *corev1.AppArmorProfile
	if p.Spec.SecurityContext != nil {
		pod = p.Spec.SecurityContext.AppArmorProfile
	}
	for key, value := range p.Annotations {
		name, ok := strings.CutPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
		if !ok {
			continue
		}
		profile := appArmorProfile(value)
		if profile == nil || equality.Semantic.DeepEqual(profile, pod) {
			continue
		}
		eachContainer(&p.Spec, func(c *corev1.Container) {
			if c.Name != name || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
				return
			}
			if c.SecurityContext == nil {
				c.SecurityContext = &corev1.SecurityContext{}
			}
			c.SecurityContext.AppArmorProfile = profile
		})
	}
}

// appArmorProfile reads the value of an AppArmor annotation, nil if there is nothing in it.
func appArmorProfile(annotation string) *corev1.AppArmorProfile {
	switch annotation {
	case corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	}
	local, ok := strings.CutPrefix(annotation, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	if !ok || local == "" || strings.TrimSpace(local) != local {
		return nil
	}
	return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &local}
}

// eachContainer calls f for the init, regular and ephemeral containers, in this order.
func eachContainer(s *corev1.PodSpec, f func(*corev1.Container)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i])
	}
	for i := range s.Containers {
		f(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		f((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
}
