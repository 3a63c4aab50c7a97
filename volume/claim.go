package volume

import (
	"errors"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// claimName is the claim that a volume stands for; that of an ephemeral volume is named after
// pod and volume.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// claimSources lists the claims of a pod, and the volumes they are bound to, beside the sources
// that it has already.
func claimSources(s store.Snapshot, pod *corev1.Pod, wanted []wantedVolume, node string) map[source]struct{} {
	out := sourcesOf(pod, wanted, node)
	for i := range wanted {
		name := claimName(pod, &wanted[i].Volume)
		if name == "" {
			continue
		}
		out[source{Resource: "persistentvolumeclaims", Namespace: pod.Namespace, Name: name}] = struct{}{}
		if pvc, ok := client.PersistentVolumeClaims.Get(s, pod.Namespace, name); ok && pvc.Spec.VolumeName != "" {
			out[source{Resource: "persistentvolumes", Name: pvc.Spec.VolumeName}] = struct{}{}
		}
	}
	return out
}

// setUpClaim finds the persistent volume behind a claim and makes it ready if it is one
// that lies on this node.
func (m *Manager) setUpClaim(s store.Snapshot, p *podState, w *wantedVolume) (Mount, error) {
	pv, readOnly, err := resolveClaim(s, p.pod, w)
	if err != nil {
		return Mount{}, err
	}
	if err := m.onThisNode(s, pv); err != nil {
		return Mount{}, err
	}
	if w.device {
		return blockMount(pv, readOnly)
	}
	switch {
	case pv.Spec.HostPath != nil:
		if err := checkHostPath(pv.Spec.HostPath); err != nil {
			return Mount{}, err
		}
		return Mount{HostPath: pv.Spec.HostPath.Path, ReadOnly: readOnly}, nil
	case pv.Spec.Local != nil:
		return localMount(p.pod, pv, readOnly)
	case pv.Spec.CSI != nil:
		return Mount{}, &processError{fmt.Errorf("the CSI driver %q of persistent volume %q is not registered on this node", pv.Spec.CSI.Driver, pv.Name)}
	}
	return Mount{}, &processError{fmt.Errorf("no volume plugin on this node matches persistent volume %q", pv.Name)}
}

// resolveClaim checks a claim as upstream does before it mounts anything. It is pure.
func resolveClaim(s store.Snapshot, pod *corev1.Pod, w *wantedVolume) (*corev1.PersistentVolume, bool, error) {
	name := claimName(pod, &w.Volume)
	fail := func(format string, args ...any) (*corev1.PersistentVolume, bool, error) {
		return nil, false, &processError{fmt.Errorf("error processing PVC %s/%s: %w", pod.Namespace, name, fmt.Errorf(format, args...))}
	}
	pvc, ok := client.PersistentVolumeClaims.Get(s, pod.Namespace, name)
	if !ok {
		return fail("failed to fetch PVC from API server: persistentvolumeclaims %q not found", name)
	}
	if w.Ephemeral != nil && !metav1.IsControlledBy(pvc, pod) {
		return fail("PVC %s/%s was not created for pod %s/%s (pod is not owner)", pvc.Namespace, pvc.Name, pod.Namespace, pod.Name)
	}
	switch {
	case pvc.DeletionTimestamp != nil && !slices.Contains(pvc.Finalizers, "kubernetes.io/pvc-protection"):
		return fail("PVC is being deleted")
	case pvc.Status.Phase == corev1.ClaimLost:
		return fail("PVC lost its underlying PersistentVolume %q", pvc.Spec.VolumeName)
	case pvc.Status.Phase != corev1.ClaimBound || pvc.Spec.VolumeName == "":
		return fail("PVC is not bound")
	}
	pv, ok := client.PersistentVolumes.Get(s, "", pvc.Spec.VolumeName)
	if !ok {
		return fail("failed to get PV %s from PVC %q errored: persistentvolumes %q not found", pvc.Spec.VolumeName, name, pvc.Spec.VolumeName)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != pvc.UID {
		return fail("found PV object %q with an incorrect or missing ClaimRef", pv.Name)
	}
	block := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock
	switch {
	case block && !w.device:
		return fail("volume %s has volumeMode Block, but is specified in volumeMounts", w.Name)
	case !block && w.device:
		return fail("volume %s has volumeMode Filesystem, but is specified in volumeDevices", w.Name)
	}
	readOnly := w.PersistentVolumeClaim != nil && w.PersistentVolumeClaim.ReadOnly
	if len(pvc.Spec.AccessModes) == 1 && pvc.Spec.AccessModes[0] == corev1.ReadOnlyMany {
		readOnly = true
	}
	return pv, readOnly, nil
}

// onThisNode holds a persistent volume to its node affinity.
func (m *Manager) onThisNode(s store.Snapshot, pv *corev1.PersistentVolume) error {
	if pv.Spec.NodeAffinity == nil {
		return nil
	}
	node, ok := client.Nodes.Get(s, "", m.cfg.NodeName)
	if !ok {
		return fmt.Errorf("node %q not found", m.cfg.NodeName)
	}
	if err := volumehelpers.CheckNodeAffinity(pv, node.Labels); err != nil {
		return fmt.Errorf("volume node affinity check failed: %w", err)
	}
	return nil
}

// localMount checks a local volume and gives it to the pod's group.
func localMount(pod *corev1.Pod, pv *corev1.PersistentVolume, readOnly bool) (Mount, error) {
	path := pv.Spec.Local.Path
	info, err := os.Stat(path)
	if err != nil {
		return Mount{}, fmt.Errorf("path %q does not exist", path)
	}
	if !info.IsDir() {
		return Mount{}, fmt.Errorf("local volume %q is no directory; a device needs a file system that this node does not make", path)
	}
	if gid := fsGroup(pod); gid != nil && !readOnly {
		if err := ownTree(path, *gid, false, pod.Spec.SecurityContext.FSGroupChangePolicy); err != nil {
			return Mount{}, fmt.Errorf("applyFSGroup failed for vol %s: %w", pv.Name, err)
		}
	}
	return Mount{HostPath: path, ReadOnly: readOnly}, nil
}

// blockMount gives the device of a volume with volumeMode Block.
func blockMount(pv *corev1.PersistentVolume, readOnly bool) (Mount, error) {
	path := ""
	switch {
	case pv.Spec.Local != nil:
		path = pv.Spec.Local.Path
	case pv.Spec.HostPath != nil:
		path = pv.Spec.HostPath.Path
	default:
		return Mount{}, &processError{errors.New("no block volume plugin on this node matches persistent volume \"" + pv.Name + "\"")}
	}
	if err := checkType(path, "block device", os.ModeDevice); err != nil {
		return Mount{}, err
	}
	return Mount{HostPath: path, ReadOnly: readOnly, Block: true}, nil
}
