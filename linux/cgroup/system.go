package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
)

// ErrNoController says that the kernel or the machine's set-up lacks a controller.
var ErrNoController = errors.New("cgroup: missing controller")

// System is how this machine mounts its control groups. It is immutable.
type System struct {
	// Version is 1 where the resource controllers are on version 1 (also if an empty version
	// 2 tree stands beside them), otherwise 2.
	Version int
	// controllers are mount points by controller name on version 1, "name=systemd" included.
	controllers map[string]string
	// unified is the mount point of version 2, "" for none.
	unified string
	// available are the controllers of the version 2 root.
	available map[string]bool
}

var detected = sync.OnceValues(func() (*System, error) { return detect("/proc/self/mountinfo") })

// Detect reads how control groups are mounted, once for each process. It fails if
// there are none, or if one of the controllers that containers cannot do without (cpu,
// memory, pids; devices on version 1) is missing.
func Detect() (*System, error) { return detected() }

func detect(mountinfo string) (*System, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close()
	s := &System{controllers: map[string]string{}, available: map[string]bool{}}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		s.mountLine(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	if s.unified != "" {
		data, err := os.ReadFile(filepath.Join(s.unified, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		for _, c := range strings.Fields(string(data)) {
			s.available[c] = true
		}
	}
	s.Version = 2
	if _, ok := s.controllers["memory"]; ok || s.unified == "" {
		s.Version = 1
	}
	return s, s.check()
}

// mountLine takes in one line of mountinfo. The first mount of a hierarchy counts.
func (s *System) mountLine(line string) {
	left, right, ok := strings.Cut(line, " - ")
	if !ok {
		return
	}
	l, r := strings.Fields(left), strings.Fields(right)
	if len(l) < 5 || len(r) < 3 {
		return
	}
	switch r[0] {
	case "cgroup2":
		if s.unified == "" {
			s.unified = l[4]
		}
	case "cgroup":
		for _, opt := range strings.Split(r[2], ",") {
			switch opt {
			case "rw", "ro", "xattr", "clone_children", "noprefix", "release_agent":
				continue
			}
			if _, ok := s.controllers[opt]; !ok {
				s.controllers[opt] = l[4]
			}
		}
	}
}

func (s *System) check() error {
	if len(s.controllers) == 0 && s.unified == "" {
		return errors.New("cgroup: no control groups are mounted; mount them (on most systems: mount -t cgroup2 none /sys/fs/cgroup)")
	}
	need := []string{"cpu", "memory", "pids"}
	if s.Version == 1 {
		need = append(need, "devices", "freezer", "cpuacct")
	}
	var missing []string
	for _, c := range need {
		if !s.Has(c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s (version %d); enable it with a kernel command line such as cgroup_enable=%s, or mount it",
			ErrNoController, strings.Join(missing, ", "), s.Version, missing[0])
	}
	return nil
}

// Has says whether a resource controller can be used.
func (s *System) Has(controller string) bool {
	if s.Version == 1 {
		_, ok := s.controllers[controller]
		return ok
	}
	return s.available[controller]
}

// roots are the directories below which a group has one directory each, in a stable order.
func (s *System) roots() []string {
	seen := map[string]bool{}
	var out []string
	for _, dir := range s.controllers {
		if s.Version == 2 && !strings.HasPrefix(dir, "/") {
			continue
		}
		if !seen[dir] {
			seen[dir] = true
			out = append(out, dir)
		}
	}
	if s.unified != "" {
		out = append(out, s.unified)
	}
	sort.Strings(out)
	return out
}

// Group is the cgroup at an absolute path below the mount points ("/coracle/pod1"). It
// need not exist.
func (s *System) Group(path string) *Group {
	return &Group{system: s, path: filepath.Clean("/" + path)}
}
