package podfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/mount"
)

// TmpfsOptions qualify a memory file system.
type TmpfsOptions struct {
	// SizeBytes is the limit, 0 for the kernel's default of half the memory.
	SizeBytes int64
	// Mode of the root directory.
	Mode os.FileMode
	// NoSwap keeps the pages out of swap where the kernel can (6.3), silently not elsewhere.
	NoSwap bool
}

// Tmpfs mounts a memory file system on an existing directory.
func Tmpfs(target string, o TmpfsOptions) error {
	opts := []string{fmt.Sprintf("mode=%04o", o.Mode.Perm())}
	if o.SizeBytes > 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.NoSwap {
		err := unix.Mount("tmpfs", target, "tmpfs", 0, strings.Join(append(opts, "noswap"), ","))
		if !errors.Is(err, unix.EINVAL) {
			return mountError("tmpfs", target, err)
		}
	}
	return mountError("tmpfs", target, unix.Mount("tmpfs", target, "tmpfs", 0, strings.Join(opts, ",")))
}

// Hugetlbfs mounts a file system of huge pages of the given size on an existing directory.
func Hugetlbfs(target string, pageBytes, sizeBytes int64) error {
	opts := "pagesize=" + strconv.FormatInt(pageBytes, 10)
	if sizeBytes > 0 {
		opts += ",size=" + strconv.FormatInt(sizeBytes, 10)
	}
	return mountError("hugetlbfs", target, unix.Mount("nodev", target, "hugetlbfs", 0, opts))
}

// bind shows source at target, which exists and is of the same sort (directory or not).
func bind(source, target string, readOnly bool) error {
	if err := mount.Bind(source, target); err != nil || !readOnly {
		return err
	}
	if err := remountReadOnly(target); err != nil {
		return errors.Join(err, mount.Unmount(target))
	}
	return nil
}

// remountReadOnly keeps the flags that the mount has: inside a user namespace the
// kernel refuses to clear them.
func remountReadOnly(target string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: target, Err: err}
	}
	const kept = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME
	flags := uintptr(st.Flags)&kept | unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY
	return mountError("bind", target, unix.Mount("", target, "", flags, ""))
}

func mountError(what, target string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("mount %s on %s: %w", what, target, err)
}

// Mounted tells whether something is mounted on path itself. A path that does not exist is not.
func Mounted(path string) (bool, error) {
	ok, err := mount.IsMountPoint(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return ok, err
}
