package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/image/build"
	"coracle.dev/coracle/linux/mount"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "container/image: these tests mount and change owners, and need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newStore(t testing.TB, change func(*Options)) *Store {
	t.Helper()
	o := Options{Dir: t.TempDir()}
	if change != nil {
		change(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if points, err := mount.Below(o.Dir); err != nil || len(points) > 0 {
			t.Errorf("mounts left behind: %v %v", points, err)
			_ = mount.UnmountBelow(o.Dir)
		}
	})
	return s
}

// sample is an image of two layers with everything that could go wrong in it.
func sample(names ...string) build.Image {
	return build.Image{
		Names: names,
		Layers: [][]build.File{
			{
				{Path: "etc/passwd", Data: []byte("root:x:0:0::/root:/bin/sh\n"), Mode: 0o644},
				{Path: "bin/su", Data: []byte("#!"), Mode: 0o4755},
				{Path: "gone/deep/file", Data: []byte("x")},
				{Path: "opaque/old", Data: []byte("x")},
				{Path: "kept", Data: []byte("below"), UID: 12, GID: 34, Mode: 0o640, Time: time.Unix(1_000_000_000, 0)},
				{Path: "usr/lib/thing", Data: []byte("lib")},
				{Path: "lib", Link: "/usr/lib"},
				{Path: "tmp", Dir: true, Mode: 0o1777},
			},
			{
				{Path: "kept", Data: []byte("above"), UID: 12, GID: 34, Mode: 0o640},
				{Path: ".wh.gone"},
				{Path: "opaque/.wh..wh..opq"},
				{Path: "opaque/new", Data: []byte("y")},
				{Path: "lib/more", Data: []byte("more")},
			},
		},
		Config: container.ImageConfig{
			User: "12:34", Env: []string{"A=b"}, Entrypoint: []string{"/bin/su"}, Cmd: []string{"-l"}, WorkingDir: "/tmp",
			StopSignal: "SIGQUIT", Labels: map[string]string{"l": "v"}, Volumes: []string{"/data"}, ExposedPorts: []string{"80/tcp"},
		},
		Created: time.Unix(1_600_000_000, 0),
	}
}

func tarOf(t testing.TB, img build.Image) []byte {
	t.Helper()
	data, err := img.Archive()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func load(t testing.TB, s *Store, data []byte, o container.ImportOptions) container.Image {
	t.Helper()
	list, err := s.Import(context.Background(), bytes.NewReader(data), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Fatalf("%d images", len(list))
	}
	return list[0]
}

// checkSample looks at a root filesystem made of sample.
func checkSample(t *testing.T, root string) {
	t.Helper()
	for path, want := range map[string]string{
		"kept": "above", "opaque/new": "y", "usr/lib/thing": "lib", "usr/lib/more": "more", "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	for _, path := range []string{"gone", "opaque/old", ".wh.gone", "opaque/.wh..wh..opq"} {
		if _, err := os.Lstat(filepath.Join(root, path)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
	if target, err := os.Readlink(filepath.Join(root, "lib")); err != nil || target != "/usr/lib" {
		t.Errorf("lib: %q %v", target, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "kept"), &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o640 {
		t.Errorf("kept: %+v %v", st, err)
	}
	if err := unix.Stat(filepath.Join(root, "bin/su"), &st); err != nil || st.Mode&0o7777 != 0o4755 {
		t.Errorf("setuid: %o %v", st.Mode, err)
	}
	if err := unix.Stat(filepath.Join(root, "tmp"), &st); err != nil || st.Mode&0o7777 != 0o1777 {
		t.Errorf("tmp: %o %v", st.Mode, err)
	}
}

func prepare(t *testing.T, s *Store, id string) string {
	t.Helper()
	dir := t.TempDir()
	root, err := s.Prepare(id, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Release(dir); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	})
	return root
}

func TestImport(t *testing.T) {
	for _, overlay := range []bool{true, false} {
		t.Run(fmt.Sprintf("overlay=%v", overlay), func(t *testing.T) {
			s := newStore(t, func(o *Options) { o.NoOverlay = !overlay })
			if overlay && s.overlays == mount.OverlaysNone {
				t.Fatal("overlays do not work here")
			}
			img := load(t, s, tarOf(t, sample("sample")), container.ImportOptions{})
			if !slices.Equal(img.Names, []string{"docker.io/library/sample:latest"}) {
				t.Errorf("names %v", img.Names)
			}
			want := sample().Config
			want.OS, want.Architecture = "linux", runtime.GOARCH
			if a, b := fmt.Sprintf("%+v", img.Config), fmt.Sprintf("%+v", want); a != b {
				t.Errorf("configuration %s, want %s", a, b)
			}
			if !img.Created.Equal(time.Unix(1_600_000_000, 0)) || img.Size == 0 {
				t.Errorf("%+v", img)
			}
			a, b := prepare(t, s, img.ID), prepare(t, s, img.ID)
			checkSample(t, a)
			checkSample(t, b)
			if err := os.WriteFile(filepath.Join(a, "kept"), []byte("changed"), 0o644); err != nil {
				t.Fatal(err)
			}
			checkSample(t, b)
			ro := t.TempDir()
			if err := s.MountReadOnly(img.ID, ro); err != nil {
				t.Fatal(err)
			}
			defer mount.Unmount(ro)
			checkSample(t, ro)
			if err := os.WriteFile(filepath.Join(ro, "kept"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing to a read-only mount: %v", err)
			}
		})
	}
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// ociLayout turns a docker archive into an OCI layout whose layers went through pack, inside an index for
// several platforms.
func ociLayout(t testing.TB, docker []byte, pack func(testing.TB, []byte) []byte, annotations map[string]string) []byte {
	t.Helper()
	members := map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(docker))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if members[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	var manifests []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(members["manifest.json"], &manifests); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	blob := func(mediaType string, data []byte) map[string]any {
		sum := sha256.Sum256(data)
		hex := hex.EncodeToString(sum[:])
		files["blobs/sha256/"+hex] = data
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + hex, "size": len(data)}
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var layers []any
	for _, name := range manifests[0].Layers {
		layers = append(layers, blob("application/vnd.oci.image.layer.v1.tar", pack(t, members[name])))
	}
	config := blob("application/vnd.oci.image.config.v1+json", members[manifests[0].Config])
	manifest := blob("application/vnd.oci.image.manifest.v1+json", encode(map[string]any{"schemaVersion": 2, "config": config, "layers": layers}))
	manifest["platform"] = map[string]any{"os": "linux", "architecture": runtime.GOARCH}
	other := blob("application/vnd.oci.image.manifest.v1+json", encode(map[string]any{"schemaVersion": 2}))
	other["platform"] = map[string]any{"os": "linux", "architecture": "mips"}
	index := blob("application/vnd.oci.image.index.v1+json", encode(map[string]any{"schemaVersion": 2, "manifests": []any{other, manifest}}))
	index["annotations"] = annotations
	files["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []any{index}})
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImportForms(t *testing.T) {
	plain := func(_ testing.TB, data []byte) []byte { return data }
	docker := tarOf(t, sample("sample"))
	bare := sample()
	full := map[string]string{annotationName: "registry.example/team/sample:1"}
	for _, test := range []struct {
		name string
		data []byte
		o    container.ImportOptions
		want []string
	}{
		{"docker gzip", gz(t, docker), container.ImportOptions{}, []string{"docker.io/library/sample:latest"}},
		{"docker zstd", zst(t, docker), container.ImportOptions{}, []string{"docker.io/library/sample:latest"}},
		{"nameless", tarOf(t, bare), container.ImportOptions{}, nil},
		{"named by option", tarOf(t, bare), container.ImportOptions{Name: "given:2"}, []string{"docker.io/library/given:2"}},
		{"oci gzip", ociLayout(t, docker, gz, full), container.ImportOptions{}, []string{"registry.example/team/sample:1"}},
		{"oci zstd", gz(t, ociLayout(t, docker, zst, full)), container.ImportOptions{}, []string{"registry.example/team/sample:1"}},
		{"oci plain, only a tag", ociLayout(t, docker, plain, map[string]string{annotationTag: "latest"}), container.ImportOptions{Name: "x"}, []string{"docker.io/library/x:latest"}},
		{"oci, full ref.name", ociLayout(t, docker, plain, map[string]string{annotationTag: "localhost:5000/y:z"}), container.ImportOptions{}, []string{"localhost:5000/y:z"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, nil)
			img := load(t, s, test.data, test.o)
			if !slices.Equal(img.Names, test.want) {
				t.Errorf("names %v, want %v", img.Names, test.want)
			}
			checkSample(t, prepare(t, s, img.ID))
		})
	}
}

// replaceMember changes one member of a tar.
func replaceMember(t *testing.T, data []byte, pick func(name string) bool, change func([]byte) []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if pick(h.Name) {
			if content = change(content); content == nil {
				continue
			}
			h.Size = int64(len(content))
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	return b.Bytes()
}

func TestImportDamage(t *testing.T) {
	docker := tarOf(t, sample("sample"))
	layout := ociLayout(t, docker, gz, nil)
	layer := func(name string) bool { return strings.HasPrefix(name, "0-") }
	config := func(name string) bool { return strings.HasSuffix(name, ".json") && name != "manifest.json" }
	for _, test := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "neither a docker archive", nil},
		{"no tar", "", []byte(strings.Repeat("x", 5000))},
		{"cut off", "", docker[:len(docker)/2]},
		{"a changed layer", "layer is damaged", replaceMember(t, docker, layer, func(b []byte) []byte {
			return bytes.Replace(b, []byte("root:x"), []byte("toor:x"), 1)
		})},
		{"a missing layer", "the archive has no", replaceMember(t, docker, layer, func([]byte) []byte { return nil })},
		{"a broken configuration", "image configuration", replaceMember(t, docker, config, func([]byte) []byte { return []byte("{") })},
		{"fewer digests", "its configuration says 0", replaceMember(t, docker, config, func([]byte) []byte { return []byte(`{"os":"linux"}`) })},
		{"a huge manifest", "larger than", replaceMember(t, docker, func(n string) bool { return n == "manifest.json" }, func([]byte) []byte { return make([]byte, maxMetadata+1) })},
		{"another system", "the image is for windows/amd64", replaceMember(t, docker, config, func([]byte) []byte { return []byte(`{"os":"windows","architecture":"amd64"}`) })},
		{"a digest that is a path", "invalid layer digest", replaceMember(t, docker, config, func(b []byte) []byte {
			return []byte(`{"rootfs":{"diff_ids":["sha256:../../../../etc","sha256:x"]}}`)
		})},
		{"a changed blob", "damaged", replaceMember(t, layout, func(n string) bool { return strings.HasPrefix(n, "blobs/") }, func(b []byte) []byte { return append(b, ' ') })},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, nil)
			_, err := s.Import(context.Background(), bytes.NewReader(test.data), container.ImportOptions{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if list := s.List(); len(list) != 0 {
				t.Errorf("%+v", list)
			}
			for _, dir := range []string{"layers", "tmp", "images"} {
				if left, _ := os.ReadDir(filepath.Join(s.dir, dir)); len(left) != 0 {
					t.Errorf("left in %s: %v", dir, left)
				}
			}
		})
	}
}

func TestNamesAndRemoval(t *testing.T) {
	ctx := context.Background()
	used := map[string]bool{}
	s := newStore(t, func(o *Options) { o.InUse = func(id string) bool { return used[id] } })
	one := load(t, s, tarOf(t, sample("app:1", "app:stable")), container.ImportOptions{})
	other := sample("app:2", "app:stable")
	other.Config.Cmd = []string{"other"}
	two := load(t, s, tarOf(t, other), container.ImportOptions{})
	resolve := func(ref string) string {
		img, err := s.Resolve(ref)
		if errors.Is(err, container.ErrImageNotFound) {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		return img.ID
	}
	for ref, want := range map[string]string{
		"app:1": one.ID, "app:2": two.ID, "app:stable": two.ID, "docker.io/library/app:stable": two.ID, "app": "", "other/app:1": "",
		one.ID: one.ID, one.ID[7:19]: one.ID, "sha256:" + two.ID[7:30]: two.ID, "sha256:000000000000": "",
	} {
		if got := resolve(ref); got != want {
			t.Errorf("%s is %q, want %q", ref, got, want)
		}
	}
	// Both have the same layers, which are stored once.
	if u := s.Usage(); u.Bytes != uint64(one.Size) || u.Images != 2 || u.FSCapacity == 0 || u.FSAvailable > u.FSCapacity {
		t.Errorf("%+v", u)
	}
	used[one.ID] = true
	if err := s.Remove(ctx, "app:1"); !errors.Is(err, container.ErrImageInUse) {
		t.Errorf("removing the last name of a used image: %v", err)
	}
	if err := s.Remove(ctx, "app:2"); err != nil {
		t.Fatal(err)
	}
	if resolve("app:2") != "" || resolve("app:stable") != two.ID {
		t.Error("removing one of two names")
	}
	if err := s.Remove(ctx, "app:stable"); err != nil {
		t.Fatal(err)
	}
	if resolve(two.ID) != "" {
		t.Error("an image without names is still there")
	}
	checkSample(t, prepare(t, s, one.ID)) // its layers are
	delete(used, one.ID)
	_, release, err := s.Hold("app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, one.ID); !errors.Is(err, container.ErrImageInUse) {
		t.Errorf("removing a held image: %v", err)
	}
	release()
	if err := s.Remove(ctx, "nothing"); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	reopened, err := Open(Options{Dir: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	if img, err := reopened.Resolve("app:1"); err != nil || img.ID != one.ID || img.Size != one.Size {
		t.Errorf("after opening again: %+v %v", img, err)
	}
}

func TestRemoveFreesLayers(t *testing.T) {
	s := newStore(t, nil)
	img := load(t, s, tarOf(t, sample("a")), container.ImportOptions{})
	if err := s.Remove(context.Background(), img.ID); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"layers", "tmp", "images"} {
		if left, _ := os.ReadDir(filepath.Join(s.dir, dir)); len(left) != 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// TestInterrupted: what an interrupted import left, and damaged records, go when the store is opened.
func TestInterrupted(t *testing.T) {
	s := newStore(t, nil)
	img := load(t, s, tarOf(t, sample("a")), container.ImportOptions{})
	for _, dir := range []string{"layers/0123", "tmp/layer-1/fs"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := mount.Tmpfs(filepath.Join(s.dir, "tmp/layer-1/fs"), 1<<20, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"half.json.new": "{", "damaged.json": "{",
		"missing.json": `{"id":"sha256:` + strings.Repeat("0", 64) + `","layers":[{"chain":"sha256:` + strings.Repeat("1", 64) + `"}]}`,
		"evil.json":    `{"id":"sha256:../../x","layers":[]}`,
	} {
		if err := os.WriteFile(filepath.Join(s.dir, "images", name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(Options{Dir: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	if list := again.List(); len(list) != 1 || list[0].ID != img.ID {
		t.Errorf("%+v", list)
	}
	checkSample(t, prepare(t, again, img.ID))
	for dir, want := range map[string]int{"layers": 2, "tmp": 0, "images": 1} {
		if left, _ := os.ReadDir(filepath.Join(s.dir, dir)); len(left) != want {
			t.Errorf("in %s: %v", dir, left)
		}
	}
}

func TestGC(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(2_000_000_000, 0)
	used := map[string]bool{}
	s := newStore(t, func(o *Options) {
		o.Now, o.InUse = func() time.Time { return now }, func(id string) bool { return used[id] }
	})
	var ids []string
	for i := range 5 {
		img := build.Image{Names: []string{fmt.Sprintf("i%d", i)}, Layers: [][]build.File{{{Path: "f", Data: fmt.Appendf(nil, "%d", i)}}}}
		ids = append(ids, load(t, s, tarOf(t, img), container.ImportOptions{Pinned: i == 1}).ID)
		now = now.Add(time.Hour)
	}
	used[ids[2]] = true
	if _, release, err := s.Hold("i0"); err != nil { // the oldest is the most recently used
		t.Fatal(err)
	} else {
		release()
	}
	// Far below the high mark nothing goes, but what was unused for too long.
	res, err := s.GC(ctx, container.GCPolicy{HighPercent: 100, LowPercent: 99, MaxAge: 90 * time.Minute, Now: now})
	if err != nil || !slices.Equal(res.Removed, []string{ids[3]}) || res.Freed == 0 || res.Short != 0 {
		t.Errorf("%+v %v", res, err)
	}
	// Above it all unused ones go, the least recently used first; too young ones do not.
	res, err = s.GC(ctx, container.GCPolicy{HighPercent: 1, LowPercent: 0, MinAge: time.Minute, Now: now})
	if err != nil || !slices.Equal(res.Removed, []string{ids[4]}) || res.Short == 0 {
		t.Errorf("%+v %v", res, err)
	}
	now = now.Add(time.Hour)
	res, err = s.GC(ctx, container.GCPolicy{Now: now})
	if err != nil || !slices.Equal(res.Removed, []string{ids[0]}) {
		t.Errorf("%+v %v", res, err)
	}
	var left []string
	for _, img := range s.List() {
		left = append(left, img.ID)
	}
	want := []string{ids[1], ids[2]}
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %v, want the pinned and the used one %v", left, want)
	}
}
