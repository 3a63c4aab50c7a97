// Package reference tells which other objects an object names: the secrets, config maps and claims of a pod, the secrets of a
// volume. It is pure, reads nothing but what it is given, and says nothing about whether they exist.
package reference

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/api/core"
)

// Visit is called with the name of each object; false ends the walk.
type Visit func(name string) bool

// only drops empty names, which refer to nothing.
func (v Visit) only(name string) bool { return name == "" || v(name) }

// Secrets walks the secrets that a pod's spec names directly, of all sorts of containers, in its own namespace. A name may
// come more than once. It returns false if visit did.
func Secrets(pod *corev1.Pod, visit Visit) bool {
	for i := range pod.Spec.ImagePullSecrets {
		if !visit.only(pod.Spec.ImagePullSecrets[i].Name) {
			return false
		}
	}
	return environments(&pod.Spec, func(from []corev1.EnvFromSource, env []corev1.EnvVar) bool {
		for i := range from {
			if r := from[i].SecretRef; r != nil && !visit.only(r.Name) {
				return false
			}
		}
		for i := range env {
			if f := env[i].ValueFrom; f != nil && f.SecretKeyRef != nil && !visit.only(f.SecretKeyRef.Name) {
				return false
			}
		}
		return true
	}) && volumes(&pod.Spec, func(v *corev1.Volume) bool {
		if v.Projected != nil {
			for i := range v.Projected.Sources {
				if s := v.Projected.Sources[i].Secret; s != nil && !visit.only(s.Name) {
					return false
				}
			}
			return true
		}
		return visit.only(volumeSecret(v))
	})
}

// volumeSecret is the one secret that a volume of a pod names, "" for none.
func volumeSecret(v *corev1.Volume) string {
	var ref *corev1.LocalObjectReference
	switch {
	case v.Secret != nil:
		return v.Secret.SecretName
	case v.AzureFile != nil:
		return v.AzureFile.SecretName
	case v.CephFS != nil:
		ref = v.CephFS.SecretRef
	case v.Cinder != nil:
		ref = v.Cinder.SecretRef
	case v.FlexVolume != nil:
		ref = v.FlexVolume.SecretRef
	case v.RBD != nil:
		ref = v.RBD.SecretRef
	case v.ScaleIO != nil:
		ref = v.ScaleIO.SecretRef
	case v.ISCSI != nil:
		ref = v.ISCSI.SecretRef
	case v.StorageOS != nil:
		ref = v.StorageOS.SecretRef
	case v.CSI != nil:
		ref = v.CSI.NodePublishSecretRef
	}
	if ref == nil {
		return ""
	}
	return ref.Name
}

// ConfigMaps walks the config maps that a pod's spec names, as Secrets does.
func ConfigMaps(pod *corev1.Pod, visit Visit) bool {
	return environments(&pod.Spec, func(from []corev1.EnvFromSource, env []corev1.EnvVar) bool {
		for i := range from {
			if r := from[i].ConfigMapRef; r != nil && !visit.only(r.Name) {
				return false
			}
		}
		for i := range env {
			if f := env[i].ValueFrom; f != nil && f.ConfigMapKeyRef != nil && !visit.only(f.ConfigMapKeyRef.Name) {
				return false
			}
		}
		return true
	}) && volumes(&pod.Spec, func(v *corev1.Volume) bool {
		if v.ConfigMap != nil {
			return visit.only(v.ConfigMap.Name)
		}
		if v.Projected != nil {
			for i := range v.Projected.Sources {
				if m := v.Projected.Sources[i].ConfigMap; m != nil && !visit.only(m.Name) {
					return false
				}
			}
		}
		return true
	})
}

// environments walks what the environments of all containers are made from.
func environments(spec *corev1.PodSpec, visit func([]corev1.EnvFromSource, []corev1.EnvVar) bool) bool {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if !visit(list[i].EnvFrom, list[i].Env) {
				return false
			}
		}
	}
	for i := range spec.EphemeralContainers {
		if c := &spec.EphemeralContainers[i]; !visit(c.EnvFrom, c.Env) {
			return false
		}
	}
	return true
}

func volumes(spec *corev1.PodSpec, visit func(*corev1.Volume) bool) bool {
	for i := range spec.Volumes {
		if !visit(&spec.Volumes[i]) {
			return false
		}
	}
	return true
}

// VolumeClaims walks the persistent volume claims of a pod, those of its ephemeral volumes among them.
func VolumeClaims(pod *corev1.Pod, visit Visit) bool {
	return volumes(&pod.Spec, func(v *corev1.Volume) bool {
		switch {
		case v.PersistentVolumeClaim != nil:
			return visit.only(v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			return visit(core.EphemeralClaimName(pod, v))
		}
		return true
	})
}

// ResourceClaims walks the resource claims of a pod: those it names, those made for it from templates (which its status tells),
// and the one made for its extended resources (https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/).
func ResourceClaims(pod *corev1.Pod, visit Visit) bool {
	for i := range pod.Spec.ResourceClaims {
		claim := &pod.Spec.ResourceClaims[i]
		if claim.ResourceClaimName != nil {
			if !visit.only(*claim.ResourceClaimName) {
				return false
			}
			continue
		}
		for j := range pod.Status.ResourceClaimStatuses {
			made := &pod.Status.ResourceClaimStatuses[j]
			if claim.ResourceClaimTemplateName != nil && made.Name == claim.Name && made.ResourceClaimName != nil && !visit.only(*made.ResourceClaimName) {
				return false
			}
		}
	}
	if e := pod.Status.ExtendedResourceClaimStatus; e != nil {
		return visit.only(e.ResourceClaimName)
	}
	return true
}

// VolumeSecrets walks the secrets that a node needs to mount a persistent volume. Those that only controllers use are left out.
func VolumeSecrets(pv *corev1.PersistentVolume, visit func(namespace, name string) bool) bool {
	own := "" // where older volumes, which name no namespace, have their secrets
	if pv.Spec.ClaimRef != nil {
		own = pv.Spec.ClaimRef.Namespace
	}
	one := func(ref *corev1.SecretReference, fallback string) bool {
		switch {
		case ref == nil || ref.Name == "":
			return true
		case ref.Namespace == "":
			return visit(fallback, ref.Name)
		}
		return visit(ref.Namespace, ref.Name)
	}
	s := &pv.Spec.PersistentVolumeSource
	switch {
	case s.CSI != nil:
		return one(s.CSI.NodePublishSecretRef, "") && one(s.CSI.NodeStageSecretRef, "") && one(s.CSI.NodeExpandSecretRef, "")
	case s.AzureFile != nil:
		ref := corev1.SecretReference{Name: s.AzureFile.SecretName}
		if s.AzureFile.SecretNamespace != nil {
			ref.Namespace = *s.AzureFile.SecretNamespace
		}
		return one(&ref, own)
	case s.CephFS != nil:
		return one(s.CephFS.SecretRef, own)
	case s.Cinder != nil:
		return one(s.Cinder.SecretRef, "")
	case s.FlexVolume != nil:
		return one(s.FlexVolume.SecretRef, own)
	case s.RBD != nil:
		return one(s.RBD.SecretRef, own)
	case s.ScaleIO != nil:
		return one(s.ScaleIO.SecretRef, own)
	case s.ISCSI != nil:
		return one(s.ISCSI.SecretRef, own)
	case s.StorageOS != nil && s.StorageOS.SecretRef != nil:
		return one(&corev1.SecretReference{Namespace: s.StorageOS.SecretRef.Namespace, Name: s.StorageOS.SecretRef.Name}, "")
	}
	return true
}

// Any names a sort of API objects that a pod refers to, in the words in which a node is told that its mirror pods may not;
// "" if the pod refers to none. An error means a volume of a sort that is not known.
func Any(pod *corev1.Pod) (string, error) {
	none := func(string) bool { return false }
	switch {
	case pod.Spec.ServiceAccountName != "":
		return "serviceaccounts", nil
	case !Secrets(pod, none):
		return "secrets", nil
	case !ConfigMaps(pod, none):
		return "configmaps", nil
	case len(pod.Spec.ResourceClaims) > 0:
		return "resourceclaims", nil
	}
	for i := range pod.Spec.Volumes {
		if what, err := anyOfVolume(&pod.Spec.Volumes[i]); what != "" || err != nil {
			return what, err
		}
	}
	return "", nil
}

func anyOfVolume(v *corev1.Volume) (string, error) {
	switch {
	case v.ConfigMap != nil:
		return "configmaps (via configmap volumes)", nil
	case v.Secret != nil:
		return "secrets (via secret volumes)", nil
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)", nil
	case v.Glusterfs != nil:
		return "endpoints (via glusterFS volumes)", nil
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims", nil
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)", nil
	case v.AzureFile != nil:
		return "secrets (via azureFile volumes)", nil
	case v.Projected != nil:
		return anyOfProjection(v)
	case v.VolumeSource == corev1.VolumeSource{}:
		return "", fmt.Errorf("unknown volume type for volume  %q", v.Name)
	}
	return "", nil
}

func anyOfProjection(v *corev1.Volume) (string, error) {
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		switch {
		case s.ConfigMap != nil:
			return "configmaps (via projected volumes)", nil
		case s.Secret != nil:
			return "secrets (via projected volumes)", nil
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)", nil
		case s.ClusterTrustBundle != nil:
			return "clustertrustbundles", nil
		case s.PodCertificate != nil:
			return "podcertificates", nil
		case s.DownwardAPI == nil:
			return "", fmt.Errorf("unknown source for projected volume %q", v.Name)
		}
	}
	return "", nil
}
