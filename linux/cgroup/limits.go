package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// DefaultPeriod is the CPU period in microseconds where none is given.
const DefaultPeriod = 100_000

// setting is one file to write. Optional ones may be missing in the kernel.
type setting struct {
	controller, file, value string
	optional                bool
}

// Set changes the limits that are not zero. A limit whose controller is missing is an
// error that wraps ErrNoController; nothing before it is taken back.
func (g *Group) Set(res Resources) error {
	settings := settingsV2(res)
	if g.system.Version == 1 {
		settings = settingsV1(res)
	}
	for _, s := range g.ordered(settings) {
		if err := g.apply(s); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) apply(s setting) error {
	if !g.system.Has(s.controller) && s.controller != "" {
		if s.optional {
			return nil
		}
		return fmt.Errorf("%w: %s, needed to write %s=%s", ErrNoController, s.controller, s.file, s.value)
	}
	err := write(g.dir(s.controller), s.file, s.value)
	if err != nil && s.optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return nil
	}
	return err
}

// ordered puts the swap limit before the memory limit where the new memory limit is above the present
// swap limit, as version 1 refuses memory > memory+swap at every moment.
func (g *Group) ordered(settings []setting) []setting {
	if g.system.Version != 1 {
		return settings
	}
	mem, swap := -1, -1
	for i, s := range settings {
		switch s.file {
		case "memory.limit_in_bytes":
			mem = i
		case "memory.memsw.limit_in_bytes":
			swap = i
		}
	}
	if mem < 0 || swap < 0 {
		return settings
	}
	now, err := readUint(g.dir("memory"), "memory.memsw.limit_in_bytes")
	if err != nil {
		return settings
	}
	want, err := strconv.ParseInt(settings[mem].value, 10, 64)
	if err == nil && (want < 0 || uint64(want) > now) {
		settings[mem], settings[swap] = settings[swap], settings[mem]
	}
	return settings
}

func settingsV1(r Resources) []setting {
	var out []setting
	add := func(controller, file, value string, optional bool) {
		out = append(out, setting{controller, file, value, optional})
	}
	if r.CPUShares != 0 {
		add("cpu", "cpu.shares", strconv.FormatUint(min(max(r.CPUShares, 2), 262144), 10), false)
	}
	if r.CPUQuota != 0 {
		period := r.CPUPeriod
		if period == 0 {
			period = DefaultPeriod
		}
		quota := r.CPUQuota
		if quota < 0 {
			quota = -1
		}
		add("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10), false)
		add("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10), false)
	}
	if r.CPUs != "" {
		add("cpuset", "cpuset.cpus", r.CPUs, false)
	}
	if r.MemNodes != "" {
		add("cpuset", "cpuset.mems", r.MemNodes, false)
	}
	if r.Memory != 0 {
		memory, swap := r.Memory, r.MemorySwap
		if memory < 0 {
			memory, swap = -1, -1
		}
		if swap == 0 {
			swap = memory
		}
		add("memory", "memory.limit_in_bytes", strconv.FormatInt(memory, 10), false)
		add("memory", "memory.memsw.limit_in_bytes", strconv.FormatInt(max(swap, -1), 10), true)
	}
	if r.Pids != 0 {
		add("pids", "pids.max", limitOrMax(r.Pids), false)
	}
	for _, size := range sortedKeys(r.Hugepages) {
		add("hugetlb", "hugetlb."+size+".limit_in_bytes", strconv.FormatUint(r.Hugepages[size], 10), false)
	}
	return out
}

func settingsV2(r Resources) []setting {
	var out []setting
	add := func(controller, file, value string, optional bool) {
		out = append(out, setting{controller, file, value, optional})
	}
	if r.CPUShares != 0 {
		add("cpu", "cpu.weight", strconv.FormatUint(SharesToWeight(r.CPUShares), 10), false)
	}
	if r.CPUQuota != 0 {
		period := r.CPUPeriod
		if period == 0 {
			period = DefaultPeriod
		}
		quota := "max"
		if r.CPUQuota > 0 {
			quota = strconv.FormatInt(r.CPUQuota, 10)
		}
		add("cpu", "cpu.max", quota+" "+strconv.FormatUint(period, 10), false)
	}
	if r.CPUs != "" {
		add("cpuset", "cpuset.cpus", r.CPUs, false)
	}
	if r.MemNodes != "" {
		add("cpuset", "cpuset.mems", r.MemNodes, false)
	}
	if r.Memory != 0 {
		swap := "0"
		switch {
		case r.Memory < 0 || r.MemorySwap < 0:
			swap = "max"
		case r.MemorySwap > r.Memory:
			swap = strconv.FormatInt(r.MemorySwap-r.Memory, 10)
		}
		add("memory", "memory.swap.max", swap, true)
		add("memory", "memory.max", limitOrMax(r.Memory), false)
	}
	if r.OOMGroup {
		add("memory", "memory.oom.group", "1", true)
	}
	if r.Pids != 0 {
		add("pids", "pids.max", limitOrMax(r.Pids), false)
	}
	for _, size := range sortedKeys(r.Hugepages) {
		value := strconv.FormatUint(r.Hugepages[size], 10)
		add("hugetlb", "hugetlb."+size+".max", value, false)
		add("hugetlb", "hugetlb."+size+".rsvd.max", value, true)
	}
	for _, file := range sortedKeys(r.Unified) {
		controller, _, _ := strings.Cut(file, ".")
		if controller == "cgroup" {
			controller = ""
		}
		add(controller, file, r.Unified[file], false)
	}
	return out
}

func limitOrMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// SharesToWeight converts a version 1 weight (2..262144, 1024 the default) to version 2 (1..10000, 100 the
// default), so that both defaults meet: the curve of KEP-2254's successor that runc and
// crun use since 2025.
func SharesToWeight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	exponent := (l*l+125*l)/612 - 7.0/34
	return uint64(math.Ceil(math.Pow(10, exponent)))
}

// Merge lays the limits of change that are not zero over r.
func (r Resources) Merge(change Resources) Resources {
	out := r
	if change.CPUShares != 0 {
		out.CPUShares = change.CPUShares
	}
	if change.CPUQuota != 0 {
		out.CPUQuota, out.CPUPeriod = change.CPUQuota, change.CPUPeriod
	}
	if change.CPUs != "" {
		out.CPUs = change.CPUs
	}
	if change.MemNodes != "" {
		out.MemNodes = change.MemNodes
	}
	if change.Memory != 0 {
		out.Memory, out.MemorySwap = change.Memory, change.MemorySwap
	}
	if change.Pids != 0 {
		out.Pids = change.Pids
	}
	out.Hugepages = mergeMap(r.Hugepages, change.Hugepages)
	out.Unified = mergeMap(r.Unified, change.Unified)
	out.OOMGroup = r.OOMGroup || change.OOMGroup
	return out
}

func mergeMap[V any](a, b map[string]V) map[string]V {
	if len(b) == 0 {
		return a
	}
	out := make(map[string]V, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

func readUint(dir, name string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return parseUint(data)
}

// parseUint reads a number; "max" and negative ones are MaxUint64 and 0.
func parseUint(data []byte) (uint64, error) {
	s := string(bytes.TrimSpace(data))
	if s == "max" {
		return math.MaxUint64, nil
	}
	if strings.HasPrefix(s, "-") {
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 64)
}
