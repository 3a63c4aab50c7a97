package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// checkWritten writes a payload and holds the directory to what it should be, and its
// parent to having nothing else.
func checkWritten(t *testing.T, files payload) {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "v")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := writeFiles(dir, files, t0, nil); err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) && (errno == syscall.ENAMETOOLONG || errno == syscall.EINVAL || errno == syscall.EILSEQ) {
			return
		}
		t.Fatal(err)
	}
	for p, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil || string(data) != string(f.data) {
			t.Fatalf("%q: %q, %v", p, data, err)
		}
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 1 {
		t.Fatalf("something was written outside: %v %v", entries, err)
	}
	if changed, err := writeFiles(dir, files, t0, nil); changed || err != nil {
		t.Fatalf("written again: %v %v", changed, err)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "..2") {
			name = "..dir"
		}
		if e.Type()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(filepath.Join(dir, e.Name()))
			if strings.HasPrefix(to, "..2") {
				to = "..dir"
			}
			name += "->" + to
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	step := func(files payload, wantChange bool, want string) {
		t.Helper()
		changed, err := writeFiles(dir, files, t0, nil)
		if err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v", changed, err)
		}
		if got := listing(t, dir); got != want {
			t.Fatalf("directory is\n%s\nwant\n%s", got, want)
		}
	}
	f := func(s string, mode int32) file { return file{data: []byte(s), mode: mode} }
	step(payload{}, true, "..dir ..data->..dir")
	step(payload{"a": f("1", 0o644), "d/x": f("2", 0o400), "d/e/y": f("3", 0o644)}, true, "..dir ..data->..dir a->..data/a d->..data/d")
	step(payload{"a": f("1", 0o644), "d/x": f("2", 0o400), "d/e/y": f("3", 0o644)}, false, "..dir ..data->..dir a->..data/a d->..data/d")
	info, err := os.Stat(filepath.Join(dir, "d/x"))
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	step(payload{"a": f("1", 0o600), "d/x": f("2", 0o400), "d/e/y": f("3", 0o644)}, true, "..dir ..data->..dir a->..data/a d->..data/d") // a mode alone
	step(payload{"b": f("1", 0o644)}, true, "..dir ..data->..dir b->..data/b")
	step(payload{"b/c": f("1", 0o644)}, true, "..dir ..data->..dir b->..data/b")

	// What a crash leaves is cleared away: a directory half written, the new link, links to come.
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "..2026_01_01_00_00_00.1"), 0o755),
		os.Symlink("..2026_01_01_00_00_00.1", filepath.Join(dir, dataLinkNew)),
		os.Remove(filepath.Join(dir, "b")),
		os.WriteFile(filepath.Join(dir, "not ours"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	step(payload{"b/c": f("1", 0o644)}, false, "..dir ..data->..dir b->..data/b not ours")
	step(payload{"b/c": f("2", 0o644)}, true, "..dir ..data->..dir b->..data/b not ours")
}

// TestSwapIsAtomic reads two files again and again while they change together: whoever holds
// the directory sees both old or both new, and the plain path is never missing or short.
func TestSwapIsAtomic(t *testing.T) {
	dir := t.TempDir()
	content := func(n int) payload {
		text := []byte(strings.Repeat(fmt.Sprintf("%06d\n", n), 500))
		return payload{"a": {data: text, mode: 0o644}, "sub/b": {data: text, mode: 0o644}}
	}
	if _, err := writeFiles(dir, content(0), t0, nil); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var pairs, singles atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				root, err := os.OpenRoot(filepath.Join(dir, dataLink))
				if errors.Is(err, fs.ErrNotExist) {
					continue // removed between the link and the directory
				}
				if err != nil {
					t.Error(err)
					return
				}
				a, errA := root.ReadFile("a")
				b, errB := root.ReadFile("sub/b")
				root.Close()
				if errors.Is(errA, fs.ErrNotExist) || errors.Is(errB, fs.ErrNotExist) {
					continue // the directory was retired; a reader starts over
				}
				if errA != nil || errB != nil || string(a) != string(b) || len(a) != 3500 {
					t.Errorf("%d and %d bytes, %v, %v", len(a), len(b), errA, errB)
					return
				}
				pairs.Add(1)
			}
		})
	}
	wg.Go(func() {
		for !stop.Load() {
			a, err := os.ReadFile(filepath.Join(dir, "a"))
			if errors.Is(err, fs.ErrNotExist) {
				continue // resolved just before the old directory went
			}
			if err != nil || len(a) != 3500 {
				t.Errorf("%d bytes, %v", len(a), err)
				return
			}
			singles.Add(1)
		}
	})
	for n := 1; n <= 300 || pairs.Load() < 100 || singles.Load() < 100; n++ {
		if _, err := writeFiles(dir, content(n), t0.Add(time.Duration(n)*time.Second), nil); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}
