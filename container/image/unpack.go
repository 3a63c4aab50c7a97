package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what one layer may unpack to.
type Limits struct {
	// Bytes of file contents, and entries.
	Bytes, Entries int64
}

// DefaultLimits hold for stores that name none.
var DefaultLimits = Limits{Bytes: 64 << 30, Entries: 4 << 20}

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
	maxPathLength  = 4096
)

// unpacked is what a layer came to.
type unpacked struct {
	Bytes   int64
	Entries int64
}

// unpack applies a layer's tar to the tree at dir, which may hold the layers below. Nothing outside
// dir is ever read or changed, whatever names and links the tar holds: every path is resolved as if
// dir were the root. Whiteouts remove what earlier layers had.
func unpack(dir string, layer io.Reader, limits Limits) (unpacked, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unpacked{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	u := &unpacker{root: root, limits: limits, mine: map[string]bool{}, dirTimes: map[string]time.Time{}, cachedFD: -1}
	defer u.close()
	tr := tar.NewReader(layer)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.total, fmt.Errorf("reading layer: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return u.total, fmt.Errorf("unpacking %q: %w", h.Name, err)
		}
	}
	return u.total, u.setDirTimes()
}

// unpacker is the state of one unpack.
type unpacker struct {
	root   int
	limits Limits
	total  unpacked
	// mine holds the paths that this layer made, and the directories they are in: a whiteout
	// removes only what else is there.
	mine map[string]bool
	// dirTimes are set at the end, as making files changes them.
	dirTimes map[string]time.Time
	// The directory of the entry before, which mostly is that of the next one too.
	cachedDir string
	cachedFD  int
}

func (u *unpacker) close() {
	u.forget()
	unix.Close(u.root)
}

func (u *unpacker) forget() {
	if u.cachedFD >= 0 {
		unix.Close(u.cachedFD)
	}
	u.cachedFD, u.cachedDir = -1, ""
}

// entry applies one member of the tar.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	u.total.Entries++
	if u.total.Entries > u.limits.Entries {
		return fmt.Errorf("the layer has more than %d entries", u.limits.Entries)
	}
	name := path.Clean("/" + h.Name)
	if len(name) > maxPathLength || strings.IndexByte(name, 0) >= 0 || strings.IndexByte(h.Linkname, 0) >= 0 {
		return errors.New("invalid name")
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if name == "/" {
		if h.Typeflag == tar.TypeDir {
			return u.attributes(u.root, ".", h, name)
		}
		return errors.New("the root of a layer must be a directory")
	}
	dir, base := path.Split(name)
	fd, err := u.parent(path.Clean(dir))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(fd, path.Clean(dir), base)
	}
	if err := u.clear(fd, base, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	if err := u.make(fd, base, h, content); err != nil {
		return err
	}
	u.touch(name)
	if h.Typeflag == tar.TypeLink {
		return nil // shares everything with its target
	}
	return u.attributes(fd, base, h, name)
}

// touch notes that this layer made a path.
func (u *unpacker) touch(name string) {
	for !u.mine[name] && name != "/" {
		u.mine[name] = true
		name = path.Dir(name)
	}
}

// inRoot opens a path below the root without following anything out of it.
func (u *unpacker) inRoot(name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(u.root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return fd, err
	}
}

// parent opens the directory at dir, making it and what is missing above. The unpacker keeps the descriptor.
func (u *unpacker) parent(dir string) (int, error) {
	if dir == "/" {
		return u.root, nil
	}
	if u.cachedFD >= 0 && u.cachedDir == dir {
		return u.cachedFD, nil
	}
	fd, err := u.inRoot(dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		up, base := path.Split(dir)
		upfd, perr := u.parent(path.Clean(up))
		if perr != nil {
			return -1, perr
		}
		merr := unix.Mkdirat(upfd, base, 0o755)
		if merr == nil {
			merr = unix.Fchmodat(upfd, base, 0o755, 0)
		}
		if merr != nil {
			return -1, fmt.Errorf("making %s: %w", dir, merr)
		}
		u.touch(dir)
		fd, err = unix.Openat(upfd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", dir, err)
	}
	u.forget()
	u.cachedFD, u.cachedDir = fd, dir
	return fd, nil
}

// whiteout removes a name of the layers below, or all of a directory.
func (u *unpacker) whiteout(fd int, dir, base string) error {
	u.forgetBelow()
	if base == whiteoutOpaque {
		names, err := readNames(fd)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := u.hide(fd, dir, name); err != nil {
				return err
			}
		}
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // AUFS's own bookkeeping
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errors.New("invalid whiteout")
	}
	return u.hide(fd, dir, name)
}

// hide removes a name with all below it, but for what this layer made.
func (u *unpacker) hide(fd int, dir, name string) error {
	full := path.Join(dir, name)
	if !u.mine[full] {
		return removeAt(fd, name)
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil //nolint:nilerr // not a directory: this layer's own
	}
	defer unix.Close(sub)
	names, err := readNames(sub)
	if err != nil {
		return err
	}
	for _, child := range names {
		if err := u.hide(sub, full, child); err != nil {
			return err
		}
	}
	return nil
}

// clear makes room for a new entry: an existing directory stays for a directory, all else goes.
func (u *unpacker) clear(fd int, base string, dir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if dir && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	u.forgetBelow()
	return removeAt(fd, base)
}

// forgetBelow drops the kept directory when it may be about to go. The caller's descriptor may be
// that very one, so that it is only forgotten by name.
func (u *unpacker) forgetBelow() { u.cachedDir = "\x00" }

func (u *unpacker) make(fd int, base string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		err := unix.Mkdirat(fd, base, 0o755)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	case tar.TypeReg, tar.TypeRegA: //nolint:staticcheck // old tars have it
		return u.file(fd, base, h, content)
	case tar.TypeLink:
		return u.link(fd, base, h.Linkname)
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return device(fd, base, h)
	}
	return fmt.Errorf("unknown type %q", h.Typeflag)
}

func (u *unpacker) file(fd int, base string, h *tar.Header, content io.Reader) error {
	if h.Size < 0 || u.total.Bytes+h.Size > u.limits.Bytes {
		return fmt.Errorf("the layer has more than %d bytes", u.limits.Bytes)
	}
	out, err := unix.Openat(fd, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(out), base)
	n, err := io.Copy(f, content)
	u.total.Bytes += n
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (u *unpacker) link(fd int, base, target string) error {
	dir, name := path.Split(path.Clean("/" + target))
	if name == "" {
		return errors.New("a hard link to the root")
	}
	from, err := u.inRoot(path.Clean(dir)+"/", unix.O_PATH|unix.O_DIRECTORY)
	if path.Clean(dir) == "/" {
		from, err = unix.Openat(u.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer unix.Close(from)
	if err := unix.Linkat(from, name, fd, base, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

func device(fd int, base string, h *tar.Header) error {
	mode, dev := uint32(0o600), 0
	switch h.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	default:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return errors.New("invalid device number")
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		mode |= unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			mode = mode&^unix.S_IFMT | unix.S_IFCHR
			if dev == 0 {
				return errors.New("a forged whiteout")
			}
		}
	}
	return unix.Mknodat(fd, base, mode, dev)
}

// attributes sets owner, mode, extended attributes and time, in the order that keeps them.
func (u *unpacker) attributes(fd int, base string, h *tar.Header, name string) error {
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if err := xattrs(fd, base, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		u.dirTimes[name] = h.ModTime
		return nil
	}
	return setTime(fd, base, h.ModTime)
}

// xattrs sets those extended attributes that can mean something in a container, and none that would mean
// something to the host (trusted.overlay.* would forge whiteouts).
func xattrs(fd int, base string, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if attr != "security.capability" && !strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "system.posix_acl_") {
			continue
		}
		if strings.HasPrefix(attr, "user.overlay.") || h.Typeflag == tar.TypeSymlink {
			continue
		}
		// There is no setxattrat before Linux 6.13; the name cannot have become a link since.
		err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), attr, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}

func setTime(fd int, base string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if t.Before(time.Unix(0, 0)) || t.Year() > 2261 {
		ts = unix.Timespec{}
	}
	err := unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	return nil
}

func (u *unpacker) setDirTimes() error {
	for name, t := range u.dirTimes {
		dir, base := path.Split(name)
		fd, err := u.parent(path.Clean(dir))
		if err != nil {
			continue // removed by a later entry
		}
		if base == "" {
			base = "."
		}
		if err := setTime(fd, base, t); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// readNames lists a directory given by any descriptor of it.
func readNames(fd int) ([]string, error) {
	d, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(d), "dir")
	defer f.Close()
	return f.Readdirnames(-1)
}

// removeAt removes a name with all below it, following no link and leaving no filesystem.
func removeAt(fd int, name string) error {
	err := unix.Unlinkat(fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	sub, oerr := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return err
	}
	names, rerr := readNames(sub)
	for _, child := range names {
		if rerr != nil {
			break
		}
		rerr = removeAt(sub, child)
	}
	unix.Close(sub)
	if rerr != nil {
		return rerr
	}
	return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
}
