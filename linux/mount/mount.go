// Package mount makes, lists and removes mounts: overlays, binds and tmpfs. It
// owns nothing: who mounts, unmounts.
package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay mounts the layers, topmost first, with upper on top at target. With upper ""
// the mount is read-only. Paths may be of any length and hold any byte.
func Overlay(target string, layers []string, upper, work string) error {
	if len(layers) == 0 {
		return errors.New("mount: an overlay needs a layer")
	}
	if upper == "" && len(layers) == 1 {
		return BindReadOnly(layers[0], target)
	}
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return &os.SyscallError{Syscall: "fsopen overlay", Err: err}
	}
	defer unix.Close(fsfd)
	if err := overlayOptions(fsfd, layers, upper, work); err != nil {
		return fmt.Errorf("mount: overlay at %s: %w%s", target, err, kernelMessage(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount: overlay at %s: %w%s", target, err, kernelMessage(fsfd))
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

func overlayOptions(fsfd int, layers []string, upper, work string) error {
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			return fmt.Errorf("%s=%s: %w", key, value, err)
		}
		return nil
	}
	// One "lowerdir+" a layer (Linux 6.7) has no limit on the length of all; before that
	// they are one string of at most 256 bytes for fsconfig, and mount(2) is needed.
	for _, layer := range layers {
		if err := set("lowerdir+", layer); err != nil {
			return err
		}
	}
	if upper != "" {
		if err := set("upperdir", upper); err != nil {
			return err
		}
		if err := set("workdir", work); err != nil {
			return err
		}
	}
	// The layers may be on one filesystem or several; inode numbers need not be unique beyond what
	// the kernel does by itself, and nothing needs to survive a power loss.
	_ = unix.FsconfigSetString(fsfd, "index", "off")
	_ = unix.FsconfigSetFlag(fsfd, "volatile")
	return unix.FsconfigCreate(fsfd)
}

// kernelMessage is what the kernel says about a failed fsconfig.
func kernelMessage(fsfd int) string {
	var out []string
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		out = append(out, strings.TrimSpace(string(buf[:n])))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// OverlayOld is Overlay by way of mount(2), for kernels before 6.7. The layers' paths
// together may take some 4,000 bytes.
func OverlayOld(target string, layers []string, upper, work string) error {
	if upper == "" && len(layers) == 1 {
		return BindReadOnly(layers[0], target)
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)
	lower := make([]string, len(layers))
	for i, l := range layers {
		lower[i] = escape.Replace(l)
	}
	data := "index=off,lowerdir=" + strings.Join(lower, ":")
	if upper != "" {
		data += ",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work)
	}
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount: overlay at %s: the paths of its %d layers are too long for this kernel", target, len(layers))
	}
	if err := unix.Mount("overlay", target, "overlay", 0, data); err != nil {
		return &os.PathError{Op: "mount overlay", Path: target, Err: err}
	}
	return nil
}

// Bind makes source visible at target, with what is mounted below it.
func Bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &os.LinkError{Op: "bind", Old: source, New: target, Err: err}
	}
	return nil
}

// BindReadOnly is Bind, and then the mount at target itself is read-only.
func BindReadOnly(source, target string) error {
	if err := Bind(source, target); err != nil {
		return err
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		_ = Unmount(target)
		return &os.PathError{Op: "remount read-only", Path: target, Err: err}
	}
	return nil
}

// Tmpfs mounts an empty tmpfs of at most size bytes at target.
func Tmpfs(target string, size int64, mode os.FileMode) error {
	m := uint32(mode.Perm())
	if mode&os.ModeSticky != 0 {
		m |= unix.S_ISVTX
	}
	data := "mode=" + strconv.FormatUint(uint64(m), 8)
	if size > 0 {
		data += ",size=" + strconv.FormatInt(size, 10)
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: target, Err: err}
	}
	return nil
}

// Private stops mounts below target from spreading to other namespaces and back.
func Private(target string) error {
	if err := unix.Mount("", target, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "make private", Path: target, Err: err}
	}
	return nil
}

// Unmount removes the mounts at target, lazily where they are in use. What is no mount point is no error.
func Unmount(target string) error {
	for range 64 {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
	return fmt.Errorf("mount: %s: too many mounts on one another", target)
}

// UnmountOne removes the topmost mount at target, and fails if it is in use or there is none.
func UnmountOne(target string) error {
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return nil
}

// IsMountPoint says whether something is mounted at path itself.
func IsMountPoint(path string) (bool, error) {
	var stat unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &stat)
	if err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if stat.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	points, err := Below(path)
	return err == nil && len(points) > 0 && points[0].Path == filepath.Clean(path), err
}

// Point is one mount.
type Point struct {
	Path, FSType, Source string
}

// Below lists the mounts at dir and below it, in order of mounting.
func Below(dir string) ([]Point, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	defer f.Close()
	return below(f, filepath.Clean(dir))
}

func below(r io.Reader, dir string) ([]Point, error) {
	var out []Point
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), 1<<20)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		if !ok {
			continue
		}
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 2 {
			continue
		}
		path := unescape(l[4])
		if path == dir || dir == "/" || strings.HasPrefix(path, dir+"/") {
			out = append(out, Point{Path: path, FSType: r[0], Source: unescape(r[1])})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	return out, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// UnmountBelow removes every mount at dir and below, the last one first. It does not follow
// links and is no error if there is none.
func UnmountBelow(dir string) error {
	points, err := Below(dir)
	if err != nil {
		return err
	}
	var first error
	for i := len(points) - 1; i >= 0; i-- {
		if err := Unmount(points[i].Path); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Overlays says how overlays can be mounted here with layers under dir.
type Overlays int

// What a kernel can do about overlays.
const (
	// OverlaysNone: not at all, layers must be copied.
	OverlaysNone Overlays = iota
	// OverlaysOld: by OverlayOld.
	OverlaysOld
	// OverlaysNew: by Overlay.
	OverlaysNew
)

// ProbeOverlay tries overlays in a directory below dir that it makes and removes. The error says why there
// are none.
func ProbeOverlay(dir string) (Overlays, error) {
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return OverlaysNone, fmt.Errorf("mount: %w", err)
	}
	defer os.RemoveAll(tmp)
	names := []string{"a", "b", "upper", "work", "target"}
	for i, name := range names {
		names[i] = filepath.Join(tmp, name)
		if err := os.Mkdir(names[i], 0o755); err != nil {
			return OverlaysNone, fmt.Errorf("mount: %w", err)
		}
	}
	defer Unmount(names[4])
	err = Overlay(names[4], names[:2], names[2], names[3])
	if err == nil {
		return OverlaysNew, nil
	}
	if OverlayOld(names[4], names[:2], names[2], names[3]) == nil {
		return OverlaysOld, nil
	}
	return OverlaysNone, err
}
