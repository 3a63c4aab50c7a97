package authz

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"

	"coracle.dev/coracle/api/reference"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// The relations between the node of a question and the object that it is about. Each reads the state anew: a node has
// some hundred pods, and what is asked often (secrets, config maps) is found among those of one namespace.

// pods walks the pods on the node in a namespace, without those of files on the node, which refer to nothing.
func (q question) pods(namespace string, visit func(*corev1.Pod) bool) bool {
	for pod := range client.Pods.Index(q.snap, "node", q.node) {
		if pod.Namespace != namespace {
			continue
		}
		if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; !mirror && visit(pod) {
			return true
		}
	}
	return false
}

// is returns a visit that ends the walk at a name.
func is(want string) func(string) bool { return func(name string) bool { return name != want } }

func (q question) usesConfigMap() bool {
	return q.pods(q.Namespace, func(p *corev1.Pod) bool { return !reference.ConfigMaps(p, is(q.Name)) })
}

func (q question) usesResourceClaim() bool {
	return q.pods(q.Namespace, func(p *corev1.Pod) bool { return !reference.ResourceClaims(p, is(q.Name)) })
}

func (q question) usesAccount() bool {
	return q.pods(q.Namespace, func(p *corev1.Pod) bool { return p.Spec.ServiceAccountName == q.Name })
}

func (q question) usesClaim() bool { return q.mounts(q.Namespace, q.Name) }

// mounts tells whether a pod on the node has the claim as a volume.
func (q question) mounts(namespace, claim string) bool {
	for pod := range client.Pods.Index(q.snap, "claim", namespace+"/"+claim) {
		if pod.Spec.NodeName == q.node {
			return true
		}
	}
	return false
}

func (q question) usesVolume() bool {
	pv, ok := client.PersistentVolumes.Get(q.snap, "", q.Name)
	return ok && pv.Spec.ClaimRef != nil && q.mounts(pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name)
}

// usesSecret tells whether a pod on the node names the secret, or a persistent volume of such a pod needs it. The
// volume's secret may be in any namespace.
func (q question) usesSecret() bool {
	return q.pods(q.Namespace, func(p *corev1.Pod) bool { return !reference.Secrets(p, is(q.Name)) }) || q.mountsWithSecret()
}

func (q question) mountsWithSecret() bool {
	for pod := range client.Pods.Index(q.snap, "node", q.node) {
		found := !reference.VolumeClaims(pod, func(claim string) bool {
			for pv := range client.PersistentVolumes.Index(q.snap, "claim", pod.Namespace+"/"+claim) {
				if !reference.VolumeSecrets(pv, func(namespace, name string) bool { return namespace != q.Namespace || name != q.Name }) {
					return false
				}
			}
			return true
		})
		if found {
			return true
		}
	}
	return false
}

func (q question) hasPod() bool {
	pod, ok := client.Pods.Get(q.snap, q.Namespace, q.Name)
	return ok && pod.Spec.NodeName == q.node
}

func (q question) hasAttachment() bool {
	a, ok := client.VolumeAttachments.Get(q.snap, "", q.Name)
	return ok && a.Spec.NodeName == q.node
}

func (q question) hasSlice() bool {
	e := q.snap.Get(store.Key{Resource: "resourceslices.resource.k8s.io", Name: q.Name})
	if e == nil {
		return false
	}
	s, ok := e.Object.(*resourcev1.ResourceSlice)
	return ok && s.Spec.NodeName != nil && *s.Spec.NodeName == q.node
}

func (q question) hasCertificateRequest() bool {
	e := q.snap.Get(store.Key{Resource: "podcertificaterequests.certificates.k8s.io", Namespace: q.Namespace, Name: q.Name})
	if e == nil {
		return false
	}
	r, ok := e.Object.(*certificatesv1.PodCertificateRequest)
	return ok && string(r.Spec.NodeName) == q.node
}
