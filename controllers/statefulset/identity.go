package statefulset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/reconcile/podstate"
)

// ordinal is the number of a pod of the set, by its name; false if the name is not one of the set's.
func ordinal(set *appsv1.StatefulSet, pod *corev1.Pod) (int, bool) {
	rest, ok := strings.CutPrefix(pod.Name, set.Name+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(rest, 10, 32)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != rest {
		return 0, false
	}
	return int(n), true
}

// start is the first ordinal (KEP-3335).
func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

func podName(set *appsv1.StatefulSet, n int) string { return fmt.Sprintf("%s-%d", set.Name, n) }

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return fmt.Sprintf("%s-%s-%d", template, set.Name, n)
}

// make is pod number n of the set from the template of a revision.
func (p *pass) make(n int, template *corev1.PodTemplateSpec, revision string) *corev1.Pod {
	t := template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.set.Namespace, Name: podName(p.set, n),
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{claim.Reference("apps/v1", "StatefulSet", p.set)},
		},
		Spec: t.Spec,
	}
	identify(pod, n)
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = revision
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, p.set.Spec.ServiceName
	for i := range p.set.Spec.VolumeClaimTemplates {
		name := p.set.Spec.VolumeClaimTemplates[i].Name
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(p.set, name, n)}}})
	}
	return pod
}

// identify gives a pod the labels that say which of its set it is.
func identify(pod *corev1.Pod, n int) {
	metav1.SetMetaDataLabel(&pod.ObjectMeta, appsv1.StatefulSetPodNameLabel, pod.Name)
	metav1.SetMetaDataLabel(&pod.ObjectMeta, appsv1.PodIndexLabel, strconv.Itoa(n))
}

func identified(pod *corev1.Pod, n int) bool {
	return pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name && pod.Labels[appsv1.PodIndexLabel] == strconv.Itoa(n)
}

// claims makes the volume claims of pod number n that are not there.
func (p *pass) claims(n int) []reconcile.Write {
	var writes []reconcile.Write
	for i := range p.set.Spec.VolumeClaimTemplates {
		t := &p.set.Spec.VolumeClaimTemplates[i]
		name := claimName(p.set, t.Name, n)
		if _, ok := client.PersistentVolumeClaims.Get(p.snap, p.set.Namespace, name); ok {
			continue
		}
		c := &corev1.PersistentVolumeClaim{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: *t.Spec.DeepCopy()}
		c.Name, c.Namespace = name, p.set.Namespace
		c.Labels = maps.Clone(c.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, p.set.Spec.Selector.MatchLabels)
		c.OwnerReferences = p.claimOwners(nil)
		writes = append(writes, p.told(reconcile.Write{Verb: reconcile.Create, Resource: client.PersistentVolumeClaims.Name, Object: c},
			"create", fmt.Sprintf("Claim %s Pod %s in StatefulSet %s success", name, podName(p.set, n), p.set.Name),
			fmt.Sprintf("Claim %s for Pod %s in StatefulSet %s failed error: ", name, podName(p.set, n), p.set.Name)))
	}
	return writes
}

// claimOwners are the owners of a claim by the retention policy (KEP-1847); condemned is the pod, if it is
// being scaled away.
func (p *pass) claimOwners(condemned *corev1.Pod) []metav1.OwnerReference {
	policy := p.set.Spec.PersistentVolumeClaimRetentionPolicy
	switch {
	case policy == nil:
		return nil
	case condemned != nil && policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
		return []metav1.OwnerReference{claim.Reference("v1", "Pod", condemned)}
	case policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
		return []metav1.OwnerReference{claim.Reference("apps/v1", "StatefulSet", p.set)}
	}
	return nil
}

// retain brings the owners of the claims of pod number n in line with the retention policy.
func (p *pass) retain(n int, pod, condemned *corev1.Pod) []reconcile.Write {
	var writes []reconcile.Write
	for i := range p.set.Spec.VolumeClaimTemplates {
		had, ok := client.PersistentVolumeClaims.Get(p.snap, p.set.Namespace, claimName(p.set, p.set.Spec.VolumeClaimTemplates[i].Name, n))
		if !ok || had.DeletionTimestamp != nil {
			continue
		}
		want := p.claimOwners(condemned)
		ours := func(r metav1.OwnerReference) bool { return r.UID == p.set.UID || pod != nil && r.UID == pod.UID }
		kept := slices.DeleteFunc(slices.Clone(had.OwnerReferences), ours)
		if len(want) > 0 && slices.ContainsFunc(kept, func(r metav1.OwnerReference) bool { return r.Controller != nil && *r.Controller }) {
			continue // somebody else's
		}
		kept = append(kept, want...)
		if slices.EqualFunc(kept, had.OwnerReferences, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID }) {
			continue
		}
		c := had.DeepCopy()
		c.OwnerReferences = kept
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.PersistentVolumeClaims.Name, Object: c})
	}
	return writes
}

// States of a pod as the order of a set sees them.
func ended(pod *corev1.Pod) bool { return podstate.Terminal(pod) }

func runningAndReady(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && podstate.Ready(pod)
}

func healthy(pod *corev1.Pod) bool { return runningAndReady(pod) && pod.DeletionTimestamp == nil }

func revisionOf(pod *corev1.Pod) string { return pod.Labels[appsv1.ControllerRevisionHashLabelKey] }
