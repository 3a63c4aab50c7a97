package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "linux/mount: these tests mount and need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// dirs makes directories below one that goes, with all that is mounted there, with the test.
func dirs(t *testing.T, names ...string) map[string]string {
	t.Helper()
	base := t.TempDir()
	t.Cleanup(func() {
		if points, err := Below(base); err != nil || len(points) > 0 {
			t.Errorf("left: %v %v", points, err)
			_ = UnmountBelow(base)
		}
	})
	out := map[string]string{"": base}
	for _, name := range names {
		out[name] = filepath.Join(base, name)
		if err := os.MkdirAll(out[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOverlay(t *testing.T) {
	for name, overlay := range map[string]func(string, []string, string, string) error{"new": Overlay, "old": OverlayOld} {
		t.Run(name, func(t *testing.T) {
			odd := `lo:w,e r\1`
			d := dirs(t, odd, "mid", "top", "upper", "work", "target")
			write(t, filepath.Join(d[odd], "a"), "low")
			write(t, filepath.Join(d[odd], "b"), "low")
			write(t, filepath.Join(d["mid"], "b"), "mid")
			write(t, filepath.Join(d["top"], "c"), "top")
			if err := overlay(d["target"], []string{d["top"], d["mid"], d[odd]}, d["upper"], d["work"]); err != nil {
				t.Fatal(err)
			}
			defer Unmount(d["target"])
			for file, want := range map[string]string{"a": "low", "b": "mid", "c": "top"} {
				if got, err := os.ReadFile(filepath.Join(d["target"], file)); err != nil || string(got) != want {
					t.Errorf("%s: %q %v", file, got, err)
				}
			}
			write(t, filepath.Join(d["target"], "a"), "changed")
			if got, _ := os.ReadFile(filepath.Join(d["upper"], "a")); string(got) != "changed" {
				t.Errorf("upper has %q", got)
			}
			if got, _ := os.ReadFile(filepath.Join(d[odd], "a")); string(got) != "low" {
				t.Errorf("the lowest layer has %q", got)
			}
		})
	}
}

func TestOverlayReadOnly(t *testing.T) {
	d := dirs(t, "a", "b", "one", "two")
	write(t, filepath.Join(d["a"], "f"), "a")
	for target, layers := range map[string][]string{d["one"]: {d["a"]}, d["two"]: {d["b"], d["a"]}} {
		if err := Overlay(target, layers, "", ""); err != nil {
			t.Fatal(err)
		}
		defer Unmount(target)
		if got, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(got) != "a" {
			t.Errorf("%q %v", got, err)
		}
		if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing: %v", err)
		}
	}
	if err := Overlay(d["one"], nil, "", ""); err == nil {
		t.Error("an overlay of nothing")
	}
	if err := Overlay(d["one"], []string{"/no/such", d["a"]}, d["b"], d["two"]); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a missing layer: %v", err)
	}
}

func TestManyLayers(t *testing.T) {
	d := dirs(t, "upper", "work", "target")
	var layers []string
	for i := range 120 {
		dir := filepath.Join(d[""], strings.Repeat("long", 15), fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, fmt.Sprint(i)), "")
		layers = append(layers, dir)
	}
	if err := OverlayOld(d["target"], layers, d["upper"], d["work"]); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("%v", err)
	}
	if err := Overlay(d["target"], layers, d["upper"], d["work"]); err != nil {
		t.Fatal(err)
	}
	defer Unmount(d["target"])
	if list, err := os.ReadDir(d["target"]); err != nil || len(list) != 120 {
		t.Errorf("%d %v", len(list), err)
	}
}

func TestBelowAndUnmount(t *testing.T) {
	d := dirs(t, "a b", "c", "c/d", "cc")
	for _, name := range []string{"a b", "c", "cc"} {
		if err := Tmpfs(d[name], 1<<20, 0o777|os.ModeSticky); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(d["c/d"], 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Bind(d["a b"], d["c/d"]); err != nil {
		t.Fatal(err)
	}
	if err := Tmpfs(d["c"], 0, 0o700); err != nil { // a second one on top
		t.Fatal(err)
	}
	points, err := Below(d["c"])
	if err != nil || len(points) != 3 || points[1].Path != d["c/d"] || points[0].FSType != "tmpfs" {
		t.Errorf("%+v %v", points, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(d["cc"], &st); err != nil || st.Mode&0o7777 != 0o1777 {
		t.Errorf("%o %v", st.Mode, err)
	}
	for name, want := range map[string]bool{"a b": true, "c": true, "": false} {
		if got, err := IsMountPoint(d[name]); err != nil || got != want {
			t.Errorf("%q is a mount point: %v %v", name, got, err)
		}
	}
	if _, err := IsMountPoint(filepath.Join(d[""], "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	held, err := os.Open(d["cc"])
	if err != nil {
		t.Fatal(err)
	}
	if err := UnmountOne(d["cc"]); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmounting what is in use: %v", err)
	}
	held.Close()
	if err := UnmountOne(d["cc"]); err != nil {
		t.Error(err)
	}
	if err := Unmount(d["c"]); err != nil { // both
		t.Error(err)
	}
	for _, path := range []string{d["c"], filepath.Join(d[""], "nothing"), d["cc"]} {
		if err := Unmount(path); err != nil {
			t.Errorf("unmounting what is not mounted: %v", err)
		}
	}
	if err := UnmountBelow(d[""]); err != nil {
		t.Error(err)
	}
	if points, _ := Below(d[""]); len(points) != 0 {
		t.Errorf("%+v", points)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a\040b\011\134c`: "a b\t\\c", `plain`: "plain", `\04`: `\04`, `\999`: `\999`, `x\012`: "x\n"} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestProbe(t *testing.T) {
	d := dirs(t)
	if kind, err := ProbeOverlay(d[""]); err != nil || kind == OverlaysNone {
		t.Errorf("%v %v", kind, err)
	}
	if left, _ := os.ReadDir(d[""]); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if _, err := ProbeOverlay("/no/such"); err == nil {
		t.Error("a missing directory")
	}
}
