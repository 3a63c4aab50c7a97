package volume

import (
	"os"
	"path/filepath"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/linux/mount"
	"coracle.dev/coracle/linux/podfs"
)

// memoryName is the directory in Config.Root on which memory is mounted. No pod's UID begins with a dot.
const memoryName = ".memory"

// ramDir is the one file system in memory that holds what may be secret of all pods, below a directory for
// each: secrets, projected and downward API volumes.
//
// Upstream mounts one for each such volume. Every container start copies the table of all mounts and reads it
// through, so that a hundred pods with a token each would make every further start slower; and making directories in a
// file system that stands is a quarter of the work. It is mounted for the first pod and unmounted after the
// last, so that nothing is left on a node without pods.
type ramDir struct {
	dir string
	mu  sync.Mutex // held while it is mounted and unmounted, and while a pod's directory comes and goes
}

func (m *ramDir) podDir(uid types.UID) string { return filepath.Join(m.dir, string(uid)) }

// enter makes sure that the file system is there, and the pod's directory in it.
func (m *ramDir) enter(uid types.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := makeDir(m.dir, 0o750); err != nil {
		return err
	}
	mounted, err := podfs.Mounted(m.dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := podfs.Tmpfs(m.dir, podfs.TmpfsOptions{Mode: 0o750, NoSwap: true}); err != nil {
			return err
		}
	}
	_, err = makeDir(m.podDir(uid), 0o750)
	return err
}

// leave removes the pod's directory, and the file system if it was the last.
func (m *ramDir) leave(uid types.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := removeDir(m.podDir(uid)); err != nil {
		return err
	}
	return m.tidy()
}

// clear unmounts the file system if no pod is in it, as a crash may leave it.
func (m *ramDir) clear() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tidy()
}

func (m *ramDir) tidy() error {
	left, err := os.ReadDir(m.dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil || len(left) > 0 {
		return err
	}
	if err := mount.Unmount(m.dir); err != nil {
		return err
	}
	return podfs.RemoveTree(m.dir)
}
