package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/volume"
)

// Local storage has no limit that the kernel would keep: a pod with one is measured now and then,
// pods without never.
const (
	measureEvery   = 15 * time.Second
	measureTimeout = 2 * time.Minute
	reasonEvicted  = "Evicted"
	evictGrace     = time.Second
)

// storage is what a pod takes up on the node's disk, in bytes.
type storage struct {
	volumes []volume.Usage
	// containers is what each one has written, its log included.
	containers map[string]int64
}

// limitsStorage tells whether a pod has a limit of local storage.
func limitsStorage(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if e := pod.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			return true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if positive(list[i].Resources.Limits, corev1.ResourceEphemeralStorage) {
				return true
			}
		}
	}
	return false
}

// exceeded says which limit of local storage a pod exceeds, in upstream's words, "" for none.
func exceeded(pod *corev1.Pod, s storage) string {
	total := int64(0)
	for _, v := range s.volumes {
		if v.LimitBytes > 0 && v.UsedBytes > v.LimitBytes {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Volume, emptyDirLimit(pod, v.Volume))
		}
		if v.LocalStorage {
			total += v.UsedBytes
		}
	}
	for _, used := range s.containers {
		total += used
	}
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if limit, ok := limits[corev1.ResourceEphemeralStorage]; ok && limit.Sign() > 0 && allLimit(pod, corev1.ResourceEphemeralStorage) && total > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		limit := c.Resources.Limits[corev1.ResourceEphemeralStorage]
		if limit.Sign() > 0 && s.containers[c.Name] > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

func emptyDirLimit(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name && v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil {
			return v.EmptyDir.SizeLimit.String()
		}
	}
	return ""
}

// measure measures the pod's local storage if it is limited and it is time, and gives the time of the next.
func (w *worker) measure(ctx context.Context, now time.Time) time.Time {
	if w.v.stop != nil || w.v.volumes.state != done || w.measuring || !limitsStorage(w.v.pod) {
		return time.Time{}
	}
	if w.measureAt.IsZero() {
		w.measureAt = now.Add(measureEvery)
	}
	if w.measureAt.After(now) {
		return w.measureAt
	}
	w.measuring = true
	pod, ids := w.v.pod, map[string]string{}
	for name, c := range w.v.containers {
		if c.current.running() {
			ids[name] = c.current.id
		}
	}
	w.deed(ctx, measureTimeout, func(ctx context.Context) func() {
		s, err := w.storage(ctx, pod, ids)
		return func() {
			w.measuring, w.measureAt = false, w.a.cfg.Now().Add(measureEvery)
			if err != nil {
				w.log.Debug("measure local storage", "err", err)
				return
			}
			w.v.evict = exceeded(pod, s)
		}
	})
	return time.Time{}
}

// storage measures volumes, containers and their logs.
func (w *worker) storage(ctx context.Context, pod *corev1.Pod, ids map[string]string) (storage, error) {
	s := storage{containers: map[string]int64{}}
	var err error
	if s.volumes, err = w.a.cfg.Volumes.Usages(ctx, pod.UID); err != nil {
		return s, err
	}
	logs := w.a.logDir(pod.Namespace, pod.Name, pod.UID)
	for name, id := range ids {
		u, err := w.a.cfg.Runtime.DiskUsage(ctx, id)
		if err != nil {
			continue // it has ended meanwhile
		}
		s.containers[name] = int64(u.Bytes)
		files, _ := os.ReadDir(filepath.Join(logs, name))
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				s.containers[name] += info.Size()
			}
		}
	}
	return s, nil
}
