package image

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type entry struct {
	h    tar.Header
	data string
}

func layerOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.h
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size, h.Format = int64(len(e.data)), tar.FormatPAX
		if h.Typeflag == tar.TypeXGlobalHeader {
			h = tar.Header{Typeflag: h.Typeflag, PAXRecords: h.PAXRecords}
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) entry { return entry{h: tar.Header{Name: name, Typeflag: tar.TypeDir}} }
func file(name, data string) entry {
	return entry{h: tar.Header{Name: name}, data: data}
}
func link(name, to string) entry {
	return entry{h: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}}
}
func hard(name, to string) entry {
	return entry{h: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}}
}

// TestUnpackStaysInside: whatever names and links a layer holds, nothing outside changes.
func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]entry{
		"dots":                          {file("../../outside/victim", "bad")},
		"absolute":                      {file("/outside/victim", "bad")},
		"through a link":                {link("out", "../../../outside"), file("out/victim", "bad")},
		"through an absolute link":      {link("out", "OUTSIDE"), file("out/victim", "bad")},
		"over a link":                   {link("victim", "OUTSIDE/victim"), file("victim", "bad")},
		"links in a chain":              {link("a", "b"), link("b", "OUTSIDE"), file("a/victim", "bad")},
		"hard link to outside":          {hard("mine", "../outside/victim"), file("mine", "bad")},
		"hard link through a link":      {link("out", "OUTSIDE"), hard("mine", "out/victim")},
		"whiteout through a link":       {link("out", "OUTSIDE"), file("out/.wh.victim", "")},
		"whiteout of dots":              {file(".wh...", ""), file("a/.wh..", "")},
		"opaque through a link":         {link("out", "OUTSIDE"), file("out/.wh..wh..opq", "")},
		"directory over a link":         {link("out", "OUTSIDE"), dir("out"), file("out/victim", "bad")},
		"mode through a link":           {link("out", "OUTSIDE/victim"), {h: tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE/victim", Mode: 0o777, Uid: 99}}},
		"proc":                          {link("self", "/proc/self/cwd"), file("self/victim", "bad")},
		"a directory replaced by links": {dir("d"), file("d/x", "1"), link("d", "OUTSIDE"), file("d/victim", "bad")},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			outside, inside := filepath.Join(base, "outside"), filepath.Join(base, "in", "root")
			for _, d := range []string{outside, inside} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			victim := filepath.Join(outside, "victim")
			if err := os.WriteFile(victim, []byte("good"), 0o600); err != nil {
				t.Fatal(err)
			}
			var before unix.Stat_t
			if err := unix.Stat(victim, &before); err != nil {
				t.Fatal(err)
			}
			for i := range entries {
				entries[i].h.Linkname = strings.Replace(entries[i].h.Linkname, "OUTSIDE", outside, 1)
			}
			_, err := unpack(inside, bytes.NewReader(layerOf(t, entries...)), DefaultLimits)
			t.Logf("unpack: %v", err)
			var after unix.Stat_t
			if err := unix.Stat(victim, &after); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(victim)
			if err != nil || string(data) != "good" || after.Mode != before.Mode || after.Uid != before.Uid || after.Nlink != 1 || after.Ctim != before.Ctim {
				t.Errorf("the victim is %q %+v %v", data, after, err)
			}
			if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
				t.Errorf("outside: %v %v", names, err)
			}
			if names, err := os.ReadDir(base); err != nil || len(names) != 2 {
				t.Errorf("above: %v %v", names, err)
			}
		})
	}
}

func TestUnpackKeepsEverything(t *testing.T) {
	root := t.TempDir()
	when := time.Unix(1_234_567_890, 123_000_000)
	got, err := unpack(root, bytes.NewReader(layerOf(t,
		entry{h: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711, ModTime: when}},
		entry{h: tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 1, Gid: 2, ModTime: when}},
		entry{h: tar.Header{Name: "d/f", Mode: 0o6711, Uid: 3, Gid: 4, ModTime: when, PAXRecords: map[string]string{
			"SCHILY.xattr.user.note":                  "hello",
			"SCHILY.xattr.security.capability":        "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			"SCHILY.xattr.trusted.overlay.opaque":     "y",
			"SCHILY.xattr.user.overlay.opaque":        "y",
			"SCHILY.xattr.security.selinux":           "label",
			"SCHILY.xattr.trusted.overlay.redirect":   "/etc",
			"SCHILY.xattr.system.posix_acl_something": "x",
		}}, data: "content"},
		hard("d/same", "d/f"),
		entry{h: tar.Header{Name: "d/s", Typeflag: tar.TypeSymlink, Linkname: "anywhere", Uid: 5, Gid: 6, ModTime: when}},
		entry{h: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
		entry{h: tar.Header{Name: "loop", Typeflag: tar.TypeBlock, Devmajor: 7, Devminor: 300, Mode: 0o660}},
		entry{h: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
		entry{h: tar.Header{Name: "pax", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}},
		file("made/on/the/way", "x"),
	)), DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if got.Bytes != 8 || got.Entries != 10 {
		t.Errorf("%+v", got)
	}
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	for name, want := range map[string][3]uint32{
		".": {unix.S_IFDIR | 0o711, 0, 0}, "d": {unix.S_IFDIR | 0o2750, 1, 2}, "d/f": {unix.S_IFREG | 0o6711, 3, 4},
		"d/s": {unix.S_IFLNK | 0o777, 5, 6}, "null": {unix.S_IFCHR | 0o666, 0, 0}, "loop": {unix.S_IFBLK | 0o660, 0, 0},
		"pipe": {unix.S_IFIFO | 0o600, 0, 0}, "made/on": {unix.S_IFDIR | 0o755, 0, 0},
	} {
		if st := stat(name); st.Mode != want[0] || st.Uid != want[1] || st.Gid != want[2] {
			t.Errorf("%s: mode %o, owner %d:%d, want %o %d:%d", name, st.Mode, st.Uid, st.Gid, want[0], want[1], want[2])
		}
	}
	for _, name := range []string{".", "d", "d/f", "d/s"} {
		if st := stat(name); st.Mtim.Nano() != when.UnixNano() {
			t.Errorf("%s: time %v, want %v", name, time.Unix(0, st.Mtim.Nano()), when)
		}
	}
	if st := stat("null"); st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null is %x", st.Rdev)
	}
	if st := stat("loop"); st.Rdev != unix.Mkdev(7, 300) {
		t.Errorf("loop is %x", st.Rdev)
	}
	if a, b := stat("d/f"), stat("d/same"); a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard links: %d %d %d", a.Ino, b.Ino, a.Nlink)
	}
	buf := make([]byte, 1024)
	n, err := unix.Llistxattr(filepath.Join(root, "d/f"), buf)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range splitZero(buf[:n]) {
		names = append(names, name)
	}
	if got := strings.Join(names, " "); got != "security.capability user.note" && got != "user.note security.capability" {
		t.Errorf("attributes %q", got)
	}
}

func TestUnpackRefuses(t *testing.T) {
	small := Limits{Bytes: 100, Entries: 5}
	for name, test := range map[string]struct {
		entries []entry
		want    string
	}{
		"too many bytes":    {[]entry{file("a", strings.Repeat("x", 60)), file("b", strings.Repeat("x", 60))}, "more than 100 bytes"},
		"too many entries":  {[]entry{dir("1"), dir("2"), dir("3"), dir("4"), dir("5"), dir("6")}, "more than 5 entries"},
		"a forged whiteout": {[]entry{{h: tar.Header{Name: "x", Typeflag: tar.TypeChar}}}, "forged whiteout"},
		"a file for a root": {[]entry{file("/..", "x")}, "must be a directory"},
		"a long name":       {[]entry{file(strings.Repeat("x/", 3000)+"x", "")}, "invalid name"},
		"a loop of links":   {[]entry{link("a", "b"), link("b", "a"), file("a/x", "")}, "too many levels"},
		"a file as parent":  {[]entry{file("a", ""), file("a/b", "")}, "not a directory"},
		"hard link nowhere": {[]entry{hard("a", "nothing")}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := unpack(t.TempDir(), bytes.NewReader(layerOf(t, test.entries...)), small)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestWhiteoutsSpareTheirLayer: a whiteout hides what is below, not what its own layer brings, in whatever order.
func TestWhiteoutsSpareTheirLayer(t *testing.T) {
	for name, entries := range map[string][]entry{
		"opaque first": {dir("d"), file("d/.wh..wh..opq", ""), file("d/new", "n"), file("d/sub/new", "n")},
		"opaque last":  {dir("d"), file("d/new", "n"), file("d/sub/new", "n"), file("d/.wh..wh..opq", "")},
		"single":       {file("d/.wh.old", ""), file("d/new", "n"), file("d/sub/.wh.old", ""), file("d/sub/new", "n")},
		"recreated":    {file(".wh.d", ""), file("d/new", "n"), file("d/sub/new", "n")},
		"recreated 2":  {file("d/new", "n"), file("d/sub/new", "n"), file(".wh.d", "")},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			below := layerOf(t, dir("d"), file("d/old", "o"), file("d/sub/old", "o"), link("d/link", "/etc"))
			if _, err := unpack(root, bytes.NewReader(below), DefaultLimits); err != nil {
				t.Fatal(err)
			}
			if _, err := unpack(root, bytes.NewReader(layerOf(t, entries...)), DefaultLimits); err != nil {
				t.Fatal(err)
			}
			var got []string
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() && d.Type()&fs.ModeSymlink == 0 {
					rel, _ := filepath.Rel(root, path)
					got = append(got, rel)
				}
				return err
			})
			if s := strings.Join(got, " "); s != "d/new d/sub/new" {
				t.Errorf("left: %s", s)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(layerOf(f, dir("d"), file("d/f", "x"), link("l", "/d"), hard("l/h", "d/f"), file("d/.wh.f", "")))
	f.Add(layerOf(f, link("out", "../../.."), file("out/victim", "bad"), file("out/.wh..wh..opq", "")))
	f.Add([]byte("nothing of the kind"))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		root := filepath.Join(base, "a", "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, "victim"), []byte("good"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = unpack(root, bytes.NewReader(data), Limits{Bytes: 1 << 20, Entries: 1000})
		for dir, want := range map[string]int{base: 2, filepath.Join(base, "a"): 1} {
			if names, err := os.ReadDir(dir); err != nil || len(names) != want {
				t.Fatalf("%s: %v %v", dir, names, err)
			}
		}
		if got, err := os.ReadFile(filepath.Join(base, "victim")); err != nil || string(got) != "good" {
			t.Fatalf("the victim: %q %v", got, err)
		}
	})
}

// FuzzUnpackEntries makes entries out of the input, so that each input is a whole layer: names are short
// and meet, and links lead outside.
func FuzzUnpackEntries(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{2, 0, 3, 0, 5, 1, 4, 0, 1, 2, 2, 1, 0, 3, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		base := t.TempDir()
		root, outside := filepath.Join(base, "a", "root"), filepath.Join(base, "outside")
		for _, d := range []string{root, outside} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		victim := filepath.Join(outside, "victim")
		if err := os.WriteFile(victim, []byte("good"), 0o600); err != nil {
			t.Fatal(err)
		}
		var before, after unix.Stat_t
		if err := unix.Stat(victim, &before); err != nil {
			t.Fatal(err)
		}
		names := []string{"a", "b", "a/b", "b/a", "a/victim", "b/victim", "../outside/victim", "a/.wh.b", ".wh.a", "a/.wh..wh..opq", "a/b/c", "victim", "a/.wh.victim"}
		targets := []string{"b", "a", "../a", outside, victim, "../../outside", "/", ".", "/a/b", "../outside/victim", "a/victim", "/proc/self/root" + outside}
		types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo}
		var entries []entry
		for i := 0; i+2 < len(in) && len(entries) < 50; i += 3 {
			e := entry{h: tar.Header{Name: names[int(in[i])%len(names)], Typeflag: types[int(in[i+1])%len(types)], Uid: 7}}
			if e.h.Typeflag == tar.TypeSymlink || e.h.Typeflag == tar.TypeLink {
				e.h.Linkname = targets[int(in[i+2])%len(targets)]
			}
			if e.h.Typeflag == tar.TypeReg {
				e.data = "bad"
			}
			entries = append(entries, e)
		}
		_, _ = unpack(root, bytes.NewReader(layerOf(t, entries...)), DefaultLimits)
		if err := unix.Stat(victim, &after); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(victim)
		if err != nil || string(got) != "good" || after.Uid != before.Uid || after.Nlink != 1 || after.Mode != before.Mode || after.Ctim != before.Ctim {
			t.Fatalf("the victim: %q %+v %v", got, after, err)
		}
		for dir, want := range map[string]int{base: 2, filepath.Join(base, "a"): 1, outside: 1} {
			if list, err := os.ReadDir(dir); err != nil || len(list) != want {
				t.Fatalf("%s: %v %v", dir, list, err)
			}
		}
	})
}
