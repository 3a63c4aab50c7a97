package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/pebble/crash"
	"coracle.dev/coracle/store/storetest"
)

// TestPowerLoss cuts the power of a simulated disk under load: of what was not
// synced some is lost and some is not. Then it does so again while the store is
// being opened.
func TestPowerLoss(t *testing.T) {
	fs := vfs.NewCrashableMem()
	tally := &crash.Tally{}
	for round := range 25 {
		s, err := open("store", fs, crash.Options(), quiet())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := crash.Check(s.Snapshot(), tally); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		tally.Add(crash.Ack{Revision: s.Snapshot().Revision(), Relaxed: true})
		var before *crash.Tally
		var after *vfs.MemFS
		var count atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		cutAt := 1 + rand.Int64N(400)
		err = crash.Load(ctx, s, func(a crash.Ack) {
			tally.Add(a)
			if count.Add(1) == cutAt {
				before = tally.Copy()
				after = fs.CrashClone(vfs.CrashCloneCfg{
					UnsyncedDataPercent: rand.IntN(101),
					RNG:                 rand.New(rand.NewPCG(rand.Uint64(), 0)),
				})
				cancel()
			}
		})
		cancel()
		if err != nil {
			t.Fatalf("round %d: load: %v", round, err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("round %d: close: %v", round, err)
		}
		// The world goes on from where the power was cut.
		fs, tally = after, before
	}
	t.Logf("%d durable transactions", tally.Steps())
}

// TestRelaxed loses relaxed transactions to a power loss: their revisions are not used
// again, and what was durable before them is there.
func TestRelaxed(t *testing.T) {
	for _, relaxed := range []int{50, 3*ceilingAhead + 1} {
		fs := vfs.NewCrashableMem()
		s, err := open("d", fs, crash.Options(), quiet())
		if err != nil {
			t.Fatal(err)
		}
		commit := func(name string, relaxed bool) store.Revision {
			t.Helper()
			rev, _, err := s.Commit(t.Context(), store.Txn{Relaxed: relaxed, Ops: []store.Op{{
				Key: store.Key{Resource: "a", Name: name}, Object: &crash.Object{}, Expect: store.ExpectAny}}})
			if err != nil {
				t.Fatal(err)
			}
			return rev
		}
		commit("durable", false)
		var last store.Revision
		for i := range relaxed {
			last = commit(fmt.Sprint(i), true)
		}
		if seen := s.Snapshot().Revision(); seen != last {
			t.Errorf("revision %d is not visible", last)
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = open("d", after, crash.Options(), quiet())
		if err != nil {
			t.Fatal(err)
		}
		snapshot := s.Snapshot()
		if snapshot.Revision() < last {
			t.Errorf("after %d relaxed transactions: revision %d, %d was seen", relaxed, snapshot.Revision(), last)
		}
		if snapshot.Get(store.Key{Resource: "a", Name: "durable"}) == nil {
			t.Error("a durable object is lost")
		}
		if n := snapshot.Count("a", ""); n > relaxed {
			t.Errorf("%d objects: nothing was lost, the test shows nothing", n)
		}
		if _, err := s.Cursor(last - 1); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("a cursor into the lost history: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// written makes a store with a history and returns its files, as they are after it was
// closed in order or as a crash leaves them, and what was acknowledged.
func written(t *testing.T, clean bool) (map[string][]byte, *crash.Tally) {
	t.Helper()
	fs := vfs.NewMem()
	tally := &crash.Tally{}
	// Two lives, the first of which leaves tables and not only a log.
	for life := range 2 {
		s, err := open("d", fs, crash.Options(), quiet())
		if err != nil {
			t.Fatal(err)
		}
		var count atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		err = crash.Load(ctx, s, func(a crash.Ack) {
			tally.Add(a)
			if count.Add(1) == 300 {
				cancel()
			}
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		files := readAll(t, fs)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if life == 1 && !clean {
			return files, tally
		}
	}
	return readAll(t, fs), tally
}

// readAll reads a directory that a store may be at work in: until no file came or went meanwhile.
func readAll(t *testing.T, fs vfs.FS) map[string][]byte {
	t.Helper()
	list := func() []string {
		names, err := fs.List("d")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}
	for {
		if files, ok := tryRead(t, fs, list()); ok && slices.Equal(slices.Sorted(maps.Keys(files)), list()) {
			return files
		}
	}
}

// tryRead reads the named files, false if one is gone.
func tryRead(t *testing.T, fs vfs.FS, names []string) (map[string][]byte, bool) {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range names {
		f, err := fs.Open("d/" + name)
		if errors.Is(err, os.ErrNotExist) {
			return nil, false
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[name], err = io.ReadAll(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return files, true
}

func writeAll(t *testing.T, files map[string][]byte) vfs.FS {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("d", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		f, err := fs.Create("d/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Clone(data)); err != nil { // Write may change its argument
			t.Fatal(err)
		}
		f.Close()
	}
	return fs
}

// TestDamage damages each file in turn. The store must then refuse to open and
// say why, or serve exactly what was acknowledged; never anything else.
func TestDamage(t *testing.T) {
	damages := map[string]func([]byte) []byte{
		"flip": func(b []byte) []byte {
			b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
			return b
		},
		"flip near the end": func(b []byte) []byte {
			b[len(b)-1-rand.IntN(min(len(b), 60))] ^= 1 << rand.IntN(8)
			return b
		},
		"zeros": func(b []byte) []byte {
			i := rand.IntN(len(b))
			clear(b[i:min(len(b), i+512)])
			return b
		},
		"torn":  func(b []byte) []byte { return b[:rand.IntN(len(b))] },
		"empty": func([]byte) []byte { return []byte{} },
		"gone":  func([]byte) []byte { return nil },
	}
	refused, served := map[string]int{}, map[string]int{}
	for _, clean := range []bool{true, false} {
		files, tally := written(t, clean)
		for name, damage := range damages {
			for file, data := range files {
				if len(data) == 0 && name != "gone" {
					continue
				}
				for range 3 {
					kind := strings.Trim(file, "0123456789-.")
					if openDamaged(t, files, file, damage(bytes.Clone(data)), tally, fmt.Sprintf("%s %s (clean %v)", name, file, clean)) {
						served[kind]++
					} else {
						refused[kind]++
					}
				}
			}
		}
	}
	t.Logf("refused %v, served intact %v", refused, served)
	for _, kind := range []string{"log", "sst", "MANIFEST", "FORMAT", "marker.manifest.000002.MANIFEST"} {
		if refused[kind] == 0 {
			t.Errorf("no damage to %s was noticed", kind)
		}
	}
}

// openDamaged tells whether the store opened with a file replaced, or removed if data is nil.
func openDamaged(t *testing.T, files map[string][]byte, file string, data []byte, tally *crash.Tally, what string) bool {
	t.Helper()
	files = maps.Clone(files)
	if files[file] = data; data == nil {
		delete(files, file)
	}
	s, err := open("d", writeAll(t, files), crash.Options(), quiet())
	if err != nil {
		if !errors.Is(err, store.ErrDamaged) && !errors.Is(err, store.ErrNewer) {
			t.Errorf("%s: the error has no type: %v", what, err)
		}
		return false
	}
	if err := crash.Check(s.Snapshot(), tally); err != nil {
		t.Errorf("%s: served: %v", what, err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
	return true
}

// TestRecords checks that the records' own checksums, apart from the database's, notice
// any change of a bit, and a record that stands under another key.
func TestRecords(t *testing.T) {
	key := appendKey(nil, store.Key{Resource: "pods", Namespace: "default", Name: "web"})
	var buf [maxHeader]byte
	payload := []byte("payload")
	value := append(bytes.Clone(header(&buf, key, 300, 7, payload)), payload...)
	rev, created, got, err := parseRecord(key, value)
	if err != nil || rev != 300 || created != 7 || !bytes.Equal(got, payload) {
		t.Fatalf("round trip: %d %d %q %v", rev, created, got, err)
	}
	for i := range len(value) * 8 {
		bad := bytes.Clone(value)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, _, err := parseRecord(key, bad); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("bit %d flipped: %v", i, err)
		}
	}
	for i := range value {
		if _, _, _, err := parseRecord(key, value[:i]); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
	if _, _, _, err := parseRecord(append(key, 'x'), value); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("under another key: %v", err)
	}
	m := meta{revision: 12, ceiling: 1012, objects: 3, digest: 1 << 60, clean: true}
	if got, err := parseMeta(m.encode()); err != nil || got != m {
		t.Errorf("meta: %+v, %v", got, err)
	}
}

// TestLostRecord removes one record, or brings an old one back, behind the store's
// back and with valid checksums: the sum over all records notices.
func TestLostRecord(t *testing.T) {
	fs := vfs.NewMem()
	k := store.Key{Resource: "a", Name: "x"}
	s, err := open("d", fs, crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: k, Object: &crash.Object{}, Expect: store.ExpectAny}}}); err != nil {
			t.Fatal(err)
		}
	}
	key := appendKey(nil, k)
	var buf [maxHeader]byte
	payload := []byte("{}")
	old := append(bytes.Clone(header(&buf, key, 1, 1, payload)), payload...)
	if err := s.db.Set(key, old, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := open("d", fs, crash.Options(), quiet()); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("an old record: %v", err)
	}
}

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s := onDisk(dir).Open(t, crash.Options())
	if _, err := Open(dir, crash.Options(), quiet()); !errors.Is(err, store.ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := onDisk(dir).Open(t, crash.Options()).Close(); err != nil {
		t.Errorf("after close: %v", err)
	}
}

func TestNewer(t *testing.T) {
	dir := t.TempDir()
	if err := onDisk(dir).Open(t, crash.Options()).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "FORMAT"), fmt.Appendf(nil, formatText, Format+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, crash.Options(), quiet()); !errors.Is(err, store.ErrNewer) {
		t.Errorf("got %v", err)
	}
}

// brokenFS fails writes and syncs of the log from some moment on.
type brokenFS struct {
	vfs.FS
	err  atomic.Pointer[error]
	free atomic.Uint64
}

func (f *brokenFS) fail(err error) { f.err.Store(&err) }

func (f *brokenFS) failure() error {
	if p := f.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *brokenFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return &brokenFile{file, f}, err
}

func (f *brokenFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(old, name, c)
	return &brokenFile{file, f}, err
}

func (f *brokenFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free.Load(), TotalBytes: 1 << 40}, nil
}

type brokenFile struct {
	vfs.File
	fs *brokenFS
}

func (f *brokenFile) Write(b []byte) (int, error) {
	if errors.Is(f.fs.failure(), syscall.ENOSPC) {
		return 0, f.fs.failure()
	}
	return f.File.Write(b)
}

func (f *brokenFile) Sync() error { return errors.Join(f.fs.failure(), f.File.Sync()) }

func (f *brokenFile) SyncData() error { return errors.Join(f.fs.failure(), f.File.SyncData()) }

func (f *brokenFile) SyncTo(n int64) (bool, error) {
	if err := f.fs.failure(); err != nil {
		return false, err
	}
	return f.File.SyncTo(n)
}

// TestBrokenDisk fails the disk under load. The transactions on their way are refused, so
// are all later ones, none becomes visible, and what was acknowledged is found again.
func TestBrokenDisk(t *testing.T) {
	for name, broken := range map[string]error{"fsync": syscall.EIO, "full": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			fs := &brokenFS{FS: mem}
			fs.free.Store(1 << 40)
			s, err := open("d", fs, crash.Options(), quiet())
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Health(); err != nil {
				t.Errorf("health before: %v", err)
			}
			tally := &crash.Tally{}
			var count atomic.Int64
			err = crash.Load(t.Context(), s, func(a crash.Ack) {
				tally.Add(a)
				if count.Add(1) == 100 {
					fs.fail(broken)
				}
			})
			if !errors.Is(err, store.ErrFailed) || name == "full" && !errors.Is(err, store.ErrFull) {
				t.Fatalf("under load: %v", err)
			}
			visible := s.Snapshot().Revision()
			_, _, err = s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: "x"}, Object: &crash.Object{}}}})
			if !errors.Is(err, store.ErrFailed) {
				t.Errorf("afterwards: %v", err)
			}
			if err := s.Health(); !errors.Is(err, store.ErrFailed) {
				t.Errorf("health: %v", err)
			}
			if s.Snapshot().Revision() != visible {
				t.Errorf("revision %d became visible", s.Snapshot().Revision())
			}
			if err := s.Close(); !errors.Is(err, store.ErrFailed) {
				t.Errorf("close: %v", err)
			}
			again, err := open("d", mem.CrashClone(vfs.CrashCloneCfg{}), crash.Options(), quiet())
			if err != nil {
				t.Fatalf("open again: %v", err)
			}
			if err := crash.Check(again.Snapshot(), tally); err != nil {
				t.Error(err)
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBackground: an error in the background is a bad state until such work succeeds again.
func TestBackground(t *testing.T) {
	s, err := open("d", vfs.NewMem(), crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	events := s.events()
	events.BackgroundError(syscall.EIO)
	if err := s.Health(); !errors.Is(err, store.ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	events.FlushEnd(pebble.FlushInfo{Err: syscall.EIO})
	if s.Health() == nil {
		t.Error("well after a flush that failed")
	}
	events.FlushEnd(pebble.FlushInfo{})
	if err := s.Health(); err != nil {
		t.Error(err)
	}
}

// TestFull lets the free space fall below the reserve: puts are refused and nothing else
// happens; deletes go through; when there is space again so do puts.
func TestFull(t *testing.T) {
	fs := &brokenFS{FS: vfs.NewMem()}
	fs.free.Store(reserve)
	s, err := open("d", fs, crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string) error {
		o := &crash.Object{Padding: strings.Repeat("x", checkEvery/2)}
		_, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: name}, Object: o, Expect: store.ExpectAny}}})
		return err
	}
	if err := put("x"); err != nil {
		t.Fatal(err)
	}
	fs.free.Store(reserve - 1)
	for err == nil {
		err = put("y")
	}
	if !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrFailed) {
		t.Fatalf("got %v", err)
	}
	if err := put("z"); !errors.Is(err, store.ErrFull) {
		t.Fatalf("again: %v", err)
	}
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: "x"}, Delete: true}}}); err == nil {
		t.Error("a delete of a present object that expects none succeeded")
	}
	if _, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: "x"}, Delete: true, Expect: store.ExpectAny}}}); err != nil {
		t.Errorf("delete: %v", err)
	}
	fs.free.Store(reserve)
	if err := put("z"); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestUnknown ends the context of a commit while the disk hangs.
func TestUnknown(t *testing.T) {
	fs := &hangingFS{FS: vfs.NewMem(), gate: make(chan struct{}), reached: make(chan struct{}, 100)}
	s, err := open("d", fs, crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	fs.hang.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, _, err := s.Commit(ctx, store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: "x"}, Object: &crash.Object{}}}})
		result <- err
	}()
	<-fs.reached
	if s.Snapshot().Revision() != 0 {
		t.Error("visible before it is durable")
	}
	cancel()
	if err := <-result; !errors.Is(err, store.ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	fs.hang.Store(false)
	close(fs.gate)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// hangingFS lets syncs of log files wait for the gate.
type hangingFS struct {
	vfs.FS
	hang    atomic.Bool
	gate    chan struct{}
	reached chan struct{}
}

func (f *hangingFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return &hangingFile{file, f}, err
}

type hangingFile struct {
	vfs.File
	fs *hangingFS
}

func (f *hangingFile) wait() {
	if f.fs.hang.Load() {
		f.fs.reached <- struct{}{}
		<-f.fs.gate
	}
}

func (f *hangingFile) Sync() error { f.wait(); return f.File.Sync() }

func (f *hangingFile) SyncData() error { f.wait(); return f.File.SyncData() }

func (f *hangingFile) SyncTo(n int64) (bool, error) { f.wait(); return f.File.SyncTo(n) }

var _ io.Closer = (*hangingFile)(nil)

// TestConformanceInMemory runs the suite on the file system of the power-loss test, where
// syncs cost nothing and interleavings are others.
func TestConformanceInMemory(t *testing.T) {
	storetest.Run(t, func(t testing.TB, opts store.Options) store.Store {
		s, err := open("d", vfs.NewMem(), opts, quiet())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// TestBrokenWhileTheLogIsChanged: the disk fails just when the database closes one log file and begins the next. The process lives
// on, and what was acknowledged is found again.
func TestBrokenWhileTheLogIsChanged(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &brokenFS{FS: mem}
	fs.free.Store(1 << 40)
	s, err := open("d", fs, crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	commit := func(name string) error {
		_, _, err := s.Commit(t.Context(), store.Txn{Ops: []store.Op{{Key: store.Key{Resource: "a", Name: name}, Object: &crash.Object{}}}})
		return err
	}
	if err := commit("before"); err != nil {
		t.Fatal(err)
	}
	fs.fail(syscall.ENOSPC)
	if err := s.guard(func() error { _, err := s.db.AsyncFlush(); return err }); err != nil {
		t.Logf("the database says: %v", err)
	}
	if err := commit("after"); !errors.Is(err, store.ErrFailed) {
		t.Errorf("a commit after the failure: %v", err)
	}
	if err := s.Close(); !errors.Is(err, store.ErrFailed) {
		t.Errorf("close: %v", err)
	}
	again, err := open("d", mem.CrashClone(vfs.CrashCloneCfg{}), crash.Options(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Snapshot().Get(store.Key{Resource: "a", Name: "before"}) == nil {
		t.Error("what was acknowledged is gone")
	}
}
