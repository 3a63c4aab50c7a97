package podfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"coracle.dev/coracle/linux/mount"
)

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTmpfsAndUnmount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { mount.UnmountBelow(dir) })
	must(t, Tmpfs(dir, TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o751, NoSwap: true}))
	if ok, err := Mounted(dir); !ok || err != nil {
		t.Fatalf("%v %v", ok, err)
	}
	st, err := StatFS(dir)
	if err != nil || st.CapacityBytes != 1<<20 {
		t.Fatalf("%+v %v", st, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o751 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	must(t, Tmpfs(dir, TmpfsOptions{Mode: 0o700}), mount.Unmount(dir)) // both layers
	if ok, err := Mounted(dir); ok || err != nil {
		t.Fatalf("%v %v", ok, err)
	}
	must(t, mount.Unmount(dir), mount.Unmount(dir+"/none"))
	if ok, err := Mounted(dir + "/none"); ok || err != nil {
		t.Fatalf("%v %v", ok, err)
	}
}

func TestBindReadOnly(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { mount.UnmountBelow(dir) })
	src, dst := dir+"/src", dir+"/dst"
	must(t, os.Mkdir(src, 0o700), os.Mkdir(dst, 0o700), bind(src, dst, true))
	if err := os.WriteFile(dst+"/f", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("written: %v", err)
	}
	must(t, os.WriteFile(src+"/f", nil, 0o600))
}

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	keep := dir + "/keep"
	tree := dir + "/tree"
	must(t, os.Mkdir(keep, 0o700), os.WriteFile(keep+"/f", nil, 0o600), os.Mkdir(tree, 0o700),
		os.Symlink(keep, tree+"/link"), os.Symlink("nowhere", tree+"/dangling"), unix.Mkfifo(tree+"/fifo", 0o600))
	for i := range 2000 {
		must(t, os.WriteFile(tree+"/"+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676)), nil, 0o600))
	}
	deep, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 3000 { // deeper than paths may be long
		must(t, unix.Mkdirat(deep, "d", 0o700))
		next, err := unix.Openat(deep, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(deep)
		deep = next
	}
	unix.Close(deep)
	must(t, RemoveTree(tree), RemoveTree(tree), RemoveTree(dir+"/none/none"))
	if _, err := os.Lstat(tree); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep + "/f"); err != nil {
		t.Fatal("a link was followed")
	}
	must(t, RemoveTree(keep+"/f"))
}

func TestRemoveTreeStopsAtMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { mount.UnmountBelow(dir) })
	must(t, os.MkdirAll(dir+"/tree/m", 0o700), os.Mkdir(dir+"/other", 0o700), os.WriteFile(dir+"/other/f", nil, 0o600),
		bind(dir+"/other", dir+"/tree/m", false)) // the same file system, seen twice
	if err := RemoveTree(dir + "/tree"); !errors.Is(err, ErrMountInside) {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/other/f"); err != nil {
		t.Fatal("the mount was entered")
	}
	must(t, mount.UnmountBelow(dir+"/tree"), RemoveTree(dir+"/tree"))
}

func TestTreeUsage(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o700), os.WriteFile(dir+"/a/f", make([]byte, 100<<10), 0o600), os.Link(dir+"/a/f", dir+"/a/b/again"),
		os.WriteFile(dir+"/sparse", nil, 0o600), os.Truncate(dir+"/sparse", 1<<30))
	u, err := TreeUsage(dir)
	if err != nil || u.Inodes != 5 || u.Bytes < 100<<10 || u.Bytes > 200<<10 {
		t.Fatalf("%+v %v", u, err)
	}
	if _, err := TreeUsage(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestBindBeneath(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { mount.UnmountBelow(dir) })
	base := dir + "/base"
	must(t, os.Mkdir(base, 0o770), os.Chmod(base, 0o770|fs.ModeSetgid), os.WriteFile(base+"/f", []byte("x"), 0o600), os.Symlink("/etc", base+"/abs"))
	must(t, BindBeneath(base, "new/dir", dir+"/t1", false), os.WriteFile(dir+"/t1/made", nil, 0o600), BindBeneath(base, "f", dir+"/t2", true), BindBeneath(base, ".", dir+"/t3", false))
	if _, err := os.Stat(filepath.Join(base, "new/dir/made")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(base + "/new"); err != nil || info.Mode() != 0o770|fs.ModeSetgid|fs.ModeDir {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(dir+"/t2", nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatal(err)
	}
	for _, path := range []string{"abs", "abs/passwd", "../x", "abs/new"} {
		if err := BindBeneath(base, path, dir+"/t4", false); !errors.Is(err, ErrEscapes) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
