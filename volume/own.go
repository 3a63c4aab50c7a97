package volume

import (
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/linux/podfs"
)

// The bits that fsGroup adds, as upstream does: the group may read and write (or only
// read) files, and list and enter directories, whose new entries it inherits.
const (
	groupWrites   fs.FileMode = 0o660
	groupReads    fs.FileMode = 0o440
	groupExecutes fs.FileMode = 0o110
)

// ownTree gives a tree to a group. The policy OnRootMismatch skips a tree whose
// root has the group and bits already.
func ownTree(dir string, gid int64, readOnly bool, policy *corev1.PodFSGroupChangePolicy) error {
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch && owned(dir, gid, readOnly) {
		return nil
	}
	// The root comes last: it is what OnRootMismatch looks at, also after a crash half way.
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := os.Lchown(p, -1, int(gid)); err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return nil
		}
		return os.Chmod(p, info.Mode()|groupBits(info.IsDir(), readOnly))
	})
	if err != nil {
		return err
	}
	return ownOne(dir, gid, readOnly)
}

// ownOne is ownTree for the directory alone.
func ownOne(dir string, gid int64, readOnly bool) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Lchown(dir, -1, int(gid)); err != nil {
		return err
	}
	return os.Chmod(dir, info.Mode()|groupBits(true, readOnly))
}

func groupBits(dir, readOnly bool) fs.FileMode {
	bits := groupWrites
	if readOnly {
		bits = groupReads
	}
	if dir {
		bits |= groupExecutes | fs.ModeSetgid
	}
	return bits
}

// owned tells whether the root of a tree has the group and the bits.
func owned(dir string, gid int64, readOnly bool) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	want := groupBits(true, readOnly)
	group, ok := podfs.Group(info)
	return ok && group == gid && info.Mode()&want == want
}
