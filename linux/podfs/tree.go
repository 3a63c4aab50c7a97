package podfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrMountInside says that a tree was not removed in full because something is mounted in it.
var ErrMountInside = errors.New("a file system is mounted inside")

// maxDepth is how many directories are held open at once. Deeper ones are moved up first, so
// that a tree of any depth can be removed with a bounded number of files.
const maxDepth = 64

// openDir opens a directory entry without following a link or entering another mount.
func openDir(dirfd int, name string) (int, error) {
	fd, err := unix.Openat2(dirfd, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err == unix.EXDEV {
		return -1, ErrMountInside
	}
	return fd, err
}

// RemoveTree removes path and all below it. It follows no links and enters no mounts: where
// one is in the way, the rest is removed and the error is ErrMountInside. An absent path is no
// error.
func RemoveTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	r := &remover{root: -1}
	if err := r.remove(parent, filepath.Base(path), 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// remover removes one tree.
type remover struct {
	// root is the tree's top directory, to which deep ones are moved.
	root int
	// moved counts them.
	moved int
}

func (r *remover) remove(dirfd int, name string, depth int) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM && err != unix.EBUSY {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	if depth >= maxDepth {
		r.moved++
		up := ".removing-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(r.moved)
		if err := unix.Renameat(dirfd, name, r.root, up); err != nil {
			return &os.PathError{Op: "rename", Path: name, Err: err}
		}
		return nil // the top directory is read again until it is empty
	}
	fd, oerr := openDir(dirfd, name)
	switch {
	case oerr == unix.ENOENT:
		return nil
	case oerr == unix.ENOTDIR || oerr == unix.ELOOP:
		return &os.PathError{Op: "unlink", Path: name, Err: err} // the first answer stands
	case oerr != nil:
		return &os.PathError{Op: "open", Path: name, Err: oerr}
	}
	if depth == 0 {
		r.root = fd
	}
	err = r.empty(fd, depth)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// empty removes what is in a directory, which it closes.
func (r *remover) empty(fd, depth int) error {
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		if len(names) == 0 {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		var errs []error
		for _, name := range names {
			if err := r.remove(fd, name, depth+1); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			return errors.Join(errs...)
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// Usage is what a tree takes up.
type Usage struct {
	Bytes, Inodes int64
}

// TreeUsage adds up the disk blocks and inodes of a tree as du -x does: files with several
// links count once, other mounts not at all. Entries that vanish meanwhile are passed over.
func TreeUsage(path string) (Usage, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	c := &counter{seen: map[uint64]struct{}{}}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return Usage{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	c.dev = st.Dev
	c.add(&st)
	err = c.walk(fd, 0)
	return c.Usage, err
}

type counter struct {
	Usage
	dev  uint64
	seen map[uint64]struct{} // inodes with several links
}

func (c *counter) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, ok := c.seen[st.Ino]; ok {
			return
		}
		c.seen[st.Ino] = struct{}{}
	}
	c.Bytes += st.Blocks * 512
	c.Inodes++
}

// walk counts what is in a directory, which it closes.
func (c *counter) walk(fd, depth int) error {
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		if len(names) == 0 {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT) != nil || st.Dev != c.dev {
				continue
			}
			c.add(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth >= 4*maxDepth {
				continue
			}
			sub, err := openDir(fd, name)
			if err != nil {
				continue
			}
			if err := c.walk(sub, depth+1); err != nil {
				return err
			}
		}
	}
}

// FS is how full a file system is.
type FS struct {
	CapacityBytes, AvailableBytes, UsedBytes int64
	Inodes, InodesFree, InodesUsed           int64
}

// StatFS asks the file system that path lies on.
func StatFS(path string) (FS, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return FS{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := st.Frsize
	return FS{
		CapacityBytes:  int64(st.Blocks) * unit,
		AvailableBytes: int64(st.Bavail) * unit,
		UsedBytes:      int64(st.Blocks-st.Bfree) * unit,
		Inodes:         int64(st.Files),
		InodesFree:     int64(st.Ffree),
		InodesUsed:     int64(st.Files - st.Ffree),
	}, nil
}

// Group gives the group that owns a file, from what os.Lstat returned.
func Group(info os.FileInfo) (int64, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int64(st.Gid), true
}
