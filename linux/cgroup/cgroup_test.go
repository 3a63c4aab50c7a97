package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "linux/cgroup: these tests make real control groups and need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// group is a group of this machine that goes with the test.
func group(t *testing.T, path string) *Group {
	t.Helper()
	sys, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	root := sys.Group(fmt.Sprintf("/coracle-test-%d", os.Getpid()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := root.Remove(ctx); err != nil {
			t.Error(err)
		}
		for _, dir := range sys.roots() {
			if _, err := os.Stat(filepath.Join(dir, root.Path())); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left in %s: %v", dir, err)
			}
		}
	})
	return sys.Group(root.Path() + "/" + path)
}

func TestLife(t *testing.T) {
	g := group(t, "a/b")
	if g.Exists() {
		t.Fatal("it is there before it is made")
	}
	if _, err := g.Stats(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stats of nothing: %v", err)
	}
	for range 2 { // again is no error
		if err := g.Create(Resources{CPUShares: 300, CPUQuota: 20_000, Memory: 64 << 20, Pids: 50}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", `read x; (sleep 1000 &); sleep 1000`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if pids, err := g.Pids(); err != nil || len(pids) == 3 || time.Now().After(deadline) {
			if err != nil || len(pids) != 3 || !slices.Contains(pids, cmd.Process.Pid) {
				t.Fatalf("%v %v", pids, err)
			}
			break
		}
	}
	stats, err := g.Stats()
	if err != nil || stats.MemoryLimit != 64<<20 || stats.PidsLimit != 50 || stats.Pids != 3 || stats.CPUNanos == 0 || stats.MemoryBytes == 0 || stats.WorkingSetBytes > stats.MemoryBytes || stats.OOMKills != 0 {
		t.Errorf("%+v %v", stats, err)
	}
	parent := g.system.Group(filepath.Dir(g.Path()))
	if names, err := parent.Children(); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("%v %v", names, err)
	}
	if all, err := parent.Stats(); err != nil || all.MemoryLimit != 0 || all.PidsLimit != 0 {
		t.Errorf("the parent without limits: %+v %v", all, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	removed := make(chan error, 1)
	go func() { removed <- parent.Remove(ctx) }() // kills all three
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%v", cmd.ProcessState)
	}
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if g.Exists() || parent.Exists() {
		t.Error("still there")
	}
	if err := parent.Remove(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestLimitsChange(t *testing.T) {
	g := group(t, "limits")
	if err := g.Create(Resources{Memory: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	limit := func() uint64 {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.MemoryLimit
	}
	// Up and down, where memory+swap must never be below memory.
	for _, memory := range []int64{256 << 20, 32 << 20, 128 << 20, -1, 16 << 20} {
		if err := g.Set(Resources{Memory: memory}); err != nil {
			t.Fatal(err)
		}
		if got := limit(); got != uint64(max(memory, 0)) {
			t.Errorf("set %d, got %d", memory, got)
		}
	}
	if err := g.Set(Resources{}); err != nil {
		t.Fatal(err)
	}
	if got := limit(); got != 16<<20 {
		t.Errorf("setting nothing changed the limit to %d", got)
	}
	if err := g.Set(Resources{Pids: 10}); err != nil {
		t.Fatal(err)
	}
	if err := g.Set(Resources{Pids: -1, CPUQuota: -1, CPUShares: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if s, _ := g.Stats(); s.PidsLimit != 0 {
		t.Errorf("%+v", s)
	}
	if err := g.Set(Resources{Hugepages: map[string]uint64{"3MB": 1}}); err == nil {
		t.Error("a page size that does not exist was taken")
	}
}

func TestMissingController(t *testing.T) {
	for name, test := range map[string]struct{ mountinfo, want string }{
		"nothing":     {"1 1 0:1 / / rw - ext4 /dev/root rw\n", "no control groups are mounted"},
		"no memory":   {"1 1 0:1 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n2 1 0:2 / /c/pids rw - cgroup cgroup rw,pids\n3 1 0:3 / /c/d rw - cgroup cgroup rw,devices\n4 1 0:4 / /c/f rw - cgroup cgroup rw,freezer\n", "missing controller: memory (version 1)"},
		"no pids":     {"1 1 0:1 / /c/cpu rw - cgroup cgroup rw,cpu,cpuacct\n2 1 0:2 / /c/m rw - cgroup cgroup rw,memory\n3 1 0:3 / /c/d rw - cgroup cgroup rw,devices\n4 1 0:4 / /c/f rw - cgroup cgroup rw,freezer\n", "missing controller: pids (version 1)"},
		"bare tree 2": {"", "missing controller: cpu, memory, pids (version 2)"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if test.mountinfo == "" {
				tree := fakeV2(t, "")
				test.mountinfo = fmt.Sprintf("1 1 0:1 / %s rw - cgroup2 cgroup2 rw\n", tree)
			}
			path := filepath.Join(dir, "mountinfo")
			if err := os.WriteFile(path, []byte(test.mountinfo), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := detect(path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// fakeV2 is a directory that looks like a version 2 tree with the given controllers.
func fakeV2(t *testing.T, controllers string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func v2System(t *testing.T, controllers string) *System {
	t.Helper()
	tree := fakeV2(t, controllers)
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, fmt.Appendf(nil, "1 1 0:1 / %s rw - cgroup2 cgroup2 rw\n", tree), 0o644); err != nil {
		t.Fatal(err)
	}
	sys, err := detect(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys.Version != 2 {
		t.Fatalf("version %d", sys.Version)
	}
	return sys
}

// TestVersion2 uses a made-up tree, as the machines of the tests may have version 1: each file must exist, like
// the kernel's, and takes what is written.
func TestVersion2(t *testing.T) {
	sys := v2System(t, "cpuset cpu io memory pids hugetlb rdma misc\n")
	g := sys.Group("/pods/one")
	dir := filepath.Join(sys.unified, "pods", "one")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(dir, name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Dir(dir), "cgroup.controllers", "cpuset cpu memory pids")
	put(filepath.Dir(dir), "cgroup.subtree_control", "cpu cpuset memory pids")
	for _, name := range []string{"cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.max", "memory.swap.max", "memory.min", "memory.oom.group", "pids.max", "hugetlb.2MB.max"} {
		put(dir, name, "")
	}
	err := g.Create(Resources{
		CPUShares: 1024, CPUQuota: 50_000, CPUs: "0-1", MemNodes: "0", Memory: 1 << 20, MemorySwap: 3 << 20, Pids: 7, OOMGroup: true,
		Hugepages: map[string]uint64{"2MB": 4 << 20}, Unified: map[string]string{"memory.min": "4096"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpu.weight": "100", "cpu.max": "50000 100000", "cpuset.cpus": "0-1", "cpuset.mems": "0", "memory.max": "1048576",
		"memory.swap.max": "2097152", "memory.min": "4096", "memory.oom.group": "1", "pids.max": "7", "hugetlb.2MB.max": "4194304",
	} {
		if got, _ := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// Each controller was handed on from the root; write adds nothing to a plain file, so the last one is there.
	if got, _ := os.ReadFile(filepath.Join(sys.unified, "cgroup.subtree_control")); !strings.HasPrefix(string(got), "+") {
		t.Errorf("subtree_control %q", got)
	}
	if err := g.Set(Resources{Memory: -1, Pids: -1, CPUQuota: -1}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "max", "memory.swap.max": "max", "pids.max": "max", "cpu.max": "max 100000"} {
		if got, _ := os.ReadFile(filepath.Join(dir, name)); !strings.HasPrefix(string(got), want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for name, data := range map[string]string{
		"cpu.stat":    "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
		"memory.stat": "anon 100\nfile 900\ninactive_file 300\npgfault 11\npgmajfault 2\n", "memory.current": "1000\n", "memory.max": "max\n",
		"memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n", "memory.peak": "1200\n", "memory.swap.current": "5\n", "pids.current": "3\n", "pids.max": "max\n",
	} {
		put(dir, name, data)
	}
	got, err := g.Stats()
	want := Stats{
		CPUNanos: 1_500_000, UserNanos: 1_000_000, SystemNanos: 500_000, Periods: 4, ThrottledPeriods: 3, ThrottledNanos: 2000,
		MemoryBytes: 1000, WorkingSetBytes: 700, RSSBytes: 100, PeakBytes: 1200, SwapBytes: 5, PageFaults: 11, MajorPageFaults: 2, Pids: 3, OOMKills: 1,
	}
	if err != nil || got.MemoryLimit != 0 && got.MemoryLimit < unlimited || func() bool { got.MemoryLimit = 0; return got != want }() {
		t.Errorf("%+v %v\nwant %+v", got, err, want)
	}
	if g.OOMKills() != 1 {
		t.Errorf("OOM kills %d", g.OOMKills())
	}
	// A limit without its controller is refused, not forgotten.
	poor := v2System(t, "cpu memory pids").Group("/x")
	if err := poor.Set(Resources{CPUs: "0"}); !errors.Is(err, ErrNoController) {
		t.Errorf("%v", err)
	}
}

func TestSharesToWeight(t *testing.T) {
	last := uint64(0)
	for shares, want := range map[uint64]uint64{0: 0, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := SharesToWeight(shares); got != want {
			t.Errorf("%d is %d, want %d", shares, got, want)
		}
	}
	for shares := uint64(2); shares <= 262144; shares += 7 {
		w := SharesToWeight(shares)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("%d is %d after %d", shares, w, last)
		}
		last = w
	}
}

func TestMerge(t *testing.T) {
	a := Resources{CPUShares: 1, Memory: 2, Pids: 3, Hugepages: map[string]uint64{"2MB": 1}, Unified: map[string]string{"a": "b"}}
	got := a.Merge(Resources{Memory: 5, CPUQuota: 7, CPUPeriod: 8, Hugepages: map[string]uint64{"1GB": 2}})
	if got.CPUShares != 1 || got.Memory != 5 || got.Pids != 3 || got.CPUQuota != 7 || got.CPUPeriod != 8 || len(got.Hugepages) != 2 || len(got.Unified) != 1 {
		t.Errorf("%+v", got)
	}
	if len(a.Hugepages) != 1 {
		t.Error("the original was changed")
	}
}

func TestSelf(t *testing.T) {
	sys, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	self, err := sys.Self()
	if err != nil {
		t.Fatal(err)
	}
	pids, err := self.Pids()
	if err != nil || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("%s has %v (%v), not %d", self.Path(), pids, err, os.Getpid())
	}
}

func TestRootIsSafe(t *testing.T) {
	sys, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "", "/../..", "."} {
		if err := sys.Group(path).Remove(context.Background()); err == nil || !strings.Contains(err.Error(), "refusing") {
			t.Errorf("%q: %v", path, err)
		}
	}
}
