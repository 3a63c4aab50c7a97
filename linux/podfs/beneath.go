package podfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrEscapes says that a path leads out of the directory that it has to stay in.
var ErrEscapes = errors.New("the path leads out of its directory")

// BindBeneath shows at target what the relative path names inside base. Links are followed
// as long as they stay inside base, and whoever writes in base cannot redirect the mount, because the path
// is resolved once, by the kernel (openat2, RESOLVE_BENEATH), and the result is mounted by
// its descriptor. What is absent is created, as directories with the permissions of base.
// target must not exist; it is made, as a file or a directory like its source.
func BindBeneath(base, path, target string, readOnly bool) error {
	fd, err := openBeneath(base, path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := makeTarget(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	if err := bind(fmt.Sprintf("/proc/self/fd/%d", fd), target, readOnly); err != nil {
		return fmt.Errorf("%s of %s: %w", path, base, err)
	}
	return nil
}

// openBeneath opens path inside base for use as a mount source, creating directories.
func openBeneath(base, path string) (int, error) {
	root, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: base, Err: err}
	}
	defer unix.Close(root)
	clean := filepath.Clean(path)
	fd, err := beneath(root, clean)
	if err != unix.ENOENT {
		return fd, pathError(path, err)
	}
	if err := mkdirBeneath(root, clean); err != nil {
		return -1, pathError(path, err)
	}
	fd, err = beneath(root, clean)
	return fd, pathError(path, err)
}

func beneath(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func pathError(path string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EXDEV:
		return fmt.Errorf("%s: %w", path, ErrEscapes)
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}

// mkdirBeneath makes the directories of a path that are missing.
func mkdirBeneath(root int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	at := ""
	parent, err := unix.Dup(root)
	if err != nil {
		return err
	}
	defer func() { unix.Close(parent) }()
	for _, name := range strings.Split(path, "/") {
		at = filepath.Join(at, name)
		fd, err := beneath(root, at)
		if err == unix.ENOENT {
			if fd, err = mkdirAt(parent, name, mode); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		unix.Close(parent)
		parent = fd
	}
	return nil
}

// mkdirAt makes a directory with exactly this mode and the group that a setgid parent gives.
func mkdirAt(parent int, name string, mode uint32) (int, error) {
	err := unix.Mkdirat(parent, name, mode&0o777)
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	fd, oerr := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if oerr != nil {
		return -1, oerr
	}
	if err == nil {
		if err := unix.Fchmod(fd, mode); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// makeTarget makes an empty directory or file to mount on, with the directories above.
func makeTarget(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
