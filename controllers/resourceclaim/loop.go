// Package resourceclaim makes the ResourceClaims that pods ask for by template, frees those that nobody uses any more and
// removes those whose pod is done (https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/).
//
// It owns status.resourceClaimStatuses of pods, and of claims the end: entries of status.reservedFor that are out of date, the
// allocation that goes with the last of them, and the finalizer resource.kubernetes.io/delete-protection. Whoever gives devices to
// claims is the scheduler.
package resourceclaim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/store"
)

// Loop is the resource claim controller. Its keys are pods and claims.
func Loop() reconcile.Loop {
	return reconcile.Loop{
		Name: "resource-claim-controller", Source: "resource_claim", Workers: 4,
		Inputs: []reconcile.Input{
			{Resource: client.Pods.Name, Keys: ofPod},
			{Resource: client.ResourceClaims.Name, Keys: ofClaim},
			{Resource: client.ResourceClaimTemplates.Name, Keys: ofTemplate},
		},
		Outputs: []reconcile.Output{
			{Resource: client.ResourceClaims.Name, Verbs: []reconcile.Verb{reconcile.Create, reconcile.Update, reconcile.Delete}},
			{Resource: client.ResourceClaims.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
			{Resource: client.Pods.Name, Subresource: "status", Verbs: []reconcile.Verb{reconcile.Update}},
		},
		Plan: func(s store.Snapshot, key reconcile.Key, _ time.Time) (reconcile.Plan, error) {
			if key.Resource == client.Pods.Name {
				return planPod(s, key)
			}
			return planClaim(s, key), nil
		},
	}
}

func podKey(namespace, name string) reconcile.Key {
	return reconcile.Key{Resource: client.Pods.Name, Namespace: namespace, Name: name}
}

func claimKey(namespace, name string) reconcile.Key {
	return reconcile.Key{Resource: client.ResourceClaims.Name, Namespace: namespace, Name: name}
}

// ofPod gives a pod that has claims, and its claims once it needs them no longer.
func ofPod(s store.Snapshot, ev store.Event) []reconcile.Key {
	pod := ev.Entry.Object.(*corev1.Pod)
	if len(pod.Spec.ResourceClaims) == 0 && pod.Status.ExtendedResourceClaimStatus == nil {
		return nil
	}
	var keys []reconcile.Key
	if !ev.Deleted && pod.DeletionTimestamp == nil && !done(pod) {
		keys = append(keys, podKey(pod.Namespace, pod.Name))
	}
	replaced := ev.Prev != nil && ev.Prev.Object.(*corev1.Pod).UID != pod.UID
	if ev.Deleted || done(pod) || replaced {
		for _, name := range names(pod) {
			keys = append(keys, claimKey(pod.Namespace, name))
		}
		for claim := range client.ResourceClaims.Index(s, client.OwnerIndex, string(pod.UID)) {
			keys = append(keys, claimKey(claim.Namespace, claim.Name))
		}
	}
	return keys
}

// names are the claims that a pod is known to use.
func names(pod *corev1.Pod) []string {
	var all []string
	for i := range pod.Spec.ResourceClaims {
		if name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i]); err == nil && name != nil {
			all = append(all, *name)
		}
	}
	if st := pod.Status.ExtendedResourceClaimStatus; st != nil {
		all = append(all, st.ResourceClaimName)
	}
	return all
}

// ofClaim gives a claim, the pod that it was made for, and the pods on nodes that it may have to be reserved for.
func ofClaim(s store.Snapshot, ev store.Event) []reconcile.Key {
	claim := ev.Entry.Object.(*resourcev1.ResourceClaim)
	var keys []reconcile.Key
	if !ev.Deleted {
		keys = append(keys, claimKey(claim.Namespace, claim.Name))
	}
	if ref := owner(claim); ref != nil {
		keys = append(keys, podKey(claim.Namespace, ref.Name))
	}
	if ev.Deleted || claim.Status.Allocation != nil {
		for pod := range client.Pods.Index(s, "resourceclaim", claim.Namespace+"/"+claim.Name) {
			if ev.Deleted || pod.Spec.NodeName != "" && !resourceclaim.IsReservedForPod(pod, claim, false) {
				keys = append(keys, podKey(pod.Namespace, pod.Name))
			}
		}
	}
	return keys
}

// ofTemplate gives the pods that wait for a template.
func ofTemplate(s store.Snapshot, ev store.Event) []reconcile.Key {
	template := ev.Entry.Object.(*resourcev1.ResourceClaimTemplate)
	if ev.Deleted || ev.Prev != nil {
		return nil
	}
	var keys []reconcile.Key
	for pod := range client.Pods.List(s, template.Namespace) {
		if slices.ContainsFunc(pod.Spec.ResourceClaims, func(c corev1.PodResourceClaim) bool {
			return c.ResourceClaimTemplateName != nil && *c.ResourceClaimTemplateName == template.Name
		}) {
			keys = append(keys, podKey(pod.Namespace, pod.Name))
		}
	}
	return keys
}

// owner is the pod that a claim was made for, nil if there is none.
func owner(claim *resourcev1.ResourceClaim) *metav1.OwnerReference {
	for i := range claim.OwnerReferences {
		if r := &claim.OwnerReferences[i]; r.Controller != nil && *r.Controller && r.APIVersion == "v1" && r.Kind == "Pod" {
			return r
		}
	}
	return nil
}

// done tells a pod that runs no more, or never will.
func done(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed ||
		pod.DeletionTimestamp != nil && pod.Spec.NodeName == ""
}

// planPod makes the claims that a pod lacks, names them in its status, and reserves those that it uses if it came to its node without the
// scheduler.
func planPod(s store.Snapshot, key reconcile.Key) (reconcile.Plan, error) {
	pod, ok := client.Pods.Get(s, key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil || done(pod) {
		return reconcile.Plan{}, nil
	}
	var plan reconcile.Plan
	found := map[string]string{}
	for i := range pod.Spec.ResourceClaims {
		c := &pod.Spec.ResourceClaims[i]
		claim, create, err := generated(s, pod, c)
		switch {
		case err != nil:
			// What can be made is made; the error is told and the pass made again.
			plan.Events = append(plan.Events, reconcile.Event{Type: corev1.EventTypeWarning, Reason: "FailedResourceClaimCreation",
				Regarding: reconcile.Regarding("v1", "Pod", pod), Message: fmt.Sprintf("PodResourceClaim %s: %v", c.Name, err)})
			plan.After = retryAfter
		case claim != "":
			found[c.Name] = claim
		case create != nil:
			plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Create, Resource: client.ResourceClaims.Name, Object: create,
				OnFailure: failedToCreate(pod, c.Name)})
		}
	}
	if len(found) > 0 {
		plan.Writes = append(plan.Writes, reconcile.Write{Verb: reconcile.Update, Resource: client.Pods.Name, Subresource: "status", Object: named(pod, found)})
	}
	if pod.Spec.NodeName != "" && len(plan.Writes) == 0 {
		plan.Writes = reservations(s, pod)
	}
	return plan, nil
}

// retryAfter is when a claim is tried again that could not be made; the template that it lacks wakes the pod earlier.
const retryAfter = time.Minute

func failedToCreate(pod *corev1.Pod, name string) func(error) *reconcile.Event {
	return func(err error) *reconcile.Event {
		return &reconcile.Event{Type: corev1.EventTypeWarning, Reason: "FailedResourceClaimCreation",
			Regarding: reconcile.Regarding("v1", "Pod", pod), Message: fmt.Sprintf("PodResourceClaim %s: create ResourceClaim : %v", name, err)}
	}
}

// generated gives the name of a claim that was made for a pod and that its status does not name, or the claim that is to be
// made. Neither, if nothing is to be done.
func generated(s store.Snapshot, pod *corev1.Pod, c *corev1.PodResourceClaim) (string, *resourcev1.ResourceClaim, error) {
	if c.ResourceClaimTemplateName == nil {
		return "", nil, nil
	}
	if name, _, err := resourceclaim.Name(pod, c); err == nil {
		if name == nil {
			return "", nil, nil // none is needed
		}
		if claim, ok := client.ResourceClaims.Get(s, pod.Namespace, *name); ok && metav1.IsControlledBy(claim, pod) {
			return "", nil, nil
		}
	}
	for claim := range client.ResourceClaims.Index(s, client.OwnerIndex, string(pod.UID)) {
		if claim.DeletionTimestamp == nil && metav1.IsControlledBy(claim, pod) && claim.Annotations[resourcev1.PodResourceClaimAnnotation] == c.Name {
			return claim.Name, nil, nil
		}
	}
	template, ok := client.ResourceClaimTemplates.Get(s, pod.Namespace, *c.ResourceClaimTemplateName)
	if !ok {
		return "", nil, fmt.Errorf("resource claim template %q: resourceclaimtemplate.resource.k8s.io %q not found", *c.ResourceClaimTemplateName, *c.ResourceClaimTemplateName)
	}
	return "", newClaim(pod, c.Name, template), nil
}

// maxBase is what a generated name has room for before its hyphen and random characters.
const maxBase = 57

func newClaim(pod *corev1.Pod, name string, template *resourcev1.ResourceClaimTemplate) *resourcev1.ResourceClaim {
	base := pod.Name + "-" + name + "-"
	if n := len(base); n > maxBase { // each gives in proportion to its length
		base = pod.Name[:len(pod.Name)*maxBase/n] + "-" + name[:len(name)*maxBase/n]
	}
	claim := &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: base,
			Labels: maps.Clone(template.Spec.Labels), Annotations: maps.Clone(template.Spec.Annotations),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: new(true)}},
		},
		Spec: *template.Spec.Spec.DeepCopy(),
	}
	if claim.Annotations == nil {
		claim.Annotations = map[string]string{}
	}
	claim.Annotations[resourcev1.PodResourceClaimAnnotation] = name
	return claim
}

// named is the pod with claims in its status, by the names that it has for them.
func named(pod *corev1.Pod, found map[string]string) *corev1.Pod {
	for _, st := range pod.Status.ResourceClaimStatuses {
		if _, fresh := found[st.Name]; !fresh && st.ResourceClaimName != nil {
			found[st.Name] = *st.ResourceClaimName
		}
	}
	out := pod.DeepCopy()
	out.Status.ResourceClaimStatuses = nil
	for _, name := range slices.Sorted(maps.Keys(found)) {
		claim := found[name]
		out.Status.ResourceClaimStatuses = append(out.Status.ResourceClaimStatuses, corev1.PodResourceClaimStatus{Name: name, ResourceClaimName: &claim})
	}
	return out
}

// reservations reserve the allocated claims of a pod on a node that are not reserved for it.
func reservations(s store.Snapshot, pod *corev1.Pod) []reconcile.Write {
	var writes []reconcile.Write
	for i := range pod.Spec.ResourceClaims {
		name, mustOwn, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if err != nil || name == nil {
			continue
		}
		claim, ok := client.ResourceClaims.Get(s, pod.Namespace, *name)
		if !ok || claim.Status.Allocation == nil || claim.DeletionTimestamp != nil || resourceclaim.IsReservedForPod(pod, claim, false) ||
			mustOwn && !metav1.IsControlledBy(claim, pod) {
			continue
		}
		claim = claim.DeepCopy()
		claim.Status.ReservedFor = append(claim.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: pod.Name, UID: pod.UID})
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.ResourceClaims.Name, Subresource: "status", Object: claim})
	}
	return writes
}

// planClaim takes one step towards what a claim should be: no reservations of pods that are done, no allocation without reservations that
// there were, no finalizer without an allocation, and no claim that was made for a pod that is done.
func planClaim(s store.Snapshot, key reconcile.Key) reconcile.Plan {
	claim, ok := client.ResourceClaims.Get(s, key.Namespace, key.Name)
	if !ok {
		return reconcile.Plan{}
	}
	var remaining []resourcev1.ResourceClaimConsumerReference
	for _, r := range claim.Status.ReservedFor {
		if r.APIGroup != "" || r.Resource != "pods" || uses(s, claim.Namespace, &r) {
			remaining = append(remaining, r)
		}
	}
	protected := slices.Contains(claim.Finalizers, resourcev1.Finalizer)
	freed := len(remaining) == 0 && len(claim.Status.ReservedFor) > 0
	var writes []reconcile.Write
	out := claim.DeepCopy()
	switch {
	case len(remaining) < len(claim.Status.ReservedFor):
		out.Status.ReservedFor = remaining
		if freed && protected {
			deallocate(out)
		}
		writes = append(writes, updateStatus(out))
	case protected && len(remaining) == 0 && claim.DeletionTimestamp != nil && claim.Status.Allocation != nil:
		deallocate(out)
		writes = append(writes, updateStatus(out))
	case protected && len(remaining) == 0 && claim.Status.Allocation == nil && (claim.DeletionTimestamp != nil || ownerDone(s, claim)):
		// The scheduler puts the finalizer on just before it allocates, so that of a claim that may still be used it stays.
		out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return f == resourcev1.Finalizer })
		writes = append(writes, reconcile.Write{Verb: reconcile.Update, Resource: client.ResourceClaims.Name, Object: out})
	case len(remaining) == 0 && claim.DeletionTimestamp == nil && ownerDone(s, claim):
		writes = append(writes, reconcile.Write{Verb: reconcile.Delete, Resource: client.ResourceClaims.Name,
			Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID})
	}
	return reconcile.Plan{Writes: writes}
}

func deallocate(c *resourcev1.ResourceClaim) { c.Status.Allocation, c.Status.Devices = nil, nil }

func updateStatus(c *resourcev1.ResourceClaim) reconcile.Write {
	return reconcile.Write{Verb: reconcile.Update, Resource: client.ResourceClaims.Name, Subresource: "status", Object: c}
}

// uses tells whether the pod that a claim is reserved for is there and may still run.
func uses(s store.Snapshot, namespace string, r *resourcev1.ResourceClaimConsumerReference) bool {
	pod, ok := client.Pods.Get(s, namespace, r.Name)
	return ok && pod.UID == r.UID && !done(pod)
}

// ownerDone tells whether a claim was made for a pod that has been replaced or is done. One whose pod is gone goes with the
// garbage.
func ownerDone(s store.Snapshot, claim *resourcev1.ResourceClaim) bool {
	ref := owner(claim)
	if ref == nil {
		return false
	}
	pod, ok := client.Pods.Get(s, claim.Namespace, ref.Name)
	return ok && (pod.UID != ref.UID || done(pod))
}
