package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/podfs"
	"coracle.dev/coracle/store"
)

// volumeDir is where a volume that the manager makes itself lies: what may be secret in memory, the rest
// in the pod's directory.
func (m *Manager) volumeDir(uid types.UID, v *corev1.Volume) string {
	base := m.PodDir(uid)
	if inMemory(v) {
		base = m.memory.podDir(uid)
	}
	return filepath.Join(base, "volumes", plugin(v), v.Name)
}

// inMemory tells which volumes never reach a disk.
func inMemory(v *corev1.Volume) bool {
	return v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil
}

// setUp makes one volume. p.mu is held.
func (m *Manager) setUp(ctx context.Context, s store.Snapshot, p *podState, w *wantedVolume) (Mount, error) {
	v := &w.Volume
	switch {
	case v.EmptyDir != nil:
		return m.setUpEmptyDir(s, p, v)
	case fromObjects(v):
		return m.setUpFiles(ctx, s, p, v)
	case v.HostPath != nil:
		if err := checkHostPath(v.HostPath); err != nil {
			return Mount{}, err
		}
		return Mount{HostPath: v.HostPath.Path}, nil
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return m.setUpClaim(s, p, w)
	}
	return Mount{}, unsupported(v)
}

// unsupported names the plugin that a volume would need.
func unsupported(v *corev1.Volume) error {
	name := ""
	switch {
	case v.CSI != nil:
		return &processError{fmt.Errorf("the CSI driver %q is not registered on this node", v.CSI.Driver)}
	case v.NFS != nil:
		name = "kubernetes.io/nfs"
	case v.ISCSI != nil:
		name = "kubernetes.io/iscsi"
	case v.FC != nil:
		name = "kubernetes.io/fc"
	case v.GitRepo != nil:
		name = "kubernetes.io/git-repo"
	}
	if name == "" {
		return &processError{errors.New("failed to get Plugin from volumeSpec for volume \"" + v.Name + "\" err=no volume plugin matched")}
	}
	return &processError{fmt.Errorf("the volume plugin %q is not available on this node", name)}
}

// setUpEmptyDir makes the directory, or mounts memory on it.
func (m *Manager) setUpEmptyDir(s store.Snapshot, p *podState, v *corev1.Volume) (Mount, error) {
	dir := m.volumeDir(p.uid, v)
	fresh, err := makeDir(dir, 0o777)
	if err != nil {
		return Mount{}, err
	}
	medium := v.EmptyDir.Medium
	if medium != corev1.StorageMediumDefault {
		mounted, err := podfs.Mounted(dir)
		if err != nil {
			return Mount{}, err
		}
		if !mounted {
			if err := m.mountMedium(s, p, v, dir); err != nil {
				return Mount{}, err
			}
			fresh = true
		}
	}
	if gid := fsGroup(p.pod); gid != nil && (fresh || !owned(dir, *gid, false)) {
		if err := ownTree(dir, *gid, false, nil); err != nil {
			return Mount{}, err
		}
	}
	return Mount{HostPath: dir, Medium: medium}, nil
}

// mountMedium mounts what an emptyDir asks for in place of the node's disk.
func (m *Manager) mountMedium(s store.Snapshot, p *podState, v *corev1.Volume, dir string) error {
	switch medium := v.EmptyDir.Medium; {
	case medium == corev1.StorageMediumMemory:
		node, _ := client.Nodes.Get(s, "", m.cfg.NodeName)
		return podfs.Tmpfs(dir, podfs.TmpfsOptions{
			SizeBytes: memorySize(p.pod, v.EmptyDir.SizeLimit, node),
			Mode:      0o777,
			NoSwap:    true,
		})
	default:
		page, err := hugePageSize(p.pod, medium)
		if err != nil {
			return err
		}
		var size int64
		if v.EmptyDir.SizeLimit != nil {
			size = v.EmptyDir.SizeLimit.Value()
		}
		if err := podfs.Hugetlbfs(dir, page, size); err != nil {
			return err
		}
		return os.Chmod(dir, 0o777)
	}
}

// memorySize is the limit of an emptyDir in memory: the least of its own limit, what the
// pod's containers may use together, and what the node can allocate (KEP-1967). 0 is none.
func memorySize(pod *corev1.Pod, limit *resource.Quantity, node *corev1.Node) int64 {
	var size int64
	least := func(q resource.Quantity) {
		if v := q.Value(); v > 0 && (size == 0 || v < size) {
			size = v
		}
	}
	if node != nil {
		least(node.Status.Allocatable[corev1.ResourceMemory])
	}
	if allLimitMemory(pod) {
		least(resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[corev1.ResourceMemory])
	}
	if limit != nil {
		least(*limit)
	}
	return size
}

// allLimitMemory tells whether the pod as a whole has a memory limit.
func allLimitMemory(pod *corev1.Pod) bool {
	if pod.Spec.Resources != nil {
		if _, ok := pod.Spec.Resources.Limits[corev1.ResourceMemory]; ok {
			return true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if q := list[i].Resources.Limits[corev1.ResourceMemory]; q.IsZero() {
				return false
			}
		}
	}
	return true
}

// hugePageSize is the page size that a medium names ("HugePages-2Mi"), or for plain "HugePages" the
// only one that the pod's containers request.
func hugePageSize(pod *corev1.Pod, medium corev1.StorageMedium) (int64, error) {
	if rest, ok := cutPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix)); ok {
		q, err := resource.ParseQuantity(rest)
		if err != nil {
			return 0, fmt.Errorf("medium %q: %w", medium, err)
		}
		return q.Value(), nil
	}
	if medium != corev1.StorageMediumHugePages {
		return 0, fmt.Errorf("unknown storage medium %q", medium)
	}
	var size int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for name := range list[i].Resources.Requests {
				rest, ok := cutPrefix(string(name), corev1.ResourceHugePagesPrefix)
				if !ok {
					continue
				}
				q, err := resource.ParseQuantity(rest)
				if err != nil {
					return 0, err
				}
				if size != 0 && size != q.Value() {
					return 0, errors.New("medium HugePages can be used only if container requests use one huge page size")
				}
				size = q.Value()
			}
		}
	}
	if size == 0 {
		return 0, errors.New("hugePages storage requested, but there is no resource request for huge pages")
	}
	return size, nil
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return "", false
}

// setUpFiles makes a volume of objects, or brings it up to date.
func (m *Manager) setUpFiles(ctx context.Context, s store.Snapshot, p *podState, v *corev1.Volume) (Mount, error) {
	files, err := planFiles(s, p.pod, v, m.cfg.NodeName)
	if err != nil {
		return Mount{}, err
	}
	if err := m.fetchTokens(ctx, p, v.Name, files); err != nil {
		return Mount{}, err
	}
	if err := m.fetchCertificates(ctx, s, p, v, files); err != nil {
		return Mount{}, err
	}
	if inMemory(v) {
		if err := m.memory.enter(p.uid); err != nil {
			return Mount{}, err
		}
	}
	dir := m.volumeDir(p.uid, v)
	fresh, err := makeDir(dir, 0o777)
	if err != nil {
		return Mount{}, err
	}
	gid := fsGroup(p.pod)
	var own func(string) error
	if gid != nil {
		own = func(path string) error { return ownTree(path, *gid, true, nil) }
	}
	if _, err := writeFiles(dir, files, m.cfg.Now(), own); err != nil {
		return Mount{}, err
	}
	if gid != nil && (fresh || !owned(dir, *gid, true)) {
		if err := ownOne(dir, *gid, true); err != nil {
			return Mount{}, err
		}
	}
	return Mount{HostPath: dir, ReadOnly: true}, nil
}

// makeDir makes a directory with exactly this mode, and those above it for root alone. It
// reports whether it was not there.
func makeDir(dir string, mode fs.FileMode) (bool, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return false, err
	}
	err := os.Mkdir(dir, mode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, os.Chmod(dir, mode)
}

// prepareImages asks for the images of image volumes. It runs without the pod's lock, because a
// pull may take long.
func (m *Manager) prepareImages(ctx context.Context, pod *corev1.Pod, wanted []wantedVolume) (map[string]Mount, map[string]error) {
	mounts, errs := map[string]Mount{}, map[string]error{}
	for i := range wanted {
		v := &wanted[i].Volume
		if v.Image == nil {
			continue
		}
		ref := v.Image.Reference
		if m.cfg.Image != nil {
			var err error
			if ref, err = m.cfg.Image(ctx, pod, v); err != nil {
				errs[v.Name] = err
				continue
			}
		}
		mounts[v.Name] = Mount{Image: ref, ReadOnly: true}
	}
	return mounts, errs
}

// Unprepare undoes all that Prepare did for a pod, in this run of the program or an
// earlier one: it unmounts what is mounted below the pod's directory and removes the directory with all that is
// in it, also what the node agent put there. It never enters a mount to remove. It is
// idempotent; containers of the pod must be gone.
func (m *Manager) Unprepare(ctx context.Context, uid types.UID) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	m.mu.Lock()
	p := m.pods[uid]
	m.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gone = true
		m.follow(p, nil)
	}
	if err := m.tearDown(ctx, uid); err != nil {
		return err
	}
	m.mu.Lock()
	if m.pods[uid] == p {
		delete(m.pods, uid)
	}
	m.mu.Unlock()
	return nil
}

// tearDown unmounts and removes.
func (m *Manager) tearDown(ctx context.Context, uid types.UID) error {
	dir := m.PodDir(uid)
	for _, pattern := range []string{"volumes/*/*", "volume-subpaths/*/*/*"} {
		found, err := filepath.Glob(filepath.Join(globEscape(dir), pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			mounted, err := podfs.Mounted(path)
			if err != nil || !mounted {
				continue // a mount that could not be asked about shows below
			}
			if err := mount.Unmount(path); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(removeDir(dir), m.memory.leave(uid))
}

// removeDir removes a tree. The table of all mounts, which is long on a node with many pods, is read only if a
// mount is found in it that was not expected.
func removeDir(dir string) error {
	err := podfs.RemoveTree(dir)
	if err == nil {
		return nil
	}
	real, rerr := filepath.EvalSymlinks(dir) // the table has no links
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	if below := mount.UnmountBelow(real); below != nil {
		return errors.Join(err, below)
	}
	return podfs.RemoveTree(dir)
}

// globEscape takes the meaning from characters that Glob would read as a pattern.
func globEscape(path string) string {
	var out []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, path[i])
	}
	return string(out)
}

// Orphans removes what is left of pods that no longer exist: every directory below the root for
// which keep is false. It returns the UIDs that were cleaned. It is meant to be called once after a start,
// before or while pods are prepared.
func (m *Manager) Orphans(ctx context.Context, keep func(types.UID) bool) ([]types.UID, error) {
	found := map[types.UID]struct{}{}
	for _, dir := range []string{m.cfg.Root, m.memory.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != memoryName {
				found[types.UID(e.Name())] = struct{}{}
			}
		}
	}
	var gone []types.UID
	var errs []error
	for _, uid := range slices.Sorted(maps.Keys(found)) {
		if keep(uid) {
			continue
		}
		if err := m.Unprepare(ctx, uid); err != nil {
			errs = append(errs, fmt.Errorf("orphaned pod %s: %w", uid, err))
			continue
		}
		gone = append(gone, uid)
	}
	errs = append(errs, m.memory.clear())
	return gone, errors.Join(errs...)
}
