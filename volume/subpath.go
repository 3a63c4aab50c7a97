package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/podfs"
)

// SubPath gives the path on the node for a volumeMount with a subPath (after expansion of
// subPathExpr): a mount of what lies there, made so that whoever writes in the volume cannot lead it
// elsewhere. index is that of the volumeMount in the container. What is absent is created as
// a directory with the volume's permissions. Idempotent; Unprepare undoes it. Call it for each
// start of a container: the mount of an earlier start is replaced, so that it shows what lies at the path now.
func (m *Manager) SubPath(_ context.Context, uid types.UID, volume Mount, volumeName, container string, index int, subPath string) (string, error) {
	if err := checkUID(uid); err != nil {
		return "", err
	}
	if err := checkSubPath(subPath); err != nil {
		return "", err
	}
	if strings.ContainsAny(volumeName+container, "/\x00") {
		return "", errors.New("invalid name of volume or container")
	}
	target := filepath.Join(m.PodDir(uid), "volume-subpaths", volumeName, container, strconv.Itoa(index))
	if err := mount.Unmount(target); err != nil {
		return "", err
	}
	if err := podfs.RemoveTree(target); err != nil {
		return "", err
	}
	if err := podfs.BindBeneath(volume.HostPath, subPath, target, volume.ReadOnly); err != nil {
		if errors.Is(err, podfs.ErrEscapes) {
			return "", fmt.Errorf("subpath %q not within volume path %q", subPath, volume.HostPath)
		}
		return "", err
	}
	return target, nil
}

// checkSubPath refuses what the API does not allow either.
func checkSubPath(p string) error {
	if filepath.IsAbs(p) {
		return fmt.Errorf("error SubPath `%s` must not be an absolute path", p)
	}
	for item := range strings.SplitSeq(p, "/") {
		if item == ".." {
			return fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", p)
		}
	}
	if p == "" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("invalid subPath %q", p)
	}
	return nil
}
