package volume

import (
	"context"
	"fmt"
	"os"
	"sort"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/linux/podfs"
)

// Usage is what one volume takes up, as stats and eviction see it.
type Usage struct {
	// Volume is its name in the pod.
	Volume string
	// Claim is the name of the claim behind it, "" if there is none.
	Claim string
	// UsedBytes and Inodes are what the volume's own files take up.
	UsedBytes, Inodes int64
	// FS is the file system that it lies on.
	FS podfs.FS
	// LimitBytes is the sizeLimit of an emptyDir, 0 for none.
	LimitBytes int64
	// LocalStorage tells whether the bytes count towards the pod's ephemeral-storage: those of
	// emptyDirs on disk and of config maps.
	LocalStorage bool
}

// Usages measures the volumes of a prepared pod. EmptyDirs in memory are asked of their file system, the
// others are walked, so that the cost is that of du; hostPath volumes are left out, as
// upstream does. Nothing is measured unless somebody asks.
func (m *Manager) Usages(ctx context.Context, uid types.UID) ([]Usage, error) {
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p == nil {
		return nil, nil
	}
	p.mu.Lock()
	pod, made := p.pod, p.made
	p.mu.Unlock()
	var out []Usage
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		mount, ok := made[v.Name]
		if !ok || v.HostPath != nil || v.Image != nil || mount.Block {
			continue
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		u, err := measure(pod, v, mount)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return out, err
		}
		out = append(out, u)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Volume < out[j].Volume })
	return out, nil
}

func measure(pod *corev1.Pod, v *corev1.Volume, mount Mount) (Usage, error) {
	u := Usage{Volume: v.Name, Claim: claimName(pod, v)}
	fs, err := podfs.StatFS(mount.HostPath)
	if err != nil {
		return u, err
	}
	u.FS = fs
	onDisk := (v.EmptyDir != nil && mount.Medium == corev1.StorageMediumDefault) || v.ConfigMap != nil
	u.LocalStorage = onDisk
	if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil {
		u.LimitBytes = v.EmptyDir.SizeLimit.Value()
	}
	if mount.Medium != corev1.StorageMediumDefault { // a file system of its own
		u.UsedBytes, u.Inodes = fs.UsedBytes, fs.InodesUsed
		return u, nil
	}
	tree, err := podfs.TreeUsage(mount.HostPath)
	u.UsedBytes, u.Inodes = tree.Bytes, tree.Inodes
	return u, err
}

// OverLimit gives the message of the eviction that upstream would carry out for the first emptyDir on disk
// that is larger than its sizeLimit, "" if there is none.
func OverLimit(usages []Usage, pod *corev1.Pod) string {
	for _, u := range usages {
		if u.LimitBytes == 0 || !u.LocalStorage || u.UsedBytes <= u.LimitBytes {
			continue
		}
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if v.Name == u.Volume && v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil {
				return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
			}
		}
	}
	return ""
}

// HasSizeLimit tells whether a pod has an emptyDir on disk whose size has to be watched.
func HasSizeLimit(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		e := pod.Spec.Volumes[i].EmptyDir
		if e != nil && e.Medium == corev1.StorageMediumDefault && e.SizeLimit != nil && !e.SizeLimit.IsZero() {
			return true
		}
	}
	return false
}
