package statefulset

import (
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile"
	"coracle.dev/coracle/reconcile/claim"
	"coracle.dev/coracle/store"
)

// ofClaim gives the sets that could wait for a volume claim to be gone.
func ofClaim(s store.Snapshot, ev store.Event) []reconcile.Key {
	c, ok := ev.Entry.Object.(*corev1.PersistentVolumeClaim)
	if !ok || !ev.Deleted {
		return nil
	}
	var keys []reconcile.Key
	for set := range client.StatefulSets.List(s, c.Namespace) {
		for i := range set.Spec.VolumeClaimTemplates {
			prefix := set.Spec.VolumeClaimTemplates[i].Name + "-"
			if len(c.Name) <= len(prefix) || c.Name[:len(prefix)] != prefix {
				continue
			}
			if _, ok := ordinalIn(set, c.Name[len(prefix):]); ok {
				keys = append(keys, reconcile.Key{Namespace: set.Namespace, Name: set.Name})
			}
		}
	}
	return keys
}

// claimOf is a volume claim of pod number n, and whether it is there.
func (p *pass) claimOf(i, n int) (*corev1.PersistentVolumeClaim, bool) {
	return client.PersistentVolumeClaims.Get(p.snap, p.set.Namespace, claimName(p.set, p.set.Spec.VolumeClaimTemplates[i].Name, n))
}

// claims makes the volume claims of pod number n that are not there.
func (p *pass) claims(n int) []reconcile.Write {
	var writes []reconcile.Write
	for i := range p.set.Spec.VolumeClaimTemplates {
		if _, ok := p.claimOf(i, n); ok {
			continue
		}
		t := &p.set.Spec.VolumeClaimTemplates[i]
		c := &corev1.PersistentVolumeClaim{ObjectMeta: *t.ObjectMeta.DeepCopy(), Spec: *t.Spec.DeepCopy()}
		c.Name, c.Namespace = claimName(p.set, t.Name, n), p.set.Namespace
		c.Labels = maps.Clone(c.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, p.set.Spec.Selector.MatchLabels)
		if p.retention().WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType {
			c.OwnerReferences = []metav1.OwnerReference{p.reference()}
		}
		writes = append(writes, p.told(reconcile.Write{Verb: reconcile.Create, Resource: client.PersistentVolumeClaims.Name, Object: c},
			"Create", fmt.Sprintf("Claim %s Pod %s in StatefulSet %s success", c.Name, podName(p.set, n), p.set.Name),
			fmt.Sprintf("Claim %s for Pod %s in StatefulSet %s failed error: ", c.Name, podName(p.set, n), p.set.Name)))
	}
	return writes
}

// claimsGoing tells whether a claim of pod number n, which is to be made, is that of a pod before it and about to
// go away with what is on it: the new pod has to wait for a new claim.
func (p *pass) claimsGoing(n int) bool {
	pod := &metav1.ObjectMeta{Name: podName(p.set, n)}
	for i := range p.set.Spec.VolumeClaimTemplates {
		c, ok := p.claimOf(i, n)
		switch {
		case !ok:
		case c.DeletionTimestamp != nil:
			p.events = append(p.events, *p.event("Warning", "FailedCreate", "Create "+failure(p.set, pod.Name)+fmt.Sprintf("pvc %s is being deleted", c.Name)))
			return true
		case p.retention().WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType && slices.ContainsFunc(c.OwnerReferences, named("v1", "Pod", pod)):
			return true
		}
	}
	return false
}

func (p *pass) reference() metav1.OwnerReference {
	return claim.Reference("apps/v1", "StatefulSet", p.set)
}

// retention is what happens to claims (KEP-1847).
func (p *pass) retention() appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy {
	if r := p.set.Spec.PersistentVolumeClaimRetentionPolicy; r != nil {
		return *r
	}
	return appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
		WhenScaled:  appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
	}
}

// named tells the references to an object of that name, whichever it is.
func named(apiVersion, kind string, obj metav1.Object) func(metav1.OwnerReference) bool {
	return func(r metav1.OwnerReference) bool {
		return r.APIVersion == apiVersion && r.Kind == kind && r.Name == obj.GetName()
	}
}

// retain brings the owners of the claims of pod number n in line with the retention policy. condemned says
// that the pod is being scaled away.
func (p *pass) retain(n int, pod *corev1.Pod, condemned bool) {
	for i := range p.set.Spec.VolumeClaimTemplates {
		had, ok := p.claimOf(i, n)
		if !ok || had.DeletionTimestamp != nil {
			continue
		}
		owners, conflicting := p.owners(had, pod, condemned)
		if slices.EqualFunc(owners, had.OwnerReferences, sameOwner) {
			continue
		}
		if conflicting {
			p.events = append(p.events, *p.event("Warning", "ConflictingController", fmt.Sprintf(
				"PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim", had.Name)))
		}
		c := had.DeepCopy()
		c.OwnerReferences = owners
		p.pods = append(p.pods, reconcile.Write{Verb: reconcile.Update, Resource: client.PersistentVolumeClaims.Name, Object: c})
	}
}

func sameOwner(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && controls(a) == controls(b)
}

func controls(r metav1.OwnerReference) bool { return r.Controller != nil && *r.Controller }

// owners are the owners that a claim is to have. A claim that is left over from an earlier pod or set of the
// name stays as it is, for the garbage collector; one that somebody else controls (conflicting) is let go.
func (p *pass) owners(c *corev1.PersistentVolumeClaim, pod *corev1.Pod, condemned bool) (refs []metav1.OwnerReference, conflicting bool) {
	isSet, isPod := named("apps/v1", "StatefulSet", p.set), named("v1", "Pod", pod)
	for _, r := range c.OwnerReferences {
		switch {
		case isSet(r) && r.UID != p.set.UID, isPod(r) && r.UID != pod.UID:
			return c.OwnerReferences, false
		case isSet(r) || isPod(r):
			continue
		}
		conflicting = conflicting || controls(r)
		refs = append(refs, r)
	}
	const remove = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	policy := p.retention()
	if conflicting = conflicting && (policy.WhenScaled == remove || policy.WhenDeleted == remove); conflicting {
		return refs, true
	}
	switch {
	case condemned && policy.WhenScaled == remove:
		refs = append(refs, claim.Reference("v1", "Pod", pod))
	case policy.WhenDeleted == remove:
		refs = append(refs, p.reference())
	}
	return refs, false
}
