package volume

import (
	"iter"

	corev1 "k8s.io/api/core/v1"
)

// wantedVolume is a volume that at least one container mounts.
type wantedVolume struct {
	corev1.Volume
	// device is set if a container uses it as a raw block device.
	device bool
}

// containerUse is what of a container matters to volumes.
type containerUse struct {
	name     string
	mounts   []corev1.VolumeMount
	devices  []corev1.VolumeDevice
	security *corev1.SecurityContext
}

// containers walks all containers of a pod: init, ordinary, ephemeral.
func containers(pod *corev1.Pod) iter.Seq[containerUse] {
	return func(yield func(containerUse) bool) {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				c := &list[i]
				if !yield(containerUse{c.Name, c.VolumeMounts, c.VolumeDevices, c.SecurityContext}) {
					return
				}
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			c := &pod.Spec.EphemeralContainers[i].EphemeralContainerCommon
			if !yield(containerUse{c.Name, c.VolumeMounts, c.VolumeDevices, c.SecurityContext}) {
				return
			}
		}
	}
}

// wantedVolumes gives the volumes that containers mention, in the pod's order.
func wantedVolumes(pod *corev1.Pod) []wantedVolume {
	mounted, devices := map[string]bool{}, map[string]bool{}
	for c := range containers(pod) {
		for _, m := range c.mounts {
			mounted[m.Name] = true
		}
		for _, d := range c.devices {
			devices[d.Name] = true
		}
	}
	var out []wantedVolume
	for _, v := range pod.Spec.Volumes {
		if mounted[v.Name] || devices[v.Name] {
			out = append(out, wantedVolume{Volume: v, device: devices[v.Name]})
		}
	}
	return out
}

// plugin names the directory of a volume as upstream does ("kubernetes.io~configmap"), so that tools that
// look below the pods directory find what they expect.
func plugin(v *corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		return "kubernetes.io~empty-dir"
	case v.ConfigMap != nil:
		return "kubernetes.io~configmap"
	case v.Secret != nil:
		return "kubernetes.io~secret"
	case v.DownwardAPI != nil:
		return "kubernetes.io~downward-api"
	case v.Projected != nil:
		return "kubernetes.io~projected"
	}
	return "kubernetes.io~other"
}
