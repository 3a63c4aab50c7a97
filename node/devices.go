package node

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/node/devices"
)

// allocateDevices gives a pod what it asks for of device plugins.
func (a *Agent) allocateDevices(ctx context.Context, pod *corev1.Pod) error {
	if a.cfg.Devices == nil || !a.cfg.Devices.Uses(pod) {
		return nil
	}
	keeps := map[types.UID]bool{}
	for _, other := range a.counted() {
		keeps[other.UID] = true
	}
	return a.cfg.Devices.Allocate(ctx, pod, func(uid types.UID) bool { return keeps[uid] })
}

func (a *Agent) releaseDevices(uid types.UID) error {
	if a.cfg.Devices == nil {
		return nil
	}
	return a.cfg.Devices.Release(uid)
}

// noDevices takes note that a pod has not got its devices. As upstream does, a node rejects such a pod, unless others are about to leave
// what it needs, or it ran already.
func (w *worker) noDevices(err error) {
	w.v.volumes.failed(w.a.cfg.Now(), retryVolumesFirst, retryVolumesMost)
	if w.wokenVolumes {
		w.v.volumes.until = time.Time{} // there may be some by now
	}
	if w.startCtx.Err() != nil || errors.Is(err, devices.ErrLater) {
		return
	}
	r := &rejection{"UnexpectedAdmissionError", "Allocate failed due to " + err.Error() + ", which is unexpected"}
	if w.sandboxID != "" {
		w.event(corev1.EventTypeWarning, r.reason, r.message)
		return
	}
	w.reject(r)
	w.v.torn = step{} // what there is of it is undone
}

// health is how the devices of a pod's containers are, by name.
func (a *Agent) health(pod *corev1.Pod) map[string][]corev1.ResourceStatus {
	var all map[string][]corev1.ResourceStatus
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		var st []corev1.ResourceStatus
		if a.cfg.Devices != nil && len(c.Resources.Limits) > 0 {
			st = a.cfg.Devices.Health(pod.UID, c.Name)
		}
		if a.cfg.Claims != nil && len(c.Resources.Claims) > 0 {
			st = append(st, a.cfg.Claims.Health(pod, c)...)
		}
		if len(st) > 0 {
			if all == nil {
				all = map[string][]corev1.ResourceStatus{}
			}
			all[c.Name] = st
		}
	}
	return all
}
