package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// unlimited is what version 1 shows for "no limit", rounded down to pages.
const unlimited = uint64(math.MaxInt64) &^ 0xffff

// Stats reads the group's usage. A group that is not there gives fs.ErrNotExist; a
// file that this kernel lacks leaves its figures at zero.
func (g *Group) Stats() (Stats, error) {
	if !g.Exists() {
		return Stats{}, fmt.Errorf("cgroup: %s: %w", g.path, fs.ErrNotExist)
	}
	var s Stats
	var err error
	if g.system.Version == 1 {
		err = g.statsV1(&s)
	} else {
		err = g.statsV2(&s)
	}
	if s.MemoryLimit >= unlimited {
		s.MemoryLimit = 0
	}
	if s.PidsLimit == math.MaxUint64 {
		s.PidsLimit = 0
	}
	return s, err
}

func (g *Group) statsV1(s *Stats) error {
	cpuacct, memory, pids := g.dir("cpuacct"), g.dir("memory"), g.dir("pids")
	usage := keyValues(memory, "memory.stat")
	throttle := keyValues(g.dir("cpu"), "cpu.stat")
	oom := keyValues(memory, "memory.oom_control")
	err := numbers(
		number{cpuacct, "cpuacct.usage", &s.CPUNanos},
		number{cpuacct, "cpuacct.usage_user", &s.UserNanos},
		number{cpuacct, "cpuacct.usage_sys", &s.SystemNanos},
		number{memory, "memory.usage_in_bytes", &s.MemoryBytes},
		number{memory, "memory.limit_in_bytes", &s.MemoryLimit},
		number{memory, "memory.max_usage_in_bytes", &s.PeakBytes},
		number{pids, "pids.current", &s.Pids},
		number{pids, "pids.max", &s.PidsLimit},
	)
	s.Periods, s.ThrottledPeriods, s.ThrottledNanos = throttle["nr_periods"], throttle["nr_throttled"], throttle["throttled_time"]
	s.RSSBytes, s.SwapBytes = usage["total_rss"], usage["total_swap"]
	s.PageFaults, s.MajorPageFaults = usage["total_pgfault"], usage["total_pgmajfault"]
	s.WorkingSetBytes = minus(s.MemoryBytes, usage["total_inactive_file"])
	s.OOMKills = oom["oom_kill"]
	return err
}

func (g *Group) statsV2(s *Stats) error {
	dir := g.dir("")
	cpu := keyValues(dir, "cpu.stat")
	mem := keyValues(dir, "memory.stat")
	events := keyValues(dir, "memory.events")
	err := numbers(
		number{dir, "memory.current", &s.MemoryBytes},
		number{dir, "memory.max", &s.MemoryLimit},
		number{dir, "memory.peak", &s.PeakBytes},
		number{dir, "memory.swap.current", &s.SwapBytes},
		number{dir, "pids.current", &s.Pids},
		number{dir, "pids.max", &s.PidsLimit},
	)
	s.CPUNanos, s.UserNanos, s.SystemNanos = cpu["usage_usec"]*1000, cpu["user_usec"]*1000, cpu["system_usec"]*1000
	s.Periods, s.ThrottledPeriods, s.ThrottledNanos = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]*1000
	s.RSSBytes = mem["anon"]
	s.PageFaults, s.MajorPageFaults = mem["pgfault"], mem["pgmajfault"]
	s.WorkingSetBytes = minus(s.MemoryBytes, mem["inactive_file"])
	s.OOMKills = events["oom_kill"]
	return err
}

// OOMKills is how many processes of the group (version 2: and of those below) the kernel has
// killed for lack of memory, 0 if that cannot be read.
func (g *Group) OOMKills() uint64 {
	if g.system.Version == 1 {
		return keyValues(g.dir("memory"), "memory.oom_control")["oom_kill"]
	}
	return keyValues(g.dir(""), "memory.events")["oom_kill"]
}

type number struct {
	dir, file string
	to        *uint64
}

func numbers(list ...number) error {
	for _, n := range list {
		if n.dir == "" {
			continue
		}
		v, err := readUint(n.dir, n.file)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
				continue
			}
			return fmt.Errorf("cgroup: %w", err)
		}
		*n.to = v
	}
	return nil
}

// keyValues reads a file of "name number" lines; what cannot be read is left out.
func keyValues(dir, file string) map[string]uint64 {
	if dir == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	out := make(map[string]uint64, 40)
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out
}

func minus(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
