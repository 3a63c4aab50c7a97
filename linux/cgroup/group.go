package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Group is one cgroup in all hierarchies. It holds no state but its path, so that
// any number of values may stand for the same group.
type Group struct {
	system *System
	path   string
}

// Path is the absolute path below the mount points.
func (g *Group) Path() string { return g.path }

// dir is the directory of a controller, "" if it is not mounted.
func (g *Group) dir(controller string) string {
	if g.system.Version == 2 {
		return filepath.Join(g.system.unified, g.path)
	}
	root, ok := g.system.controllers[controller]
	if !ok {
		return ""
	}
	return filepath.Join(root, g.path)
}

// LimitsSwap says whether memory and swap together can be limited in the (existing) group; they cannot
// where the kernel was started without swap accounting.
func (g *Group) LimitsSwap() bool {
	if g.system.Version == 2 {
		return true
	}
	_, err := os.Stat(filepath.Join(g.dir("memory"), "memory.memsw.limit_in_bytes"))
	return err == nil
}

// Exists says whether the group is there (in the memory hierarchy).
func (g *Group) Exists() bool {
	_, err := os.Stat(g.dir("memory"))
	return err == nil
}

// Create makes the group and its missing parents and sets its limits. An existing group
// only has its limits set.
func (g *Group) Create(res Resources) error {
	for _, root := range g.system.roots() {
		if err := g.mkdir(root); err != nil {
			return err
		}
	}
	return g.Set(res)
}

// mkdir makes the directories from a mount point down to the group. On version 2 each
// parent hands its controllers on; in a version 1 cpuset each level inherits what it must not lack.
func (g *Group) mkdir(root string) error {
	dir := root
	cpuset := g.system.Version == 1 && root == g.system.controllers["cpuset"]
	unified := g.system.Version == 2 && root == g.system.unified
	for _, name := range strings.Split(strings.Trim(g.path, "/"), "/") {
		if name == "" {
			continue
		}
		if unified {
			if err := g.system.delegate(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cgroup: %w", err)
		}
		if cpuset {
			if err := inheritCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate lets children of dir use every controller that dir has and containers want.
func (s *System) delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	enabled := map[string]bool{}
	for _, c := range strings.Fields(string(on)) {
		enabled[c] = true
	}
	for _, c := range strings.Fields(string(have)) {
		switch c {
		case "cpu", "cpuset", "io", "memory", "pids", "hugetlb":
		default:
			continue
		}
		if enabled[c] {
			continue
		}
		if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil {
			if errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("%w; processes live in %s itself: move them into a child group", err, dir)
			}
			return err
		}
	}
	return nil
}

func inheritCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		from, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := write(dir, name, strings.TrimSpace(string(from))); err != nil {
			return err
		}
	}
	return nil
}

// Add moves a process into the group.
func (g *Group) Add(pid int) error {
	for _, root := range g.system.roots() {
		if err := write(filepath.Join(root, g.path), "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// Self returns the group that this process is in (in the memory hierarchy).
func (s *System) Self() (*Group, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if s.Version == 2 && parts[0] == "0" || s.Version == 1 && strings.Contains(","+parts[1]+",", ",memory,") {
			return s.Group(parts[2]), nil
		}
	}
	return nil, errors.New("cgroup: cannot find the group of this process")
}

// Warm makes moves of processes between groups quick for the next 10 ms or so, by moving a
// process to where it is. The first move after a while waits for an RCU grace period of the kernel, 5
// to 15 ms; who will move a process soon calls Warm some time before, and not in a goroutine that anybody waits for.
// The process must be one that nobody else moves.
func (g *Group) Warm(pid int) error {
	return write(g.dir("memory"), "cgroup.procs", strconv.Itoa(pid))
}

// Pids returns the processes of the group and of all groups below.
func (g *Group) Pids() ([]int, error) {
	var out []int
	err := filepath.WalkDir(g.dir("memory"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
				return nil
			}
			return err
		}
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	sort.Ints(out)
	return out, nil
}

// Kill sends SIGKILL to every process of the group and of all below, without waiting.
func (g *Group) Kill() error {
	if g.system.unified != "" {
		err := write(filepath.Join(g.system.unified, g.path), "cgroup.kill", "1")
		if err == nil {
			if g.system.Version == 2 {
				return nil
			}
		} else if g.system.Version == 2 && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Without cgroup.kill a fork may slip through a round, so that rounds go on until one finds nobody new.
	seen := map[int]bool{}
	for range 100 {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		fresh := false
		for _, pid := range pids {
			if !seen[pid] {
				seen[pid], fresh = true, true
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("cgroup: killing %d: %w", pid, err)
			}
		}
		if !fresh {
			return nil
		}
	}
	return nil
}

// Remove kills what is left in the group and removes it with all groups below, in every hierarchy.
// It waits for the dying until ctx is done. A group that is not there is no error.
func (g *Group) Remove(ctx context.Context) error {
	wait := time.Millisecond
	for {
		err := g.rmdirs()
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		if kerr := g.Kill(); kerr != nil {
			return kerr
		}
		// The kernel tells nobody when the last task of a version 1 group is gone.
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			pids, _ := g.Pids()
			return fmt.Errorf("cgroup: %s is still in use by processes %v: %w", g.path, pids, context.Cause(ctx))
		case <-timer.C:
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}

func (g *Group) rmdirs() error {
	if g.path == "/" {
		return errors.New("cgroup: refusing to remove the root")
	}
	for _, root := range g.system.roots() {
		if err := rmtree(filepath.Join(root, g.path)); err != nil {
			return err
		}
	}
	return nil
}

func rmtree(dir string) error {
	err := syscall.Rmdir(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		if errors.Is(rerr, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("cgroup: %w", rerr)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := rmtree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Children are the names of the groups directly below, in order.
func (g *Group) Children() ([]string, error) {
	entries, err := os.ReadDir(g.dir("memory"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// write writes a control file in one write call.
func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("cgroup: writing %q to %s: %w", value, f.Name(), err)
	}
	return nil
}
